/* SPDX-License-Identifier: BSD-2-Clause
 *
 * What a parse of an Ethernet frame gives: one or two layers of offsets, and why it stopped. All offsets are from the
 * frame's first byte; all numbers are host-endian.
 */
#ifndef VIRTIO_FRAME_H
#define VIRTIO_FRAME_H

#include <stdint.h>

/* network protocol of a layer */
typedef enum virtio_l3_kind {
    VIRTIO_L3_NONE = 0, /* none was reached */
    VIRTIO_L3_IPV4,
    VIRTIO_L3_IPV6,
    VIRTIO_L3_ARP,
    VIRTIO_L3_OTHER, /* some other EtherType, or an 802.3 length */
} virtio_l3_kind;

/* flags of a layer */
#define VIRTIO_LAYER_L4 0x01u         /* l4 to payload is a whole transport header */
#define VIRTIO_LAYER_FRAGMENT 0x02u   /* more fragments, or offset not 0 */
#define VIRTIO_LAYER_LATER 0x04u      /* offset not 0: no transport header in this frame */
#define VIRTIO_LAYER_OPTIONS 0x08u    /* IPv4 options */
#define VIRTIO_LAYER_EXTENSIONS 0x10u /* IPv6 extension headers */
#define VIRTIO_LAYER_L4_OPTIONS 0x20u /* TCP options */
#define VIRTIO_LAYER_PADDED 0x40u     /* bytes lie between end and the end of what holds the layer */
#define VIRTIO_LAYER_ROUTED 0x80u     /* src or dst is not the address in the IP header */
#define VIRTIO_LAYER_HOME 0x100u      /* src is in a home address option (RFC 6275, 6.3) */
#define VIRTIO_LAYER_ROUTING_2 0x200u /* dst is in a routing header of type 2 (RFC 6275, 6.4) */
#define VIRTIO_LAYER_TUNNEL 0x400u    /* the inner layer is itself a tunnel, whose inside is its payload and not parsed: */
                                      /* its checksums are nobody's here, and it is not cut */

/* why a parse stopped. Up to VIRTIO_STOP_FAULTS the frame is sound, and simply no more of it is known; from there on it
 * contradicts itself or is cut off. */
typedef enum virtio_stop {
    VIRTIO_STOP_OK = 0,       /* a whole transport header, or a whole ARP packet */
    VIRTIO_STOP_NOT_IP,       /* an EtherType that is neither IP nor ARP */
    VIRTIO_STOP_PROTOCOL,     /* a transport protocol that is not parsed */
    VIRTIO_STOP_FRAGMENT,     /* a later fragment: what follows is no transport header */
    VIRTIO_STOP_ENCRYPTED,    /* ESP */
    VIRTIO_STOP_NO_NEXT,      /* IPv6 "no next header" */
    VIRTIO_STOP_FAULTS,
    VIRTIO_STOP_SHORT_ETHERNET = VIRTIO_STOP_FAULTS, /* under 14 bytes */
    VIRTIO_STOP_SHORT_VLAN,      /* ends within a VLAN tag */
    VIRTIO_STOP_SHORT_L3,        /* ends within the network header */
    VIRTIO_STOP_IP_VERSION,      /* version does not match the EtherType */
    VIRTIO_STOP_IPV4_IHL,        /* header length under 20 */
    VIRTIO_STOP_IP_LENGTH,       /* length beyond the frame or below its own header; jumbo rules broken */
    VIRTIO_STOP_SHORT_EXTENSION, /* ends within an extension header, or AH under 12 bytes */
    VIRTIO_STOP_EXTENSIONS,      /* more than VIRTIO_EXTENSIONS_MAX extension headers */
    VIRTIO_STOP_SHORT_L4,        /* ends within the transport header */
    VIRTIO_STOP_TCP_OFFSET,      /* TCP data offset under 20 bytes or beyond the packet */
    VIRTIO_STOP_UDP_LENGTH,      /* UDP length under 8 or beyond the packet */
    VIRTIO_STOP_OFFSETS,         /* headers beyond the first 65535 bytes */
    VIRTIO_STOP_SHORT_TUNNEL,    /* ends within the tunnel header */
    VIRTIO_STOP_LLC_LENGTH,      /* 802.3 length beyond the frame */
    VIRTIO_STOP_OPTION,          /* an IPv4 or IPv6 option beyond the header that holds it, or too short for itself */
    VIRTIO_STOP_ROUTING,         /* routing header or source route whose next address is not in it */
    VIRTIO_STOPS
} virtio_stop;

#define VIRTIO_EXTENSIONS_MAX 64 /* IPv6 extension headers followed */

/* tunnels that are looked into */
typedef enum virtio_tunnel {
    VIRTIO_TUNNEL_NONE = 0,
    VIRTIO_TUNNEL_VXLAN,
    VIRTIO_TUNNEL_GENEVE,
} virtio_tunnel;

typedef struct virtio_layer {
    uint32_t end;        /* behind the network packet, by its own length field; at most the frame's length */
    uint16_t l3;         /* network header */
    uint16_t l4;         /* transport header, or where the parse stopped */
    uint16_t payload;    /* behind the transport header (with options); l4 if there is none */
    uint16_t src;        /* of the pseudo header's source: not the IP header's with a home address option (RFC 6275), */
    uint16_t dst;        /* and of its destination: not the IP header's with a routing header or source route under way */
    uint16_t fragment;   /* fragment offset, bytes */
    uint16_t ethertype;  /* behind all VLAN tags */
    uint16_t tci;        /* first VLAN tag's tag control information; 0 without */
    uint16_t vlans;      /* VLAN tags */
    uint16_t flags;      /* VIRTIO_LAYER_* */
    uint8_t l3_kind;     /* virtio_l3_kind */
    uint8_t protocol;    /* IP protocol behind all extension headers */
    uint8_t stop;        /* virtio_stop */
    uint8_t reserved;
} virtio_layer;

typedef struct virtio_frame {
    uint32_t length;    /* bytes of the frame */
    uint16_t inner_l2;  /* behind the tunnel header: inner Ethernet header (or network header); 0 without tunnel */
    uint8_t tunnel;     /* virtio_tunnel */
    uint8_t reserved;
    virtio_layer outer; /* outer.payload is where the tunnel header starts, if there is one */
    virtio_layer inner; /* all 0 without tunnel */
} virtio_frame;

_Static_assert(sizeof(virtio_layer) == 28 && sizeof(virtio_frame) == 64, "a frame is a cache line");

#endif
