from libc.stdint cimport uint8_t, uint16_t, uint32_t

from virtio.event.notifier cimport Bell
from virtio.offload.counters cimport virtio_rx_offload
from virtio.offload.net_hdr cimport virtio_net_hdr
from virtio.offload.results cimport Records
from virtio.ports.port cimport virtio_packet
from virtio.virtqueue.driver_queue cimport DriverQueue
from virtio.vtnet.pool cimport Pool
from virtio.vtnet.rxq cimport vtnet_rx


# What is known of a packet that was received, for Python.
cdef struct vtnet_received:
    uint8_t verdict       # VIRTIO_RX_UNKNOWN to VIRTIO_RX_BAD
    uint8_t reason        # VIRTIO_RX_*
    uint16_t reserved
    uint32_t segments     # packets that the device made it of
    virtio_net_hdr hdr


cdef class Received(Records):
    cdef void add(self, const virtio_packet *packet, const virtio_rx_offload *info) noexcept


cdef class VtnetReceive:
    cdef vtnet_rx c
    cdef uint32_t *gone
    cdef readonly DriverQueue queue
    cdef readonly Pool pool
    cdef readonly Bell kick
    cdef readonly Bell interrupt
    cdef void finish(self) noexcept nogil
    cdef uint32_t take(self, uint32_t limit, bint merged) noexcept
    cdef int check(self, bint starved) except -1
