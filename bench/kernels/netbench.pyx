"""Exercisers of the network driver: loops without the GIL, for benchmarks and demonstrations."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from virtio.core.atomic cimport virtio_relax
from virtio.core.clock cimport thread_ns
from virtio.core.iov cimport iovec
from virtio.core.lock cimport queue_unlock, virtio_trylock
from virtio.event.notifier cimport virtio_bell, virtio_bell_ring
from virtio.event.worker cimport VIRTIO_WORK_TURN, Task, virtio_task, virtio_turn
from virtio.ports.port cimport VIRTIO_BURST, virtio_packet
from virtio.vtnet.rxq cimport VtnetReceive, rx_done, rx_post, rx_take, vtnet_rx
from virtio.vtnet.txq cimport VtnetTransmit, vtnet_tx


cdef enum:
    TASKS_MAX = 8
    WHOLE = 1 << 30  # units of work: a burst is never over before its end
    IDLE_MAX = 1 << 24  # rounds in which nothing moves: then something is stuck


cdef class Source:
    """Frames of ``length`` bytes that a transmit queue is given, ``burst`` at a time. The last 8 bytes count them."""

    cdef virtio_packet packets[64]
    cdef iovec segs[64]
    cdef uint8_t *bytes
    cdef uint32_t burst
    cdef readonly uint64_t sent

    def __init__(self, uint32_t length, uint32_t burst=32):
        cdef uint32_t i
        if not 1 <= burst <= VIRTIO_BURST:
            raise ValueError(f"burst {burst} out of range (1 to {VIRTIO_BURST})")
        if length < 60:
            raise ValueError(f"length {length} is under 60")
        self.bytes = <uint8_t *>calloc(burst, length)
        if self.bytes is NULL:
            raise MemoryError()
        self.burst = burst
        memset(self.packets, 0, sizeof(self.packets))
        for i in range(burst):
            self.segs[i].iov_base = self.bytes + i * length
            self.segs[i].iov_len = length
            self.packets[i].first = i
            self.packets[i].nsegs = 1
            self.packets[i].len = length
            self.bytes[i * length] = 2  # locally administered

    def __dealloc__(self):
        free(self.bytes)


cdef inline uint32_t give(vtnet_tx *tx, Source source) noexcept nogil:
    """Send one burst; return how many frames were taken."""
    cdef virtio_turn turn
    cdef virtio_bell *bell
    cdef uint32_t n
    if not virtio_trylock(tx.sink.lock):
        return 0
    turn.left, turn.resume = WHOLE, 0
    n = tx.sink.deliver(&tx.sink, source.packets, source.burst, source.segs, &turn)
    bell = tx.sink.flush(&tx.sink)
    queue_unlock(tx.sink.lock)
    if bell is not NULL:
        virtio_bell_ring(bell)
    source.sent += n
    return n


cdef inline uint32_t take(vtnet_rx *rx, uint32_t burst) noexcept nogil:
    """Receive one burst, and forget it; return how many frames there were."""
    cdef virtio_bell *bell
    cdef uint32_t n
    if not virtio_trylock(&rx.q.lock):
        return 0
    n = rx_take(rx, burst)
    rx_done(rx, n)
    bell = rx_post(rx)
    queue_unlock(&rx.q.lock)
    if bell is not NULL:
        virtio_bell_ring(bell)
    return n


def through(VtnetTransmit transmit, VtnetReceive receive, tasks, uint32_t length, long count, *, uint32_t burst=32):
    """Run frames through a device on this thread, with its tasks; return ns of its CPU a packet, and how many moved.

    ``transmit`` sends ``count`` frames of ``length`` bytes, ``receive`` takes what comes; each may be None: then only
    the other is worked. ``tasks`` are run in turn. Ends when all were sent, and, if there is ``receive``, as many came.
    Raises RuntimeError when nothing moves any more.
    """
    cdef Source source = Source(length, burst)
    cdef virtio_task *run[TASKS_MAX]
    cdef uint32_t ntasks = 0
    cdef vtnet_tx *tx = NULL
    cdef vtnet_rx *rx = NULL
    cdef uint64_t want = <uint64_t>count
    cdef uint64_t got = 0
    cdef uint32_t idle = 0
    cdef virtio_turn turn
    cdef uint32_t moved, i
    cdef double start
    if transmit is not None:
        tx = &transmit.c
    if receive is not None:
        rx = &receive.c
    for task in tasks:
        if ntasks == TASKS_MAX:
            raise ValueError(f"more than {TASKS_MAX} tasks")
        run[ntasks] = (<Task?>task).task
        ntasks += 1
    with nogil:
        start = thread_ns()
        while idle < IDLE_MAX and ((tx is not NULL and source.sent < want) or (rx is not NULL and got < want)):
            moved = 0
            if tx is not NULL and source.sent < want:
                moved = give(tx, source)
            for i in range(ntasks):
                turn.left = VIRTIO_WORK_TURN
                moved += run[i].poll(run[i], &turn)
            if rx is not NULL:
                i = take(rx, burst)
                got += i
                moved += i
            idle = 0 if moved else idle + 1
            if not ntasks and not moved:
                virtio_relax()
        start = thread_ns() - start
    if idle == IDLE_MAX:
        raise RuntimeError(f"nothing moves after {source.sent} frames sent and {got} received")
    return start / (source.sent if tx is not NULL else got), source.sent, got
