/* SPDX-License-Identifier: BSD-2-Clause
 *
 * Why a frame was sent or received as it was: reasons, and how often each. FreeBSD's names where it has them
 * (sysctl dev.vtnet), lower-case, are those of the counters.
 */
#ifndef VIRTIO_OFFLOAD_H
#define VIRTIO_OFFLOAD_H

#include <stdint.h>

#include "net_hdr.h"

/* What becomes of a frame to send */
typedef enum virtio_tx_outcome {
    VIRTIO_TX_SENT_AS = 0,         /* as the header says */
    VIRTIO_TX_DONE_IN_SOFTWARE,    /* its checksum is complete; the header asks for nothing */
    VIRTIO_TX_SEGMENT_IN_SOFTWARE, /* it is untouched, and to be cut by us */
    VIRTIO_TX_REFUSED,             /* it is untouched, and not to be sent */
} virtio_tx_outcome;

/* Reasons, in the order of the outcomes */
typedef enum virtio_tx_reason {
    VIRTIO_TX_NO_OFFLOAD = 0,         /* nothing was asked for */
    VIRTIO_TX_CSUM_OFFLOADED,
    VIRTIO_TX_TSO_OFFLOADED,
    VIRTIO_TX_USO_OFFLOADED,
    VIRTIO_TX_SOFTWARE,               /* from here on DONE_IN_SOFTWARE */
    VIRTIO_TX_CSUM_SOFTWARE = VIRTIO_TX_SOFTWARE, /* no CSUM feature */
    VIRTIO_TX_CSUM_PADDED,            /* bytes lie behind what is to be summed, and the device would sum them, too */
    VIRTIO_TX_CSUM_SCTP,              /* CRC32c */
    VIRTIO_TX_CSUM_ICMP,              /* no TCP or UDP, of which alone the specification speaks */
    VIRTIO_TX_SEGMENT,                /* from here on SEGMENT_IN_SOFTWARE */
    VIRTIO_TX_TSO_SOFTWARE = VIRTIO_TX_SEGMENT, /* no HOST_TSO4, HOST_TSO6 or CSUM feature */
    VIRTIO_TX_TSO_ECN,                /* CWR is set, and no HOST_ECN feature */
    VIRTIO_TX_USO_SOFTWARE,           /* no HOST_USO or CSUM feature */
    VIRTIO_TX_USO_SEGMENTS,           /* more than VIRTIO_USO_SEGMENTS_MAX */
    VIRTIO_TX_TUNNEL_SOFTWARE,        /* no HOST_UDP_TUNNEL_GSO feature */
    VIRTIO_TX_TUNNEL_CSUM_SOFTWARE,   /* the outer UDP header has a checksum, and no HOST_UDP_TUNNEL_GSO_CSUM feature */
    VIRTIO_TX_TUNNEL_FAMILY,          /* IPv4 in IPv6, or the reverse: what the type bit says of it is in dispute */
    VIRTIO_TX_GSO_PADDED,             /* bytes lie behind the packet, and the device would take them for payload */
    VIRTIO_TX_REFUSE,                 /* from here on REFUSED */
    VIRTIO_TX_CSUM_UNKNOWN_ETHTYPE = VIRTIO_TX_REFUSE, /* neither IPv4 nor IPv6 */
    VIRTIO_TX_CSUM_PROTO_MISMATCH,    /* the IP version is not the EtherType's */
    VIRTIO_TX_CSUM_UNKNOWN_IPPROTO,   /* a protocol without a checksum that is known */
    VIRTIO_TX_CSUM_FRAGMENT,          /* the checksum covers more than this frame has */
    VIRTIO_TX_CSUM_BAD_FRAME,         /* the frame contradicts itself or is cut off */
    VIRTIO_TX_TSO_WITHOUT_CSUM,       /* segments without checksums were asked for */
    VIRTIO_TX_TSO_NOT_TCP,            /* neither TCP nor UDP is to be cut, or UDP that is a tunnel itself */
    VIRTIO_TX_TSO_EXTENSION,          /* an IPv6 extension header that speaks of one packet: AH, Fragment, Mobility */
    VIRTIO_TX_TSO_JUMBOGRAM,          /* IPv6 jumbogram (RFC 2675) */
    VIRTIO_TX_GSO_BAD_LENGTH,         /* a UDP length is not the packet's */
    VIRTIO_TX_GSO_HEADERS,            /* the device cannot, and its headers are longer than what virtio.offload.segmenter repeats */
    VIRTIO_TX_REASONS
} virtio_tx_reason;

/* What a network stack wants of a frame that it sends */
#define VIRTIO_TX_WANT_CSUM 1u  /* the transport checksum */
#define VIRTIO_TX_WANT_INNER 2u /* of the packet within a tunnel, if there is one; without it the outermost is meant */

/* Linux refuses a frame of more UDP segments than it would send itself: 64, since version 6.9 128 */
#define VIRTIO_USO_SEGMENTS_MAX 64

/* What the transport checksum of a received frame is worth */
typedef enum virtio_rx_verdict {
    VIRTIO_RX_UNKNOWN = 0,    /* nothing is said: verify it */
    VIRTIO_RX_VERIFIED,       /* the peer verified it */
    VIRTIO_RX_NEEDS_CHECKSUM, /* the data are vouched for; the checksum field is yet to be completed */
    VIRTIO_RX_BAD,            /* the header cannot be true of this frame */
} virtio_rx_verdict;

typedef enum virtio_rx_reason {
    VIRTIO_RX_CSUM_NONE = 0,
    VIRTIO_RX_CSUM_OFFLOADED,            /* VERIFIED */
    VIRTIO_RX_CSUM_PARTIAL,              /* NEEDS_CHECKSUM, of a TCP or UDP header that the parse found */
    VIRTIO_RX_CSUM_ELSEWHERE,            /* NEEDS_CHECKSUM, of a header that the parse does not know */
    VIRTIO_RX_GSO_REPAIRED,              /* NEEDS_CHECKSUM, not by the header: it has a type, and no NEEDS_CSUM */
    /* with NEEDS_CSUM or a type BAD; if there is DATA_VALID only, it does not say of what: UNKNOWN */
    VIRTIO_RX_CSUM_BAD_ETHTYPE,          /* neither IPv4 nor IPv6: no type; and ARP has no checksum */
    VIRTIO_RX_CSUM_BAD_IPPROTO,          /* neither TCP nor UDP: no type; and SCTP has no 16-bit sum */
    VIRTIO_RX_CSUM_BAD_OFFSET,           /* csum_start and csum_offset are outside, or no checksum field is there */
    VIRTIO_RX_CSUM_INACCESSIBLE_IPPROTO, /* the frame contradicts itself or is cut off before its transport header */
    VIRTIO_RX_CSUM_FRAGMENT,             /* the checksum covers more than this frame has */
    /* BAD */
    VIRTIO_RX_GSO_BAD_TYPE,              /* the frame is not of this type */
    VIRTIO_RX_GSO_NO_FEATURE,            /* USO over the IP version that was not negotiated */
    VIRTIO_RX_GSO_BAD_SEGMENTS,          /* RSC_INFO counts none, or more than there are bytes */
    VIRTIO_RX_TUNNEL_BAD_TYPE,           /* no tunnel, or neither of its IP versions is this one */
    VIRTIO_RX_TUNNEL_BAD_OFFSET,         /* outer_th_offset or inner_nh_offset is not where the header is */
    VIRTIO_RX_HDR_SHORT,                 /* fewer bytes than a virtio_net_hdr */
    VIRTIO_RX_HDR,                       /* plus a virtio_net_hdr_fault, but for those that are CSUM_BAD_OFFSET */
    VIRTIO_RX_REASONS = VIRTIO_RX_HDR + VIRTIO_NET_HDR_FAULTS
} virtio_rx_reason;

/* two bytes of a header that become right, within the frame */
typedef struct virtio_rx_mend {
    uint16_t at;
    uint16_t word; /* as stored */
} virtio_rx_mend;

enum { VIRTIO_RX_MENDS = 7 }; /* four lengths, two IPv4 checksums, and what an outer UDP checksum starts from */

typedef struct virtio_rx_offload {
    uint8_t verdict;      /* virtio_rx_verdict */
    uint8_t reason;       /* virtio_rx_reason */
    uint8_t inner;        /* the inner packet of a tunnel is spoken of */
    uint8_t levels;       /* transport checksums vouched for, from outside: 0 to 2 */
    uint16_t csum_start;  /* NEEDS_CHECKSUM: transport header */
    uint16_t csum_offset; /* and checksum field behind it */
    uint32_t csum_end;    /* and end of what it covers */
    uint16_t outer_start; /* an outer UDP header whose checksum is as partial; 0: none */
    uint16_t pseudo;      /* not 0: the pseudo header's sum, as stored, which the checksum field lacks */
    uint32_t outer_end;
    uint32_t segments;    /* packets that the peer made the frame of, or that it is to become; 1 without type */
    uint32_t nmends;      /* of a frame with a type whose lengths are not its own: stored before checksums are */
    virtio_rx_mend mends[VIRTIO_RX_MENDS]; /* the first nmends; others hold anything */
} virtio_rx_offload;

typedef struct virtio_offload_counters {
    uint64_t tx[VIRTIO_TX_REASONS];
    uint64_t rx[VIRTIO_RX_REASONS];
} virtio_offload_counters;

#endif
