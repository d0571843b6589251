# The C structs of include/virtio/queue.h and inflight.h, for Cython. What each field means stands there.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from virtio.core.atomic cimport virtio_get64, virtio_put64, virtio_store32_release
from virtio.memory.guest_memory cimport virtio_memory, virtio_region


cdef extern from "virtio/queue.h" nogil:
    enum:
        VIRTIO_RING_MAX
        VIRTIO_CHAIN_END
        VIRTIO_DESC_F_NEXT
        VIRTIO_DESC_F_WRITE
        VIRTIO_DESC_F_INDIRECT
        VIRTIO_DESC_F_AVAIL
        VIRTIO_DESC_F_USED
        VIRTIO_AVAIL_F_NO_INTERRUPT
        VIRTIO_USED_F_NO_NOTIFY
        VIRTIO_EVENT_ENABLE
        VIRTIO_EVENT_DISABLE
        VIRTIO_EVENT_DESC
        VIRTIO_Q_EVENT_IDX
        VIRTIO_Q_INDIRECT
        VIRTIO_Q_IN_ORDER
        VIRTIO_Q_NOTIFY_ON_EMPTY
        VIRTIO_Q_CLAMP_USED_LEN
        VIRTIO_Q_READ_TABLES
        VIRTIO_Q_FAR
        VIRTIO_ENQ_OK
        VIRTIO_ENQ_FULL
        VIRTIO_ENQ_TOO_BIG
        VIRTIO_ENQ_EMPTY
        VIRTIO_ENQ_BYTES
        VIRTIO_ENQ_BROKEN

    ctypedef enum virtio_fault_code:
        VIRTIO_FAULT_NONE
        VIRTIO_FAULT_AVAIL_JUMP
        VIRTIO_FAULT_HEAD_RANGE
        VIRTIO_FAULT_NEXT_RANGE
        VIRTIO_FAULT_LOOP
        VIRTIO_FAULT_CHAIN_LONG
        VIRTIO_FAULT_CHAIN_BYTES
        VIRTIO_FAULT_SEGMENTS
        VIRTIO_FAULT_NESTED_INDIRECT
        VIRTIO_FAULT_INDIRECT_NEXT
        VIRTIO_FAULT_INDIRECT_LEN
        VIRTIO_FAULT_INDIRECT_FEATURE
        VIRTIO_FAULT_READ_AFTER_WRITE
        VIRTIO_FAULT_ZERO_LENGTH
        VIRTIO_FAULT_MEMORY
        VIRTIO_FAULT_RING_MEMORY
        VIRTIO_FAULT_RING_OVERRUN
        VIRTIO_FAULT_USED_JUMP
        VIRTIO_FAULT_USED_RANGE
        VIRTIO_FAULT_USED_UNKNOWN
        VIRTIO_FAULT_USED_LEN
        VIRTIO_FAULT_FORKED
        VIRTIO_FAULT_DRAINED

    ctypedef enum virtio_notify_reason:
        VIRTIO_NOTIFY_UNDECIDED
        VIRTIO_NOTIFY_NOTHING_NEW
        VIRTIO_NOTIFY_FORCED
        VIRTIO_NOTIFY_EVENT_CROSSED
        VIRTIO_NOTIFY_EVENT_AHEAD
        VIRTIO_NOTIFY_FLAG_ON
        VIRTIO_NOTIFY_FLAG_OFF
        VIRTIO_NOTIFY_EMPTY
        VIRTIO_NOTIFY_RESERVED
        VIRTIO_NOTIFY_BROKEN

    ctypedef struct virtio_desc:
        uint64_t addr
        uint32_t len
        uint16_t flags
        uint16_t next

    ctypedef struct virtio_packed_desc:
        uint64_t addr
        uint32_t len
        uint16_t id
        uint16_t flags

    ctypedef struct virtio_used_elem:
        uint32_t id
        uint32_t len

    ctypedef struct virtio_avail:
        uint16_t flags
        uint16_t idx
        uint16_t ring[0]

    ctypedef struct virtio_used:
        uint16_t flags
        uint16_t idx
        virtio_used_elem ring[0]

    ctypedef uint32_t virtio_packed_event

    ctypedef struct virtio_fault:
        uint64_t value
        uint64_t limit
        uint32_t code
        uint32_t head

    ctypedef struct virtio_notify:
        uint64_t sent
        uint64_t suppressed
        uint16_t old_index
        uint16_t new_index
        uint16_t event
        uint16_t flags
        uint8_t reason
        uint8_t force

    ctypedef struct virtio_sg:
        uint64_t gpa
        uint32_t len

    ctypedef struct virtio_request:
        uint64_t cookie
        uint16_t readable
        uint16_t writable
        uint32_t head

    ctypedef struct virtio_completion:
        uint64_t cookie
        uint32_t head
        uint32_t len

    ctypedef struct virtio_desc_state:
        uint64_t cookie
        uint64_t word

    ctypedef struct virtio_driver_queue:
        virtio_desc *desc
        virtio_packed_desc *ring
        virtio_avail *avail
        virtio_used *used
        virtio_packed_event *my_event
        virtio_packed_event *peer_event
        virtio_desc_state *state
        uint16_t *links
        uint8_t *indirect
        uint64_t indirect_gpa
        uint32_t flags
        uint16_t size
        uint16_t max_indirect
        uint8_t packed
        uint16_t nfree
        uint16_t free_head
        uint16_t next_avail
        uint16_t next_used
        uint16_t oldest
        uint8_t avail_wrap
        uint8_t used_wrap
        uint8_t batch
        uint16_t batch_id
        uint32_t batch_len
        uint16_t used_seen
        uint16_t used_event
        uint16_t avail_flags
        uint32_t event_word
        uint8_t intr_enabled
        uint64_t pending
        virtio_notify notify
        virtio_fault fault
        uint64_t chains
        uint64_t completions
        uint64_t clamped
        uint32_t lock

    ctypedef struct virtio_chain:
        uint32_t written
        uint16_t head
        uint16_t slots
        uint32_t first
        uint16_t nreadable
        uint16_t nwritable
        uint32_t readable
        uint32_t writable


cdef extern from "virtio/inflight.h" nogil:
    enum:
        VIRTIO_INFLIGHT_VERSION

    ctypedef struct virtio_desc_state_split:
        uint8_t inflight
        uint16_t next
        uint64_t counter

    ctypedef struct virtio_queue_region_split:
        uint64_t features
        uint16_t version
        uint16_t desc_num
        uint16_t last_batch_head
        uint16_t used_idx
        virtio_desc_state_split desc[0]

    ctypedef struct virtio_desc_state_packed:
        uint8_t inflight
        uint16_t next
        uint16_t last
        uint16_t num
        uint64_t counter
        uint16_t id
        uint16_t flags
        uint32_t len
        uint64_t addr

    ctypedef struct virtio_queue_region_packed:
        uint64_t features
        uint16_t version
        uint16_t desc_num
        uint16_t free_head
        uint16_t old_free_head
        uint16_t used_idx
        uint16_t old_used_idx
        uint8_t used_wrap_counter
        uint8_t old_used_wrap_counter
        virtio_desc_state_packed desc[0]

    ctypedef struct virtio_inflight:
        virtio_queue_region_split *split
        virtio_queue_region_packed *packed
        uint64_t counter
        uint64_t fresh
        uint16_t entries
        uint16_t last_batch_head
        uint16_t free_head
        uint16_t *next
        uint16_t *last
        uint16_t *num
        uint16_t *older
        uint16_t *by_id
        uint32_t again
        uint32_t listed
        uint16_t *heads
        virtio_packed_desc *copies


cdef extern from "virtio/queue.h" nogil:
    ctypedef struct virtio_device_queue:
        virtio_desc *desc
        virtio_packed_desc *ring
        virtio_avail *avail
        virtio_used *used
        virtio_packed_event *my_event
        virtio_packed_event *peer_event
        virtio_memory *memory
        uint64_t used_gpa
        uint64_t event_gpa
        uint32_t flags
        uint32_t max_chain
        uint32_t max_walk
        uint16_t size
        uint8_t packed
        virtio_region hit
        virtio_inflight *inflight
        uint16_t next_avail
        uint16_t avail_seen
        uint16_t next_used
        uint16_t inuse
        uint8_t avail_wrap
        uint8_t used_wrap
        uint8_t notify_enabled
        uint16_t used_flags
        uint16_t avail_event
        uint32_t event_word
        uint64_t pending
        virtio_notify notify
        virtio_fault fault
        uint64_t chains
        uint64_t completions
        uint32_t lock
        uint32_t put_back


cdef inline void latch(virtio_fault *fault, uint32_t code, uint32_t head, uint64_t value,
                       uint64_t limit) noexcept nogil:
    """Break the queue, with the reason. The first fault wins: what follows from it is noise."""
    if fault.code == VIRTIO_FAULT_NONE:
        fault.head = head
        fault.value = value
        fault.limit = limit
        virtio_store32_release(&fault.code, code)  # the rest is there for whoever sees it, without the lock too


cdef inline uint32_t device_put_back(const virtio_device_queue *q) noexcept nogil:
    """Return how many chains can be popped of a broken queue: those that were put back, while its ring is there."""
    if q.fault.code == VIRTIO_FAULT_RING_MEMORY or q.fault.code == VIRTIO_FAULT_FORKED:
        return 0
    return q.put_back


cdef inline void device_popped_again(virtio_device_queue *q, uint32_t n) noexcept nogil:
    """Count n chains that were popped of a broken queue. 0: the first of them is not good any more."""
    q.put_back = q.put_back - n if n and q.put_back else 0


cdef inline uint64_t state_word(uint32_t writable, uint16_t ndesc) noexcept nogil:
    """Make a virtio_desc_state's word."""
    return writable | <uint64_t>ndesc << 32


cdef inline uint32_t state_writable(uint64_t word) noexcept nogil:
    return <uint32_t>word


cdef inline uint16_t state_ndesc(uint64_t word) noexcept nogil:
    return <uint16_t>(word >> 32)


cdef inline void chain_single(virtio_chain *chain, uint64_t head, uint32_t first, uint32_t length,
                              uint64_t flags) noexcept nogil:
    """Fill in a chain of one descriptor that is one piece of memory: the usual one, so it is written in whole words."""
    virtio_put64(&chain.written, head << 32 | <uint64_t>1 << 48)
    if flags & VIRTIO_DESC_F_WRITE:
        virtio_put64(&chain.first, first | <uint64_t>1 << 48)
        virtio_put64(&chain.readable, <uint64_t>length << 32)
    else:
        virtio_put64(&chain.first, first | <uint64_t>1 << 32)
        virtio_put64(&chain.readable, length)


cdef inline uint64_t chain_used_elem(const virtio_chain *chain) noexcept nogil:
    """The used element of a chain: id in bits 0-31, bytes written in 32-63."""
    cdef uint64_t word = virtio_get64(&chain.written)
    return (word >> 32 & 0xffff) | word << 32
