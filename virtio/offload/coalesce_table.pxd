# The flow table of a coalescer: records by hash, and a list of them by age. For coalesce.pyx alone.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp

from virtio.core.atomic cimport virtio_unlikely
from virtio.offload.coalesce cimport virtio_coalescer, virtio_flow
from virtio.offload.frame cimport VIRTIO_L3_IPV6, get_be16, virtio_layer
from virtio.offload.protocols cimport ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN


cdef extern from "virtio/coalesce.h" nogil:
    bint virtio_same_header(const uint8_t *p, const uint8_t *q, const uint8_t *mask, uint32_t n)
    uint32_t virtio_coalesce_load32(const uint8_t *p)
    uint32_t virtio_flow_hash(const uint8_t *addresses, bint ipv6, const uint8_t *ports, const uint64_t *secret)


cdef enum:
    NONE = 0xffffffff     # no record


cdef inline virtio_flow *flow_at(const virtio_coalescer *c, uint32_t record) noexcept nogil:
    return <virtio_flow *>(c.records + <size_t>record * c.stride)


cdef inline uint32_t record_of(const virtio_coalescer *c, const virtio_flow *f) noexcept nogil:
    return <uint32_t>((<const uint8_t *>f - c.records) // c.stride)


cdef inline void table_add(virtio_coalescer *c, virtio_flow *f, uint64_t now) noexcept nogil:
    cdef uint32_t record = record_of(c, f)
    cdef uint32_t slot = f.hash & c.slots
    while c.table[slot]:
        slot = (slot + 1) & c.slots
    c.table[slot] = (f.hash & <uint32_t>0xffff0000) | (record + 1)
    f.arrived = now
    f.older, f.newer = c.newest, NONE
    if c.newest != NONE:
        flow_at(c, c.newest).newer = record
    else:
        c.oldest = record
    c.newest = record
    c.held_flows += 1


cdef inline void table_remove(virtio_coalescer *c, virtio_flow *f) noexcept nogil:
    cdef uint32_t record = record_of(c, f)
    cdef uint32_t hole = f.hash & c.slots
    cdef uint32_t slot, home
    while (c.table[hole] & 0xffff) != record + 1:
        hole = (hole + 1) & c.slots
    slot = hole
    while True:  # close the gap, so that searches need no mark of it
        slot = (slot + 1) & c.slots
        if c.table[slot] == 0:
            break
        home = flow_at(c, (c.table[slot] & 0xffff) - 1).hash & c.slots
        if ((slot - home) & c.slots) >= ((slot - hole) & c.slots):
            c.table[hole] = c.table[slot]
            hole = slot
    c.table[hole] = 0
    if f.older != NONE:
        flow_at(c, f.older).newer = f.newer
    else:
        c.oldest = f.newer
    if f.newer != NONE:
        flow_at(c, f.newer).older = f.older
    else:
        c.newest = f.older
    if c.last == f:
        c.last = NULL
    c.held_flows -= 1


cdef inline virtio_flow *table_find(virtio_coalescer *c, const uint8_t *p, const virtio_layer *layer,
                                    uint32_t *hashed) noexcept nogil:
    """The flow that a frame with this TCP header is of, whether it merges or not."""
    cdef bint ipv6 = layer.l3_kind == VIRTIO_L3_IPV6
    cdef uint32_t at = layer.l3 + (8 if ipv6 else 12)  # as the IP header has them, whatever the route
    cdef uint32_t hash = virtio_flow_hash(p + at, ipv6, p + layer.l4, c.secret)
    cdef uint32_t slot = hash & c.slots
    cdef virtio_flow *f
    hashed[0] = hash
    while c.table[slot]:
        if (c.table[slot] ^ hash) >> 16 == 0:
            f = flow_at(c, (c.table[slot] & 0xffff) - 1)
            if (f.l3 == layer.l3 and f.ipv6 == ipv6 and memcmp(f.header, p, f.l3) == 0
                    and memcmp(f.header + at, p + at, 32 if ipv6 else 8) == 0
                    and f.ports == virtio_coalesce_load32(p + layer.l4)):
                return f
        slot = (slot + 1) & c.slots
    return NULL


cdef inline virtio_flow *table_match(virtio_coalescer *c, const uint8_t *p, uint32_t n) noexcept nogil:
    """The flow whose header the frame repeats, with at least one byte behind it; NULL if it is not seen at a glance.

    What the frame is made of is only guessed here: that the header agrees is the proof.
    """
    cdef virtio_flow *f
    cdef uint32_t hash, slot, type, l3 = 14
    if virtio_unlikely(n < 14 + 2 * 4 + 40):
        return NULL
    type = get_be16(p + 12)
    while (type == ETHERTYPE_VLAN or type == ETHERTYPE_QINQ) and l3 < 14 + 2 * 4:
        l3 += 4
        type = get_be16(p + l3 - 2)
    if type == ETHERTYPE_IPV4:
        hash = virtio_flow_hash(p + l3 + 12, 0, p + l3 + 20, c.secret)
    elif type == ETHERTYPE_IPV6 and n >= l3 + 60:
        hash = virtio_flow_hash(p + l3 + 8, 1, p + l3 + 40, c.secret)
    else:
        return NULL
    slot = hash & c.slots
    while c.table[slot]:
        if (c.table[slot] ^ hash) >> 16 == 0:
            f = flow_at(c, (c.table[slot] & 0xffff) - 1)
            if n > f.header_length and virtio_same_header(p, f.header, f.mask, f.header_length):
                return f
        slot = (slot + 1) & c.slots
    return NULL
