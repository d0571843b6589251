/* SPDX-License-Identifier: BSD-2-Clause
 *
 * A plan to cut a frame into segments, and why a frame cannot be cut.
 */
#ifndef VIRTIO_SEGMENT_H
#define VIRTIO_SEGMENT_H

#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

/* why a frame is not cut; of most reasons virtio_segmenter has a value and a limit */
typedef enum virtio_segment_code {
    VIRTIO_SEGMENT_OK = 0,
    VIRTIO_SEGMENT_TYPE,       /* gso_type (value) says nothing to do, or nothing that is known: ECN of UDP, too */
    VIRTIO_SEGMENT_SIZE,       /* gso_size (value) is under limit */
    VIRTIO_SEGMENT_LENGTH,     /* pieces of more than limit bytes in all */
    VIRTIO_SEGMENT_FRAME,      /* the frame contradicts itself or is cut off: a virtio_stop (value) */
    VIRTIO_SEGMENT_NETWORK,    /* a virtio_l3_kind (value) that is not the one of the gso_type (limit; IPv4: or IPv6) */
    VIRTIO_SEGMENT_PROTOCOL,   /* a transport protocol (value) that is not the one of the gso_type (limit) */
    VIRTIO_SEGMENT_FRAGMENT,   /* a fragment already, at byte offset value */
    VIRTIO_SEGMENT_TUNNEL,     /* a tunnel, or the IP version around it (value), that is not the one of the gso_type; */
                               /* or a tunnel within a tunnel */
    VIRTIO_SEGMENT_UFO_TUNNEL, /* fragments inside of a tunnel */
    VIRTIO_SEGMENT_EXTENSION,  /* an IPv6 extension header (value) that cannot be repeated in each segment */
    VIRTIO_SEGMENT_JUMBO,      /* IPv6 jumbogram */
    VIRTIO_SEGMENT_UDP_LENGTH, /* UDP length (value) that is not that of the packet (limit) */
    VIRTIO_SEGMENT_HEADERS,    /* headers of value bytes, or more, are over limit */
    VIRTIO_SEGMENT_IP_LENGTH,  /* IP length (value) that is neither that of the frame (limit) nor a segment's nor 0 */
    VIRTIO_SEGMENT_COUNT,      /* value segments are over limit */
    VIRTIO_SEGMENT_CODES
} virtio_segment_code;

/* options of a plan */
#define VIRTIO_SEGMENT_PARTIAL 1u        /* transport checksums are left at the sum of the pseudo header */
#define VIRTIO_SEGMENT_FIXED_ID 2u       /* IPv4 identification of the packet that is cut: the same in every segment */
#define VIRTIO_SEGMENT_FIXED_OUTER_ID 4u /* of the packet around the tunnel */
#define VIRTIO_SEGMENT_NO_CHECKSUM 8u    /* no checksum is asked for: a UDP checksum of 0 over IPv4 stays */
#define VIRTIO_SEGMENT_OUTER_CHECKSUM 16u /* the UDP header around the tunnel gets one, whatever is in it */

#define VIRTIO_SEGMENT_AUTO 0x100u /* in place of a gso_type: what the frame has */

#define VIRTIO_SEGMENT_HEADERS_MAX 1024 /* bytes before the payload */
#define VIRTIO_SEGMENT_OPTIONS_MAX 40   /* bytes of IPv4 options */

typedef enum virtio_segment_kind {
    VIRTIO_SEGMENT_TCP = 0,
    VIRTIO_SEGMENT_UDP,
    VIRTIO_SEGMENT_FRAGMENTS, /* from here on UFO */
    VIRTIO_SEGMENT_IPV4_FRAGMENT = VIRTIO_SEGMENT_FRAGMENTS,
    VIRTIO_SEGMENT_IPV6_FRAGMENT,
} virtio_segment_kind;

/* An IP header. What has two elements here and below is [0] for a segment of full size, [1] for the last. */
typedef struct virtio_segment_ip {
    uint64_t sum[2];    /* IPv4: partial sum of the header without identification and checksum */
    uint16_t length[2]; /* total length, or payload length; as stored */
    uint16_t at;        /* of the header */
    uint16_t id;        /* IPv4: of the first segment, host-endian */
    uint8_t v4;
    uint8_t step; /* what the identification grows by from segment to segment: 0 or 1 */
} virtio_segment_ip;

typedef struct virtio_segmenter {
    /* what it is cut into */
    uint32_t count;   /* segments */
    uint32_t unit;    /* bytes a segment, of what is cut: payload; of fragments UDP header and payload */
    uint32_t last;    /* the same, of the last one */
    uint32_t payload; /* bytes of payload in all */
    uint32_t header;  /* bytes before the payload, in every segment; of fragments in all but the first */
    uint32_t extra;   /* and this many more in the first: of fragments the UDP header */
    uint8_t kind;     /* virtio_segment_kind */
    uint8_t partial;  /* transport checksums are written as planned: they are partial, or there are none */
    uint8_t needs_csum; /* they are partial: NEEDS_CSUM is to be said of each segment */
    uint8_t tunnel;   /* there are outer headers: ip[1] and outer_l4 */
    uint8_t outer_check; /* the UDP header around the tunnel has a checksum */
    /* where the frame lies; kept by the caller */
    const uint8_t *frame; /* in one piece, or NULL */
    const struct iovec *pieces;
    uint32_t npieces;
    uint32_t payload_at; /* offset in the frame */
    uint32_t piece;       /* where the last reader was: index of a piece */
    uint32_t passed;      /* and bytes in the pieces before it */
    /* what differs from segment to segment; "as stored" are native numbers of the packet's bytes */
    virtio_segment_ip ip[2];       /* of the packet that is cut, and around the tunnel */
    uint64_t l4_sum[2];            /* partial sum of pseudo header and transport header, but for what differs more: */
                                   /* payload, TCP sequence number and flags */
    uint64_t first_sum;            /* IPv4 fragments: ip[0].sum of the first, which has all options */
    uint16_t l4;                   /* transport header of the packet that is cut */
    uint16_t l4_checksum[2];       /* partial ones, as stored */
    uint16_t udp_length[2];        /* as stored */
    uint16_t outer_l4;             /* UDP header around the tunnel */
    uint16_t outer_length[2];      /* its length, as stored */
    uint16_t outer_checksum[2];    /* its checksum, as stored */
    uint16_t flags[4];             /* TCP offset and flags, as stored: in the middle, first, last, the only one */
    uint16_t noptions;             /* IPv4 fragments: bytes of options */
    uint32_t seq;                  /* TCP sequence number of the first, host-endian */
    /* why there is no plan */
    uint64_t value;
    uint64_t limit;
    uint8_t options[VIRTIO_SEGMENT_OPTIONS_MAX];         /* IPv4 fragments: the first one's */
    uint8_t headers[VIRTIO_SEGMENT_HEADERS_MAX]; /* of a segment in the middle */
} virtio_segmenter;

/* The parser takes a frame to be in one piece, and looks no further than 16 bits of offset. This is such a piece for
 * the headers of a frame in many: only its first VIRTIO_SEGMENT_HEADERS_MAX bytes are ever written, so that headers
 * which claim to be longer run into zeros. */
static inline uint8_t *virtio_segment_scratch(void)
{
    static __thread uint8_t scratch[0x10000];
    return scratch;
}

/* n bytes of headers, 32 or more: in vectors of 16 that overlap, so that no byte behind them is touched */
static inline void virtio_segment_copy_header(uint8_t *to, const uint8_t *p, uint32_t n)
{
    if (n > 64) {
        if (n > 128) {
            memcpy(to, p, n);
            return;
        }
        memcpy(to + 32, p + 32, 16);
        memcpy(to + 48, p + 48, 16);
        memcpy(to + n - 64, p + n - 64, 16);
        memcpy(to + n - 48, p + n - 48, 16);
    }
    memcpy(to, p, 16);
    memcpy(to + 16, p + 16, 16);
    memcpy(to + n - 32, p + n - 32, 16);
    memcpy(to + n - 16, p + n - 16, 16);
}

#endif
