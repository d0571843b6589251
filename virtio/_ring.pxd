# The virtqueue at C level: one verb set for both formats and both ends, to be inlined by other extensions.
#
# A burst chooses the format once. Every function is nogil and raises nothing; what a peer does wrong is latched in
# q.fault. Callers hold q.lock (queue_lock), or own the queue outright: one owner per queue at a time.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from virtio.core.atomic cimport *
from virtio.core.counters cimport *
from virtio.core.iov cimport iovec
from virtio.core.lock cimport *
from virtio.memory.guest_memory cimport GuestMemory, MemoryUser, memory_gpa_of, memory_log
from virtio.virtqueue.driver_common cimport *
from virtio.virtqueue.inflight cimport inflight_add_used_burst, inflight_pop_burst, inflight_unpop_burst
from virtio.virtqueue.notify cimport *
from virtio.virtqueue.packed_device cimport *
from virtio.virtqueue.packed_driver cimport *
from virtio.virtqueue.structs cimport *
from virtio.virtqueue.split_device cimport *
from virtio.virtqueue.split_driver cimport *


# ---- driver end ----

cdef inline uint32_t driver_enqueue_burst(virtio_driver_queue *q, const virtio_sg *sg, virtio_request *req,
                                          uint32_t n, int *why) noexcept nogil:
    """Make up to n chains available to the device; return how many. *why: VIRTIO_ENQ_OK or what stopped it."""
    if q.packed:
        return packed_enqueue_burst(q, sg, req, n, why)
    return split_enqueue_burst(q, sg, req, n, why)


cdef inline uint32_t driver_dequeue_burst(virtio_driver_queue *q, virtio_completion *out,
                                          uint32_t limit) noexcept nogil:
    """Take back up to limit used chains; return how many."""
    if q.packed:
        return packed_dequeue_burst(q, out, limit)
    return split_dequeue_burst(q, out, limit)


cdef inline uint32_t driver_nused(virtio_driver_queue *q) noexcept nogil:
    """Return how many used chains wait to be dequeued."""
    return packed_nused(q) if q.packed else split_nused(q)


cdef inline bint driver_notify(virtio_driver_queue *q) noexcept nogil:
    """Say whether the device must be kicked now. Counts as done: call it once after each enqueue or group of them."""
    return packed_notify(q) if q.packed else split_notify(q)


cdef inline bint driver_enable_intr(virtio_driver_queue *q) noexcept nogil:
    """Ask for an interrupt at the next completion. True: some wait already, and no interrupt may come for them."""
    return packed_enable_intr(q, 0) if q.packed else split_enable_intr(q, 0)


cdef inline uint16_t driver_postponed(virtio_driver_queue *q, int hint) noexcept nogil:
    """Return FreeBSD's distance for a postpone hint (0 short, 1 long, 2 emptied): chains if split, slots if packed.

    Emptied is one less than FreeBSD's, whose event would lie one past the last completion that can come.
    """
    cdef uint16_t waiting = q.size - q.nfree if q.packed else <uint16_t>driver_outstanding(q)
    if hint == 0:
        return waiting // 4
    if hint == 1:
        return <uint16_t>(<uint32_t>waiting * 3 // 4)
    return waiting - 1 if waiting else 0


cdef inline bint driver_postpone_intr(virtio_driver_queue *q, int hint) noexcept nogil:
    """Ask for an interrupt after a share of what is outstanding. True: more than that share waits already."""
    cdef uint16_t distance = driver_postponed(q, hint)
    if q.packed:
        return packed_enable_intr(q, distance)
    return split_enable_intr(q, distance)


cdef inline void driver_disable_intr(virtio_driver_queue *q) noexcept nogil:
    """Ask for no interrupts; a hint, not a promise."""
    if q.packed:
        packed_disable_intr(q)
    else:
        split_disable_intr(q)


# ---- device end ----

cdef inline uint32_t device_pop_burst(virtio_device_queue *q, virtio_chain *chains, uint32_t limit, iovec *segs,
                                      uint32_t nsegs) noexcept nogil:
    """Take up to limit available chains; return how many. Their pieces of host memory go to segs[0..nsegs)."""
    if virtio_unlikely(q.inflight is not NULL):
        return inflight_pop_burst(q, chains, limit, segs, nsegs)
    if q.packed:
        return packed_pop_burst(q, chains, limit, segs, nsegs)
    return split_pop_burst(q, chains, limit, segs, nsegs)


cdef inline void device_unpop_burst(virtio_device_queue *q, const virtio_chain *chains, uint32_t n) noexcept nogil:
    """Put back the last n chains popped, none of them used: they are popped again, and checked again, next time."""
    if virtio_unlikely(q.inflight is not NULL):
        inflight_unpop_burst(q, chains, n)
    elif q.packed:
        packed_unpop_burst(q, chains, n)
    else:
        split_unpop_burst(q, n)


cdef inline void device_log_written(virtio_device_queue *q, const virtio_chain *chain,
                                    const iovec *segs) noexcept nogil:
    """Mark what was written into a chain in the dirty log, if there is one. Call it after writing, before add_used."""
    cdef uint32_t i
    cdef uint64_t left = chain.written
    cdef uint64_t part
    cdef const iovec *seg
    if q.memory.log is NULL:
        return
    for i in range(chain.nwritable):
        seg = &segs[chain.first + chain.nreadable + i]
        part = seg.iov_len if seg.iov_len < left else left
        if part == 0:
            return
        memory_log(q.memory, memory_gpa_of(q.memory, seg.iov_base, part), part)
        left -= part


cdef inline void device_add_used_burst(virtio_device_queue *q, const virtio_chain *chains, uint32_t n) noexcept nogil:
    """Give n popped chains back to the driver, each with chain.written bytes; in pop order if IN_ORDER."""
    if virtio_unlikely(q.inflight is not NULL):
        inflight_add_used_burst(q, chains, n)
    elif q.packed:
        packed_add_used_burst(q, chains, n)
    else:
        split_add_used_burst(q, chains, n)


cdef inline uint32_t device_nagain(const virtio_device_queue *q) noexcept nogil:
    """Return how many chains of a backend before us wait to be popped again."""
    if q.inflight is NULL or q.fault.code != VIRTIO_FAULT_NONE:
        return 0
    return q.inflight.listed - q.inflight.again


cdef inline uint32_t device_navail(virtio_device_queue *q) noexcept nogil:
    """Return how many chains wait to be popped (packed: of the ring, whether one does)."""
    return device_nagain(q) + (packed_navail(q) if q.packed else split_navail(q))


cdef inline bint device_needs_notification(virtio_device_queue *q) noexcept nogil:
    """Say whether the driver must be interrupted now. Counts as done: call it once after each add_used or group."""
    return packed_needs_notification(q) if q.packed else split_needs_notification(q)


cdef inline bint device_enable_notification(virtio_device_queue *q) noexcept nogil:
    """Ask to be kicked for the next chain. True: some wait already, and no kick may come for them."""
    cdef bint some = packed_enable_notification(q) if q.packed else split_enable_notification(q)
    return some or device_nagain(q) != 0


cdef inline void device_disable_notification(virtio_device_queue *q) noexcept nogil:
    """Ask for no kicks; a hint, not a promise."""
    if q.packed:
        packed_disable_notification(q)
    else:
        split_disable_notification(q)


# ---- the Python classes' common part ----

cdef class Queue(MemoryUser):
    cdef readonly GuestMemory memory
    cdef readonly object layout       # QueueLayout
    cdef readonly object features     # int: the negotiated bits, as given
    cdef readonly int index
    # into the end's struct
    cdef virtio_notify *note
    cdef virtio_fault *fault
    cdef uint32_t *lock
    cdef uint64_t lost_gpa            # the area that map_areas could not map
    cdef uint64_t lost_length

    cdef int setup(self, GuestMemory memory, object layout, object features, int index) except -1
    cdef int check_layout(self, object layout) except -1
    cdef uint32_t queue_flags(self)
    cdef uint8_t *map_area(self, uint64_t gpa, uint64_t length) noexcept
    cdef bint map_areas(self) noexcept
    cdef object error(self)
    cdef dict common_state(self, str end)
