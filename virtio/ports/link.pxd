# A wire: frames go straight from the queue they are sent from into a sink, which may come and go at any time.
#
# What cables and loopback are made of. Its lock guards the sink against a concurrent connect; it is taken after the
# lock of the queue that sends and before the sink's. Both are held from the first send of a group to the flush: a lock
# waits for every store before it, and so for the copy of the last frames.
#
# A sender that finds no room looks again after a while. It does not sleep on the sink's bell: that is another device's,
# which may be gone before the sleeper is awake.
from libc.stdint cimport int64_t, uint32_t

from virtio.core.atomic cimport virtio_store32
from virtio.core.iov cimport iovec
from virtio.event.notifier cimport virtio_bell
from virtio.event.worker cimport virtio_turn, virtio_wait
from virtio.ports.counts cimport port_counts
from virtio.ports.port cimport virtio_packet, virtio_sink


cdef struct wire:
    virtio_sink *sink         # NULL: nobody is there
    uint32_t lock
    uint32_t drop             # when full; otherwise the sender waits
    uint32_t down             # everything is dropped
    port_counts counts


# A queue that sends on wires.
cdef struct wire_sender:
    int64_t since             # us: it has waited for room since then; 0: it does not, -1: it will from when it is asked
    wire *open                # of sends that were not flushed yet: its lock and the sink's are held; or NULL
    uint32_t ringing          # bells of sinks that are about to be rung: these must not go yet


# As virtio_port's, for one queue.
cdef uint32_t wire_send(wire *w, wire_sender *sender, const virtio_packet *packets, uint32_t n, const iovec *segs,
                        virtio_turn *turn) noexcept nogil
cdef bint wire_arm(const wire *w, wire_sender *sender, virtio_wait *wait) noexcept nogil

# As virtio_port's flush and rang.
cdef virtio_bell *wire_flush(wire_sender *sender) noexcept nogil
cdef void wire_rang(wire_sender *sender) noexcept nogil

# Note the owner of a sink that was connected (None: of none). Those before it are let go unless a bell may still be
# rung; then they stay until the next connect.
cdef int keep(list owners, object owner, bint ringing) except -1

# In a child of fork(): a thread that was sending is not here, and its lock goes. Locks of sinks are the queues' matter.
cdef inline void wire_free(wire *w, wire_sender *sender) noexcept nogil:
    virtio_store32(&w.lock, 0)
    sender.open = NULL
    sender.ringing = 0


# Set the sink, NULL for none. When it returns, nobody touches the last one.
cdef void wire_connect(wire *w, virtio_sink *sink) noexcept nogil
