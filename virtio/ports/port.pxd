# Ports and sinks at C level. What each function does stands in include/virtio/port.h.
from libc.stdint cimport int64_t, uint32_t

from virtio.core.atomic cimport virtio_load32
from virtio.core.iov cimport iovec
from virtio.event.notifier cimport virtio_bell, virtio_bell_ring
from virtio.event.worker cimport virtio_turn, virtio_wait
from virtio.offload.net_hdr cimport virtio_net_hdr


cdef extern from "virtio/port.h" nogil:
    enum:
        VIRTIO_BURST
        VIRTIO_FRAME_MAX
        VIRTIO_FRAME_MIN
        VIRTIO_PACKET_PIECES
        VIRTIO_WORK_SEGMENT

    ctypedef struct virtio_packet:
        virtio_net_hdr hdr
        uint32_t first
        uint32_t nsegs
        uint32_t len
        uint32_t done

    ctypedef struct virtio_sink:
        uint32_t *lock
        uint32_t (*deliver)(virtio_sink *sink, const virtio_packet *packets, uint32_t n, const iovec *segs,
                            virtio_turn *turn) noexcept nogil
        uint32_t (*reserve)(virtio_sink *sink, iovec *to, uint32_t limit, virtio_turn *turn) noexcept nogil
        void (*commit)(virtio_sink *sink, const virtio_net_hdr *hdr, uint32_t len) noexcept nogil
        virtio_bell *(*flush)(virtio_sink *sink) noexcept nogil
        bint (*arm)(virtio_sink *sink, virtio_wait *wait) noexcept nogil
        void (*disarm)(virtio_sink *sink) noexcept nogil
        uint32_t offloads
        uint32_t frame_max

    ctypedef struct virtio_port:
        uint32_t (*send)(virtio_port *port, uint32_t queue, const virtio_packet *packets, uint32_t n,
                         const iovec *segs, virtio_turn *turn) noexcept nogil
        uint32_t (*receive)(virtio_port *port, uint32_t queue, virtio_sink *sink, uint32_t limit,
                            virtio_turn *turn) noexcept nogil
        bint (*arm_send)(virtio_port *port, uint32_t queue, virtio_wait *wait) noexcept nogil
        bint (*arm_receive)(virtio_port *port, uint32_t queue, virtio_wait *wait) noexcept nogil
        void (*disarm)(virtio_port *port, uint32_t queue) noexcept nogil
        virtio_bell *(*flush)(virtio_port *port, uint32_t queue) noexcept nogil
        void (*rang)(virtio_port *port, uint32_t queue) noexcept nogil
        uint32_t offloads
        uint32_t queues
        uint32_t work
        void *owner


# Base of all ports. A subclass fills in `c` in its __cinit__, and overrides what it needs.
cdef class Port:
    cdef virtio_port c
    cdef object user              # what it is attached to (a NetDevice, a pump), or None
    cdef object __weakref__

    # Let go of the locks of its own, which a thread that is not in this process may have.
    cdef void free_locks(self) noexcept

    # The queue that frames go to: for ports that deliver of themselves. NULL: it is gone, and is not touched once this
    # returns. Called with the GIL, and no queue's lock held.
    # `owner` is what the sink lies in: kept as long as it may be touched.
    cdef int connect(self, uint32_t queue, virtio_sink *sink, object owner) except -1


cdef inline uint32_t port_offloads(const virtio_port *port) noexcept nogil:
    """What a frame that is sent may leave undone: of some ports it changes while they are used."""
    return virtio_load32(&port.offloads)


cdef inline virtio_bell *port_flush(virtio_port *port, uint32_t queue) noexcept nogil:
    """After sends, with the sending queue's lock still held. Return what is to be rung when it is free."""
    return NULL if port.flush is NULL else port.flush(port, queue)


cdef inline void port_ring(virtio_port *port, uint32_t queue, virtio_bell *bell) noexcept nogil:
    """Ring what port_flush gave, with no lock held."""
    if bell is not NULL:
        virtio_bell_ring(bell)
        port.rang(port, queue)


cdef inline bint turn_is_full(const virtio_turn *turn, uint32_t taken, uint32_t done) noexcept nogil:
    """Whether frames were left for want of room, and not because the turn is over: then something was done.

    Of a call that took fewer than it was given. done: that of its first packet, before.
    """
    return turn.left > 0 or (taken == 0 and turn.resume <= done)


cdef inline uint32_t turn_resume(virtio_turn *turn, uint32_t taken, uint32_t done) noexcept nogil:
    """Return `done` of the packet that comes next, after a call that was given the turn with its resume 0."""
    if taken == 0 and turn.resume == 0:
        return done
    return turn.resume


cdef inline uint32_t sink_deliver(virtio_sink *sink, virtio_packet *packets, uint32_t n, const iovec *segs,
                                  virtio_turn *turn, uint32_t *resume) noexcept nogil:
    """Deliver, for a port that keeps in *resume where it stopped amid a frame, which it gives again."""
    cdef uint32_t taken
    packets.done = resume[0]
    turn.resume = 0
    taken = sink.deliver(sink, packets, n, segs, turn)
    resume[0] = turn_resume(turn, taken, resume[0])
    turn.resume = 0
    return taken
