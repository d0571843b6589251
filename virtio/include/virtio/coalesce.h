/* SPDX-License-Identifier: BSD-2-Clause
 *
 * Coalescing of TCP segments (LRO, GRO): the flow table, what comes out of it, and the comparison of headers.
 */
#ifndef VIRTIO_COALESCE_H
#define VIRTIO_COALESCE_H

#include <stdint.h>
#include <string.h>

#include "virtio/net_hdr.h"

#define VIRTIO_COALESCE_HEADER_MAX 128u /* Ethernet 14, two VLAN tags 8, IPv6 40, TCP 60: 122 */
#define VIRTIO_COALESCE_VLANS_MAX 2u
#define VIRTIO_COALESCE_FLOWS_MAX 65000u /* table entries hold a record number in 16 bits */
#define VIRTIO_COALESCE_SEGMENTS_MAX 1024u

/* why a frame was given back as it came */
typedef enum virtio_pass {
    VIRTIO_PASS_NONE = 0,      /* it was not: it was merged */
    VIRTIO_PASS_ALONE,         /* held, but nothing came to merge it with */
    VIRTIO_PASS_NOT_TCP,       /* something else, or not parsed that far */
    VIRTIO_PASS_MALFORMED,     /* cut off, or contradicts itself */
    VIRTIO_PASS_FRAGMENT,      /* an IP fragment, or the IPv4 flag that must be 0 is set */
    VIRTIO_PASS_IP_OPTIONS,    /* IPv4 options */
    VIRTIO_PASS_EXTENSIONS,    /* IPv6 extension headers */
    VIRTIO_PASS_VLANS,         /* more VLAN tags than VIRTIO_COALESCE_VLANS_MAX */
    VIRTIO_PASS_PADDED,        /* bytes behind the IP packet: segmentation could not know them */
    VIRTIO_PASS_TCP_FLAGS,     /* SYN, RST or URG, or no ACK */
    VIRTIO_PASS_NO_PAYLOAD,    /* a pure ACK */
    VIRTIO_PASS_CHECKSUM,      /* the IPv4 header's or TCP's is wrong */
    VIRTIO_PASS_CHECKSUM_FORM, /* it is 0xffff: right if 0 is, but no sender computes it (RFC 1624, 3) */
    VIRTIO_PASS_PUSHED,        /* PSH or FIN, with nothing held to append it to */
    VIRTIO_PASS_TOO_LARGE,     /* no second one like it would fit */
    VIRTIO_PASS_OVERLAP,       /* repeats bytes that are held */
    VIRTIO_PASSES
} virtio_pass;

/* why a flow was flushed */
typedef enum virtio_flush {
    VIRTIO_FLUSH_SEGMENTS = 0, /* it holds as many as it may */
    VIRTIO_FLUSH_BYTES,        /* no further segment fits */
    VIRTIO_FLUSH_AGE,          /* the first segment waited long enough */
    VIRTIO_FLUSH_ASKED,        /* the caller said so */
    VIRTIO_FLUSH_TABLE,        /* its place was needed: it was the oldest */
    VIRTIO_FLUSH_ENDED,        /* PSH, FIN, or a segment shorter than the others */
    VIRTIO_FLUSH_HEADER,       /* the next segment's header differs: ack, window, options, TOS, ... */
    VIRTIO_FLUSH_ID,           /* the next segment's IPv4 id does not follow */
    VIRTIO_FLUSH_SIZE,         /* the next segment is longer than the others */
    VIRTIO_FLUSH_CWR,          /* the next segment has CWR, which only a first one can */
    VIRTIO_FLUSH_OVERLAP,      /* the next segment repeats bytes that are held */
    VIRTIO_FLUSH_FAR,          /* the next segment's sequence number is 2^30 or more away */
    VIRTIO_FLUSH_PASSED,       /* a frame of the flow passes that cannot be merged, and must not overtake */
    VIRTIO_FLUSHES
} virtio_flush;

/* one piece of what comes out: the payload of an input frame, or the whole of it. Half a cache line. */
typedef struct virtio_piece {
    const uint8_t *base;
    uint64_t cookie; /* the caller's */
    uint32_t length; /* bytes at base */
    uint32_t seq;    /* the rest is the coalescer's: sequence number, */
    uint16_t id;     /* IPv4 id, 0 with IPv6, */
    uint8_t flags;   /* FIN, PSH and CWR, */
    uint8_t valid;   /* and whether the checksum was verified, by us or by whom the caller trusts */
    uint32_t reserved;
} virtio_piece;

/* what comes out: header[:header_length], then the pieces */
typedef struct virtio_merged {
    virtio_net_hdr net;
    const virtio_piece *pieces; /* [segments], in sequence order, until the next call; NULL: it is `whole` */
    uint32_t length;            /* bytes: header_length and all pieces */
    uint16_t segments;          /* input frames in it */
    uint8_t header_length;      /* 0: an input frame, untouched */
    uint8_t fixed_id;           /* all segments have the header's IPv4 id, rather than one more each */
    uint8_t passed;             /* virtio_pass */
    uint8_t reserved[7];
    virtio_piece whole;
    uint8_t header[VIRTIO_COALESCE_HEADER_MAX];
} virtio_merged;

/* what is held of one flow. A flow is what agrees in the Ethernet header, VLAN tags, addresses and ports. */
typedef struct virtio_flow {
    uint32_t next_seq;     /* ordered: of the segment that continues the run, */
    uint32_t size;         /* its payload at most: that of the first, */
    uint16_t next_id;      /* its IPv4 id, */
    uint16_t id_step;      /* and by how much ids grow: 1; 0 with IPv6 or fixed ids */
    uint16_t count;        /* segments held */
    uint8_t ordered;       /* they are one run that may go on; otherwise pieces are just sorted */
    uint8_t header_length;
    uint32_t bytes;        /* IP header, TCP header, and all payloads */
    uint32_t ports;        /* as they lie in the header */
    uint8_t l3;            /* offsets in the header */
    uint8_t l4;
    uint8_t ipv6;
    uint8_t reserved;
    uint32_t pseudo;       /* partial sum of the pseudo header without the length */
    const uint8_t *mask;   /* of the bits of the header that segments agree in */
    uint32_t first_seq;    /* of the first that arrived */
    uint32_t hash;
    uint32_t newer;        /* list by arrival of the first segment; also of records that are free or parked */
    uint32_t older;
    uint64_t arrived;      /* when the first did: the caller's nanoseconds */
    uint8_t header[VIRTIO_COALESCE_HEADER_MAX]; /* of the first that arrived */
    virtio_piece pieces[]; /* [virtio_coalescer.segments] */
} virtio_flow;

_Static_assert(sizeof(virtio_flow) == 192, "a flow is three cache lines and its pieces");

typedef struct virtio_coalesce_counters {
    uint64_t frames;                  /* taken in. Each is held, or one of segments, or one of passed */
    uint64_t merged;                  /* merged frames that came out, */
    uint64_t segments;                /* and the input frames in them */
    uint64_t passed[VIRTIO_PASSES];
    uint64_t flushed[VIRTIO_FLUSHES]; /* flows */
} virtio_coalesce_counters;

typedef struct virtio_coalescer {
    virtio_merged *out;   /* of the call under way: where the next result goes, */
    virtio_merged *limit; /* and the last place from which all of one frame's results fit */
    virtio_flow *last;    /* flow of the last segment taken, NULL if it is gone */
    uint8_t *records;     /* [nrecords] virtio_flow, stride bytes apart */
    uint32_t *table;      /* open addressing: 16 bits of the hash, 16 bits of record number + 1; 0 if empty */
    uint32_t slots;       /* of the table, less 1 */
    uint32_t stride;
    uint32_t nrecords;
    uint32_t flows;       /* limits */
    uint32_t segments;
    uint32_t max_bytes;
    uint64_t max_age;     /* nanoseconds; UINT64_MAX: any */
    uint8_t verify;
    uint8_t allow_fixed_id;
    uint8_t rsc_info;
    uint8_t behind;       /* flows were due at the end of the last burst that found no room: call again */
    uint32_t oldest;
    uint32_t newest;
    uint32_t free;
    uint32_t parked;      /* flushed, but their pieces are read until the next call */
    uint32_t held_flows;
    uint32_t held_segments;
    uint64_t secret[4];   /* of the hash, so that nobody can aim at one slot */
    virtio_coalesce_counters counters;
    uint8_t masks[2][VIRTIO_COALESCE_VLANS_MAX + 1][VIRTIO_COALESCE_HEADER_MAX]; /* by IPv6, VLAN tags */
} virtio_coalescer;

/* A function to call, of which the compiler knows no more: it stays out of line, and leaves the registers to the loop that
 * calls it now and then. */
#define virtio_apart(f)                \
    __extension__({                    \
        __auto_type apart = (f);       \
        __asm__("" : "+r"(apart));     \
        apart;                         \
    })

typedef uint64_t virtio_v16 __attribute__((vector_size(16)));

static inline virtio_v16 virtio_differs16(const uint8_t *p, const uint8_t *q, const uint8_t *mask)
{
    virtio_v16 a, b, m;
    memcpy(&a, p, 16);
    memcpy(&b, q, 16);
    memcpy(&m, mask, 16);
    return (a ^ b) & m;
}

/* whether n bytes agree under the mask; n is 54 to VIRTIO_COALESCE_HEADER_MAX. The last 16 overlap those before, so
 * that not a byte behind is read. */
static inline int virtio_same_header(const uint8_t *p, const uint8_t *q, const uint8_t *mask, uint32_t n)
{
    virtio_v16 differs = virtio_differs16(p, q, mask) | virtio_differs16(p + 16, q + 16, mask + 16)
                         | virtio_differs16(p + 32, q + 32, mask + 32)
                         | virtio_differs16(p + n - 16, q + n - 16, mask + n - 16);
    for (uint32_t i = 48; i + 16 < n; i += 16)
        differs |= virtio_differs16(p + i, q + i, mask + i);
    return (differs[0] | differs[1]) == 0;
}

static inline uint64_t virtio_coalesce_load64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

static inline uint32_t virtio_coalesce_load32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static inline uint64_t virtio_mix64(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint32_t virtio_flow_hash(const uint8_t *addresses, int ipv6, const uint8_t *ports,
                                        const uint64_t secret[4])
{
    uint64_t h = virtio_mix64(virtio_coalesce_load64(addresses) ^ secret[0],
                              virtio_coalesce_load32(ports) ^ secret[1]);
    if (ipv6) {
        h = virtio_mix64(virtio_coalesce_load64(addresses + 8) ^ secret[2], h ^ secret[3]);
        h = virtio_mix64(virtio_coalesce_load64(addresses + 16) ^ secret[0],
                         virtio_coalesce_load64(addresses + 24) ^ h);
    }
    return (uint32_t)(h ^ h >> 32);
}

#endif
