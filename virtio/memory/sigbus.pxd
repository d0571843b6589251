# Mappings of files that their owner may cut shorter. How it works stands in include/virtio/truncation.h; these are its
# functions for other extensions, which must share one table.
from libc.stddef cimport size_t


cdef extern from *:
    """
    typedef struct virtio_guard virtio_guard;
    """
    ctypedef struct virtio_guard:
        pass


# Have [base, base + length), in pages of unit bytes, turn to zeroes instead of raising SIGBUS, and fd, an eventfd, be
# written to. Takes the signal if nobody did yet. Raises OSError, MemoryError.
cdef virtio_guard *guard_add(void *base, size_t length, size_t unit, int fd) except NULL
# To be called before the mapping is removed.
cdef void guard_remove(virtio_guard *guard) noexcept nogil
cdef bint guard_is_lost(const virtio_guard *guard) noexcept nogil
# A system call that had these bytes ended in EFAULT: if they are guarded, they turn to zeroes; else nothing is touched.
cdef void guard_touch(const void *start, size_t length) noexcept nogil
