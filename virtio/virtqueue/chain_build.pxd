# Descriptor chaining at the driver end, for every chain that is not of one piece.
#
# Compiled once, in this module, and not inlined: a burst's loop keeps its registers for the usual chain.
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from virtio.core.atomic cimport virtio_store64
from virtio.virtqueue.structs cimport (
    VIRTIO_DESC_F_AVAIL, VIRTIO_DESC_F_USED, virtio_desc, virtio_driver_queue, virtio_request, virtio_sg,
)

cdef int build_split(virtio_driver_queue *q, const virtio_sg *sg, virtio_request *req) noexcept nogil
cdef int build_packed(virtio_driver_queue *q, const virtio_sg *sg, virtio_request *req,
                      uint64_t *head_word) noexcept nogil


cdef inline void split_put_desc(virtio_desc *desc, uint16_t i, uint64_t addr, uint32_t length, uint64_t flags,
                                uint64_t next) noexcept nogil:
    cdef uint64_t *words = <uint64_t *>(desc + i)
    virtio_store64(words, addr)
    virtio_store64(words + 1, length | (flags << 32) | (next << 48))


cdef inline uint64_t packed_word(uint32_t length, uint16_t id, uint64_t flags) noexcept nogil:
    return length | <uint64_t>id << 32 | flags << 48


cdef inline uint64_t packed_avail_bits(bint wrap) noexcept nogil:
    """The flag bits of an available descriptor: AVAIL as the wrap counter, USED its inverse (2.8.1)."""
    return VIRTIO_DESC_F_AVAIL if wrap else VIRTIO_DESC_F_USED
