# Guest memory at C level: address translation for the rings and the data path.
# Callers hold the burst lock of a queue bound to the memory (or the GIL), so the map does not change under them.
from libc.stdint cimport uint8_t, uint32_t, uint64_t, UINT64_MAX
from libc.stddef cimport size_t

from virtio.core.atomic cimport virtio_or8
from virtio.core.iov cimport iovec
from virtio.memory.region cimport Region


cdef extern from "virtio/memory.h" nogil:
    enum:
        VIRTIO_REGIONS_MAX
        VIRTIO_REGIONS_FLAT
        VIRTIO_PAGE_SHIFT

    ctypedef struct virtio_region:
        uint64_t gpa
        uint64_t size
        uint8_t *host
        uint64_t uaddr

    ctypedef struct virtio_memory:
        uint64_t first[8]
        virtio_region *regions
        uint32_t count
        uint32_t generation
        uint8_t *log
        uint64_t log_size


cdef inline const virtio_region *memory_region(const virtio_memory *m, uint64_t gpa) noexcept nogil:
    """Return the last region that starts at or below gpa, or NULL. The caller checks its end."""
    cdef uint32_t n = 0
    cdef uint32_t low = 0
    cdef uint32_t half
    if m.count <= VIRTIO_REGIONS_FLAT:
        # eight compares without a branch: no misprediction, whichever region comes next. The last address compares
        # above the padding too, so the padding entries repeat the last region.
        n = ((gpa >= m.first[0]) + (gpa >= m.first[1]) + (gpa >= m.first[2]) + (gpa >= m.first[3])
             + (gpa >= m.first[4]) + (gpa >= m.first[5]) + (gpa >= m.first[6]) + (gpa >= m.first[7]))
    else:
        n = m.count
        while n > 1:
            half = n >> 1
            low += half * (m.regions[low + half].gpa <= gpa)
            n -= half
        n = low + (m.regions[low].gpa <= gpa)
    if n == 0:
        return NULL
    return &m.regions[n - 1]


cdef inline uint8_t *memory_translate(const virtio_memory *m, virtio_region *hit, uint64_t gpa,
                                      uint64_t length) noexcept nogil:
    """Return the host address of [gpa, gpa + length), or NULL unless one region holds it all.

    hit is the caller's copy of the region that its last lookup found (size 0 when there is none). gpa + length may
    wrap: only differences are compared.
    """
    cdef uint64_t offset = gpa - hit.gpa
    cdef const virtio_region *region
    if offset < hit.size and length <= hit.size - offset:
        return hit.host + offset
    region = memory_region(m, gpa)
    if region is NULL:
        return NULL
    offset = gpa - region.gpa
    if offset >= region.size or length > region.size - offset:
        return NULL
    hit[0] = region[0]
    return region.host + offset


cdef inline int memory_gather(const virtio_memory *m, uint64_t gpa, uint64_t length, iovec *out,
                              uint32_t limit) noexcept nogil:
    """Write [gpa, gpa + length) as pieces of host memory to out, crossing from region to adjacent region.

    Returns the number of pieces, -1 when a byte of it is outside of memory, -2 when more than limit pieces are needed.
    """
    cdef const virtio_region *region
    cdef uint64_t offset
    cdef uint64_t part
    cdef uint32_t n = 0
    while length > 0:
        region = memory_region(m, gpa)
        if region is NULL:
            return -1
        offset = gpa - region.gpa
        if offset >= region.size:
            return -1
        part = region.size - offset
        if part > length:
            part = length
        if n == limit:
            return -2
        out[n].iov_base = region.host + offset
        out[n].iov_len = part
        n += 1
        length -= part
        gpa += part
        if gpa == 0 and length > 0:  # past the last address there is: adjacent to nothing
            return -1
    return <int>n


cdef inline void memory_log(const virtio_memory *m, uint64_t gpa, uint64_t length) noexcept nogil:
    """Mark the pages of [gpa, gpa + length) dirty in the vhost log, if there is one. Call it after the write."""
    cdef uint64_t page
    cdef uint64_t last
    cdef uint32_t mask
    if m.log is NULL or length == 0:
        return
    page = gpa >> VIRTIO_PAGE_SHIFT
    last = (gpa + (length - 1)) >> VIRTIO_PAGE_SHIFT
    while page <= last and (page >> 3) < m.log_size:
        mask = <uint32_t>0xff << (page & 7)
        if last - page < 8 - (page & 7):  # the last byte of the log that is touched
            mask &= <uint32_t>0xff >> (7 - (last & 7))
        virtio_or8(m.log + (page >> 3), <uint8_t>mask)
        page = (page | 7) + 1


cdef inline uint64_t memory_gpa_of(const virtio_memory *m, const void *host, uint64_t length) noexcept nogil:
    """Return the guest address of [host, host + length), or UINT64_MAX when no one region holds it all."""
    cdef uint32_t i
    cdef uint64_t offset
    for i in range(m.count):
        offset = <uint64_t>host - <uint64_t>m.regions[i].host
        if offset < m.regions[i].size and length <= m.regions[i].size - offset:
            return m.regions[i].gpa + offset
    return UINT64_MAX


cdef struct memory_span:   # a range of guest memory, found
    iovec part[509]
    uint32_t parts
    uint32_t first         # index of the region that holds part[0]; part[i] is in the i-th after it


cdef class MemoryUser:
    """Something that keeps host addresses: a queue. It is told before and after the map changes."""
    cdef object __weakref__
    cdef void hold(self) noexcept       # stop: take the burst lock
    cdef void remap(self) noexcept      # translate everything again; what is gone latches a fault
    cdef void release(self) noexcept    # go on


cdef class GuestMemory:
    cdef virtio_memory c
    cdef tuple _regions       # of Region, sorted by gpa: keeps their buffers alive
    cdef list _users          # weak references to MemoryUser
    cdef Region _log          # what holds the buffer behind c.log; None when off
    cdef bint _own_log        # the buffer is ours: it grows with the map
    cdef object _lock         # one change at a time
    cdef object __weakref__
    cdef tuple _find(self, object gpa, object length, memory_span *found, uint32_t limit)
    cdef object _reverse(self, object start, object length, bint by_uaddr)
    cdef uint64_t _load(self, object gpa, uint32_t size) except? 0x0bad0bad0bad0bad
    cdef int _store(self, object gpa, uint64_t value, uint32_t size) except -1
    cdef int _wrote(self, uint64_t gpa, uint64_t length) except -1
    cdef int _install(self, tuple regions) except -1
    cdef int _set_log(self, Region log, bint own) except -1
    cdef list _live_users(self)
    cdef int attach(self, MemoryUser user) except -1
