# Pools of packet buffers in guest memory: what a driver's queue sends from and receives into.
#
# All buffers of a pool have one size and lie in one piece of guest memory. Each has VTNET_HEAD bytes in front of its
# frame, of which the last ones take the virtio_net_hdr: header and frame are one run of bytes, and the frame starts on
# a cache line. The stride is an odd number of cache lines, so that buffers do not all fall into the same sets of a
# cache.
#
# A pool is its queue's: whoever touches it holds the queue's lock. Only views come back from any thread, at any time:
# they wait in `returned`, under a lock of its own that is held for a few instructions and never while the GIL is
# wanted.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from virtio.core.atomic cimport virtio_likely, virtio_load32, virtio_store32
from virtio.memory.guest_memory cimport GuestMemory, MemoryUser


cdef enum:
    VTNET_HEAD = 64        # bytes in front of each frame
    VTNET_NONE = 0xffffff  # no buffer
    # what became of a buffer
    VTNET_VIEW = 1         # Python has it, as a view
    VTNET_SENT = 2         # a view of it was sent, and the device has not used it yet


cdef struct vtnet_pool:
    uint8_t *host       # where the first buffer is; NULL while the pool is not in guest memory
    uint64_t gpa
    uint32_t stride     # bytes from one to the next
    uint32_t room       # bytes of frame that each takes
    uint32_t count
    uint32_t nfree      # as for nreturned: others may look
    uint32_t *free      # [count] a stack: what was used last is used next, while it is in the cache
    uint8_t *state      # [count] VTNET_VIEW, VTNET_SENT
    uint32_t retired    # its memory is given back: host stays NULL, nothing is taken or put any more
    uint32_t lock       # of the two below
    uint32_t nreturned
    uint32_t *returned  # [count] views that were let go


cdef inline uint8_t *pool_frame(const vtnet_pool *pool, uint32_t i) noexcept nogil:
    """Where the frame of a buffer starts."""
    return pool.host + <uint64_t>i * pool.stride + VTNET_HEAD


cdef inline uint64_t pool_gpa(const vtnet_pool *pool, uint32_t i) noexcept nogil:
    return pool.gpa + <uint64_t>i * pool.stride + VTNET_HEAD


cdef inline uint32_t pool_top(const vtnet_pool *pool) noexcept nogil:
    """The buffer that is taken next; there is one."""
    return pool.free[pool.nfree - 1]


cdef inline void pool_put(vtnet_pool *pool, uint32_t i) noexcept nogil:
    pool.free[pool.nfree] = i
    virtio_store32(&pool.nfree, pool.nfree + 1)


cdef inline void pool_taken(vtnet_pool *pool) noexcept nogil:
    """The buffer that is taken next is taken."""
    virtio_store32(&pool.nfree, pool.nfree - 1)


cdef inline void pool_put_sent(vtnet_pool *pool, uint32_t i) noexcept nogil:
    """The device is done with a buffer of which a view was sent."""
    pool.state[i] &= <uint8_t>~VTNET_SENT
    if not pool.state[i]:
        pool_put(pool, i)


cdef inline uint32_t pool_view_at(const vtnet_pool *pool, const uint8_t *data) noexcept nogil:
    """The buffer whose frame starts at data, if Python has it and it may be sent; VTNET_NONE otherwise."""
    cdef uint64_t offset
    cdef uint32_t i
    if pool is NULL or pool.host is NULL:
        return VTNET_NONE
    offset = <uint64_t>data - <uint64_t>pool.host
    if virtio_likely(offset >= <uint64_t>pool.count * pool.stride):
        return VTNET_NONE
    i = <uint32_t>(offset // pool.stride)
    if offset % pool.stride != VTNET_HEAD or pool.state[i] != VTNET_VIEW:
        return VTNET_NONE
    return i


# Take in the views that were let go.
cdef void pool_collect_views(vtnet_pool *pool) noexcept nogil


cdef inline void pool_collect(vtnet_pool *pool) noexcept nogil:
    if virtio_load32(&pool.nreturned):
        pool_collect_views(pool)


cdef class Pool(MemoryUser):
    cdef vtnet_pool c
    cdef readonly GuestMemory memory

    # Be of no use from now on: whoever still has the queue object that it belonged to finds no buffer.
    cdef void retire(self) noexcept nogil
    # Everything is free again, but for what Python has: after a reset of the queue.
    cdef void refill(self) noexcept nogil
    # A view of `length` bytes of a buffer that was taken, `at` bytes behind its frame's start.
    cdef object view(self, uint32_t i, int32_t at, uint32_t length)
