/* SPDX-License-Identifier: BSD-2-Clause
 *
 * Hash types, hash reports and tunnel types of a network device (VIRTIO 1.4, 5.1.6.4.3 and 5.1.6.4.4). A report is the
 * bit number of its type, plus 1.
 */
#ifndef VIRTIO_HASH_H
#define VIRTIO_HASH_H

#include <stdint.h>

#define VIRTIO_NET_HASH_TYPE_IPv4 (1u << 0)
#define VIRTIO_NET_HASH_TYPE_TCPv4 (1u << 1)
#define VIRTIO_NET_HASH_TYPE_UDPv4 (1u << 2)
#define VIRTIO_NET_HASH_TYPE_IPv6 (1u << 3)
#define VIRTIO_NET_HASH_TYPE_TCPv6 (1u << 4)
#define VIRTIO_NET_HASH_TYPE_UDPv6 (1u << 5)
#define VIRTIO_NET_HASH_TYPE_IP_EX (1u << 6)
#define VIRTIO_NET_HASH_TYPE_TCP_EX (1u << 7)
#define VIRTIO_NET_HASH_TYPE_UDP_EX (1u << 8)

#define VIRTIO_NET_HASH_REPORT_NONE 0u
#define VIRTIO_NET_HASH_REPORT_IPv4 1u
#define VIRTIO_NET_HASH_REPORT_TCPv4 2u
#define VIRTIO_NET_HASH_REPORT_UDPv4 3u
#define VIRTIO_NET_HASH_REPORT_IPv6 4u
#define VIRTIO_NET_HASH_REPORT_TCPv6 5u
#define VIRTIO_NET_HASH_REPORT_UDPv6 6u
#define VIRTIO_NET_HASH_REPORT_IPv6_EX 7u
#define VIRTIO_NET_HASH_REPORT_TCPv6_EX 8u
#define VIRTIO_NET_HASH_REPORT_UDPv6_EX 9u

/* of the encapsulation types, those that the frame parse knows */
#define VIRTIO_NET_HASH_TUNNEL_TYPE_VXLAN (1u << 4)
#define VIRTIO_NET_HASH_TUNNEL_TYPE_GENEVE (1u << 6)

#define VIRTIO_HASH_INPUT_MAX 36 /* two IPv6 addresses and two ports */
#define VIRTIO_HASH_KEY_MIN 40   /* VIRTIO 1.4, 5.1.4: a device takes at least as much */
#define VIRTIO_HASH_KEY_MAX 255  /* hash_key_length has 8 bits */

typedef struct virtio_hash { /* as in struct virtio_net_hdr */
    uint32_t value;
    uint16_t report; /* VIRTIO_NET_HASH_REPORT_* */
    uint16_t padding;
} virtio_hash;

#endif
