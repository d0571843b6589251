# The driver end of a packed virtqueue (VIRTIO 1.4, 2.8): any size from 1 to 32768. Same verbs as the split driver.
#
# Length, id and flags of a descriptor are one aligned 64-bit word, stored and loaded at once: a descriptor becomes
# visible whole. The first word of a burst is stored last, with release, so that the device sees all of it or nothing.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from virtio.core.atomic cimport (
    virtio_fence, virtio_likely, virtio_load32, virtio_load64_acquire, virtio_opaque, virtio_store32, virtio_store64,
    virtio_store64_release, virtio_unlikely,
)
from virtio.core.counters cimport add_count
from virtio.virtqueue.chain_build cimport build_packed, packed_avail_bits
from virtio.virtqueue.driver_common cimport driver_check_used, driver_outstanding, driver_start_shadow
from virtio.virtqueue.notify cimport notify_by_word, notify_quiet
from virtio.virtqueue.structs cimport (
    VIRTIO_CHAIN_END, VIRTIO_DESC_F_AVAIL, VIRTIO_DESC_F_USED, VIRTIO_DESC_F_WRITE, VIRTIO_ENQ_BROKEN, VIRTIO_ENQ_OK,
    VIRTIO_EVENT_DESC, VIRTIO_EVENT_DISABLE, VIRTIO_EVENT_ENABLE, VIRTIO_FAULT_NONE, VIRTIO_Q_EVENT_IDX,
    VIRTIO_Q_IN_ORDER, VIRTIO_RING_MAX, state_ndesc, state_writable, virtio_completion, virtio_desc_state,
    virtio_driver_queue, virtio_packed_desc, virtio_request, virtio_sg,
)


cdef inline void packed_driver_start(virtio_driver_queue *q) noexcept nogil:
    """Put the private state as a fresh queue has it. The ring itself is the caller's to zero."""
    driver_start_shadow(q, VIRTIO_CHAIN_END)  # the list has free ids; in order, an id is its first slot
    q.avail_wrap = q.used_wrap = 1  # both start at 1 (2.8.1)
    q.event_word = 0


cdef inline uint32_t packed_enqueue_burst(virtio_driver_queue *q, const virtio_sg *sg, virtio_request *req,
                                          uint32_t n, int *why) noexcept nogil:
    """Make up to n chains available; return how many, and in why the reason for stopping early."""
    cdef virtio_packed_desc *ring = q.ring
    cdef virtio_desc_state *state = q.state
    cdef const uint16_t *links = q.links
    cdef bint in_order = q.flags & VIRTIO_Q_IN_ORDER
    cdef uint32_t size = q.size
    cdef uint32_t slot = q.next_avail
    cdef uint32_t first = slot
    cdef bint wrap = q.avail_wrap
    cdef uint64_t bits = packed_avail_bits(wrap) << 48
    cdef uint32_t nfree = q.nfree
    cdef uint32_t before = nfree
    cdef uint32_t id
    cdef uint32_t free_head = q.free_head
    cdef uint32_t readable
    cdef uint32_t writable
    cdef uint32_t length
    cdef uint64_t word
    cdef uint64_t built = 0
    cdef uint64_t first_word = 0
    cdef uint64_t *place
    cdef uint32_t i
    cdef uint32_t done = n
    why[0] = VIRTIO_ENQ_OK
    if virtio_unlikely(q.fault.code != VIRTIO_FAULT_NONE):
        why[0] = VIRTIO_ENQ_BROKEN
        return 0
    for i in range(n):
        place = <uint64_t *>&ring[slot].len
        readable = req[i].readable
        writable = req[i].writable
        if virtio_likely(readable + writable == 1 and nfree != 0 and sg.len != 0):
            length = sg.len
            if in_order:
                id = slot
            else:
                id = free_head
                free_head = links[id]
            virtio_store64(&ring[slot].addr, sg.gpa)
            sg += 1
            word = length | <uint64_t>id << 32 | bits | <uint64_t>writable << 49  # F_WRITE is bit 1 of the flags
            req[i].head = id
            state[id].cookie = req[i].cookie
            state[id].word = <uint64_t>1 << 32 | (length & (0 - writable))
            nfree -= 1
            slot += 1
            if virtio_unlikely(slot == size):
                slot = 0
                wrap = not wrap
                bits = packed_avail_bits(wrap) << 48
        else:
            q.next_avail = <uint16_t>slot
            q.avail_wrap = wrap
            q.nfree = <uint16_t>nfree
            q.free_head = <uint16_t>free_head
            why[0] = build_packed(q, sg, &req[i], &built)
            if why[0] != VIRTIO_ENQ_OK:
                done = i
                break
            word = built
            slot = q.next_avail
            wrap = q.avail_wrap
            bits = packed_avail_bits(wrap) << 48
            nfree = q.nfree
            free_head = q.free_head
            sg += readable + writable
        if i == 0:
            first_word = word
        else:
            virtio_store64(place, word)
    if done:
        q.next_avail = <uint16_t>slot
        q.avail_wrap = wrap
        q.nfree = <uint16_t>nfree
        q.free_head = <uint16_t>free_head
        q.pending += before - nfree
        add_count(&q.chains, done)
        # release: everything of the burst is visible before the descriptor that the device looks at first (2.8.21.1)
        virtio_store64_release(<uint64_t *>&ring[first].len, first_word)
    return done


cdef inline uint32_t packed_dequeue_burst(virtio_driver_queue *q, virtio_completion *out,
                                          uint32_t limit) noexcept nogil:
    """Take back up to limit chains that the device has used; return how many."""
    cdef virtio_packed_desc *ring = q.ring
    cdef virtio_desc_state *state = q.state
    cdef uint16_t *links = q.links
    cdef uint32_t size = q.size
    cdef uint32_t slot = q.next_used
    cdef bint wrap = q.used_wrap
    cdef uint32_t nfree = q.nfree
    cdef uint32_t free_head = q.free_head
    cdef uint32_t n = 0
    cdef uint64_t word
    cdef uint64_t seen
    cdef uint32_t id
    cdef uint32_t length
    if virtio_unlikely(q.fault.code != VIRTIO_FAULT_NONE):
        return 0
    if q.flags & VIRTIO_Q_IN_ORDER:
        return packed_dequeue_in_order(q, out, limit)
    while n < limit:
        # acquire: what the device wrote before marking the descriptor used is read after (2.8.22)
        word = virtio_load64_acquire(<uint64_t *>&ring[slot].len)
        if not packed_is_used(word, wrap):
            break
        id = <uint16_t>(word >> 32)
        length = <uint32_t>word
        seen = state[id].word if id < size else 0
        if virtio_likely(seen >> 32 == 1 and length <= <uint32_t>seen):
            nfree += 1
            slot += 1  # not + ndesc: the branch keeps the next look at the ring from waiting for this look-up
        else:
            length = packed_used_length(word, seen)
            if not driver_check_used(q, id, &length):
                break
            nfree += state_ndesc(seen)
            slot += state_ndesc(seen)
        out[n].cookie = state[id].cookie
        out[n].len = length
        out[n].head = id
        state[id].word = 0
        links[id] = <uint16_t>free_head
        free_head = id
        if virtio_unlikely(slot >= size):
            slot -= size
            wrap = not wrap
        n += 1
    q.next_used = <uint16_t>slot
    q.used_wrap = wrap
    q.nfree = <uint16_t>nfree
    q.free_head = <uint16_t>free_head
    add_count(&q.completions, n)
    return n


cdef inline bint packed_is_used(uint64_t word, bint wrap) noexcept nogil:
    """Say whether a descriptor's word is marked used for the lap whose wrap counter is given (2.8.1)."""
    cdef uint64_t both = (<uint64_t>(VIRTIO_DESC_F_AVAIL | VIRTIO_DESC_F_USED)) << 48
    return (word & both) == (both if wrap else 0)


cdef inline uint32_t packed_used_length(uint64_t word, uint64_t state) noexcept nogil:
    """Return the length that a used descriptor reports for the chain whose state word is given.

    It counts only with WRITE (2.8.7), without which it may be anything. QEMU, though, never sets WRITE and means the
    length; so what fits the chain is taken, and what does not fit is an error only with WRITE.
    """
    if not (word >> 48) & VIRTIO_DESC_F_WRITE and <uint32_t>word > state_writable(state):
        return 0
    return <uint32_t>word


cdef inline uint32_t packed_dequeue_in_order(virtio_driver_queue *q, virtio_completion *out,
                                             uint32_t limit) noexcept nogil:
    """As packed_dequeue_burst, when the device uses chains in order: one descriptor may stand for many (2.8.9)."""
    cdef virtio_packed_desc *ring = q.ring
    cdef virtio_desc_state *state = q.state
    cdef uint32_t size = q.size
    cdef uint32_t slot = q.next_used
    cdef bint wrap = q.used_wrap
    cdef bint batch = q.batch
    cdef uint32_t batch_id = q.batch_id
    cdef uint32_t ndesc
    cdef uint32_t freed = 0
    cdef uint32_t n = 0
    cdef uint64_t word
    cdef uint32_t id
    cdef uint32_t length
    while n < limit:
        if not batch:
            word = virtio_load64_acquire(<uint64_t *>&ring[slot].len)
            if not packed_is_used(word, wrap):
                break
            id = <uint16_t>(word >> 32)
            length = packed_used_length(word, state[id].word if id < size else 0)
            if not driver_check_used(q, id, &length):
                break
            batch_id = id
            q.batch_len = length
            batch = 1
        # in order, the id of a chain is its first slot, and the oldest chain outstanding lies at next_used
        word = state[slot].word
        length = state_writable(word)
        if slot == batch_id:
            length = q.batch_len
            batch = 0
        out[n].cookie = state[slot].cookie
        out[n].len = length
        out[n].head = slot
        ndesc = state_ndesc(word)
        state[slot].word = 0
        freed += ndesc
        if virtio_likely(ndesc == 1):  # the branch keeps the next look at the ring from waiting for this look-up
            slot += 1
        else:
            slot += virtio_opaque(ndesc)
        if virtio_unlikely(slot >= size):
            slot -= size
            wrap = not wrap
        n += 1
    q.batch = batch
    q.batch_id = <uint16_t>batch_id
    q.next_used = <uint16_t>slot
    q.used_wrap = wrap
    q.nfree += freed
    add_count(&q.completions, n)
    return n


cdef inline uint32_t packed_used_slots(virtio_driver_queue *q, uint32_t enough, uint32_t *chains) noexcept nogil:
    """Count the used chains that wait, and their slots; stop past `enough` slots. A packed ring has no index to ask."""
    cdef uint16_t slot = q.next_used
    cdef bint wrap = q.used_wrap
    cdef uint32_t slots = 0
    cdef uint32_t n = 0
    cdef uint64_t word
    cdef uint32_t id
    cdef uint16_t at = slot
    cdef bint batch = q.batch
    cdef uint16_t batch_id = q.batch_id
    if q.fault.code != VIRTIO_FAULT_NONE:
        chains[0] = 0
        return 0
    while n < driver_outstanding(q) and slots <= enough:
        if not batch:
            word = virtio_load64_acquire(<uint64_t *>&q.ring[slot].len)
            if not packed_is_used(word, wrap):
                break
            id = <uint16_t>(word >> 32)
            if id >= q.size or state_ndesc(q.state[id].word) == 0:
                break  # dequeue will say so
            batch_id = <uint16_t>id
            batch = 1
        at = slot if q.flags & VIRTIO_Q_IN_ORDER else batch_id
        if state_ndesc(q.state[at].word) == 0:
            break
        if at == batch_id:
            batch = 0
        n += 1
        slots += state_ndesc(q.state[at].word)
        slot += state_ndesc(q.state[at].word)
        if slot >= q.size:
            slot -= q.size
            wrap = not wrap
    chains[0] = n
    return slots


cdef inline uint32_t packed_nused(virtio_driver_queue *q) noexcept nogil:
    """Return how many chains the device has used and we have not taken back."""
    cdef uint32_t chains = 0
    packed_used_slots(q, VIRTIO_RING_MAX, &chains)
    return chains


cdef inline bint packed_notify(virtio_driver_queue *q) noexcept nogil:
    """Decide whether the device must be kicked for what was enqueued since the last decision."""
    cdef uint64_t pending = q.pending
    q.pending = 0
    if notify_quiet(&q.notify, q.next_avail, pending, q.fault.code != VIRTIO_FAULT_NONE):
        return 0
    virtio_fence()  # descriptors before the device's event word
    return notify_by_word(&q.notify, virtio_load32(q.peer_event), q.flags & VIRTIO_Q_EVENT_IDX, q.size, q.avail_wrap)


cdef inline bint packed_enable_intr(virtio_driver_queue *q, uint16_t nslots) noexcept nogil:
    """Ask for an interrupt after nslots more used slots than the first; say whether more than nslots wait already."""
    cdef uint32_t word = VIRTIO_EVENT_ENABLE << 16
    cdef uint32_t off = <uint32_t>q.next_used + nslots
    cdef bint wrap = q.used_wrap
    cdef uint32_t chains = 0
    if q.fault.code != VIRTIO_FAULT_NONE:
        return 0
    if q.flags & VIRTIO_Q_EVENT_IDX:
        if off >= q.size:
            off -= q.size
            wrap = not wrap
        word = off | <uint32_t>wrap << 15 | <uint32_t>VIRTIO_EVENT_DESC << 16
    if q.event_word != word:
        q.event_word = word
        virtio_store32(q.my_event, word)
    q.intr_enabled = 1
    virtio_fence()  # our event word before the descriptors: the mirror of the device's decision
    return packed_used_slots(q, nslots, &chains) > nslots


cdef inline void packed_disable_intr(virtio_driver_queue *q) noexcept nogil:
    """Ask for no interrupts (2.8.10: flags 1)."""
    cdef uint32_t word = VIRTIO_EVENT_DISABLE << 16
    q.intr_enabled = 0
    if q.event_word != word and q.fault.code == VIRTIO_FAULT_NONE:
        q.event_word = word
        virtio_store32(q.my_event, word)
