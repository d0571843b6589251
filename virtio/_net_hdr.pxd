# struct virtio_net_hdr: what an offload says about a frame, and what a frame needs of an offload.
from libc.stdint cimport uint8_t, uint16_t, uint32_t


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
