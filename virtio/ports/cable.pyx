"""A cable between two network devices: one copy, from the guest that sends into the guest that receives."""

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free

from virtio.core.atomic cimport virtio_load32, virtio_load32_acquire, virtio_store32
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


# What an end sends into: the wires to the other end's queues.
cdef struct cable_way:
    wire *wires               # [queues]
    wire_sender *senders      # [queues]
    uint32_t pairs            # queues that the receiver uses


cdef uint32_t cable_send(virtio_port *port, uint32_t queue, const virtio_packet *packets, uint32_t n,
                         const iovec *segs, virtio_turn *turn) noexcept nogil:
    cdef cable_way *way = <cable_way *>port.owner
    return wire_send(&way.wires[queue % virtio_load32(&way.pairs)], &way.senders[queue], packets, n, segs, turn)


cdef virtio_bell *cable_flush(virtio_port *port, uint32_t queue) noexcept nogil:
    return wire_flush(&(<cable_way *>port.owner).senders[queue])


cdef void cable_rang(virtio_port *port, uint32_t queue) noexcept nogil:
    wire_rang(&(<cable_way *>port.owner).senders[queue])


cdef bint cable_arm_send(virtio_port *port, uint32_t queue, virtio_wait *wait) noexcept nogil:
    cdef cable_way *way = <cable_way *>port.owner
    return wire_arm(&way.wires[queue % virtio_load32(&way.pairs)], &way.senders[queue], wait)


cdef class Ways:
    """Memory of both directions; it lives as long as either end."""

    cdef cable_way way[2]
    cdef uint32_t queues
    cdef dict owners          # of each sink, and of those before it whose bells may be about to be rung

    def __cinit__(self, uint32_t queues, bint drop):
        cdef uint32_t i
        self.queues = queues
        self.owners = {}
        for side in range(2):
            self.way[<int>side].pairs = 1
            self.way[<int>side].wires = <wire *>calloc(queues, sizeof(wire))
            self.way[<int>side].senders = <wire_sender *>calloc(queues, sizeof(wire_sender))
            if self.way[<int>side].wires is NULL or self.way[<int>side].senders is NULL:
                raise MemoryError()
            for i in range(queues):
                self.way[<int>side].wires[i].drop = drop

    def __dealloc__(self):
        for side in range(2):
            free(self.way[<int>side].wires)
            free(self.way[<int>side].senders)


cdef class CableEnd(Port):
    """One end of a :class:`Cable`: the port of a device."""

    cdef Ways _ways
    cdef readonly str name    # "a" or "b"
    cdef cable_way *_out
    cdef cable_way *_in

    def __init__(self, Ways ways not None, str name not None):
        if self._ways is not None:
            raise TypeError("cable's end is made already")
        self._ways, self.name = ways, name
        self._out = &ways.way[name == "a"]
        self._in = &ways.way[name != "a"]
        self.c.owner = self._out
        self.c.send = cable_send
        self.c.flush, self.c.rang = cable_flush, cable_rang
        self.c.arm_send = cable_arm_send
        self.c.offloads = ALL
        self.c.queues = ways.queues

    cdef void free_locks(self) noexcept:
        cdef uint32_t i
        for i in range(0 if self._ways is None else self.c.queues):
            wire_free(&self._out.wires[i], &self._out.senders[i])

    cdef int connect(self, uint32_t queue, virtio_sink *sink, object owner) except -1:
        cdef bint ringing = False
        cdef uint32_t i
        if queue >= self.c.queues:
            raise ValueError(f"queue {queue} of a cable: limit {self.c.queues - 1}")
        with nogil:
            wire_connect(&self._in.wires[queue], sink)
        for i in range(self.c.queues):
            ringing |= virtio_load32_acquire(&self._in.senders[i].ringing) != 0
        keep(self._ways.owners.setdefault((self.name, queue), []), owner, ringing)
        return 0

    def set_queues(self, int pairs):
        """Let the other end's frames come to the first ``pairs`` queues; ValueError unless that is 1 to ``queues``."""
        if not 1 <= pairs <= <int>self.c.queues:
            raise ValueError(f"{pairs} queue pairs: limit 1 to {self.c.queues}")
        virtio_store32(&self._in.pairs, <uint32_t>pairs)

    def statistics(self):
        """Return the sums over all queues: send_packets, send_bytes, send_dropped, send_full, receive_...

        What one end sends the other receives. Frames are dropped when nobody is at the other end, or the cable is not
        plugged in; and, if it was made so, when the other end has no room.
        """
        cdef dict counts = {}
        cdef uint32_t i
        for i in range(self.c.queues):
            add_counts(counts, "send", &self._out.wires[i].counts)
            add_counts(counts, "receive", &self._in.wires[i].counts)
        return counts

    def __repr__(self):
        return f"<CableEnd {self.name}: {self.c.queues} queues>"


cdef class Cable:
    """A direct cable between two network devices; ``a`` and ``b`` are its ends, a port each (``a, b = Cable()``).

    A frame is copied once, from where it lies in one guest's memory to where it shall lie in the other's, by the thread
    that sends. What it leaves undone and its receiver does not take is done on the way. A frame of queue i goes to
    queue i of the other end, modulo the number of queues in use there.

    The sender's thread rings the receiver's interrupt too, when it holds no lock.

    ``full`` says what happens when the other end has no room: "wait" (the sender keeps its frames, and looks again
    after 50 us; while nothing moves, after up to 4 ms) or "drop". ``queues`` queue pairs at most (1 to 256). Raises
    ValueError for arguments out of range.
    """

    cdef readonly CableEnd a
    cdef readonly CableEnd b
    cdef readonly str full
    cdef Ways _ways
    cdef bint _up

    def __init__(self, *, int queues=1, str full="wait"):
        if not 1 <= queues <= 256:
            raise ValueError(f"queues {queues} is not within 1 to 256")
        if full not in ("wait", "drop"):
            raise ValueError(f"full {full!r} is neither 'wait' nor 'drop'")
        self.full = full
        self._ways = Ways(queues, full == "drop")
        self.a, self.b = CableEnd(self._ways, "a"), CableEnd(self._ways, "b")
        self._up = True

    @property
    def up(self):
        """Whether it is plugged in; while it is not, whatever is sent is dropped. May be set at any time."""
        return self._up

    @up.setter
    def up(self, bint up):
        cdef uint32_t i
        cdef int side
        self._up = up
        for side in range(2):
            for i in range(self._ways.queues):
                virtio_store32(&self._ways.way[side].wires[i].down, not up)

    def __iter__(self):
        return iter((self.a, self.b))

    def __repr__(self):
        return f"<Cable: {self._ways.queues} queues, {'up' if self._up else 'down'}, {self.full} when full>"
