# The receive queue of a network device: frames from a port into a guest's buffers.
#
# It is a virtio_sink (include/virtio/port.h) over a DeviceQueue, and the task that asks the port for frames.
# A frame is copied once, or read by the port straight into the guest's memory; its virtio_net_hdr is written beside it.
# What the guest does not accept undone (sink.offloads) is done here: a checksum during or after the copy, segments
# straight into the buffers.
#
# Chains are popped for a burst, and those not used are put back by flush: between bursts none is held. What a port has
# read and finds no room after all, since how large it is shows only then, waits in memory of our own.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from virtio.core.iov cimport iovec
from virtio.event.notifier cimport Bell, virtio_bell
from virtio.event.relay cimport Relay
from virtio.event.worker cimport Task, virtio_task, virtio_turn
from virtio.netdev.filter cimport net_filter
from virtio.offload.segmenter cimport virtio_segmenter
from virtio.ports.port cimport Port, virtio_packet, virtio_port, virtio_sink
from virtio.virtqueue.device_queue cimport DeviceQueue
from virtio.virtqueue.structs cimport virtio_chain, virtio_device_queue


cdef enum:
    RX_CHAINS = 1088         # chains held at once: a frame has at most VIRTIO_PACKET_PIECES

    # why a frame was dropped
    RX_DROP_CLOSED = 0       # the link is down, or the queue pair is not in use
    RX_DROP_BROKEN = 1       # the guest broke the queue
    RX_DROP_TOO_LARGE = 2    # no buffer, or not all of them together, takes it
    RX_DROP_SEGMENT = 3      # it is to be cut, and cannot be
    RX_DROP_CHECKSUM = 4     # there is no checksum field where the header says
    RX_DROP_MTU = 5          # it is longer than the MTU that was negotiated, uncut or in segments
    RX_DROPS = 6

    RX_NO_LIMIT = 0xffffffff


cdef struct net_rx:
    virtio_sink sink         # first: a virtio_sink * is one of these
    virtio_task task         # second: rx_of counts on it
    virtio_device_queue *q
    uint32_t header          # bytes of virtio_net_hdr
    uint32_t mergeable
    uint32_t flags           # of a header, those that the guest accepts
    uint32_t limit           # bytes of a frame without VLAN tags: the MTU and an Ethernet header; or RX_NO_LIMIT
    uint32_t closed          # frames are dropped
    uint32_t idle            # and the port is not asked for any
    uint32_t draining        # the port is not asked for any; what was read of it is put in
    uint32_t used            # chains[0 .. used) are written, [used .. popped) are free
    uint32_t popped
    uint32_t published       # something was, since the last flush
    uint32_t stalled         # a frame found no room
    uint32_t size_seen       # bytes of a buffer that was used: what others may have
    uint64_t wanted          # bytes, header included, that it found no room for
    virtio_chain *chains     # [RX_CHAINS]
    iovec *segs              # [nsegs]
    uint32_t nsegs
    uint32_t reserved        # chains of the last reserve,
    uint64_t room            # and bytes of frame in them
    uint64_t entries[64]     # of plain chains, as they are used
    uint8_t *scratch         # [VIRTIO_FRAME_MAX] what a port may read beyond them
    uint32_t pending         # a frame that was read waits in scratch for room:
    virtio_packet waiting
    iovec waiting_piece
    net_filter filter
    virtio_segmenter plan    # of a frame that is cut
    virtio_turn *turn        # of the task that delivers or reserves
    # of the task
    virtio_port *port
    uint32_t pair
    uint32_t by_hand         # no worker arms it: poll leaves the notifications as they are to be
    uint32_t blocked         # the last receive stopped for want of room
    uint32_t troubled        # trouble was rung
    virtio_bell *kick
    virtio_bell *call
    virtio_bell *trouble     # rung once when the guest breaks the queue
    # figures
    uint64_t frames
    uint64_t bytes           # of frames
    uint64_t merged          # frames in more than one buffer
    uint64_t csum            # frames given with the checksum undone,
    uint64_t gso             # and uncut
    uint64_t gso_bytes
    uint64_t cut             # frames cut
    uint64_t checksums       # completed
    uint64_t filtered
    uint64_t bad_chains      # not writable, or smaller than a header
    uint64_t stalls
    uint64_t dropped[6]      # RX_DROPS


cdef class NetReceive(Task):
    cdef net_rx rx
    cdef DeviceQueue queue
    cdef Port port
    cdef Relay relay
    cdef Bell kick_bell
    cdef Bell trouble_bell
    cdef readonly bint connected
