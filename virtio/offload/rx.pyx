"""Receiving: what a frame's header says about its checksum, held against the frame."""

from collections import namedtuple

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from virtio.offload.batch cimport Batch
from virtio.offload.counters cimport (
    VIRTIO_RX_BAD, VIRTIO_RX_CSUM_BAD_ETHTYPE, VIRTIO_RX_CSUM_BAD_IPPROTO, VIRTIO_RX_CSUM_BAD_OFFSET,
    VIRTIO_RX_CSUM_ELSEWHERE, VIRTIO_RX_CSUM_FRAGMENT, VIRTIO_RX_CSUM_INACCESSIBLE_IPPROTO, VIRTIO_RX_CSUM_NONE,
    VIRTIO_RX_CSUM_OFFLOADED, VIRTIO_RX_CSUM_PARTIAL, VIRTIO_RX_GSO_BAD_SEGMENTS, VIRTIO_RX_GSO_BAD_TYPE,
    VIRTIO_RX_GSO_NO_FEATURE, VIRTIO_RX_GSO_REPAIRED, VIRTIO_RX_HDR, VIRTIO_RX_HDR_SHORT, VIRTIO_RX_NEEDS_CHECKSUM,
    VIRTIO_RX_REASONS, VIRTIO_RX_TUNNEL_BAD_OFFSET, VIRTIO_RX_TUNNEL_BAD_TYPE, VIRTIO_RX_UNKNOWN, VIRTIO_RX_VERIFIED,
    OffloadCounters,
)
from virtio.offload.frame cimport (
    VIRTIO_L3_ARP, VIRTIO_L3_IPV4, VIRTIO_L3_IPV6, VIRTIO_LAYER_FRAGMENT, VIRTIO_LAYER_L4, VIRTIO_STOP_FAULTS,
    VIRTIO_STOP_UDP_LENGTH, VIRTIO_TUNNEL_NONE, frame_parse, get_be16, put_be16, virtio_layer,
)
from virtio.offload.frame_checksum cimport VERDICT_GOOD, layer_fill_l3
from virtio.offload.inet_checksum cimport checksum_complete, load_sum16, store_sum16, sum_fold, sum_pseudo4, sum_pseudo6
from virtio.offload.net_hdr cimport (
    NET_HDR_GSO_MASK, NET_HDR_TUNNEL, VIRTIO_NET_HDR_BAD_CSUM_OFFSET, VIRTIO_NET_HDR_BAD_CSUM_START,
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_F_RSC_INFO,
    VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4,
    VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4, VIRTIO_OFFLOAD_USO4, VIRTIO_OFFLOAD_USO6, header_size_of, net_hdr_check,
    net_hdr_load, NetHeader, offloads_of,
)
from virtio.offload.protocols cimport ICMP, ICMPV6, ICMP_FIELD, IPV4_FIELD, SCTP, TCP, TCP_FIELD, UDP, UDP_FIELD
from virtio.offload.segment_lengths cimport lengths_copy, lengths_exact, lengths_mend
from virtio.offload.segmenter cimport VIRTIO_SEGMENT_HEADERS_MAX, VIRTIO_SEGMENT_OK
from virtio.offload.counters import ReceiveReason, ReceiveVerdict


cdef int why_none(const virtio_layer *layer) noexcept nogil:
    """Why this layer has no checksum that a header could speak of; VIRTIO_RX_CSUM_NONE if it has one."""
    if layer.stop >= VIRTIO_STOP_FAULTS:
        return VIRTIO_RX_CSUM_INACCESSIBLE_IPPROTO
    if layer.l3_kind != VIRTIO_L3_IPV4 and layer.l3_kind != VIRTIO_L3_IPV6:
        return VIRTIO_RX_CSUM_BAD_ETHTYPE
    if layer.flags & VIRTIO_LAYER_FRAGMENT:
        return VIRTIO_RX_CSUM_FRAGMENT
    if not layer.flags & VIRTIO_LAYER_L4 or (layer.protocol != TCP and layer.protocol != UDP):
        return VIRTIO_RX_CSUM_BAD_IPPROTO
    return VIRTIO_RX_CSUM_NONE


cdef inline uint32_t datagram_end(const uint8_t *p, const virtio_layer *layer) noexcept nogil:
    cdef uint32_t length
    if layer.protocol == UDP:
        length = get_be16(p + layer.l4 + 4)
        # 0: a jumbogram (RFC 2675, 4). The bytes may have changed since they were parsed
        if 8 <= length <= layer.end - layer.l4:
            return layer.l4 + length
    return layer.end


cdef int check_tunnel(virtio_rx_offload *info, const virtio_net_hdr *hdr, const uint8_t *p,
                      const virtio_frame *frame) noexcept nogil:
    cdef int network = VIRTIO_L3_IPV6
    if hdr.gso_type & VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4:
        network = VIRTIO_L3_IPV4
    # the bit is the inner version's in the specification (5.1.9.2), the outer one's in Linux
    if frame.tunnel == VIRTIO_TUNNEL_NONE or (frame.outer.l3_kind != network and frame.inner.l3_kind != network):
        return VIRTIO_RX_TUNNEL_BAD_TYPE
    if hdr.outer_th_offset != frame.outer.l4 or hdr.inner_nh_offset != frame.inner.l3:
        return VIRTIO_RX_TUNNEL_BAD_OFFSET
    if hdr.flags & VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM:
        info.outer_start = frame.outer.l4
        info.outer_end = datagram_end(p, &frame.outer)
    return VIRTIO_RX_CSUM_NONE


cdef int check_type(virtio_rx_offload *info, const virtio_net_hdr *hdr, const virtio_layer *layer,
                    uint32_t offloads) noexcept nogil:
    """Whether a type is this layer's, and how many segments it stands for."""
    cdef uint32_t kind = hdr.gso_type & NET_HDR_GSO_MASK, payload = layer.end - layer.payload
    cdef int network = VIRTIO_L3_IPV6 if kind == VIRTIO_NET_HDR_GSO_TCPV6 else VIRTIO_L3_IPV4
    if kind == VIRTIO_NET_HDR_GSO_TCPV4 or kind == VIRTIO_NET_HDR_GSO_TCPV6:
        if layer.protocol != TCP or layer.l3_kind != network:
            return VIRTIO_RX_GSO_BAD_TYPE
    elif layer.protocol != UDP:
        return VIRTIO_RX_GSO_BAD_TYPE
    elif kind == VIRTIO_NET_HDR_GSO_UDP_L4:
        if not offloads & (VIRTIO_OFFLOAD_USO4 if layer.l3_kind == VIRTIO_L3_IPV4 else VIRTIO_OFFLOAD_USO6):
            return VIRTIO_RX_GSO_NO_FEATURE
    else:  # of fragments the UDP header is part of what is cut
        payload = layer.end - layer.l4
    if hdr.flags & VIRTIO_NET_HDR_F_RSC_INFO:
        if hdr.csum_start == 0 or hdr.csum_start > payload:
            return VIRTIO_RX_GSO_BAD_SEGMENTS
        info.segments = hdr.csum_start
    elif payload:
        info.segments = (payload - 1) // hdr.gso_size + 1
    return VIRTIO_RX_CSUM_NONE


cdef inline bint lacks_length(const uint8_t *p, const virtio_layer *layer) noexcept nogil:
    """Whether the only fault of a layer is a UDP length of 0: it says nothing of where the datagram ends."""
    return layer.stop == VIRTIO_STOP_UDP_LENGTH and get_be16(p + layer.l4 + 4) == 0


cdef int find_elsewhere(virtio_rx_offload *info, const virtio_net_hdr *hdr, const uint8_t *p,
                        const virtio_layer *layer, int reason) noexcept nogil:
    """Place the checksum of a header that the parse does not know, behind those that it does; else return reason.

    5.1.9.4: the sum is of all from csum_start on. It ends where the last packet that is known ends: padding is not
    summed.
    """
    cdef uint32_t start = hdr.csum_start, end, first = layer.l4
    cdef bint icmp = False
    if (layer.stop >= VIRTIO_STOP_FAULTS and not lacks_length(p, layer) or layer.flags & VIRTIO_LAYER_FRAGMENT
            or layer.l3_kind == VIRTIO_L3_ARP):
        return reason
    if layer.flags & VIRTIO_LAYER_L4:
        icmp = (layer.protocol == ICMP or layer.protocol == ICMPV6) and start == layer.l4
        if icmp and hdr.csum_offset != ICMP_FIELD or layer.protocol == SCTP:
            return reason
        if not icmp:
            first = layer.payload
    if start < first:
        return reason
    end = datagram_end(p, layer)
    if start + hdr.csum_offset + 2 > end:
        return VIRTIO_RX_CSUM_BAD_OFFSET
    info.csum_start = hdr.csum_start
    info.csum_offset = hdr.csum_offset
    info.csum_end = end
    info.levels = 1 + info.inner if icmp else 0
    info.reason = VIRTIO_RX_CSUM_ELSEWHERE
    return VIRTIO_RX_CSUM_NONE


cdef inline uint16_t pseudo_of(const uint8_t *p, const virtio_layer *layer, uint32_t length) noexcept nogil:
    """The pseudo header's sum, as stored; never 0, since a protocol is in it."""
    if layer.l3_kind == VIRTIO_L3_IPV4:
        return sum_fold(sum_pseudo4(p + layer.src, p + layer.dst, layer.protocol, length))
    return sum_fold(sum_pseudo6(p + layer.src, p + layer.dst, layer.protocol, length))


cdef void find_repair(virtio_rx_offload *info, const uint8_t *p, const virtio_layer *layer,
                      uint32_t field) noexcept nogil:
    """Note how the checksum of a merged frame becomes right. What was merged was verified before.

    A UDP checksum of 0 over IPv4 stays: there is none.
    """
    cdef uint32_t end = datagram_end(p, layer)
    if layer.l3_kind == VIRTIO_L3_IPV4 and layer.protocol == UDP and load_sum16(p + layer.l4 + UDP_FIELD) == 0:
        return
    info.pseudo = pseudo_of(p, layer, end - layer.l4)
    info.csum_start = layer.l4
    info.csum_offset = <uint16_t>field
    info.csum_end = end
    info.levels = 1 + info.inner
    info.reason = VIRTIO_RX_GSO_REPAIRED


cdef inline void add_mend(virtio_rx_offload *info, uint32_t at, uint16_t word) noexcept nogil:
    info.mends[info.nmends].at = <uint16_t>at
    info.mends[info.nmends].word = word
    info.nmends += 1


cdef void note_layer(virtio_rx_offload *info, uint8_t *p, const virtio_frame *frame,
                     const virtio_layer *layer) noexcept nogil:
    """Note the lengths of a layer that were mended in the copy at p, and the checksum that covers one."""
    cdef uint32_t at = layer.l3 + (2 if layer.l3_kind == VIRTIO_L3_IPV4 else 4)
    add_mend(info, at, load_sum16(p + at))
    if layer_fill_l3(p, frame, layer) == VERDICT_GOOD:
        add_mend(info, layer.l3 + IPV4_FIELD, load_sum16(p + layer.l3 + IPV4_FIELD))
    if layer.protocol == UDP:
        add_mend(info, layer.l4 + 4, load_sum16(p + layer.l4 + 4))


cdef const uint8_t *mend_lengths(virtio_rx_offload *info, const virtio_net_hdr *hdr, const uint8_t *p,
                                 virtio_frame *frame) noexcept nogil:
    """Make the lengths of a frame with a type its own in a copy of its headers, which *frame is of then.

    NULL: they are so, or cannot be.
    """
    cdef virtio_frame mended = frame[0]
    cdef const virtio_layer *layer = &mended.inner if hdr.gso_type & NET_HDR_TUNNEL else &mended.outer
    cdef uint8_t *copy = lengths_copy(p, frame.length)
    cdef uint64_t said, limit
    if lengths_mend(&mended, copy, hdr.gso_type, hdr.gso_size, &said, &limit) != VIRTIO_SEGMENT_OK:
        return NULL
    # the copy has no more of the frame
    if not layer.flags & VIRTIO_LAYER_L4 or layer.payload > VIRTIO_SEGMENT_HEADERS_MAX:
        return NULL
    frame[0] = mended
    note_layer(info, copy, frame, &frame.outer)
    if hdr.gso_type & NET_HDR_TUNNEL:
        note_layer(info, copy, frame, &frame.inner)
    return copy


cdef bint fill_length(virtio_frame *frame, uint8_t *p, const virtio_layer *layer, uint32_t end) noexcept nogil:
    """Whether the IP length of a layer is 0, in a copy of the headers; there it reaches to end then."""
    cdef uint32_t at = layer.l3 + 2, start = layer.l3
    if layer.stop < VIRTIO_STOP_FAULTS:
        return False
    if layer.l3_kind == VIRTIO_L3_IPV6:
        at, start = layer.l3 + 4, layer.l3 + 40
    elif layer.l3_kind != VIRTIO_L3_IPV4:
        return False
    if start > end or end - start > 0xffff or at + 2 > min(end, <uint32_t>VIRTIO_SEGMENT_HEADERS_MAX):
        return False
    if get_be16(p + at):
        return False
    put_be16(p + at, <uint16_t>(end - start))
    frame_parse(frame, p, frame.length)
    return True


cdef const uint8_t *fill_lengths(const uint8_t *p, virtio_frame *frame) noexcept nogil:
    """The same for IP lengths of 0 without a type: what says nothing of the packet's end does not hide its headers."""
    cdef virtio_frame filled = frame[0]
    cdef uint8_t *copy = lengths_copy(p, frame.length)
    cdef bint any = fill_length(&filled, copy, &filled.outer, filled.length)
    if filled.tunnel != VIRTIO_TUNNEL_NONE and fill_length(&filled, copy, &filled.inner,
                                                           datagram_end(copy, &filled.outer)):
        any = True
    if not any or max(filled.outer.payload, filled.inner.payload) > VIRTIO_SEGMENT_HEADERS_MAX:
        return NULL
    frame[0] = filled
    return copy


cdef void find_outer(virtio_rx_offload *info, const uint8_t *p, const virtio_layer *outer) noexcept nogil:
    """The checksum around a tunnel covers what was mended: it becomes right if there is one, or is to be one."""
    if info.outer_start or load_sum16(p + outer.l4 + UDP_FIELD):
        info.outer_start = outer.l4
        info.outer_end = datagram_end(p, outer)
        add_mend(info, outer.l4 + UDP_FIELD, pseudo_of(p, outer, info.outer_end - outer.l4))


cdef int examine(virtio_rx_offload *info, const virtio_net_hdr *hdr, const uint8_t *p, const virtio_frame *frame,
                 uint32_t offloads) noexcept nogil:
    """Find what the header speaks of, and the reason why it cannot; VIRTIO_RX_CSUM_NONE if it can."""
    cdef const virtio_layer *layer = &frame.outer
    cdef bint placed = hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM and not hdr.flags & VIRTIO_NET_HDR_F_RSC_INFO
    cdef uint32_t field
    cdef int reason
    if hdr.gso_type & NET_HDR_TUNNEL:
        reason = check_tunnel(info, hdr, p, frame)
        if reason:
            return reason
        info.inner = 1
    elif frame.tunnel and placed and not hdr.gso_type and hdr.csum_start != frame.outer.l4:
        info.inner = 1
    if info.inner:
        layer = &frame.inner
    reason = why_none(layer)
    field = TCP_FIELD if layer.protocol == TCP else UDP_FIELD
    if not reason and placed and (hdr.csum_start != layer.l4 or hdr.csum_offset != field):
        reason = VIRTIO_RX_CSUM_BAD_OFFSET
    if reason:
        return find_elsewhere(info, hdr, p, layer, reason) if placed and not hdr.gso_type else reason
    if hdr.gso_type:
        reason = check_type(info, hdr, layer, offloads)
        if reason:
            return reason
    if hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        info.csum_start = layer.l4
        info.csum_offset = <uint16_t>field
        info.csum_end = datagram_end(p, layer)
        info.levels = 1 + info.inner
        info.reason = VIRTIO_RX_CSUM_PARTIAL
        if info.nmends:  # the sum that is there is of another length, if of any
            info.pseudo = pseudo_of(p, layer, info.csum_end - layer.l4)
    elif hdr.gso_type and (not hdr.flags & VIRTIO_NET_HDR_F_RSC_INFO or not hdr.flags & VIRTIO_NET_HDR_F_DATA_VALID):
        find_repair(info, p, layer, field)
    if info.inner and info.reason and (info.nmends or info.reason == VIRTIO_RX_GSO_REPAIRED):
        find_outer(info, p, &frame.outer)
    return VIRTIO_RX_CSUM_NONE


cdef inline int found(virtio_rx_offload *info, int verdict, int reason) noexcept nogil:
    if verdict != VIRTIO_RX_NEEDS_CHECKSUM:  # nothing is left in it that a caller could take for true
        rx_offload_clear(info)
        info.segments = 1
    info.verdict = <uint8_t>verdict
    info.reason = <uint8_t>reason
    return verdict


cdef int offload_receive(virtio_rx_offload *info, const virtio_net_hdr *given, const uint8_t *p,
                         const virtio_frame *frame, uint32_t offloads) noexcept nogil:
    cdef virtio_net_hdr known = given[0]
    cdef virtio_net_hdr *hdr = &known
    cdef virtio_frame parsed
    cdef const uint8_t *copy = NULL
    cdef uint32_t segments, nmends
    cdef int reason
    rx_offload_clear(info)
    info.segments = 1
    reason = net_hdr_check(hdr, frame.length, offloads)
    if reason:
        if reason == VIRTIO_NET_HDR_BAD_CSUM_START or reason == VIRTIO_NET_HDR_BAD_CSUM_OFFSET:
            return found(info, VIRTIO_RX_BAD, VIRTIO_RX_CSUM_BAD_OFFSET)
        return found(info, VIRTIO_RX_BAD, VIRTIO_RX_HDR + reason)
    if not hdr.gso_type and not hdr.flags & (VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID):
        return found(info, VIRTIO_RX_UNKNOWN, VIRTIO_RX_CSUM_NONE)
    if hdr.gso_type:
        if not lengths_exact(frame, p, hdr.gso_type):
            parsed = frame[0]
            copy = mend_lengths(info, hdr, p, &parsed)
    elif hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM and (frame.outer.stop >= VIRTIO_STOP_FAULTS
                                                      or frame.inner.stop >= VIRTIO_STOP_FAULTS):
        parsed = frame[0]
        copy = fill_lengths(p, &parsed)
    if copy is not NULL:
        p, frame = copy, &parsed
    reason = examine(info, hdr, p, frame, offloads)
    if reason:
        if hdr.gso_type or hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
            return found(info, VIRTIO_RX_BAD, reason)
        return found(info, VIRTIO_RX_UNKNOWN, reason)
    segments, nmends = info.segments, info.nmends
    if info.reason:
        return found(info, VIRTIO_RX_NEEDS_CHECKSUM, info.reason)
    if hdr.flags & VIRTIO_NET_HDR_F_DATA_VALID:
        found(info, VIRTIO_RX_VERIFIED, VIRTIO_RX_CSUM_OFFLOADED)
        # of a tunnel it is the outer checksum, unless it is said to be both (5.1.9.4)
        info.levels = 2 if frame.tunnel and hdr.flags & VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM else 1
    else:
        found(info, VIRTIO_RX_UNKNOWN, VIRTIO_RX_CSUM_NONE)
    info.segments, info.nmends = segments, nmends
    return info.verdict


cdef void offload_complete(uint8_t *p, const virtio_rx_offload *info) noexcept nogil:
    cdef uint32_t i
    for i in range(info.nmends):
        store_sum16(p + info.mends[i].at, info.mends[i].word)
    if info.verdict != VIRTIO_RX_NEEDS_CHECKSUM:
        return
    if info.pseudo:
        store_sum16(p + info.csum_start + info.csum_offset, info.pseudo)
    checksum_complete(p, info.csum_end, info.csum_start, info.csum_offset)
    if info.outer_start:  # covers the inner one
        checksum_complete(p, info.outer_end, info.outer_start, UDP_FIELD)


# ---- the Python face ----

Receive = namedtuple("Receive", ["verdict", "reason", "csum_start", "csum_offset", "segments", "levels"])
_VERDICTS = tuple(ReceiveVerdict)
_REASONS = {int(reason): reason for reason in ReceiveReason}


cdef object receive_one(NetHeader header, object frame, object features, bint to_driver, OffloadCounters counters,
                        bint complete):
    cdef Py_buffer view
    cdef virtio_frame parsed
    cdef virtio_net_hdr hdr
    cdef virtio_rx_offload info
    cdef uint32_t offloads = offloads_of(features, to_driver)
    header.store(&hdr)
    PyObject_GetBuffer(frame, &view, PyBUF_WRITABLE if complete else PyBUF_SIMPLE)
    try:
        if view.len > 0xffffffff:
            raise ValueError(f"frame has {view.len} bytes (limit {0xffffffff})")
        frame_parse(&parsed, <const uint8_t *>view.buf, <uint32_t>view.len)
        offload_receive(&info, &hdr, <const uint8_t *>view.buf, &parsed, offloads)
        if complete:
            offload_complete(<uint8_t *>view.buf, &info)
    finally:
        PyBuffer_Release(&view)
    if counters is not None:
        counters.c.rx[info.reason] += 1
    return Receive(_VERDICTS[info.verdict], _REASONS[info.reason], info.csum_start, info.csum_offset, info.segments,
                   info.levels)


def classify_receive(NetHeader header not None, frame, features, *, bint to_driver=True,
                     OffloadCounters counters=None):
    """Say what the header of a received Ethernet frame makes of its transport checksum; return :class:`Receive`.

    ``verdict``:

    - ``UNKNOWN``: nothing is known; verify it (:func:`verify`).
    - ``VERIFIED``: the peer verified it. Of a tunnel it is the outermost checksum if ``levels`` is 1, both if it is 2.
      Of a coalesced frame with RSC_INFO and DATA_VALID it was the segments' checksums; the frame's field is worth
      nothing, and becomes right when the frame is cut again (:func:`segment`).
    - ``NEEDS_CHECKSUM``: the data can be relied on, but the checksum field, ``csum_offset`` behind ``csum_start``,
      holds the pseudo header's sum: before the frame goes anywhere without a header, :func:`complete_receive` it.
      ``levels`` as above; 0 for a header that is not parsed (reason ``CSUM_ELSEWHERE``). With reason ``GSO_REPAIRED``
      the peer merged segments and said nothing of the checksum (QEMU with RSC_INFO, hardware LRO behind vhost): the
      field holds what the peer left there.
    - ``BAD``: the header cannot be true of this frame; drop it.

    Lengths of 0 or of one segment in a frame with a type stand for the frame's. An IP length of 0 without a type says
    nothing: a checksum to be completed covers the frame to its end.

    ``reason`` says why, and is what ``counters`` count. ``segments`` is how many packets the peer made the frame of, by
    gso_size or RSC_INFO; 1 for a frame without a type. ``features`` are the negotiated ones, an int of any width.
    ``to_driver=False`` is for a device: the frame came from the driver, by the HOST features. Source: VIRTIO 1.4,
    5.1.9.4.
    """
    return receive_one(header, frame, features, to_driver, counters, False)


def complete_receive(NetHeader header not None, frame, features, *, bint to_driver=True,
                     OffloadCounters counters=None):
    """:func:`classify_receive`; then, if the verdict is ``NEEDS_CHECKSUM``, compute and store what is missing.

    Unless the verdict is ``BAD``, lengths of 0 or of one segment in a frame with a type become the frame's before that.
    The frame is writable (BufferError otherwise). It is complete then, and may be sent on as if it came with no header;
    one with a type is still to be cut. A UDP checksum of 0 becomes 0xffff.
    """
    return receive_one(header, frame, features, to_driver, counters, True)


def classify_receive_burst(buffers, features, *, bint to_driver=True, offsets=None, OffloadCounters counters=None):
    """Classify many received frames, each behind its header, as they lie in a ring's buffers; return two bytes objects.

    The first has a :class:`ReceiveVerdict` for each, the second a :class:`ReceiveReason`. The header has
    net_header_size(features) bytes. ``buffers`` is a sequence; or, with ``offsets`` (n + 1 rising numbers), one buffer
    in which the i-th is ``buffers[offsets[i]:offsets[i + 1]]``. Works without the GIL. See :func:`classify_receive`.
    """
    cdef Batch batch = Batch()
    cdef virtio_frame parsed
    cdef virtio_net_hdr hdr
    cdef virtio_rx_offload info
    cdef uint64_t counts[VIRTIO_RX_REASONS]
    cdef uint32_t i, size = header_size_of(features), offloads = offloads_of(features, to_driver)
    cdef uint8_t *verdicts
    cdef uint8_t *reasons
    batch.load(buffers, offsets, False)
    result = PyBytes_FromStringAndSize(NULL, batch.count)
    why = PyBytes_FromStringAndSize(NULL, batch.count)
    verdicts = <uint8_t *>PyBytes_AS_STRING(result)
    reasons = <uint8_t *>PyBytes_AS_STRING(why)
    memset(counts, 0, sizeof(counts))
    with nogil:
        for i in range(batch.count):
            if batch.lengths[i] < size:
                verdicts[i] = VIRTIO_RX_BAD
                reasons[i] = VIRTIO_RX_HDR_SHORT
            else:
                net_hdr_load(&hdr, batch.data[i], size)
                frame_parse(&parsed, batch.data[i] + size, batch.lengths[i] - size)
                verdicts[i] = <uint8_t>offload_receive(&info, &hdr, batch.data[i] + size, &parsed, offloads)
                reasons[i] = info.reason
            counts[reasons[i]] += 1
    if counters is not None:
        counters.add_rx(counts)
    return result, why
