/* SPDX-License-Identifier: BSD-2-Clause
 *
 * One cache line bounced between two cores: what a two-core figure of this machine can be at best, and a sign of a
 * disturbed machine when it is not what it was. usage: pingpong CPU_A CPU_B   prints nanoseconds a round trip, by chunk
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define CHUNKS 500
#define TRIPS 200 /* a chunk */

static _Alignas(128) uint64_t line;

static void pin(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        perror("sched_setaffinity");
}

static void *other(void *cpu)
{
    pin(*(int *)cpu);
    for (uint64_t i = 1; i <= 2ull * CHUNKS * TRIPS; i += 2) {
        while (__atomic_load_n(&line, __ATOMIC_ACQUIRE) != i)
            ;
        __atomic_store_n(&line, i + 1, __ATOMIC_RELEASE);
    }
    return NULL;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    static double ns[CHUNKS];
    int cpus[2] = {argc > 1 ? atoi(argv[1]) : 0, argc > 2 ? atoi(argv[2]) : 1};
    pthread_t thread;
    pin(cpus[0]);
    if (pthread_create(&thread, NULL, other, &cpus[1]))
        return 1;
    uint64_t i = 1;
    for (int c = 0; c < CHUNKS; c++) {
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        for (int k = 0; k < TRIPS; k++, i += 2) {
            __atomic_store_n(&line, i, __ATOMIC_RELEASE);
            while (__atomic_load_n(&line, __ATOMIC_ACQUIRE) != i + 1)
                ;
        }
        clock_gettime(CLOCK_MONOTONIC, &b);
        ns[c] = ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / TRIPS;
    }
    pthread_join(thread, NULL);
    qsort(ns, CHUNKS, sizeof *ns, by_value);
    printf("{\"p10\": %.1f, \"median\": %.1f, \"p90\": %.1f}\n", ns[CHUNKS / 10], ns[CHUNKS / 2], ns[CHUNKS * 9 / 10]);
    return 0;
}
