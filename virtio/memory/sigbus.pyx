"""Mappings of files that their owner may cut shorter: zeroes in place of SIGBUS. The one table of this process."""

import signal

from cpython.exc cimport PyErr_SetFromErrno

from virtio.core import signals

signals.take(signal.SIGBUS)


cdef extern from "virtio/truncation.h" nogil:
    int virtio_sigbus_take()
    virtio_guard *virtio_guard_add(void *base, size_t length, size_t unit, int fd)
    void virtio_guard_remove(virtio_guard *guard)
    int virtio_guard_is_lost(const virtio_guard *guard)
    void virtio_guard_touch(const void *start, size_t length)


cdef virtio_guard *guard_add(void *base, size_t length, size_t unit, int fd) except NULL:
    cdef virtio_guard *guard
    if virtio_sigbus_take() < 0:
        PyErr_SetFromErrno(OSError)
    guard = virtio_guard_add(base, length, unit, fd)
    if guard is NULL:
        raise MemoryError()
    return guard


cdef void guard_remove(virtio_guard *guard) noexcept nogil:
    virtio_guard_remove(guard)


cdef bint guard_is_lost(const virtio_guard *guard) noexcept nogil:
    return virtio_guard_is_lost(guard)


cdef void guard_touch(const void *start, size_t length) noexcept nogil:
    virtio_guard_touch(start, length)
