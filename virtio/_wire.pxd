# A wire: frames go straight from the queue they are sent from into a sink, which may come and go at any time.
#
# What cables and loopback are made of. Its lock guards the sink against a concurrent connect; it is taken after the
# lock of the queue that sends and before the sink's.
from libc.stdint cimport uint32_t

from virtio._bell cimport virtio_bell
from virtio._memory cimport iovec
from virtio._port cimport virtio_packet, virtio_sink, virtio_wait
from virtio._port_counts cimport port_counts


cdef extern from "pthread.h" nogil:
    ctypedef unsigned long pthread_t
    pthread_t pthread_self()


cdef struct wire:
    virtio_sink *sink         # NULL: nobody is there
    uint32_t lock
    uint32_t sleepers         # how many wait for room in the sink,
    pthread_t thread          # the last of them,
    virtio_bell *bell         # and what they wait for
    uint32_t drop             # when full; otherwise the sender waits
    uint32_t down             # everything is dropped
    port_counts counts


# Whether a sender's worker sleeps on a wire, and which thread it is: another one's disarm, of the other direction of
# the same queue, is none of its business.
cdef struct wire_wait:
    wire *on                  # NULL: it does not
    pthread_t thread


# As virtio_port's, for one queue.
cdef uint32_t wire_send(wire *w, const virtio_packet *packets, uint32_t n, const iovec *segs) noexcept nogil
cdef bint wire_arm(wire *w, wire_wait *sleeper, virtio_wait *wait) noexcept nogil
cdef void wire_disarm(wire_wait *sleeper) noexcept nogil

# Set the sink, NULL for none. When it returns, nobody touches the last one, nor its bell.
cdef void wire_connect(wire *w, virtio_sink *sink) noexcept nogil
