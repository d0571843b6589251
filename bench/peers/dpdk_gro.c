/* SPDX-License-Identifier: BSD-2-Clause
 *
 * DPDK's GRO on TCP/IPv4 segments, as bench/test_coalesce.py hands the same to ours.
 *
 * dpdk_gro EAL-options -- MODE FLOWS SEGMENTS PAYLOAD BURST ROUNDS
 *   FLOWS flows of SEGMENTS segments of PAYLOAD bytes each, one segment of each flow in turn; BURST mbufs a call.
 *   burst: rte_gro_reassemble_burst. flush: rte_gro_reassemble of each burst, one rte_gro_timeout_flush after the last.
 * Prints {"ns": nanoseconds of the GRO calls a segment, "results": mbufs that came out a round}. Making the mbufs and
 * freeing them is not timed. ns is the median of the rounds, by the time stamp counter: reading a clock of the system
 * would take as long as a few dozen segments.
 */
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_ether.h>
#include <rte_gro.h>
#include <rte_ip.h>
#include <rte_mbuf.h>
#include <rte_tcp.h>

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct rte_mbuf *build(struct rte_mempool *pool, unsigned flow, unsigned index, unsigned payload)
{
    struct rte_mbuf *m = rte_pktmbuf_alloc(pool);
    unsigned size = 14 + 20 + 20 + payload;
    char *p;
    if (m == NULL || (p = rte_pktmbuf_append(m, size)) == NULL) {
        fprintf(stderr, "no mbufs left\n");
        exit(1);
    }
    struct rte_ether_hdr *ether = (struct rte_ether_hdr *)p;
    struct rte_ipv4_hdr *ip = (struct rte_ipv4_hdr *)(ether + 1);
    struct rte_tcp_hdr *tcp = (struct rte_tcp_hdr *)(ip + 1);
    memset(p, 0, size);
    ether->src_addr.addr_bytes[0] = ether->dst_addr.addr_bytes[0] = 2;
    ether->ether_type = htons(RTE_ETHER_TYPE_IPV4);
    ip->version_ihl = 0x45;
    ip->total_length = htons(20 + 20 + payload);
    ip->packet_id = htons(index);
    ip->fragment_offset = 0; /* without DF ids must rise by one, as they do here */
    ip->time_to_live = 64;
    ip->next_proto_id = IPPROTO_TCP;
    ip->src_addr = htonl(0x0a000001 + (flow >> 8));
    ip->dst_addr = htonl(0x0a000000 + 99);
    tcp->src_port = htons(1024 + (flow & 0xff));
    tcp->dst_port = htons(80);
    tcp->sent_seq = htonl(1 + index * payload);
    tcp->recv_ack = htonl(1);
    tcp->data_off = 5 << 4;
    tcp->tcp_flags = RTE_TCP_ACK_FLAG;
    tcp->rx_win = htons(1000);
    m->l2_len = 14;
    m->l3_len = 20;
    m->l4_len = 20;
    m->packet_type = RTE_PTYPE_L2_ETHER | RTE_PTYPE_L3_IPV4 | RTE_PTYPE_L4_TCP;
    return m;
}

int main(int argc, char **argv)
{
    int skip = rte_eal_init(argc, argv);
    if (skip < 0 || argc - skip < 7) {
        fprintf(stderr, "usage: dpdk_gro EAL-options -- MODE FLOWS SEGMENTS PAYLOAD BURST ROUNDS\n");
        return 2;
    }
    argv += skip;
    int hold = strcmp(argv[1], "flush") == 0;
    unsigned flows = atoi(argv[2]), segments = atoi(argv[3]), payload = atoi(argv[4]), burst = atoi(argv[5]);
    unsigned rounds = atoi(argv[6]), total = flows * segments, results = 0;
    struct rte_gro_param param = {
        .gro_types = RTE_GRO_TCP_IPV4,
        .max_flow_num = hold ? flows : burst,
        .max_item_per_flow = hold ? segments : burst,
    };
    struct rte_mempool *pool =
        rte_pktmbuf_pool_create("gro", total + 1024, 256, 0, RTE_PKTMBUF_HEADROOM + 64 + payload, 0);
    struct rte_mbuf **packets = malloc(total * sizeof(*packets));
    struct rte_mbuf **out = malloc((total + 1) * sizeof(*out));
    double *times = malloc(rounds * sizeof(*times));
    void *context = hold ? rte_gro_ctx_create(&param) : NULL;
    if (pool == NULL || packets == NULL || out == NULL || times == NULL || (hold && context == NULL)) {
        fprintf(stderr, "no memory for %u mbufs of %u bytes\n", total, payload);
        return 1;
    }
    for (unsigned round = 0; round < rounds + 1; round++) { /* the first warms up */
        unsigned done = 0;
        uint64_t spent;
        for (unsigned i = 0; i < total; i++)
            packets[i] = build(pool, i % flows, i / flows, payload);
        spent = rte_rdtsc_precise();
        for (unsigned at = 0; at < total; at += burst) {
            unsigned n = total - at < burst ? total - at : burst;
            if (hold)
                n = rte_gro_reassemble(packets + at, n, context);
            else
                n = rte_gro_reassemble_burst(packets + at, n, &param);
            for (unsigned i = 0; i < n; i++)
                out[done++] = packets[at + i];
        }
        if (hold)
            done += rte_gro_timeout_flush(context, 0, RTE_GRO_TCP_IPV4, out + done, total - done);
        spent = rte_rdtsc_precise() - spent;
        if (round)
            times[round - 1] = spent * 1e9 / rte_get_tsc_hz() / total;
        results = done;
        for (unsigned i = 0; i < done; i++)
            rte_pktmbuf_free(out[i]);
    }
    qsort(times, rounds, sizeof(*times), ascending);
    printf("{\"ns\": %.3f, \"results\": %u}\n", times[rounds / 2], results);
    return 0;
}
