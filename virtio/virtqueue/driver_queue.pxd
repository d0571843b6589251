from libc.stdint cimport uint32_t, uint64_t

from virtio._ring cimport Queue
from virtio.memory.guest_memory cimport GuestMemory
from virtio.virtqueue.structs cimport virtio_driver_queue, virtio_sg


cdef struct sg_list:
    virtio_sg *sg
    uint32_t room
    uint32_t n


cdef class DriverQueue(Queue):
    cdef virtio_driver_queue *q
    cdef list cookies            # by head; None where nothing is outstanding
    cdef object indirect_at      # guest address of the indirect tables, or None
    cdef int renew(self, object layout, bint zero) except -1
    cdef void start(self) noexcept
    cdef int parse(self, object pieces, sg_list *out) except -1
    cdef int open(self, GuestMemory memory, object layout, object features, int index, object indirect,
                  object max_indirect, bint clamp) except -1
    cdef object refuse(self, int why, uint32_t pieces)
