# A bell whose target may change while others ring it: what a task hands out as its call bell.
#
# Whoever rings holds no lock, so a target that was replaced may be rung once more. It is kept until nobody is at it.
from libc.stdint cimport uint32_t

from virtio.event.notifier cimport Bell, virtio_bell


cdef struct bell_relay:
    virtio_bell bell       # first: what is rung
    virtio_bell *target
    uint32_t ringing       # threads at it


cdef class Relay:
    cdef bell_relay c
    cdef Bell bell         # the target
    cdef list retired      # what was the target, and may still be rung

    cdef int aim(self, Bell bell) except -1
