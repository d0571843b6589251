# The driver end of a split virtqueue (VIRTIO 1.4, 2.7): what a guest driver does. Verbs as in FreeBSD's virtqueue(9).
#
# Everything the driver needs to know later is in q.state, its private shadow: nothing that the device could have
# written is ever read back and believed. Callers hold q.lock.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, UINT32_MAX
from libc.stddef cimport size_t

from virtio._notify cimport *
from virtio._queue cimport *


cdef inline void split_driver_start(virtio_driver_queue *q) noexcept nogil:
    """Put the private state as a fresh queue has it. The ring itself is the caller's to zero."""
    cdef uint32_t i
    for i in range(q.size):
        q.state[i].ndesc = 0
        q.state[i].next = <uint16_t>(i + 1)
    # in order, descriptors are taken in ring order for ever (2.7.9); otherwise the list ends here
    q.state[q.size - 1].next = 0 if q.flags & VIRTIO_Q_IN_ORDER else VIRTIO_CHAIN_END
    q.nfree = q.size
    q.outstanding = q.free_head = q.oldest = 0
    q.next_avail = q.next_used = q.used_seen = 0
    q.used_event = q.avail_flags = q.pending = 0
    q.batch = 0
    q.intr_enabled = 1


cdef inline void split_put_desc(virtio_desc *desc, uint16_t i, uint64_t addr, uint32_t length, uint64_t flags, uint64_t next) noexcept nogil:
    cdef uint64_t *words = <uint64_t *>(desc + i)
    virtio_store64(words, addr)
    virtio_store64(words + 1, length | (flags << 32) | (next << 48))


cdef inline int sg_check(const virtio_sg *sg, uint32_t readable, uint32_t writable, uint32_t *bytes_writable) noexcept nogil:
    """Sum up a chain that is about to be enqueued; refuse what VIRTIO 1.4, 2.7.5 forbids."""
    cdef uint64_t total = 0
    cdef uint64_t write = 0
    cdef uint32_t i
    for i in range(readable + writable):
        if sg[i].len == 0:
            return VIRTIO_ENQ_EMPTY
        total += sg[i].len
        if i >= readable:
            write += sg[i].len
    if total > UINT32_MAX:
        return VIRTIO_ENQ_BYTES
    bytes_writable[0] = <uint32_t>write
    return VIRTIO_ENQ_OK


cdef inline int split_enqueue_chain(virtio_driver_queue *q, const virtio_sg *sg, virtio_request *req) noexcept nogil:
    """Place a chain of several pieces: in one indirect table if there is one that takes it, else descriptor by descriptor."""
    cdef uint32_t pieces = <uint32_t>req.readable + req.writable
    cdef uint16_t head = q.free_head
    cdef uint16_t i = head
    cdef uint16_t last = head
    cdef uint32_t writable = 0
    cdef uint32_t k
    cdef virtio_desc *table
    cdef uint64_t offset
    cdef int why = sg_check(sg, req.readable, req.writable, &writable)
    if pieces == 0:
        return VIRTIO_ENQ_EMPTY
    if why != VIRTIO_ENQ_OK:
        return why
    if q.nfree == 0:
        return VIRTIO_ENQ_FULL
    if pieces >= 2 and pieces <= q.max_indirect:
        offset = <uint64_t>head * q.max_indirect * 16
        table = <virtio_desc *>(q.indirect + offset)
        for k in range(pieces):
            split_put_desc(table, k, sg[k].gpa, sg[k].len,
                           (VIRTIO_DESC_F_WRITE if k >= req.readable else 0) | (VIRTIO_DESC_F_NEXT if k + 1 < pieces else 0),
                           k + 1 if k + 1 < pieces else 0)
        split_put_desc(q.desc, head, q.indirect_gpa + offset, 16 * pieces, VIRTIO_DESC_F_INDIRECT, 0)
        q.free_head = q.state[head].next
        q.nfree -= 1
        q.state[head].ndesc = 1
    else:
        if pieces > q.nfree:
            return VIRTIO_ENQ_TOO_BIG
        for k in range(pieces):
            last = i
            i = q.state[i].next
            split_put_desc(q.desc, last, sg[k].gpa, sg[k].len,
                           (VIRTIO_DESC_F_WRITE if k >= req.readable else 0) | (VIRTIO_DESC_F_NEXT if k + 1 < pieces else 0),
                           i if k + 1 < pieces else 0)
        q.free_head = i
        q.nfree -= pieces
        q.state[head].ndesc = pieces
    q.state[head].cookie = req.cookie
    q.state[head].writable = writable
    req.head = head
    return VIRTIO_ENQ_OK


cdef inline uint32_t split_enqueue_burst(virtio_driver_queue *q, const virtio_sg *sg, virtio_request *req, uint32_t n, int *why) noexcept nogil:
    """Make up to n chains available; return how many, and in why the reason for stopping early.

    req[i] takes its pieces from sg in turn. avail.idx is published once, after all of them.
    """
    cdef virtio_desc *desc = q.desc
    cdef virtio_desc_state *state = q.state
    cdef uint16_t *ring = q.avail.ring if q.avail is not NULL else NULL
    cdef uint16_t mask = q.size - 1
    cdef uint16_t idx = q.next_avail
    cdef uint16_t head = q.free_head
    cdef uint16_t nfree = q.nfree
    cdef uint32_t i
    cdef uint32_t done = n
    why[0] = VIRTIO_ENQ_OK
    if virtio_unlikely(q.fault.code != VIRTIO_FAULT_NONE):
        why[0] = VIRTIO_ENQ_BROKEN
        return 0
    for i in range(n):
        if virtio_likely(<uint32_t>req[i].readable + req[i].writable == 1 and sg.len != 0 and nfree != 0):
            split_put_desc(desc, head, sg.gpa, sg.len, req[i].writable << 1, 0)  # F_WRITE is bit 1
            state[head].cookie = req[i].cookie
            state[head].writable = sg.len if req[i].writable else 0
            state[head].ndesc = 1
            req[i].head = head
            virtio_store16(ring + (idx & mask), head)
            head = state[head].next
            nfree -= 1
        else:
            q.free_head = head
            q.nfree = nfree
            why[0] = split_enqueue_chain(q, sg, &req[i])
            if why[0] != VIRTIO_ENQ_OK:
                done = i
                break
            virtio_store16(ring + (idx & mask), <uint16_t>req[i].head)
            head = q.free_head
            nfree = q.nfree
        idx += 1
        sg += <uint32_t>req[i].readable + req[i].writable
    q.free_head = head
    q.nfree = nfree
    if done:
        q.next_avail = idx
        q.outstanding += done
        q.pending = pending_add(q.pending, done)
        q.chains += done
        # release: descriptors and ring entries are visible before the index that announces them (2.7.13.3)
        virtio_store16_release(&q.avail.idx, idx)
    return done


cdef inline void split_free_chain(virtio_driver_queue *q, uint16_t head) noexcept nogil:
    """Give the descriptors of a chain back to the free list, whose order the last in, first out keeps warm."""
    cdef virtio_desc_state *state = q.state
    cdef uint16_t last = head
    cdef uint16_t k
    q.nfree += state[head].ndesc
    for k in range(state[head].ndesc - 1):
        last = state[last].next
    state[head].ndesc = 0
    state[last].next = q.free_head
    q.free_head = head


cdef inline bint driver_check_used(virtio_driver_queue *q, uint32_t head, uint32_t *length) noexcept nogil:
    """Check a used id and length against what was given out; latch the fault if they cannot be."""
    if virtio_unlikely(head >= q.size):
        latch(&q.fault, VIRTIO_FAULT_USED_RANGE, head, head, q.size)
        return 0
    if virtio_unlikely(q.state[head].ndesc == 0):
        latch(&q.fault, VIRTIO_FAULT_USED_UNKNOWN, head, head, q.size)
        return 0
    if virtio_unlikely(length[0] > q.state[head].writable):
        if not q.flags & VIRTIO_Q_CLAMP_USED_LEN:
            latch(&q.fault, VIRTIO_FAULT_USED_LEN, head, length[0], q.state[head].writable)
            return 0
        length[0] = q.state[head].writable
        q.clamped += 1
    return 1


cdef inline uint16_t split_refresh_used(virtio_driver_queue *q) noexcept nogil:
    """Read used.idx; return the chains that wait, or latch a fault when it claims more than are outstanding."""
    # acquire: the used entries are read after the index that announces them (2.7.14)
    cdef uint16_t idx = virtio_load16_acquire(&q.used.idx)
    cdef uint16_t ready = <uint16_t>(idx - q.next_used)
    if virtio_unlikely(ready > q.outstanding):
        latch(&q.fault, VIRTIO_FAULT_USED_JUMP, UINT32_MAX, ready, q.outstanding)
        return 0
    q.used_seen = idx
    return ready


cdef inline uint32_t split_dequeue_burst(virtio_driver_queue *q, virtio_completion *out, uint32_t limit) noexcept nogil:
    """Take back up to limit chains that the device has used; return how many."""
    cdef virtio_desc_state *state = q.state
    cdef uint8_t *ring
    cdef uint16_t mask = q.size - 1
    cdef uint16_t idx = q.next_used
    cdef uint16_t free_head
    cdef uint16_t nfree
    cdef uint32_t ready
    cdef uint32_t n = 0
    cdef uint64_t elem
    cdef uint32_t head
    cdef uint32_t length
    if virtio_unlikely(q.fault.code != VIRTIO_FAULT_NONE):
        return 0
    ready = <uint16_t>(q.used_seen - idx)
    if ready < limit:
        ready = split_refresh_used(q)
    if ready > limit:
        ready = limit
    if ready == 0:
        return 0
    if q.flags & VIRTIO_Q_IN_ORDER:
        return split_dequeue_in_order(q, out, ready)
    ring = <uint8_t *>q.used.ring
    free_head = q.free_head
    nfree = q.nfree
    while n < ready:
        elem = virtio_fetch64(ring + 8 * (idx & mask))
        head = <uint32_t>elem
        length = <uint32_t>(elem >> 32)
        if not driver_check_used(q, head, &length):
            break
        out[n].cookie = state[head].cookie
        out[n].len = length
        out[n].head = head
        if virtio_likely(state[head].ndesc == 1):
            state[head].ndesc = 0
            state[head].next = free_head
            free_head = <uint16_t>head
            nfree += 1
        else:
            q.free_head = free_head
            q.nfree = nfree
            split_free_chain(q, <uint16_t>head)
            free_head = q.free_head
            nfree = q.nfree
        idx += 1
        n += 1
    q.free_head = free_head
    q.nfree = nfree
    q.next_used = idx
    q.outstanding -= n
    q.completions += n
    return n


cdef inline uint32_t split_dequeue_in_order(virtio_driver_queue *q, virtio_completion *out, uint32_t ready) noexcept nogil:
    """As split_dequeue_burst, when the device uses chains in order: one entry may stand for many (2.7.9).

    The entry at the first position of a batch names the last chain of it; those before it were used completely.
    """
    cdef virtio_desc_state *state = q.state
    cdef uint16_t mask = q.size - 1
    cdef uint32_t n = 0
    cdef uint64_t elem
    cdef uint32_t head
    cdef uint32_t length
    while n < ready:
        if not q.batch:
            elem = virtio_fetch64(<uint8_t *>q.used.ring + 8 * (q.next_used & mask))
            length = <uint32_t>(elem >> 32)
            if not driver_check_used(q, <uint32_t>elem, &length):
                break
            q.batch_id = <uint16_t>elem
            q.batch_len = length
            q.batch = 1
        head = q.oldest
        length = state[head].writable
        if head == q.batch_id:
            length = q.batch_len
            q.batch = 0
        out[n].cookie = state[head].cookie
        out[n].len = length
        out[n].head = head
        q.oldest = <uint16_t>(head + state[head].ndesc) & mask
        q.nfree += state[head].ndesc
        state[head].ndesc = 0
        q.next_used += 1
        n += 1
    q.outstanding -= n
    q.completions += n
    return n


cdef inline uint32_t split_nused(virtio_driver_queue *q) noexcept nogil:
    """Return how many chains the device has used and we have not taken back."""
    if q.fault.code != VIRTIO_FAULT_NONE:
        return 0
    return split_refresh_used(q)


cdef inline bint split_notify(virtio_driver_queue *q) noexcept nogil:
    """Decide whether the device must be kicked for what was enqueued since the last decision."""
    cdef uint16_t pending = q.pending
    q.pending = 0
    if notify_quiet(&q.notify, q.next_avail, pending, q.fault.code != VIRTIO_FAULT_NONE):
        return 0
    virtio_fence()  # avail.idx before avail_event or used.flags
    if q.flags & VIRTIO_Q_EVENT_IDX:
        return notify_by_event(&q.notify, virtio_load16(<uint16_t *>(q.used.ring + q.size)))
    return notify_by_flag(&q.notify, virtio_load16(&q.used.flags))


cdef inline bint split_enable_intr(virtio_driver_queue *q, uint16_t ndesc) noexcept nogil:
    """Ask for an interrupt after ndesc more completions than the first; say whether more than ndesc wait already."""
    if q.fault.code != VIRTIO_FAULT_NONE:
        return 0
    if q.flags & VIRTIO_Q_EVENT_IDX:
        q.used_event = <uint16_t>(q.next_used + ndesc)
        virtio_store16(q.avail.ring + q.size, q.used_event)
    elif q.avail_flags:
        q.avail_flags = 0
        virtio_store16(&q.avail.flags, 0)
    q.intr_enabled = 1
    virtio_fence()  # used_event or avail.flags before used.idx: the mirror of the device's decision
    return split_nused(q) > ndesc


cdef inline void split_disable_intr(virtio_driver_queue *q) noexcept nogil:
    """Ask for no interrupts. With EVENT_IDX that is a distant event: one may still come each 2^16 chains."""
    q.intr_enabled = 0
    if q.fault.code != VIRTIO_FAULT_NONE:
        return
    if q.flags & VIRTIO_Q_EVENT_IDX:
        q.used_event = <uint16_t>(q.next_used - q.size - 1)
        virtio_store16(q.avail.ring + q.size, q.used_event)
    elif not q.avail_flags:
        q.avail_flags = VIRTIO_AVAIL_F_NO_INTERRUPT
        virtio_store16(&q.avail.flags, q.avail_flags)
