"""struct virtio_net_hdr: what it says of a frame, checked against what was negotiated."""

from enum import IntEnum

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from virtio.offload.protocols cimport TCP_FIELD, UDP_FIELD

from virtio.constants import Feature, NetFeature


cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1
    unsigned long long PyLong_AsUnsignedLongLongMask(object value) except? 0xffffffffffffffff


cdef enum:
    TCP_HEADER = 20
    UDP_HEADER = 8

    FEATURES_MAX = 16

cdef struct feature:     # a bit, and the offloads that it allows
    uint32_t bit
    uint32_t offloads


cdef struct feature_set:
    uint64_t low         # bits 0 to 63
    uint64_t high        # bits 64 to 127


cdef int set_of(feature_set *features, object wide) except -1:
    """The first 128 bits of an int of any width."""
    cdef int overflow = 0
    cdef long long small
    if not isinstance(wide, int):
        wide = int(wide)
    small = PyLong_AsLongLongAndOverflow(wide, &overflow)
    if overflow < 0 or (overflow == 0 and small < 0):
        raise ValueError(f"features {int(wide)} are negative")
    features.low = <uint64_t>small
    features.high = 0
    if overflow:
        features.low = PyLong_AsUnsignedLongLongMask(wide)
        features.high = PyLong_AsUnsignedLongLongMask(wide >> 64)
    return 0


cdef inline bint has_any(const feature_set *features, const feature_set *wanted) noexcept nogil:
    return features.low & wanted.low or features.high & wanted.high


cdef inline bint has_bit(const feature_set *features, uint32_t bit) noexcept nogil:
    return (features.high >> (bit - 64) if bit > 63 else features.low >> bit) & 1


cdef void allow(feature *table, object offloads) except *:
    """Make a table of NetFeature -> VIRTIO_OFFLOAD_*; it ends with one that allows nothing."""
    cdef uint32_t i = 0
    for bit, mask in offloads.items():
        table[i].bit = int(bit).bit_length() - 1
        table[i].offloads = mask
        i += 1
    table[i].offloads = 0


cdef feature_set TOO_LONG, TUNNEL, HASH, MERGEABLE, GSO, VERSION_1
set_of(&TOO_LONG, NetFeature.OUT_NET_HEADER | NetFeature.IPSEC)
set_of(&TUNNEL, NetFeature.HOST_UDP_TUNNEL_GSO | NetFeature.GUEST_UDP_TUNNEL_GSO)
set_of(&HASH, NetFeature.HASH_REPORT)
set_of(&MERGEABLE, int(NetFeature.MRG_RXBUF) | int(Feature.VERSION_1))
set_of(&GSO, NetFeature.GSO)
set_of(&VERSION_1, Feature.VERSION_1)

cdef feature FROM_DRIVER[FEATURES_MAX]
cdef feature TO_DRIVER[FEATURES_MAX]
allow(FROM_DRIVER, {
    NetFeature.CSUM: VIRTIO_OFFLOAD_CSUM,
    NetFeature.HOST_TSO4: VIRTIO_OFFLOAD_TSO4,
    NetFeature.HOST_TSO6: VIRTIO_OFFLOAD_TSO6,
    NetFeature.HOST_ECN: VIRTIO_OFFLOAD_ECN,
    NetFeature.HOST_UFO: VIRTIO_OFFLOAD_UFO,
    NetFeature.HOST_USO: VIRTIO_OFFLOAD_USO4 | VIRTIO_OFFLOAD_USO6,
    NetFeature.HOST_UDP_TUNNEL_GSO: VIRTIO_OFFLOAD_TUNNEL,
    NetFeature.HOST_UDP_TUNNEL_GSO_CSUM: VIRTIO_OFFLOAD_TUNNEL_CSUM,
})
allow(TO_DRIVER, {
    NetFeature.GUEST_CSUM: VIRTIO_OFFLOAD_CSUM,
    NetFeature.GUEST_TSO4: VIRTIO_OFFLOAD_TSO4,
    NetFeature.GUEST_TSO6: VIRTIO_OFFLOAD_TSO6,
    NetFeature.GUEST_ECN: VIRTIO_OFFLOAD_ECN,
    NetFeature.GUEST_UFO: VIRTIO_OFFLOAD_UFO,
    NetFeature.GUEST_USO4: VIRTIO_OFFLOAD_USO4,
    NetFeature.GUEST_USO6: VIRTIO_OFFLOAD_USO6,
    NetFeature.GUEST_UDP_TUNNEL_GSO: VIRTIO_OFFLOAD_TUNNEL,
    NetFeature.GUEST_UDP_TUNNEL_GSO_CSUM: VIRTIO_OFFLOAD_TUNNEL_CSUM,
    NetFeature.RSC_EXT: VIRTIO_OFFLOAD_RSC,
    NetFeature.MRG_RXBUF: VIRTIO_OFFLOAD_MRG,
})


cdef int header_size_of(object features) except -1:
    cdef feature_set have
    set_of(&have, features)
    if has_any(&have, &TOO_LONG):
        raise ValueError(f"features {int(features):#x} have a 32-byte header (OUT_NET_HEADER, IPSEC): limit 24")
    if has_any(&have, &TUNNEL):
        return 24
    if has_any(&have, &HASH):
        return 20
    return 12 if has_any(&have, &MERGEABLE) else 10


cdef uint32_t offloads_of(object features, bint to_driver) except? 0:
    cdef uint32_t offloads = VIRTIO_OFFLOAD_TO_DRIVER if to_driver else 0
    cdef const feature *known = &TO_DRIVER[0] if to_driver else &FROM_DRIVER[0]
    cdef feature_set have
    set_of(&have, features)
    while known.offloads:
        if has_bit(&have, known.bit):
            offloads |= known.offloads
        known += 1
    if not to_driver and has_any(&have, &GSO) and not has_any(&have, &VERSION_1):
        # the legacy bit for all of what there was then (5.1.3.2)
        offloads |= VIRTIO_OFFLOAD_TSO4 | VIRTIO_OFFLOAD_TSO6 | VIRTIO_OFFLOAD_ECN | VIRTIO_OFFLOAD_UFO
    return offloads


cdef int check_tunnel(const virtio_net_hdr *hdr, uint32_t kind, uint32_t length, uint32_t offloads) noexcept nogil:
    cdef uint32_t tunnel = hdr.gso_type & NET_HDR_TUNNEL
    cdef uint32_t network = 40 if kind == VIRTIO_NET_HDR_GSO_TCPV6 else 20  # the least; USO may be over either
    cdef uint32_t transport = length
    if hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM and not hdr.flags & VIRTIO_NET_HDR_F_RSC_INFO:
        transport = hdr.csum_start
    if tunnel == NET_HDR_TUNNEL or kind == VIRTIO_NET_HDR_GSO_NONE or kind == VIRTIO_NET_HDR_GSO_UDP:
        return VIRTIO_NET_HDR_BAD_TUNNEL_TYPE
    if not offloads & VIRTIO_OFFLOAD_TUNNEL:
        return VIRTIO_NET_HDR_BAD_TUNNEL_FEATURE
    if hdr.flags & VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM and not offloads & VIRTIO_OFFLOAD_TUNNEL_CSUM:
        return VIRTIO_NET_HDR_BAD_TUNNEL_CSUM
    if (<uint32_t>hdr.outer_th_offset + UDP_HEADER > hdr.inner_nh_offset
            or <uint32_t>hdr.inner_nh_offset + network > transport):
        return VIRTIO_NET_HDR_BAD_TUNNEL_OFFSETS
    return VIRTIO_NET_HDR_OK


cdef int check_gso(virtio_net_hdr *hdr, uint32_t kind, uint32_t length, uint32_t offloads) noexcept nogil:
    cdef uint32_t needed, header = UDP_HEADER, field = UDP_FIELD
    if kind == VIRTIO_NET_HDR_GSO_TCPV4:
        needed, header, field = VIRTIO_OFFLOAD_TSO4, TCP_HEADER, TCP_FIELD
    elif kind == VIRTIO_NET_HDR_GSO_TCPV6:
        needed, header, field = VIRTIO_OFFLOAD_TSO6, TCP_HEADER, TCP_FIELD
    elif kind == VIRTIO_NET_HDR_GSO_UDP:
        needed = VIRTIO_OFFLOAD_UFO
    elif kind == VIRTIO_NET_HDR_GSO_UDP_L4:
        needed = VIRTIO_OFFLOAD_USO4 | VIRTIO_OFFLOAD_USO6
    else:
        return VIRTIO_NET_HDR_BAD_GSO_TYPE
    if not offloads & needed:
        return VIRTIO_NET_HDR_BAD_GSO_FEATURE
    if header != TCP_HEADER:
        hdr.gso_type &= <uint8_t>~VIRTIO_NET_HDR_GSO_ECN
    if not hdr.flags & VIRTIO_NET_HDR_F_RSC_INFO:  # QEMU sets it alone, and no gso_size
        if hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM and (hdr.csum_offset != field
                                                        or <uint32_t>hdr.csum_start + header > length):
            return VIRTIO_NET_HDR_BAD_GSO_OFFSET
        if hdr.gso_size == 0:
            return VIRTIO_NET_HDR_BAD_GSO_SIZE
    return VIRTIO_NET_HDR_OK


cdef int check_to_driver(virtio_net_hdr *hdr, uint32_t kind, uint32_t offloads) noexcept nogil:
    if not offloads & VIRTIO_OFFLOAD_RSC:
        hdr.flags &= <uint8_t>~VIRTIO_NET_HDR_F_RSC_INFO
    if not offloads & VIRTIO_OFFLOAD_CSUM:
        hdr.flags &= <uint8_t>~VIRTIO_NET_HDR_F_DATA_VALID
    if hdr.flags & VIRTIO_NET_HDR_F_RSC_INFO and kind == VIRTIO_NET_HDR_GSO_NONE:
        if hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
            return VIRTIO_NET_HDR_BAD_RSC_INFO
        hdr.flags &= <uint8_t>~VIRTIO_NET_HDR_F_RSC_INFO
    if hdr.num_buffers == 0 and offloads & VIRTIO_OFFLOAD_MRG:
        return VIRTIO_NET_HDR_BAD_NUM_BUFFERS
    return VIRTIO_NET_HDR_OK


cdef int net_hdr_check(virtio_net_hdr *hdr, uint32_t length, uint32_t offloads) noexcept nogil:
    cdef uint32_t kind = hdr.gso_type & NET_HDR_GSO_MASK
    cdef int fault
    if not offloads & VIRTIO_OFFLOAD_TO_DRIVER:
        hdr.flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM
    else:
        fault = check_to_driver(hdr, kind, offloads)
        if fault:
            return fault
    if hdr.hdr_len > length:
        hdr.hdr_len = 0
    if hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM and not offloads & VIRTIO_OFFLOAD_CSUM:
        return VIRTIO_NET_HDR_BAD_CSUM_FEATURE
    if hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM and not hdr.flags & VIRTIO_NET_HDR_F_RSC_INFO:
        if hdr.csum_start > length:
            return VIRTIO_NET_HDR_BAD_CSUM_START
        if <uint32_t>hdr.csum_start + hdr.csum_offset + 2 > length:
            return VIRTIO_NET_HDR_BAD_CSUM_OFFSET
    if hdr.gso_type & NET_HDR_TUNNEL:
        fault = check_tunnel(hdr, kind, length, offloads)
        if fault:
            return fault
    elif hdr.flags & VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM:
        # to the driver it may stand beside DATA_VALID alone, and says that both levels are valid (5.1.9.4)
        if (not offloads & VIRTIO_OFFLOAD_TO_DRIVER or hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM
                or not offloads & VIRTIO_OFFLOAD_TUNNEL_CSUM):
            hdr.flags &= <uint8_t>~VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM
    if kind != VIRTIO_NET_HDR_GSO_NONE:
        return check_gso(hdr, kind, length, offloads)
    hdr.gso_type = VIRTIO_NET_HDR_GSO_NONE
    return VIRTIO_NET_HDR_OK


# ---- the Python face ----

class NetHeaderFault(IntEnum):
    """What a header is refused for, if it is; see :meth:`NetHeader.check`."""

    OK = VIRTIO_NET_HDR_OK
    CSUM_FEATURE = VIRTIO_NET_HDR_BAD_CSUM_FEATURE
    CSUM_START = VIRTIO_NET_HDR_BAD_CSUM_START
    CSUM_OFFSET = VIRTIO_NET_HDR_BAD_CSUM_OFFSET
    RSC_INFO = VIRTIO_NET_HDR_BAD_RSC_INFO
    GSO_TYPE = VIRTIO_NET_HDR_BAD_GSO_TYPE
    GSO_FEATURE = VIRTIO_NET_HDR_BAD_GSO_FEATURE
    GSO_OFFSET = VIRTIO_NET_HDR_BAD_GSO_OFFSET
    GSO_SIZE = VIRTIO_NET_HDR_BAD_GSO_SIZE
    TUNNEL_TYPE = VIRTIO_NET_HDR_BAD_TUNNEL_TYPE
    TUNNEL_FEATURE = VIRTIO_NET_HDR_BAD_TUNNEL_FEATURE
    TUNNEL_CSUM = VIRTIO_NET_HDR_BAD_TUNNEL_CSUM
    TUNNEL_OFFSETS = VIRTIO_NET_HDR_BAD_TUNNEL_OFFSETS
    NUM_BUFFERS = VIRTIO_NET_HDR_BAD_NUM_BUFFERS


_FAULTS = tuple(NetHeaderFault)
_FIELDS = (
    "flags", "gso_type", "hdr_len", "gso_size", "csum_start", "csum_offset", "num_buffers", "hash_value", "hash_report",
    "outer_th_offset", "inner_nh_offset",
)  # fmt: skip
_SIZES = (10, 12, 20, 24)


def net_header_size(features):
    """Return the bytes of the header that goes before each frame, in both directions: 10, 12, 20 or 24 (5.1.9).

    ``features`` are the negotiated ones, an int of any width (:class:`virtio.NetFeature`, :class:`virtio.Feature`).
    10 is the legacy header without MRG_RXBUF, 12 any with MRG_RXBUF or VERSION_1, 20 with HASH_REPORT, 24 with
    HOST_UDP_TUNNEL_GSO or GUEST_UDP_TUNNEL_GSO. Raises ValueError for OUT_NET_HEADER and IPSEC, whose header has 32.
    """
    return header_size_of(features)


cdef class NetHeader:
    """struct virtio_net_hdr, as Python has it: any field may be set, and to_bytes() and from_bytes() know all layouts.

    Fields are those of VIRTIO 1.4, 5.1.9, and 0 unless given. With RSC_INFO in ``flags``, ``csum_start`` is the number
    of segments and ``csum_offset`` of duplicate ACKs. A value out of a field's range raises OverflowError.
    """

    def __init__(self, **fields):
        for name, value in fields.items():
            if name not in _FIELDS:
                raise TypeError(f"{name!r} is no field of virtio_net_hdr")
            setattr(self, name, value)

    cdef void load(self, const virtio_net_hdr *hdr) noexcept:
        self.flags, self.gso_type, self.hdr_len, self.gso_size = hdr.flags, hdr.gso_type, hdr.hdr_len, hdr.gso_size
        self.csum_start, self.csum_offset, self.num_buffers = hdr.csum_start, hdr.csum_offset, hdr.num_buffers
        self.hash_value, self.hash_report = hdr.hash_value, hdr.hash_report
        self.outer_th_offset, self.inner_nh_offset = hdr.outer_th_offset, hdr.inner_nh_offset

    cdef void store(self, virtio_net_hdr *hdr) noexcept:
        hdr.flags, hdr.gso_type, hdr.hdr_len, hdr.gso_size = self.flags, self.gso_type, self.hdr_len, self.gso_size
        hdr.csum_start, hdr.csum_offset, hdr.num_buffers = self.csum_start, self.csum_offset, self.num_buffers
        hdr.hash_value, hdr.hash_report, hdr.padding = self.hash_value, self.hash_report, 0
        hdr.outer_th_offset, hdr.inner_nh_offset = self.outer_th_offset, self.inner_nh_offset

    @classmethod
    def from_bytes(cls, data, int size):
        """Return the header in the first ``size`` bytes (10, 12, 20 or 24) of ``data``; what they lack is 0.

        Raises ValueError for another size, and for data that are shorter.
        """
        cdef Py_buffer view
        cdef virtio_net_hdr hdr
        cdef NetHeader header = cls()
        if size not in _SIZES:
            raise ValueError(f"header size {size} is none of 10, 12, 20, 24")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if view.len < size:
                raise ValueError(f"header needs {size} bytes, not {view.len}")
            net_hdr_load(&hdr, <const uint8_t *>view.buf, size)
        finally:
            PyBuffer_Release(&view)
        header.load(&hdr)
        return header

    def to_bytes(self, int size):
        """Return the first ``size`` bytes (10, 12, 20 or 24) of the header. Raises ValueError for another size."""
        cdef virtio_net_hdr hdr
        if size not in _SIZES:
            raise ValueError(f"header size {size} is none of 10, 12, 20, 24")
        self.store(&hdr)
        return PyBytes_FromStringAndSize(<const char *>&hdr, size)

    def check(self, uint32_t frame_length, features, *, bint to_driver=False):
        """Return what is wrong with this header before a frame of ``frame_length`` bytes: a :class:`NetHeaderFault`.

        ``OK`` if the features that were negotiated for its direction allow it, and it contradicts neither itself nor
        the frame's length. Whether it fits the frame's headers, :func:`classify_receive` says. ``to_driver`` is the
        direction: a frame from the driver (False), or to it. Sources: VIRTIO 1.4, 5.1.9.2 and 5.1.9.4.
        """
        cdef virtio_net_hdr hdr
        self.store(&hdr)
        return _FAULTS[net_hdr_check(&hdr, frame_length, offloads_of(features, to_driver))]

    def __eq__(self, other):
        if not isinstance(other, NetHeader):
            return NotImplemented
        return self.to_bytes(24) == other.to_bytes(24)

    __hash__ = None

    def __repr__(self):
        fields = ", ".join(f"{name}={getattr(self, name)}" for name in _FIELDS if getattr(self, name))
        return f"NetHeader({fields})"
