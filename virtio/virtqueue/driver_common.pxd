# The driver end of a virtqueue: what both ring formats share.
#
# Both keep the same private shadow (q.state, q.links), in which an id that the device returns is looked up.
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from virtio.core.atomic cimport virtio_unlikely
from virtio.core.counters cimport add_count
from virtio.virtqueue.structs cimport (
    VIRTIO_FAULT_USED_LEN, VIRTIO_FAULT_USED_RANGE, VIRTIO_FAULT_USED_UNKNOWN, VIRTIO_Q_CLAMP_USED_LEN, latch,
    state_ndesc, state_writable, virtio_driver_queue,
)


cdef inline void driver_start_shadow(virtio_driver_queue *q, uint16_t last_link) noexcept nogil:
    """Put the private state as a fresh queue has it, in either format. The last descriptor's link is last_link."""
    cdef uint32_t i
    for i in range(q.size):
        q.state[i].word = 0
        q.links[i] = <uint16_t>(i + 1)
    q.links[q.size - 1] = last_link
    q.nfree = q.size
    q.free_head = q.oldest = 0
    q.chains = q.completions = 0
    q.next_avail = q.next_used = q.pending = 0
    q.batch = 0
    q.intr_enabled = 1


cdef inline uint32_t driver_outstanding(const virtio_driver_queue *q) noexcept nogil:
    """Return how many chains were enqueued and not yet dequeued."""
    return <uint32_t>(q.chains - q.completions)


cdef inline bint driver_check_used(virtio_driver_queue *q, uint32_t head, uint32_t *length) noexcept nogil:
    """Check a used id and length against the chain's shadow; latch the fault if they cannot be."""
    cdef uint64_t word
    if virtio_unlikely(head >= q.size):
        latch(&q.fault, VIRTIO_FAULT_USED_RANGE, head, head, q.size)
        return 0
    word = q.state[head].word
    if virtio_unlikely(state_ndesc(word) == 0):
        latch(&q.fault, VIRTIO_FAULT_USED_UNKNOWN, head, head, q.size)
        return 0
    if virtio_unlikely(length[0] > state_writable(word)):
        if not q.flags & VIRTIO_Q_CLAMP_USED_LEN:
            latch(&q.fault, VIRTIO_FAULT_USED_LEN, head, length[0], state_writable(word))
            return 0
        length[0] = state_writable(word)
        add_count(&q.clamped, 1)
    return 1
