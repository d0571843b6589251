# Figures: added to by whoever holds the queue's lock, read by any thread without it. A reader must not wait for a lock
# under which a port may run Python, which may ask for figures itself.
from libc.stdint cimport uint64_t

from virtio.core.atomic cimport virtio_load64, virtio_store64


cdef inline void add_count(uint64_t *counter, uint64_t n) noexcept nogil:
    virtio_store64(counter, counter[0] + n)


cdef inline uint64_t counted(const uint64_t *counter) noexcept nogil:
    return virtio_load64(counter)
