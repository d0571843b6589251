# The lock of a queue: a ticket lock, so that owners come in turn.
from libc.stdint cimport uint32_t

from virtio.core.atomic cimport virtio_likely, virtio_relax


cdef extern from "virtio/atomic.h" nogil:
    bint virtio_is_locked(const uint32_t *lock)
    bint virtio_trylock(uint32_t *lock)
    uint32_t virtio_lock_draw(uint32_t *lock)
    bint virtio_lock_serves(const uint32_t *lock, uint32_t number)
    void virtio_unlock(uint32_t *lock)


cdef extern from "sched.h" nogil:
    int sched_yield()


cdef inline void queue_lock(uint32_t *lock) noexcept nogil:
    """Become the owner of a queue, behind those who wait already. A burst is short: spin, then yield to its thread."""
    cdef uint32_t spins = 0
    cdef uint32_t number
    if virtio_likely(virtio_trylock(lock)):
        return
    number = virtio_lock_draw(lock)
    while not virtio_lock_serves(lock, number):
        spins += 1
        if spins & 63 == 0:
            sched_yield()
        else:
            virtio_relax()


cdef inline void queue_unlock(uint32_t *lock) noexcept nogil:
    virtio_unlock(lock)
