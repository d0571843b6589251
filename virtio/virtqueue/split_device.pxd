# The device end of a split virtqueue (VIRTIO 1.4, 2.7): what a device does. Verbs as in rust-vmm's virtio-queue.
#
# The driver is hostile: every index, address, length and flag is copied once, checked, then used. The first that cannot
# be breaks the queue; chains popped before can still be completed. Callers hold q.lock.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, UINT32_MAX

from virtio.core.atomic cimport (
    virtio_fence, virtio_load16, virtio_load16_acquire, virtio_load64, virtio_put64, virtio_store16,
    virtio_store16_release, virtio_store64, virtio_unlikely,
)
from virtio.core.counters cimport add_count
from virtio.core.iov cimport iovec
from virtio.memory.guest_memory cimport memory_log
from virtio.virtqueue.chain_walk cimport WALK_OK, put_piece, range_holds, walk_is_single, walk_split
from virtio.virtqueue.notify cimport notify_by_event, notify_by_flag, notify_quiet, notify_verdict
from virtio.virtqueue.structs cimport (
    VIRTIO_DESC_F_INDIRECT, VIRTIO_DESC_F_NEXT, VIRTIO_FAULT_AVAIL_JUMP, VIRTIO_FAULT_HEAD_RANGE, VIRTIO_FAULT_NONE,
    VIRTIO_FAULT_RING_MEMORY, VIRTIO_NOTIFY_EMPTY, VIRTIO_Q_EVENT_IDX, VIRTIO_Q_IN_ORDER, VIRTIO_Q_NOTIFY_ON_EMPTY,
    VIRTIO_USED_F_NO_NOTIFY, chain_single, chain_used_elem, device_popped_again,
    device_put_back, latch, virtio_chain, virtio_device_queue,
)


cdef inline void split_device_start(virtio_device_queue *q) noexcept nogil:
    """Put the private state as a fresh queue has it."""
    q.next_avail = q.avail_seen = q.next_used = 0
    q.used_flags = q.avail_event = q.pending = 0
    q.chains = q.completions = 0
    q.notify_enabled = 1
    q.put_back = 0


cdef inline uint32_t split_refresh_avail(virtio_device_queue *q) noexcept nogil:
    """Read avail.idx; return the chains that wait, or latch a fault when it claims more than a queue can hold."""
    # acquire: ring entries and descriptors are read after the index that announces them (2.7.13)
    cdef uint16_t idx = virtio_load16_acquire(&q.avail.idx)
    cdef uint16_t seen
    # what waits and what is popped and not yet used, together
    cdef uint32_t claimed = <uint16_t>(idx - q.next_used)
    if virtio_unlikely(claimed > q.size):
        seen = <uint16_t>(q.avail_seen - q.next_avail)
        if q.fault.code == VIRTIO_FAULT_NONE:
            latch(&q.fault, VIRTIO_FAULT_AVAIL_JUMP, UINT32_MAX, claimed, q.size)
            q.put_back = seen  # what was announced before is as good as it was
        return <uint16_t>min(device_put_back(q), <uint32_t>seen)
    q.avail_seen = idx
    return <uint16_t>(idx - q.next_avail)


cdef inline uint32_t split_pop_burst(virtio_device_queue *q, virtio_chain *chains, uint32_t limit, iovec *segs,
                                     uint32_t nsegs) noexcept nogil:
    """Take up to limit available chains; return how many. Their pieces go to segs, one chain's behind the other's.

    Stops early when segs is full, or at a chain that breaks the queue: those before it are good. A segs array of
    max_chain pieces and one more for each seam between adjacent regions takes every legal chain.
    """
    cdef const uint64_t *desc = <const uint64_t *>q.desc
    cdef const uint16_t *ring
    cdef uint32_t mask = <uint32_t>q.size - 1
    cdef uint32_t idx = q.next_avail
    cdef uint32_t end
    cdef uint32_t ready
    cdef uint32_t s = 0
    cdef virtio_chain *chain = chains
    cdef uint32_t head
    cdef uint64_t addr
    cdef uint64_t word
    # the region of the last lookup, in registers
    cdef uint64_t gpa = q.hit.gpa
    cdef uint64_t room = q.hit.size
    cdef uint64_t shift = <uint64_t>q.hit.host - gpa
    if virtio_unlikely(q.fault.code != VIRTIO_FAULT_NONE):
        limit = min(limit, device_put_back(q))
        if limit == 0:
            return 0
    ready = <uint16_t>(q.avail_seen - idx)
    if ready < limit:
        ready = split_refresh_avail(q)
    if ready > limit:
        ready = limit
    if ready > nsegs:  # each chain takes a piece at least; so the loop need not ask
        ready = nsegs
    ring = q.avail.ring
    end = idx + ready
    while idx != end:
        head = virtio_load16(ring + (idx & mask))
        if virtio_unlikely(head > mask):
            latch(&q.fault, VIRTIO_FAULT_HEAD_RANGE, head, head, q.size)
            break
        addr = virtio_load64(desc + 2 * head)
        word = virtio_load64(desc + 2 * head + 1)
        if virtio_unlikely((word >> 32) & (VIRTIO_DESC_F_NEXT | VIRTIO_DESC_F_INDIRECT)
                           or not range_holds(gpa, room, addr, <uint32_t>word)):
            if walk_is_single(q, addr, <uint32_t>word, (word >> 32) & (VIRTIO_DESC_F_NEXT | VIRTIO_DESC_F_INDIRECT)):
                gpa, room, shift = q.hit.gpa, q.hit.size, <uint64_t>q.hit.host - q.hit.gpa
            else:
                chain.head = <uint16_t>head
                if walk_split(q, chain, segs, s, nsegs, addr, word) != WALK_OK:
                    break
                gpa, room, shift = q.hit.gpa, q.hit.size, <uint64_t>q.hit.host - q.hit.gpa
                s += <uint32_t>chain.nreadable + chain.nwritable
                if end - idx - 1 > nsegs - s:
                    end = idx + 1 + nsegs - s
                chain += 1
                idx += 1
                continue
        put_piece(segs + s, shift + addr, <uint32_t>word)
        chain_single(chain, head, s, <uint32_t>word, word >> 32)
        s += 1
        chain += 1
        idx += 1
    ready = <uint16_t>(idx - q.next_avail)
    q.next_avail = <uint16_t>idx
    add_count(&q.chains, ready)
    if virtio_unlikely(q.fault.code != VIRTIO_FAULT_NONE):
        device_popped_again(q, ready)
    return ready


cdef inline void split_unpop_burst(virtio_device_queue *q, uint32_t n) noexcept nogil:
    """Put back the last n chains popped."""
    virtio_store64(&q.chains, q.chains - n)
    q.next_avail = <uint16_t>(q.next_avail - n)
    if virtio_unlikely(q.fault.code != VIRTIO_FAULT_NONE):
        q.put_back += n


cdef inline void split_log_used(virtio_device_queue *q, uint16_t first, uint32_t n) noexcept nogil:
    """Mark the used entries first.. and used.idx in the dirty log."""
    cdef uint32_t i
    for i in range(n):
        memory_log(q.memory, q.used_gpa + 4 + 8 * <uint64_t>(<uint16_t>(first + i) & (q.size - 1)), 8)
    memory_log(q.memory, q.used_gpa + 2, 2)


cdef inline void split_add_used_burst(virtio_device_queue *q, const virtio_chain *chains, uint32_t n) noexcept nogil:
    """Give n chains back, each with chain.written bytes; used.idx is published once.

    Works on a broken queue too, so that nothing popped is lost, unless the ring itself is gone.
    """
    cdef uint32_t mask = <uint32_t>q.size - 1
    cdef uint32_t idx = q.next_used
    cdef uint32_t slot = idx
    cdef uint8_t *ring
    cdef uint32_t i
    if n == 0 or q.fault.code == VIRTIO_FAULT_RING_MEMORY:
        return
    ring = <uint8_t *>q.used.ring
    if q.flags & VIRTIO_Q_IN_ORDER:
        for i in range(n):
            idx += 1
            # one entry for a batch, at its first position, naming its last chain (2.7.9). A chain to be written has
            # an entry of its own: the driver takes those without one as written to their ends, and DPDK's takes
            # whatever lies in the ring there for their lengths.
            if i == n - 1 or chains[i].writable:
                virtio_put64(ring + 8 * <uint64_t>(slot & mask), chain_used_elem(&chains[i]))
                slot = idx
    else:
        for i in range(n):
            virtio_put64(ring + 8 * <uint64_t>(idx & mask), chain_used_elem(&chains[i]))
            idx += 1
    # release: buffers and used entries are visible before the index that announces them (2.7.8.2)
    virtio_store16_release(&q.used.idx, <uint16_t>idx)
    if virtio_unlikely(q.memory.log is not NULL):
        split_log_used(q, q.next_used, n)
    q.next_used = <uint16_t>idx
    q.pending += n
    add_count(&q.completions, n)


cdef inline uint32_t split_navail(virtio_device_queue *q) noexcept nogil:
    """Return how many chains are available and not popped."""
    if q.fault.code != VIRTIO_FAULT_NONE:
        return device_put_back(q)
    return split_refresh_avail(q)


cdef inline bint split_needs_notification(virtio_device_queue *q) noexcept nogil:
    """Decide whether the driver must be interrupted for what was used since the last decision."""
    cdef uint64_t pending = q.pending
    q.pending = 0
    if notify_quiet(&q.notify, q.next_used, pending, q.fault.code == VIRTIO_FAULT_RING_MEMORY):
        return 0
    virtio_fence()  # used.idx before used_event or avail.flags
    if q.flags & VIRTIO_Q_NOTIFY_ON_EMPTY and virtio_load16(&q.avail.idx) == q.next_used:
        q.notify.force = 0
        return notify_verdict(&q.notify, 1, VIRTIO_NOTIFY_EMPTY)
    if q.flags & VIRTIO_Q_EVENT_IDX:
        return notify_by_event(&q.notify, virtio_load16(q.avail.ring + q.size))
    return notify_by_flag(&q.notify, virtio_load16(&q.avail.flags))


cdef inline bint split_enable_notification(virtio_device_queue *q) noexcept nogil:
    """Ask to be kicked for the next chain; say whether chains are available already."""
    if q.fault.code == VIRTIO_FAULT_RING_MEMORY:
        return 0
    if q.flags & VIRTIO_Q_EVENT_IDX:
        q.avail_event = q.next_avail
        virtio_store16(<uint16_t *>(q.used.ring + q.size), q.avail_event)
        memory_log(q.memory, q.used_gpa + 4 + 8 * <uint64_t>q.size, 2)
    elif q.used_flags:
        q.used_flags = 0
        virtio_store16(&q.used.flags, 0)
        memory_log(q.memory, q.used_gpa, 2)
    q.notify_enabled = 1
    virtio_fence()  # avail_event or used.flags before avail.idx: the mirror of the driver's decision
    return split_navail(q) != 0


cdef inline void split_disable_notification(virtio_device_queue *q) noexcept nogil:
    """Ask for no kicks. With EVENT_IDX that is a distant event: one may still come each 2^16 chains."""
    q.notify_enabled = 0
    if q.fault.code == VIRTIO_FAULT_RING_MEMORY:
        return
    if q.flags & VIRTIO_Q_EVENT_IDX:
        q.avail_event = <uint16_t>(q.next_avail - q.size - 1)
        virtio_store16(<uint16_t *>(q.used.ring + q.size), q.avail_event)
        memory_log(q.memory, q.used_gpa + 4 + 8 * <uint64_t>q.size, 2)
    elif not q.used_flags:
        q.used_flags = VIRTIO_USED_F_NO_NOTIFY
        virtio_store16(&q.used.flags, q.used_flags)
        memory_log(q.memory, q.used_gpa, 2)
