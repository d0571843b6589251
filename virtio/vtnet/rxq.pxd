# vtnet's receive queue: posts buffers of its pool, takes packets out of them, and posts them again.
#
# A packet's pieces are the pool's buffers. The device is not believed: used ids and lengths are the ring's to check; a
# header's num_buffers is bounded by what came and by the queue, lengths by the largest frame, and the header itself by
# net_hdr_check. What cannot be is dropped, counted by reason, and its buffers are posted again.
#
# rx_take collects packets in rx.packets and rx.segs; they stay there until they are done with, front first (rx_done):
# whoever forwards them may find no room for the rest. rx_post gives the buffers back to the device.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from virtio._ring cimport driver_enable_intr
from virtio.core.iov cimport iovec
from virtio.event.notifier cimport virtio_bell
from virtio.offload.counters cimport virtio_rx_offload
from virtio.offload.net_hdr cimport VIRTIO_OFFLOAD_CSUM, VIRTIO_OFFLOAD_ECN, VIRTIO_OFFLOAD_TSO4, VIRTIO_OFFLOAD_TSO6
from virtio.ports.port cimport virtio_packet
from virtio.virtqueue.structs cimport virtio_completion, virtio_driver_queue, virtio_request, virtio_sg
from virtio.vtnet.lro cimport vtnet_lro
from virtio.vtnet.pool cimport vtnet_pool


cdef enum:
    RX_PIECES = 1024            # buffers of one frame, at most: VIRTIO_PACKET_PIECES
    RX_ROOM = 1024 + 64         # of a burst
    VTNET_LRO_OFFLOADS = VIRTIO_OFFLOAD_CSUM | VIRTIO_OFFLOAD_TSO4 | VIRTIO_OFFLOAD_TSO6 | VIRTIO_OFFLOAD_ECN


# Counters. FreeBSD's are those of sysctl dev.vtnet.N (rxqM), by their names there.
cdef struct vtnet_rx_stats:
    uint64_t ipackets
    uint64_t ibytes            # without headers
    uint64_t ierrors           # dropped, for one of the reasons below
    uint64_t iqdrops           # dropped for want of room behind us
    uint64_t csum              # checksums that the device vouches for
    uint64_t csum_failed       # of which the header could not be true
    uint64_t host_lro          # frames that the device has merged
    uint64_t rescheduled       # times that work was left for the next burst
    uint64_t mergeable_failed  # num_buffers is 0, or says more than came
    uint64_t frame_too_large
    uint64_t frame_too_short   # shorter than a header and an Ethernet header
    uint64_t bad_header        # net_hdr_check
    uint64_t enq_replacement_failed  # a buffer that could not be posted
    uint64_t copied            # bytes copied out of buffers by us


cdef struct vtnet_rx:
    virtio_driver_queue *q
    virtio_bell *kick
    virtio_bell *call
    vtnet_pool *pool
    uint32_t hdr_size
    uint32_t separate     # the header has a descriptor of its own: legacy without ANY_LAYOUT
    uint32_t mergeable
    uint32_t offloads     # VIRTIO_OFFLOAD_*: what the device may leave undone
    uint32_t given        # and what whoever gets packets from here finds undone: LRO adds to it
    uint32_t frame_max
    uint32_t slots        # ring slots of a buffer
    uint32_t pieces_max   # buffers of a frame
    # packets that were taken, from the first not done with
    uint32_t first
    uint32_t npackets
    uint32_t nsegs        # segs and buffers of all of them
    uint32_t ngone        # buffers to be posted
    uint32_t merged       # lro has these packets
    uint32_t typed        # one of these packets has a gso_type: the device merged or did not cut it
    vtnet_lro *lro        # or NULL
    uint32_t came         # completions that were dequeued and not looked at: out[at .. came)
    uint32_t at
    virtio_completion out[64]
    vtnet_rx_stats stats
    uint64_t header_faults[32]    # of VIRTIO_NET_HDR_FAULTS
    uint64_t reasons[64]          # of VIRTIO_RX_REASONS
    virtio_packet packets[64]
    iovec segs[1088]
    uint32_t buffers[1088]        # of segs
    uint32_t *gone                # [pool.count]
    virtio_request req[64]
    virtio_sg sg[128]


cdef inline void rx_again(vtnet_rx *rx, uint32_t buffer) noexcept nogil:
    """Post a buffer again, with the next rx_post."""
    rx.gone[rx.ngone] = buffer
    rx.ngone += 1


cdef void rx_open(vtnet_rx *rx, virtio_driver_queue *q, virtio_bell *kick, virtio_bell *call, vtnet_pool *pool,
                  uint32_t hdr_size, bint mergeable, bint separate, uint32_t offloads, uint32_t frame_max,
                  uint32_t *gone) noexcept nogil
# After a reset of the queue: nothing is posted or taken. The pool is the caller's to fill again.
cdef void rx_reset(vtnet_rx *rx) noexcept nogil
# Take up to limit packets, at most VIRTIO_BURST, besides those that are not done with; return how many there are then.
# The caller holds the lock, as for all of these.
cdef uint32_t rx_take(vtnet_rx *rx, uint32_t limit) noexcept nogil
# The first n packets are done with, and their buffers may be posted.
cdef void rx_done(vtnet_rx *rx, uint32_t n) noexcept nogil
# The same of packets after LRO, if there is any: rx_packets(rx)[:n], with pieces in rx_segs(rx).
cdef uint32_t rx_take_merged(vtnet_rx *rx, uint32_t limit) noexcept nogil
cdef void rx_done_merged(vtnet_rx *rx, uint32_t n) noexcept nogil


cdef inline virtio_packet *rx_packets(vtnet_rx *rx) noexcept nogil:
    if rx.merged:
        return &rx.lro.packets[rx.lro.first]
    return &rx.packets[rx.first]


cdef inline iovec *rx_segs(vtnet_rx *rx) noexcept nogil:
    if rx.merged:
        return &rx.lro.segs[0]
    return &rx.segs[0]


cdef inline bint rx_waits(vtnet_rx *rx) noexcept nogil:
    """Ask for an interrupt when a packet comes; True: one waits already."""
    return rx.npackets or rx.at != rx.came or driver_enable_intr(rx.q)


# Post what may be, and what is free in the pool; return the bell to ring when the lock is free, or NULL.
cdef virtio_bell *rx_post(vtnet_rx *rx) noexcept nogil
# The first n packets are done with, and somebody else has their buffers.
cdef void rx_forget(vtnet_rx *rx, uint32_t n) noexcept nogil

# Hold a packet's header against the packet, of which the headers at least are at p; whether it can be true. Counts.
cdef bint rx_classify(vtnet_rx *rx, const virtio_packet *packet, const uint8_t *p,
                      virtio_rx_offload *info) noexcept nogil
# A packet's headers in one piece.
cdef const uint8_t *rx_headers(const virtio_packet *packet, const iovec *pieces) noexcept nogil
# Store what is mended, and compute what NEEDS_CHECKSUM says is missing, in the buffers.
cdef void rx_complete(const virtio_packet *packet, const iovec *pieces, const virtio_rx_offload *info) noexcept nogil
