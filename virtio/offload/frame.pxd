# Parsing of Ethernet frames: where the headers are, and why no more is known.
from libc.stdint cimport uint8_t, uint16_t, uint32_t


cdef extern from "virtio/frame.h" nogil:
    enum:
        VIRTIO_L3_NONE
        VIRTIO_L3_IPV4
        VIRTIO_L3_IPV6
        VIRTIO_L3_ARP
        VIRTIO_L3_OTHER
        VIRTIO_LAYER_L4
        VIRTIO_LAYER_FRAGMENT
        VIRTIO_LAYER_LATER
        VIRTIO_LAYER_OPTIONS
        VIRTIO_LAYER_EXTENSIONS
        VIRTIO_LAYER_L4_OPTIONS
        VIRTIO_LAYER_PADDED
        VIRTIO_LAYER_ROUTED
        VIRTIO_LAYER_HOME
        VIRTIO_LAYER_ROUTING_2
        VIRTIO_LAYER_TUNNEL
        VIRTIO_STOP_OK
        VIRTIO_STOP_NOT_IP
        VIRTIO_STOP_PROTOCOL
        VIRTIO_STOP_FRAGMENT
        VIRTIO_STOP_ENCRYPTED
        VIRTIO_STOP_NO_NEXT
        VIRTIO_STOP_FAULTS
        VIRTIO_STOP_SHORT_ETHERNET
        VIRTIO_STOP_SHORT_VLAN
        VIRTIO_STOP_SHORT_L3
        VIRTIO_STOP_IP_VERSION
        VIRTIO_STOP_IPV4_IHL
        VIRTIO_STOP_IP_LENGTH
        VIRTIO_STOP_SHORT_EXTENSION
        VIRTIO_STOP_EXTENSIONS
        VIRTIO_STOP_SHORT_L4
        VIRTIO_STOP_TCP_OFFSET
        VIRTIO_STOP_UDP_LENGTH
        VIRTIO_STOP_OFFSETS
        VIRTIO_STOP_SHORT_TUNNEL
        VIRTIO_STOP_LLC_LENGTH
        VIRTIO_STOP_OPTION
        VIRTIO_STOP_ROUTING
        VIRTIO_STOPS
        VIRTIO_EXTENSIONS_MAX
        VIRTIO_TUNNEL_NONE
        VIRTIO_TUNNEL_VXLAN
        VIRTIO_TUNNEL_GENEVE

    ctypedef struct virtio_layer:
        uint32_t end
        uint16_t l3
        uint16_t l4
        uint16_t payload
        uint16_t src
        uint16_t dst
        uint16_t fragment
        uint16_t ethertype
        uint16_t tci
        uint16_t vlans
        uint16_t flags
        uint8_t l3_kind
        uint8_t protocol
        uint8_t stop

    ctypedef struct virtio_frame:
        uint32_t length
        uint16_t inner_l2
        uint8_t tunnel
        virtio_layer outer
        virtio_layer inner


# Fill *frame from the n bytes at p; return the stop of the innermost layer reached. Never reads past p + n.
cdef int frame_parse(virtio_frame *frame, const uint8_t *p, uint32_t n) noexcept nogil
# The same for count frames; stops are in the layers.
cdef void frame_parse_burst(virtio_frame *frames, const uint8_t *const *p, const uint32_t *n,
                            uint32_t count) noexcept nogil


cdef inline uint16_t get_be16(const uint8_t *p) noexcept nogil:
    return <uint16_t>(p[0] << 8 | p[1])


cdef inline void put_be16(uint8_t *p, uint16_t v) noexcept nogil:
    p[0] = <uint8_t>(v >> 8)
    p[1] = <uint8_t>v


cdef inline uint32_t get_be32(const uint8_t *p) noexcept nogil:
    return <uint32_t>get_be16(p) << 16 | get_be16(p + 2)


cdef inline void put_be32(uint8_t *p, uint32_t v) noexcept nogil:
    put_be16(p, <uint16_t>(v >> 16))
    put_be16(p + 2, <uint16_t>v)
