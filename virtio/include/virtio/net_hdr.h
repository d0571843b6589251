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

#endif
