/* SPDX-License-Identifier: BSD-2-Clause
 *
 * The peer of bench/test_checksum.py: DPDK's rte_raw_cksum() (and rte_hash_crc(), which is CRC32c), inlined in the loop as
 * a DPDK program has it, over frames that lie as in virtio/_offloadbench.pyx. No EAL: what is in front of -- is skipped.
 *
 * usage: dpdk_checksum ... -- raw_cksum|hash_crc SIZE SPAN COUNT   prints one JSON line: ns of thread CPU time a call
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <rte_hash_crc.h>
#include <rte_ip.h>

#define OFFSET 14

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

int main(int argc, char **argv)
{
    int first = 1;
    while (first < argc && strcmp(argv[first], "--"))
        first++;
    if (argc - first != 5) {
        fprintf(stderr, "usage: dpdk_checksum ... -- raw_cksum|hash_crc SIZE SPAN COUNT\n");
        return 1;
    }
    int crc = !strcmp(argv[first + 1], "hash_crc");
    size_t size = strtoul(argv[first + 2], NULL, 10), span = strtoul(argv[first + 3], NULL, 10), at = 0;
    long count = atol(argv[first + 4]);
    size_t stride = (size + OFFSET + 63) / 64 * 64, frames = span / stride ? span / stride : 1;
    uint8_t *memory = aligned_alloc(4096, (stride * frames + 4095) / 4096 * 4096);
    volatile uint64_t kept;
    uint64_t total = 0;
    if (!memory || count < 1)
        return 1;
    memset(memory, 0xa5, stride * frames);
    double start = now();
    for (long i = 0; i < count; i++) {
        total += crc ? rte_hash_crc(memory + at + OFFSET, size, 0) : rte_raw_cksum(memory + at + OFFSET, size);
        at += stride;
        if (at == stride * frames)
            at = 0;
    }
    double elapsed = now() - start;
    kept = total;
    (void)kept;
    printf("{\"ns\": %.4f}\n", elapsed / count);
    return 0;
}
