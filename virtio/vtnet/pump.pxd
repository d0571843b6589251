# The pump: joins a vtnet driver to a port. Two tasks for each queue pair: what the port gives goes into the transmit
# queue, what the receive queue has goes to the port. Nothing is copied here.
from libc.stdint cimport uint32_t, uint64_t

from virtio.event.worker cimport Task, virtio_task
from virtio.ports.port cimport Port, virtio_port
from virtio.ports.software_offload cimport net_executor
from virtio.vtnet.rxq cimport VtnetReceive, vtnet_rx
from virtio.vtnet.txq cimport VtnetTransmit, vtnet_tx


cdef struct pump_transmit:
    virtio_task task      # first: a virtio_task * is a pump_transmit *
    vtnet_tx *tx
    virtio_port *port
    uint32_t queue
    uint64_t bursts
    uint64_t packets


cdef struct pump_receive:
    virtio_task task
    vtnet_rx *rx
    virtio_port *port
    net_executor *executor  # does what the port cannot; NULL: it can do all
    uint32_t queue
    uint32_t full           # the port took not all of the last burst
    uint32_t resume         # segments that are out of the packet that comes next
    uint64_t bursts
    uint64_t packets


cdef class PumpTransmit(Task):
    cdef pump_transmit c
    cdef readonly VtnetTransmit transmit
    cdef readonly Port port
    cdef bint connected


cdef class PumpReceive(Task):
    cdef pump_receive c
    cdef readonly VtnetReceive receive
    cdef readonly Port port
    cdef int make_executor(self) except -1
