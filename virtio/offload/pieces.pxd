# Frames in pieces of memory: writing to them, reading out of them, completing their checksum. `skip` is where the frame
# starts, in bytes from the start of the pieces, which hold all of it.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from virtio.core.iov cimport iovec
from virtio.offload.inet_checksum cimport sum_finish, sum_gather
from virtio.offload.net_hdr cimport virtio_net_hdr


cdef inline void scatter(const iovec *to, uint64_t skip, const uint8_t *p, uint64_t n) noexcept nogil:
    """Write n bytes."""
    cdef uint64_t part
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


cdef inline void collect(uint8_t *to, const iovec *pieces, uint64_t skip, uint64_t n) noexcept nogil:
    """Read n bytes."""
    cdef uint64_t done = 0, part
    while done < n:
        if skip >= pieces.iov_len:
            skip -= pieces.iov_len
        else:
            part = min(pieces.iov_len - skip, n - done)
            memcpy(to + done, <const uint8_t *>pieces.iov_base + skip, part)
            done += part
            skip = 0
        pieces += 1


cdef inline bint complete(const iovec *to, uint32_t npieces, uint32_t skip, const virtio_net_hdr *hdr,
                          uint32_t length) noexcept nogil:
    """Complete the checksum of a frame as checksum_complete does; False if there is no such field."""
    cdef uint32_t field = <uint32_t>hdr.csum_start + hdr.csum_offset
    cdef uint16_t checksum
    if field + 2 > length:
        return False
    checksum = sum_finish(sum_gather(to, npieces, skip + hdr.csum_start, length - hdr.csum_start))
    scatter(to, skip + field, <const uint8_t *>&checksum, 2)
    return True
