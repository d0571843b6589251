# The checksums of a frame: what they are worth, and how they get there. The functions take a frame and what
# frame_parse() said of it; the frame may have changed since, so what bounds a read is looked at again.
from libc.stdint cimport uint8_t, uint32_t

from virtio.offload.frame cimport virtio_frame, virtio_layer


cdef enum:
    VERDICT_NONE = 0     # nothing to check: no such header, no checksum in it, or a UDP checksum of 0 that is allowed
    VERDICT_GOOD = 1     # right; of the functions that fill: stored
    VERDICT_BAD = 2      # wrong
    VERDICT_UNKNOWN = 3  # not to be told: a fragment, a protocol not known, a frame cut off (the layer's stop says)


# What there is in a frame: the checksum of the IPv4 header and of the transport protocol, of the outer and inner
# layer.
ctypedef struct frame_checks:
    uint8_t l3
    uint8_t l4
    uint8_t inner_l3
    uint8_t inner_l4


# One layer of the frame at p; layer is &frame.outer or &frame.inner. Padding behind layer.end is not summed, nor what
# follows a UDP datagram within its IP packet. A UDP checksum of 0 is NONE on IPv4 (RFC 768), BAD on IPv6 (RFC 8200,
# 8.1), but NONE there too for the outer header of a tunnel (RFC 6935, 5).
cdef int layer_verify_l3(const uint8_t *p, const virtio_frame *frame, const virtio_layer *layer) noexcept nogil
cdef int layer_verify_l4(const uint8_t *p, const virtio_frame *frame, const virtio_layer *layer) noexcept nogil
cdef void frame_verify(frame_checks *checks, const uint8_t *p, const virtio_frame *frame) noexcept nogil

# Compute and store. A UDP checksum that comes out as 0 becomes 0xffff. A frame is filled from the inside out, because
# the outer UDP checksum covers the inner ones. Nothing is stored unless the result is GOOD; never BAD.
cdef int layer_fill_l3(uint8_t *p, const virtio_frame *frame, const virtio_layer *layer) noexcept nogil
cdef int layer_fill_l4(uint8_t *p, const virtio_frame *frame, const virtio_layer *layer) noexcept nogil
cdef void frame_fill(frame_checks *checks, uint8_t *p, const virtio_frame *frame) noexcept nogil

# Store the pseudo header's sum in the TCP or UDP checksum field of a layer, as VIRTIO_NET_HDR_F_NEEDS_CSUM wants it
# (VIRTIO 1.4, 5.1.9.2). Returns csum_offset, csum_start being layer.l4; -1, and nothing stored, where the layer has
# neither.
cdef int layer_fill_partial(uint8_t *p, const virtio_frame *frame, const virtio_layer *layer) noexcept nogil
