"""Coalescing of TCP segments (LRO, GRO) at C level: the flow table, the rules, the merged header.

Sources: RFC 791, 8200 (IP), 9293 (TCP), 7323 (timestamps), 3168 (ECN), 6864 (IPv4 id), 1071 (checksum); VIRTIO 1.4,
5.1.9 (virtio_net_hdr).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int32_t, UINT32_MAX
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memmove, memset

from virtio._checksum cimport load_sum16, store_sum16, sum_bytes, sum_fold, sum_swap
from virtio._frame cimport *
from virtio._net_hdr cimport *


cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **memptr, size_t alignment, size_t size)


cdef extern from "virtio/atomic.h" nogil:
    void virtio_prefetch(const void *p)
    bint virtio_likely(bint x)
    bint virtio_unlikely(bint x)


cdef extern from "virtio/coalesce.h" nogil:
    bint virtio_same_header(const uint8_t *p, const uint8_t *q, const uint8_t *mask, uint32_t n)
    uint32_t virtio_coalesce_load32(const uint8_t *p)
    uint32_t virtio_flow_hash(const uint8_t *addresses, bint ipv6, const uint8_t *ports, const uint64_t *secret)


cdef enum:
    NONE = 0xffffffff     # no record
    SPARE = 32            # records beyond the flows, for what is flushed and still read
    AHEAD = 8             # frames whose headers are fetched in advance
    FAR = 1 << 30         # sequence numbers as far from the first as this are not put in order with it

    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_VLAN = 0x8100
    ETHERTYPE_IPV6 = 0x86dd
    ETHERTYPE_QINQ = 0x88a8
    IPV4_DF = 0x4000
    TCP = 6
    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10
    URG = 0x20
    CWR = 0x80
    VARIES = FIN | PSH | CWR  # flags that segments of a run may differ in

    AT_SEQ = 4            # in the TCP header
    AT_FLAGS = 13
    AT_CHECKSUM = 16


# A data segment on its way into a flow.
cdef struct segment:
    const uint8_t *frame
    uint64_t cookie
    uint32_t n            # bytes of the frame
    uint32_t length       # of the payload
    uint32_t seq
    uint16_t id
    uint8_t flags         # of VARIES
    uint8_t valid


# ---- memory ----

cdef inline virtio_flow *flow_at(const virtio_coalescer *c, uint32_t record) noexcept nogil:
    return <virtio_flow *>(c.records + <size_t>record * c.stride)


cdef inline uint32_t record_of(const virtio_coalescer *c, const virtio_flow *f) noexcept nogil:
    return <uint32_t>((<const uint8_t *>f - c.records) // c.stride)


cdef void build_masks(virtio_coalescer *c) noexcept nogil:
    cdef int ipv6
    cdef uint32_t vlans, l3, l4
    cdef uint8_t *mask
    for ipv6 in range(2):
        for vlans in range(VIRTIO_COALESCE_VLANS_MAX + 1):
            mask = c.masks[ipv6][vlans]
            l3 = 14 + 4 * vlans
            l4 = l3 + (40 if ipv6 else 20)
            memset(mask, 0xff, VIRTIO_COALESCE_HEADER_MAX)
            if ipv6:
                memset(mask + l3 + 4, 0, 2)   # payload length
            else:
                memset(mask + l3 + 2, 0, 4)   # total length, id
                memset(mask + l3 + 10, 0, 2)  # checksum
            memset(mask + l4 + AT_SEQ, 0, 4)
            mask[l4 + AT_FLAGS] = 0xff & ~VARIES
            memset(mask + l4 + AT_CHECKSUM, 0, 2)


cdef int coalescer_open(virtio_coalescer *c, const coalescer_limits *limits) noexcept nogil:
    cdef uint32_t i, lines
    cdef void *block = NULL
    memset(c, 0, sizeof(virtio_coalescer))
    c.flows, c.segments, c.max_bytes = limits.flows, limits.segments, limits.max_bytes
    c.max_age = limits.max_age
    c.verify, c.allow_fixed_id, c.rsc_info = limits.verify, limits.allow_fixed_id, limits.rsc_info
    memcpy(c.secret, limits.secret, sizeof(limits.secret))
    build_masks(c)
    # an odd number of cache lines, so that the records' first lines do not all compete for a few sets of the cache
    lines = <uint32_t>((sizeof(virtio_flow) + c.segments * sizeof(virtio_piece) + 63) // 64) | 1
    c.stride = 64 * lines
    c.nrecords = c.flows + SPARE
    c.slots = 16
    while c.slots < 2 * c.flows:
        c.slots *= 2
    c.table = <uint32_t *>calloc(c.slots, sizeof(uint32_t))
    c.slots -= 1
    if posix_memalign(&block, 64, <size_t>c.nrecords * c.stride) == 0:
        c.records = <uint8_t *>block
    if c.table is NULL or c.records is NULL:
        coalescer_close(c)
        return -1
    c.oldest = c.newest = c.parked = NONE
    for i in range(c.nrecords):
        flow_at(c, i).newer = i + 1 if i + 1 < c.nrecords else <uint32_t>NONE
    c.free = 0
    return 0


cdef void coalescer_close(virtio_coalescer *c) noexcept nogil:
    free(c.table)
    free(c.records)
    memset(c, 0, sizeof(virtio_coalescer))


cdef void unpark(virtio_coalescer *c) noexcept nogil:
    """Take back the records that the results of the last call were in."""
    cdef uint32_t record
    while c.parked != NONE:
        record = c.parked
        c.parked = flow_at(c, record).newer
        flow_at(c, record).newer = c.free
        c.free = record


# ---- the table ----

cdef void table_add(virtio_coalescer *c, virtio_flow *f, uint64_t now) noexcept nogil:
    cdef uint32_t record = record_of(c, f)
    cdef uint32_t slot = f.hash & c.slots
    while c.table[slot]:
        slot = (slot + 1) & c.slots
    c.table[slot] = (f.hash & <uint32_t>0xffff0000) | (record + 1)
    f.arrived = now
    f.older, f.newer = c.newest, NONE
    if c.newest != NONE:
        flow_at(c, c.newest).newer = record
    else:
        c.oldest = record
    c.newest = record
    c.held_flows += 1


cdef void table_remove(virtio_coalescer *c, virtio_flow *f) noexcept nogil:
    cdef uint32_t record = record_of(c, f)
    cdef uint32_t hole = f.hash & c.slots
    cdef uint32_t slot, home
    while (c.table[hole] & 0xffff) != record + 1:
        hole = (hole + 1) & c.slots
    slot = hole
    while True:  # close the gap, so that searches need no mark of it
        slot = (slot + 1) & c.slots
        if c.table[slot] == 0:
            break
        home = flow_at(c, (c.table[slot] & 0xffff) - 1).hash & c.slots
        if ((slot - home) & c.slots) >= ((slot - hole) & c.slots):
            c.table[hole] = c.table[slot]
            hole = slot
    c.table[hole] = 0
    if f.older != NONE:
        flow_at(c, f.older).newer = f.newer
    else:
        c.oldest = f.newer
    if f.newer != NONE:
        flow_at(c, f.newer).older = f.older
    else:
        c.newest = f.older
    if c.last == f:
        c.last = NULL
    c.held_flows -= 1


cdef virtio_flow *table_find(virtio_coalescer *c, const uint8_t *p, const virtio_layer *layer,
                             uint32_t *hashed) noexcept nogil:
    """The flow that a frame with this TCP header is of, whether it merges or not."""
    cdef bint ipv6 = layer.l3_kind == VIRTIO_L3_IPV6
    cdef uint32_t at = layer.l3 + (8 if ipv6 else 12)  # as the IP header has them, whatever the route
    cdef uint32_t hash = virtio_flow_hash(p + at, ipv6, p + layer.l4, c.secret)
    cdef uint32_t slot = hash & c.slots
    cdef virtio_flow *f
    hashed[0] = hash
    while c.table[slot]:
        if (c.table[slot] ^ hash) >> 16 == 0:
            f = flow_at(c, (c.table[slot] & 0xffff) - 1)
            if (f.l3 == layer.l3 and f.ipv6 == ipv6 and memcmp(f.header, p, f.l3) == 0
                    and memcmp(f.header + at, p + at, 32 if ipv6 else 8) == 0
                    and f.ports == virtio_coalesce_load32(p + layer.l4)):
                return f
        slot = (slot + 1) & c.slots
    return NULL


cdef inline virtio_flow *table_match(virtio_coalescer *c, const uint8_t *p, uint32_t n) noexcept nogil:
    """The flow whose header the frame repeats, with at least one byte behind it; NULL if it is not seen at a glance.

    What the frame is made of is only guessed here: that the header agrees is the proof.
    """
    cdef virtio_flow *f = c.last
    cdef uint32_t hash, slot, type, l3 = 14
    if f is not NULL and n > f.header_length and f.ports == virtio_coalesce_load32(p + f.l4) \
            and virtio_same_header(p, f.header, f.mask, f.header_length):
        return f
    if virtio_unlikely(n < 14 + 2 * 4 + 40):
        return NULL
    type = get_be16(p + 12)
    while (type == ETHERTYPE_VLAN or type == ETHERTYPE_QINQ) and l3 < 14 + 2 * 4:
        l3 += 4
        type = get_be16(p + l3 - 2)
    if type == ETHERTYPE_IPV4:
        hash = virtio_flow_hash(p + l3 + 12, 0, p + l3 + 20, c.secret)
    elif type == ETHERTYPE_IPV6 and n >= l3 + 60:
        hash = virtio_flow_hash(p + l3 + 8, 1, p + l3 + 40, c.secret)
    else:
        return NULL
    slot = hash & c.slots
    while c.table[slot]:
        if (c.table[slot] ^ hash) >> 16 == 0:
            f = flow_at(c, (c.table[slot] & 0xffff) - 1)
            if n > f.header_length and virtio_same_header(p, f.header, f.mask, f.header_length):
                return f
        slot = (slot + 1) & c.slots
    return NULL


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


cdef inline int check_sums(const uint8_t *p, uint32_t n, uint32_t l3, uint32_t l4, bint ipv6, uint32_t pseudo,
                           bint trusted) noexcept nogil:
    """VIRTIO_PASS_NONE if both checksums are right and as computed, else why the frame passes. It ends at p + n."""
    if not ipv6:
        if ipv4_sum(p + l3) != 0xffff:
            return VIRTIO_PASS_CHECKSUM
        if load_sum16(p + l3 + 10) == 0xffff:
            return VIRTIO_PASS_CHECKSUM_FORM
    if not trusted and sum_fold(sum_bytes(p + l4, n - l4) + pseudo + sum_swap(n - l4)) != 0xffff:
        return VIRTIO_PASS_CHECKSUM
    if load_sum16(p + l4 + AT_CHECKSUM) == 0xffff:
        return VIRTIO_PASS_CHECKSUM_FORM
    return VIRTIO_PASS_NONE


# ---- what comes out ----

cdef inline void put_whole(virtio_coalescer *c, const uint8_t *p, uint32_t n, uint64_t cookie, bint valid,
                           int why) noexcept nogil:
    cdef virtio_merged *m = c.out
    c.out += 1
    memset(&m.net, 0, sizeof(m.net))
    if valid:
        m.net.flags = VIRTIO_NET_HDR_F_DATA_VALID
    m.pieces = NULL
    m.length = n
    m.segments = 1
    m.header_length = m.fixed_id = 0
    m.passed = <uint8_t>why
    m.whole.base, m.whole.length, m.whole.cookie = p, n, cookie
    c.counters.passed[why] += 1


cdef void put_run(virtio_coalescer *c, const virtio_flow *f, uint32_t first, uint32_t end,
                  uint32_t step) noexcept nogil:
    """Give out pieces[first:end], which are a run of two or more, under a header for all."""
    cdef const virtio_piece *pieces = <const virtio_piece *>f.pieces + first
    cdef virtio_merged *m = c.out
    cdef uint8_t *h = m.header
    cdef uint32_t count = end - first
    cdef uint32_t payload = 0, valid = 1, i, l4_length
    c.out += 1
    for i in range(count):
        payload += pieces[i].length
        valid &= pieces[i].valid
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
    store_sum16(h + f.l4 + AT_CHECKSUM, sum_fold(f.pseudo + sum_swap(l4_length)))
    memset(&m.net, 0, sizeof(m.net))
    m.net.gso_type = VIRTIO_NET_HDR_GSO_TCPV6 if f.ipv6 else VIRTIO_NET_HDR_GSO_TCPV4
    if pieces[0].flags & CWR:
        m.net.gso_type |= VIRTIO_NET_HDR_GSO_ECN
    m.net.hdr_len = f.header_length
    m.net.gso_size = <uint16_t>pieces[0].length
    if c.rsc_info:
        m.net.flags = VIRTIO_NET_HDR_F_RSC_INFO | (VIRTIO_NET_HDR_F_DATA_VALID if valid else 0)
        m.net.csum_start = <uint16_t>count  # segments
    else:
        m.net.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
        m.net.csum_start = f.l4
        m.net.csum_offset = AT_CHECKSUM
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


cdef uint32_t run_end(const virtio_coalescer *c, const virtio_flow *f, uint32_t first, uint32_t *step) noexcept nogil:
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


cdef void flush(virtio_coalescer *c, virtio_flow *f, int why) noexcept nogil:
    cdef uint32_t first = 0, end, step = f.id_step, record = record_of(c, f)
    cdef const virtio_piece *piece
    cdef bint merged = False
    c.counters.flushed[why] += 1
    c.held_segments -= f.count
    while first < f.count:
        end = f.count if f.ordered else run_end(c, f, first, &step)
        if end - first > 1:
            put_run(c, f, first, end, step)
            merged = True
        else:
            piece = f.pieces + first
            put_whole(c, piece.base - f.header_length, piece.length + f.header_length, piece.cookie, piece.valid,
                      VIRTIO_PASS_ALONE)
        first = end
    table_remove(c, f)
    if merged:
        f.newer = c.parked
        c.parked = record
    else:
        f.newer = c.free
        c.free = record


# ---- what comes in ----

cdef inline void put_piece(virtio_piece *piece, const virtio_flow *f, const segment *s) noexcept nogil:
    piece.base = s.frame + f.header_length
    piece.cookie = s.cookie
    piece.length = s.length
    piece.seq = s.seq
    piece.id = s.id
    piece.flags = s.flags
    piece.valid = s.valid


cdef inline bint continues(const virtio_flow *f, const segment *s) noexcept nogil:
    """Whether a segment whose header agrees is the next of the run."""
    return (f.ordered and s.seq == f.next_seq and s.id == f.next_id and s.length <= f.size and not s.flags & CWR)


cdef inline void settle(virtio_coalescer *c, virtio_flow *f, uint32_t length, uint32_t flags) noexcept nogil:
    """Flush a run that its last segment, of this length and flags, ends or fills."""
    if flags & (FIN | PSH) or length < f.size:
        flush(c, f, VIRTIO_FLUSH_ENDED)
    elif f.count == c.segments:
        flush(c, f, VIRTIO_FLUSH_SEGMENTS)
    elif f.bytes + f.size > c.max_bytes:
        flush(c, f, VIRTIO_FLUSH_BYTES)


cdef inline void append(virtio_coalescer *c, virtio_flow *f, const segment *s) noexcept nogil:
    put_piece(f.pieces + f.count, f, s)
    f.count += 1
    f.next_seq += s.length
    f.next_id += f.id_step
    f.bytes += s.length
    c.held_segments += 1
    settle(c, f, s.length, s.flags)


cdef void start(virtio_coalescer *c, const segment *s, const virtio_layer *layer, uint32_t hash, uint32_t pseudo,
                uint64_t now) noexcept nogil:
    """Hold a segment of a flow of which nothing is held."""
    cdef virtio_flow *f
    cdef uint32_t bytes = s.n - layer.l3
    if s.flags & (FIN | PSH):
        put_whole(c, s.frame, s.n, s.cookie, s.valid, VIRTIO_PASS_PUSHED)
        return
    if bytes + s.length > c.max_bytes:
        put_whole(c, s.frame, s.n, s.cookie, s.valid, VIRTIO_PASS_TOO_LARGE)
        return
    if c.held_flows == c.flows:
        flush(c, flow_at(c, c.oldest), VIRTIO_FLUSH_TABLE)
    f = flow_at(c, c.free)
    c.free = f.newer
    f.ipv6 = layer.l3_kind == VIRTIO_L3_IPV6
    f.l3, f.l4, f.header_length = <uint8_t>layer.l3, <uint8_t>layer.l4, <uint8_t>layer.payload
    f.mask = c.masks[f.ipv6][layer.vlans]
    memcpy(f.header, s.frame, f.header_length)
    f.ports = virtio_coalesce_load32(f.header + f.l4)
    f.pseudo = pseudo
    f.hash = hash
    f.first_seq, f.next_seq = s.seq, s.seq + s.length
    f.id_step = 0 if f.ipv6 else 1
    f.next_id = s.id + f.id_step
    f.size = s.length
    f.bytes = bytes
    f.count = f.ordered = 1
    put_piece(f.pieces, f, s)
    table_add(c, f, now)
    c.held_segments += 1
    c.last = f


cdef int place(virtio_coalescer *c, virtio_flow *f, const segment *s) noexcept nogil:
    """Put a segment whose header agrees where it belongs, and return -1; or return why f must be flushed before."""
    cdef virtio_piece *pieces = f.pieces
    cdef int32_t offset = <int32_t>(s.seq - f.first_seq)
    cdef uint32_t at = f.count, step, end
    if continues(f, s):
        append(c, f, s)
        return -1
    if f.ordered and s.seq == f.next_seq:
        if f.count == 1 and s.id == pieces[0].id and fixed_allowed(c, f) and s.length <= f.size and not s.flags & CWR:
            f.id_step, f.next_id = 0, s.id
            append(c, f, s)
            return -1
        if s.flags & CWR:
            return VIRTIO_FLUSH_CWR
        return VIRTIO_FLUSH_SIZE if s.length > f.size else VIRTIO_FLUSH_ID
    # out of order. Within FAR on both sides of the first, differences of sequence numbers order them.
    if offset >= FAR or offset <= -FAR:
        return VIRTIO_FLUSH_FAR
    while at > 0 and <int32_t>(pieces[at - 1].seq - f.first_seq) > offset:
        at -= 1
    if at > 0 and <int32_t>(s.seq - pieces[at - 1].seq) < <int32_t>pieces[at - 1].length:
        return VIRTIO_FLUSH_OVERLAP
    if at < f.count and <int32_t>(pieces[at].seq - s.seq) < <int32_t>s.length:
        return VIRTIO_FLUSH_OVERLAP
    if f.bytes + s.length > c.max_bytes:
        return VIRTIO_FLUSH_BYTES
    memmove(pieces + at + 1, pieces + at, (f.count - at) * sizeof(virtio_piece))
    put_piece(pieces + at, f, s)
    f.count += 1
    f.bytes += s.length
    c.held_segments += 1
    f.ordered = 0
    if at + 1 < f.count:  # it may have closed the last gap
        end = run_end(c, f, 0, &step)
        if end == f.count:
            f.ordered = 1
            f.id_step = <uint16_t>step
            f.size = pieces[0].length
            f.next_seq = pieces[end - 1].seq + pieces[end - 1].length
            f.next_id = <uint16_t>(pieces[end - 1].id + step)
            settle(c, f, pieces[end - 1].length, pieces[end - 1].flags)
            return -1
    if f.count == c.segments:
        flush(c, f, VIRTIO_FLUSH_SEGMENTS)
    return -1


cdef inline void load_segment(segment *s, const uint8_t *p, uint32_t n, uint64_t cookie, uint32_t id_at, bint ipv6,
                              uint32_t l4, uint32_t header_length, bint valid) noexcept nogil:
    s.frame = p
    s.n = n
    s.cookie = cookie
    s.length = n - header_length
    s.seq = get_be32(p + l4 + AT_SEQ)
    s.id = 0 if ipv6 else get_be16(p + id_at)
    s.flags = p[l4 + AT_FLAGS] & VARIES
    s.valid = valid


cdef int unmergeable(const uint8_t *p, uint32_t n, const virtio_layer *layer) noexcept nogil:
    """VIRTIO_PASS_NONE for a whole TCP segment with payload and nothing unusual, else why the frame passes."""
    cdef uint32_t flags
    if layer.flags & VIRTIO_LAYER_FRAGMENT:
        return VIRTIO_PASS_FRAGMENT
    if layer.stop >= VIRTIO_STOP_FAULTS:
        return VIRTIO_PASS_MALFORMED
    if layer.stop != VIRTIO_STOP_OK or not layer.flags & VIRTIO_LAYER_L4 or layer.protocol != TCP:
        return VIRTIO_PASS_NOT_TCP
    if layer.flags & VIRTIO_LAYER_OPTIONS:
        return VIRTIO_PASS_IP_OPTIONS
    if layer.flags & VIRTIO_LAYER_EXTENSIONS:
        return VIRTIO_PASS_EXTENSIONS
    if layer.vlans > VIRTIO_COALESCE_VLANS_MAX:
        return VIRTIO_PASS_VLANS
    if layer.end != n:
        return VIRTIO_PASS_PADDED
    if layer.l3_kind == VIRTIO_L3_IPV4 and p[layer.l3 + 6] & (0xff & ~(IPV4_DF >> 8)):
        return VIRTIO_PASS_FRAGMENT
    flags = p[layer.l4 + AT_FLAGS]
    if flags & (SYN | RST | URG) or not flags & ACK:
        return VIRTIO_PASS_TCP_FLAGS
    if layer.payload == n:
        return VIRTIO_PASS_NO_PAYLOAD
    return VIRTIO_PASS_NONE


cdef void consider(virtio_coalescer *c, const uint8_t *p, uint32_t n, uint64_t cookie, bint trusted,
                   uint64_t now) noexcept nogil:
    """Take in a frame that does not simply repeat the header of a flow."""
    cdef virtio_frame frame
    cdef virtio_layer *layer = &frame.outer
    cdef virtio_flow *f = NULL
    cdef segment s
    cdef uint32_t hash = 0, pseudo = 0
    cdef bint ipv6
    cdef int why, must = -1
    frame_parse(&frame, p, n)
    ipv6 = layer.l3_kind == VIRTIO_L3_IPV6
    why = unmergeable(p, n, layer)
    if layer.flags & VIRTIO_LAYER_L4 and layer.protocol == TCP:
        f = table_find(c, p, layer, &hash)
    if why == VIRTIO_PASS_NONE:
        pseudo = pseudo_sum(p, layer.l3, ipv6)
        if c.verify:
            why = check_sums(p, n, layer.l3, layer.l4, ipv6, pseudo, trusted)
    if why != VIRTIO_PASS_NONE:
        if f is not NULL:
            flush(c, f, VIRTIO_FLUSH_PASSED)
        put_whole(c, p, n, cookie, 0, why)
        return
    load_segment(&s, p, n, cookie, layer.l3 + 4, ipv6, layer.l4, layer.payload, c.verify or trusted)
    if f is not NULL:
        must = VIRTIO_FLUSH_HEADER
        if f.header_length == layer.payload and virtio_same_header(p, f.header, f.mask, f.header_length):
            must = place(c, f, &s)
            if must < 0:
                return
        flush(c, f, must)
    if must == VIRTIO_FLUSH_OVERLAP:
        put_whole(c, p, n, cookie, s.valid, VIRTIO_PASS_OVERLAP)
    else:
        start(c, &s, layer, hash, pseudo, now)


cdef inline bint take(virtio_coalescer *c, const uint8_t *p, uint32_t n, uint64_t cookie,
                      bint trusted) noexcept nogil:
    """Take in a frame that is the next of a run, or goes between held ones; 0 if it is anything else."""
    cdef virtio_flow *f = table_match(c, p, n)
    cdef segment s
    cdef uint32_t l3
    if virtio_unlikely(f is NULL):
        return 0
    l3 = f.l3
    if virtio_unlikely((get_be16(p + l3 + 4) + 40 if f.ipv6 else get_be16(p + l3 + 2)) != n - l3):
        return 0
    if c.verify and check_sums(p, n, l3, f.l4, f.ipv6, f.pseudo, trusted) != VIRTIO_PASS_NONE:
        return 0
    load_segment(&s, p, n, cookie, l3 + 4, f.ipv6, f.l4, f.header_length, c.verify or trusted)
    c.last = f
    if virtio_unlikely(not continues(f, &s)):
        return 0
    append(c, f, &s)
    return 1


cdef inline void begin(virtio_coalescer *c, virtio_merged *out, uint32_t room) noexcept nogil:
    unpark(c)
    c.out = out
    c.limit = out + room - coalesce_room(c)


cdef uint32_t coalesce_burst(virtio_coalescer *c, const uint8_t *const *frames, const uint32_t *lengths,
                             const uint64_t *cookies, const uint8_t *trusted, uint32_t n, uint64_t now,
                             virtio_merged *out, uint32_t room, uint32_t *nout) noexcept nogil:
    cdef uint32_t i
    cdef uint32_t taken = n
    cdef virtio_flow *f
    begin(c, out, room)
    for i in range(n):
        if virtio_unlikely(c.out > c.limit):
            taken = i
            break
        virtio_prefetch(frames[i + AHEAD if i + AHEAD < n else n - 1])
        if virtio_likely(take(c, frames[i], lengths[i], cookies[i], trusted is not NULL and trusted[i])):
            continue
        if c.free == NONE:  # results of this call occupy the records
            taken = i
            break
        consider(c, frames[i], lengths[i], cookies[i], trusted is not NULL and trusted[i], now)
    c.counters.frames += taken
    c.behind = 0
    while c.oldest != NONE and taken == n:
        f = flow_at(c, c.oldest)
        if now < f.arrived or now - f.arrived < c.max_age:
            break
        if c.out > c.limit:
            c.behind = 1
            break
        flush(c, f, VIRTIO_FLUSH_AGE)
    nout[0] = <uint32_t>(c.out - out)
    return taken


cdef uint32_t coalesce_flush(virtio_coalescer *c, virtio_merged *out, uint32_t room) noexcept nogil:
    begin(c, out, room)
    while c.oldest != NONE and c.out <= c.limit:
        flush(c, flow_at(c, c.oldest), VIRTIO_FLUSH_ASKED)
    return <uint32_t>(c.out - out)


cdef uint32_t coalesce_flush_flow(virtio_coalescer *c, const uint8_t *p, uint32_t n, virtio_merged *out,
                                  uint32_t room) noexcept nogil:
    cdef virtio_frame frame
    cdef virtio_flow *f
    cdef uint32_t hash
    begin(c, out, room)
    frame_parse(&frame, p, n)
    if frame.outer.flags & VIRTIO_LAYER_L4 and frame.outer.protocol == TCP:
        f = table_find(c, p, &frame.outer, &hash)
        if f is not NULL:
            flush(c, f, VIRTIO_FLUSH_ASKED)
    return <uint32_t>(c.out - out)
