# The task that takes frames from a port and puts them into a guest's receive queue.
from virtio.event.notifier cimport Bell
from virtio.event.relay cimport Relay
from virtio.event.worker cimport Task
from virtio.netdev.rxq cimport net_rx
from virtio.ports.port cimport Port
from virtio.virtqueue.device_queue cimport DeviceQueue


cdef class NetReceive(Task):
    cdef net_rx rx
    cdef DeviceQueue queue
    cdef Port port
    cdef Relay relay
    cdef Bell kick_bell
    cdef Bell trouble_bell
    cdef readonly bint connected
