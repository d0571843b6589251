# Sums of bytes: the internet checksum (RFC 1071) in all its uses.
#
# A *partial sum* is a uint64_t that is congruent modulo 0xffff to the sum of the bytes as 16-bit words *in memory
# order* (so on a little-endian host a word is p[0] | p[1] << 8), and 0 only if every byte is 0. Each function adds
# less than 2^34 to it, so that 2^30 of them are added with a plain +. An odd last byte counts as if a 0 followed.
# Bytes that start at an odd offset of what is summed go in by sum_swap(). sum_fold() gives the 16 bits: its
# complement, stored as a native uint16_t, is the checksum on the wire. A *checksum* here is such a native uint16_t,
# too.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from virtio.core.iov cimport iovec


cdef extern from "virtio/simd.h" nogil:
    enum:
        SIMD_SCALAR "VIRTIO_SIMD_SCALAR"
        SIMD_AVX2 "VIRTIO_SIMD_AVX2"
        SIMD_AVX512 "VIRTIO_SIMD_AVX512"


cdef extern from "virtio/checksum.h" nogil:
    enum:
        SUM_SHORT "VIRTIO_SUM_SHORT"

    ctypedef struct sum_kernels "virtio_sum_kernels":
        uint64_t (*sum)(const uint8_t *p, size_t n) noexcept nogil
        uint64_t (*copy)(uint8_t *to, const uint8_t *p, size_t n) noexcept nogil

    uint16_t sum_fold "virtio_sum_fold"(uint64_t sum)           # 0 to 0xffff; 0 only for 0
    uint64_t sum_swap "virtio_sum_swap"(uint64_t sum)           # the sum as if one byte had come before
    uint16_t load_sum16 "virtio_sum_load16"(const uint8_t *p)   # native 16 bits, any alignment
    uint32_t load_sum32 "virtio_sum_load32"(const uint8_t *p)
    uint64_t load_sum64 "virtio_sum_load64"(const uint8_t *p)
    void store_sum16 "virtio_sum_store16"(uint8_t *p, uint16_t v)
    uint64_t sum_add "virtio_sum_add"(uint64_t a, uint64_t b)   # of words as they are loaded: no carry is lost
    uint64_t sum_narrow "virtio_sum_narrow"(uint64_t sum)       # the same below 2^33
    # for n that is small, or known when compiled: inlined whole
    uint64_t sum_short "virtio_sum_short"(const uint8_t *p, size_t n)
    uint64_t sum_copy_short "virtio_sum_copy_short"(uint8_t *to, const uint8_t *p, size_t n)
    uint16_t sum_be16 "__builtin_bswap16"(uint16_t v)           # a host's number as the packet has it, and back


# The path in use (SIMD_*) and its kernels. Chosen at import; other extensions that have paths of their own follow it.
cdef int simd_level
cdef sum_kernels kernels


# n up to 2^32. Reads n bytes and none around them.
cdef inline uint64_t sum_bytes(const uint8_t *p, size_t n) noexcept nogil:
    if n <= SUM_SHORT:
        return sum_short(p, n)
    return kernels.sum(p, n)


# memcpy(to, p, n), and the partial sum of what was copied, in one pass. No overlap. If p changes meanwhile, the sum may
# be of neither what was nor what is copied.
cdef inline uint64_t sum_copy(uint8_t *to, const uint8_t *p, size_t n) noexcept nogil:
    if n <= SUM_SHORT:
        return sum_copy_short(to, p, n)
    return kernels.copy(to, p, n)


# The same for n bytes that start at this offset of what is summed.
cdef inline uint64_t sum_at(size_t offset, const uint8_t *p, size_t n) noexcept nogil:
    cdef uint64_t sum = sum_bytes(p, n)
    return sum_swap(sum) if offset & 1 else sum


# Of `length` bytes of a gather list, `skip` bytes into it, wherever its pieces are split and however long they are.
# Stops where the list ends.
cdef uint64_t sum_gather(const iovec *pieces, size_t count, size_t skip, size_t length) noexcept nogil


# The checksum of what has this sum, as it is stored: a 0 becomes 0xffff, as UDP needs it, where 0 stands for none
# (RFC 768; RFC 8200, 8.1). In one's complement both are the same number. Not for a TCP or IPv4 header's own checksum:
# those of senders are 0 then, never 0xffff (RFC 1624, 3).
cdef inline uint16_t sum_finish(uint64_t sum) noexcept nogil:
    cdef uint16_t checksum = <uint16_t>~sum_fold(sum)
    return checksum if checksum else <uint16_t>0xffff


# Pseudo headers (RFC 9293, RFC 768; RFC 8200 section 8.1), from pointers to the addresses. length is that of the
# transport header and what follows it. IPv4 has 16 bits for it; a longer one, of a packet still to be cut, goes in
# whole as in Linux.
cdef inline uint64_t sum_pseudo4(const uint8_t *src, const uint8_t *dst, uint8_t protocol,
                                 uint32_t length) noexcept nogil:
    return (<uint64_t>load_sum32(src) + load_sum32(dst) + sum_be16(protocol)
            + sum_be16(<uint16_t>(length >> 16)) + sum_be16(<uint16_t>length))


cdef inline uint64_t sum_pseudo6(const uint8_t *src, const uint8_t *dst, uint8_t protocol,
                                 uint32_t length) noexcept nogil:
    cdef uint64_t sum = sum_add(sum_add(load_sum64(src), load_sum64(src + 8)),
                                sum_add(load_sum64(dst), load_sum64(dst + 8)))
    return sum_narrow(sum) + sum_be16(protocol) + sum_be16(<uint16_t>(length >> 16)) + sum_be16(<uint16_t>length)


# The checksum after some of what it covers changed, from partial sums of the old and the new bytes (RFC 1624,
# equation 3). The bytes start at an even offset of what is summed. It is what summing anew gives, but for data that
# become all zero: 0 here, 0xffff there. A field of 16 or 32 bits, as the native number that a load gives, is a partial
# sum. A UDP checksum of 0 stands for none, is not to be updated, and as a result must become 0xffff.
cdef inline uint16_t checksum_update(uint16_t checksum, uint64_t old, uint64_t new) noexcept nogil:
    return <uint16_t>~sum_fold(<uint64_t><uint16_t>~checksum + <uint16_t>~sum_fold(old) + sum_fold(new))


cdef enum:
    COMPLETE_OK = 0
    COMPLETE_START = 1   # csum_start is beyond the frame
    COMPLETE_FIELD = 2   # the checksum field is not within the frame

# Do what VIRTIO_NET_HDR_F_NEEDS_CSUM asks for (VIRTIO 1.4, 5.1.9.2): the field, csum_offset behind csum_start, holds
# the sum of the pseudo header; it becomes the checksum of everything from csum_start to the frame's end. A result of
# 0 is stored as 0xffff, as Linux's skb_checksum_help() does whatever the protocol: UDP needs it, for others both are
# the same number. Returns COMPLETE_*; the frame is not touched unless it is COMPLETE_OK.
cdef int checksum_complete(uint8_t *frame, size_t length, size_t csum_start, size_t csum_offset) noexcept nogil
