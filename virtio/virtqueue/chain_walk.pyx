"""Descriptor chaining at the device end: from descriptors that a hostile driver wrote to pieces of host memory.

Each descriptor is fetched once, as two 64-bit words, and only the copies are checked and used (no double fetch).
Sources: VIRTIO 1.4, 2.7.5 (split chains and indirect tables), 2.8.5 to 2.8.8 (packed lists and tables).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, UINT32_MAX, UINT64_MAX

from virtio.core.atomic cimport virtio_fetch64, virtio_likely, virtio_load64, virtio_unlikely
from virtio.memory.guest_memory cimport memory_gather, memory_translate, virtio_region
from virtio.virtqueue.structs cimport (
    VIRTIO_DESC_F_INDIRECT, VIRTIO_DESC_F_NEXT, VIRTIO_DESC_F_WRITE, VIRTIO_FAULT_CHAIN_BYTES, VIRTIO_FAULT_CHAIN_LONG,
    VIRTIO_FAULT_INDIRECT_FEATURE, VIRTIO_FAULT_INDIRECT_LEN, VIRTIO_FAULT_INDIRECT_NEXT, VIRTIO_FAULT_LOOP,
    VIRTIO_FAULT_MEMORY, VIRTIO_FAULT_NESTED_INDIRECT, VIRTIO_FAULT_NEXT_RANGE, VIRTIO_FAULT_READ_AFTER_WRITE,
    VIRTIO_FAULT_RING_OVERRUN, VIRTIO_FAULT_SEGMENTS, VIRTIO_FAULT_ZERO_LENGTH, VIRTIO_Q_INDIRECT, VIRTIO_Q_READ_TABLES,
    latch,
)


cdef bint walk_is_single(virtio_device_queue *q, uint64_t addr, uint32_t length, uint64_t other) noexcept nogil:
    return not other and length != 0 and memory_translate(q.memory, &q.hit, addr, length) is not NULL


cdef int walk_piece(virtio_device_queue *q, walk *w, virtio_chain *chain, uint64_t addr, uint64_t word,
                    uint32_t index) noexcept nogil:
    """Add one descriptor's buffer to the chain. word: length in bits 0-31, flags from bit 32."""
    cdef uint32_t length = <uint32_t>word
    cdef bint write = (word >> 32) & VIRTIO_DESC_F_WRITE
    cdef uint8_t *host
    cdef int pieces
    w.ndesc += 1
    if virtio_unlikely(w.ndesc > q.max_walk):
        if w.ndesc <= q.max_chain:
            return WALK_ENOUGH
        latch(&q.fault, VIRTIO_FAULT_CHAIN_LONG, chain.head, w.ndesc, q.max_chain)
        return WALK_BROKEN
    if length == 0:
        latch(&q.fault, VIRTIO_FAULT_ZERO_LENGTH, chain.head, index, 0)
        return WALK_BROKEN
    if not write and chain.nwritable:
        latch(&q.fault, VIRTIO_FAULT_READ_AFTER_WRITE, chain.head, index, 0)
        return WALK_BROKEN
    if w.readable + w.writable + length > <uint64_t>1 << 32:
        latch(&q.fault, VIRTIO_FAULT_CHAIN_BYTES, chain.head, w.readable + w.writable + length, <uint64_t>1 << 32)
        return WALK_BROKEN
    host = memory_translate(q.memory, &q.hit, addr, length)
    if virtio_likely(host is not NULL and w.used < w.room):
        w.segs[w.used].iov_base = host
        w.segs[w.used].iov_len = length
        pieces = 1
    else:
        # over the seam of two adjacent regions, or outside
        pieces = memory_gather(q.memory, addr, length, w.segs + w.used, w.room - w.used)
        if pieces == -1:
            latch(&q.fault, VIRTIO_FAULT_MEMORY, chain.head, addr, length)
            return WALK_BROKEN
        if pieces == -2:
            if chain.first:
                return WALK_NO_ROOM
            latch(&q.fault, VIRTIO_FAULT_SEGMENTS, chain.head, w.room + 1, w.room)
            return WALK_BROKEN
    w.used += pieces
    if write:
        chain.nwritable += pieces
        w.writable += length
    else:
        chain.nreadable += pieces
        w.readable += length
    return WALK_OK


cdef int walk_indirect(virtio_device_queue *q, walk *w, virtio_chain *chain, uint64_t addr, uint32_t length,
                       uint32_t index) noexcept nogil:
    """Walk an indirect table: linked by next in a split ring (2.7.5.3), simply consecutive in a packed one (2.8.8)."""
    cdef virtio_region table_hit  # its own, so that tables do not drive the buffers' region out of q.hit
    cdef uint32_t entries = length // 16
    cdef uint32_t i = 0
    cdef uint32_t seen = 0
    cdef uint8_t *base
    cdef uint8_t *entry
    cdef uint64_t word
    cdef uint16_t flags
    cdef uint16_t next
    cdef int why
    table_hit.gpa = table_hit.size = 0
    table_hit.host = NULL
    if not q.flags & VIRTIO_Q_INDIRECT:
        latch(&q.fault, VIRTIO_FAULT_INDIRECT_FEATURE, chain.head, index, 0)
        return WALK_BROKEN
    if length == 0 or length % 16 or entries > q.max_chain:
        latch(&q.fault, VIRTIO_FAULT_INDIRECT_LEN, chain.head, length, <uint64_t>q.max_chain * 16)
        return WALK_BROKEN
    if addr > UINT64_MAX - length:
        latch(&q.fault, VIRTIO_FAULT_MEMORY, chain.head, addr, length)
        return WALK_BROKEN
    if range_holds(q.hit.gpa, q.hit.size, addr, length):
        base = q.hit.host + (addr - q.hit.gpa)
    else:
        base = memory_translate(q.memory, &table_hit, addr, length)
    while True:
        if virtio_likely(base is not NULL):
            entry = base + 16 * i
        else:  # over the seam of two regions, or partly outside: entry by entry
            entry = memory_translate(q.memory, &table_hit, addr + 16 * i, 16)
            if entry is NULL:
                latch(&q.fault, VIRTIO_FAULT_MEMORY, chain.head, addr + 16 * i, 16)
                return WALK_BROKEN
        word = virtio_fetch64(entry + 8)
        flags = <uint16_t>(word >> 48) if q.packed else <uint16_t>(word >> 32)
        next = <uint16_t>(word >> 48)
        if flags & VIRTIO_DESC_F_INDIRECT:
            latch(&q.fault, VIRTIO_FAULT_NESTED_INDIRECT, chain.head, i, 0)
            return WALK_BROKEN
        if q.flags & VIRTIO_Q_READ_TABLES and q.packed:
            flags &= <uint16_t>~VIRTIO_DESC_F_WRITE
        why = walk_piece(q, w, chain, virtio_fetch64(entry), <uint32_t>word | <uint64_t>flags << 32, i)
        if why != WALK_OK:
            return why
        seen += 1
        if q.packed:
            i += 1
            if i == entries:
                return WALK_OK
        else:
            if not flags & VIRTIO_DESC_F_NEXT:
                return WALK_OK
            if next >= entries:
                latch(&q.fault, VIRTIO_FAULT_NEXT_RANGE, chain.head, next, entries)
                return WALK_BROKEN
            if seen == entries:
                latch(&q.fault, VIRTIO_FAULT_LOOP, chain.head, seen + 1, entries)
                return WALK_BROKEN
            i = next


cdef void walk_start(walk *w, virtio_chain *chain, iovec *segs, uint32_t first, uint32_t nsegs) noexcept nogil:
    w.segs = segs + first
    # a chain counts its pieces in 16 bits; those behind the first share the burst's
    nsegs = min(nsegs, <uint32_t>(WALK_BURST if first else 0xffff))
    w.room = nsegs - first if nsegs > first else 0
    w.used = w.ndesc = 0
    w.readable = w.writable = 0
    chain.written = 0
    chain.first = first
    chain.nreadable = chain.nwritable = 0


cdef int walk_end(walk *w, virtio_chain *chain, uint32_t slots) noexcept nogil:
    chain.slots = <uint16_t>slots
    chain.readable = <uint32_t>(w.readable if w.readable < UINT32_MAX else UINT32_MAX)
    chain.writable = <uint32_t>(w.writable if w.writable < UINT32_MAX else UINT32_MAX)
    return WALK_OK


cdef int walk_split(virtio_device_queue *q, virtio_chain *chain, iovec *segs, uint32_t first, uint32_t nsegs,
                    uint64_t addr, uint64_t word) noexcept nogil:
    """Walk the chain chain.head of a split ring, whose first descriptor is fetched already.

    Direct descriptors, then perhaps one indirect (2.7.5.3.2). Its head is all that giving it back takes.
    """
    cdef walk w
    cdef uint32_t i = chain.head
    cdef uint32_t seen = 1
    cdef uint16_t flags
    cdef int why
    walk_start(&w, chain, segs, first, nsegs)
    while True:
        flags = <uint16_t>(word >> 32)
        if flags & VIRTIO_DESC_F_INDIRECT:
            if flags & VIRTIO_DESC_F_NEXT:
                latch(&q.fault, VIRTIO_FAULT_INDIRECT_NEXT, chain.head, i, 0)
                return WALK_BROKEN
            why = walk_indirect(q, &w, chain, addr, <uint32_t>word, i)
        else:
            why = walk_piece(q, &w, chain, addr, word, i)
        if why != WALK_OK:
            return walk_end(&w, chain, 1) if why == WALK_ENOUGH else why
        if not flags & VIRTIO_DESC_F_NEXT:
            return walk_end(&w, chain, 1)
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


cdef int walk_packed(virtio_device_queue *q, const virtio_packed_desc *ring, uint32_t slot, uint32_t inuse,
                     virtio_chain *chain, iovec *segs, uint32_t first, uint32_t nsegs, uint64_t addr,
                     uint64_t word) noexcept nogil:
    """Walk the list at slot of a packed ring, or of descriptors copied from one.

    The first descriptor is fetched already; inuse slots are out already.

    Sets chain.head, the buffer id, which counts in the last descriptor (2.8.5), and chain.slots.
    """
    cdef walk w
    cdef uint32_t slots = 1
    cdef uint16_t flags
    cdef int why
    walk_start(&w, chain, segs, first, nsegs)
    while True:
        flags = <uint16_t>(word >> 48)
        chain.head = <uint16_t>(word >> 32)
        if flags & VIRTIO_DESC_F_INDIRECT:
            if flags & VIRTIO_DESC_F_NEXT:
                latch(&q.fault, VIRTIO_FAULT_INDIRECT_NEXT, chain.head, slot, 0)
                return WALK_BROKEN
            why = walk_indirect(q, &w, chain, addr, <uint32_t>word, slot)
        else:
            why = walk_piece(q, &w, chain, addr, <uint32_t>word | <uint64_t>flags << 32, slot)
        if why != WALK_OK and why != WALK_ENOUGH:  # its slots are counted to the end, and its id is in the last
            return why
        if not flags & VIRTIO_DESC_F_NEXT:
            return walk_end(&w, chain, slots)
        slots += 1
        if slots + inuse > q.size:  # it would run into descriptors that are still out
            latch(&q.fault, VIRTIO_FAULT_RING_OVERRUN, chain.head, slots + inuse, q.size)
            return WALK_BROKEN
        slot = slot + 1 if slot + 1 < q.size else 0
        addr = virtio_load64(&ring[slot].addr)
        word = virtio_load64(<const uint64_t *>&ring[slot].len)
