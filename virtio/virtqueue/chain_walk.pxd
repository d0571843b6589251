# Descriptor chaining at the device end, for every chain that is not one descriptor in one piece of memory.
#
# Compiled once, in this module, and not inlined: a burst's loop keeps its registers for the usual chain.
from libc.stdint cimport uint32_t, uint64_t

from virtio.core.iov cimport iovec
from virtio.virtqueue.structs cimport virtio_chain, virtio_device_queue, virtio_packed_desc

cdef enum:
    WALK_OK = 0
    WALK_BROKEN = 1    # the fault is latched
    WALK_NO_ROOM = 2   # the pieces do not fit behind those of earlier chains: come again with an empty array
    # Pieces that the chains of a burst have together, but for the first, which may be of any length: a burst is short,
    # whatever a guest makes of a ring of 32768 descriptors
    WALK_BURST = 4096
    WALK_ENOUGH = 3    # so many were walked

cdef struct walk:
    iovec *segs          # where pieces go
    uint32_t room        # pieces that the chain may have
    uint32_t used        # pieces written
    uint32_t ndesc       # descriptors seen
    uint64_t readable    # bytes
    uint64_t writable

# Whether a descriptor is one piece of memory after all, in another region, which is q.hit from then on. other: those of
# its flags that make it more than one descriptor.
cdef bint walk_is_single(virtio_device_queue *q, uint64_t addr, uint32_t length, uint64_t other) noexcept nogil
cdef int walk_split(virtio_device_queue *q, virtio_chain *chain, iovec *segs, uint32_t first, uint32_t nsegs,
                    uint64_t addr, uint64_t word) noexcept nogil
cdef int walk_packed(virtio_device_queue *q, const virtio_packed_desc *ring, uint32_t slot, uint32_t inuse,
                     virtio_chain *chain, iovec *segs, uint32_t first, uint32_t nsegs, uint64_t addr,
                     uint64_t word) noexcept nogil


cdef inline bint range_holds(uint64_t gpa, uint64_t size, uint64_t addr, uint32_t length) noexcept nogil:
    """Say whether [addr, addr + length) lies in [gpa, gpa + size), and is not empty.

    addr + length may wrap: only differences are compared. Of no bytes, length - 1 is more than any region has.
    """
    cdef uint64_t offset = addr - gpa
    return offset < size and <uint64_t>length - 1 < size - offset


cdef inline void put_piece(iovec *seg, uint64_t host, uint32_t length) noexcept nogil:
    seg.iov_base = <void *>host
    seg.iov_len = length
