"""Wires: from the queue that sends straight into the queue that receives."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from virtio.core.atomic cimport virtio_load32
from virtio.core.clock cimport now_us
from virtio.core.counters cimport add_count
from virtio.core.lock cimport queue_lock, queue_unlock
from virtio.event.worker cimport virtio_wait_us
from virtio.ports.port cimport turn_is_full


cdef extern from *:
    """
    #define virtio_wire_up(p) __atomic_fetch_add((p), 1, __ATOMIC_SEQ_CST)
    #define virtio_wire_down(p) __atomic_fetch_sub((p), 1, __ATOMIC_RELEASE)
    """
    uint32_t count_up "virtio_wire_up"(uint32_t *count) nogil
    uint32_t count_down "virtio_wire_down"(uint32_t *count) nogil


cdef enum:
    WAIT_MIN = 50     # us between two looks for room, at first;
    WAIT_MAX = 4000   # then as long as it has waited already, up to this


cdef uint32_t wire_send(wire *w, wire_sender *sender, const virtio_packet *packets, uint32_t n, const iovec *segs,
                        virtio_turn *turn) noexcept nogil:
    cdef virtio_sink *sink
    cdef bint full
    cdef uint64_t size = 0
    cdef uint32_t taken = 0
    cdef uint32_t i
    if sender.open is not NULL:
        w = sender.open
    else:
        queue_lock(&w.lock)
        if w.sink is NULL or virtio_load32(&w.down):
            add_count(&w.counts.dropped, n)
            queue_unlock(&w.lock)
            sender.since = 0
            return n
        sender.open = w
        queue_lock(w.sink.lock)
    sink = w.sink
    taken = sink.deliver(sink, packets, n, segs, turn)
    add_count(&w.counts.packets, taken)
    for i in range(taken):
        size += packets[i].len
    add_count(&w.counts.bytes, size)
    full = taken < n and turn_is_full(turn, taken, packets.done)
    if full:
        add_count(&w.counts.full, 1)
        if w.drop:
            add_count(&w.counts.dropped, n - taken)
            turn.resume = 0
            taken = n
    if taken == n or not full:
        sender.since = 0
    elif taken or sender.since == 0:
        sender.since = -1
    return taken


cdef virtio_bell *wire_flush(wire_sender *sender) noexcept nogil:
    cdef wire *w = sender.open
    cdef virtio_bell *bell
    if w is NULL:
        return NULL
    sender.open = NULL
    bell = w.sink.flush(w.sink)
    queue_unlock(w.sink.lock)
    if bell is not NULL:  # counted while nobody can take the sink away: whoever does then, sees that it is to be rung
        count_up(&sender.ringing)
    queue_unlock(&w.lock)
    return bell


cdef void wire_rang(wire_sender *sender) noexcept nogil:
    count_down(&sender.ringing)


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


cdef int keep(list owners, object owner, bint ringing) except -1:
    if not ringing:
        owners.clear()
    if owner is not None:
        owners.append(owner)
    return 0
