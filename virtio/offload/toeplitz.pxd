# Toeplitz hash (Microsoft, "RSS hashing functions"), and which part of a frame a network device hashes with it.
#
# A table has 256 words for each byte of the input: the XOR of the key's 32-bit windows at the bits that are set in it.
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from virtio.offload.frame cimport virtio_frame


cdef extern from "virtio/hash.h" nogil:
    enum:
        VIRTIO_NET_HASH_TYPE_IPv4
        VIRTIO_NET_HASH_TYPE_TCPv4
        VIRTIO_NET_HASH_TYPE_UDPv4
        VIRTIO_NET_HASH_TYPE_IPv6
        VIRTIO_NET_HASH_TYPE_TCPv6
        VIRTIO_NET_HASH_TYPE_UDPv6
        VIRTIO_NET_HASH_TYPE_IP_EX
        VIRTIO_NET_HASH_TYPE_TCP_EX
        VIRTIO_NET_HASH_TYPE_UDP_EX
        VIRTIO_NET_HASH_REPORT_NONE
        VIRTIO_NET_HASH_REPORT_IPv4
        VIRTIO_NET_HASH_REPORT_TCPv4
        VIRTIO_NET_HASH_REPORT_UDPv4
        VIRTIO_NET_HASH_REPORT_IPv6
        VIRTIO_NET_HASH_REPORT_TCPv6
        VIRTIO_NET_HASH_REPORT_UDPv6
        VIRTIO_NET_HASH_REPORT_IPv6_EX
        VIRTIO_NET_HASH_REPORT_TCPv6_EX
        VIRTIO_NET_HASH_REPORT_UDPv6_EX
        VIRTIO_NET_HASH_TUNNEL_TYPE_VXLAN
        VIRTIO_NET_HASH_TUNNEL_TYPE_GENEVE
        VIRTIO_HASH_INPUT_MAX
        VIRTIO_HASH_KEY_MIN
        VIRTIO_HASH_KEY_MAX

    ctypedef struct virtio_hash:
        uint32_t value
        uint16_t report
        uint16_t padding


# Fill table[256 * inputs] for inputs of up to `inputs` bytes; the key has inputs + 4 bytes.
cdef void toeplitz_table(uint32_t *table, const uint8_t *key, uint32_t inputs) noexcept nogil
cdef uint32_t toeplitz_hash(const uint32_t *table, const uint8_t *p, uint32_t n) noexcept nogil
# Hash the frame at p that was parsed into *frame. The table is for VIRTIO_HASH_INPUT_MAX bytes or more, types are the
# enabled VIRTIO_NET_HASH_TYPE_*, tunnels the VIRTIO_NET_HASH_TUNNEL_TYPE_* whose inner header is hashed.
cdef void frame_hash(virtio_hash *out, const uint32_t *table, uint32_t types, uint32_t tunnels,
                     const virtio_frame *frame, const uint8_t *p) noexcept nogil


cdef class Toeplitz:
    cdef uint32_t *table    # [256 * inputs]
    cdef uint32_t inputs    # bytes
    cdef readonly bytes key
