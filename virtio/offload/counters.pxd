# Why frames were sent and received as they were, and how often: FreeBSD's counters, and more of their kind.
#
# Each frame counts once, under its reason. A virtio_offload_counters has one owner; it is plain numbers, not atomic.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "virtio/offload.h" nogil:
    enum:
        VIRTIO_TX_SENT_AS
        VIRTIO_TX_DONE_IN_SOFTWARE
        VIRTIO_TX_SEGMENT_IN_SOFTWARE
        VIRTIO_TX_REFUSED
        VIRTIO_TX_NO_OFFLOAD
        VIRTIO_TX_CSUM_OFFLOADED
        VIRTIO_TX_TSO_OFFLOADED
        VIRTIO_TX_USO_OFFLOADED
        VIRTIO_TX_SOFTWARE
        VIRTIO_TX_CSUM_SOFTWARE
        VIRTIO_TX_CSUM_PADDED
        VIRTIO_TX_CSUM_SCTP
        VIRTIO_TX_CSUM_ICMP
        VIRTIO_TX_SEGMENT
        VIRTIO_TX_TSO_SOFTWARE
        VIRTIO_TX_TSO_ECN
        VIRTIO_TX_USO_SOFTWARE
        VIRTIO_TX_USO_SEGMENTS
        VIRTIO_TX_TUNNEL_SOFTWARE
        VIRTIO_TX_TUNNEL_CSUM_SOFTWARE
        VIRTIO_TX_TUNNEL_FAMILY
        VIRTIO_TX_GSO_PADDED
        VIRTIO_TX_REFUSE
        VIRTIO_TX_CSUM_UNKNOWN_ETHTYPE
        VIRTIO_TX_CSUM_PROTO_MISMATCH
        VIRTIO_TX_CSUM_UNKNOWN_IPPROTO
        VIRTIO_TX_CSUM_FRAGMENT
        VIRTIO_TX_CSUM_BAD_FRAME
        VIRTIO_TX_TSO_WITHOUT_CSUM
        VIRTIO_TX_TSO_NOT_TCP
        VIRTIO_TX_TSO_EXTENSION
        VIRTIO_TX_TSO_JUMBOGRAM
        VIRTIO_TX_GSO_BAD_LENGTH
        VIRTIO_TX_GSO_HEADERS
        VIRTIO_TX_REASONS
        VIRTIO_USO_SEGMENTS_MAX
        VIRTIO_RX_UNKNOWN
        VIRTIO_RX_VERIFIED
        VIRTIO_RX_NEEDS_CHECKSUM
        VIRTIO_RX_BAD
        VIRTIO_RX_CSUM_NONE
        VIRTIO_RX_CSUM_OFFLOADED
        VIRTIO_RX_CSUM_PARTIAL
        VIRTIO_RX_CSUM_ELSEWHERE
        VIRTIO_RX_GSO_REPAIRED
        VIRTIO_RX_CSUM_BAD_ETHTYPE
        VIRTIO_RX_CSUM_BAD_IPPROTO
        VIRTIO_RX_CSUM_BAD_OFFSET
        VIRTIO_RX_CSUM_INACCESSIBLE_IPPROTO
        VIRTIO_RX_CSUM_FRAGMENT
        VIRTIO_RX_GSO_BAD_TYPE
        VIRTIO_RX_GSO_NO_FEATURE
        VIRTIO_RX_GSO_BAD_SEGMENTS
        VIRTIO_RX_TUNNEL_BAD_TYPE
        VIRTIO_RX_TUNNEL_BAD_OFFSET
        VIRTIO_RX_HDR_SHORT
        VIRTIO_RX_HDR
        VIRTIO_RX_REASONS
        VIRTIO_RX_MENDS

    ctypedef struct virtio_rx_mend:
        uint16_t at
        uint16_t word

    ctypedef struct virtio_rx_offload:
        uint8_t verdict
        uint8_t reason
        uint8_t inner
        uint8_t levels
        uint16_t csum_start
        uint16_t csum_offset
        uint32_t csum_end
        uint16_t outer_start
        uint16_t pseudo
        uint32_t outer_end
        uint32_t segments
        uint32_t nmends
        virtio_rx_mend *mends

    ctypedef struct virtio_offload_counters:
        uint64_t *tx
        uint64_t *rx


cdef class OffloadCounters:
    cdef virtio_offload_counters c

    cdef void add_tx(self, const uint64_t *counts) noexcept
    cdef void add_rx(self, const uint64_t *counts) noexcept
