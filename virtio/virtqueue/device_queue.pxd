from libc.stdint cimport uint32_t, uint64_t

from virtio._ring cimport Queue
from virtio.core.iov cimport iovec
from virtio.memory.guest_memory cimport GuestMemory
from virtio.virtqueue.chain cimport Chain
from virtio.virtqueue.chain_walk cimport walk
from virtio.virtqueue.inflight cimport Inflight
from virtio.virtqueue.structs cimport virtio_chain, virtio_device_queue


cdef class DeviceQueue(Queue):
    cdef virtio_device_queue *q
    cdef dict taken              # serial -> Chain: popped and not given back, in pop order
    cdef uint64_t serial
    cdef object max_chain        # as given, or None
    cdef uint32_t walk           # descriptors of a chain that the device wants walked
    cdef readonly Inflight inflight  # q.inflight is in it; None: nothing is noted
    cdef int open(self, GuestMemory memory, object layout, object features, int index, object max_chain) except -1
    cdef void limit_walk(self, uint32_t most) noexcept
    cdef Chain view(self, const virtio_chain *c, const iovec *segs, tuple regions)
    cdef Chain wrap(self, const virtio_chain *c, const iovec *segs, tuple regions)
    cdef int claim(self, Chain chain, uint64_t expected) except -1
    cdef int log_written(self, Chain chain) except -1
    cdef list waiting(self)
    cdef int rebuild(self, object saved) except -1
