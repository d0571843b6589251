# The device end of a split virtqueue (VIRTIO 1.4, 2.7): what a device does. Verbs as in rust-vmm's virtio-queue.
#
# The driver is hostile: every index, address, length and flag is copied once, checked, then used. The first that cannot
# be breaks the queue; chains popped before can still be completed. Callers hold q.lock.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, UINT32_MAX

from virtio._chain cimport *
from virtio._memory cimport memory_log, memory_translate
from virtio._notify cimport *
from virtio._queue cimport *


cdef inline void split_device_start(virtio_device_queue *q) noexcept nogil:
    """Put the private state as a fresh queue has it."""
    q.next_avail = q.avail_seen = q.next_used = q.inuse = 0
    q.used_flags = q.avail_event = q.pending = 0
    q.notify_enabled = 1


cdef inline uint32_t split_refresh_avail(virtio_device_queue *q) noexcept nogil:
    """Read avail.idx; return the chains that wait, or latch a fault when it claims more than a queue can hold."""
    # acquire: ring entries and descriptors are read after the index that announces them (2.7.13)
    cdef uint16_t idx = virtio_load16_acquire(&q.avail.idx)
    cdef uint32_t ready = <uint16_t>(idx - q.next_avail)
    if virtio_unlikely(ready + q.inuse > q.size):
        latch(&q.fault, VIRTIO_FAULT_AVAIL_JUMP, UINT32_MAX, ready + q.inuse, q.size)
        return 0
    q.avail_seen = idx
    return ready


cdef inline int split_walk(virtio_device_queue *q, walk *w, virtio_chain *chain, uint64_t addr, uint64_t word) noexcept nogil:
    """Walk a chain from its first descriptor, already fetched: direct ones, then perhaps one indirect (2.7.5.3.2)."""
    cdef uint32_t i = chain.head
    cdef uint32_t seen = 1
    cdef uint16_t flags
    cdef int why
    while True:
        flags = <uint16_t>(word >> 32)
        if flags & VIRTIO_DESC_F_INDIRECT:
            if flags & VIRTIO_DESC_F_NEXT:
                latch(&q.fault, VIRTIO_FAULT_INDIRECT_NEXT, chain.head, i, 0)
                return WALK_BROKEN
            return walk_indirect(q, w, chain, addr, <uint32_t>word, i)
        why = walk_piece(q, w, chain, addr, word, i)
        if why != WALK_OK or not flags & VIRTIO_DESC_F_NEXT:
            return why
        i = <uint32_t>(word >> 48)
        if i >= q.size:
            latch(&q.fault, VIRTIO_FAULT_NEXT_RANGE, chain.head, i, q.size)
            return WALK_BROKEN
        seen += 1
        if seen > q.size:
            latch(&q.fault, VIRTIO_FAULT_LOOP, chain.head, seen, q.size)
            return WALK_BROKEN
        addr = virtio_load64(<uint64_t *>(q.desc + i))
        word = virtio_load64(<uint64_t *>(q.desc + i) + 1)


cdef inline uint32_t split_pop_burst(virtio_device_queue *q, virtio_chain *chains, uint32_t limit, iovec *segs, uint32_t nsegs) noexcept nogil:
    """Take up to limit available chains; return how many. Their pieces go to segs, one chain's behind the other's.

    Stops early when segs is full, or at a chain that breaks the queue: those before it are good. A segs array of
    max_chain pieces and one more for each seam between adjacent regions takes every legal chain.
    """
    cdef uint16_t *ring
    cdef uint16_t mask = q.size - 1
    cdef uint16_t idx = q.next_avail
    cdef uint32_t ready
    cdef uint32_t n = 0
    cdef uint32_t s = 0
    cdef uint32_t head
    cdef uint64_t addr
    cdef uint64_t word
    cdef uint8_t *host
    cdef virtio_chain *chain
    cdef walk w
    if virtio_unlikely(q.fault.code != VIRTIO_FAULT_NONE):
        return 0
    ready = <uint16_t>(q.avail_seen - idx)
    if ready < limit:
        ready = split_refresh_avail(q)
    if ready > limit:
        ready = limit
    ring = q.avail.ring
    while n < ready:
        head = virtio_load16(ring + (idx & mask))
        if virtio_unlikely(head >= q.size):
            latch(&q.fault, VIRTIO_FAULT_HEAD_RANGE, head, head, q.size)
            break
        addr = virtio_load64(<uint64_t *>(q.desc + head))
        word = virtio_load64(<uint64_t *>(q.desc + head) + 1)
        chain = &chains[n]
        chain.head = <uint16_t>head
        chain.slots = 1
        host = NULL
        if virtio_likely(not (word >> 32) & (VIRTIO_DESC_F_NEXT | VIRTIO_DESC_F_INDIRECT) and <uint32_t>word != 0 and s < nsegs):
            host = memory_translate(q.memory, &q.hit, addr, <uint32_t>word)
        if virtio_likely(host is not NULL):
            segs[s].iov_base = host
            segs[s].iov_len = <uint32_t>word
            chain.first = s
            chain.written = 0
            if (word >> 32) & VIRTIO_DESC_F_WRITE:
                chain.readable = chain.nreadable = 0
                chain.nwritable = 1
                chain.writable = <uint32_t>word
            else:
                chain.writable = chain.nwritable = 0
                chain.nreadable = 1
                chain.readable = <uint32_t>word
            s += 1
        else:
            walk_start(&w, chain, segs, s, nsegs)
            if split_walk(q, &w, chain, addr, word) != WALK_OK:
                break
            s += w.used
        idx += 1
        n += 1
    q.next_avail = idx
    q.inuse += n
    q.chains += n
    return n


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
    cdef uint16_t mask = q.size - 1
    cdef uint16_t idx = q.next_used
    cdef uint16_t slot = idx
    cdef uint8_t *ring
    cdef uint32_t i
    if n == 0 or q.fault.code == VIRTIO_FAULT_RING_MEMORY:
        return
    ring = <uint8_t *>q.used.ring
    if q.flags & VIRTIO_Q_IN_ORDER:
        for i in range(n):
            idx += 1
            # one entry for a batch, at its first position, naming its last chain (2.7.9). A chain not written to
            # its end must have an entry of its own: the driver takes those without one as completely used.
            if i == n - 1 or chains[i].written != chains[i].writable:
                virtio_put64(ring + 8 * (slot & mask), chains[i].head | <uint64_t>chains[i].written << 32)
                slot = idx
    else:
        for i in range(n):
            virtio_put64(ring + 8 * (idx & mask), chains[i].head | <uint64_t>chains[i].written << 32)
            idx += 1
    # release: buffers and used entries are visible before the index that announces them (2.7.8.2)
    virtio_store16_release(&q.used.idx, idx)
    if virtio_unlikely(q.memory.log is not NULL):
        split_log_used(q, q.next_used, n)
    q.next_used = idx
    q.inuse -= n
    q.pending = pending_add(q.pending, n)
    q.completions += n


cdef inline uint32_t split_navail(virtio_device_queue *q) noexcept nogil:
    """Return how many chains are available and not popped."""
    if q.fault.code != VIRTIO_FAULT_NONE:
        return 0
    return split_refresh_avail(q)


cdef inline bint split_needs_notification(virtio_device_queue *q) noexcept nogil:
    """Decide whether the driver must be interrupted for what was used since the last decision."""
    cdef uint16_t pending = q.pending
    q.pending = 0
    if notify_quiet(&q.notify, q.next_used, pending, q.fault.code == VIRTIO_FAULT_RING_MEMORY):
        return 0
    virtio_fence()  # used.idx before used_event or avail.flags
    if q.flags & VIRTIO_Q_NOTIFY_ON_EMPTY and q.inuse == 0 and virtio_load16(&q.avail.idx) == q.next_avail:
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
