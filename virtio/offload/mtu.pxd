# Whether a frame is longer than the MTU that was negotiated (VIRTIO 1.4, 5.1.4.1, 5.1.4.2). `limit` is the MTU and an
# Ethernet header; up to two VLAN tags count on top. A frame begins `skip` bytes into its pieces, which hold all of it.
from libc.stdint cimport uint8_t, uint32_t

from virtio.core.iov cimport iov_read, iovec
from virtio.offload.net_hdr cimport (
    NET_HDR_GSO_MASK, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_UDP, VIRTIO_NET_HDR_GSO_UDP_L4, virtio_net_hdr,
)
from virtio.offload.protocols cimport ETHERTYPE_QINQ, ETHERTYPE_VLAN


cdef enum:
    MTU_TAGS = 8          # bytes of the tags that count on top
    MTU_TAG = 4
    MTU_UDP_HEADER = 8
    MTU_TCP_OFFSET = 12   # of the byte that has the header's length


cdef inline uint32_t limit_of(uint32_t limit, const iovec *pieces, uint32_t skip) noexcept nogil:
    """Return how long the frame may be, with the tags that it has."""
    cdef uint8_t head[20]
    cdef uint32_t at = 12, tpid
    iov_read(head, pieces, skip, sizeof(head))
    while at < 12 + MTU_TAGS:
        tpid = <uint32_t>head[at] << 8 | head[at + 1]
        if tpid != ETHERTYPE_VLAN and tpid != ETHERTYPE_QINQ:
            break
        at += MTU_TAG
    return limit + at - 12


cdef inline uint32_t segment_length(const virtio_net_hdr *hdr, uint32_t length, const iovec *pieces,
                                    uint32_t skip) noexcept nogil:
    """Return how long a frame's segments are, by its header: without a checksum to complete, by a mere hint."""
    cdef uint32_t headers = hdr.hdr_len, kind = hdr.gso_type & NET_HDR_GSO_MASK
    cdef uint8_t offset = 0
    if hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        headers = hdr.csum_start
        if kind == VIRTIO_NET_HDR_GSO_UDP_L4:
            headers += MTU_UDP_HEADER
        elif kind != VIRTIO_NET_HDR_GSO_UDP and headers + MTU_TCP_OFFSET < length:
            iov_read(&offset, pieces, skip + headers + MTU_TCP_OFFSET, 1)
            headers += (offset >> 4) * 4
    return headers + hdr.gso_size


cdef inline bint exceeds(uint32_t limit, const virtio_net_hdr *hdr, uint32_t length, const iovec *pieces,
                         uint32_t skip) noexcept nogil:
    """Say whether a frame of more than limit bytes is too long, tags and GSO considered."""
    if hdr.gso_type & NET_HDR_GSO_MASK:
        length = min(length, segment_length(hdr, length, pieces, skip))
    return length > limit_of(limit, pieces, skip)
