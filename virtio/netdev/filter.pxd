# The receive filter (VIRTIO 1.4, 5.1.9.5.1 to 5.1.9.5.3): which frames a driver wants. As QEMU has it, whose order of
# questions drivers rely on: promiscuous passes all, VLAN filter included; then the VLAN; then the address. A tag of
# VLAN 0 has a priority and no VLAN (IEEE 802.1Q): such frames pass the VLAN filter always.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "virtio/net_copy.h" nogil:
    uint64_t load_mac "virtio_load_mac"(const uint8_t *p)


cdef enum:
    FILTER_TABLE = 64          # MAC addresses, unicast and multicast together, as QEMU's
    FILTER_HEAD = 18           # bytes of a frame that are looked at

    FILTER_PROMISC = 0x01      # everything
    FILTER_ALLMULTI = 0x02
    FILTER_ALLUNI = 0x04
    FILTER_NOMULTI = 0x08
    FILTER_NOUNI = 0x10
    FILTER_NOBCAST = 0x20
    FILTER_UNI_OVERFLOW = 0x40     # more unicast addresses than the table takes: all pass
    FILTER_MULTI_OVERFLOW = 0x80


cdef struct net_filter:
    uint32_t modes         # FILTER_*
    uint32_t vlan_filter   # vlans counts
    uint32_t nuni          # table[0 .. nuni) are unicast addresses,
    uint32_t nmulti        # and as many after them multicast ones
    uint64_t mac           # the device's own; addresses are numbers as load_mac gives them
    uint64_t table[64]
    uint64_t vlans[64]     # a bit for each VLAN id


cdef inline bint filter_address(const net_filter *f, uint64_t mac) noexcept nogil:
    cdef uint32_t first, end, i
    if mac & 1:  # the group bit is the lowest of the first byte
        if mac == <uint64_t>0xffffffffffff:
            return not f.modes & FILTER_NOBCAST
        if f.modes & FILTER_NOMULTI:
            return False
        if f.modes & (FILTER_ALLMULTI | FILTER_MULTI_OVERFLOW):
            return True
        first, end = f.nuni, f.nuni + f.nmulti
    else:
        if f.modes & FILTER_NOUNI:
            return False
        if f.modes & (FILTER_ALLUNI | FILTER_UNI_OVERFLOW) or mac == f.mac:
            return True
        first, end = 0, f.nuni
    for i in range(first, end):
        if f.table[i] == mac:
            return True
    return False


cdef inline bint filter_passes(const net_filter *f, const uint8_t *p) noexcept nogil:
    """Say whether a frame, whose first FILTER_HEAD bytes are at p (0 behind a shorter one's end), is wanted."""
    cdef uint32_t vid
    if f.modes & FILTER_PROMISC:
        return True
    if f.vlan_filter and p[12] == 0x81 and p[13] == 0:
        vid = (<uint32_t>p[14] << 8 | p[15]) & 0xfff
        if vid and not f.vlans[vid >> 6] >> (vid & 63) & 1:
            return False
    return filter_address(f, load_mac(p))
