# The TAP port at C level: frames between a queue and the Linux kernel, one readv or writev each.
from libc.stdint cimport uint8_t, uint32_t

from virtio.ports.counts cimport port_counts
from virtio.ports.port cimport Port


cdef struct tap_side:             # one direction of one queue
    uint32_t lock                 # of what may change while frames pass: fd, attached, gone
    int fd                        # -1: closed
    uint32_t header               # bytes of virtio_net_hdr before each frame; 0: none
    uint32_t attached             # TUNSETQUEUE
    uint32_t gone                 # the interface was deleted
    uint8_t *scratch              # [VIRTIO_FRAME_MAX], for what cannot go straight; NULL until then
    port_counts counts


cdef class Tap(Port):
    cdef tap_side *_sides[2]      # SEND and RECEIVE: [queues] each
    cdef readonly str name
    cdef readonly int header_size
    cdef readonly uint32_t known_offloads
    cdef readonly uint32_t granted_offloads
    cdef tuple _fds

    cdef void _set_attached(self, int queue, bint attached) noexcept
