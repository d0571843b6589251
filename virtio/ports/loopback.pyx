"""The loopback port: every frame comes back to its sender."""

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free

from virtio.core.atomic cimport virtio_load32_acquire
from virtio.core.iov cimport iovec
from virtio.event.notifier cimport virtio_bell
from virtio.event.worker cimport virtio_turn, virtio_wait
from virtio.offload.net_hdr cimport (
    VIRTIO_OFFLOAD_CSUM, VIRTIO_OFFLOAD_ECN, VIRTIO_OFFLOAD_TSO4, VIRTIO_OFFLOAD_TSO6, VIRTIO_OFFLOAD_TUNNEL,
    VIRTIO_OFFLOAD_TUNNEL_CSUM, VIRTIO_OFFLOAD_UFO, VIRTIO_OFFLOAD_USO4, VIRTIO_OFFLOAD_USO6,
)
from virtio.ports.counts cimport add_counts
from virtio.ports.link cimport (
    keep, wire, wire_arm, wire_connect, wire_flush, wire_free, wire_rang, wire_send, wire_sender,
)
from virtio.ports.port cimport Port, virtio_packet, virtio_port, virtio_sink


cdef enum:
    # the sink completes what its queue does not take
    ALL = (VIRTIO_OFFLOAD_CSUM | VIRTIO_OFFLOAD_TSO4 | VIRTIO_OFFLOAD_TSO6 | VIRTIO_OFFLOAD_ECN | VIRTIO_OFFLOAD_UFO
           | VIRTIO_OFFLOAD_USO4 | VIRTIO_OFFLOAD_USO6 | VIRTIO_OFFLOAD_TUNNEL | VIRTIO_OFFLOAD_TUNNEL_CSUM)


cdef struct loop_queue:
    wire back
    wire_sender sender


cdef uint32_t loopback_send(virtio_port *port, uint32_t queue, const virtio_packet *packets, uint32_t n,
                            const iovec *segs, virtio_turn *turn) noexcept nogil:
    cdef loop_queue *q = &(<loop_queue *>port.owner)[queue]
    return wire_send(&q.back, &q.sender, packets, n, segs, turn)


cdef virtio_bell *loopback_flush(virtio_port *port, uint32_t queue) noexcept nogil:
    return wire_flush(&(<loop_queue *>port.owner)[queue].sender)


cdef void loopback_rang(virtio_port *port, uint32_t queue) noexcept nogil:
    wire_rang(&(<loop_queue *>port.owner)[queue].sender)


cdef bint loopback_arm_send(virtio_port *port, uint32_t queue, virtio_wait *wait) noexcept nogil:
    cdef loop_queue *q = &(<loop_queue *>port.owner)[queue]
    return wire_arm(&q.back, &q.sender, wait)


cdef class Loopback(Port):
    """Gives every frame back to the device that sent it, on the receive queue of the same index, with one copy.

    ``full`` says what happens when that has no room: "wait" or "drop". ``queues`` queue pairs (1 to 256). Raises
    ValueError for arguments out of range.
    """

    cdef readonly str full
    cdef loop_queue *_queues
    cdef dict _owners         # of each queue's sink, and of those before it whose bells may be about to be rung

    cdef void free_locks(self) noexcept:
        cdef uint32_t i
        for i in range(0 if self._queues is NULL else self.c.queues):
            wire_free(&self._queues[i].back, &self._queues[i].sender)

    def __init__(self, *, int queues=1, str full="wait"):
        cdef int i
        if self._queues is not NULL:
            raise TypeError("loopback is made already")
        if not 1 <= queues <= 256:
            raise ValueError(f"queues {queues} is not within 1 to 256")
        if full not in ("wait", "drop"):
            raise ValueError(f"full {full!r} is neither 'wait' nor 'drop'")
        self._queues = <loop_queue *>calloc(queues, sizeof(loop_queue))
        if self._queues is NULL:
            raise MemoryError()
        for i in range(queues):
            self._queues[i].back.drop = full == "drop"
        self.full = full
        self._owners = {}
        self.c.flush, self.c.rang = loopback_flush, loopback_rang
        self.c.owner = self._queues
        self.c.send = loopback_send
        self.c.arm_send = loopback_arm_send
        self.c.offloads = ALL
        self.c.queues = queues

    def __dealloc__(self):
        free(self._queues)

    cdef int connect(self, uint32_t queue, virtio_sink *sink, object owner) except -1:
        if queue >= self.c.queues:
            raise ValueError(f"queue {queue} of a loopback: limit {self.c.queues - 1}")
        with nogil:
            wire_connect(&self._queues[queue].back, sink)
        keep(self._owners.setdefault(queue, []), owner, virtio_load32_acquire(&self._queues[queue].sender.ringing) != 0)
        return 0

    def statistics(self):
        """Return the sums over all queues: send_packets, send_bytes, send_dropped (nobody was there), send_full."""
        cdef dict counts = {}
        cdef uint32_t i
        for i in range(self.c.queues):
            add_counts(counts, "send", &self._queues[i].back.counts)
        return counts

    def __repr__(self):
        return f"<Loopback: {self.c.queues} queues, {self.full} when full>"
