"""A port made of Python functions."""

import sys

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from virtio.core.atomic cimport virtio_load32, virtio_store32
from virtio.core.clock cimport now_us
from virtio.core.counters cimport add_count
from virtio.core.iov cimport iov_head, iovec
from virtio.event.notifier cimport Bell, virtio_bell, virtio_bell_answer
from virtio.event.worker cimport (
    VIRTIO_WORK_BYTES, virtio_turn, virtio_wait, virtio_wait_bell, virtio_wait_us, virtio_work_bytes,
)
from virtio.offload.net_hdr cimport (
    VIRTIO_NET_HDR_OK, VIRTIO_OFFLOAD_CSUM, VIRTIO_OFFLOAD_ECN, VIRTIO_OFFLOAD_TO_DRIVER, VIRTIO_OFFLOAD_TSO4,
    VIRTIO_OFFLOAD_TSO6, VIRTIO_OFFLOAD_TUNNEL, VIRTIO_OFFLOAD_TUNNEL_CSUM, VIRTIO_OFFLOAD_UFO, VIRTIO_OFFLOAD_USO4,
    VIRTIO_OFFLOAD_USO6, net_hdr_check, NetHeader, virtio_net_hdr,
)
from virtio.ports.counts cimport add_counts, port_counts
from virtio.ports.port cimport (
    VIRTIO_BURST, VIRTIO_FRAME_MAX, VIRTIO_FRAME_MIN, Port, sink_deliver, virtio_packet, virtio_port, virtio_sink,
)


cdef enum:
    ANY = (VIRTIO_OFFLOAD_CSUM | VIRTIO_OFFLOAD_TSO4 | VIRTIO_OFFLOAD_TSO6 | VIRTIO_OFFLOAD_ECN | VIRTIO_OFFLOAD_UFO
           | VIRTIO_OFFLOAD_USO4 | VIRTIO_OFFLOAD_USO6 | VIRTIO_OFFLOAD_TUNNEL | VIRTIO_OFFLOAD_TUNNEL_CSUM
           | VIRTIO_OFFLOAD_TO_DRIVER)


cdef enum:
    OBJECT = 500  # units of work: objects are made


cdef extern from "Python.h":
    void PyErr_SetInterrupt()
    Py_buffer *PyMemoryView_GET_BUFFER(object view)


# What is looked at without the GIL
cdef struct call_state:
    void *port
    virtio_bell *bell
    int64_t interval              # us
    int64_t next                  # us: receive is asked then,
    uint32_t ask                  # or now
    uint32_t resume               # segments that are out of the frame that comes next


cdef uint32_t call_send(virtio_port *port, uint32_t queue, const virtio_packet *packets, uint32_t n,
                        const iovec *segs, virtio_turn *turn) noexcept nogil:
    cdef uint64_t size = 0
    cdef uint32_t i
    for i in range(n):
        size += packets[i].len
    turn.left -= <int64_t>n * port.work + virtio_work_bytes(size)
    with gil:
        return (<CallPort>(<call_state *>port.owner).port)._give(packets, n, segs)


cdef bint is_time(call_state *state) noexcept nogil:
    return virtio_load32(&state.ask) or virtio_load32(&state.bell.rung) or now_us() >= state.next


cdef uint32_t call_receive(virtio_port *port, uint32_t queue, virtio_sink *sink, uint32_t limit,
                           virtio_turn *turn) noexcept nogil:
    cdef call_state *state = <call_state *>port.owner
    cdef uint32_t taken
    if not is_time(state):
        return 0
    virtio_bell_answer(state.bell)  # before it is asked: what wakes us from here on counts anew
    with gil:
        taken = (<CallPort>state.port)._take(sink, limit, turn)
    turn.left -= <int64_t>taken * OBJECT
    return taken


cdef bint call_arm_receive(virtio_port *port, uint32_t queue, virtio_wait *wait) noexcept nogil:
    cdef call_state *state = <call_state *>port.owner
    cdef int64_t now = now_us()
    if is_time(state):
        return True
    virtio_wait_us(wait, state.next - now if state.next > now else 0)
    return virtio_wait_bell(wait, state.bell)


cdef void call_disarm(virtio_port *port, uint32_t queue) noexcept nogil:
    # the worker has answered the bell if it was that which woke it
    virtio_store32(&(<call_state *>port.owner).ask, 1)


cdef void report() noexcept:
    """An exception of a function of the user's: there is no caller to take it."""
    kind, error, trace = sys.exc_info()
    if kind is KeyboardInterrupt:
        PyErr_SetInterrupt()  # again, where somebody waits for it
    else:
        sys.excepthook(kind, error, trace)


cdef bytes frame_of(const virtio_packet *packet, const iovec *segs):
    cdef bytes frame = PyBytes_FromStringAndSize(NULL, packet.len)
    iov_head(<uint8_t *>PyBytes_AS_STRING(frame), segs + packet.first, packet.nsegs, 0, packet.len)
    return frame


cdef class CallPort(Port):
    """A port made of two functions of the user's, each called once for a burst, on the thread that works the queue.

    ``send(frames)`` takes a list of (NetHeader, bytes) and returns nothing. ``receive(limit)`` returns up to ``limit``
    frames, each bytes (or any buffer, which is to stay as it is), or a tuple (NetHeader, bytes); an empty list or None
    for none. It is asked again at once while it gives something, then after :meth:`wake`, or ``interval_us``
    microseconds later (0: at each poll). More than ``limit`` frames, and those for which there is no room yet, are kept
    and given later.

    ``offloads`` (VIRTIO_OFFLOAD_*) is what a frame that ``send`` gets may leave undone: nothing by default. The
    functions run under the lock of a queue: they may ask a device for its statistics, and nothing else of one (no link,
    reset, snapshot, detach): that would wait for this very lock. What they raise goes to
    ``sys.excepthook``, and the frames are dropped and counted; so is a frame of a size, or with a header, that cannot
    be. Raises TypeError for what cannot be called, ValueError for arguments out of range.
    """

    cdef object _send
    cdef object _receive
    cdef list _waiting            # of (NetHeader or None, memoryview): given by receive, not yet taken
    cdef Bell _bell
    cdef call_state _state
    cdef port_counts _sent
    cdef port_counts _received

    def __init__(self, send=None, receive=None, *, uint32_t offloads=0, interval_us=10000):
        if self._bell is not None:
            raise TypeError("port is made already")
        for function in (send, receive):
            if function is not None and not callable(function):
                raise TypeError(f"{function!r} is not callable")
        if offloads > 0x1ff:
            raise ValueError(f"offloads {offloads:#x} has bits beyond 0x1ff")
        if not 0 <= interval_us <= 1000000000:
            raise ValueError(f"interval_us {interval_us} is not within 0 to 1000000000")
        self._send, self._receive = send, receive
        self._waiting = []
        self._bell = Bell()
        self._state.port = <void *>self
        self._state.bell = &self._bell.c
        self._state.interval = interval_us
        self._state.ask = 1
        self.c.owner = &self._state
        self.c.offloads = offloads
        if send is not None:
            self.c.send = call_send
            self.c.work = OBJECT
        if receive is not None:
            self.c.receive = call_receive
            self.c.arm_receive = call_arm_receive
            self.c.disarm = call_disarm

    cdef uint32_t _give(self, const virtio_packet *packets, uint32_t n, const iovec *segs) noexcept:
        cdef NetHeader header
        cdef uint32_t i
        cdef list frames = []
        try:
            for i in range(n):
                header = NetHeader.__new__(NetHeader)
                header.load(&packets[i].hdr)
                frames.append((header, frame_of(&packets[i], segs)))
            self._send(frames)
        except BaseException:
            report()
            add_count(&self._sent.dropped, n)
            return n
        add_count(&self._sent.packets, n)
        for i in range(n):
            add_count(&self._sent.bytes, packets[i].len)
        return n

    cdef uint32_t _take(self, virtio_sink *sink, uint32_t limit, virtio_turn *turn) noexcept:
        cdef uint32_t taken = 0, before = self._state.resume
        try:
            if not self._waiting:
                for item in self._receive(limit) or ():
                    self._add(item)
            if self._waiting:
                taken = self._deliver(sink, limit, turn)
        except BaseException:
            report()
        if not taken and self._state.resume > before:
            taken = 1  # a part of a frame
        virtio_store32(&self._state.ask, taken > 0)
        if not taken:
            self._state.next = now_us() + self._state.interval
        return taken

    cdef int _add(self, item) except -1:
        """Take a frame that receive gives."""
        cdef NetHeader header = None
        cdef virtio_net_hdr hdr
        try:
            if isinstance(item, tuple):
                header, item = item
            view = memoryview(item).cast("B")
            if not VIRTIO_FRAME_MIN <= len(view) <= VIRTIO_FRAME_MAX:
                raise ValueError(f"frame of {len(view)} bytes: limit {VIRTIO_FRAME_MIN} to {VIRTIO_FRAME_MAX}")
            if header is not None:
                header.store(&hdr)
                if net_hdr_check(&hdr, <uint32_t>len(view), ANY) != VIRTIO_NET_HDR_OK:
                    raise ValueError(f"{header!r} cannot be of a frame of {len(view)} bytes")
        except Exception:
            add_count(&self._received.dropped, 1)
            report()
        else:
            self._waiting.append((header, view))
        return 0

    cdef uint32_t _deliver(self, virtio_sink *sink, uint32_t limit, virtio_turn *turn) except? 0xffffffff:
        """Deliver some of what waits."""
        cdef virtio_packet packets[VIRTIO_BURST]
        cdef iovec segs[VIRTIO_BURST]
        cdef Py_buffer *view
        cdef NetHeader header
        cdef uint32_t n = 0, taken
        cdef int64_t room = turn.left * VIRTIO_WORK_BYTES
        if limit > VIRTIO_BURST:
            limit = VIRTIO_BURST
        frames = self._waiting[:limit]
        memset(packets, 0, sizeof(packets))
        for header, frame in frames:
            if room <= 0:
                break
            view = PyMemoryView_GET_BUFFER(frame)
            segs[n].iov_base = view.buf
            segs[n].iov_len = view.len
            packets[n].first = n
            packets[n].nsegs = 1
            packets[n].len = <uint32_t>view.len
            room -= view.len
            if header is not None:
                header.store(&packets[n].hdr)
                if net_hdr_check(&packets[n].hdr, packets[n].len, ANY) != VIRTIO_NET_HDR_OK:  # it may have changed
                    memset(&packets[n].hdr, 0, sizeof(virtio_net_hdr))
            n += 1
        with nogil:
            taken = sink_deliver(sink, packets, n, segs, turn, &self._state.resume)
        if taken < n and turn.left > 0:
            add_count(&self._received.full, 1)
        for n in range(taken):
            add_count(&self._received.bytes, packets[n].len)
        add_count(&self._received.packets, taken)
        del self._waiting[:taken]
        return taken

    def wake(self):
        """Say that receive has frames to give again. Any thread may call."""
        self._bell.ring()

    def statistics(self):
        """Return send_packets, send_bytes, send_dropped, receive_packets, receive_bytes, receive_dropped, ..."""
        cdef dict counts = {}
        add_counts(counts, "send", &self._sent)
        add_counts(counts, "receive", &self._received)
        return counts

    def __repr__(self):
        return f"<CallPort: send {self._send!r}, receive {self._receive!r}>"
