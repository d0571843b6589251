/* SPDX-License-Identifier: BSD-2-Clause
 *
 * The peer of bench/test_segment.py: one TCPv4 frame of 64 KiB, cut by DPDK's librte_gso into mbufs that refer to it, and
 * these freed again; with checksums in software, as for a NIC that computes none, or without. Buffers come from mempools
 * with a cache, as in a data path. At the end it checks what it gave.
 *
 * usage: dpdk_gso EAL-options -- MODE MSS COUNT   MODE: gso (segment, free), csum (segment, checksums, free)
 * prints one JSON line: the median nanoseconds of thread CPU time per segment, and segments per frame
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_gso.h>
#include <rte_ip.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_tcp.h>

#define PAYLOAD 65160
#define HEADERS 54
#define MOST 512
#define REPS 11

static void fail(const char *what)
{
    fprintf(stderr, "dpdk_gso: %s\n", what);
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct rte_mbuf *make(struct rte_mempool *pool)
{
    struct rte_mbuf *m = rte_pktmbuf_alloc(pool);
    uint8_t *p = m == NULL ? NULL : (uint8_t *)rte_pktmbuf_append(m, HEADERS + PAYLOAD);
    if (p == NULL)
        fail("no buffer for the frame");
    for (int i = 0; i < HEADERS + PAYLOAD; i++)
        p[i] = (uint8_t)(i * 131u >> 3);
    struct rte_ether_hdr *eth = (struct rte_ether_hdr *)p;
    struct rte_ipv4_hdr *ip = (struct rte_ipv4_hdr *)(eth + 1);
    struct rte_tcp_hdr *tcp = (struct rte_tcp_hdr *)(ip + 1);
    eth->ether_type = rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4);
    memset(ip, 0, sizeof(*ip) + sizeof(*tcp));
    ip->version_ihl = 0x45;
    ip->total_length = rte_cpu_to_be_16(40 + PAYLOAD);
    ip->packet_id = rte_cpu_to_be_16(0xfff0);
    ip->time_to_live = 64;
    ip->next_proto_id = IPPROTO_TCP;
    ip->src_addr = rte_cpu_to_be_32(0x0a000001);
    ip->dst_addr = rte_cpu_to_be_32(0x0a000002);
    tcp->src_port = rte_cpu_to_be_16(4000);
    tcp->dst_port = rte_cpu_to_be_16(5001);
    tcp->sent_seq = rte_cpu_to_be_32(0xfffff000u);
    tcp->data_off = 5 << 4;
    tcp->tcp_flags = RTE_TCP_ACK_FLAG | RTE_TCP_PSH_FLAG;
    m->l2_len = 14;
    m->l3_len = 20;
    m->l4_len = 20;
    m->packet_type = RTE_PTYPE_L2_ETHER | RTE_PTYPE_L3_IPV4 | RTE_PTYPE_L4_TCP;
    return m;
}

static int cut(struct rte_mbuf *frame, const struct rte_gso_ctx *ctx, struct rte_mbuf **out)
{
    frame->ol_flags = RTE_MBUF_F_TX_IPV4 | RTE_MBUF_F_TX_TCP_SEG; /* each call takes a flag off */
    return rte_gso_segment(frame, ctx, out, MOST);
}

static void checksums(struct rte_mbuf *m)
{
    struct rte_ipv4_hdr *ip = rte_pktmbuf_mtod_offset(m, struct rte_ipv4_hdr *, 14);
    struct rte_tcp_hdr *tcp = (struct rte_tcp_hdr *)(ip + 1);
    ip->hdr_checksum = 0;
    ip->hdr_checksum = rte_ipv4_cksum(ip);
    tcp->cksum = 0;
    tcp->cksum = rte_ipv4_udptcp_cksum_mbuf(m, ip, 34);
}

int main(int argc, char **argv)
{
    struct rte_mbuf *out[MOST];
    double reps[REPS];
    int used = rte_eal_init(argc, argv), n = 0;
    if (used < 0)
        fail("EAL does not start");
    argc -= used;
    argv += used;
    if (argc != 4 || (strcmp(argv[1], "gso") != 0 && strcmp(argv[1], "csum") != 0))
        fail("usage: dpdk_gso EAL-options -- gso|csum MSS COUNT");
    int csum = strcmp(argv[1], "csum") == 0, mss = atoi(argv[2]), count = atoi(argv[3]);
    struct rte_mempool *big = rte_pktmbuf_pool_create("big", 7, 0, 0, 65535, SOCKET_ID_ANY);
    struct rte_mempool *direct = rte_pktmbuf_pool_create("direct", 4095, 256, 0, 256, SOCKET_ID_ANY);
    struct rte_mempool *indirect = rte_pktmbuf_pool_create("indirect", 4095, 256, 0, 0, SOCKET_ID_ANY);
    if (big == NULL || direct == NULL || indirect == NULL)
        fail("no memory for the pools");
    struct rte_gso_ctx ctx = {
        .direct_pool = direct,
        .indirect_pool = indirect,
        .gso_types = RTE_ETH_TX_OFFLOAD_TCP_TSO,
        .gso_size = (uint16_t)(HEADERS + mss),
    };
    struct rte_mbuf *frame = make(big);
    for (int rep = -1; rep < REPS; rep++) { /* the first warms up */
        double start = now();
        for (int k = 0; k < count; k++) {
            n = cut(frame, &ctx, out);
            if (n != (PAYLOAD + mss - 1) / mss)
                { fprintf(stderr, "dpdk_gso: rte_gso_segment gave %d\n", n); exit(1); }
            if (csum)
                for (int i = 0; i < n; i++)
                    checksums(out[i]);
            rte_pktmbuf_free_bulk(out, (unsigned)n);
        }
        if (rep >= 0)
            reps[rep] = (now() - start) / count / n;
    }
    n = cut(frame, &ctx, out);
    uint32_t total = 0;
    for (int i = 0; i < n; i++) {
        checksums(out[i]);
        if (rte_ipv4_udptcp_cksum_mbuf_verify(out[i], rte_pktmbuf_mtod_offset(out[i], struct rte_ipv4_hdr *, 14), 34))
            fail("a checksum is wrong");
        total += rte_pktmbuf_pkt_len(out[i]) - HEADERS;
    }
    if (total != PAYLOAD)
        fail("payload is missing");
    qsort(reps, REPS, sizeof(reps[0]), compare);
    printf("{\"ns\": %.3f, \"segments\": %d}\n", reps[REPS / 2], n);
    rte_eal_cleanup();
    return 0;
}
