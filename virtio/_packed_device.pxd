# The device end of a packed virtqueue (VIRTIO 1.4, 2.8): any size from 1 to 32768. Same verbs as the split device.
#
# A used descriptor is one 64-bit word (length, id, flags), stored at once. The first of a burst is stored last, with
# release, so that a polling driver does not take the cache line while we still write to it.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from virtio._chain_walk cimport WALK_OK, region_holds, walk_find, walk_packed
from virtio._memory cimport memory_log
from virtio._notify cimport *
from virtio._chain_build cimport packed_word
from virtio._queue cimport *


cdef inline void packed_device_start(virtio_device_queue *q) noexcept nogil:
    """Put the private state as a fresh queue has it."""
    q.next_avail = q.next_used = q.inuse = q.pending = 0
    q.avail_wrap = q.used_wrap = 1
    q.event_word = 0
    q.chains = q.completions = 0
    q.notify_enabled = 1


cdef inline bint packed_is_avail(uint64_t word, bint wrap) noexcept nogil:
    """Say whether a descriptor's word is marked available for the lap whose wrap counter is given (2.8.1)."""
    cdef uint64_t both = (<uint64_t>(VIRTIO_DESC_F_AVAIL | VIRTIO_DESC_F_USED)) << 48
    return (word & both) == (<uint64_t>(VIRTIO_DESC_F_AVAIL if wrap else VIRTIO_DESC_F_USED)) << 48


cdef inline uint32_t packed_pop_burst(virtio_device_queue *q, virtio_chain *chains, uint32_t limit, iovec *segs,
                                      uint32_t nsegs) noexcept nogil:
    """Take up to limit available chains; return how many. See split_pop_burst."""
    cdef virtio_packed_desc *ring = q.ring
    cdef uint32_t size = q.size
    cdef uint32_t slot = q.next_avail
    cdef uint32_t inuse = q.inuse
    cdef bint wrap = q.avail_wrap
    cdef uint32_t n = 0
    cdef uint32_t s = 0
    cdef iovec *seg = segs
    cdef virtio_chain *chain = chains
    cdef uint64_t addr
    cdef uint64_t word
    if virtio_unlikely(q.fault.code != VIRTIO_FAULT_NONE):
        return 0
    if limit > nsegs:  # each chain takes a piece at least; so the loop need not ask
        limit = nsegs
    while n < limit:
        # acquire: the rest of the list is read after the descriptor that announces it (2.8.21)
        word = virtio_load64_acquire(<uint64_t *>&ring[slot].len)
        if not packed_is_avail(word, wrap):
            break
        if virtio_unlikely(inuse >= size):
            latch(&q.fault, VIRTIO_FAULT_RING_OVERRUN, <uint16_t>(word >> 32), inuse + 1, size)
            break
        addr = virtio_load64(&ring[slot].addr)
        if virtio_likely((word >> 48) & (VIRTIO_DESC_F_NEXT | VIRTIO_DESC_F_INDIRECT) == 0 and <uint32_t>word != 0
                         and (region_holds(&q.hit, addr, <uint32_t>word) or walk_find(q, addr, <uint32_t>word))):
            seg.iov_base = q.hit.host + (addr - q.hit.gpa)
            seg.iov_len = <uint32_t>word
            seg += 1
            chain_single(chain, word >> 32 & 0xffff, s, <uint32_t>word, word >> 48)
            s += 1
            inuse += 1
            slot += 1
        else:
            if walk_packed(q, slot, inuse, chain, segs, s, nsegs, addr, word) != WALK_OK:
                break
            s += <uint32_t>chain.nreadable + chain.nwritable
            seg = segs + s
            if limit > n + 1 + nsegs - s:
                limit = n + 1 + nsegs - s
            inuse += chain.slots
            slot += chain.slots
        if virtio_unlikely(slot >= size):
            slot -= size
            wrap = not wrap
        chain += 1
        n += 1
    q.next_avail = <uint16_t>slot
    q.avail_wrap = wrap
    q.inuse = <uint16_t>inuse
    q.chains += n
    return n


cdef inline uint64_t packed_used_word(const virtio_chain *chain, bint wrap) noexcept nogil:
    """The word of a used descriptor. WRITE says that the length counts (2.8.7)."""
    return packed_word(chain.written, chain.head, (VIRTIO_DESC_F_WRITE if chain.written else 0)
                       | (VIRTIO_DESC_F_AVAIL | VIRTIO_DESC_F_USED if wrap else 0))


cdef inline void packed_add_used_burst(virtio_device_queue *q, const virtio_chain *chains, uint32_t n) noexcept nogil:
    """Give n chains back, each with chain.written bytes. See split_add_used_burst."""
    cdef virtio_packed_desc *ring = q.ring
    cdef bint in_order = q.flags & VIRTIO_Q_IN_ORDER
    cdef uint16_t size = q.size
    cdef uint16_t slot = q.next_used
    cdef bint wrap = q.used_wrap
    cdef uint16_t first = slot
    cdef uint64_t first_word = 0
    cdef uint16_t place = slot
    cdef bint place_wrap = wrap
    cdef bint have_first = 0
    cdef uint32_t slots = 0
    cdef uint32_t i
    if n == 0 or q.fault.code == VIRTIO_FAULT_RING_MEMORY:
        return
    for i in range(n):
        slot += chains[i].slots
        slots += chains[i].slots
        if virtio_unlikely(slot >= size):
            slot -= size
            wrap = not wrap
        # in order, one descriptor at the first slot of a batch names its last chain (2.8.9); a chain not written to
        # its end has one of its own, since the driver takes those without as completely used
        if not in_order or i == n - 1 or chains[i].written != chains[i].writable:
            if not have_first:
                have_first = 1
                first_word = packed_used_word(&chains[i], place_wrap)
            else:
                virtio_store64(<uint64_t *>&ring[place].len, packed_used_word(&chains[i], place_wrap))
            if virtio_unlikely(q.memory.log is not NULL):
                memory_log(q.memory, q.used_gpa + 16 * <uint64_t>place + 8, 8)
            place = slot
            place_wrap = wrap
    # release: buffers and later used descriptors are visible before the one that the driver looks at first
    virtio_store64_release(<uint64_t *>&ring[first].len, first_word)
    if virtio_unlikely(q.memory.log is not NULL):
        memory_log(q.memory, q.used_gpa + 16 * <uint64_t>first + 8, 8)
    q.next_used = slot
    q.used_wrap = wrap
    q.inuse -= slots
    q.pending += slots
    q.completions += n


cdef inline uint32_t packed_navail(virtio_device_queue *q) noexcept nogil:
    """Return 1 if a chain is available, else 0: a packed ring has no index to ask for more."""
    if q.fault.code != VIRTIO_FAULT_NONE:
        return 0
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
