# Runs of segments: their checksums, how far one goes, and the header that stands for it. For coalesce.pyx alone.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from virtio.offload.coalesce cimport VIRTIO_PASS_NONE, virtio_coalescer, virtio_flow, virtio_merged, virtio_piece
from virtio.offload.coalesce_table cimport virtio_coalesce_load32
from virtio.offload.frame cimport put_be16, put_be32
from virtio.offload.inet_checksum cimport load_sum16, store_sum16, sum_fold, sum_swap
from virtio.offload.net_hdr cimport (
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_F_RSC_INFO, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
)
from virtio.offload.protocols cimport CWR, FIN, IPV4_DF, PSH, TCP, TCP_FIELD


cdef enum:
    AT_SEQ = 4                # in the TCP header
    AT_FLAGS = 13
    VARIES = FIN | PSH | CWR  # flags that segments of a run may differ in


# ---- checksums ----

cdef inline uint32_t pseudo_sum(const uint8_t *p, uint32_t l3, bint ipv6) noexcept nogil:
    """The pseudo header's partial sum, without the length (RFC 9293, 3.1)."""
    cdef uint64_t total = sum_swap(TCP)
    cdef uint32_t i
    for i in range(l3 + (8 if ipv6 else 12), l3 + (40 if ipv6 else 20), 2):
        total += load_sum16(p + i)
    return <uint32_t>total


cdef inline uint16_t ipv4_sum(const uint8_t *p) noexcept nogil:
    """Fold the 20 bytes of a header without options."""
    cdef uint64_t total = 0
    cdef uint32_t i
    for i in range(0, 20, 4):
        total += virtio_coalesce_load32(p + i)
    return sum_fold(total)


# ---- what comes out ----

cdef inline void put_whole(virtio_coalescer *c, const uint8_t *p, uint32_t n, uint64_t cookie, bint valid,
                           int why) noexcept nogil:
    cdef virtio_merged *m = c.out
    c.out += 1
    memset(&m.net, 0, sizeof(m.net))
    m.net.num_buffers = 1
    if valid:
        m.net.flags = VIRTIO_NET_HDR_F_DATA_VALID
    m.pieces = NULL
    m.length = n
    m.segments = 1
    m.header_length = m.fixed_id = 0
    m.passed = <uint8_t>why
    m.whole.base, m.whole.length, m.whole.cookie = p, n, cookie
    c.counters.passed[why] += 1


cdef inline void put_run(virtio_coalescer *c, const virtio_flow *f, uint32_t first, uint32_t end,
                         uint32_t step) noexcept nogil:
    """Give out pieces[first:end], which are a run of two or more, under a header for all."""
    cdef const virtio_piece *pieces = <const virtio_piece *>f.pieces + first
    cdef virtio_merged *m = c.out
    cdef uint8_t *h = m.header
    cdef uint32_t count = end - first
    cdef uint32_t payload = 0, i, l4_length
    c.out += 1
    for i in range(count):
        payload += pieces[i].length
    l4_length = f.header_length - f.l4 + payload
    memcpy(h, f.header, f.header_length)
    if f.ipv6:
        put_be16(h + f.l3 + 4, <uint16_t>l4_length)
    else:
        put_be16(h + f.l3 + 2, <uint16_t>(l4_length + 20))
        put_be16(h + f.l3 + 4, pieces[0].id)
        store_sum16(h + f.l3 + 10, 0)
        store_sum16(h + f.l3 + 10, <uint16_t>~ipv4_sum(h + f.l3))
    put_be32(h + f.l4 + AT_SEQ, pieces[0].seq)
    h[f.l4 + AT_FLAGS] = <uint8_t>((h[f.l4 + AT_FLAGS] & ~VARIES) | (pieces[0].flags & CWR)
                                   | (pieces[count - 1].flags & (FIN | PSH)))
    store_sum16(h + f.l4 + TCP_FIELD, sum_fold(f.pseudo + sum_swap(l4_length)))
    memset(&m.net, 0, sizeof(m.net))
    m.net.num_buffers = 1
    m.net.gso_type = VIRTIO_NET_HDR_GSO_TCPV6 if f.ipv6 else VIRTIO_NET_HDR_GSO_TCPV4
    if pieces[0].flags & CWR:
        m.net.gso_type |= VIRTIO_NET_HDR_GSO_ECN
    m.net.hdr_len = f.header_length
    m.net.gso_size = <uint16_t>pieces[0].length
    m.net.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
    if c.rsc_info:
        m.net.flags |= VIRTIO_NET_HDR_F_RSC_INFO
        m.net.csum_start = <uint16_t>count  # segments
    else:
        m.net.csum_start = f.l4
        m.net.csum_offset = TCP_FIELD
    m.pieces = pieces
    m.length = f.header_length + payload
    m.segments = <uint16_t>count
    m.header_length = f.header_length
    m.fixed_id = not f.ipv6 and step == 0
    m.passed = VIRTIO_PASS_NONE
    c.counters.merged += 1
    c.counters.segments += count


cdef inline uint32_t fixed_allowed(const virtio_coalescer *c, const virtio_flow *f) noexcept nogil:
    """Whether ids may all be the same: only where they say nothing (RFC 6864, 4.1), and where asked for."""
    return c.allow_fixed_id and not f.ipv6 and f.header[f.l3 + 6] & (IPV4_DF >> 8)


cdef inline uint32_t run_end(const virtio_coalescer *c, const virtio_flow *f, uint32_t first,
                             uint32_t *step) noexcept nogil:
    """Where the longest run from piece first on ends; *step is by how much its ids grow."""
    cdef const virtio_piece *p = <const virtio_piece *>f.pieces
    cdef uint32_t i = first
    step[0] = 0 if f.ipv6 else 1
    while not p[i].flags & (FIN | PSH) and p[i].length == p[first].length:
        i += 1
        if (i == f.count or p[i].seq != p[i - 1].seq + p[i - 1].length or p[i].length > p[first].length
                or p[i].flags & CWR):
            return i
        if i == first + 1 and p[i].id == p[first].id and fixed_allowed(c, f):
            step[0] = 0
        if p[i].id != <uint16_t>(p[i - 1].id + step[0]):
            return i
    return i + 1
