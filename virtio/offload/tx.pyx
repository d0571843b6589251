"""Sending: from what a network stack asks for to a frame and a header that say just that."""

from collections import namedtuple

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from virtio.offload.batch cimport Batch
from virtio.offload.counters cimport (
    VIRTIO_TX_CSUM_BAD_FRAME, VIRTIO_TX_CSUM_FRAGMENT, VIRTIO_TX_CSUM_ICMP, VIRTIO_TX_CSUM_OFFLOADED,
    VIRTIO_TX_CSUM_PADDED, VIRTIO_TX_CSUM_PROTO_MISMATCH, VIRTIO_TX_CSUM_SCTP, VIRTIO_TX_CSUM_SOFTWARE,
    VIRTIO_TX_CSUM_UNKNOWN_ETHTYPE, VIRTIO_TX_CSUM_UNKNOWN_IPPROTO, VIRTIO_TX_GSO_BAD_LENGTH, VIRTIO_TX_GSO_HEADERS,
    VIRTIO_TX_GSO_PADDED, VIRTIO_TX_NO_OFFLOAD, VIRTIO_TX_REASONS, VIRTIO_TX_SEGMENT_IN_SOFTWARE, VIRTIO_TX_TSO_ECN,
    VIRTIO_TX_TSO_EXTENSION, VIRTIO_TX_TSO_JUMBOGRAM, VIRTIO_TX_TSO_NOT_TCP, VIRTIO_TX_TSO_OFFLOADED,
    VIRTIO_TX_TSO_SOFTWARE, VIRTIO_TX_TSO_WITHOUT_CSUM, VIRTIO_TX_TUNNEL_CSUM_SOFTWARE, VIRTIO_TX_TUNNEL_FAMILY,
    VIRTIO_TX_TUNNEL_SOFTWARE, VIRTIO_TX_USO_OFFLOADED, VIRTIO_TX_USO_SEGMENTS, VIRTIO_TX_USO_SOFTWARE,
    VIRTIO_USO_SEGMENTS_MAX, OffloadCounters,
)
from virtio.offload.frame cimport (
    VIRTIO_L3_IPV4, VIRTIO_L3_IPV6, VIRTIO_LAYER_FRAGMENT, VIRTIO_LAYER_L4, VIRTIO_LAYER_TUNNEL, VIRTIO_STOP_FAULTS,
    VIRTIO_STOP_IP_VERSION, frame_parse, get_be16, virtio_layer,
)
from virtio.offload.frame_checksum cimport VERDICT_GOOD, layer_fill_l4, layer_fill_partial
from virtio.offload.inet_checksum cimport load_sum16, store_sum16, sum_bytes, sum_finish
from virtio.offload.net_hdr cimport (
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4, VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4,
    VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6, VIRTIO_OFFLOAD_CSUM, VIRTIO_OFFLOAD_ECN, VIRTIO_OFFLOAD_TO_DRIVER,
    VIRTIO_OFFLOAD_TSO4, VIRTIO_OFFLOAD_TSO6, VIRTIO_OFFLOAD_TUNNEL, VIRTIO_OFFLOAD_TUNNEL_CSUM, VIRTIO_OFFLOAD_USO4,
    VIRTIO_OFFLOAD_USO6, header_size_of, NetHeader, offloads_of,
)
from virtio.offload.protocols cimport CWR, DESTINATION, HOP_BY_HOP, ICMP, ICMPV6, ROUTING, SCTP, TCP, UDP, UDP_FIELD
from virtio.offload.segmenter cimport VIRTIO_SEGMENT_HEADERS_MAX
from virtio.offload.counters import TransmitReason


cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1


cdef enum:
    BY_MSS = 0x100  # beside VIRTIO_TX_WANT_*


cdef inline bint has_checksum(const virtio_layer *layer) noexcept nogil:
    return layer.flags & VIRTIO_LAYER_L4 and (layer.protocol == TCP or layer.protocol == UDP or layer.protocol == SCTP
                                              or layer.protocol == ICMP or layer.protocol == ICMPV6)


cdef inline bint udp_exact(const uint8_t *p, const virtio_layer *layer) noexcept nogil:
    """Whether the datagram fills its packet; a jumbogram (RFC 2675, 4) says so by a length of 0."""
    cdef uint32_t length = get_be16(p + layer.l4 + 4), there = layer.end - layer.l4
    return length == there or (length == 0 and there > 0xffff)


cdef bint exact(const uint8_t *p, const virtio_frame *frame, const virtio_layer *layer) noexcept nogil:
    """Whether the frame ends where all that is summed ends: the device knows the frame's length only."""
    if layer.end != frame.length or (layer.protocol == UDP and not udp_exact(p, layer)):
        return False
    return layer == &frame.outer or (frame.outer.end == frame.length and udp_exact(p, &frame.outer))


cdef int why_none(const virtio_layer *layer) noexcept nogil:
    """Why this layer has no checksum that could be computed; VIRTIO_TX_NO_OFFLOAD if it has one."""
    if layer.flags & VIRTIO_LAYER_FRAGMENT:
        return VIRTIO_TX_CSUM_FRAGMENT
    if layer.stop == VIRTIO_STOP_IP_VERSION:
        return VIRTIO_TX_CSUM_PROTO_MISMATCH
    if layer.stop >= VIRTIO_STOP_FAULTS:
        return VIRTIO_TX_CSUM_BAD_FRAME
    if layer.l3_kind != VIRTIO_L3_IPV4 and layer.l3_kind != VIRTIO_L3_IPV6:
        return VIRTIO_TX_CSUM_UNKNOWN_ETHTYPE
    if not has_checksum(layer):
        return VIRTIO_TX_CSUM_UNKNOWN_IPPROTO
    return VIRTIO_TX_NO_OFFLOAD


cdef inline bint outer_checksum(const uint8_t *p, const virtio_frame *frame, const virtio_layer *layer) noexcept nogil:
    """Whether there is a tunnel around this layer whose UDP header has a checksum."""
    return layer != &frame.outer and load_sum16(p + frame.outer.l4 + UDP_FIELD) != 0


cdef int transmit_software(uint8_t *p, const virtio_frame *frame, const virtio_layer *layer,
                           int reason) noexcept nogil:
    if layer_fill_l4(p, frame, layer) != VERDICT_GOOD:
        return VIRTIO_TX_CSUM_BAD_FRAME
    if outer_checksum(p, frame, layer) and layer_fill_l4(p, frame, &frame.outer) != VERDICT_GOOD:
        return VIRTIO_TX_CSUM_BAD_FRAME
    return reason


cdef void fill_outer(uint8_t *p, const virtio_frame *frame, uint16_t pseudo) noexcept nogil:
    """The checksum around an inner packet that the device will complete; pseudo is the inner pseudo header's sum.

    Completed, the inner transport header and payload sum to the complement of that, whatever they are.
    """
    cdef uint32_t at = frame.outer.l4
    layer_fill_partial(p, frame, &frame.outer)
    # headers have an even number of bytes: both sums are of the same words
    store_sum16(p + at + UDP_FIELD, sum_finish(sum_bytes(p + at, frame.inner.l4 - at) + <uint16_t>~pseudo))


cdef int transmit_checksum(virtio_net_hdr *hdr, uint8_t *p, const virtio_frame *frame, const virtio_layer *layer,
                           uint32_t offloads) noexcept nogil:
    cdef int field
    if layer.protocol == SCTP:
        return transmit_software(p, frame, layer, VIRTIO_TX_CSUM_SCTP)
    if layer.protocol != TCP and layer.protocol != UDP:
        return transmit_software(p, frame, layer, VIRTIO_TX_CSUM_ICMP)
    if not offloads & VIRTIO_OFFLOAD_CSUM:
        return transmit_software(p, frame, layer, VIRTIO_TX_CSUM_SOFTWARE)
    if not exact(p, frame, layer):
        return transmit_software(p, frame, layer, VIRTIO_TX_CSUM_PADDED)
    field = layer_fill_partial(p, frame, layer)
    if field < 0:
        return VIRTIO_TX_CSUM_BAD_FRAME
    if outer_checksum(p, frame, layer):
        fill_outer(p, frame, load_sum16(p + layer.l4 + field))
    hdr.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
    hdr.hdr_len = layer.payload
    hdr.csum_start = layer.l4
    hdr.csum_offset = <uint16_t>field
    return VIRTIO_TX_CSUM_OFFLOADED


cdef int check_repeatable(const uint8_t *p, const virtio_layer *layer) noexcept nogil:
    """Whether the headers of this layer may stand in each of many packets."""
    cdef uint32_t at = layer.l3 + 40
    cdef int next
    if layer.protocol == UDP and not udp_exact(p, layer):
        return VIRTIO_TX_GSO_BAD_LENGTH
    if layer.l3_kind != VIRTIO_L3_IPV6:
        return VIRTIO_TX_NO_OFFLOAD
    if layer.end - layer.l3 - 40 > 0xffff:
        return VIRTIO_TX_TSO_JUMBOGRAM
    next = p[layer.l3 + 6]
    while at < layer.l4:
        if next != HOP_BY_HOP and next != ROUTING and next != DESTINATION:
            return VIRTIO_TX_TSO_EXTENSION
        next = p[at]
        at += (p[at + 1] + 1) * 8
    return VIRTIO_TX_NO_OFFLOAD


cdef int check_tunnel(const uint8_t *p, const virtio_frame *frame, const virtio_layer *layer,
                      uint32_t offloads) noexcept nogil:
    if layer == &frame.outer:
        return VIRTIO_TX_NO_OFFLOAD
    if not offloads & VIRTIO_OFFLOAD_TUNNEL:
        return VIRTIO_TX_TUNNEL_SOFTWARE
    if outer_checksum(p, frame, layer) and not offloads & VIRTIO_OFFLOAD_TUNNEL_CSUM:
        return VIRTIO_TX_TUNNEL_CSUM_SOFTWARE
    # the bit is the inner version's in the specification (5.1.9.2), the outer one's in Linux
    if frame.outer.l3_kind != frame.inner.l3_kind:
        return VIRTIO_TX_TUNNEL_FAMILY
    return VIRTIO_TX_NO_OFFLOAD


cdef int transmit_segments(virtio_net_hdr *hdr, uint8_t *p, const virtio_frame *frame, const virtio_layer *layer,
                           uint32_t mss, uint32_t offloads) noexcept nogil:
    cdef bint ipv4 = layer.l3_kind == VIRTIO_L3_IPV4
    cdef uint32_t needed = VIRTIO_OFFLOAD_CSUM
    cdef int code, field
    code = check_repeatable(p, layer)
    if code == VIRTIO_TX_NO_OFFLOAD and layer != &frame.outer:
        code = check_repeatable(p, &frame.outer)
    if code:
        return code
    if not exact(p, frame, layer):
        return VIRTIO_TX_GSO_PADDED
    if layer.protocol == TCP:
        needed |= VIRTIO_OFFLOAD_TSO4 if ipv4 else VIRTIO_OFFLOAD_TSO6
        if offloads & needed != needed:
            return VIRTIO_TX_TSO_SOFTWARE
        if p[layer.l4 + 13] & CWR:
            if not offloads & VIRTIO_OFFLOAD_ECN:
                return VIRTIO_TX_TSO_ECN
            hdr.gso_type = VIRTIO_NET_HDR_GSO_ECN
    else:
        needed |= VIRTIO_OFFLOAD_USO4 if ipv4 else VIRTIO_OFFLOAD_USO6
        if offloads & needed != needed:
            return VIRTIO_TX_USO_SOFTWARE
        if layer.end - layer.payload > mss * VIRTIO_USO_SEGMENTS_MAX:
            return VIRTIO_TX_USO_SEGMENTS
    code = check_tunnel(p, frame, layer, offloads)
    field = -1 if code else layer_fill_partial(p, frame, layer)
    if field < 0:
        hdr.gso_type = 0
        return code if code else VIRTIO_TX_CSUM_BAD_FRAME
    if layer != &frame.outer:
        hdr.gso_type |= VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4 if ipv4 else VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6
        hdr.outer_th_offset = frame.outer.l4
        hdr.inner_nh_offset = layer.l3
        if outer_checksum(p, frame, layer):
            layer_fill_partial(p, frame, &frame.outer)
            hdr.flags = VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM
    hdr.flags |= VIRTIO_NET_HDR_F_NEEDS_CSUM
    hdr.hdr_len = layer.payload
    hdr.gso_size = <uint16_t>mss
    hdr.csum_start = layer.l4
    hdr.csum_offset = <uint16_t>field
    if layer.protocol == TCP:
        hdr.gso_type |= VIRTIO_NET_HDR_GSO_TCPV4 if ipv4 else VIRTIO_NET_HDR_GSO_TCPV6
        return VIRTIO_TX_TSO_OFFLOADED
    hdr.gso_type |= VIRTIO_NET_HDR_GSO_UDP_L4
    return VIRTIO_TX_USO_OFFLOADED


cdef inline bint is_tunnel(const virtio_frame *frame, const virtio_layer *layer) noexcept nogil:
    return frame.tunnel if layer == &frame.outer else layer.flags & VIRTIO_LAYER_TUNNEL


cdef int offload_transmit(virtio_net_hdr *hdr, uint8_t *p, const virtio_frame *frame, uint32_t want, uint32_t mss,
                          uint32_t offloads) noexcept nogil:
    cdef const virtio_layer *layer = &frame.outer
    cdef int reason
    memset(hdr, 0, sizeof(virtio_net_hdr))
    if offloads & VIRTIO_OFFLOAD_TO_DRIVER:
        hdr.num_buffers = 1
    if not want & VIRTIO_TX_WANT_CSUM:
        return VIRTIO_TX_TSO_WITHOUT_CSUM if mss else VIRTIO_TX_NO_OFFLOAD
    if frame.tunnel and want & VIRTIO_TX_WANT_INNER:
        layer = &frame.inner
    reason = why_none(layer)
    if reason:
        return reason
    if mss and layer.end - layer.payload > mss:
        if (layer.protocol != TCP and layer.protocol != UDP) or is_tunnel(frame, layer):
            return VIRTIO_TX_TSO_NOT_TCP
        reason = transmit_segments(hdr, p, frame, layer, mss, offloads)
        if tx_outcome(reason) == VIRTIO_TX_SEGMENT_IN_SOFTWARE and layer.payload > VIRTIO_SEGMENT_HEADERS_MAX:
            return VIRTIO_TX_GSO_HEADERS
        return reason
    return transmit_checksum(hdr, p, frame, layer, offloads)


# ---- the Python face ----

Transmit = namedtuple("Transmit", ["outcome", "reason", "header"])
_REASONS = tuple(TransmitReason)


cdef uint32_t checked_mss(object mss) except? 0xffffffff:
    cdef int overflow = 0
    cdef long long size = PyLong_AsLongLongAndOverflow(mss, &overflow)
    if overflow or not 0 <= size <= 0xffff:
        raise ValueError(f"mss {mss} out of range (0 to 65535)")
    return <uint32_t>size


cdef uint32_t wanted(bint checksum, object layer) except? 0xffffffff:
    """VIRTIO_TX_WANT_*; with BY_MSS it depends on the mss whether the inner layer is meant."""
    cdef uint32_t want = VIRTIO_TX_WANT_CSUM if checksum else 0
    if layer is None:
        return want | BY_MSS
    if layer == "inner":
        return want | VIRTIO_TX_WANT_INNER
    if layer != "outer":
        raise ValueError(f"layer {layer!r} is neither 'inner' nor 'outer'")
    return want


cdef inline uint32_t want_of(uint32_t want, uint32_t mss) noexcept nogil:
    return want | VIRTIO_TX_WANT_INNER if want & BY_MSS and mss else want


def prepare_transmit(frame, features, mss=0, bint checksum=True, *, layer=None, bint to_driver=False,
                     OffloadCounters counters=None):
    """Make a writable Ethernet frame ready to be sent with these features; return :class:`Transmit`.

    The frame's transport checksum is to be computed, whatever is in the field; ``checksum=False`` leaves it as it is.
    With ``mss`` (1 to 65535) a frame of more payload bytes is to be cut into segments of that many. ``outcome`` says
    what to do:

    - ``SENT_AS``: send the frame with ``header``; what is left to do, the header asks of the device.
    - ``DONE_IN_SOFTWARE``: send the frame with ``header``; the checksum is complete.
    - ``SEGMENT_IN_SOFTWARE``: cut the untouched frame yourself (:func:`segment`), and send the segments as they are.
    - ``REFUSED``: do not send the untouched frame: nobody can compute this checksum, or cut this frame.

    ``reason`` says why, and is what ``counters`` count. ``features`` are the negotiated ones, an int of any width.
    ``to_driver`` is for a device: the frame goes to the driver, by the GUEST features.

    ``layer`` says which packet of a tunnel (VXLAN, GENEVE) all this is about; without a tunnel there is but one:

    - ``"outer"``, the default without ``mss``: the outermost. What is within is payload, as of a frame that is
      forwarded: it may be damaged, a fragment or anything else, and stays as it is. With ``mss`` it is refused.
    - ``"inner"``, the default with ``mss``: the packet within, which the stack has built as well. The outer UDP
      checksum is computed, too, unless it is 0. A tunnel in that packet is payload again, and not cut.

    Sources: VIRTIO 1.4, 5.1.9.2; if_vtnet(4).

    Raises BufferError if the frame is read-only, ValueError for an ``mss`` out of range, an unknown ``layer`` or a
    frame of 2**32 bytes.
    """
    cdef Py_buffer view
    cdef virtio_frame parsed
    cdef virtio_net_hdr hdr
    cdef int reason
    cdef uint32_t size = checked_mss(mss), offloads = offloads_of(features, to_driver)
    cdef uint32_t want = want_of(wanted(checksum, layer), size)
    cdef NetHeader header = NetHeader()
    PyObject_GetBuffer(frame, &view, PyBUF_WRITABLE)
    try:
        if view.len > 0xffffffff:
            raise ValueError(f"frame has {view.len} bytes (limit {0xffffffff})")
        frame_parse(&parsed, <const uint8_t *>view.buf, <uint32_t>view.len)
        reason = offload_transmit(&hdr, <uint8_t *>view.buf, &parsed, want, size, offloads)
    finally:
        PyBuffer_Release(&view)
    header.load(&hdr)
    if counters is not None:
        counters.c.tx[reason] += 1
    why = _REASONS[reason]
    return Transmit(why.outcome, why, header)


def prepare_transmit_burst(frames, features, mss=0, bint checksum=True, *, layer=None, bint to_driver=False,
                           offsets=None, OffloadCounters counters=None):
    """:func:`prepare_transmit` for many frames; return their reasons and their headers, both as bytes.

    The first has a byte for each frame, a :class:`TransmitReason`; the second net_header_size(features) bytes each.
    ``mss`` is one for all, or a sequence of one for each; ``layer`` is one for all, and unless it is given the default
    by each frame's ``mss``. ``frames`` is a sequence of writable buffers; or, with ``offsets`` (n + 1 rising numbers),
    one buffer in which frame i is ``frames[offsets[i]:offsets[i + 1]]``. Works without the GIL.

    Raises what :func:`prepare_transmit` raises, and ValueError if there are not as many ``mss`` as frames; then no
    frame was touched.
    """
    cdef Batch batch = Batch()
    cdef virtio_frame parsed
    cdef virtio_net_hdr hdr
    cdef uint64_t counts[VIRTIO_TX_REASONS]
    cdef uint32_t i, size = header_size_of(features), offloads = offloads_of(features, to_driver), one = 0
    cdef uint32_t want = wanted(checksum, layer), segment_size
    cdef uint16_t *each = NULL
    cdef uint8_t *reasons
    cdef uint8_t *headers
    batch.load(frames, offsets, True)
    if isinstance(mss, int):
        one = checked_mss(mss)
        sizes = None
    else:
        mss = tuple(mss)
        if len(mss) != batch.count:
            raise ValueError(f"{len(mss)} mss for {batch.count} frames")
        sizes = PyBytes_FromStringAndSize(NULL, batch.count * <Py_ssize_t>2)
        each = <uint16_t *>PyBytes_AS_STRING(sizes)
        for i in range(batch.count):
            each[i] = <uint16_t>checked_mss((<tuple>mss)[i])
    result = PyBytes_FromStringAndSize(NULL, batch.count)
    packed = PyBytes_FromStringAndSize(NULL, batch.count * <Py_ssize_t>size)
    reasons = <uint8_t *>PyBytes_AS_STRING(result)
    headers = <uint8_t *>PyBytes_AS_STRING(packed)
    memset(counts, 0, sizeof(counts))
    with nogil:
        for i in range(batch.count):
            segment_size = each[i] if each is not NULL else one
            frame_parse(&parsed, batch.data[i], batch.lengths[i])
            reasons[i] = <uint8_t>offload_transmit(&hdr, batch.data[i], &parsed, want_of(want, segment_size),
                                                   segment_size, offloads)
            memcpy(headers + <size_t>i * size, &hdr, size)
            counts[reasons[i]] += 1
    if counters is not None:
        counters.add_tx(counts)
    return result, packed
