# Sums of bytes: the internet checksum (RFC 1071) in all its uses, and CRC32c.
#
# A *partial sum* is a uint64_t that is congruent modulo 0xffff to the sum of the bytes as 16-bit words *in memory order*
# (so on a little-endian host a word is p[0] | p[1] << 8), and 0 only if every byte is 0. Each function adds less than
# 2^33 to it, so that billions of them are added with a plain +. An odd last byte counts as if a 0 followed. Bytes that
# start at an odd offset of what is summed go in by sum_swap(). sum_fold() gives the 16 bits: its complement, stored as
# a native uint16_t, is the checksum on the wire.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from virtio._memory cimport iovec


cdef extern from "virtio/checksum.h" nogil:
    uint16_t sum_fold "virtio_sum_fold"(uint64_t sum)           # 0 to 0xffff; 0 only for 0
    uint64_t sum_swap "virtio_sum_swap"(uint64_t sum)           # the sum as if one byte had come before
    uint16_t load_sum16 "virtio_sum_load16"(const uint8_t *p)   # native 16 bits, any alignment
    void store_sum16 "virtio_sum_store16"(uint8_t *p, uint16_t v)


cdef uint64_t sum_bytes(const uint8_t *p, size_t n) noexcept nogil
# memcpy(to, p, n), and the partial sum of what was copied, in one pass. No overlap.
cdef uint64_t sum_copy(uint8_t *to, const uint8_t *p, size_t n) noexcept nogil
