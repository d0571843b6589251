# Frames that say what they are: what the generator makes and the sink verifies.
#
# Each belongs to a flow and holds a stretch of it, in *units*: a raw frame (EtherType 0x88b5, for experiments) is unit
# `number` of its flow; a TCP frame holds units [seq, seq + payload), and stays verifiable when it is cut or merged. The
# payload is a pattern that depends on flow and position, of a prime period: a frame that lies in the wrong place, or is
# of another flow, differs. It is a view of one table, so making it costs nothing.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from virtio.offload.protocols cimport ETHERNET, ETHERTYPE_IPV4


cdef enum:
    PATTERN_PERIOD = 65521
    PATTERN_FRAME = 65589     # VIRTIO_FRAME_MAX
    RAW_HEADER = 30           # Ethernet, raw_stamp
    TCP_HEADER = 54           # Ethernet, IPv4, TCP
    ETHERTYPE_RAW = 0x88b5
    RAW_MAGIC = 0x5652        # "RV"
    PORT_DISCARD = 9
    ADDRESS_FROM = 0xc6120001  # 198.18.0.1 and .2: for benchmarks (RFC 2544)
    ADDRESS_TO = 0xc6120002
    FLOWS_MAX = 256

    # what a frame may be found to be
    FRAME_RAW = 0
    FRAME_TCP = 1
    FRAME_FOREIGN = 2         # none of ours
    FRAME_CORRUPT = 3         # ours, but it contradicts itself


cdef extern from *:
    """
    typedef struct raw_stamp {
        uint16_t magic;
        uint16_t flow;
        uint32_t length; /* of the frame */
        uint64_t number;
    } raw_stamp;
    """
    ctypedef struct raw_stamp:
        uint16_t magic
        uint16_t flow
        uint32_t length
        uint64_t number


cdef struct stretch:
    uint32_t flow
    uint64_t number           # raw: unit; TCP: the low 32 bits of the first one
    uint32_t header           # bytes before the payload
    uint32_t payload


cdef const uint8_t *pattern   # [PATTERN_PERIOD + PATTERN_FRAME]


cdef inline const uint8_t *pattern_of(int kind, uint32_t flow, uint64_t number) noexcept nogil:
    """The payload of a frame that begins with this unit; it is readable to PATTERN_FRAME bytes."""
    if kind == FRAME_RAW:
        number = number * 4099
    return pattern + (number + flow * 257) % PATTERN_PERIOD


cdef inline uint32_t get_be32(const uint8_t *p) noexcept nogil:
    return <uint32_t>p[0] << 24 | <uint32_t>p[1] << 16 | <uint32_t>p[2] << 8 | p[3]


cdef inline uint32_t get_be16(const uint8_t *p) noexcept nogil:
    return <uint32_t>p[0] << 8 | p[1]


cdef inline void put_be16(uint8_t *p, uint32_t v) noexcept nogil:
    p[0] = <uint8_t>(v >> 8)
    p[1] = <uint8_t>v


cdef inline void put_be32(uint8_t *p, uint32_t v) noexcept nogil:
    put_be16(p, v >> 16)
    put_be16(p + 2, v & 0xffff)


cdef inline int read_header(stretch *s, const uint8_t *head, uint32_t have, uint32_t length) noexcept nogil:
    """Find out what a frame of length bytes is, from its first `have`; TCP_HEADER of them are enough."""
    cdef raw_stamp stamp
    cdef uint32_t total
    if have < RAW_HEADER:
        return FRAME_FOREIGN
    if get_be16(head + 12) == ETHERTYPE_RAW:
        memcpy(&stamp, head + ETHERNET, sizeof(stamp))
        if stamp.magic != RAW_MAGIC:
            return FRAME_FOREIGN
        if stamp.length != length or stamp.flow >= FLOWS_MAX:
            return FRAME_CORRUPT
        s.flow = stamp.flow
        s.number = stamp.number
        s.header = RAW_HEADER
        s.payload = length - RAW_HEADER
        return FRAME_RAW
    if (have < TCP_HEADER or get_be16(head + 12) != ETHERTYPE_IPV4 or head[14] != 0x45 or head[23] != 6
            or get_be32(head + 26) != ADDRESS_FROM or get_be32(head + 30) != ADDRESS_TO
            or get_be16(head + 36) != PORT_DISCARD):
        return FRAME_FOREIGN
    total = get_be16(head + 16)
    s.flow = get_be16(head + 34) - 0xc000
    # what is behind the packet is padding of short frames
    if total + ETHERNET > length or total < TCP_HEADER - ETHERNET or head[46] != 0x50 or s.flow >= FLOWS_MAX:
        return FRAME_CORRUPT
    s.number = get_be32(head + 38)
    s.header = TCP_HEADER
    s.payload = total - (TCP_HEADER - ETHERNET)
    return FRAME_TCP
