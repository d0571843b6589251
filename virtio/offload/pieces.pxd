# Frames in pieces of memory: completing their checksum. `skip` is where the frame starts, in bytes from the start of
# the pieces, which hold all of it.
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from virtio.core.iov cimport iov_write, iovec
from virtio.offload.inet_checksum cimport sum_finish, sum_gather
from virtio.offload.net_hdr cimport virtio_net_hdr


cdef inline bint complete(const iovec *to, uint32_t npieces, uint32_t skip, const virtio_net_hdr *hdr,
                          uint32_t length) noexcept nogil:
    """Complete the checksum of a frame as checksum_complete does; False if there is no such field."""
    cdef uint32_t field = <uint32_t>hdr.csum_start + hdr.csum_offset
    cdef uint16_t checksum
    if field + 2 > length:
        return False
    checksum = sum_finish(sum_gather(to, npieces, skip + hdr.csum_start, length - hdr.csum_start))
    iov_write(to, skip + field, <const uint8_t *>&checksum, 2)
    return True
