"""Parsing of Ethernet frames: where the headers are, and why no more is known."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from virtio.offload.protocols cimport (
    AH, DESTINATION, ESP, ETHERNET, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ,
    ETHERTYPE_QINQ_OLD, ETHERTYPE_TEB, ETHERTYPE_VLAN, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, IPV4_MORE, IPV4_OFFSET,
    MOBILITY, NO_NEXT, OPTION_END, OPTION_NOP, ROUTING, SCTP, TCP, UDP,
)


cdef enum:
    OFFSET_MAX = 0xffff

    LLC_LENGTH_MAX = 1500     # up to here the type is a length (802.3, 3.2.6)

    OPTION_LSRR = 131
    OPTION_SSRR = 137
    OPTION_PAD1 = 0
    OPTION_JUMBO = 0xc2       # RFC 2675
    OPTION_HOME = 0xc9        # RFC 6275, 6.3

    PORT_VXLAN = 4789         # RFC 7348
    PORT_VXLAN_LINUX = 8472   # what Linux takes unless told
    PORT_GENEVE = 6081        # RFC 8926


cdef inline int stop_at(virtio_layer *layer, uint32_t at, uint32_t flags, int stop) noexcept nogil:
    layer.flags = <uint16_t>flags
    layer.l4 = <uint16_t>at
    layer.payload = <uint16_t>at
    layer.stop = <uint8_t>stop
    return stop


cdef inline int past(uint32_t size, uint32_t at, uint32_t end, int short_of) noexcept nogil:
    """0 if size bytes at `at` are there and end at an offset that 16 bits hold."""
    if size > end - at:
        return short_of
    if at + size > OFFSET_MAX:
        return VIRTIO_STOP_OFFSETS
    return 0


cdef int parse_l4(virtio_layer *layer, const uint8_t *p, uint32_t at, uint32_t end, uint32_t protocol,
                  uint32_t flags) noexcept nogil:
    cdef uint32_t there = end - at, size, length
    cdef int stop
    layer.end = end
    layer.protocol = <uint8_t>protocol
    if protocol == TCP:
        stop = past(20, at, end, VIRTIO_STOP_SHORT_L4)
        if stop:
            return stop_at(layer, at, flags, stop)
        size = (p[at + 12] >> 4) * 4
        if size < 20 or size > there:
            return stop_at(layer, at, flags, VIRTIO_STOP_TCP_OFFSET)
        if size > 20:
            flags |= VIRTIO_LAYER_L4_OPTIONS
    elif protocol == UDP:
        size = 8
        stop = past(8, at, end, VIRTIO_STOP_SHORT_L4)
        if stop:
            return stop_at(layer, at, flags, stop)
        length = get_be16(p + at + 4)
        # in a jumbogram 0 stands for what 16 bits cannot say (RFC 2675, 4)
        if length < 8 and not (length == 0 and there > 0xffff):
            return stop_at(layer, at, flags, VIRTIO_STOP_UDP_LENGTH)
        # of a datagram in fragments the first has but a part
        if length > there and not flags & VIRTIO_LAYER_FRAGMENT:
            return stop_at(layer, at, flags, VIRTIO_STOP_UDP_LENGTH)
    elif protocol == SCTP:
        size = 12
    elif protocol == <uint32_t>(ICMP if layer.l3_kind == VIRTIO_L3_IPV4 else ICMPV6):
        size = 8
    elif protocol == ESP:
        return stop_at(layer, at, flags, VIRTIO_STOP_ENCRYPTED)
    elif protocol == NO_NEXT and layer.l3_kind == VIRTIO_L3_IPV6:
        return stop_at(layer, at, flags, VIRTIO_STOP_NO_NEXT)
    else:
        return stop_at(layer, at, flags, VIRTIO_STOP_PROTOCOL)
    stop = past(size, at, end, VIRTIO_STOP_SHORT_L4)
    if stop:
        return stop_at(layer, at, flags, stop)
    layer.flags = <uint16_t>(flags | VIRTIO_LAYER_L4)
    layer.l4 = <uint16_t>at
    layer.payload = <uint16_t>(at + size)
    layer.stop = VIRTIO_STOP_OK
    return VIRTIO_STOP_OK


cdef int parse_ipv4_options(const uint8_t *p, uint32_t at, uint32_t end, uint32_t *dst) noexcept nogil:
    """RFC 791, 3.1. A source route under way has the final destination last in its list."""
    cdef uint32_t kind, size, pointer
    while at < end:
        kind = p[at]
        if kind == OPTION_END:
            break
        if kind == OPTION_NOP:
            at += 1
            continue
        if end - at < 2:
            return VIRTIO_STOP_OPTION
        size = p[at + 1]
        if size < 2 or size > end - at:
            return VIRTIO_STOP_OPTION
        if kind == OPTION_LSRR or kind == OPTION_SSRR:
            if size < 3:
                return VIRTIO_STOP_OPTION
            pointer = p[at + 2]  # from 1; behind the option when the route is done
            if pointer <= size:
                if pointer < 4 or pointer + 3 > size or (size - 3) % 4 != 0:
                    return VIRTIO_STOP_ROUTING
                dst[0] = at + size - 4
        at += size
    return 0


cdef int parse_ipv4(virtio_layer *layer, const uint8_t *p, uint32_t n, uint32_t at) noexcept nogil:
    cdef uint32_t size, total, fragment, end, dst = at + 16, flags = 0
    cdef int stop = past(20, at, n, VIRTIO_STOP_SHORT_L3)
    layer.l3_kind = VIRTIO_L3_IPV4
    if stop:
        return stop_at(layer, at, flags, stop)
    if p[at] >> 4 != 4:
        return stop_at(layer, at, flags, VIRTIO_STOP_IP_VERSION)
    size = (p[at] & 15) * 4
    if size < 20:
        return stop_at(layer, at, flags, VIRTIO_STOP_IPV4_IHL)
    stop = past(size, at, n, VIRTIO_STOP_SHORT_L3)
    if stop:
        return stop_at(layer, at, flags, stop)
    total = get_be16(p + at + 2)
    if total < size or total > n - at:
        return stop_at(layer, at, flags, VIRTIO_STOP_IP_LENGTH)
    end = at + total
    if end < n:
        flags |= VIRTIO_LAYER_PADDED
    layer.end = end
    layer.protocol = p[at + 9]
    fragment = get_be16(p + at + 6)
    if fragment & (IPV4_MORE | IPV4_OFFSET):
        flags |= VIRTIO_LAYER_FRAGMENT
        layer.fragment = <uint16_t>((fragment & IPV4_OFFSET) * 8)
        if fragment & IPV4_OFFSET:
            flags |= VIRTIO_LAYER_LATER
    if size > 20:
        flags |= VIRTIO_LAYER_OPTIONS
        stop = parse_ipv4_options(p, at + 20, at + size, &dst)
        if stop:
            return stop_at(layer, at, flags, stop)
        if dst != at + 16:
            flags |= VIRTIO_LAYER_ROUTED
    layer.src = <uint16_t>(at + 12)
    layer.dst = <uint16_t>dst
    if flags & VIRTIO_LAYER_LATER:
        return stop_at(layer, at + size, flags, VIRTIO_STOP_FRAGMENT)
    return parse_l4(layer, p, at + size, end, p[at + 9], flags)


cdef int find_option(const uint8_t *p, uint32_t at, uint32_t end, int kind, uint32_t size,
                     uint32_t *found) noexcept nogil:
    """Walk the options of an IPv6 extension header (RFC 8200, 4.2); *found is where the data of one starts, or 0."""
    cdef uint32_t length
    found[0] = 0
    while at < end:
        if p[at] == OPTION_PAD1:
            at += 1
            continue
        if end - at < 2:
            return VIRTIO_STOP_OPTION
        length = p[at + 1]
        if length > end - at - 2:
            return VIRTIO_STOP_OPTION
        if p[at] == kind:
            if length != size:
                return VIRTIO_STOP_OPTION
            found[0] = at + 2
        at += 2 + length
    return 0


cdef int parse_routing(const uint8_t *p, uint32_t at, uint32_t size, uint32_t *dst) noexcept nogil:
    """*dst is the final destination of a routing header under way (RFC 8200, 8.1), for the types that tell it, or 0."""
    cdef uint32_t kind = p[at + 2], left = p[at + 3], addresses = (size - 8) / 16, last
    dst[0] = 0
    if left == 0:
        return 0
    if kind == 0:  # RFC 2460, 4.4
        if left > addresses or p[at + 1] & 1:
            return VIRTIO_STOP_ROUTING
        dst[0] = at + 8 + 16 * (addresses - 1)
    elif kind == 2:  # RFC 6275, 6.4
        if left != 1 or size != 24:
            return VIRTIO_STOP_ROUTING
        dst[0] = at + 8
    elif kind == 4:  # RFC 8754, 2: the list is the route backwards; a reduced one lacks the first segment (4.1.1)
        last = p[at + 4]
        if last + 1 > addresses or left > last + 1:
            return VIRTIO_STOP_ROUTING
        dst[0] = at + 8
    else:  # nobody but the nodes on the route knows the destination
        return VIRTIO_STOP_PROTOCOL
    return 0


cdef inline bint is_extension(uint32_t protocol) noexcept nogil:
    return (protocol == HOP_BY_HOP or protocol == DESTINATION or protocol == ROUTING or protocol == FRAGMENT
            or protocol == AH or protocol == MOBILITY)


cdef int parse_extensions(virtio_layer *layer, const uint8_t *p, uint32_t n, bint jumbo) noexcept nogil:
    """The chain of extension headers (RFC 8200, 4), then the transport header. With jumbo the chain has the length."""
    cdef uint32_t start = layer.l3 + 40, at = start, end = layer.end, size, found, fragment = 0, jumbo_length
    cdef uint32_t src = layer.src, dst = layer.dst, protocol = layer.protocol, flags = layer.flags, count = 0
    cdef int stop = 0
    while is_extension(protocol):
        if count == VIRTIO_EXTENSIONS_MAX:
            stop = VIRTIO_STOP_EXTENSIONS
            break
        count += 1
        stop = past(8, at, end, VIRTIO_STOP_SHORT_EXTENSION)
        if stop:
            break
        if protocol == FRAGMENT:
            size = 8
        elif protocol == AH:
            size = (p[at + 1] + 2) * 4  # RFC 4302, 2.2
            if size < 12:
                stop = VIRTIO_STOP_SHORT_EXTENSION
                break
        else:
            size = (p[at + 1] + 1) * 8
        stop = past(size, at, end, VIRTIO_STOP_SHORT_EXTENSION)
        if stop:
            break
        if protocol == HOP_BY_HOP:
            stop = find_option(p, at + 2, at + size, OPTION_JUMBO, 4, &found)
            if stop:
                break
            # RFC 2675, 3: only with payload length 0, and only for lengths that need it; a length of 0 needs it
            if jumbo != (found != 0):
                stop = VIRTIO_STOP_IP_LENGTH
                break
            if found:
                jumbo_length = get_be32(p + found)
                if jumbo_length <= 0xffff or jumbo_length > n - start:
                    stop = VIRTIO_STOP_IP_LENGTH
                    break
                end = start + jumbo_length
                if end < n:
                    flags |= VIRTIO_LAYER_PADDED
            jumbo = 0
        elif protocol == DESTINATION:
            stop = find_option(p, at + 2, at + size, OPTION_HOME, 16, &found)
            if stop:
                break
            if found:
                src = found
                flags |= VIRTIO_LAYER_ROUTED | VIRTIO_LAYER_HOME
        elif protocol == ROUTING:
            stop = parse_routing(p, at, size, &found)
            if stop:
                break
            if found:
                dst = found
                flags &= ~<uint32_t>VIRTIO_LAYER_ROUTING_2
                flags |= VIRTIO_LAYER_ROUTED | (VIRTIO_LAYER_ROUTING_2 if p[at + 2] == 2 else 0)
        elif protocol == FRAGMENT:
            fragment = get_be16(p + at + 2)
            # offset 0 and no more: an atomic fragment (RFC 6946), which is a whole packet
            if fragment & 0xfff9:
                if end - start > 0xffff:  # RFC 2675, 3
                    stop = VIRTIO_STOP_IP_LENGTH
                    break
                flags |= VIRTIO_LAYER_FRAGMENT
        flags |= VIRTIO_LAYER_EXTENSIONS
        protocol = p[at]
        at += size
        if fragment & 0xfff8:
            layer.fragment = <uint16_t>(fragment & 0xfff8)
            flags |= VIRTIO_LAYER_LATER
            stop = VIRTIO_STOP_FRAGMENT
            break
    layer.src = <uint16_t>src
    layer.dst = <uint16_t>dst
    if not stop:
        return parse_l4(layer, p, at, end, protocol, flags)
    layer.end = end
    layer.protocol = <uint8_t>protocol
    return stop_at(layer, at, flags, stop)


cdef int parse_ipv6(virtio_layer *layer, const uint8_t *p, uint32_t n, uint32_t at) noexcept nogil:
    cdef uint32_t length, end, protocol, flags = 0
    cdef bint jumbo
    cdef int stop = past(40, at, n, VIRTIO_STOP_SHORT_L3)
    layer.l3_kind = VIRTIO_L3_IPV6
    if stop:
        return stop_at(layer, at, flags, stop)
    if p[at] >> 4 != 6:
        return stop_at(layer, at, flags, VIRTIO_STOP_IP_VERSION)
    length = get_be16(p + at + 4)
    if length > n - at - 40:
        return stop_at(layer, at, flags, VIRTIO_STOP_IP_LENGTH)
    protocol = p[at + 6]
    # RFC 2675, 3: a jumbogram has length 0, and its length in the hop-by-hop header
    jumbo = length == 0 and protocol == HOP_BY_HOP
    end = n if jumbo else at + 40 + length
    if end < n:
        flags |= VIRTIO_LAYER_PADDED
    layer.src = <uint16_t>(at + 8)
    layer.dst = <uint16_t>(at + 24)
    if not is_extension(protocol):
        return parse_l4(layer, p, at + 40, end, protocol, flags)
    layer.end = end
    layer.protocol = <uint8_t>protocol
    layer.flags = <uint16_t>flags
    return parse_extensions(layer, p, n, jumbo)


cdef int parse_arp(virtio_layer *layer, const uint8_t *p, uint32_t n, uint32_t at) noexcept nogil:
    """RFC 826: 8 bytes, then two pairs of a hardware and a protocol address."""
    cdef uint32_t size
    cdef int stop = past(8, at, n, VIRTIO_STOP_SHORT_L3)
    layer.l3_kind = VIRTIO_L3_ARP
    if stop:
        return stop_at(layer, at, 0, stop)
    size = 8 + 2 * (p[at + 4] + p[at + 5])
    stop = past(size, at, n, VIRTIO_STOP_SHORT_L3)
    if stop:
        return stop_at(layer, at, 0, stop)
    layer.end = at + size
    return stop_at(layer, at + size, VIRTIO_LAYER_PADDED if at + size < n else 0, VIRTIO_STOP_OK)


cdef int parse_network(virtio_layer *layer, const uint8_t *p, uint32_t n, uint32_t at,
                       uint32_t ethertype) noexcept nogil:
    layer.ethertype = <uint16_t>ethertype
    layer.l3 = <uint16_t>at
    layer.end = n
    if ethertype == ETHERTYPE_IPV4:
        return parse_ipv4(layer, p, n, at)
    if ethertype == ETHERTYPE_IPV6:
        return parse_ipv6(layer, p, n, at)
    if ethertype == ETHERTYPE_ARP:
        return parse_arp(layer, p, n, at)
    layer.l3_kind = VIRTIO_L3_OTHER
    return stop_at(layer, at, 0, VIRTIO_STOP_NOT_IP)


cdef int parse_ethernet(virtio_layer *layer, const uint8_t *p, uint32_t n, uint32_t at) noexcept nogil:
    cdef uint32_t ethertype = 0, vlans = 0
    cdef int stop = past(ETHERNET, at, n, VIRTIO_STOP_SHORT_ETHERNET)
    if not stop:
        at += ETHERNET
        ethertype = get_be16(p + at - 2)
        while ethertype == ETHERTYPE_VLAN or ethertype == ETHERTYPE_QINQ or ethertype == ETHERTYPE_QINQ_OLD:
            stop = past(4, at, n, VIRTIO_STOP_SHORT_VLAN)
            if stop:
                break
            if vlans == 0:
                layer.tci = get_be16(p + at)
            vlans += 1
            ethertype = get_be16(p + at + 2)
            at += 4
        layer.vlans = <uint16_t>vlans
    if not stop and ethertype > LLC_LENGTH_MAX:
        return parse_network(layer, p, n, at, ethertype)
    layer.ethertype = <uint16_t>ethertype
    layer.l3 = <uint16_t>at
    layer.end = n
    if stop:
        return stop_at(layer, at, 0, stop)
    layer.l3_kind = VIRTIO_L3_OTHER
    if ethertype > n - at:
        return stop_at(layer, at, 0, VIRTIO_STOP_LLC_LENGTH)
    layer.end = at + ethertype
    return stop_at(layer, at, VIRTIO_LAYER_PADDED if at + ethertype < n else 0, VIRTIO_STOP_NOT_IP)


cdef inline bint is_tunnel(uint32_t port) noexcept nogil:
    return port == PORT_VXLAN or port == PORT_GENEVE or port == PORT_VXLAN_LINUX


cdef inline bint is_tunnel_header(const uint8_t *p, uint32_t at, uint32_t end, uint32_t port) noexcept nogil:
    """Whether what follows UDP may be a tunnel's header; a missing one may."""
    if at >= end:
        return True
    if port == PORT_GENEVE:
        return p[at] >> 6 == 0  # another version, nobody knows
    return p[at] & 8 != 0  # RFC 7348, 5: without the I flag it is none; other bits are not looked at


cdef inline int mark_tunnel(virtio_layer *inner, const uint8_t *p, int stop) noexcept nogil:
    """Note in an inner layer, parsed, that it is a tunnel again."""
    cdef uint32_t port
    if stop == VIRTIO_STOP_OK and inner.protocol == UDP and not inner.flags & VIRTIO_LAYER_FRAGMENT:
        port = get_be16(p + inner.l4 + 2)
        if is_tunnel(port) and is_tunnel_header(p, inner.payload, inner.end, port):
            inner.flags |= VIRTIO_LAYER_TUNNEL
    return stop


cdef int parse_tunnel(virtio_frame *frame, const uint8_t *p) noexcept nogil:
    """Look behind a UDP header whose port is a tunnel's; the outer stop stays if it is none after all."""
    cdef uint32_t at = frame.outer.payload, end = frame.outer.end, size
    cdef uint32_t port = get_be16(p + frame.outer.l4 + 2), length = get_be16(p + frame.outer.l4 + 4)
    cdef virtio_layer *inner = &frame.inner
    cdef int stop
    if length and frame.outer.l4 + length < end:
        end = frame.outer.l4 + length
    if not is_tunnel_header(p, at, end, port):
        return frame.outer.stop
    frame.tunnel = VIRTIO_TUNNEL_GENEVE if port == PORT_GENEVE else VIRTIO_TUNNEL_VXLAN
    inner.end = end
    inner.l3 = <uint16_t>at
    stop = past(8, at, end, VIRTIO_STOP_SHORT_TUNNEL)
    if not stop:
        size = 8
        if port == PORT_GENEVE:
            size += (p[at] & 0x3f) * 4
            stop = past(size, at, end, VIRTIO_STOP_SHORT_TUNNEL)
    if stop:
        return stop_at(inner, at, 0, stop)
    frame.inner_l2 = <uint16_t>(at + size)
    if port == PORT_GENEVE and get_be16(p + at + 2) != ETHERTYPE_TEB:
        return mark_tunnel(inner, p, parse_network(inner, p, end, at + size, get_be16(p + at + 2)))
    return mark_tunnel(inner, p, parse_ethernet(inner, p, end, at + size))


cdef int parse_any(virtio_frame *frame, const uint8_t *p, uint32_t n) noexcept nogil:
    cdef int stop
    memset(frame, 0, sizeof(virtio_frame))
    frame.length = n
    stop = parse_ethernet(&frame.outer, p, n, 0)
    # half an inner packet would be a lie of ours: fragments of a tunnel are left alone
    if stop == VIRTIO_STOP_OK and frame.outer.protocol == UDP and not frame.outer.flags & VIRTIO_LAYER_FRAGMENT:
        if is_tunnel(get_be16(p + frame.outer.l4 + 2)):
            return parse_tunnel(frame, p)
    return stop


cdef virtio_frame PLAIN_IPV4, PLAIN_IPV6  # what all frames that parse_plain() takes have in common
memset(&PLAIN_IPV4, 0, sizeof(virtio_frame))
PLAIN_IPV4.outer.ethertype = ETHERTYPE_IPV4
PLAIN_IPV4.outer.l3_kind = VIRTIO_L3_IPV4
PLAIN_IPV4.outer.l3 = ETHERNET
PLAIN_IPV4.outer.l4 = ETHERNET + 20
PLAIN_IPV4.outer.src = ETHERNET + 12
PLAIN_IPV4.outer.dst = ETHERNET + 16
PLAIN_IPV6 = PLAIN_IPV4
PLAIN_IPV6.outer.ethertype = ETHERTYPE_IPV6
PLAIN_IPV6.outer.l3_kind = VIRTIO_L3_IPV6
PLAIN_IPV6.outer.l4 = ETHERNET + 40
PLAIN_IPV6.outer.src = ETHERNET + 8
PLAIN_IPV6.outer.dst = ETHERNET + 24


cdef inline bint parse_plain(virtio_frame *frame, const uint8_t *p, uint32_t n) noexcept nogil:
    """Take a sound frame of TCP or UDP on IP, without tags, IP options, extension headers, tunnels; or no frame."""
    cdef const virtio_frame *plain
    cdef uint32_t head, end, l4, size, length, flags = VIRTIO_LAYER_L4
    cdef uint8_t protocol
    if n < ETHERNET + 28:
        return 0
    head = get_be32(p + 12)  # EtherType, version, header length or traffic class
    if head >> 8 == ETHERTYPE_IPV4 << 8 | 0x45:
        end = ETHERNET + get_be16(p + 16)
        if get_be16(p + 20) & (IPV4_MORE | IPV4_OFFSET):
            return 0
        protocol = p[23]
        l4 = ETHERNET + 20
        plain = &PLAIN_IPV4
    elif head >> 12 == ETHERTYPE_IPV6 << 4 | 6:
        end = ETHERNET + 40 + get_be16(p + 18)
        protocol = p[20]
        l4 = ETHERNET + 40
        plain = &PLAIN_IPV6
    else:
        return 0
    if end > n:
        return 0
    if protocol == TCP:
        if end < l4 + 20:
            return 0
        size = (p[l4 + 12] >> 4) * 4
        if size < 20 or l4 + size > end:
            return 0
    elif protocol == UDP:
        if end < l4 + 8:
            return 0
        size = 8
        length = get_be16(p + l4 + 4)
        if length < 8 or l4 + length > end or is_tunnel(get_be16(p + l4 + 2)):
            return 0
    else:
        return 0
    if size > 20:
        flags |= VIRTIO_LAYER_L4_OPTIONS
    if end < n:
        flags |= VIRTIO_LAYER_PADDED
    frame[0] = plain[0]
    frame.length = n
    frame.outer.end = end
    frame.outer.payload = <uint16_t>(l4 + size)
    frame.outer.protocol = protocol
    frame.outer.flags = <uint16_t>flags
    return 1


cdef int frame_parse(virtio_frame *frame, const uint8_t *p, uint32_t n) noexcept nogil:
    return VIRTIO_STOP_OK if parse_plain(frame, p, n) else parse_any(frame, p, n)


cdef void frame_parse_burst(virtio_frame *frames, const uint8_t *const *p, const uint32_t *n,
                            uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        if not parse_plain(&frames[i], p[i], n[i]):
            parse_any(&frames[i], p[i], n[i])
