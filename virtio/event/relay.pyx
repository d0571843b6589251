"""A bell whose target may change while others ring it."""

from libc.stdint cimport uint32_t

from virtio.event.notifier cimport virtio_bell_ring


cdef extern from *:
    """
    #define virtio_relay_enter(p) __atomic_fetch_add((p), 1, __ATOMIC_SEQ_CST)
    #define virtio_relay_leave(p) __atomic_fetch_sub((p), 1, __ATOMIC_RELEASE)
    #define virtio_relay_count(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
    #define virtio_relay_target(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
    #define virtio_relay_aim(p, v) __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
    """
    uint32_t enter "virtio_relay_enter"(uint32_t *count) nogil
    uint32_t leave "virtio_relay_leave"(uint32_t *count) nogil
    uint32_t count_of "virtio_relay_count"(uint32_t *count) nogil
    virtio_bell *target_of "virtio_relay_target"(virtio_bell **target) nogil
    void aim_at "virtio_relay_aim"(virtio_bell **target, virtio_bell *bell) nogil


cdef void relay_ring(virtio_bell *bell) noexcept nogil:
    cdef bell_relay *relay = <bell_relay *>bell
    enter(&relay.ringing)  # before the target is read: who replaces it sees that we may have it
    virtio_bell_ring(target_of(&relay.target))
    leave(&relay.ringing)


cdef class Relay:
    """Hands rings on to a Bell. It may be rung from any thread; ``aim`` is called by one at a time."""

    def __cinit__(self, Bell bell not None):
        self.retired = []
        self.bell = bell
        self.c.target = &bell.c
        self.c.bell.fd = -1
        self.c.bell.call = relay_ring

    cdef int aim(self, Bell bell) except -1:
        """Ring this one from now on."""
        self.retired.append(self.bell)
        self.bell = bell
        aim_at(&self.c.target, &bell.c)
        if count_of(&self.c.ringing) == 0:  # whoever comes reads the new target
            self.retired.clear()
        return 0
