"""Wires: from the queue that sends straight into the queue that receives."""

from virtio._bell cimport virtio_bell_ring
from virtio._queue cimport virtio_load32
from virtio._ring cimport queue_lock, queue_unlock, sched_yield


cdef uint32_t wire_send(wire *w, const virtio_packet *packets, uint32_t n, const iovec *segs) noexcept nogil:
    cdef virtio_sink *sink
    cdef virtio_bell *bell = NULL
    cdef uint32_t taken = 0
    cdef uint32_t i
    queue_lock(&w.lock)
    sink = w.sink
    if sink is NULL or virtio_load32(&w.down):
        w.counts.dropped += n
        queue_unlock(&w.lock)
        return n
    queue_lock(sink.lock)
    taken = sink.deliver(sink, packets, n, segs)
    bell = sink.flush(sink)  # also if none was taken: of one that is cut, segments may be in
    queue_unlock(sink.lock)
    w.counts.packets += taken
    for i in range(taken):
        w.counts.bytes += packets[i].len
    if taken < n:
        w.counts.full += 1
        if w.drop:
            w.counts.dropped += n - taken
            taken = n
    if bell is not NULL:  # while nobody can take it away; whoever waits for this lock does so without the GIL
        virtio_bell_ring(bell)
    queue_unlock(&w.lock)
    return taken


cdef bint wire_arm(wire *w, wire_wait *sleeper, virtio_wait *wait) noexcept nogil:
    cdef virtio_sink *sink
    cdef uint32_t nbells = wait.nbells
    cdef bint room = True
    queue_lock(&w.lock)
    sink = w.sink
    if sink is not NULL and not w.drop and not virtio_load32(&w.down):
        queue_lock(sink.lock)
        room = sink.arm(sink, wait)
        queue_unlock(sink.lock)
        if wait.nbells > nbells:
            w.bell = wait.bells[nbells]
        wait.full = 1  # a ring wakes one of those who sleep on a bell: we may not be the only one
        w.sleepers += 1
        w.thread = pthread_self()
        sleeper.on = w
        sleeper.thread = pthread_self()
    queue_unlock(&w.lock)
    return room


cdef void wire_disarm(wire_wait *sleeper) noexcept nogil:
    cdef wire *w = sleeper.on
    if w is NULL or sleeper.thread != pthread_self():
        return
    sleeper.on = NULL
    queue_lock(&w.lock)
    w.sleepers -= 1
    if w.sleepers == 0:
        w.bell = NULL
        if w.sink is not NULL:
            queue_lock(w.sink.lock)
            w.sink.disarm(w.sink)
            queue_unlock(w.sink.lock)
    queue_unlock(&w.lock)


cdef void wire_connect(wire *w, virtio_sink *sink) noexcept nogil:
    queue_lock(&w.lock)
    w.sink = NULL
    while w.sleepers > 1 or (w.sleepers and w.thread != pthread_self()):
        # their workers hold the bell until they are awake; what they find then is a wire with nobody there
        if w.bell is not NULL:
            virtio_bell_ring(w.bell)
        queue_unlock(&w.lock)
        sched_yield()
        queue_lock(&w.lock)
    w.sink = sink
    queue_unlock(&w.lock)
