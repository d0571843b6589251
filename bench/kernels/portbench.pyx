"""A sink in plain memory, and calls of a port, for tests and benchmarks: what a device does to a port."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from virtio.core.atomic cimport virtio_load32, virtio_store32
from virtio.core.counters cimport add_count, counted
from virtio.core.iov cimport iov_read_all, iovec
from virtio.core.lock cimport queue_lock, queue_unlock, virtio_is_locked
from virtio.event.worker cimport virtio_turn, virtio_wait, virtio_wait_bell
from virtio.offload.net_hdr cimport NetHeader
from virtio.ports.port cimport VIRTIO_FRAME_MAX, Port, port_flush, port_ring, virtio_packet


cdef enum:
    WHOLE = 1 << 30  # units of work: a burst is never over before its end


# ---- the sink ----

cdef inline void check_lock(bench_sink *s) noexcept nogil:
    if not virtio_is_locked(&s.lock):
        add_count(&s.busy, 1)


cdef inline uint8_t *sink_slot(bench_sink *s, const virtio_net_hdr *hdr, uint32_t length) noexcept nogil:
    """The next frame's place, or NULL."""
    cdef bench_frame *frame
    add_count(&s.packets, 1)
    s.fresh += 1
    frame = &s.frames[(s.first + s.count) % s.size]
    frame.hdr = hdr[0]
    frame.len = length
    if s.keep:
        s.count += 1
    return frame.data


cdef uint32_t bench_deliver(virtio_sink *sink, const virtio_packet *packets, uint32_t n, const iovec *segs,
                            virtio_turn *turn) noexcept nogil:
    cdef bench_sink *s = <bench_sink *>sink
    cdef uint32_t i
    cdef uint8_t *to
    check_lock(s)
    for i in range(n):
        if s.count == s.size:
            return i
        to = sink_slot(s, &packets[i].hdr, packets[i].len)
        iov_read_all(to, segs + packets[i].first, packets[i].nsegs)
    return n


cdef uint32_t sink_reserve(virtio_sink *sink, iovec *to, uint32_t limit, virtio_turn *turn) noexcept nogil:
    cdef bench_sink *s = <bench_sink *>sink
    cdef uint32_t left = sink.frame_max
    cdef uint32_t n = 0
    cdef uint8_t *at = s.room
    check_lock(s)
    if s.count == s.size:
        return 0
    while left:
        if n == limit:
            return 0
        to[n].iov_base = at
        to[n].iov_len = s.piece if s.piece < left else left
        at += to[n].iov_len
        left -= <uint32_t>to[n].iov_len
        n += 1
    return n


cdef void sink_commit(virtio_sink *sink, const virtio_net_hdr *hdr, uint32_t length) noexcept nogil:
    cdef bench_sink *s = <bench_sink *>sink
    check_lock(s)
    memcpy(sink_slot(s, hdr, length), s.room, length if s.keep else 0)


cdef virtio_bell *sink_flush(virtio_sink *sink) noexcept nogil:
    cdef bench_sink *s = <bench_sink *>sink
    check_lock(s)
    add_count(&s.flushes, 1)
    if not s.fresh:
        return NULL
    s.fresh = 0
    return s.bell


cdef bint sink_arm(virtio_sink *sink, virtio_wait *wait) noexcept nogil:
    cdef bench_sink *s = <bench_sink *>sink
    check_lock(s)
    virtio_store32(&s.armed, 1)
    return virtio_wait_bell(wait, s.freed) or s.count < s.size


cdef void sink_disarm(virtio_sink *sink) noexcept nogil:
    virtio_store32(&(<bench_sink *>sink).armed, 0)  # without the lock


cdef class MemorySink:
    """A queue in plain memory that takes ``size`` frames of up to ``frame_max`` bytes, its room in pieces of ``piece``.

    ``keep=False`` counts frames and forgets them. ``offloads`` is what it says that it takes.
    """

    def __init__(self, *, size=64, frame_max=VIRTIO_FRAME_MAX, piece=4096, offloads=0, keep=True):
        cdef uint32_t i
        if self.c.frames is not NULL:
            raise TypeError("made already")
        self.c.sink.lock = &self.c.lock
        self.c.sink.deliver = bench_deliver
        self.c.sink.reserve = sink_reserve
        self.c.sink.commit = sink_commit
        self.c.sink.flush = sink_flush
        self.c.sink.arm = sink_arm
        self.c.sink.disarm = sink_disarm
        self.c.sink.offloads = offloads
        self.c.sink.frame_max = frame_max
        self.c.size = size
        self.c.piece = piece
        self.c.keep = keep
        self.bell, self.freed = Bell(), Bell()
        self.c.bell, self.c.freed = &self.bell.c, &self.freed.c
        self.c.room = <uint8_t *>malloc(VIRTIO_FRAME_MAX)
        self.c.frames = <bench_frame *>calloc(size, sizeof(bench_frame))
        for i in range(size):
            self.c.frames[i].data = <uint8_t *>malloc(VIRTIO_FRAME_MAX)

    def __dealloc__(self):
        cdef uint32_t i
        if self.c.frames is not NULL:
            for i in range(self.c.size):
                free(self.c.frames[i].data)
        free(self.c.frames)
        free(self.c.room)

    @property
    def offloads(self):
        return self.c.sink.offloads

    @offloads.setter
    def offloads(self, uint32_t offloads):
        self.c.sink.offloads = offloads

    @property
    def packets(self):
        """Frames that were ever taken."""
        return counted(&self.c.packets)

    @property
    def flushes(self):
        return counted(&self.c.flushes)

    @property
    def unlocked(self):
        """Calls that came without the lock held."""
        return counted(&self.c.busy)

    @property
    def armed(self):
        return virtio_load32(&self.c.armed) != 0

    def ring_function(self, function):
        """Ring a function in place of an eventfd."""
        self.bell = Bell(function)
        self.c.bell = &self.bell.c

    def lock(self):
        """Take the lock, as a receive task does."""
        with nogil:
            queue_lock(&self.c.lock)

    def unlock(self):
        queue_unlock(&self.c.lock)

    def take(self):
        """Return and forget what is there: a list of (NetHeader, bytes). Whoever waits for room is woken."""
        cdef NetHeader hdr
        cdef bench_frame *frame
        frames = []
        self.lock()
        while self.c.count:
            frame = &self.c.frames[self.c.first]
            hdr = NetHeader()
            hdr.load(&frame.hdr)
            frames.append((hdr, PyBytes_FromStringAndSize(<char *>frame.data, frame.len)))
            self.c.first = (self.c.first + 1) % self.c.size
            self.c.count -= 1
        self.unlock()
        if frames and self.armed:
            self.freed.ring()
        return frames


# ---- calls of a port ----

def connect(Port port not None, uint32_t queue, MemorySink sink):
    """Give the port a sink to deliver to, or None for none."""
    port.connect(queue, NULL if sink is None else &sink.c.sink, sink)


def send(Port port not None, frames, uint32_t queue=0):
    """Send frames, each (NetHeader or None, [piece of bytes, ...]), in one burst; return how many were taken."""
    cdef virtio_turn turn
    cdef virtio_packet *packets
    cdef iovec *segs
    cdef NetHeader hdr
    cdef uint32_t n = 0
    cdef uint32_t taken
    cdef uint32_t at = 0
    frames = [(hdr, [bytes(piece) for piece in pieces]) for hdr, pieces in frames]
    packets = <virtio_packet *>calloc(len(frames) + 1, sizeof(virtio_packet))
    segs = <iovec *>calloc(sum(len(pieces) for _, pieces in frames) + 1, sizeof(iovec))
    for header, pieces in frames:
        if header is not None:
            hdr = header
            hdr.store(&packets[n].hdr)
        packets[n].first = at
        packets[n].nsegs = <uint32_t>len(pieces)
        for piece in pieces:
            segs[at].iov_base = <char *>piece
            segs[at].iov_len = len(piece)
            packets[n].len += <uint32_t>len(piece)
            at += 1
        n += 1
    turn.left, turn.resume = WHOLE, 0
    with nogil:
        taken = port.c.send(&port.c, queue, packets, n, segs, &turn)
        port_ring(&port.c, queue, port_flush(&port.c, queue))
    free(packets)
    free(segs)
    return taken


def receive(Port port not None, MemorySink sink not None, uint32_t limit=64, uint32_t queue=0):
    """Receive a burst as a device's receive task does; return how many the port says it took."""
    cdef virtio_turn turn
    cdef uint32_t taken
    turn.left, turn.resume = WHOLE, 0
    with nogil:
        queue_lock(&sink.c.lock)
        taken = port.c.receive(&port.c, queue, &sink.c.sink, limit, &turn)
        sink.c.sink.flush(&sink.c.sink)
        queue_unlock(&sink.c.lock)
    return taken


def arm(Port port not None, str direction, uint32_t queue=0):
    """Arm one direction; return (whether it is ready now, [(fd, events), ...], microseconds or -1, full)."""
    cdef virtio_wait wait
    cdef bint ready
    cdef bint sending = direction == "send"
    memset(&wait, 0, sizeof(wait))
    wait.timeout_us = -1
    with nogil:
        if sending:
            ready = port.c.arm_send(&port.c, queue, &wait)
        else:
            ready = port.c.arm_receive(&port.c, queue, &wait)
    return ready, [(wait.fds[i].fd, wait.fds[i].events) for i in range(wait.nfds)], wait.timeout_us, wait.full


def disarm(Port port not None, uint32_t queue=0):
    """Disarm both directions, as a worker does that is awake again."""
    if port.c.disarm is not NULL:
        with nogil:
            port.c.disarm(&port.c, queue)
