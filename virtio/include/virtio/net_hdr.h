/* SPDX-License-Identifier: BSD-2-Clause
 *
 * struct virtio_net_hdr (VIRTIO 1.4, 5.1.9) and its numbers. On a little-endian host the struct is the wire format; a
 * layout is its first 10, 12, 20 or 24 bytes.
 */
#ifndef VIRTIO_NET_HDR_H
#define VIRTIO_NET_HDR_H

#include <stdint.h>

#define VIRTIO_NET_HDR_F_NEEDS_CSUM 1u
#define VIRTIO_NET_HDR_F_DATA_VALID 2u
#define VIRTIO_NET_HDR_F_RSC_INFO 4u
#define VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM 8u

#define VIRTIO_NET_HDR_GSO_NONE 0u
#define VIRTIO_NET_HDR_GSO_TCPV4 1u
#define VIRTIO_NET_HDR_GSO_UDP 3u    /* UFO: IP fragments */
#define VIRTIO_NET_HDR_GSO_TCPV6 4u
#define VIRTIO_NET_HDR_GSO_UDP_L4 5u /* USO: datagrams */
#define VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4 0x20u
#define VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6 0x40u
#define VIRTIO_NET_HDR_GSO_ECN 0x80u

typedef struct virtio_net_hdr {
    uint8_t flags;
    uint8_t gso_type;
    uint16_t hdr_len;
    uint16_t gso_size;
    uint16_t csum_start;  /* with RSC_INFO: segments */
    uint16_t csum_offset; /* with RSC_INFO: duplicate ACKs */
    uint16_t num_buffers;
    uint32_t hash_value;
    uint16_t hash_report;
    uint16_t padding;
    uint16_t outer_th_offset;
    uint16_t inner_nh_offset;
} virtio_net_hdr;

_Static_assert(sizeof(virtio_net_hdr) == 24, "virtio_net_hdr is the wire format");

/* What was negotiated for one direction: from the driver (HOST_* features), or to it (GUEST_*). */
#define VIRTIO_OFFLOAD_CSUM 0x001u
#define VIRTIO_OFFLOAD_TSO4 0x002u
#define VIRTIO_OFFLOAD_TSO6 0x004u
#define VIRTIO_OFFLOAD_ECN 0x008u
#define VIRTIO_OFFLOAD_UFO 0x010u
#define VIRTIO_OFFLOAD_USO4 0x020u /* HOST_USO is both */
#define VIRTIO_OFFLOAD_USO6 0x040u
#define VIRTIO_OFFLOAD_TUNNEL 0x080u
#define VIRTIO_OFFLOAD_TUNNEL_CSUM 0x100u
#define VIRTIO_OFFLOAD_ALL 0x1ffu /* those above */
#define VIRTIO_OFFLOAD_RSC 0x200u       /* to the driver only */
#define VIRTIO_OFFLOAD_MRG 0x400u       /* to the driver only */
#define VIRTIO_OFFLOAD_TO_DRIVER 0x800u /* the direction */
/* Never negotiated. A frame that needs it is not passed on with its type: it is cut, which makes it right. */
#define VIRTIO_OFFLOAD_CUT 0x1000u

/* What a header may be refused for */
typedef enum virtio_net_hdr_fault {
    VIRTIO_NET_HDR_OK = 0,
    VIRTIO_NET_HDR_BAD_CSUM_FEATURE,    /* NEEDS_CSUM, and no CSUM feature */
    VIRTIO_NET_HDR_BAD_CSUM_START,      /* csum_start beyond the frame */
    VIRTIO_NET_HDR_BAD_CSUM_OFFSET,     /* the checksum field is not within the frame */
    VIRTIO_NET_HDR_BAD_RSC_INFO,        /* RSC_INFO and NEEDS_CSUM with no type: csum_start may mean either */
    VIRTIO_NET_HDR_BAD_GSO_TYPE,        /* no such type */
    VIRTIO_NET_HDR_BAD_GSO_FEATURE,     /* a type that was not negotiated */
    VIRTIO_NET_HDR_BAD_GSO_OFFSET,      /* csum_offset is not that of the type's protocol, or its header is cut off */
    VIRTIO_NET_HDR_BAD_GSO_SIZE,        /* 0 */
    VIRTIO_NET_HDR_BAD_TUNNEL_TYPE,     /* both bits; or with no type, or with UDP (UFO) */
    VIRTIO_NET_HDR_BAD_TUNNEL_FEATURE,  /* not negotiated */
    VIRTIO_NET_HDR_BAD_TUNNEL_CSUM,     /* UDP_TUNNEL_CSUM of a tunnel type, and not negotiated */
    VIRTIO_NET_HDR_BAD_TUNNEL_OFFSETS,  /* outer_th_offset, inner_nh_offset, csum_start: no room for the headers */
    VIRTIO_NET_HDR_BAD_NUM_BUFFERS,     /* 0 to the driver */
    VIRTIO_NET_HDR_FAULTS
} virtio_net_hdr_fault;

#endif
