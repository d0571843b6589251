# The transmit queue of a network device: frames from a guest's memory to a port.
#
# Frames are sent from where they lie. Headers are copied once, then checked, then used. What the port cannot take
# undone is done on the way (virtio.ports.software_offload). Chains that the port does not take are put back: between
# bursts none is held.
#
# A driver frees what was sent when it is interrupted, and is in no hurry for it: chains are given back at once, but the
# interrupt waits until there are many, or nothing more comes. Linux asks for one after each burst; without the wait a
# guest under load would run its handler once for every few frames.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from virtio.core.iov cimport iovec
from virtio.event.notifier cimport Bell, virtio_bell
from virtio.event.relay cimport Relay
from virtio.event.worker cimport Task, virtio_task
from virtio.ports.port cimport Port, virtio_packet, virtio_port
from virtio.ports.software_offload cimport net_executor
from virtio.virtqueue.device_queue cimport DeviceQueue
from virtio.virtqueue.structs cimport virtio_chain, virtio_device_queue


cdef enum:
    # why a frame was dropped: a virtio_net_hdr_fault, or
    TX_DROP_WRITABLE = 18    # its chain has writable buffers, which may not be
    TX_DROP_SHORT = 19       # fewer bytes than a header and an Ethernet header
    TX_DROP_LONG = 20        # more than VIRTIO_FRAME_MAX
    TX_DROP_PIECES = 21      # in more pieces than VIRTIO_PACKET_PIECES
    TX_DROP_CLOSED = 22      # the link is down
    TX_DROPS = 23


cdef struct net_tx:
    virtio_task task         # first: a virtio_task * is one of these
    virtio_device_queue *q
    virtio_port *port
    uint32_t pair
    uint32_t header          # bytes of virtio_net_hdr
    uint32_t offloads        # VIRTIO_OFFLOAD_* that the guest may leave undone
    uint32_t closed          # frames are dropped
    uint32_t by_hand         # no worker arms it: poll leaves the notifications as they are to be
    uint32_t full            # the port did not take all of the last burst
    uint32_t resume          # segments that are out of the frame that comes next
    uint32_t width           # chains that the next burst pops at most: few, where a turn does not take more
    uint32_t troubled        # trouble was rung
    uint32_t hold            # used descriptors for which the interrupt does not wait any longer; 1: it never does
    uint32_t idle            # polls without work since the last ones
    uint32_t nsegs
    virtio_bell *kick
    virtio_bell *call
    virtio_bell *trouble     # rung once when the guest breaks the queue
    net_executor *executor
    # of one burst
    virtio_chain chains[64]
    virtio_packet packets[64]
    uint32_t chain_of[64]    # which chain each packet is
    uint8_t why[64]          # of each chain, why it is dropped
    uint64_t entries[64]     # of plain chains, as they are used
    iovec *segs              # [nsegs]
    # figures
    uint64_t frames
    uint64_t bytes           # of frames
    uint64_t csum            # frames whose checksum the guest left undone
    uint64_t gso             # frames that it left uncut
    uint64_t gso_bytes       # and their bytes
    uint64_t stalls          # bursts that the port did not take whole
    uint64_t dropped[23]     # TX_DROPS


cdef class NetTransmit(Task):
    cdef net_tx tx
    cdef DeviceQueue queue
    cdef Port port
    cdef Relay relay
    cdef Bell kick_bell
    cdef Bell trouble_bell
