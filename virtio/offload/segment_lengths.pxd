# Lengths in the headers of a frame that is to be cut: what a driver may leave to the device.
#
# A driver asks for segments, and VIRTIO 1.4, 5.1.9.2 has the device compute what each of them needs. So the IPv4 total
# length, the IPv6 payload length and the UDP length, around a tunnel and within, may be
# - that of the frame, as Linux and FreeBSD have it;
# - 0 (Windows' large send offload; Linux for packets over 64 KiB);
# - a segment's (Windows' USO; offload engines that repeat prepared headers).
# A length that is neither says where the packet ends, and all such agree: up to TRAILER_MAX bytes behind that are
# padding or a trailer, and left out; more are not, and the frame is refused. A frame of 64 bytes or less may be padded
# (60, or 64 with a tag), so there a segment's length is the packet's.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from virtio.core.iov cimport iovec
from virtio.offload.frame cimport virtio_frame


cdef enum:
    LENGTHS_TRUE = -1  # or they say nothing that could be mended


# Make the lengths in the headers at p, the caller's own copy of them, those of the frame of f.length bytes, by its
# gso_type and gso_size; *f is parsed again. Returns VIRTIO_SEGMENT_OK if one was mended. Else LENGTHS_TRUE, or
# VIRTIO_SEGMENT_IP_LENGTH with *value and *limit: the bytes at p are as they were, and *f is worth nothing.
cdef int lengths_mend(virtio_frame *f, uint8_t *p, uint32_t gso_type, uint32_t gso_size, uint64_t *value,
                      uint64_t *limit) noexcept nogil

# Whether the headers of a frame with a gso_type, parsed, have the frame's lengths, and it has a payload; or they are no
# headers that could be mended.
cdef bint lengths_exact(const virtio_frame *f, const uint8_t *p, uint32_t gso_type) noexcept nogil

# The first VIRTIO_SEGMENT_HEADERS_MAX bytes of the n at p, in the thread's scratch: to be mended, and parsed as n.
cdef uint8_t *lengths_copy(const uint8_t *p, uint32_t n) noexcept nogil

# The first VIRTIO_SEGMENT_HEADERS_MAX bytes of a frame in pieces, in one piece: the first, or the thread's scratch.
cdef const uint8_t *segment_headers_of(const iovec *pieces, uint32_t npieces) noexcept nogil
