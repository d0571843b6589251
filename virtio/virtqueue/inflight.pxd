# The chains that a device queue has popped and not used, noted in memory that outlives the process (vhost-user's
# inflight region): the verbs of a queue with one. They are called by virtio._ring, for the few queues that have it.
#
# SIGKILL may come between any two instructions. What was stored before it is there, in the order of the program; so
# release stores, which the compiler keeps in order, are enough.
from libc.stdint cimport uint32_t, uint64_t

from virtio.core.iov cimport iovec
from virtio.memory.region cimport Region
from virtio.virtqueue.structs cimport virtio_chain, virtio_device_queue, virtio_inflight


cdef uint32_t inflight_pop_burst(virtio_device_queue *q, virtio_chain *chains, uint32_t limit, iovec *segs,
                                 uint32_t nsegs) noexcept nogil
cdef void inflight_unpop_burst(virtio_device_queue *q, const virtio_chain *chains, uint32_t n) noexcept nogil
cdef void inflight_add_used_burst(virtio_device_queue *q, const virtio_chain *chains, uint32_t n) noexcept nogil
# Of the chains to be popped again, and of no others: up to limit of them.
cdef uint32_t inflight_pop_again(virtio_device_queue *q, virtio_chain *chains, uint32_t limit, iovec *segs,
                                 uint32_t nsegs) noexcept nogil


cdef class Inflight:
    cdef virtio_inflight c
    cdef readonly Region region
    cdef uint64_t offset
    cdef readonly int entries
    cdef bint attached
    cdef int attach(self, virtio_device_queue *q) except -1
    cdef int attach_split(self, virtio_device_queue *q) except -1
    cdef int attach_packed(self, virtio_device_queue *q) except -1
    cdef int begin_packed(self, virtio_device_queue *q) except -1
    cdef int read_packed(self, virtio_device_queue *q) except -1
    cdef int copy_packed(self, dict nums) except -1
    cdef int take_entry(self, bytearray taken, str what, uint32_t at) except -1
    cdef int list_again(self, list found, uint32_t descriptors) except -1
    cdef void settle_free(self) noexcept
