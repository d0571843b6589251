# The driver end of a split virtqueue (VIRTIO 1.4, 2.7): what a guest driver does. Verbs as in FreeBSD's virtqueue(9).
#
# Everything the driver needs to know later is in q.state, its private shadow: nothing that the device could have
# written is ever read back and believed. Callers hold q.lock.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, UINT32_MAX
from libc.stddef cimport size_t

from virtio.core.atomic cimport (
    virtio_fence, virtio_fetch64, virtio_likely, virtio_load16, virtio_load16_acquire, virtio_opaque, virtio_put64,
    virtio_store16, virtio_store16_release, virtio_unlikely,
)
from virtio.core.counters cimport add_count
from virtio.virtqueue.chain_build cimport build_split, split_put_desc
from virtio.virtqueue.driver_common cimport driver_check_used, driver_start_shadow
from virtio.virtqueue.notify cimport notify_by_event, notify_by_flag, notify_quiet
from virtio.virtqueue.structs cimport (
    VIRTIO_AVAIL_F_NO_INTERRUPT, VIRTIO_CHAIN_END, VIRTIO_ENQ_BROKEN, VIRTIO_ENQ_FULL, VIRTIO_ENQ_OK, VIRTIO_FAULT_NONE,
    VIRTIO_FAULT_USED_JUMP, VIRTIO_Q_EVENT_IDX, VIRTIO_Q_IN_ORDER, latch, state_ndesc, state_writable,
    virtio_completion, virtio_desc, virtio_desc_state, virtio_driver_queue, virtio_request, virtio_sg,
)


cdef inline void split_driver_start(virtio_driver_queue *q) noexcept nogil:
    """Put the private state as a fresh queue has it. The ring itself is the caller's to zero."""
    # in order, the driver takes descriptors in ring order, lap after lap (2.7.9); otherwise the list ends here
    driver_start_shadow(q, 0 if q.flags & VIRTIO_Q_IN_ORDER else VIRTIO_CHAIN_END)
    q.used_seen = q.used_event = q.avail_flags = 0


cdef inline uint32_t split_enqueue_burst(virtio_driver_queue *q, const virtio_sg *sg, virtio_request *req, uint32_t n,
                                         int *why) noexcept nogil:
    """Make up to n chains available; return how many, and in why the reason for stopping early.

    req[i] takes its pieces from sg in turn. avail.idx is published once, after all of them.
    """
    cdef virtio_desc *desc = q.desc
    cdef virtio_desc_state *state = q.state
    cdef const uint16_t *links = q.links
    cdef uint16_t *ring
    cdef uint32_t mask = <uint32_t>q.size - 1
    cdef uint32_t idx = q.next_avail
    cdef uint32_t head = q.free_head
    cdef uint32_t spare = q.nfree  # descriptors left if every chain of this burst takes one
    cdef uint32_t readable
    cdef uint32_t writable
    cdef uint32_t length
    cdef uint32_t i = 0  # chains taken
    cdef int stop
    why[0] = VIRTIO_ENQ_OK
    if virtio_unlikely(q.fault.code != VIRTIO_FAULT_NONE):
        why[0] = VIRTIO_ENQ_BROKEN
        return 0
    if n > spare:
        n = spare
        why[0] = VIRTIO_ENQ_FULL
    spare -= n
    ring = q.avail.ring
    while i < n:
        readable = req[i].readable
        writable = req[i].writable
        if virtio_likely(readable + writable == 1 and sg.len != 0):
            length = sg.len
            split_put_desc(desc, head, sg.gpa, length, <uint64_t>writable << 1, 0)  # F_WRITE is bit 1
            sg += 1
            state[head].cookie = req[i].cookie
            state[head].word = <uint64_t>1 << 32 | (length & (0 - writable))
            req[i].head = head
            virtio_store16(ring + (idx & mask), <uint16_t>head)
            head = links[head]
        else:
            q.free_head = <uint16_t>head
            q.nfree = <uint16_t>(spare + n - i)
            stop = build_split(q, sg, &req[i])
            if stop != VIRTIO_ENQ_OK:
                why[0] = stop
                spare = q.nfree
                break
            virtio_store16(ring + (idx & mask), <uint16_t>req[i].head)
            head = q.free_head
            if q.nfree < n - i - 1:  # it took descriptors that were counted on for later chains
                n = i + 1 + q.nfree
                why[0] = VIRTIO_ENQ_FULL
            spare = q.nfree - (n - i - 1)
            sg += readable + writable
        idx += 1
        i += 1
    q.free_head = <uint16_t>head
    q.nfree = <uint16_t>spare
    if i:
        q.next_avail = <uint16_t>idx
        q.pending += i
        add_count(&q.chains, i)
        # release: descriptors and ring entries are visible before the index that announces them (2.7.13.3)
        virtio_store16_release(&q.avail.idx, <uint16_t>idx)
    return i


cdef inline uint32_t split_free_chain(virtio_driver_queue *q, uint32_t head, uint32_t free_head) noexcept nogil:
    """Link the descriptors of a chain before free_head in the free list; return the list's new head.

    Last in, first out: what is used next is still in the cache.
    """
    cdef uint32_t last = head
    cdef uint32_t _k
    for _k in range(<uint32_t>state_ndesc(q.state[head].word) - 1):
        last = q.links[last]
    q.state[head].word = 0
    q.links[last] = <uint16_t>free_head
    return head


cdef inline uint16_t split_refresh_used(virtio_driver_queue *q) noexcept nogil:
    """Read used.idx; return the chains that wait, or latch a fault when it claims more than are outstanding."""
    # acquire: the used entries are read after the index that announces them (2.7.14)
    cdef uint16_t idx = virtio_load16_acquire(&q.used.idx)
    cdef uint16_t ready = <uint16_t>(idx - q.next_used)
    cdef uint16_t outstanding = <uint16_t>(q.next_avail - q.next_used)
    if virtio_unlikely(ready > outstanding):
        latch(&q.fault, VIRTIO_FAULT_USED_JUMP, UINT32_MAX, ready, outstanding)
        return 0
    q.used_seen = idx
    return ready


cdef inline uint32_t split_dequeue_burst(virtio_driver_queue *q, virtio_completion *out, uint32_t limit) noexcept nogil:
    """Take back up to limit chains that the device has used; return how many."""
    cdef virtio_desc_state *state = q.state
    cdef uint16_t *links = q.links
    cdef const uint8_t *ring
    cdef uint32_t mask = <uint32_t>q.size - 1
    cdef uint32_t idx = q.next_used
    cdef uint32_t free_head
    cdef uint32_t ready
    cdef uint32_t more = 0  # descriptors freed beyond one for each chain
    cdef uint32_t end
    cdef uint64_t elem
    cdef uint64_t word
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
    ring = <const uint8_t *>q.used.ring
    free_head = q.free_head
    end = idx + ready
    while idx != end:
        elem = virtio_fetch64(ring + 8 * <uint64_t>(idx & mask))
        head = <uint32_t>elem
        word = state[head].word if head <= mask else 0
        # the usual case in two tests: one descriptor, and a length that fits; everything else is looked at closely
        if virtio_likely(word >> 32 == 1 and elem >> 32 <= <uint32_t>word):
            out.cookie = state[head].cookie
            virtio_put64(&out.head, elem)
            state[head].word = 0
            links[head] = <uint16_t>free_head
            free_head = head
        else:
            length = <uint32_t>(elem >> 32)
            if not driver_check_used(q, head, &length):
                break
            out.cookie = state[head].cookie
            out.head = head
            out.len = length
            more += state_ndesc(word) - 1
            free_head = split_free_chain(q, head, free_head)
        out += 1
        idx += 1
    ready = <uint16_t>(idx - q.next_used)
    q.free_head = <uint16_t>free_head
    q.nfree += ready + more
    q.next_used = <uint16_t>idx
    add_count(&q.completions, ready)
    return ready


cdef inline uint32_t split_dequeue_in_order(virtio_driver_queue *q, virtio_completion *out,
                                            uint32_t ready) noexcept nogil:
    """As split_dequeue_burst, when the device uses chains in order: one entry may stand for many (2.7.9).

    The entry at the first position of a batch names the last chain of it; those before it were used completely.
    """
    cdef virtio_desc_state *state = q.state
    cdef uint32_t mask = <uint32_t>q.size - 1
    cdef uint32_t idx = q.next_used
    cdef uint32_t oldest = q.oldest
    cdef uint32_t batch_id = q.batch_id
    cdef bint batch = q.batch
    cdef uint32_t ndesc
    cdef uint32_t freed = 0
    cdef uint32_t n = 0
    cdef uint64_t elem
    cdef uint64_t word
    cdef uint32_t length
    while n < ready:
        if not batch:
            elem = virtio_fetch64(<uint8_t *>q.used.ring + 8 * <uint64_t>(idx & mask))
            length = <uint32_t>(elem >> 32)
            if not driver_check_used(q, <uint32_t>elem, &length):
                break
            batch_id = <uint32_t>elem
            q.batch_len = length
            batch = 1
        word = state[oldest].word
        length = state_writable(word)
        if oldest == batch_id:
            length = q.batch_len
            batch = 0
        out[n].cookie = state[oldest].cookie
        out[n].len = length
        out[n].head = oldest
        state[oldest].word = 0
        ndesc = state_ndesc(word)
        if virtio_likely(ndesc == 1):  # the branch keeps the next look-up from waiting for this one
            oldest = (oldest + 1) & mask
        else:
            oldest = (oldest + virtio_opaque(ndesc)) & mask
        freed += ndesc
        idx += 1
        n += 1
    q.batch = batch
    q.batch_id = <uint16_t>batch_id
    q.oldest = <uint16_t>oldest
    q.next_used = <uint16_t>idx
    q.nfree += freed
    add_count(&q.completions, n)
    return n


cdef inline uint32_t split_nused(virtio_driver_queue *q) noexcept nogil:
    """Return how many chains the device has used and we have not taken back."""
    if q.fault.code != VIRTIO_FAULT_NONE:
        return 0
    return split_refresh_used(q)


cdef inline bint split_notify(virtio_driver_queue *q) noexcept nogil:
    """Decide whether the device must be kicked for what was enqueued since the last decision."""
    cdef uint64_t pending = q.pending
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
