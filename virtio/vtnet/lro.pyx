"""Software LRO of a receive queue."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t, UINT64_MAX
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from virtio.core.counters cimport add_count
from virtio.offload.coalesce cimport (
    VIRTIO_COALESCE_HEADER_MAX, coalesce_burst, coalesce_flush, coalescer_close, coalescer_limits, coalescer_open,
)
from virtio.offload.net_hdr cimport VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM

cdef enum:
    IP_MAX = 65535


cdef vtnet_lro *lro_new(const uint64_t *secret) noexcept nogil:
    cdef coalescer_limits limits
    cdef vtnet_lro *lro = <vtnet_lro *>calloc(1, sizeof(vtnet_lro))
    if lro is NULL:
        return NULL
    memset(&limits, 0, sizeof(limits))
    limits.flows = LRO_FLOWS
    limits.segments = LRO_SEGMENTS
    limits.max_bytes = IP_MAX
    limits.max_age = UINT64_MAX
    limits.verify = True
    memcpy(limits.secret, secret, sizeof(limits.secret))
    if coalescer_open(&lro.c, &limits) < 0:
        free(lro)
        return NULL
    return lro


cdef void lro_free(vtnet_lro *lro) noexcept nogil:
    if lro is not NULL:
        coalescer_close(&lro.c)
        free(lro)


cdef void add_piece(vtnet_lro *lro, virtio_packet *packet, const void *base, uint32_t length) noexcept nogil:
    lro.segs[lro.nsegs].iov_base = <void *>base
    lro.segs[lro.nsegs].iov_len = length
    lro.nsegs += 1
    packet.nsegs += 1


cdef void pass_on(vtnet_lro *lro, const virtio_packet *given, const iovec *segs) noexcept nogil:
    """A packet as it came."""
    cdef virtio_packet *packet = &lro.packets[lro.n]
    cdef uint32_t k
    packet[0] = given[0]
    packet.first = lro.nsegs
    packet.nsegs = 0
    for k in range(given.nsegs):
        add_piece(lro, packet, segs[given.first + k].iov_base, <uint32_t>segs[given.first + k].iov_len)
    lro.n += 1


cdef void collect(vtnet_lro *lro, uint32_t nout, const virtio_packet *packets, const iovec *segs) noexcept nogil:
    """Take results of the coalescer over: they are gone at its next call."""
    cdef const virtio_merged *merged
    cdef virtio_packet *packet
    cdef uint8_t *header
    cdef uint32_t i, k
    for i in range(nout):
        merged = &lro.results[i]
        if merged.header_length == 0:
            pass_on(lro, &packets[merged.whole.cookie], segs)
            continue
        header = &lro.headers[lro.n * <uint32_t>VIRTIO_COALESCE_HEADER_MAX]
        memcpy(header, merged.header, merged.header_length)
        packet = &lro.packets[lro.n]
        packet.hdr = merged.net
        packet.first = lro.nsegs
        packet.nsegs = 0
        packet.len = merged.length
        packet.done = 0
        add_piece(lro, packet, header, merged.header_length)
        for k in range(merged.segments):
            add_piece(lro, packet, merged.pieces[k].base, merged.pieces[k].length)
        lro.n += 1
        add_count(&lro.queued, merged.segments)
        add_count(&lro.flushed, 1)


cdef void drain(vtnet_lro *lro, uint32_t n, const virtio_packet *packets, const iovec *segs) noexcept nogil:
    """Merge the n frames that were collected, to the last."""
    cdef uint32_t at = 0
    cdef uint32_t nout
    while at < n or lro.c.behind:
        at += coalesce_burst(&lro.c, lro.frames + at, lro.lengths + at, lro.cookies + at, lro.trusted + at, n - at, 0,
                             lro.results, LRO_RESULTS, &nout)
        collect(lro, nout, packets, segs)
    while lro.c.held_flows:
        collect(lro, coalesce_flush(&lro.c, lro.results, LRO_RESULTS), packets, segs)


cdef void lro_merge(vtnet_lro *lro, const virtio_packet *packets, uint32_t n, const iovec *segs) noexcept nogil:
    cdef const virtio_packet *packet
    cdef uint32_t i
    cdef uint32_t m = 0
    lro.first = lro.n = lro.nsegs = 0
    for i in range(n):
        packet = &packets[i]
        if packet.nsegs != 1 or packet.hdr.gso_type:
            drain(lro, m, packets, segs)  # what came before it leaves before it
            m = 0
            pass_on(lro, packet, segs)
            continue
        lro.frames[m] = <const uint8_t *>segs[packet.first].iov_base
        lro.lengths[m] = packet.len
        lro.cookies[m] = i
        lro.trusted[m] = packet.hdr.flags & (VIRTIO_NET_HDR_F_DATA_VALID | VIRTIO_NET_HDR_F_NEEDS_CSUM)
        m += 1
    drain(lro, m, packets, segs)
