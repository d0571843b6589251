"""Wires: from the queue that sends straight into the queue that receives."""

from libc.stdint cimport uint64_t

from virtio._bell cimport virtio_bell, virtio_bell_ring
from virtio._port cimport virtio_wait_us
from virtio._port_counts cimport add_count
from virtio._queue cimport virtio_load32
from virtio._ring cimport queue_lock, queue_unlock


cdef extern from "time.h" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    enum:
        CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *now)


cdef enum:
    WAIT_MIN = 50     # us between two looks for room, at first;
    WAIT_MAX = 4000   # then as long as it has waited already, up to this


cdef inline int64_t now_us() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000 + now.tv_nsec // 1000


cdef uint32_t wire_send(wire *w, wire_sender *sender, const virtio_packet *packets, uint32_t n,
                        const iovec *segs) noexcept nogil:
    cdef virtio_sink *sink
    cdef virtio_bell *bell = NULL
    cdef uint64_t size = 0
    cdef uint32_t taken = 0
    cdef uint32_t i
    queue_lock(&w.lock)
    sink = w.sink
    if sink is NULL or virtio_load32(&w.down):
        add_count(&w.counts.dropped, n)
        queue_unlock(&w.lock)
        sender.since = 0
        return n
    queue_lock(sink.lock)
    taken = sink.deliver(sink, packets, n, segs)
    bell = sink.flush(sink)  # also if none was taken: of one that is cut, segments may be in
    queue_unlock(sink.lock)
    add_count(&w.counts.packets, taken)
    for i in range(taken):
        size += packets[i].len
    add_count(&w.counts.bytes, size)
    if taken < n:
        add_count(&w.counts.full, 1)
        if w.drop:
            add_count(&w.counts.dropped, n - taken)
            taken = n
    if bell is not NULL:  # while nobody can take it away; whoever waits for this lock does so without the GIL
        virtio_bell_ring(bell)
    queue_unlock(&w.lock)
    if taken == n:
        sender.since = 0
    elif taken or sender.since == 0:
        sender.since = -1
    return taken


cdef bint wire_arm(const wire *w, wire_sender *sender, virtio_wait *wait) noexcept nogil:
    cdef int64_t now, waited
    if sender.since == 0 or virtio_load32(&w.down):
        return True
    now = now_us()
    if sender.since < 0:
        sender.since = now
    waited = now - sender.since
    virtio_wait_us(wait, WAIT_MIN if waited < WAIT_MIN else waited if waited < WAIT_MAX else WAIT_MAX)
    return False


cdef void wire_connect(wire *w, virtio_sink *sink) noexcept nogil:
    queue_lock(&w.lock)
    w.sink = sink
    queue_unlock(&w.lock)
