from virtio.event.notifier cimport Bell
from virtio.virtqueue.driver_queue cimport DriverQueue
from virtio.vtnet.pool cimport Pool
from virtio.vtnet.txq cimport vtnet_tx


cdef class VtnetTransmit:
    cdef vtnet_tx c
    cdef readonly DriverQueue queue
    cdef readonly Pool small
    cdef readonly Pool large
    cdef readonly Bell kick
    cdef readonly Bell interrupt
    cdef void finish(self) noexcept nogil
