"""Parsing of Ethernet frames: where the headers are, and why no more is known."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset


cdef int frame_parse(virtio_frame *frame, const uint8_t *p, uint32_t n) noexcept nogil:
    memset(frame, 0, sizeof(virtio_frame))
    frame.length = n
    frame.outer.stop = VIRTIO_STOP_SHORT_ETHERNET
    return frame.outer.stop


cdef void frame_parse_burst(virtio_frame *frames, const uint8_t *const *p, const uint32_t *n,
                            uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        frame_parse(&frames[i], p[i], n[i])
