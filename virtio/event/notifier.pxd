# Bells at C level. How they work stands in include/virtio/bell.h.
from libc.stdint cimport int32_t, uint32_t, uint64_t


cdef extern from "virtio/bell.h" nogil:
    ctypedef struct virtio_bell:
        uint32_t rung
        uint32_t asleep
        int32_t fd
        uint32_t always
        uint32_t foreign
        uint32_t dead
        uint64_t rings
        uint64_t writes
        void (*call)(virtio_bell *bell) noexcept nogil
        void *owner
    void virtio_bell_ring(virtio_bell *bell)
    void virtio_bell_wake(virtio_bell *bell)
    void virtio_bell_set_call(virtio_bell *bell, void (*call)(virtio_bell *bell) noexcept nogil)
    void virtio_bell_open(virtio_bell *bell)
    bint virtio_bell_answer(virtio_bell *bell)
    uint64_t virtio_bell_drain(virtio_bell *bell)


cdef class Bell:
    cdef virtio_bell c
    cdef object function   # what is called in place of an eventfd, or None
    cdef object watcher    # what is called besides, or None
    cdef bint own          # fd is ours to close
