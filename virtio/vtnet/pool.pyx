"""Pools of packet buffers in guest memory."""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from virtio.core.lock cimport queue_lock, queue_unlock
from virtio.memory.guest_memory cimport memory_translate, virtio_region

from virtio.core.process import watch

cdef enum:
    LINE = 64


cdef uint32_t stride_of(uint32_t room) noexcept:
    """Return the bytes from one buffer to the next: an odd number of cache lines."""
    cdef uint32_t lines = (VTNET_HEAD + room + LINE - 1) // LINE
    return LINE * (lines | 1)


def pool_size(uint32_t room, uint32_t count):
    """Return the bytes of guest memory that a Pool takes."""
    return <uint64_t>count * stride_of(room)


cdef void pool_collect_views(vtnet_pool *pool) noexcept nogil:
    cdef uint32_t i, k
    queue_lock(&pool.lock)
    for k in range(pool.nreturned):
        i = pool.returned[k]
        pool.state[i] &= <uint8_t>~VTNET_VIEW
        if not pool.state[i]:
            pool_put(pool, i)
    virtio_store32(&pool.nreturned, 0)
    queue_unlock(&pool.lock)


cdef class Pool(MemoryUser):
    """``count`` buffers for frames of up to ``room`` bytes, in guest memory from ``gpa`` on (a multiple of 64).

    They take :func:`pool_size` bytes in one region. Raises MemoryFault when that is not memory, ValueError for numbers
    out of range.
    """

    def __init__(self, GuestMemory memory not None, uint64_t gpa, uint32_t room, uint32_t count):
        cdef uint32_t i
        if self.memory is not None:
            raise TypeError("pool is initialised already")
        if gpa % LINE:
            raise ValueError(f"pool at {gpa:#x} is not aligned to {LINE} bytes")
        if not LINE <= room <= 1 << 20:
            raise ValueError(f"room {room} out of range ({LINE} to {1 << 20})")
        if not 1 <= count < VTNET_NONE:
            raise ValueError(f"count {count} out of range (1 to {VTNET_NONE - 1})")
        memory.translate(gpa, pool_size(room, count))
        self.c.free = <uint32_t *>calloc(count, 2 * sizeof(uint32_t) + 1)
        if self.c.free is NULL:
            raise MemoryError()
        self.c.returned = self.c.free + count
        self.c.state = <uint8_t *>(self.c.returned + count)
        self.c.gpa, self.c.room, self.c.count, self.c.stride = gpa, room, count, stride_of(room)
        for i in range(count):
            pool_put(&self.c, count - 1 - i)
        self.memory = memory
        memory.attach(self)
        self.remap()
        watch(self)

    def _forked(self, int parent):
        """Let go of the lock that a thread of the parent has. See virtio.core.process."""
        virtio_store32(&self.c.lock, 0)

    def __dealloc__(self):
        free(self.c.free)

    # hold and release are the queue's: whoever works the pool has its lock
    cdef void remap(self) noexcept:
        cdef virtio_region hit
        hit.gpa = hit.size = 0
        hit.host = NULL
        self.c.host = memory_translate(&self.memory.c, &hit, self.c.gpa, <uint64_t>self.c.count * self.c.stride)
        if self.c.retired:
            self.c.host = NULL

    cdef void retire(self) noexcept nogil:
        self.c.retired = 1
        self.c.host = NULL

    cdef void refill(self) noexcept nogil:
        cdef uint32_t i
        pool_collect_views(&self.c)
        virtio_store32(&self.c.nfree, 0)
        for i in range(self.c.count):
            self.c.state[self.c.count - 1 - i] &= <uint8_t>~VTNET_SENT
            if not self.c.state[self.c.count - 1 - i]:
                pool_put(&self.c, self.c.count - 1 - i)

    cdef object view(self, uint32_t i, int32_t at, uint32_t length):
        cdef Buffer buffer = Buffer.__new__(Buffer)
        buffer.pool = self
        buffer.regions = self.memory._regions
        buffer.start = pool_frame(&self.c, i) + at
        buffer.length = length
        buffer.index = i
        return PyMemoryView_FromObject(buffer)

    @property
    def nfree(self):
        """Buffers that nobody has; what Python let go of counts once the queue was worked."""
        return virtio_load32(&self.c.nfree)

    @property
    def lent(self):
        """Buffers that Python has views of."""
        cdef uint32_t i
        cdef uint32_t n = 0
        queue_lock(&self.c.lock)
        for i in range(self.c.count):
            n += self.c.state[i] & VTNET_VIEW
        n -= self.c.nreturned
        queue_unlock(&self.c.lock)
        return n

    @property
    def room(self):
        """Bytes of frame that a buffer takes."""
        return self.c.room

    @property
    def count(self):
        """Buffers in all."""
        return self.c.count


cdef class Buffer:
    """What a view is of. When the last view is let go of, the buffer goes back to its pool."""

    cdef Pool pool
    cdef tuple regions     # keep the bytes where they are, whatever becomes of the map
    cdef uint8_t *start
    cdef uint32_t length
    cdef uint32_t index
    cdef uint32_t exports
    cdef bint given_back

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.given_back:
            raise BufferError("the buffer was given back to its pool")
        PyBuffer_FillInfo(view, self, self.start, self.length, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1
        if self.exports == 0:
            self.give_back()

    def __dealloc__(self):
        # its memoryview was never made
        if self.pool is not None and not self.given_back:
            self.give_back()

    cdef void give_back(self) noexcept:
        cdef vtnet_pool *pool = &self.pool.c
        self.given_back = True
        # the lock's holder never waits for the GIL
        queue_lock(&pool.lock)
        pool.returned[pool.nreturned] = self.index
        virtio_store32(&pool.nreturned, pool.nreturned + 1)  # the queue's owner looks without the lock
        queue_unlock(&pool.lock)
