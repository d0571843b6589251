# A splice: what one port gives, another is sent. Two of them, one each way, make a cable between any two ports.
#
# What the splice shows the giving port is a sink. A frame that lies in memory (a generator's, a file's) is sent from
# there; one that is yet to be read (a TAP's) is read into a buffer of the splice's: one copy by the kernel, none here.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from virtio.core.iov cimport iovec
from virtio.event.worker cimport Task, virtio_task
from virtio.ports.port cimport Port, virtio_packet, virtio_port, virtio_sink
from virtio.ports.software_offload cimport net_executor


cdef struct port_splice


cdef struct splice_sink:
    virtio_sink sink          # first: a virtio_sink * is one of these
    port_splice *splice


cdef struct port_splice:
    virtio_task task          # first: a virtio_task * is a port_splice *
    splice_sink shown         # to the giver
    uint32_t lock             # of the sink and the task
    virtio_port *giver
    virtio_port *taker
    uint32_t queue            # of both
    uint32_t draining         # nothing more is asked of the giver
    uint32_t full             # the taker did not take all: it is asked before the giver
    net_executor *executor    # does what the taker cannot
    uint32_t resume           # segments that are out of packets[at]
    # read, and not yet sent: packets[at .. count), in room[0 .. used)
    uint32_t at
    uint32_t count
    uint32_t used
    virtio_packet packets[64]
    iovec segs[64]
    uint8_t *room
    # figures
    uint64_t frames           # taken
    uint64_t bytes
    uint64_t stalls           # bursts that were not taken whole
    uint64_t dropped          # read, and not sent until the end


cdef class PortSplice(Task):
    cdef port_splice c
    cdef readonly Port giver
    cdef readonly Port taker
    cdef bint connected
    cdef object __weakref__

    cdef void _fill(self, virtio_sink *sink) noexcept
