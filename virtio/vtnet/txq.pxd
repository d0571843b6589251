# vtnet's transmit queue: a virtio_sink (include/virtio/port.h) over a driver's ring and its pools of buffers.
#
# A frame is written into a buffer in guest memory, its header in front of it. It becomes visible to the device with the
# flush; up to VIRTIO_BURST frames are collected before. What a header leaves undone beyond what was negotiated is done
# here: checksums in place, segments straight into buffers of their own.
#
# There are small buffers, for frames of the MTU; and with segmentation offloads large ones, in which frames of up to
# VIRTIO_FRAME_MAX bytes end (reserve) or lie whole (deliver).
#
# Completions. Transmit interrupts are off. Buffers are taken back at the start of a burst, once less than a quarter of
# the ring is free (FreeBSD's vtnet_txq threshold), and when one is wanted and none is there. When a worker goes to
# sleep while the device has something of ours, it sleeps for TX_SLEEP_US, and twice as long each time that nothing
# came back, up to TX_SLEEP_MAX_US: within that time buffers are taken back when traffic stops. An interrupt besides is
# asked for only if TX_INTR_PACKETS packets went out since the last one that was, so that a queue that fills and
# empties does not cost one each time.
#
# A frame walks through txq.pyx (VtnetTransmit, then tx_send_pieces) and the ring with the flush. tx_offload.pxi has the
# frames that ask for an offload, tx_sink.pxi those that a port brings. txq.pyx includes both.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from virtio.core.iov cimport iovec
from virtio.event.notifier cimport Bell, virtio_bell
from virtio.event.worker cimport virtio_wait
from virtio.offload.net_hdr cimport virtio_net_hdr
from virtio.ports.port cimport virtio_sink
from virtio.virtqueue.driver_queue cimport DriverQueue
from virtio.virtqueue.structs cimport virtio_driver_queue, virtio_request, virtio_sg
from virtio.vtnet.pool cimport Pool, vtnet_pool


cdef enum:
    TX_INTR_PACKETS = 2048  # packets for one interrupt
    # large frames: what is read from a port is sent on, and its buffers are used again, while it is in the cache
    TX_LARGE_OUT = 2          # large buffers that are out when a burst begins by taking back
    TX_BURST_BYTES = 0x20000  # of a burst that is read from a port
    TX_SLEEP_US = 200
    TX_SLEEP_MAX_US = 64000
    TX_NO_LIMIT = 0xffffffff
    IS_VIEW = 0x80000000      # in a cookie


# Counters. FreeBSD's are those of sysctl dev.vtnet.N.txqM, by their names there.
cdef struct vtnet_tx_stats:
    uint64_t opackets     # frames handed to the device; of a frame cut in software each segment
    uint64_t obytes       # bytes of them, without headers
    uint64_t omcasts      # to a multicast or broadcast address
    uint64_t csum         # left to the device
    uint64_t tso          # segmentation left to the device (TCP or UDP)
    uint64_t rescheduled  # times the ring or the buffers ran out
    uint64_t segments     # made in software
    uint64_t too_large    # dropped: larger than a buffer, or than the MTU allows
    uint64_t too_short    # dropped: under 14 bytes
    uint64_t refused      # dropped: asked for more than device and software can do
    uint64_t bad_header   # dropped: a header that cannot be
    uint64_t copied       # bytes copied into buffers by us
    uint64_t intrs        # interrupts asked for


cdef struct vtnet_tx:
    virtio_sink sink      # first: a virtio_sink * is a vtnet_tx *
    virtio_driver_queue *q
    virtio_bell *kick
    virtio_bell *call     # NULL: no interrupt
    vtnet_pool *small
    vtnet_pool *large     # NULL: none
    uint32_t hdr_size
    uint32_t separate     # the header has a descriptor of its own: legacy without ANY_LAYOUT
    uint32_t slots        # ring slots that a frame takes at most
    uint32_t threshold    # take back when fewer are free
    uint32_t limit        # bytes of a frame without VLAN tags: the MTU and an Ethernet header; or TX_NO_LIMIT
    uint32_t usual        # frames of VIRTIO_FRAME_MIN and up to so many bytes more need no other look at their size
    uint32_t wanting      # the last caller that asked found no room
    # of the burst that is being collected
    uint32_t nreq
    uint32_t nsg
    uint32_t nslots
    uint32_t bytes        # since the last flush
    uint64_t intr_at      # opackets at the last interrupt that was asked for
    int64_t sleep_us      # of the next sleep
    vtnet_tx_stats stats
    uint64_t reasons[64]  # of VIRTIO_TX_REASONS: what became of offloads that were asked for
    virtio_request req[64]
    virtio_sg sg[192]


cdef struct vtnet_place:  # the buffer that a frame is copied into, or lies in already
    uint8_t *frame
    uint32_t small
    uint32_t large
    bint view       # Python has the buffer: the frame lies there already


cdef inline uint64_t cookie_of(uint32_t small, uint32_t large, bint view) noexcept nogil:
    """The cookie of a chain: its buffers, and whether Python may have them."""
    return small | <uint64_t>large << 32 | (IS_VIEW if view else 0)


# The caller holds the lock for all of these. Those that the pump calls, it calls once a burst.
#
# Take back the chains that the device has used; return how many frames.
cdef uint32_t tx_reclaim(vtnet_tx *tx) noexcept nogil
# What precedes a burst.
cdef void tx_begin(vtnet_tx *tx) noexcept nogil
# Whether there is room for a frame of len bytes; looks at the ring if there seems to be none.
cdef bint tx_has_room(vtnet_tx *tx, uint32_t len) noexcept nogil
# Drop an unusual frame if it is too short, or longer than the MTU allows; return whether that was done. Not inlined:
# a frame's path keeps its registers.
cdef bint tx_drop_unfit(vtnet_tx *tx, const virtio_net_hdr *hdr, const iovec *pieces, uint32_t len) noexcept nogil
# The sink's functions of these names (include/virtio/port.h).
cdef virtio_bell *tx_flush(virtio_sink *sink) noexcept nogil
cdef bint tx_arm(virtio_sink *sink, virtio_wait *wait) noexcept nogil
cdef void tx_disarm(virtio_sink *sink) noexcept nogil


cdef class VtnetTransmit:
    cdef vtnet_tx c
    cdef readonly DriverQueue queue
    cdef readonly Pool small
    cdef readonly Pool large
    cdef readonly Bell kick
    cdef readonly Bell interrupt
