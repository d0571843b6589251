"""Cutting a frame into segments: the plan."""

import os

from libc.stddef cimport size_t
from libc.stdint cimport UINT32_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from virtio.core.iov cimport iov_cursor, iov_left, iovec
from virtio.offload.frame cimport (
    VIRTIO_L3_IPV4, VIRTIO_L3_IPV6, VIRTIO_L3_NONE, VIRTIO_LAYER_FRAGMENT, VIRTIO_LAYER_L4, VIRTIO_LAYER_TUNNEL,
    VIRTIO_STOP_FAULTS, VIRTIO_STOP_OK, VIRTIO_TUNNEL_NONE, frame_parse, get_be16, get_be32, put_be16, put_be32,
    virtio_layer,
)
from virtio.offload.inet_checksum cimport (
    load_sum16, store_sum16, sum_be16, sum_bytes, sum_finish, sum_fold, sum_gather, sum_pseudo4, sum_pseudo6, sum_short,
)
from virtio.offload.net_hdr cimport (
    VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP,
    VIRTIO_NET_HDR_GSO_UDP_L4, VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4, VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6,
)
from virtio.offload.protocols cimport (
    CWR, DESTINATION, FIN, FRAGMENT, HOP_BY_HOP, OPTION_END, OPTION_NOP, PSH, ROUTING, TCP, UDP,
)
from virtio.offload.segment_lengths cimport LENGTHS_TRUE, lengths_mend, segment_headers_of


cdef enum:
    FRAGMENT_HEADER = 8
    CHUNK = 512  # bytes of a datagram whose sum goes into its identification
    OPTION_COPIED = 0x80
    TUNNELS = 0x60  # VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4 and _IPV6


cdef uint64_t SECRET = int.from_bytes(os.urandom(8), "little")  # of identifications


cdef inline int refuse(virtio_segmenter *s, int code, uint64_t value, uint64_t limit) noexcept nogil:
    s.value = value
    s.limit = limit
    return code


cdef int check_extensions(virtio_segmenter *s, const virtio_layer *layer) noexcept nogil:
    """Of IPv6 extension headers only those may stand in many packets that do not speak of one: not AH, not Fragment."""
    cdef const uint8_t *p = s.headers
    cdef uint32_t at = layer.l3 + 40
    cdef int next = p[layer.l3 + 6]
    if layer.l3_kind != VIRTIO_L3_IPV6:
        return VIRTIO_SEGMENT_OK
    if get_be16(p + layer.l3 + 4) == 0:
        return refuse(s, VIRTIO_SEGMENT_JUMBO, layer.end - layer.l3 - 40, 0xffff)
    while at < layer.l4:
        if next != HOP_BY_HOP and next != ROUTING and next != DESTINATION:
            return refuse(s, VIRTIO_SEGMENT_EXTENSION, next, 0)
        next = p[at]
        at += (p[at + 1] + 1) * 8
    return VIRTIO_SEGMENT_OK


cdef int check_udp_length(virtio_segmenter *s, const virtio_layer *layer) noexcept nogil:
    cdef uint32_t length = get_be16(s.headers + layer.l4 + 4)
    if length != layer.end - layer.l4:
        return refuse(s, VIRTIO_SEGMENT_UDP_LENGTH, length, layer.end - layer.l4)
    return VIRTIO_SEGMENT_OK


cdef int check_frame(virtio_segmenter *s, const virtio_frame *f, uint32_t gso_type,
                     const virtio_layer **cut) noexcept nogil:
    """Find the layer to cut, and see that it is what gso_type says."""
    cdef const virtio_layer *layer = &f.outer
    cdef uint32_t kind = gso_type & ~<uint32_t>(VIRTIO_NET_HDR_GSO_ECN | TUNNELS), tunnel = gso_type & TUNNELS
    cdef int network = VIRTIO_L3_IPV6 if kind == VIRTIO_NET_HDR_GSO_TCPV6 else VIRTIO_L3_IPV4
    cdef int protocol = UDP, around
    if kind == VIRTIO_NET_HDR_GSO_TCPV4 or kind == VIRTIO_NET_HDR_GSO_TCPV6:
        protocol = TCP
    elif kind != VIRTIO_NET_HDR_GSO_UDP and kind != VIRTIO_NET_HDR_GSO_UDP_L4 or gso_type > 0xff:
        return refuse(s, VIRTIO_SEGMENT_TYPE, gso_type, 0)
    if tunnel == TUNNELS or (gso_type & VIRTIO_NET_HDR_GSO_ECN and protocol != TCP):
        return refuse(s, VIRTIO_SEGMENT_TYPE, gso_type, 0)
    if tunnel and kind == VIRTIO_NET_HDR_GSO_UDP:
        return refuse(s, VIRTIO_SEGMENT_UFO_TUNNEL, gso_type, 0)
    if tunnel and f.tunnel != VIRTIO_TUNNEL_NONE:
        layer = &f.inner
    if f.length > VIRTIO_SEGMENT_HEADERS_MAX and (
            layer.payload > VIRTIO_SEGMENT_HEADERS_MAX
            or layer.stop != VIRTIO_STOP_OK and layer.l4 + 20 > VIRTIO_SEGMENT_HEADERS_MAX):
        return refuse(s, VIRTIO_SEGMENT_HEADERS, layer.payload, VIRTIO_SEGMENT_HEADERS_MAX)
    if layer.stop >= VIRTIO_STOP_FAULTS:
        return refuse(s, VIRTIO_SEGMENT_FRAME, layer.stop, 0)
    if tunnel and layer == &f.outer:
        return refuse(s, VIRTIO_SEGMENT_TUNNEL, VIRTIO_L3_NONE, 0)
    # the bit is the inner version's in the specification (5.1.9.2), the outer one's in Linux
    around = VIRTIO_L3_IPV4 if tunnel == VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4 else VIRTIO_L3_IPV6
    if tunnel and f.outer.l3_kind != around and f.inner.l3_kind != around:
        return refuse(s, VIRTIO_SEGMENT_TUNNEL, f.outer.l3_kind, 0)
    if layer.l3_kind != network and not (layer.l3_kind == VIRTIO_L3_IPV6 and protocol == UDP):
        return refuse(s, VIRTIO_SEGMENT_NETWORK, layer.l3_kind, network)
    if layer.flags & VIRTIO_LAYER_FRAGMENT:
        return refuse(s, VIRTIO_SEGMENT_FRAGMENT, layer.fragment, 0)
    if layer.protocol != protocol or not layer.flags & VIRTIO_LAYER_L4:
        return refuse(s, VIRTIO_SEGMENT_PROTOCOL, layer.protocol, protocol)
    if layer.flags & VIRTIO_LAYER_TUNNEL:  # its datagrams are whole packets of a tunnel
        return refuse(s, VIRTIO_SEGMENT_TUNNEL, layer.l3_kind, 0)
    cut[0] = layer
    return VIRTIO_SEGMENT_OK


cdef uint64_t pseudo_sum(const virtio_segmenter *s, const virtio_layer *layer) noexcept nogil:
    if layer.l3_kind == VIRTIO_L3_IPV4:
        return sum_pseudo4(s.headers + layer.src, s.headers + layer.dst, layer.protocol, 0)
    return sum_pseudo6(s.headers + layer.src, s.headers + layer.dst, layer.protocol, 0)


cdef void plan_ip(virtio_segmenter *s, virtio_segment_ip *ip, const virtio_layer *layer, const uint32_t *size,
                  bint fixed) noexcept nogil:
    """The IP header of a layer. size: what is behind it, in a segment of full size and in the last."""
    cdef uint8_t *p = s.headers + layer.l3
    cdef uint64_t sum = 0
    cdef int k
    ip.at = layer.l3
    ip.v4 = layer.l3_kind == VIRTIO_L3_IPV4
    ip.step = 0 if fixed else 1
    ip.id = 0
    if ip.v4:
        ip.id = get_be16(p + 4)
        put_be16(p + 2, 0)
        put_be16(p + 4, 0)
        put_be16(p + 10, 0)
        sum = sum_short(p, layer.l4 - layer.l3)
    for k in range(2):
        ip.length[k] = sum_be16(<uint16_t>(size[k] + (layer.l4 - layer.l3 if ip.v4 else layer.l4 - layer.l3 - 40)))
        ip.sum[k] = sum + ip.length[k]
    store_sum16(p + 2 if ip.v4 else p + 4, ip.length[0])


cdef void plan_tcp(virtio_segmenter *s, uint64_t pseudo, const uint32_t *size) noexcept nogil:
    """TCP header (RFC 9293, 3.1); size: it and the payload, of a segment of full size and of the last."""
    cdef uint8_t *p = s.headers + s.l4
    cdef uint8_t flags = p[13]
    cdef uint64_t sum
    cdef int k
    s.seq = get_be32(p + 4)
    for k in range(4):
        p[13] = flags
        if not k & 1:
            p[13] &= <uint8_t>~CWR
        if not k & 2:
            p[13] &= <uint8_t>~(FIN | PSH)
        s.flags[k] = load_sum16(p + 12)
    put_be32(p + 4, 0)
    put_be16(p + 12, 0)
    put_be16(p + 16, 0)
    sum = pseudo + sum_short(p, s.header - s.l4)
    for k in range(2):
        s.l4_sum[k] = sum + sum_be16(<uint16_t>size[k])
        s.l4_checksum[k] = sum_fold(pseudo + sum_be16(<uint16_t>size[k]))
    store_sum16(p + 12, s.flags[0])
    store_sum16(p + 16, s.l4_checksum[0])


cdef void plan_udp(virtio_segmenter *s, uint64_t pseudo, const uint32_t *size) noexcept nogil:
    """UDP header (RFC 768), whose length is in the checksum twice; size: it and the payload."""
    cdef uint8_t *p = s.headers + s.l4
    cdef int k
    for k in range(2):
        s.udp_length[k] = sum_be16(<uint16_t>size[k])
        s.l4_sum[k] = pseudo + load_sum16(p) + load_sum16(p + 2) + 2 * <uint64_t>s.udp_length[k]
        s.l4_checksum[k] = sum_fold(pseudo + s.udp_length[k]) if not s.partial or s.needs_csum else 0
    store_sum16(p + 4, s.udp_length[0])
    store_sum16(p + 6, s.l4_checksum[0])


cdef void plan_tunnel(virtio_segmenter *s, const virtio_frame *f, uint64_t pseudo, const uint32_t *size,
                      uint32_t options) noexcept nogil:
    """What is around the inner packet. pseudo, without the length, and size: those of the inner transport header."""
    cdef uint8_t *p = s.headers + f.outer.l4
    cdef uint8_t *inner_ip = s.headers + f.inner.l3
    cdef uint32_t length[2]
    cdef uint64_t sum
    cdef int k
    s.outer_l4 = f.outer.l4
    s.outer_check = load_sum16(p + 6) != 0 or options & SEGMENT_OUTER_CHECKSUM != 0
    # From the inner transport header on, checksum and all, the sum is the complement of its pseudo header's; an IPv4
    # header sums to 0xffff, which is 0. What is left is the same for all segments of a size.
    sum = (pseudo_sum(s, &f.outer) + load_sum16(p) + load_sum16(p + 2)
           + sum_bytes(s.headers + f.outer.payload, f.inner.l3 - f.outer.payload))
    if f.inner.l3_kind == VIRTIO_L3_IPV6:
        sum += sum_bytes(inner_ip, 4) + sum_bytes(inner_ip + 6, f.inner.l4 - f.inner.l3 - 6)
    for k in range(2):
        length[k] = f.inner.l4 - f.outer.l4 + size[k]
        s.outer_length[k] = sum_be16(<uint16_t>length[k])
        s.outer_checksum[k] = sum_finish(
            sum + 2 * <uint64_t>s.outer_length[k] + (0 if s.ip[0].v4 else s.ip[0].length[k])
            + <uint16_t>~sum_fold(pseudo + sum_be16(<uint16_t>size[k])))
    plan_ip(s, &s.ip[1], &f.outer, length, options & SEGMENT_FIXED_OUTER_ID)
    store_sum16(p + 4, s.outer_length[0])
    if s.outer_check:
        store_sum16(p + 6, s.outer_checksum[0])


cdef void drop_options(uint8_t *p, uint32_t n) noexcept nogil:
    """Make the options of the n bytes at p those of a later fragment: what lacks the copied flag is no operation."""
    cdef uint32_t at = 0, size
    while at < n and p[at] != OPTION_END:
        if p[at] == OPTION_NOP:
            at += 1
            continue
        if n - at < 2 or p[at + 1] < 2 or p[at + 1] > n - at:  # changed since it was parsed
            return
        size = p[at + 1]
        if not p[at] & OPTION_COPIED:
            memset(p + at, OPTION_NOP, size)
        at += size


cdef inline uint64_t mix(uint64_t hash, uint64_t word) noexcept nogil:
    hash = (hash ^ word) * <uint64_t>0x9e3779b97f4a7c15
    return hash ^ hash >> 32


cdef uint64_t datagram_sum(const virtio_segmenter *s, uint64_t *hash) noexcept nogil:
    """The partial sum of a datagram's payload; it goes into *hash, too."""
    cdef iov_cursor source
    cdef uint32_t at = 0, n
    cdef uint64_t total = 0
    cdef uint16_t part
    source.piece, source.skip = s.pieces, s.payload_at
    while at < s.payload:
        n = min(s.payload - at, <uint32_t>CHUNK)
        if s.frame is not NULL:
            part = sum_fold(sum_bytes(s.frame + s.payload_at + at, n))
        else:
            iov_left(&source)
            part = sum_fold(sum_gather(source.piece, s.npieces - (source.piece - s.pieces), source.skip, n))
            source.skip += n
        at += n
        total += part
        hash[0] = mix(hash[0], part)
    return total


cdef void add_fragment_header(virtio_segmenter *s, const virtio_layer *layer, uint32_t id) noexcept nogil:
    """Put a Fragment header between the IPv6 headers and the UDP header (RFC 8200, 4.5)."""
    cdef uint8_t *p = s.headers + layer.l4
    cdef uint32_t at = layer.l3 + 40, last = layer.l3 + 6  # of the next header's number
    while at < layer.l4:
        last = at
        at += (s.headers[at + 1] + 1) * 8
    s.headers[last] = FRAGMENT
    memcpy(p + FRAGMENT_HEADER, p, 8)
    p[0] = UDP
    p[1] = 0
    put_be16(p + 2, 0)
    put_be32(p + 4, id)


cdef void plan_fragments(virtio_segmenter *s, const virtio_layer *layer, uint64_t pseudo,
                         uint32_t options) noexcept nogil:
    """Fragments of a UDP datagram: the first has the UDP header, with the checksum of it all."""
    cdef uint8_t *udp = s.headers + layer.l4
    cdef uint8_t *p = s.headers + layer.l3
    cdef bint bare = options & SEGMENT_NO_CHECKSUM and load_sum16(udp + 6) == 0
    cdef uint32_t size[2]
    cdef uint32_t more = s.header - layer.l4, i
    cdef uint16_t length = sum_be16(<uint16_t>(8 + s.payload))
    cdef uint64_t sum, hash = SECRET
    store_sum16(udp + 4, length)
    store_sum16(udp + 6, 0)
    sum = datagram_sum(s, &hash)
    s.l4_sum[0] = sum
    s.seq = 0
    sum += pseudo + length + sum_short(udp, 8)
    if not bare or s.kind == VIRTIO_SEGMENT_IPV6_FRAGMENT:
        store_sum16(udp + 6, sum_finish(sum))
    size[0] = s.unit + more
    size[1] = s.last + more
    if s.kind == VIRTIO_SEGMENT_IPV6_FRAGMENT:
        if s.count > 1:
            for i in range(0, 32, 4):
                hash = mix(hash, get_be32(p + 8 + i))
            hash = mix(mix(hash, get_be32(udp)), get_be32(udp + 4)) ^ SECRET
            add_fragment_header(s, layer, <uint32_t>(mix(hash, s.payload) >> 16))
        plan_ip(s, &s.ip[0], layer, size, True)
        return
    s.noptions = layer.l4 - layer.l3 - 20
    memcpy(s.options, p + 20, s.noptions)
    if s.count > 1:
        put_be16(p + 6, 0)
        drop_options(p + 20, s.noptions)
    plan_ip(s, &s.ip[0], layer, size, True)
    sum = s.ip[0].sum[0] + <uint16_t>~sum_fold(sum_short(p + 20, s.noptions)) + sum_short(s.options, s.noptions)
    s.first_sum = sum


cdef int plan_count(virtio_segmenter *s, uint32_t gso_size, uint32_t limit) noexcept nogil:
    cdef uint32_t total = s.extra + s.payload
    s.unit = gso_size
    if gso_size and gso_size >= total:
        s.unit = s.last = total
        s.count = 1  # of no payload, too
        return VIRTIO_SEGMENT_OK
    if s.kind >= VIRTIO_SEGMENT_FRAGMENTS:
        s.unit = gso_size & ~<uint32_t>7
    if s.unit == 0:
        return refuse(s, VIRTIO_SEGMENT_SIZE, gso_size, 8 if s.kind >= VIRTIO_SEGMENT_FRAGMENTS else 1)
    s.count = (total - 1) // s.unit + 1
    s.last = total - (s.count - 1) * s.unit
    if s.count > limit:
        return refuse(s, VIRTIO_SEGMENT_COUNT, s.count, limit)
    return VIRTIO_SEGMENT_OK


cdef uint32_t find_type(const virtio_frame *f) noexcept nogil:
    cdef const virtio_layer *layer = &f.outer
    cdef uint32_t tunnel = 0
    if f.tunnel != VIRTIO_TUNNEL_NONE:
        layer = &f.inner
        tunnel = (VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4 if f.outer.l3_kind == VIRTIO_L3_IPV4
                  else VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6)
    if layer.protocol != TCP:
        return VIRTIO_NET_HDR_GSO_UDP_L4 | tunnel
    if layer.l3_kind == VIRTIO_L3_IPV6:
        return VIRTIO_NET_HDR_GSO_TCPV6 | tunnel
    return VIRTIO_NET_HDR_GSO_TCPV4 | tunnel


cdef bint is_bare(const virtio_segmenter *s, const virtio_frame *f, const virtio_layer *layer,
                  uint32_t options) noexcept nogil:
    """Whether a datagram has no checksum (RFC 768), and its segments need none.

    Around a tunnel a checksum is computed from the inner one.
    """
    if layer.protocol != UDP or layer.l3_kind != VIRTIO_L3_IPV4 or load_sum16(s.headers + layer.l4 + 6) != 0:
        return False
    return layer == &f.outer or not (load_sum16(s.headers + f.outer.l4 + 6) or options & SEGMENT_OUTER_CHECKSUM)


cdef int plan_as_told(virtio_segmenter *s, const virtio_frame *f, const uint8_t *headers, uint32_t gso_type,
                      uint32_t gso_size, uint32_t options, uint32_t limit) noexcept nogil:
    """Plan it by the lengths in its headers."""
    cdef const virtio_layer *layer = NULL
    cdef uint32_t size[2]
    cdef uint64_t pseudo
    cdef int code
    s.count = 0
    code = check_frame(s, f, gso_type, &layer)
    if code:
        return code
    memcpy(s.headers, headers, layer.payload)
    s.tunnel = layer == &f.inner
    s.l4 = layer.l4
    s.partial = s.needs_csum = options & SEGMENT_PARTIAL != 0
    s.piece = s.passed = 0
    s.payload_at = layer.payload
    s.payload = layer.end - layer.payload
    s.header = layer.payload
    s.extra = 0
    s.kind = VIRTIO_SEGMENT_TCP if layer.protocol == TCP else VIRTIO_SEGMENT_UDP
    if gso_type == VIRTIO_NET_HDR_GSO_UDP:
        s.kind = VIRTIO_SEGMENT_IPV4_FRAGMENT
        if layer.l3_kind == VIRTIO_L3_IPV6:
            s.kind = VIRTIO_SEGMENT_IPV6_FRAGMENT
        s.header = layer.l4
        s.extra = 8
        s.needs_csum = 0
    code = check_extensions(s, layer)
    if not code and s.kind != VIRTIO_SEGMENT_TCP:
        code = check_udp_length(s, layer)
    if not code and s.tunnel:
        code = check_extensions(s, &f.outer)
        if not code:
            code = check_udp_length(s, &f.outer)
    if not code:
        code = plan_count(s, gso_size, limit)
    if not code and s.kind == VIRTIO_SEGMENT_IPV6_FRAGMENT and s.count > 1:
        s.header += FRAGMENT_HEADER
        if s.header + s.extra > VIRTIO_SEGMENT_HEADERS_MAX:
            code = refuse(s, VIRTIO_SEGMENT_HEADERS, s.header + s.extra, VIRTIO_SEGMENT_HEADERS_MAX)
    if code:
        s.count = 0
        return code
    pseudo = pseudo_sum(s, layer)
    if s.kind >= VIRTIO_SEGMENT_FRAGMENTS:
        plan_fragments(s, layer, pseudo, options)
        return VIRTIO_SEGMENT_OK
    if options & SEGMENT_NO_CHECKSUM and is_bare(s, f, layer, options):
        s.partial = 1
        s.needs_csum = 0
    size[0] = s.header - s.l4 + s.unit
    size[1] = s.header - s.l4 + s.last
    plan_ip(s, &s.ip[0], layer, size, options & SEGMENT_FIXED_ID)
    if s.kind == VIRTIO_SEGMENT_TCP:
        plan_tcp(s, pseudo, size)
    else:
        plan_udp(s, pseudo, size)
    if s.tunnel:
        plan_tunnel(s, f, pseudo, size, options)
    return VIRTIO_SEGMENT_OK


cdef int plan_mended(virtio_segmenter *s, const virtio_frame *f, const uint8_t *headers, uint32_t gso_type,
                     uint32_t gso_size, uint32_t options, uint32_t limit, int code) noexcept nogil:
    """Plan a frame whose lengths may not be its own, from a copy in which they are. code: what they led to."""
    cdef virtio_frame parsed = f[0]
    cdef uint8_t *scratch = segment_scratch()
    cdef uint64_t said = 0, there = 0
    cdef int mended
    if headers != scratch:
        memcpy(scratch, headers, min(f.length, <uint32_t>VIRTIO_SEGMENT_HEADERS_MAX))
    mended = lengths_mend(&parsed, scratch, gso_type, gso_size, &said, &there)
    if mended == LENGTHS_TRUE:
        return code
    if mended != VIRTIO_SEGMENT_OK:
        s.count = 0
        return refuse(s, mended, said, there)
    return plan_as_told(s, &parsed, scratch, gso_type, gso_size, options, limit)


cdef int plan(virtio_segmenter *s, const virtio_frame *f, const uint8_t *headers, uint32_t gso_type,
              uint32_t gso_size, uint32_t options, uint32_t limit) noexcept nogil:
    cdef int code
    if gso_type == SEGMENT_AUTO:
        return plan_as_told(s, f, headers, find_type(f), gso_size, options, limit)
    code = plan_as_told(s, f, headers, gso_type, gso_size, options, limit)
    if code == VIRTIO_SEGMENT_OK and s.payload_at + s.payload == f.length:
        return code
    if code == VIRTIO_SEGMENT_OK or code == VIRTIO_SEGMENT_FRAME or code == VIRTIO_SEGMENT_UDP_LENGTH:
        return plan_mended(s, f, headers, gso_type, gso_size, options, limit, code)
    return code


cdef int segment_plan_parsed(virtio_segmenter *s, const virtio_frame *parsed, const uint8_t *frame, uint32_t gso_type,
                             uint32_t gso_size, uint32_t options, uint32_t limit) noexcept nogil:
    s.frame = frame
    s.pieces = NULL
    s.npieces = 0
    return plan(s, parsed, frame, gso_type, gso_size, options, limit)


cdef int segment_plan(virtio_segmenter *s, const uint8_t *frame, uint32_t length, uint32_t gso_type, uint32_t gso_size,
                      uint32_t options, uint32_t limit) noexcept nogil:
    cdef virtio_frame parsed
    frame_parse(&parsed, frame, length)
    return segment_plan_parsed(s, &parsed, frame, gso_type, gso_size, options, limit)


cdef int segment_plan_pieces(virtio_segmenter *s, const iovec *pieces, uint32_t npieces, uint32_t gso_type,
                             uint32_t gso_size, uint32_t options, uint32_t limit) noexcept nogil:
    cdef virtio_frame parsed
    cdef const uint8_t *headers
    cdef size_t total = 0
    cdef uint32_t i
    if npieces == 1 and pieces[0].iov_len <= UINT32_MAX:
        return segment_plan(s, <const uint8_t *>pieces[0].iov_base, <uint32_t>pieces[0].iov_len, gso_type, gso_size,
                            options, limit)
    s.count = 0
    for i in range(npieces):
        if pieces[i].iov_len > UINT32_MAX - total:
            return refuse(s, VIRTIO_SEGMENT_LENGTH, total + pieces[i].iov_len, UINT32_MAX)
        total += pieces[i].iov_len
    headers = segment_headers_of(pieces, npieces)
    s.frame = NULL
    s.pieces = pieces
    s.npieces = npieces
    frame_parse(&parsed, headers, <uint32_t>total)
    return plan(s, &parsed, headers, gso_type, gso_size, options, limit)
