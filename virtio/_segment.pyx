"""Cutting a frame into segments: the plan."""

from libc.stddef cimport size_t
from libc.stdint cimport UINT32_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from virtio._checksum cimport (load_sum16, sum_be16, sum_bytes, sum_fold, sum_gather, sum_pseudo4, sum_pseudo6,
                               sum_short, store_sum16)
from virtio._frame cimport *
from virtio._net_hdr cimport *


cdef enum:
    TCP = 6
    UDP = 17
    HOP_BY_HOP = 0
    ROUTING = 43
    DESTINATION = 60

    TCP_FIN_PSH = 0x09
    TCP_CWR = 0x80

    OPTION_END = 0
    OPTION_NOP = 1
    OPTION_COPIED = 0x80
    TUNNELS = 0x60  # VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4 and _IPV6


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
    cdef int protocol = UDP
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
    if tunnel and f.outer.l3_kind != (
            VIRTIO_L3_IPV4 if tunnel == VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4 else VIRTIO_L3_IPV6):
        return refuse(s, VIRTIO_SEGMENT_TUNNEL, f.outer.l3_kind, 0)
    if layer.l3_kind != network and not (layer.l3_kind == VIRTIO_L3_IPV6 and kind == VIRTIO_NET_HDR_GSO_UDP_L4):
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
            p[13] &= <uint8_t>~TCP_CWR
        if not k & 2:
            p[13] &= <uint8_t>~TCP_FIN_PSH
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
        s.l4_checksum[k] = sum_fold(pseudo + s.udp_length[k])
    store_sum16(p + 4, s.udp_length[0])
    store_sum16(p + 6, s.l4_checksum[0])


cdef void plan_tunnel(virtio_segmenter *s, const virtio_frame *f, uint64_t pseudo, const uint32_t *size,
                      bint fixed) noexcept nogil:
    """What is around the inner packet. pseudo, without the length, and size: those of the inner transport header."""
    cdef uint8_t *p = s.headers + f.outer.l4
    cdef uint8_t *inner_ip = s.headers + f.inner.l3
    cdef uint32_t length[2]
    cdef uint64_t sum
    cdef int k
    s.outer_l4 = f.outer.l4
    s.outer_check = load_sum16(p + 6) != 0
    # From the inner transport header on, checksum and all, the sum is the complement of its pseudo header's; an IPv4
    # header sums to 0xffff, which is 0. What is left is the same for all segments of a size.
    sum = (pseudo_sum(s, &f.outer) + load_sum16(p) + load_sum16(p + 2)
           + sum_bytes(s.headers + f.outer.payload, f.inner.l3 - f.outer.payload))
    if f.inner.l3_kind == VIRTIO_L3_IPV6:
        sum += sum_bytes(inner_ip, 4) + sum_bytes(inner_ip + 6, f.inner.l4 - f.inner.l3 - 6)
    for k in range(2):
        length[k] = f.inner.l4 - f.outer.l4 + size[k]
        s.outer_length[k] = sum_be16(<uint16_t>length[k])
        s.outer_checksum[k] = <uint16_t>~sum_fold(
            sum + 2 * <uint64_t>s.outer_length[k] + (0 if s.ip[0].v4 else s.ip[0].length[k])
            + <uint16_t>~sum_fold(pseudo + sum_be16(<uint16_t>size[k])))
        if s.outer_checksum[k] == 0:
            s.outer_checksum[k] = 0xffff
    plan_ip(s, &s.ip[1], &f.outer, length, fixed)
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


cdef void plan_fragments(virtio_segmenter *s, const virtio_layer *layer, uint64_t pseudo) noexcept nogil:
    """IPv4 fragments of a UDP datagram: the first has the UDP header, with the checksum of it all."""
    cdef uint8_t *udp = s.headers + layer.l4
    cdef uint8_t *p = s.headers + layer.l3
    cdef uint32_t size[2]
    cdef uint16_t length = sum_be16(<uint16_t>(8 + s.payload)), checksum
    cdef uint64_t sum
    s.noptions = layer.l4 - layer.l3 - 20
    memcpy(s.options, p + 20, s.noptions)
    store_sum16(udp + 4, length)
    store_sum16(udp + 6, 0)
    sum = pseudo + length + sum_short(udp, 8)
    if s.frame is not NULL:
        sum += sum_bytes(s.frame + s.payload_at, s.payload)
    else:
        sum += sum_gather(s.pieces, s.npieces, s.payload_at, s.payload)
    checksum = <uint16_t>~sum_fold(sum)
    store_sum16(udp + 6, checksum if checksum else 0xffff)
    if s.count > 1:
        put_be16(p + 6, 0)
        drop_options(p + 20, s.noptions)
    size[0] = s.unit
    size[1] = s.last
    plan_ip(s, &s.ip[0], layer, size, True)
    sum = s.ip[0].sum[0] + <uint16_t>~sum_fold(sum_short(p + 20, s.noptions)) + sum_short(s.options, s.noptions)
    s.first_sum = sum


cdef int plan_count(virtio_segmenter *s, uint32_t gso_size, uint32_t limit) noexcept nogil:
    cdef uint32_t total = s.extra + s.payload
    s.unit = gso_size
    if gso_size >= total:
        s.unit = total
    elif s.kind == VIRTIO_SEGMENT_IPV4_FRAGMENT:
        s.unit = gso_size & ~<uint32_t>7
    if s.unit == 0:
        return refuse(s, VIRTIO_SEGMENT_SIZE, gso_size, 8 if s.kind == VIRTIO_SEGMENT_IPV4_FRAGMENT else 1)
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


cdef int plan(virtio_segmenter *s, const virtio_frame *f, const uint8_t *headers, uint32_t gso_type,
              uint32_t gso_size, uint32_t options, uint32_t limit) noexcept nogil:
    cdef const virtio_layer *layer = NULL
    cdef uint32_t size[2]
    cdef uint64_t pseudo
    cdef int code
    s.count = 0
    if gso_type == SEGMENT_AUTO:
        gso_type = find_type(f)
    code = check_frame(s, f, gso_type, &layer)
    if code:
        return code
    memcpy(s.headers, headers, layer.payload)
    s.tunnel = layer == &f.inner
    s.l4 = layer.l4
    s.partial = options & SEGMENT_PARTIAL != 0
    s.piece = s.passed = 0
    s.payload_at = layer.payload
    s.payload = layer.end - layer.payload
    s.header = layer.payload
    s.extra = 0
    s.kind = VIRTIO_SEGMENT_TCP if layer.protocol == TCP else VIRTIO_SEGMENT_UDP
    if gso_type == VIRTIO_NET_HDR_GSO_UDP:
        s.kind = VIRTIO_SEGMENT_IPV4_FRAGMENT
        s.header = layer.l4
        s.extra = 8
    code = check_extensions(s, layer)
    if not code and s.kind != VIRTIO_SEGMENT_TCP:
        code = check_udp_length(s, layer)
    if not code and s.tunnel:
        code = check_extensions(s, &f.outer)
        if not code:
            code = check_udp_length(s, &f.outer)
    if not code and s.payload == 0:
        code = refuse(s, VIRTIO_SEGMENT_EMPTY, 0, 1)
    if not code:
        code = plan_count(s, gso_size, limit)
    if code:
        s.count = 0
        return code
    pseudo = pseudo_sum(s, layer)
    if s.kind == VIRTIO_SEGMENT_IPV4_FRAGMENT:
        plan_fragments(s, layer, pseudo)
        return VIRTIO_SEGMENT_OK
    size[0] = s.header - s.l4 + s.unit
    size[1] = s.header - s.l4 + s.last
    plan_ip(s, &s.ip[0], layer, size, options & SEGMENT_FIXED_ID)
    if s.kind == VIRTIO_SEGMENT_TCP:
        plan_tcp(s, pseudo, size)
    else:
        plan_udp(s, pseudo, size)
    if s.tunnel:
        plan_tunnel(s, f, pseudo, size, options & SEGMENT_FIXED_OUTER_ID)
    return VIRTIO_SEGMENT_OK


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
    cdef uint8_t *scratch = segment_scratch()
    cdef size_t total = 0, copied = 0, n
    cdef uint32_t i
    if npieces == 1 and pieces[0].iov_len <= UINT32_MAX:
        return segment_plan(s, <const uint8_t *>pieces[0].iov_base, <uint32_t>pieces[0].iov_len, gso_type, gso_size,
                            options, limit)
    s.count = 0
    for i in range(npieces):
        if pieces[i].iov_len > UINT32_MAX - total:
            return refuse(s, VIRTIO_SEGMENT_LENGTH, total + pieces[i].iov_len, UINT32_MAX)
        n = min(pieces[i].iov_len, VIRTIO_SEGMENT_HEADERS_MAX - copied)
        if n:
            memcpy(scratch + copied, pieces[i].iov_base, n)
        copied += n
        total += pieces[i].iov_len
    s.frame = NULL
    s.pieces = pieces
    s.npieces = npieces
    frame_parse(&parsed, scratch, <uint32_t>total)
    return plan(s, &parsed, scratch, gso_type, gso_size, options, limit)
