# Bytes that lie in pieces: struct iovec, as system calls take it. `skip` is where a walk begins, in bytes from the
# start of the first piece. Pieces may be empty.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy


cdef extern from "sys/uio.h" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len


cdef inline size_t iov_size(const iovec *pieces, uint32_t count) noexcept nogil:
    """Return how many bytes the pieces hold."""
    cdef size_t size = 0
    cdef uint32_t i
    for i in range(count):
        size += pieces[i].iov_len
    return size


cdef inline void iov_read_all(uint8_t *to, const iovec *pieces, uint32_t count) noexcept nogil:
    """Copy the pieces to `to`, which has room for iov_size() bytes."""
    cdef uint32_t i
    for i in range(count):
        memcpy(to, pieces[i].iov_base, pieces[i].iov_len)
        to += pieces[i].iov_len


cdef inline size_t iov_head(uint8_t *to, const iovec *pieces, uint32_t count, size_t skip, size_t n) noexcept nogil:
    """Copy n bytes, or as many as the pieces hold; return how many."""
    cdef size_t done = 0, part
    cdef uint32_t i
    for i in range(count):
        if done == n:
            break
        if skip >= pieces[i].iov_len:
            skip -= pieces[i].iov_len
            continue
        part = min(pieces[i].iov_len - skip, n - done)
        memcpy(to + done, <const uint8_t *>pieces[i].iov_base + skip, part)
        done += part
        skip = 0
    return done


cdef inline void iov_read(uint8_t *to, const iovec *pieces, size_t skip, size_t n) noexcept nogil:
    """Copy n bytes out of pieces that hold all of them."""
    cdef size_t part
    while n:
        if skip >= pieces.iov_len:
            skip -= pieces.iov_len
        else:
            part = min(pieces.iov_len - skip, n)
            memcpy(to, <const uint8_t *>pieces.iov_base + skip, part)
            to += part
            n -= part
            skip = 0
        pieces += 1


cdef inline void iov_write(const iovec *to, size_t skip, const uint8_t *p, size_t n) noexcept nogil:
    """Copy n bytes into pieces that have room for all of them."""
    cdef size_t part
    while n:
        if skip >= to.iov_len:
            skip -= to.iov_len
        else:
            part = min(to.iov_len - skip, n)
            memcpy(<uint8_t *>to.iov_base + skip, p, part)
            p += part
            n -= part
            skip = 0
        to += 1


cdef inline uint32_t iov_take(uint8_t *to, iovec *pieces, size_t n) noexcept nogil:
    """Take the first n bytes out of pieces that hold more; return how many pieces are empty now."""
    cdef uint32_t empty = 0
    cdef size_t part
    while n:
        part = min(pieces.iov_len, n)
        memcpy(to, pieces.iov_base, part)
        to += part
        n -= part
        pieces.iov_base = <uint8_t *>pieces.iov_base + part
        pieces.iov_len -= part
        if pieces.iov_len == 0:
            pieces += 1
            empty += 1
    return empty


cdef inline uint32_t iov_slice(iovec *to, uint32_t room, const iovec *pieces, uint32_t count, size_t skip,
                               size_t *n) noexcept nogil:
    """Point up to `room` pieces at *n bytes of others; return how many pieces. *n becomes what is left of it."""
    cdef uint32_t used = 0, i
    cdef size_t part
    for i in range(count):
        if n[0] == 0 or used == room:
            break
        if skip >= pieces[i].iov_len:
            skip -= pieces[i].iov_len
            continue
        part = min(pieces[i].iov_len - skip, n[0])
        to[used].iov_base = <uint8_t *>pieces[i].iov_base + skip
        to[used].iov_len = part
        used += 1
        n[0] -= part
        skip = 0
    return used


cdef struct iov_cursor:  # a place in pieces
    const iovec *piece
    size_t skip          # bytes into it


cdef inline size_t iov_left(iov_cursor *at) noexcept nogil:
    """Return how many bytes are left in the piece at hand: the next one, where one ends. More bytes must come."""
    while at.skip >= at.piece.iov_len:
        at.skip -= at.piece.iov_len
        at.piece += 1
    return at.piece.iov_len - at.skip
