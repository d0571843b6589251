/* SPDX-License-Identifier: BSD-2-Clause
 *
 * The peer of bench/test_frame.py: DPDK's rte_net_get_ptype(), and rte_softrss_be() over the addresses and ports of
 * what it found, on the frames of a file. No EAL: what is in front of -- is skipped, and each mbuf only points at its frame.
 *
 * FILE: uint32_t count; uint32_t bounds[count][2] (first byte, behind the last); then the bytes.
 *
 * usage: dpdk_frame ... -- ptype|softrss FILE ROUNDS   prints one JSON line: ns of thread CPU time a frame
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <rte_mbuf.h>
#include <rte_net.h>
#include <rte_thash.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static const uint8_t *load(const char *path)
{
    FILE *file = fopen(path, "rb");
    long size;
    uint8_t *data;
    if (!file || fseek(file, 0, SEEK_END) || (size = ftell(file)) < 8)
        return NULL;
    rewind(file);
    data = malloc(size);
    if (!data || fread(data, 1, size, file) != (size_t)size)
        return NULL;
    fclose(file);
    return data;
}

int main(int argc, char **argv)
{
    int first = 1;
    while (first < argc && strcmp(argv[first], "--"))
        first++;
    if (argc - first != 4) {
        fprintf(stderr, "usage: dpdk_frame ... -- ptype|softrss FILE ROUNDS\n");
        return 1;
    }
    int hash = !strcmp(argv[first + 1], "softrss");
    const uint8_t *file = load(argv[first + 2]);
    long rounds = atol(argv[first + 3]);
    uint32_t count, converted[10];
    uint8_t key[40];
    uint64_t total = 0;
    volatile uint64_t kept;
    if (!file || rounds < 1)
        return 1;
    memcpy(&count, file, 4);
    const uint32_t(*bounds)[2] = (const uint32_t(*)[2])(file + 4);
    uint8_t *bytes = (uint8_t *)(file + 4 + 8 * count);
    struct rte_mbuf *mbufs = aligned_alloc(64, count * sizeof(*mbufs));
    struct rte_net_hdr_lens *found = calloc(count, sizeof(*found));
    if (!mbufs || !found)
        return 1;
    memset(mbufs, 0, count * sizeof(*mbufs));
    for (uint32_t i = 0; i < count; i++) {
        mbufs[i].buf_addr = bytes + bounds[i][0];
        mbufs[i].data_len = mbufs[i].pkt_len = bounds[i][1] - bounds[i][0];
        mbufs[i].nb_segs = 1;
        total += rte_net_get_ptype(&mbufs[i], &found[i], RTE_PTYPE_ALL_MASK);
    }
    for (int i = 0; i < 40; i++)
        key[i] = i * 37 + 1;
    rte_convert_rss_key((uint32_t *)key, converted, 40);
    double start = now();
    for (long round = 0; round < rounds; round++)
        for (uint32_t i = 0; i < count; i++) {
            if (!hash) {
                total += rte_net_get_ptype(&mbufs[i], &found[i], RTE_PTYPE_ALL_MASK);
                continue;
            }
            /* the frames of the benchmark have no IP options */
            const uint8_t *l3 = (uint8_t *)mbufs[i].buf_addr + found[i].l2_len, *ports = l3 + found[i].l3_len;
            uint32_t words = l3[0] >> 4 == 4 ? 2 : 8, input[9];
            for (uint32_t w = 0; w < words; w++)
                input[w] = rte_be_to_cpu_32(*(const unaligned_uint32_t *)(l3 + (words == 2 ? 12 : 8) + 4 * w));
            input[words] = rte_be_to_cpu_32(*(const unaligned_uint32_t *)ports);
            total += rte_softrss_be(input, words + 1, (const uint8_t *)converted);
        }
    double taken = now() - start;
    kept = total;
    (void)kept;
    printf("{\"ns\": %.4f}\n", taken / ((double)rounds * count));
    return 0;
}
