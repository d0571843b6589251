# The device end of a packed virtqueue (VIRTIO 1.4, 2.8): any size from 1 to 32768. Same verbs as the split device.
#
# A used descriptor is one 64-bit word (length, id, flags), stored at once. The first of a burst is stored last, with
# release, so that a polling driver does not take the cache line while we still write to it.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from virtio.core.atomic cimport (
    virtio_fence, virtio_get64, virtio_load32, virtio_load64, virtio_load64_acquire, virtio_store32, virtio_store64,
    virtio_store64_release, virtio_unlikely,
)
from virtio.core.counters cimport add_count
from virtio.core.iov cimport iovec
from virtio.memory.guest_memory cimport memory_log
from virtio.virtqueue.chain_walk cimport WALK_OK, put_piece, range_holds, walk_is_single, walk_packed
from virtio.virtqueue.notify cimport notify_by_word, notify_quiet
from virtio.virtqueue.structs cimport (
    VIRTIO_DESC_F_AVAIL, VIRTIO_DESC_F_INDIRECT, VIRTIO_DESC_F_NEXT, VIRTIO_DESC_F_USED, VIRTIO_DESC_F_WRITE,
    VIRTIO_EVENT_DESC, VIRTIO_EVENT_DISABLE, VIRTIO_EVENT_ENABLE, VIRTIO_FAULT_NONE, VIRTIO_FAULT_RING_MEMORY,
    VIRTIO_FAULT_RING_OVERRUN, VIRTIO_Q_EVENT_IDX, VIRTIO_Q_IN_ORDER, chain_single, device_popped_again,
    device_put_back, latch, virtio_chain, virtio_device_queue,
)


cdef inline void packed_device_start(virtio_device_queue *q) noexcept nogil:
    """Put the private state as a fresh queue has it."""
    q.next_avail = q.next_used = q.inuse = q.pending = 0
    q.avail_wrap = q.used_wrap = 1
    q.event_word = 0
    q.chains = q.completions = 0
    q.notify_enabled = 1
    q.put_back = 0


cdef inline bint packed_is_avail(uint64_t word, bint wrap) noexcept nogil:
    """Say whether a descriptor's word is marked available for the lap whose wrap counter is given (2.8.1)."""
    cdef uint64_t both = (<uint64_t>(VIRTIO_DESC_F_AVAIL | VIRTIO_DESC_F_USED)) << 48
    return (word & both) == (<uint64_t>(VIRTIO_DESC_F_AVAIL if wrap else VIRTIO_DESC_F_USED)) << 48


cdef inline uint32_t packed_pop_burst(virtio_device_queue *q, virtio_chain *chains, uint32_t limit, iovec *segs,
                                      uint32_t nsegs) noexcept nogil:
    """Take up to limit available chains; return how many. See split_pop_burst."""
    cdef const uint64_t *ring = <const uint64_t *>q.ring
    cdef uint32_t size = q.size
    cdef uint32_t slot = q.next_avail
    cdef uint32_t inuse = q.inuse
    cdef uint64_t both = <uint64_t>(VIRTIO_DESC_F_AVAIL | VIRTIO_DESC_F_USED) << 48
    cdef uint64_t other = <uint64_t>(VIRTIO_DESC_F_NEXT | VIRTIO_DESC_F_INDIRECT) << 48
    # the marks of an available descriptor (2.8.1)
    cdef uint64_t marks = <uint64_t>(VIRTIO_DESC_F_AVAIL if q.avail_wrap else VIRTIO_DESC_F_USED) << 48
    cdef uint32_t n = 0
    cdef uint32_t s = 0
    cdef virtio_chain *chain = chains
    cdef uint64_t addr
    cdef uint64_t word
    # the region of the last lookup, in registers
    cdef uint64_t gpa = q.hit.gpa
    cdef uint64_t room = q.hit.size
    cdef uint64_t shift = <uint64_t>q.hit.host - gpa
    if virtio_unlikely(q.fault.code != VIRTIO_FAULT_NONE):
        limit = min(limit, device_put_back(q))
    if limit > nsegs:  # each chain takes a piece at least; so the loop need not ask
        limit = nsegs
    while n < limit:
        # acquire: the rest of the list is read after the descriptor that announces it (2.8.21)
        word = virtio_load64_acquire(ring + 2 * <uint64_t>slot + 1)
        if word & both != marks:
            break
        if virtio_unlikely(inuse >= size):
            latch(&q.fault, VIRTIO_FAULT_RING_OVERRUN, <uint16_t>(word >> 32), inuse + 1, size)
            break
        addr = virtio_load64(ring + 2 * <uint64_t>slot)
        if virtio_unlikely(word & other or not range_holds(gpa, room, addr, <uint32_t>word)):
            if walk_is_single(q, addr, <uint32_t>word, word & other):
                gpa, room, shift = q.hit.gpa, q.hit.size, <uint64_t>q.hit.host - q.hit.gpa
            else:
                if walk_packed(q, q.ring, slot, inuse, chain, segs, s, nsegs, addr, word) != WALK_OK:
                    break
                gpa, room, shift = q.hit.gpa, q.hit.size, <uint64_t>q.hit.host - q.hit.gpa
                s += <uint32_t>chain.nreadable + chain.nwritable
                if limit > n + 1 + nsegs - s:
                    limit = n + 1 + nsegs - s
                inuse += chain.slots
                slot += chain.slots
                if slot >= size:
                    slot -= size
                    marks ^= both
                chain += 1
                n += 1
                continue
        put_piece(segs + s, shift + addr, <uint32_t>word)
        chain_single(chain, word >> 32 & 0xffff, s, <uint32_t>word, word >> 48)
        s += 1
        inuse += 1
        slot += 1
        if virtio_unlikely(slot == size):
            slot = 0
            marks ^= both
        chain += 1
        n += 1
    q.next_avail = <uint16_t>slot
    q.avail_wrap = marks == <uint64_t>VIRTIO_DESC_F_AVAIL << 48
    q.inuse = <uint16_t>inuse
    add_count(&q.chains, n)
    if virtio_unlikely(q.fault.code != VIRTIO_FAULT_NONE):
        device_popped_again(q, n)
    return n


cdef inline void packed_unpop_burst(virtio_device_queue *q, const virtio_chain *chains, uint32_t n) noexcept nogil:
    """Put back the last n chains popped."""
    cdef uint32_t slots = 0
    cdef uint32_t i
    virtio_store64(&q.chains, q.chains - n)
    if virtio_unlikely(q.fault.code != VIRTIO_FAULT_NONE):
        q.put_back += n
    for i in range(n):
        slots += chains[i].slots
    q.inuse = <uint16_t>(q.inuse - slots)
    if slots > q.next_avail:
        q.next_avail = <uint16_t>(q.next_avail + q.size - slots)
        q.avail_wrap = not q.avail_wrap
    else:
        q.next_avail = <uint16_t>(q.next_avail - slots)


cdef inline uint64_t packed_used_word(uint64_t chain, uint64_t marks) noexcept nogil:
    """The word of a used descriptor, of a chain's first word. WRITE says that the length counts (2.8.7)."""
    cdef uint64_t write = <uint64_t>VIRTIO_DESC_F_WRITE << 48 if <uint32_t>chain else 0
    return (chain & 0xffffffffffffULL) | marks | write


cdef inline void packed_add_used_burst(virtio_device_queue *q, const virtio_chain *chains, uint32_t n) noexcept nogil:
    """Give n chains back, each with chain.written bytes. See split_add_used_burst."""
    cdef uint64_t *ring = <uint64_t *>q.ring
    cdef uint64_t both = <uint64_t>(VIRTIO_DESC_F_AVAIL | VIRTIO_DESC_F_USED) << 48
    cdef uint64_t marks = both if q.used_wrap else 0
    cdef uint64_t place_marks = marks
    cdef uint64_t word
    cdef uint64_t first_word = 0
    cdef uint64_t *place = &first_word  # where the next one goes: the very first is kept back
    cdef bint in_order = q.flags & VIRTIO_Q_IN_ORDER
    cdef bint logged = q.memory.log is not NULL
    cdef uint32_t size = q.size
    cdef uint32_t slot = q.next_used
    cdef uint32_t place_slot = slot
    cdef uint32_t slots = 0
    cdef uint32_t i
    if n == 0 or q.fault.code == VIRTIO_FAULT_RING_MEMORY:
        return
    for i in range(n):
        word = virtio_get64(&chains[i].written)
        slot += <uint32_t>(word >> 48)
        slots += <uint32_t>(word >> 48)
        if virtio_unlikely(slot >= size):
            slot -= size
            marks ^= both
        # in order, one descriptor at the first slot of a batch names its last chain (2.8.9); a chain to be written has
        # one of its own: see split_add_used_burst
        if in_order and i != n - 1 and chains[i].writable == 0:
            continue
        virtio_store64(place, packed_used_word(word, place_marks))
        if virtio_unlikely(logged):
            memory_log(q.memory, q.used_gpa + 16 * <uint64_t>place_slot + 8, 8)
        place = ring + 2 * <uint64_t>slot + 1
        place_slot = slot
        place_marks = marks
    # release: buffers and later used descriptors are visible before the one that the driver looks at first
    virtio_store64_release(ring + 2 * <uint64_t>q.next_used + 1, first_word)
    if virtio_unlikely(logged):
        memory_log(q.memory, q.used_gpa + 16 * <uint64_t>q.next_used + 8, 8)
    q.next_used = <uint16_t>slot
    q.used_wrap = marks != 0
    q.inuse -= <uint16_t>slots
    q.pending += slots
    add_count(&q.completions, n)


cdef inline uint32_t packed_navail(virtio_device_queue *q) noexcept nogil:
    """Return 1 if a chain is available, else 0: a packed ring has no index to ask for more."""
    if q.fault.code != VIRTIO_FAULT_NONE:
        return device_put_back(q) != 0
    return packed_is_avail(virtio_load64_acquire(<uint64_t *>&q.ring[q.next_avail].len), q.avail_wrap)


cdef inline bint packed_needs_notification(virtio_device_queue *q) noexcept nogil:
    """Decide whether the driver must be interrupted for what was used since the last decision."""
    cdef uint64_t pending = q.pending
    q.pending = 0
    if notify_quiet(&q.notify, q.next_used, pending, q.fault.code == VIRTIO_FAULT_RING_MEMORY):
        return 0
    virtio_fence()  # used descriptors before the driver's event word
    return notify_by_word(&q.notify, virtio_load32(q.peer_event), q.flags & VIRTIO_Q_EVENT_IDX, q.size, q.used_wrap)


cdef inline void packed_put_event(virtio_device_queue *q, uint32_t word) noexcept nogil:
    if q.event_word != word and q.fault.code != VIRTIO_FAULT_RING_MEMORY:
        q.event_word = word
        virtio_store32(q.my_event, word)
        memory_log(q.memory, q.event_gpa, 4)


cdef inline bint packed_enable_notification(virtio_device_queue *q) noexcept nogil:
    """Ask to be kicked for the next chain; say whether one is available already."""
    if q.flags & VIRTIO_Q_EVENT_IDX:
        packed_put_event(q, q.next_avail | <uint32_t>q.avail_wrap << 15 | <uint32_t>VIRTIO_EVENT_DESC << 16)
    else:
        packed_put_event(q, VIRTIO_EVENT_ENABLE << 16)
    q.notify_enabled = 1
    virtio_fence()  # our event word before the descriptors: the mirror of the driver's decision
    return packed_navail(q) != 0


cdef inline void packed_disable_notification(virtio_device_queue *q) noexcept nogil:
    """Ask for no kicks (2.8.10: flags 1)."""
    q.notify_enabled = 0
    packed_put_event(q, <uint32_t>VIRTIO_EVENT_DISABLE << 16)
