"""Coalescing of TCP segments (LRO, GRO) at C level: the flow table, the rules, the merged header.

Sources: RFC 791, 8200 (IP), 9293 (TCP), 7323 (timestamps), 3168 (ECN), 6864 (IPv4 id), 1071 (checksum); VIRTIO 1.4,
5.1.9 (virtio_net_hdr).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, memset

from virtio.core.atomic cimport virtio_prefetch, virtio_unlikely
from virtio.offload.coalesce_run cimport (
    AT_FLAGS, AT_SEQ, VARIES, fixed_allowed, ipv4_sum, pseudo_sum, put_run, put_whole, run_end,
)
from virtio.offload.coalesce_table cimport (
    NONE, flow_at, record_of, table_add, table_find, table_match, table_remove, virtio_coalesce_load32,
    virtio_same_header,
)
from virtio.offload.frame cimport (
    VIRTIO_L3_IPV4, VIRTIO_L3_IPV6, VIRTIO_LAYER_EXTENSIONS, VIRTIO_LAYER_FRAGMENT, VIRTIO_LAYER_L4,
    VIRTIO_LAYER_OPTIONS, VIRTIO_STOP_FAULTS, VIRTIO_STOP_OK, frame_parse, get_be16, get_be32, virtio_frame,
    virtio_layer,
)
from virtio.offload.inet_checksum cimport load_sum16, sum_bytes, sum_fold, sum_swap
from virtio.offload.protocols cimport CWR, FIN, IPV4_DF, PSH, TCP, TCP_FIELD


cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **memptr, size_t alignment, size_t size)


ctypedef void (*consider_call)(virtio_coalescer *c, const uint8_t *p, uint32_t n, uint64_t cookie, bint trusted,
                               uint64_t now) noexcept nogil
ctypedef uint32_t (*take_on_call)(virtio_coalescer *c, const uint8_t *const *frames, const uint32_t *lengths,
                                  const uint64_t *cookies, const uint8_t *trusted, uint32_t i,
                                  uint32_t n) noexcept nogil


cdef extern from "virtio/coalesce.h" nogil:
    consider_call consider_apart "virtio_apart"(consider_call f)
    take_on_call take_on_apart "virtio_apart"(take_on_call f)


cdef enum:
    SPARE = 32            # records beyond the flows, for what is flushed and still read
    AHEAD = 8             # frames whose headers are fetched in advance
    FAR = 1 << 30         # sequence numbers as far from the first as this are not put in order with it

    SYN = 0x02
    RST = 0x04
    ACK = 0x10
    URG = 0x20


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
            memset(mask + l4 + TCP_FIELD, 0, 2)


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


# ---- checksums ----

cdef int check_sums(const uint8_t *p, uint32_t n, uint32_t l3, uint32_t l4, bint ipv6, uint32_t pseudo,
                    bint trusted) noexcept nogil:
    """VIRTIO_PASS_NONE if both checksums are right and as computed, else why the frame passes. It ends at p + n."""
    if not ipv6:
        if ipv4_sum(p + l3) != 0xffff:
            return VIRTIO_PASS_CHECKSUM
        if load_sum16(p + l3 + 10) == 0xffff:
            return VIRTIO_PASS_CHECKSUM_FORM
    if not trusted and sum_fold(sum_bytes(p + l4, n - l4) + pseudo + sum_swap(n - l4)) != 0xffff:
        return VIRTIO_PASS_CHECKSUM
    if load_sum16(p + l4 + TCP_FIELD) == 0xffff:
        return VIRTIO_PASS_CHECKSUM_FORM
    return VIRTIO_PASS_NONE


# ---- flushing ----

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


cdef uint32_t take_on(virtio_coalescer *c, const uint8_t *const *frames, const uint32_t *lengths,
                      const uint64_t *cookies, const uint8_t *trusted, uint32_t i, uint32_t n) noexcept nogil:
    """Take in frames from i on as long as each just goes on the run of the last one's flow; return the next frame.

    What ends or fills the run is left to take(): so nothing comes out here, and the flow's state stays in registers.
    """
    cdef virtio_flow *f = c.last
    cdef virtio_piece *piece = f.pieces + f.count
    cdef virtio_piece *last = f.pieces + (c.segments - 1)
    cdef const uint8_t *p
    cdef const uint8_t *mask = f.mask
    cdef uint32_t l4 = f.l4, header_length = f.header_length, size = f.size, whole = header_length + size
    cdef uint32_t seq = f.next_seq, step = f.id_step, ids = 0 if f.ipv6 else 0xffff, count
    # the IPv4 length and id, or the IPv6 length and two bytes that never change, as one number
    cdef uint32_t lengths_at = f.l3 + (4 if f.ipv6 else 2)
    cdef uint32_t expected = (whole - l4 + (0 if f.ipv6 else 20)) << 16
    cdef uint8_t sure = c.verify
    cdef bint verify = c.verify
    cdef bint trust = 0
    if not f.ordered:
        return i
    count = (c.max_bytes - f.bytes) // size  # as many fit, by bytes; the last of them fills it
    if <uint32_t>(last - piece) >= count:
        last = piece + (count - 1)
    if f.ipv6:
        expected |= get_be32(f.header + lengths_at) & 0xffff
    else:
        expected |= f.next_id
    while i < n and piece < last:
        p = frames[i]
        if (lengths[i] != whole or seq != get_be32(p + l4 + AT_SEQ) or expected != get_be32(p + lengths_at)
                or p[l4 + AT_FLAGS] & VARIES or not virtio_same_header(p, f.header, mask, header_length)):
            break
        if trusted is not NULL:
            trust = trusted[i]
            sure = verify or trust
        if verify and check_sums(p, whole, f.l3, l4, f.ipv6, f.pseudo, trust) != VIRTIO_PASS_NONE:
            break
        virtio_prefetch(frames[i + AHEAD if i + AHEAD < n else n - 1])
        piece.base = p + header_length
        piece.cookie = cookies[i]
        piece.length = size
        piece.seq = seq
        piece.id = <uint16_t>(expected & ids)
        piece.flags = 0
        piece.valid = sure
        piece += 1
        seq += size
        expected = (expected & <uint32_t>0xffff0000) | ((expected + step) & 0xffff)
        i += 1
    count = <uint32_t>(piece - f.pieces) - f.count
    c.held_segments += count
    f.count += <uint16_t>count
    f.next_seq = seq
    if not f.ipv6:
        f.next_id = <uint16_t>expected
    f.bytes += count * size
    return i


cdef inline void begin(virtio_coalescer *c, virtio_merged *out, uint32_t room) noexcept nogil:
    unpark(c)
    c.out = out
    c.limit = out + room - coalesce_room(c)


cdef uint32_t coalesce_burst(virtio_coalescer *c, const uint8_t *const *frames, const uint32_t *lengths,
                             const uint64_t *cookies, const uint8_t *trusted, uint32_t n, uint64_t now,
                             virtio_merged *out, uint32_t room, uint32_t *nout) noexcept nogil:
    cdef uint32_t i = 0
    cdef virtio_flow *f
    cdef bint trust
    begin(c, out, room)
    while True:
        f = c.last
        if (f is not NULL and i < n and lengths[i] == f.header_length + f.size
                and f.next_seq == get_be32(frames[i] + f.l4 + AT_SEQ)):
            i = take_on_apart(take_on)(c, frames, lengths, cookies, trusted, i, n)
        if i == n or virtio_unlikely(c.out > c.limit):
            break
        virtio_prefetch(frames[i + AHEAD if i + AHEAD < n else n - 1])
        trust = trusted is not NULL and trusted[i]
        if not take(c, frames[i], lengths[i], cookies[i], trust):
            if c.free == NONE:  # results of this call occupy the records
                break
            consider_apart(consider)(c, frames[i], lengths[i], cookies[i], trust, now)
        i += 1
    c.counters.frames += i
    c.behind = 0
    while c.oldest != NONE and i == n:
        f = flow_at(c, c.oldest)
        if now < f.arrived or now - f.arrived < c.max_age:
            break
        if c.out > c.limit:
            c.behind = 1
            break
        flush(c, f, VIRTIO_FLUSH_AGE)
    nout[0] = <uint32_t>(c.out - out)
    return i


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
