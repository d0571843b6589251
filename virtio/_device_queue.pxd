from libc.stdint cimport uint32_t, uint64_t

from virtio._ring cimport *


cdef class Chain:
    cdef virtio_chain c
    cdef iovec *segs             # its own copy of its pieces; c.first is 0
    cdef iovec small[2]
    cdef tuple regions           # the memory map it was popped under: keeps its views alive
    cdef object owner            # the DeviceQueue; None once given back
    cdef uint64_t serial         # pop order
    cdef list views(self, uint32_t first, uint32_t n, bint readonly)
    cdef list pieces(self, uint32_t first, uint32_t n)


cdef class DeviceQueue(Queue):
    cdef virtio_device_queue *q
    cdef dict taken              # serial -> Chain: popped and not given back, in pop order
    cdef uint64_t serial
    cdef object max_chain        # as given, or None
    cdef int open(self, GuestMemory memory, object layout, object features, int index, object max_chain) except -1
    cdef Chain wrap(self, const virtio_chain *c, const iovec *segs, tuple regions)
    cdef int claim(self, Chain chain, uint64_t expected) except -1
    cdef int log_written(self, Chain chain) except -1
    cdef int rebuild(self, object saved) except -1
