"""Lengths in the headers of a frame that is to be cut."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from virtio.core.iov cimport iov_head, iovec
from virtio.offload.frame cimport (
    VIRTIO_L3_IPV4, VIRTIO_L3_IPV6, VIRTIO_LAYER_L4, VIRTIO_STOP_IP_LENGTH, VIRTIO_STOP_OK, VIRTIO_STOP_SHORT_ETHERNET,
    VIRTIO_STOP_SHORT_EXTENSION, VIRTIO_STOP_SHORT_L3, VIRTIO_STOP_SHORT_L4, VIRTIO_STOP_SHORT_TUNNEL,
    VIRTIO_STOP_UDP_LENGTH, VIRTIO_TUNNEL_NONE, frame_parse, get_be16, put_be16, virtio_layer,
)
from virtio.offload.net_hdr cimport NET_HDR_TUNNEL, VIRTIO_NET_HDR_GSO_UDP
from virtio.offload.protocols cimport UDP
from virtio.offload.segmenter cimport (
    VIRTIO_SEGMENT_HEADERS_MAX, VIRTIO_SEGMENT_IP_LENGTH, VIRTIO_SEGMENT_OK, segment_scratch,
)


cdef enum:
    MINIMUM = 60       # bytes of the shortest Ethernet frame; each VLAN tag may come before or after the padding
    TRAILER_MAX = 64
    FIELDS = 4         # IP and UDP, around a tunnel and within


cdef struct length_field:
    uint32_t at        # of the field
    uint32_t start     # of what it measures
    uint32_t said


cdef struct length_fields:
    length_field each[4]
    uint32_t count


cdef bint set_full(length_fields *fields, uint8_t *p, uint32_t at, uint32_t start, uint32_t end) noexcept nogil:
    """Note a length, and make it reach to end. False: 16 bits do not hold it."""
    cdef length_field *field = &fields.each[fields.count]
    if start > end or end - start > 0xffff:
        return False
    field.at = at
    field.start = start
    field.said = get_be16(p + at)
    fields.count += 1
    put_be16(p + at, <uint16_t>(end - start))
    return True


cdef bint set_layer(length_fields *fields, virtio_frame *f, const virtio_layer *layer, uint8_t *p) noexcept nogil:
    """Make the lengths of a layer reach to the frame's end. False: it is none that is known, or cut off."""
    cdef uint32_t n = f.length, l3 = layer.l3, room = min(n, <uint32_t>VIRTIO_SEGMENT_HEADERS_MAX)
    if layer.l3_kind == VIRTIO_L3_IPV4:
        if l3 + 20 > room or not set_full(fields, p, l3 + 2, l3, n):
            return False
    elif layer.l3_kind != VIRTIO_L3_IPV6 or l3 + 40 > room or not set_full(fields, p, l3 + 4, l3 + 40, n):
        return False
    frame_parse(f, p, n)
    if layer.protocol == UDP and (layer.stop == VIRTIO_STOP_OK or layer.stop == VIRTIO_STOP_UDP_LENGTH):
        if <uint32_t>layer.l4 + 8 > room or not set_full(fields, p, layer.l4 + 4, layer.l4, n):
            return False
        frame_parse(f, p, n)
    return True


cdef int find_end(const length_fields *fields, const virtio_frame *f, const virtio_layer *layer, uint32_t gso_type,
                  uint32_t gso_size, uint32_t *found, uint64_t *value, uint64_t *limit) noexcept nogil:
    """*found: where the packet ends, by what the lengths said."""
    cdef uint32_t n = f.length
    cdef bint padded = MINIMUM <= n <= MINIMUM + 4 * <uint32_t>f.outer.vlans and not (n - MINIMUM) & 3
    cdef uint32_t segment = layer.payload + gso_size, rounded = segment, of_segment = 0, end, i
    if gso_type == VIRTIO_NET_HDR_GSO_UDP:
        segment = layer.l4 + gso_size
        rounded = layer.l4 + (gso_size & ~<uint32_t>7)
    found[0] = 0
    for i in range(fields.count):
        end = fields.each[i].start + fields.each[i].said
        if fields.each[i].said == 0:
            continue
        if end != n and (end == segment or end == rounded):
            of_segment = end
            continue
        if found[0] and found[0] != end:  # they contradict each other
            return LENGTHS_TRUE
        found[0] = end
    if found[0] == 0:
        found[0] = n
        if of_segment:
            if padded:
                found[0] = of_segment
        elif padded:  # nothing tells padding from payload
            return LENGTHS_TRUE
    if found[0] > n or found[0] < layer.payload:
        return LENGTHS_TRUE
    if n - found[0] > TRAILER_MAX:
        value[0] = fields.each[0].said
        limit[0] = n - fields.each[0].start
        return VIRTIO_SEGMENT_IP_LENGTH
    return VIRTIO_SEGMENT_OK


cdef int mend(length_fields *fields, virtio_frame *f, uint8_t *p, uint32_t gso_type, uint32_t gso_size,
              uint64_t *value, uint64_t *limit) noexcept nogil:
    """lengths_mend(), but for lengths that are as they were, and for those of a frame that is not mended."""
    cdef const virtio_layer *layer = &f.outer
    cdef uint32_t i, end
    cdef int code
    if not set_layer(fields, f, &f.outer, p):
        return LENGTHS_TRUE
    if gso_type & NET_HDR_TUNNEL:
        if f.tunnel == VIRTIO_TUNNEL_NONE or not set_layer(fields, f, &f.inner, p):
            return LENGTHS_TRUE
        layer = &f.inner
    if layer.stop != VIRTIO_STOP_OK:
        return LENGTHS_TRUE
    code = find_end(fields, f, layer, gso_type, gso_size, &end, value, limit)
    if code != VIRTIO_SEGMENT_OK:
        return code
    code = LENGTHS_TRUE
    for i in range(fields.count):
        if fields.each[i].said != end - fields.each[i].start:
            code = VIRTIO_SEGMENT_OK
        put_be16(p + fields.each[i].at, <uint16_t>(end - fields.each[i].start))
    return code


cdef int lengths_mend(virtio_frame *f, uint8_t *p, uint32_t gso_type, uint32_t gso_size, uint64_t *value,
                      uint64_t *limit) noexcept nogil:
    cdef length_fields fields
    cdef uint32_t i
    cdef int code
    fields.count = 0
    code = mend(&fields, f, p, gso_type, gso_size, value, limit)
    if code == VIRTIO_SEGMENT_OK:
        frame_parse(f, p, f.length)
        return code
    for i in range(fields.count, 0, -1):
        put_be16(p + fields.each[i - 1].at, <uint16_t>fields.each[i - 1].said)
    return code


cdef uint8_t *lengths_copy(const uint8_t *p, uint32_t n) noexcept nogil:
    cdef uint8_t *scratch = segment_scratch()
    memcpy(scratch, p, min(n, <uint32_t>VIRTIO_SEGMENT_HEADERS_MAX))
    return scratch


cdef inline bint is_cut_short(const virtio_layer *layer) noexcept nogil:
    """Whether a layer ends too early, or too late, by a length."""
    return (layer.stop == VIRTIO_STOP_IP_LENGTH or layer.stop == VIRTIO_STOP_UDP_LENGTH
            or layer.stop == VIRTIO_STOP_SHORT_L3 or layer.stop == VIRTIO_STOP_SHORT_L4
            or layer.stop == VIRTIO_STOP_SHORT_EXTENSION or layer.stop == VIRTIO_STOP_SHORT_ETHERNET
            or layer.stop == VIRTIO_STOP_SHORT_TUNNEL)


cdef inline bint is_full(const virtio_frame *f, const virtio_layer *layer, const uint8_t *p) noexcept nogil:
    """Whether a layer that is sound reaches to the frame's end."""
    if layer.end != f.length:
        return False
    return layer.protocol != UDP or get_be16(p + layer.l4 + 4) == f.length - layer.l4


cdef bint lengths_exact(const virtio_frame *f, const uint8_t *p, uint32_t gso_type) noexcept nogil:
    cdef const virtio_layer *layer = &f.outer
    if is_cut_short(layer):
        return False
    if gso_type & NET_HDR_TUNNEL and f.tunnel != VIRTIO_TUNNEL_NONE:
        if is_cut_short(&f.inner) or not is_full(f, layer, p):
            return False
        # a taker may mean the other one's version by the type's bit
        if f.outer.l3_kind != f.inner.l3_kind:
            return False
        layer = &f.inner
    if layer.stop != VIRTIO_STOP_OK or not layer.flags & VIRTIO_LAYER_L4:
        return True
    return is_full(f, layer, p) and layer.payload < layer.end


cdef const uint8_t *segment_headers_of(const iovec *pieces, uint32_t npieces) noexcept nogil:
    cdef uint8_t *scratch = segment_scratch()
    if npieces == 1:
        return <const uint8_t *>pieces[0].iov_base
    iov_head(scratch, pieces, npieces, 0, VIRTIO_SEGMENT_HEADERS_MAX)
    return scratch
