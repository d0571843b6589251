# The task that takes frames from a port and puts them into a guest's receive queue.
from virtio._bell cimport Bell
from virtio._device_queue cimport DeviceQueue
from virtio._net_rx cimport *
from virtio._port cimport Port
from virtio._relay cimport Relay
from virtio._worker cimport Task


cdef class NetReceive(Task):
    cdef net_rx rx
    cdef DeviceQueue queue
    cdef Port port
    cdef Relay relay
    cdef Bell kick_bell
    cdef Bell trouble_bell
    cdef readonly bint connected
