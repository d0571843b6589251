"""The splice: joins two ports, without any device between them."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from virtio.core.atomic cimport virtio_store32
from virtio.core.counters cimport add_count, counted
from virtio.core.lock cimport queue_lock, queue_unlock, virtio_trylock
from virtio.event.notifier cimport virtio_bell
from virtio.event.worker cimport VIRTIO_WORK_CHAIN, virtio_turn, virtio_wait
from virtio.offload.net_hdr cimport VIRTIO_OFFLOAD_ALL, virtio_net_hdr
from virtio.ports.port cimport VIRTIO_BURST, VIRTIO_FRAME_MAX, port_flush, port_ring, turn_is_full, turn_resume
from virtio.ports.software_offload cimport execute_send, executor_figures, executor_free, executor_new

from virtio.core.process import watch


cdef enum:
    BURST = 64                 # VIRTIO_BURST: the size of the arrays
    # bytes that are read before they are sent: with less than a frame's length left there is no room. Small enough for
    # a second-level cache, and the room for the largest frame comes on top.
    ROOM = 0x40000


cdef inline port_splice *of_sink(virtio_sink *sink) noexcept nogil:
    return (<splice_sink *>sink).splice


cdef uint32_t send(port_splice *s, const virtio_packet *packets, uint32_t n, const iovec *segs,
                   virtio_turn *turn) noexcept nogil:
    """Send; return how many were taken."""
    cdef uint64_t size = 0
    cdef uint32_t i, taken
    taken = execute_send(s.executor, s.taker, s.queue, packets, n, segs, turn)
    for i in range(taken):
        size += packets[i].len
    turn.left -= <int64_t>taken * VIRTIO_WORK_CHAIN
    s.full = taken < n and turn_is_full(turn, taken, packets.done)
    add_count(&s.stalls, s.full)
    add_count(&s.frames, taken)
    add_count(&s.bytes, size)
    return taken


cdef uint32_t send_held(port_splice *s, virtio_turn *turn) noexcept nogil:
    """Send what was read; return how many were taken."""
    cdef uint32_t taken
    if s.at == s.count:
        return 0
    s.packets[s.at].done = s.resume
    turn.resume = 0
    taken = send(s, &s.packets[s.at], s.count - s.at, s.segs, turn)
    s.resume = turn_resume(turn, taken, s.resume)
    turn.resume = 0
    s.at += taken
    if s.at == s.count:
        s.at = s.count = s.used = 0
    return taken


# ---- the sink that the giver sees ----

cdef uint32_t splice_deliver(virtio_sink *sink, const virtio_packet *packets, uint32_t n, const iovec *segs,
                             virtio_turn *turn) noexcept nogil:
    cdef port_splice *s = of_sink(sink)
    send_held(s, turn)  # in order
    if s.count or n == 0:
        return 0
    return send(s, packets, n, segs, turn)


cdef uint32_t splice_reserve(virtio_sink *sink, iovec *to, uint32_t limit, virtio_turn *turn) noexcept nogil:
    cdef port_splice *s = of_sink(sink)
    if s.count == BURST or s.used > ROOM:
        return 0
    to.iov_base = s.room + s.used
    to.iov_len = VIRTIO_FRAME_MAX
    return 1


cdef void splice_commit(virtio_sink *sink, const virtio_net_hdr *hdr, uint32_t length) noexcept nogil:
    cdef port_splice *s = of_sink(sink)
    cdef virtio_packet *packet = &s.packets[s.count]
    packet.hdr = hdr[0]
    packet.first = s.count
    packet.nsegs = 1
    packet.len = length
    packet.done = 0
    s.segs[s.count].iov_base = s.room + s.used
    s.segs[s.count].iov_len = length
    s.used += (length + 63) & ~<uint32_t>63
    s.count += 1


cdef virtio_bell *splice_flush(virtio_sink *sink) noexcept nogil:
    """For givers that deliver of themselves (loopback): our own burst flushes itself."""
    cdef port_splice *s = of_sink(sink)
    # The giver's locks are held. A taker that has a bell to ring delivers of itself: Splice refuses two such ports,
    # unless both are loopbacks, which have nothing to give each other.
    port_ring(s.taker, s.queue, port_flush(s.taker, s.queue))
    return NULL


cdef bint splice_sink_arm(virtio_sink *sink, virtio_wait *wait) noexcept nogil:
    cdef port_splice *s = of_sink(sink)
    return s.taker.arm_send(s.taker, s.queue, wait)


cdef void splice_sink_disarm(virtio_sink *sink) noexcept nogil:
    cdef port_splice *s = of_sink(sink)
    if s.taker.disarm is not NULL:
        s.taker.disarm(s.taker, s.queue)


# ---- the task ----

cdef uint32_t splice_poll(virtio_task *task, virtio_turn *turn) noexcept nogil:
    cdef port_splice *s = <port_splice *>task
    cdef virtio_bell *bell = NULL
    cdef uint64_t before
    cdef uint32_t done = 0, resume
    if not virtio_trylock(&s.lock):
        return 0
    if task.active:
        before = s.frames
        resume = s.resume
        send_held(s, turn)
        if s.count == 0 and turn.left > 0:
            s.full = 0
            if not s.draining:
                done = s.giver.receive(s.giver, s.queue, &s.shown.sink, VIRTIO_BURST, turn)
                send_held(s, turn)
        bell = port_flush(s.taker, s.queue)
        if done == 0:
            done = <uint32_t>(s.frames - before)
        if done == 0:  # a part of a frame
            done = s.resume > resume
    queue_unlock(&s.lock)
    port_ring(s.taker, s.queue, bell)
    return done


cdef bint splice_arm(virtio_task *task, virtio_wait *wait) noexcept nogil:
    cdef port_splice *s = <port_splice *>task
    cdef bint work = False
    if not virtio_trylock(&s.lock):
        return True
    if task.active:
        # without room a frame that waits is no work: the giver is not asked to wake us for it
        if s.full or s.count:
            work = s.taker.arm_send(s.taker, s.queue, wait)
        elif not s.draining:
            work = s.giver.arm_receive(s.giver, s.queue, wait)
    queue_unlock(&s.lock)
    return work


cdef void splice_disarm(virtio_task *task) noexcept nogil:
    cdef port_splice *s = <port_splice *>task
    queue_lock(&s.lock)
    if task.active:
        if s.giver.disarm is not NULL:
            s.giver.disarm(s.giver, s.queue)
        if s.taker.disarm is not NULL:
            s.taker.disarm(s.taker, s.queue)
    queue_unlock(&s.lock)


cdef class PortSplice(Task):
    """What ``giver`` receives on a queue, ``taker`` is sent on its own of that index. A task for a Worker.

    What the taker cannot do (``Port.offloads``) is done here: checksums completed, frames cut. While it has no room,
    nothing more is asked of the giver. It is not active until resumed. Raises ValueError for a queue that one has not.
    """

    def __init__(self, Port giver not None, Port taker not None, uint32_t queue=0):
        if self.giver is not None:
            raise TypeError("splice is made already")
        for port in (giver, taker):
            if queue >= (<Port>port).c.queues:
                raise ValueError(f"queue {queue} out of range ({port!r} has {(<Port>port).c.queues})")
        self.c.room = <uint8_t *>malloc(ROOM + 64 + VIRTIO_FRAME_MAX)
        self.c.executor = executor_new()
        if self.c.room is NULL or self.c.executor is NULL:
            raise MemoryError()
        self.giver, self.taker = giver, taker
        self.c.giver, self.c.taker, self.c.queue = &giver.c, &taker.c, queue
        self.c.shown.splice = &self.c
        self._fill(&self.c.shown.sink)
        self.c.task.poll, self.c.task.arm, self.c.task.disarm = splice_poll, splice_arm, splice_disarm
        self.task, self.lock = &self.c.task, &self.c.lock
        watch(self)

    def _forked(self, int parent):
        """Let go of the lock that a thread of the parent has. See virtio.core.process."""
        virtio_store32(&self.c.lock, 0)

    cdef void _fill(self, virtio_sink *sink) noexcept:
        sink.lock = &self.c.lock
        sink.deliver, sink.reserve, sink.commit = splice_deliver, splice_reserve, splice_commit
        sink.flush, sink.arm, sink.disarm = splice_flush, splice_sink_arm, splice_sink_disarm
        sink.offloads = VIRTIO_OFFLOAD_ALL  # the executor does what the taker cannot
        sink.frame_max = VIRTIO_FRAME_MAX

    def __dealloc__(self):
        executor_free(self.c.executor)
        free(self.c.room)

    def connect(self):
        """Let a giver that delivers of itself (loopback) do so from now on."""
        self.giver.connect(self.c.queue, &self.c.shown.sink, self)
        self.connected = True

    def disconnect(self):
        """Take the sink from the giver: it is not touched once this returns."""
        if self.connected:
            self.connected = False
            self.giver.connect(self.c.queue, NULL, None)

    def drain(self):
        """Ask the giver for no more; return whether frames wait that were read of it, or a burst is under way."""
        cdef bint held
        if not virtio_trylock(&self.c.lock):
            return True
        self.c.draining = 1
        held = self.c.count != 0
        queue_unlock(&self.c.lock)
        return held

    def abandon(self):
        """Drop what was read and is not sent. For a task that is paused."""
        add_count(&self.c.dropped, self.c.count - self.c.at)
        self.c.at = self.c.count = self.c.used = self.c.resume = 0

    def statistics(self):
        """Return frames, bytes, stalls (of bursts), dropped by reason ("closed": by abandon), and executed.

        executed: the work on frames that the taker did not do.
        """
        return {
            "frames": counted(&self.c.frames), "bytes": counted(&self.c.bytes), "stalls": counted(&self.c.stalls),
            "dropped": {"closed": counted(&self.c.dropped)} if counted(&self.c.dropped) else {},
            "executed": executor_figures(self.c.executor),
        }
