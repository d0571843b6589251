# struct virtio_net_hdr (VIRTIO 1.4, 5.1.9): what it says of a frame, checked against what was negotiated.
#
# The *offloads* of one direction are a set of VIRTIO_OFFLOAD_* made once from the feature bits (offloads_of), so that
# the data path tests one 32-bit word. The same functions serve both directions: from the driver (HOST_* features) and,
# with VIRTIO_OFFLOAD_TO_DRIVER, to it (GUEST_*).
#
# Big-endian guests of the legacy interface are not served: fields are little-endian, as the host is.
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset


cdef extern from "virtio/net_hdr.h" nogil:
    enum:
        VIRTIO_NET_HDR_F_NEEDS_CSUM
        VIRTIO_NET_HDR_F_DATA_VALID
        VIRTIO_NET_HDR_F_RSC_INFO
        VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM
        VIRTIO_NET_HDR_GSO_NONE
        VIRTIO_NET_HDR_GSO_TCPV4
        VIRTIO_NET_HDR_GSO_UDP
        VIRTIO_NET_HDR_GSO_TCPV6
        VIRTIO_NET_HDR_GSO_UDP_L4
        VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4
        VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6
        VIRTIO_NET_HDR_GSO_ECN
        VIRTIO_OFFLOAD_CSUM
        VIRTIO_OFFLOAD_TSO4
        VIRTIO_OFFLOAD_TSO6
        VIRTIO_OFFLOAD_ECN
        VIRTIO_OFFLOAD_UFO
        VIRTIO_OFFLOAD_USO4
        VIRTIO_OFFLOAD_USO6
        VIRTIO_OFFLOAD_TUNNEL
        VIRTIO_OFFLOAD_TUNNEL_CSUM
        VIRTIO_OFFLOAD_ALL
        VIRTIO_OFFLOAD_RSC
        VIRTIO_OFFLOAD_MRG
        VIRTIO_OFFLOAD_TO_DRIVER
        VIRTIO_OFFLOAD_CUT
        VIRTIO_NET_HDR_OK
        VIRTIO_NET_HDR_BAD_CSUM_FEATURE
        VIRTIO_NET_HDR_BAD_CSUM_START
        VIRTIO_NET_HDR_BAD_CSUM_OFFSET
        VIRTIO_NET_HDR_BAD_RSC_INFO
        VIRTIO_NET_HDR_BAD_GSO_TYPE
        VIRTIO_NET_HDR_BAD_GSO_FEATURE
        VIRTIO_NET_HDR_BAD_GSO_OFFSET
        VIRTIO_NET_HDR_BAD_GSO_SIZE
        VIRTIO_NET_HDR_BAD_TUNNEL_TYPE
        VIRTIO_NET_HDR_BAD_TUNNEL_FEATURE
        VIRTIO_NET_HDR_BAD_TUNNEL_CSUM
        VIRTIO_NET_HDR_BAD_TUNNEL_OFFSETS
        VIRTIO_NET_HDR_BAD_NUM_BUFFERS
        VIRTIO_NET_HDR_FAULTS

    ctypedef struct virtio_net_hdr:
        uint8_t flags
        uint8_t gso_type
        uint16_t hdr_len
        uint16_t gso_size
        uint16_t csum_start
        uint16_t csum_offset
        uint16_t num_buffers
        uint32_t hash_value
        uint16_t hash_report
        uint16_t padding
        uint16_t outer_th_offset
        uint16_t inner_nh_offset


cdef enum:
    NET_HDR_TUNNEL = VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4 | VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6
    # of gso_type without the bits that may be or'ed to it
    NET_HDR_GSO_MASK = 0xff & ~(VIRTIO_NET_HDR_GSO_ECN | VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4
                                | VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6)


# Size of the header, 10 to 24; ValueError for features (an int of any width) whose header is longer.
cdef int header_size_of(object features) except -1
# VIRTIO_OFFLOAD_* of one direction.
cdef uint32_t offloads_of(object features, bint to_driver) except? 0


# The header from its first `size` bytes; what a shorter layout lacks is 0.
cdef inline void net_hdr_load(virtio_net_hdr *hdr, const uint8_t *p, uint32_t size) noexcept nogil:
    memset(hdr, 0, sizeof(virtio_net_hdr))
    memcpy(hdr, p, size)


# What is wrong with a header in front of a frame of `length` bytes, VIRTIO_NET_HDR_BAD_*, or VIRTIO_NET_HDR_OK: then
# csum_start and csum_offset (if NEEDS_CSUM is set without RSC_INFO) name two bytes of the frame, the type was
# negotiated, its transport header fits into the frame where NEEDS_CSUM says, gso_size is not 0, and a tunnel's offsets
# are in order. With RSC_INFO a header may lack gso_size, as QEMU's does. Whether the frame is what the header says
# takes a parse: offload_receive.
#
# Bits that say nothing in this direction are cleared, so that no reader behind this one takes them for true:
# - from the driver each flag but NEEDS_CSUM and UDP_TUNNEL_CSUM (5.1.9.2: ignored; FreeBSD sets DATA_VALID on frames
#   that it forwards);
# - to the driver DATA_VALID without GUEST_CSUM and RSC_INFO without RSC_EXT: flags that were not negotiated;
# - UDP_TUNNEL_CSUM without a tunnel's type, unless it says of a received frame that both levels are valid;
# - the ECN bit of a type that is not TCP. With TCP it is kept without HOST_ECN and GUEST_ECN, too: the flags of a
#   segment are the frame's, whatever the bit says;
# - an hdr_len beyond the frame, which is a hint (5.1.9.2), and for which Linux' TAP would refuse the frame.
# Not looked at: flags that are not known, offsets that no flag or type refers to, num_buffers from the driver. A type
# without NEEDS_CSUM passes (a NIC's LRO behind vhost); net_hdr_needs says of it that it is to be cut.
cdef int net_hdr_check(virtio_net_hdr *hdr, uint32_t length, uint32_t offloads) noexcept nogil


cdef class NetHeader:
    cdef public uint8_t flags
    cdef public uint8_t gso_type
    cdef public uint16_t hdr_len
    cdef public uint16_t gso_size
    cdef public uint16_t csum_start
    cdef public uint16_t csum_offset
    cdef public uint16_t num_buffers
    cdef public uint32_t hash_value
    cdef public uint16_t hash_report
    cdef public uint16_t outer_th_offset
    cdef public uint16_t inner_nh_offset

    cdef void load(self, const virtio_net_hdr *hdr) noexcept
    cdef void store(self, virtio_net_hdr *hdr) noexcept
