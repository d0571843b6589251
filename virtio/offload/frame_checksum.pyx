"""The checksums of a frame: what they are worth, and how they get there."""

from collections import namedtuple
from enum import IntEnum

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from virtio.offload.batch cimport Batch
from virtio.offload.coalesce_table cimport NONE
from virtio.offload.crc cimport crc32c_update
from virtio.offload.frame cimport (
    VIRTIO_L3_IPV4, VIRTIO_LAYER_FRAGMENT, VIRTIO_LAYER_L4, VIRTIO_STOP_IP_VERSION, VIRTIO_STOP_IPV4_IHL,
    VIRTIO_STOP_NO_NEXT, VIRTIO_STOP_NOT_IP, VIRTIO_STOP_OK, VIRTIO_STOP_SHORT_L3, frame_parse, get_be16,
)
from virtio.offload.inet_checksum cimport (
    load_sum16, load_sum32, store_sum16, sum_bytes, sum_finish, sum_fold, sum_pseudo4, sum_pseudo6, sum_short,
)
from virtio.offload.protocols cimport ICMP, ICMP_FIELD, IPV4_FIELD, SCTP, SCTP_FIELD, TCP, TCP_FIELD, UDP, UDP_FIELD
from virtio.offload.results cimport Records


cdef struct transport:
    uint32_t start   # of what is summed
    uint32_t length
    uint32_t field   # offset of the checksum behind start
    uint64_t pseudo  # sum of the pseudo header; 0 without


cdef uint32_t ipv4_header(const uint8_t *p, const virtio_frame *frame, const virtio_layer *layer) noexcept nogil:
    """The size of an IPv4 header that is whole, or 0."""
    cdef uint32_t size
    if (layer.stop == VIRTIO_STOP_SHORT_L3 or layer.stop == VIRTIO_STOP_IP_VERSION
            or layer.stop == VIRTIO_STOP_IPV4_IHL or <uint32_t>layer.l3 + 20 > frame.length):
        return 0
    size = (p[layer.l3] & 15) * 4
    return size if 20 <= size <= frame.length - layer.l3 else 0


cdef int find_transport(transport *it, const uint8_t *p, const virtio_frame *frame,
                        const virtio_layer *layer) noexcept nogil:
    """GOOD if there is a checksum, and where; else NONE or UNKNOWN."""
    cdef uint32_t length
    if layer.stop == VIRTIO_STOP_NOT_IP or layer.stop == VIRTIO_STOP_NO_NEXT:
        return VERDICT_NONE
    if layer.stop != VIRTIO_STOP_OK or layer.flags & VIRTIO_LAYER_FRAGMENT:
        return VERDICT_UNKNOWN
    if not layer.flags & VIRTIO_LAYER_L4:
        return VERDICT_NONE
    it.start = layer.l4
    it.length = layer.end - layer.l4
    it.pseudo = 0
    if layer.protocol == TCP:
        it.field = TCP_FIELD
    elif layer.protocol == UDP:
        it.field = UDP_FIELD
        length = get_be16(p + layer.l4 + 4)
        if length:  # 0: a jumbogram (RFC 2675, 4), which fills the packet
            if not 8 <= length <= it.length:
                return VERDICT_UNKNOWN
            it.length = length
    elif layer.protocol == SCTP:
        it.field = SCTP_FIELD
        return VERDICT_GOOD
    else:
        it.field = ICMP_FIELD
        if layer.protocol == ICMP:
            return VERDICT_GOOD
    if layer.l3_kind == VIRTIO_L3_IPV4:
        it.pseudo = sum_pseudo4(p + layer.src, p + layer.dst, layer.protocol, it.length)
    else:
        it.pseudo = sum_pseudo6(p + layer.src, p + layer.dst, layer.protocol, it.length)
    return VERDICT_GOOD


cdef inline uint32_t sctp_crc(const uint8_t *p, uint32_t length) noexcept nogil:
    cdef uint32_t zero = 0
    cdef uint32_t crc = crc32c_update(crc32c_update(0, p, SCTP_FIELD), <const uint8_t *>&zero, 4)
    return crc32c_update(crc, p + SCTP_FIELD + 4, length - SCTP_FIELD - 4)


cdef int layer_verify_l3(const uint8_t *p, const virtio_frame *frame, const virtio_layer *layer) noexcept nogil:
    cdef uint32_t size
    if layer.l3_kind != VIRTIO_L3_IPV4:
        return VERDICT_NONE
    size = ipv4_header(p, frame, layer)
    if size == 0:
        return VERDICT_UNKNOWN
    return VERDICT_GOOD if sum_fold(sum_short(p + layer.l3, size)) == 0xffff else VERDICT_BAD


cdef int layer_verify_l4(const uint8_t *p, const virtio_frame *frame, const virtio_layer *layer) noexcept nogil:
    cdef transport it
    cdef int found = find_transport(&it, p, frame, layer)
    if found != VERDICT_GOOD:
        return found
    p += it.start
    if layer.protocol == SCTP:
        return VERDICT_GOOD if sctp_crc(p, it.length) == load_sum32(p + SCTP_FIELD) else VERDICT_BAD
    if layer.protocol == UDP and load_sum16(p + UDP_FIELD) == 0:
        if layer.l3_kind == VIRTIO_L3_IPV4 or (frame.tunnel and layer == &frame.outer):
            return VERDICT_NONE
        return VERDICT_BAD
    return VERDICT_GOOD if sum_fold(it.pseudo + sum_bytes(p, it.length)) == 0xffff else VERDICT_BAD


cdef void frame_verify(frame_checks *checks, const uint8_t *p, const virtio_frame *frame) noexcept nogil:
    checks.l3 = <uint8_t>layer_verify_l3(p, frame, &frame.outer)
    checks.l4 = <uint8_t>layer_verify_l4(p, frame, &frame.outer)
    checks.inner_l3 = checks.inner_l4 = VERDICT_NONE
    if frame.tunnel:
        checks.inner_l3 = <uint8_t>layer_verify_l3(p, frame, &frame.inner)
        checks.inner_l4 = <uint8_t>layer_verify_l4(p, frame, &frame.inner)


cdef int layer_fill_l3(uint8_t *p, const virtio_frame *frame, const virtio_layer *layer) noexcept nogil:
    cdef uint32_t size
    if layer.l3_kind != VIRTIO_L3_IPV4:
        return VERDICT_NONE
    size = ipv4_header(p, frame, layer)
    if size == 0:
        return VERDICT_UNKNOWN
    p += layer.l3
    # around the field, not with a 0 in it: a load of what was just stored would wait
    store_sum16(p + IPV4_FIELD, <uint16_t>~sum_fold(
        sum_short(p, IPV4_FIELD) + sum_short(p + IPV4_FIELD + 2, size - IPV4_FIELD - 2)))
    return VERDICT_GOOD


cdef int layer_fill_l4(uint8_t *p, const virtio_frame *frame, const virtio_layer *layer) noexcept nogil:
    cdef transport it
    cdef uint32_t crc
    cdef uint64_t sum
    cdef int found = find_transport(&it, p, frame, layer)
    if found != VERDICT_GOOD:
        return found
    p += it.start
    if layer.protocol == SCTP:
        crc = sctp_crc(p, it.length)
        memcpy(p + SCTP_FIELD, &crc, 4)
        return VERDICT_GOOD
    sum = it.pseudo + sum_short(p, it.field) + sum_bytes(p + it.field + 2, it.length - it.field - 2)
    store_sum16(p + it.field, sum_finish(sum) if layer.protocol == UDP else <uint16_t>~sum_fold(sum))
    return VERDICT_GOOD


cdef void frame_fill(frame_checks *checks, uint8_t *p, const virtio_frame *frame) noexcept nogil:
    checks.inner_l3 = checks.inner_l4 = VERDICT_NONE
    if frame.tunnel:
        checks.inner_l3 = <uint8_t>layer_fill_l3(p, frame, &frame.inner)
        checks.inner_l4 = <uint8_t>layer_fill_l4(p, frame, &frame.inner)
    checks.l3 = <uint8_t>layer_fill_l3(p, frame, &frame.outer)
    checks.l4 = <uint8_t>layer_fill_l4(p, frame, &frame.outer)


cdef int layer_fill_partial(uint8_t *p, const virtio_frame *frame, const virtio_layer *layer) noexcept nogil:
    cdef transport it
    if not layer.flags & VIRTIO_LAYER_L4 or (layer.protocol != TCP and layer.protocol != UDP):
        return -1
    if find_transport(&it, p, frame, layer) != VERDICT_GOOD:
        return -1
    store_sum16(p + it.start + it.field, sum_fold(it.pseudo))
    return <int>it.field


# ---- the Python face ----

class Verdict(IntEnum):
    """What a checksum is worth.

    ``NONE``: there is nothing to check, for want of such a header or of a checksum in it (UDP's 0, where it is
    allowed). ``GOOD``: it is right; of the functions that fill, it was stored. ``BAD``: it is wrong. ``UNKNOWN``: it
    cannot be told, of a fragment, an unknown protocol, or a frame that is cut off.
    """

    NONE = VERDICT_NONE
    GOOD = VERDICT_GOOD
    BAD = VERDICT_BAD
    UNKNOWN = VERDICT_UNKNOWN


cdef const char *CHECKS_FORMAT = b"T{B:l3:B:l4:B:inner_l3:B:inner_l4:}"
Checks = namedtuple("Checks", ["l3", "l4", "inner_l3", "inner_l4"], module=__name__)
Checks.__doc__ = """The verdicts on a frame's checksums: a tuple of four :class:`Verdict`.

``inner_l3`` and ``inner_l4`` are ``NONE`` without a tunnel.
"""
Checks.l3.__doc__ = "Of the IPv4 header's checksum; NONE for IPv6."
Checks.l4.__doc__ = "Of the transport checksum: TCP, UDP, ICMP, ICMPv6 or SCTP."
Checks.inner_l3.__doc__ = "Of the IPv4 header within the tunnel."
Checks.inner_l4.__doc__ = "Of the transport checksum within the tunnel."
_VERDICTS = tuple(Verdict)


cdef object checks_of(const frame_checks *checks):
    return Checks(_VERDICTS[checks.l3], _VERDICTS[checks.l4], _VERDICTS[checks.inner_l3], _VERDICTS[checks.inner_l4])


cdef class Verdicts(Records):
    """What verify_burst() or fill_checksums_burst() found: a sequence of Checks, and a read-only buffer, 4 bytes each.

    numpy.asarray(verdicts)["l4"] are all verdicts on the transport checksum, and so on. Any thread may read it.
    """

    cdef object record(self, Py_ssize_t i):
        return checks_of(<frame_checks *>self.items + i)


cdef int hold(Py_buffer *view, object data, int flags) except -1:
    PyObject_GetBuffer(data, view, flags)
    if view.len > 0xffffffff:
        size = view.len
        PyBuffer_Release(view)
        raise ValueError(f"frame has {size} bytes (limit {0xffffffff})")
    return 0


def verify(data):
    """Verify the checksums of an Ethernet frame; return :class:`Checks`, a verdict for each.

    Known are the IPv4 header, TCP, UDP, ICMP, ICMPv6 and SCTP, behind VLAN tags, IPv4 options and IPv6 extension
    headers, and the same within VXLAN and GENEVE; what is in a tunnel within that is payload. Padding behind the packet
    is not looked at. A UDP checksum of 0 is ``NONE`` on IPv4; on IPv6 it is ``BAD``, except for a tunnel's outer header
    (RFC 6935). Fragments, unknown protocols and frames that are cut off are ``UNKNOWN``: :func:`parse` says why.

    Raises TypeError for what is no buffer, ValueError for 4 GiB and more. Any thread may call; the GIL is held.
    """
    cdef Py_buffer view
    cdef virtio_frame frame
    cdef frame_checks checks
    hold(&view, data, PyBUF_SIMPLE)
    frame_parse(&frame, <const uint8_t *>view.buf, <uint32_t>view.len)
    frame_verify(&checks, <const uint8_t *>view.buf, &frame)
    PyBuffer_Release(&view)
    return checks_of(&checks)


def verify_burst(frames, offsets=None):
    """Verify many frames; return :class:`Verdicts`, a sequence of :class:`Checks`.

    ``frames`` is a sequence of buffers; or, with ``offsets`` (n + 1 rising numbers), one buffer in which frame i is
    ``frames[offsets[i]:offsets[i + 1]]``. Raises TypeError for what is no buffer, ValueError for a frame of 4 GiB and
    more, or offsets out of order or outside the buffer. Any thread may call; works without the GIL.
    """
    cdef Batch batch = Batch()
    cdef Verdicts result = Verdicts.__new__(Verdicts)
    cdef virtio_frame frame
    cdef frame_checks *checks
    cdef uint32_t i
    batch.load(frames, offsets, False)
    result.reserve(batch.count, sizeof(frame_checks), CHECKS_FORMAT)
    checks = <frame_checks *>result.items
    with nogil:
        for i in range(batch.count):
            frame_parse(&frame, batch.data[i], batch.lengths[i])
            frame_verify(&checks[i], batch.data[i], &frame)
    return result


def fill_checksums(data):
    """Compute and store all checksums of a writable Ethernet frame; return :class:`Checks`, ``GOOD`` where stored.

    Knows what :func:`verify` knows, and leaves what is not ``GOOD`` as it was. The inner headers of a tunnel come
    first, because the outer UDP checksum, which is stored as well, covers them. A UDP checksum of 0 is stored as
    0xffff.

    Raises BufferError or TypeError for what is no writable buffer, ValueError for 4 GiB and more. Any thread may call,
    with a frame that no other thread uses; the GIL is held.
    """
    cdef Py_buffer view
    cdef virtio_frame frame
    cdef frame_checks checks
    hold(&view, data, PyBUF_WRITABLE)
    frame_parse(&frame, <const uint8_t *>view.buf, <uint32_t>view.len)
    frame_fill(&checks, <uint8_t *>view.buf, &frame)
    PyBuffer_Release(&view)
    return checks_of(&checks)


def fill_checksums_burst(frames, offsets=None):
    """:func:`fill_checksums` for many frames, handed in and returned as with :func:`verify_burst`.

    Every buffer must be writable: BufferError or TypeError if one is not, and then nothing is stored in any. Other
    errors are those of :func:`verify_burst`. Works without the GIL: no other thread may use the frames meanwhile.
    """
    cdef Batch batch = Batch()
    cdef Verdicts result = Verdicts.__new__(Verdicts)
    cdef virtio_frame frame
    cdef frame_checks *checks
    cdef uint32_t i
    batch.load(frames, offsets, True)
    result.reserve(batch.count, sizeof(frame_checks), CHECKS_FORMAT)
    checks = <frame_checks *>result.items
    with nogil:
        for i in range(batch.count):
            frame_parse(&frame, batch.data[i], batch.lengths[i])
            frame_fill(&checks[i], batch.data[i], &frame)
    return result


def fill_partial_checksum(data, *, bint inner=False):
    """Prepare a writable frame for VIRTIO_NET_HDR_F_NEEDS_CSUM; return ``(csum_start, csum_offset)`` for the header.

    The TCP or UDP checksum field, of the inner layer of a tunnel with ``inner``, gets the sum of the pseudo header
    (VIRTIO 1.4, 5.1.9.2). Raises ValueError, and leaves the frame, if it has no such header or is a fragment.
    """
    cdef Py_buffer view
    cdef virtio_frame frame
    cdef const virtio_layer *layer
    cdef int field
    hold(&view, data, PyBUF_WRITABLE)
    frame_parse(&frame, <const uint8_t *>view.buf, <uint32_t>view.len)
    layer = &frame.inner if inner else &frame.outer
    field = layer_fill_partial(<uint8_t *>view.buf, &frame, layer)
    PyBuffer_Release(&view)
    if field < 0:
        raise ValueError(
            f"no {'inner ' if inner else ''}TCP or UDP packet that is whole: the parse stopped at offset {layer.l4}"
            f" with reason {layer.stop}, protocol {layer.protocol}")
    return layer.l4, field
