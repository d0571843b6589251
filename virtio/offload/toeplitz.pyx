"""Toeplitz hash: receive-side scaling and hash reports."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint16_t, uint32_t, UINT32_MAX
from libc.stdlib cimport free, malloc

from virtio.core.limits cimport number_within
from virtio.offload.batch cimport Batch
from virtio.offload.coalesce_table cimport NONE
from virtio.offload.frame cimport (
    VIRTIO_L3_IPV4, VIRTIO_LAYER_EXTENSIONS, VIRTIO_LAYER_FRAGMENT, VIRTIO_LAYER_HOME, VIRTIO_LAYER_L4,
    VIRTIO_LAYER_ROUTING_2, VIRTIO_TUNNEL_GENEVE, VIRTIO_TUNNEL_VXLAN, frame_parse, get_be32, virtio_layer,
)
from virtio.offload.results cimport Records

from enum import IntEnum, IntFlag


class HashType(IntFlag):
    """What a driver enables (VIRTIO 1.4, 5.1.6.4.3.1)."""

    IPV4 = VIRTIO_NET_HASH_TYPE_IPv4
    TCPV4 = VIRTIO_NET_HASH_TYPE_TCPv4
    UDPV4 = VIRTIO_NET_HASH_TYPE_UDPv4
    IPV6 = VIRTIO_NET_HASH_TYPE_IPv6
    TCPV6 = VIRTIO_NET_HASH_TYPE_TCPv6
    UDPV6 = VIRTIO_NET_HASH_TYPE_UDPv6
    IP_EX = VIRTIO_NET_HASH_TYPE_IP_EX
    TCP_EX = VIRTIO_NET_HASH_TYPE_TCP_EX
    UDP_EX = VIRTIO_NET_HASH_TYPE_UDP_EX
    ALL = 0x1ff


class HashReport(IntEnum):
    """What was hashed: hash_report of struct virtio_net_hdr (VIRTIO 1.4, 5.1.6.4.4)."""

    NONE = VIRTIO_NET_HASH_REPORT_NONE
    IPV4 = VIRTIO_NET_HASH_REPORT_IPv4
    TCPV4 = VIRTIO_NET_HASH_REPORT_TCPv4
    UDPV4 = VIRTIO_NET_HASH_REPORT_UDPv4
    IPV6 = VIRTIO_NET_HASH_REPORT_IPv6
    TCPV6 = VIRTIO_NET_HASH_REPORT_TCPv6
    UDPV6 = VIRTIO_NET_HASH_REPORT_UDPv6
    IPV6_EX = VIRTIO_NET_HASH_REPORT_IPv6_EX
    TCPV6_EX = VIRTIO_NET_HASH_REPORT_TCPv6_EX
    UDPV6_EX = VIRTIO_NET_HASH_REPORT_UDPv6_EX


class HashTunnel(IntFlag):
    """Tunnels whose inner header is hashed (VIRTIO 1.4, 5.1.6.4.4.2), of those that parse() knows."""

    VXLAN = VIRTIO_NET_HASH_TUNNEL_TYPE_VXLAN
    GENEVE = VIRTIO_NET_HASH_TUNNEL_TYPE_GENEVE


_REPORTS = tuple(HashReport)

cdef const char *HASH_FORMAT = b"T{=I:value:H:report:xx}"


cdef void toeplitz_table(uint32_t *table, const uint8_t *key, uint32_t inputs) noexcept nogil:
    cdef uint32_t i, bit, v, window
    for i in range(inputs):
        table[0] = 0
        for bit in range(8):  # from the least significant bit of the input byte, which has the last window
            window = get_be32(key + i) << (7 - bit) | key[i + 4] >> (1 + bit)
            for v in range(<uint32_t>1 << bit):
                table[(<uint32_t>1 << bit) + v] = table[v] ^ window
        table += 256


cdef inline uint32_t hash_part(const uint32_t *table, uint32_t at, const uint8_t *p, uint32_t n) noexcept nogil:
    """The part of a hash that the n bytes at p give as bytes `at` and on of the input."""
    cdef uint32_t i, hash = 0
    for i in range(n):
        hash ^= table[256 * (at + i) + p[i]]
    return hash


cdef uint32_t toeplitz_hash(const uint32_t *table, const uint8_t *p, uint32_t n) noexcept nogil:
    return hash_part(table, 0, p, n)


cdef inline void layer_hash(virtio_hash *out, const uint32_t *table, uint32_t types, const virtio_layer *layer,
                            const uint8_t *p) noexcept nogil:
    """VIRTIO 1.4, 5.1.6.4.3.2 to 5.1.6.4.3.4. Fragments have no ports: the later ones would hash to another queue."""
    cdef uint32_t l4 = 0, hash, report = VIRTIO_NET_HASH_REPORT_NONE, src, dst
    out.value = 0
    out.report = VIRTIO_NET_HASH_REPORT_NONE
    out.padding = 0
    if layer.src == 0:  # no sound IP header
        return
    if layer.flags & VIRTIO_LAYER_L4 and not layer.flags & VIRTIO_LAYER_FRAGMENT:
        l4 = 1 if layer.protocol == 6 else 2 if layer.protocol == 17 else 0
    if layer.l3_kind == VIRTIO_L3_IPV4:
        if l4 == 0 or not types >> l4 & VIRTIO_NET_HASH_TYPE_IPv4:
            l4 = 0
            if not types & VIRTIO_NET_HASH_TYPE_IPv4:
                return
        report = VIRTIO_NET_HASH_REPORT_IPv4 + l4
        # the header's addresses, also with a source route
        hash = hash_part(table, 0, p + layer.l3 + 12, 8)
        if l4:
            hash ^= hash_part(table, 8, p + layer.l4, 4)
    else:
        src = layer.l3 + 8
        dst = layer.l3 + 24
        if layer.flags & VIRTIO_LAYER_EXTENSIONS:
            if l4 and types >> l4 & VIRTIO_NET_HASH_TYPE_IP_EX:
                report = VIRTIO_NET_HASH_REPORT_IPv6_EX + l4
            elif types & VIRTIO_NET_HASH_TYPE_IP_EX:
                report = VIRTIO_NET_HASH_REPORT_IPv6_EX
                l4 = 0
            if report:
                if layer.flags & VIRTIO_LAYER_HOME:
                    src = layer.src
                if layer.flags & VIRTIO_LAYER_ROUTING_2:
                    dst = layer.dst
        if not report:
            if l4 == 0 or not types >> l4 & VIRTIO_NET_HASH_TYPE_IPv6:
                l4 = 0
                if not types & VIRTIO_NET_HASH_TYPE_IPv6:
                    return
            report = VIRTIO_NET_HASH_REPORT_IPv6 + l4
        hash = hash_part(table, 0, p + src, 16) ^ hash_part(table, 16, p + dst, 16)
        if l4:
            hash ^= hash_part(table, 32, p + layer.l4, 4)
    out.value = hash
    out.report = <uint16_t>report


cdef void frame_hash(virtio_hash *out, const uint32_t *table, uint32_t types, uint32_t tunnels,
                     const virtio_frame *frame, const uint8_t *p) noexcept nogil:
    cdef const virtio_layer *layer = &frame.outer
    if frame.tunnel == VIRTIO_TUNNEL_VXLAN and tunnels & VIRTIO_NET_HASH_TUNNEL_TYPE_VXLAN:
        layer = &frame.inner
    elif frame.tunnel == VIRTIO_TUNNEL_GENEVE and tunnels & VIRTIO_NET_HASH_TUNNEL_TYPE_GENEVE:
        layer = &frame.inner
    layer_hash(out, table, types, layer, p)


cdef uint32_t check_tunnels(object given) except? 0:
    cdef uint32_t tunnels = <uint32_t>number_within(given, 0, UINT32_MAX, "tunnel types")
    if tunnels & ~<uint32_t>(VIRTIO_NET_HASH_TUNNEL_TYPE_VXLAN | VIRTIO_NET_HASH_TUNNEL_TYPE_GENEVE):
        raise ValueError(f"tunnel types {tunnels:#x}: only VXLAN (0x10) and GENEVE (0x40) are parsed")
    return tunnels


cdef class Hashes(Records):
    """What hash_burst() found: a sequence of (hash, HashReport), one a frame, and a read-only buffer of records.

    numpy.asarray(hashes) has, without a copy, the fields value (uint32) and report (uint16): the 8 bytes that struct
    virtio_net_hdr has from hash_value on (VIRTIO 1.4, 5.1.6). Any thread may read it.
    """

    cdef object record(self, Py_ssize_t i):
        cdef virtio_hash *it = <virtio_hash *>self.items + i
        return it.value, _REPORTS[it.report]


cdef class Toeplitz:
    """A Toeplitz hash with one key, of 40 to 255 bytes; what it takes at most is 4 bytes less.

    Building it makes a table of 1 KiB for each byte of input. It never changes: any thread may use it.

    Source: VIRTIO 1.4, 5.1.6.4.3; Microsoft, "RSS hashing functions".
    """

    def __cinit__(self, key):
        cdef const uint8_t *p
        cdef Py_ssize_t n
        self.key = bytes(memoryview(key))
        n = len(self.key)
        if not VIRTIO_HASH_KEY_MIN <= n <= VIRTIO_HASH_KEY_MAX:
            raise ValueError(f"key of {n} bytes (limits {VIRTIO_HASH_KEY_MIN} to {VIRTIO_HASH_KEY_MAX})")
        self.inputs = <uint32_t>(n - 4)
        self.table = <uint32_t *>malloc(self.inputs * 256 * sizeof(uint32_t))
        if self.table is NULL:
            raise MemoryError()
        p = self.key
        toeplitz_table(self.table, p, self.inputs)

    def __dealloc__(self):
        free(self.table)

    def hash(self, data):
        """Return the hash (32 bits) of a buffer of up to len(key) - 4 bytes; ValueError for more."""
        cdef Py_buffer view
        cdef uint32_t value
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if view.len > self.inputs:
                raise ValueError(f"{view.len} bytes to hash (limit {self.inputs} with a key of {len(self.key)})")
            value = toeplitz_hash(self.table, <const uint8_t *>view.buf, <uint32_t>view.len)
        finally:
            PyBuffer_Release(&view)
        return value

    def hash_frame(self, frame, types=0x1ff, *, tunnels=0):
        """Return (hash, HashReport) of an Ethernet frame; (0, HashReport.NONE) when no enabled type fits it.

        ``types`` are the enabled HashType bits, all unless given. With ``tunnels``, HashTunnel bits, a frame in such a
        tunnel is hashed by its inner headers. Source: VIRTIO 1.4, 5.1.6.4.3.2 to 5.1.6.4.3.4.
        """
        cdef Py_buffer view
        cdef virtio_frame parsed
        cdef virtio_hash out
        cdef uint32_t enabled, within
        enabled = <uint32_t>number_within(types, 0, 0x1ff, "hash types")
        within = check_tunnels(tunnels)
        PyObject_GetBuffer(frame, &view, PyBUF_SIMPLE)
        try:
            if view.len > 0xffffffff:
                raise ValueError(f"frame of {view.len} bytes (limit {0xffffffff})")
            frame_parse(&parsed, <const uint8_t *>view.buf, <uint32_t>view.len)
            frame_hash(&out, self.table, enabled, within, &parsed, <const uint8_t *>view.buf)
        finally:
            PyBuffer_Release(&view)
        return out.value, _REPORTS[out.report]

    def hash_burst(self, frames, offsets=None, *, types=0x1ff, tunnels=0):
        """Hash many frames, a sequence of buffers or one buffer and offsets; return Hashes.

        The GIL is released meanwhile. ``types`` and ``tunnels`` are as for hash_frame(); errors as for parse_burst().
        """
        cdef Batch batch = Batch()
        cdef Hashes hashes = Hashes()
        cdef virtio_frame parsed
        cdef virtio_hash *items
        cdef uint32_t i, enabled, within
        enabled = <uint32_t>number_within(types, 0, 0x1ff, "hash types")
        within = check_tunnels(tunnels)
        batch.load(frames, offsets, False)
        hashes.reserve(batch.count, sizeof(virtio_hash), HASH_FORMAT)
        items = <virtio_hash *>hashes.items
        with nogil:
            for i in range(batch.count):
                frame_parse(&parsed, batch.data[i], batch.lengths[i])
                frame_hash(&items[i], self.table, enabled, within, &parsed, batch.data[i])
        return hashes
