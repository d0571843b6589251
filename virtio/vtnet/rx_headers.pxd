# What the headers of a received packet say: checked against the packet, and completed in its buffers.
#
# Compiled into virtio.vtnet.rxq and nowhere else.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from virtio.core.atomic cimport virtio_likely
from virtio.core.counters cimport add_count
from virtio.core.iov cimport iov_head, iov_write, iovec
from virtio.offload.counters cimport (
    VIRTIO_RX_BAD, VIRTIO_RX_CSUM_NONE, VIRTIO_RX_NEEDS_CHECKSUM, VIRTIO_RX_UNKNOWN, virtio_rx_offload,
)
from virtio.offload.frame cimport frame_parse, virtio_frame
from virtio.offload.inet_checksum cimport sum_finish, sum_gather
from virtio.offload.rx cimport offload_complete, offload_receive, rx_offload_clear
from virtio.offload.segmenter cimport VIRTIO_SEGMENT_HEADERS_MAX, segment_scratch
from virtio.ports.port cimport virtio_packet
from virtio.vtnet.rxq cimport vtnet_rx


cdef inline bint rx_classify(vtnet_rx *rx, const virtio_packet *packet, const uint8_t *p,
                             virtio_rx_offload *info) noexcept nogil:
    """Hold a packet's header against the packet, whose headers at least are at p; whether it can be true. Counts."""
    cdef virtio_frame parsed
    if virtio_likely(not packet.hdr.flags and not packet.hdr.gso_type):
        rx_offload_clear(info)
        info.segments = 1
        add_count(&rx.reasons[VIRTIO_RX_CSUM_NONE], 1)
        return True
    frame_parse(&parsed, p, packet.len)
    offload_receive(info, &packet.hdr, p, &parsed, rx.given)
    add_count(&rx.reasons[info.reason], 1)
    if info.verdict == VIRTIO_RX_BAD:
        add_count(&rx.stats.csum_failed, 1)
        add_count(&rx.stats.ierrors, 1)
        return False
    add_count(&rx.stats.csum, info.verdict != VIRTIO_RX_UNKNOWN)
    return True


cdef inline const uint8_t *rx_headers(const virtio_packet *packet, const iovec *pieces) noexcept nogil:
    """A packet's headers in one piece, to be parsed: behind those of many pieces there are zeros."""
    cdef uint8_t *scratch
    cdef size_t n
    if packet.nsegs == 1:
        return <const uint8_t *>pieces[0].iov_base
    scratch = segment_scratch()
    n = iov_head(scratch, pieces, packet.nsegs, 0, VIRTIO_SEGMENT_HEADERS_MAX)
    memset(scratch + n, 0, VIRTIO_SEGMENT_HEADERS_MAX - n)
    return scratch


cdef inline void store_word(const iovec *pieces, uint32_t at, uint16_t word) noexcept nogil:
    """Write a sum as it is stored."""
    iov_write(pieces, at, <const uint8_t *>&word, sizeof(word))


cdef inline void complete_pieces(const iovec *pieces, uint32_t n, uint32_t start, uint32_t field,
                                 uint32_t end) noexcept nogil:
    """checksum_complete() for a packet in pieces, up to byte `end`."""
    store_word(pieces, start + field, sum_finish(sum_gather(pieces, n, start, end - start)))


cdef inline bint rx_is_incomplete(const virtio_rx_offload *info) noexcept nogil:
    """Whether offload_complete() has something to do for a packet."""
    return info.verdict == VIRTIO_RX_NEEDS_CHECKSUM or info.nmends != 0


cdef inline void rx_complete(const virtio_packet *packet, const iovec *pieces,
                             const virtio_rx_offload *info) noexcept nogil:
    """Store the mended fields, and compute the sum that NEEDS_CHECKSUM says is missing, in the buffers."""
    cdef uint32_t i
    if not rx_is_incomplete(info):
        return
    if packet.nsegs == 1:
        offload_complete(<uint8_t *>pieces.iov_base, info)
        return
    for i in range(info.nmends):
        store_word(pieces, info.mends[i].at, info.mends[i].word)
    if info.verdict != VIRTIO_RX_NEEDS_CHECKSUM:
        return
    if info.pseudo:
        store_word(pieces, info.csum_start + info.csum_offset, info.pseudo)
    complete_pieces(pieces, packet.nsegs, info.csum_start, info.csum_offset, info.csum_end)
    if info.outer_start:
        complete_pieces(pieces, packet.nsegs, info.outer_start, 6, info.outer_end)
