"""Loops over the rings without the GIL, on one thread, for benchmarks and tests.

They are also the example of how an extension uses the C-level verbs: `cimport` them from virtio._ring, hold the queue's
lock for a burst, keep the arrays local.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from virtio._ring cimport device_add_used_burst, device_pop_burst, driver_dequeue_burst, driver_enqueue_burst
from virtio.core.atomic cimport virtio_store16_release, virtio_store64
from virtio.core.clock cimport thread_ns
from virtio.core.iov cimport iovec
from virtio.core.lock cimport queue_lock, queue_unlock
from virtio.virtqueue.device_queue cimport DeviceQueue
from virtio.virtqueue.driver_queue cimport DriverQueue
from virtio.virtqueue.structs cimport (
    virtio_chain, virtio_completion, virtio_device_queue, virtio_driver_queue, virtio_request, virtio_sg,
)


cdef enum:
    MAX_BATCH = 256
    # a little more than MAX_BATCH each, so that the arrays of a loop do not all start at the same offset of a page:
    # loads and stores that agree in their low 12 bits wait for each other
    ROOM_SG = 8 * MAX_BATCH + 4
    ROOM_REQ = MAX_BATCH + 12
    ROOM_OUT = MAX_BATCH + 20
    ROOM_CHAINS = MAX_BATCH + 28
    ROOM_SEGS = 8 * MAX_BATCH + 36


cdef int check_batch(int batch, int pieces) except -1:
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"batch {batch} out of range (1 to {MAX_BATCH})")
    if not 1 <= pieces <= 8:
        raise ValueError(f"pieces {pieces} out of range (1 to 8)")
    return 0


def cycle(DriverQueue driver not None, DeviceQueue device not None, int batch, long count, *, uint64_t buffers,
          uint32_t length=1500, int pieces=1):
    """Run chains through both ends on this thread; return nanoseconds of its CPU time per chain.

    Each round enqueues ``batch`` chains of ``pieces`` device-readable pieces, pops them, gives them back and dequeues
    them, until ``count`` chains are through. Buffers are ``length`` bytes, 2048 apart, from guest address ``buffers``
    on. Both queues are held for the whole run. Raises RuntimeError when a chain does not come back.
    """
    cdef virtio_sg sg[ROOM_SG]
    cdef virtio_request req[ROOM_REQ]
    cdef virtio_completion out[ROOM_OUT]
    cdef virtio_chain chains[ROOM_CHAINS]
    cdef iovec segs[ROOM_SEGS]
    cdef virtio_driver_queue *dq = driver.q
    cdef virtio_device_queue *vq = device.q
    cdef int i
    cdef int why = 0
    cdef uint32_t n = <uint32_t>batch
    cdef uint32_t got = n
    cdef long through = 0
    cdef double start
    check_batch(batch, pieces)
    for i in range(batch * pieces):
        sg[i].gpa = buffers + 2048 * <uint64_t>i
        sg[i].len = length
    for i in range(batch):
        req[i].cookie = i
        req[i].readable = <uint16_t>pieces
        req[i].writable = 0
    with nogil:
        queue_lock(&dq.lock)
        queue_lock(&vq.lock)
        start = thread_ns()
        while through < count and got == n:
            driver_enqueue_burst(dq, sg, req, n, &why)
            got = device_pop_burst(vq, chains, n, segs, ROOM_SEGS)
            device_add_used_burst(vq, chains, got)
            got = driver_dequeue_burst(dq, out, n)
            through += got
        start = thread_ns() - start
        queue_unlock(&vq.lock)
        queue_unlock(&dq.lock)
    if got != n:
        raise RuntimeError(f"{got} of {n} chains came back after {through} (enqueue said {why}); {driver!r}")
    return start / through


def device_only(DeviceQueue device not None, int batch, long count, *, uint32_t length=1500):
    """Run the device end alone on this thread; return nanoseconds of its CPU time per chain.

    The driver's part is played by plain stores: one-descriptor chains whose buffers lie in each of the memory's regions
    in turn, published again and again; the used ring is ignored. The queue is reset first. For split queues only.
    Raises ValueError for a packed queue, RuntimeError when a chain is not popped.
    """
    cdef virtio_chain chains[ROOM_CHAINS]
    cdef iovec segs[ROOM_SEGS]
    cdef virtio_device_queue *q = device.q
    cdef uint32_t n = <uint32_t>batch
    cdef uint32_t got = n
    cdef long through = 0
    cdef uint16_t idx = 0
    cdef int i
    cdef double start
    check_batch(batch, 1)
    if q.packed or q.size % batch:
        raise ValueError("device_only takes a split queue whose size is a multiple of the batch")
    device.reset()
    regions = device.memory.regions
    for i in range(q.size):
        region = regions[i % len(regions)]
        # behind the first 64 KiB, where the rings are; 2 KiB apart
        at = region.gpa + (65536 + 2048 * i) % (region.size - 2048)
        virtio_store64(<uint64_t *>(q.desc + i), at)
        virtio_store64(<uint64_t *>(q.desc + i) + 1, length)
        q.avail.ring[i] = <uint16_t>i
    with nogil:
        queue_lock(&q.lock)
        start = thread_ns()
        while through < count and got == n:
            idx += <uint16_t>n
            virtio_store16_release(&q.avail.idx, idx)
            got = device_pop_burst(q, chains, n, segs, ROOM_SEGS)
            device_add_used_burst(q, chains, got)
            through += got
        start = thread_ns() - start
        queue_unlock(&q.lock)
    if got != n:
        raise RuntimeError(f"{got} of {n} chains were popped after {through}; {device!r}: {device.broken}")
    return start / through
