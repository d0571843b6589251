from libc.stdint cimport uint32_t, uint64_t

from virtio.core.iov cimport iovec
from virtio.virtqueue.structs cimport virtio_chain


cdef class Chain:
    cdef virtio_chain c
    cdef iovec *segs             # its own copy of its pieces; c.first is 0
    cdef iovec small[2]
    cdef tuple regions           # the memory map it was popped under: keeps its views alive
    cdef object owner            # the DeviceQueue; None once given back
    cdef uint64_t serial         # pop order
    cdef list views(self, uint32_t first, uint32_t n, bint readonly)
    cdef list pieces(self, uint32_t first, uint32_t n)
