# Descriptor chaining at the device end, for every chain that is not one descriptor in one piece of memory.
#
# Compiled once, in this module, and not inlined: a burst's loop keeps its registers for the usual chain.
from libc.stdint cimport uint32_t, uint64_t

from virtio._queue cimport *

cdef enum:
    WALK_OK = 0
    WALK_BROKEN = 1    # the fault is latched
    WALK_NO_ROOM = 2   # the pieces do not fit behind those of earlier chains: come again with an empty array

cdef struct walk:
    iovec *segs          # where pieces go
    uint32_t room        # pieces that still fit
    uint32_t room_total  # what the caller's whole array takes
    uint32_t used        # pieces written
    uint32_t ndesc       # descriptors seen
    uint64_t readable    # bytes
    uint64_t writable

cdef bint walk_find(virtio_device_queue *q, uint64_t addr, uint64_t length) noexcept nogil
cdef int walk_split(virtio_device_queue *q, virtio_chain *chain, iovec *segs, uint32_t first, uint32_t nsegs,
                    uint64_t addr, uint64_t word) noexcept nogil
cdef int walk_packed(virtio_device_queue *q, uint32_t slot, uint32_t inuse, virtio_chain *chain, iovec *segs,
                     uint32_t first, uint32_t nsegs, uint64_t addr, uint64_t word) noexcept nogil


cdef inline bint region_holds(const virtio_region *region, uint64_t gpa, uint64_t length) noexcept nogil:
    """Say whether [gpa, gpa + length) lies in region. gpa + length may wrap: only differences are compared."""
    cdef uint64_t offset = gpa - region.gpa
    return offset < region.size and length <= region.size - offset
