# Cutting a frame into segments: TSO, USO, and IP fragments for UFO (VIRTIO 1.4, 5.1.9.2); the plan.
#
# A plan is made once for a frame and holds all that the segments have in common, so that virtio.offload.segment_write
# adds only what differs. It refers to the frame, which must stay; a reader of a frame in pieces notes in it where it
# was, so it is one thread's at a time. The frame may be the guest's and change meanwhile: its headers are parsed, then
# copied once, and whatever the copy holds, lengths and offsets are those of the parse.
#
# Segments are what Linux makes of such a frame (tcp_gso_segment, __udp_gso_segment, udp4_ufo_fragment,
# udp6_ufo_fragment; inet_gso_segment, ipv6_gso_segment, skb_udp_tunnel_segment):
# Padding behind the IP packet, and behind an inner one, is not cut but left out. A tunnel within a tunnel is not cut.
#
# With a gso_type (not SEGMENT_AUTO) lengths in the headers need not be true: see virtio.offload.segment_lengths. The
# bit of the tunnel's IP version may be that of the inner packet (5.1.9.2) or of the outer one (Linux); what is around
# the tunnel says which it is.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from virtio.core.iov cimport iovec
from virtio.offload.frame cimport virtio_frame


cdef extern from "virtio/segment.h" nogil:
    enum:
        VIRTIO_SEGMENT_OK
        VIRTIO_SEGMENT_TYPE
        VIRTIO_SEGMENT_SIZE
        VIRTIO_SEGMENT_LENGTH
        VIRTIO_SEGMENT_FRAME
        VIRTIO_SEGMENT_NETWORK
        VIRTIO_SEGMENT_PROTOCOL
        VIRTIO_SEGMENT_FRAGMENT
        VIRTIO_SEGMENT_TUNNEL
        VIRTIO_SEGMENT_UFO_TUNNEL
        VIRTIO_SEGMENT_EXTENSION
        VIRTIO_SEGMENT_JUMBO
        VIRTIO_SEGMENT_UDP_LENGTH
        VIRTIO_SEGMENT_HEADERS
        VIRTIO_SEGMENT_IP_LENGTH
        VIRTIO_SEGMENT_COUNT
        VIRTIO_SEGMENT_CODES
        SEGMENT_PARTIAL "VIRTIO_SEGMENT_PARTIAL"
        SEGMENT_FIXED_ID "VIRTIO_SEGMENT_FIXED_ID"
        SEGMENT_FIXED_OUTER_ID "VIRTIO_SEGMENT_FIXED_OUTER_ID"
        SEGMENT_NO_CHECKSUM "VIRTIO_SEGMENT_NO_CHECKSUM"
        SEGMENT_OUTER_CHECKSUM "VIRTIO_SEGMENT_OUTER_CHECKSUM"
        SEGMENT_AUTO "VIRTIO_SEGMENT_AUTO"
        VIRTIO_SEGMENT_HEADERS_MAX
        VIRTIO_SEGMENT_TCP
        VIRTIO_SEGMENT_UDP
        VIRTIO_SEGMENT_FRAGMENTS
        VIRTIO_SEGMENT_IPV4_FRAGMENT
        VIRTIO_SEGMENT_IPV6_FRAGMENT

    ctypedef struct virtio_segment_ip:
        uint64_t sum[2]
        uint16_t length[2]
        uint16_t at
        uint16_t id
        uint8_t v4
        uint8_t step

    ctypedef struct virtio_segmenter:
        uint32_t count
        uint32_t unit
        uint32_t last
        uint32_t payload
        uint32_t header
        uint32_t extra
        uint8_t kind
        uint8_t partial
        uint8_t needs_csum
        uint8_t tunnel
        uint8_t outer_check
        const uint8_t *frame
        const iovec *pieces
        uint32_t npieces
        uint32_t payload_at
        uint32_t piece
        uint32_t passed
        virtio_segment_ip ip[2]
        uint64_t l4_sum[2]
        uint64_t first_sum
        uint16_t l4
        uint16_t l4_checksum[2]
        uint16_t udp_length[2]
        uint16_t outer_l4
        uint16_t outer_length[2]
        uint16_t outer_checksum[2]
        uint16_t flags[4]
        uint16_t noptions
        uint32_t seq
        uint64_t value
        uint64_t limit
        uint8_t options[40]
        uint8_t headers[1024]

    uint8_t *segment_scratch "virtio_segment_scratch"()
    void segment_copy_header "virtio_segment_copy_header"(uint8_t *to, const uint8_t *p, uint32_t n)


# Plan to cut a frame of length bytes. gso_type and gso_size are virtio_net_hdr's; the frame must be of that type: with
# UDP_TUNNEL_IPV4 or _IPV6 the inner packet is cut, without, the outer one, whatever it holds; with SEGMENT_AUTO for
# gso_type it is TSO or USO of the innermost packet, as the frame has it. options: SEGMENT_*. limit bounds the segments.
# Returns VIRTIO_SEGMENT_*; unless it is VIRTIO_SEGMENT_OK there is no plan, but s.value and s.limit.
cdef int segment_plan(virtio_segmenter *s, const uint8_t *frame, uint32_t length, uint32_t gso_type, uint32_t gso_size,
                      uint32_t options, uint32_t limit) noexcept nogil
# The same for a frame in pieces, split anywhere. The list must stay, too.
cdef int segment_plan_pieces(virtio_segmenter *s, const iovec *pieces, uint32_t npieces, uint32_t gso_type,
                             uint32_t gso_size, uint32_t options, uint32_t limit) noexcept nogil
# The same for a frame in one piece that is parsed already.
cdef int segment_plan_parsed(virtio_segmenter *s, const virtio_frame *parsed, const uint8_t *frame, uint32_t gso_type,
                             uint32_t gso_size, uint32_t options, uint32_t limit) noexcept nogil


# Of segment i of a plan: bytes of headers; where its payload starts, from the payload's start; bytes of payload.
cdef inline uint32_t segment_header_size(const virtio_segmenter *s, uint32_t i) noexcept nogil:
    return s.header + (s.extra if i == 0 else 0)


cdef inline uint32_t segment_payload_at(const virtio_segmenter *s, uint32_t i) noexcept nogil:
    return i * s.unit - (s.extra if i else 0)


cdef inline uint32_t segment_payload_size(const virtio_segmenter *s, uint32_t i) noexcept nogil:
    return (s.last if i == s.count - 1 else s.unit) - (s.extra if i == 0 else 0)
