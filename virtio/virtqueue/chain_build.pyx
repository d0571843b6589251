"""Descriptor chaining at the driver end: from pieces of a buffer to descriptors, direct ones or an indirect table.

Sources: VIRTIO 1.4, 2.7.5 and 2.7.13 (split), 2.8.5 to 2.8.8 (packed); the rule of when a table is used is FreeBSD's.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t, UINT32_MAX

from virtio.virtqueue.structs cimport (
    VIRTIO_DESC_F_INDIRECT, VIRTIO_DESC_F_NEXT, VIRTIO_DESC_F_WRITE, VIRTIO_ENQ_BYTES, VIRTIO_ENQ_EMPTY,
    VIRTIO_ENQ_FULL, VIRTIO_ENQ_OK, VIRTIO_ENQ_TOO_BIG, VIRTIO_Q_IN_ORDER, state_word,
)


cdef int sg_check(const virtio_sg *sg, uint32_t readable, uint32_t writable, uint32_t *bytes_writable) noexcept nogil:
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


cdef inline uint64_t piece_flags(uint32_t k, uint32_t readable, uint32_t pieces) noexcept nogil:
    """The flags of piece k of a chain whose first `readable` pieces are read; NEXT for all but the last of `pieces`."""
    return (VIRTIO_DESC_F_WRITE if k >= readable else 0) | (VIRTIO_DESC_F_NEXT if k + 1 < pieces else 0)


cdef int build_split(virtio_driver_queue *q, const virtio_sg *sg, virtio_request *req) noexcept nogil:
    """Place a chain of several pieces: in one indirect table if there is one that takes it, else descriptor by
    descriptor.
    """
    cdef uint32_t pieces = <uint32_t>req.readable + req.writable
    cdef uint16_t head = q.free_head
    cdef uint16_t i = head
    cdef uint16_t last = head
    cdef uint32_t writable = 0
    cdef uint32_t k
    cdef virtio_desc *table
    cdef uint64_t offset
    cdef uint64_t flags
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
            flags = piece_flags(k, req.readable, pieces)
            split_put_desc(table, <uint16_t>k, sg[k].gpa, sg[k].len, flags, k + 1 if k + 1 < pieces else 0)
        split_put_desc(q.desc, head, q.indirect_gpa + offset, 16 * pieces, VIRTIO_DESC_F_INDIRECT, 0)
        q.free_head = q.links[head]
        q.nfree -= 1
        pieces = 1
    else:
        if pieces > q.nfree:
            return VIRTIO_ENQ_TOO_BIG
        for k in range(pieces):
            last = i
            i = q.links[i]
            flags = piece_flags(k, req.readable, pieces)
            split_put_desc(q.desc, last, sg[k].gpa, sg[k].len, flags, i if k + 1 < pieces else 0)
        q.free_head = i
        q.nfree -= pieces
    q.state[head].cookie = req.cookie
    q.state[head].word = state_word(writable, pieces)
    req.head = head
    return VIRTIO_ENQ_OK


cdef int build_packed(virtio_driver_queue *q, const virtio_sg *sg, virtio_request *req,
                      uint64_t *head_word) noexcept nogil:
    """Write a chain of several pieces, all but the last word of its first descriptor, which goes to head_word."""
    cdef uint32_t pieces = <uint32_t>req.readable + req.writable
    cdef uint16_t slot = q.next_avail
    cdef bint wrap = q.avail_wrap
    cdef uint16_t id = slot if q.flags & VIRTIO_Q_IN_ORDER else q.free_head
    cdef uint32_t writable = 0
    cdef uint32_t k
    cdef uint64_t offset
    cdef uint64_t flags
    cdef uint64_t word
    cdef uint64_t *table
    cdef int why = sg_check(sg, req.readable, req.writable, &writable)
    if pieces == 0:
        return VIRTIO_ENQ_EMPTY
    if why != VIRTIO_ENQ_OK:
        return why
    if q.nfree == 0:
        return VIRTIO_ENQ_FULL
    if pieces >= 2 and pieces <= q.max_indirect:
        offset = <uint64_t>id * q.max_indirect * 16
        table = <uint64_t *>(q.indirect + offset)
        for k in range(pieces):
            virtio_store64(table + 2 * k, sg[k].gpa)
            flags = piece_flags(k, req.readable, 0)  # entries follow each other without NEXT (2.8.8)
            virtio_store64(table + 2 * k + 1, packed_word(sg[k].len, 0, flags))
        virtio_store64(&q.ring[slot].addr, q.indirect_gpa + offset)
        head_word[0] = packed_word(16 * pieces, id, VIRTIO_DESC_F_INDIRECT | packed_avail_bits(wrap))
        slot += 1
        pieces = 1
    else:
        if pieces > q.nfree:
            return VIRTIO_ENQ_TOO_BIG
        for k in range(pieces):
            virtio_store64(&q.ring[slot].addr, sg[k].gpa)
            # the id counts in the last descriptor only (2.8.5), and is written to all
            flags = piece_flags(k, req.readable, pieces) | packed_avail_bits(wrap)
            word = packed_word(sg[k].len, id, flags)
            if k == 0:
                head_word[0] = word
            else:
                virtio_store64(<uint64_t *>&q.ring[slot].len, word)
            slot += 1
            if slot == q.size:
                slot = 0
                wrap = not wrap
    if slot == q.size:
        slot = 0
        wrap = not wrap
    if not q.flags & VIRTIO_Q_IN_ORDER:
        q.free_head = q.links[id]
    q.next_avail = slot
    q.avail_wrap = wrap
    q.nfree -= pieces
    q.state[id].cookie = req.cookie
    q.state[id].word = state_word(writable, pieces)
    req.head = id
    return VIRTIO_ENQ_OK
