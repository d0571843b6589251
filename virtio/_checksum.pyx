"""Sums of bytes: the internet checksum (RFC 1071) in all its uses, and CRC32c."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef uint64_t sum_bytes(const uint8_t *p, size_t n) noexcept nogil:
    cdef uint64_t total = 0
    while n >= 2:
        total += load_sum16(p)
        p += 2
        n -= 2
    if n:
        total += p[0]
    return total


cdef uint64_t sum_copy(uint8_t *to, const uint8_t *p, size_t n) noexcept nogil:
    memcpy(to, p, n)
    return sum_bytes(p, n)
