from virtio._bell cimport Bell
from virtio._driver_queue cimport DriverQueue
from virtio._vtnet_pool cimport Pool
from virtio._vtnet_tx cimport vtnet_tx


cdef class VtnetTransmit:
    cdef vtnet_tx c
    cdef readonly DriverQueue queue
    cdef readonly Pool small
    cdef readonly Pool large
    cdef readonly Bell kick
    cdef readonly Bell interrupt
    cdef void finish(self) noexcept nogil
