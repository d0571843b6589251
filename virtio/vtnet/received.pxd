# What is known of frames that were received, for Python: a record for each.
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from virtio.offload.counters cimport virtio_rx_offload
from virtio.offload.net_hdr cimport virtio_net_hdr
from virtio.offload.results cimport Records
from virtio.ports.port cimport virtio_packet


cdef struct vtnet_received:
    uint8_t verdict       # VIRTIO_RX_UNKNOWN to VIRTIO_RX_BAD
    uint8_t reason        # VIRTIO_RX_*
    uint16_t reserved
    uint32_t segments     # packets that the device made it of
    virtio_net_hdr hdr


cdef class Received(Records):
    pass


# Return an empty Received with room for limit records.
cdef Received new_received(uint32_t limit)


cdef inline void received_add(Received received, const virtio_packet *packet,
                              const virtio_rx_offload *info) noexcept:
    """Add the record of a packet; there is room for it."""
    cdef vtnet_received *record = <vtnet_received *>received.items + received.shape[0]
    record.verdict = info.verdict
    record.reason = info.reason
    record.reserved = 0
    record.segments = info.segments
    record.hdr = packet.hdr
    received.shape[0] += 1
