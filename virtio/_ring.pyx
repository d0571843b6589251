"""The virtqueue: what its driver end and its device end have in common.

The rings themselves are ``cdef inline`` functions in split_driver.pxd, split_device.pxd, packed_driver.pxd and
packed_device.pxd; _ring.pxd joins them to one verb set. Sources: VIRTIO 1.4, sections 2.6 to 2.10; FreeBSD's
virtqueue(9) for the driver's verbs, rust-vmm's virtio-queue for the device's.
"""

import time

from libc.stdint cimport uint8_t, uint32_t, uint64_t, UINT32_MAX

from virtio.core.atomic cimport virtio_load32, virtio_load32_acquire, virtio_store32
from virtio.core.lock cimport queue_lock, queue_unlock, virtio_is_locked, virtio_trylock
from virtio.memory.guest_memory cimport memory_translate, virtio_region
from virtio.virtqueue.structs cimport (
    VIRTIO_FAULT_AVAIL_JUMP, VIRTIO_FAULT_CHAIN_BYTES, VIRTIO_FAULT_CHAIN_LONG, VIRTIO_FAULT_DRAINED,
    VIRTIO_FAULT_FORKED, VIRTIO_FAULT_HEAD_RANGE, VIRTIO_FAULT_INDIRECT_FEATURE, VIRTIO_FAULT_INDIRECT_LEN,
    VIRTIO_FAULT_INDIRECT_NEXT, VIRTIO_FAULT_LOOP, VIRTIO_FAULT_MEMORY, VIRTIO_FAULT_NESTED_INDIRECT,
    VIRTIO_FAULT_NEXT_RANGE, VIRTIO_FAULT_NONE, VIRTIO_FAULT_READ_AFTER_WRITE, VIRTIO_FAULT_RING_MEMORY,
    VIRTIO_FAULT_RING_OVERRUN, VIRTIO_FAULT_SEGMENTS, VIRTIO_FAULT_USED_JUMP, VIRTIO_FAULT_USED_LEN,
    VIRTIO_FAULT_USED_RANGE, VIRTIO_FAULT_USED_UNKNOWN, VIRTIO_FAULT_ZERO_LENGTH, VIRTIO_NOTIFY_EMPTY,
    VIRTIO_NOTIFY_EVENT_AHEAD, VIRTIO_NOTIFY_EVENT_CROSSED, VIRTIO_NOTIFY_FLAG_OFF, VIRTIO_NOTIFY_FLAG_ON,
    VIRTIO_NOTIFY_FORCED, VIRTIO_NOTIFY_NOTHING_NEW, VIRTIO_NOTIFY_RESERVED, VIRTIO_NOTIFY_UNDECIDED,
    VIRTIO_Q_EVENT_IDX, VIRTIO_Q_IN_ORDER, VIRTIO_Q_INDIRECT, VIRTIO_Q_NOTIFY_ON_EMPTY, latch, virtio_notify,
)

from virtio.constants import Feature
from virtio.errors import BadDescriptor, BadIndex, ChainLoop, ChainTooLong, MemoryFault, RingError
from virtio.core.process import made_before, watch
from virtio.virtqueue.layout import QueueLayout

LOOK = 100e-6  # seconds between two tries to take a lock

# bits that change how a ring is worked, by the flag of the C struct
_FLAGS = (
    (Feature.EVENT_IDX, VIRTIO_Q_EVENT_IDX),
    (Feature.INDIRECT_DESC, VIRTIO_Q_INDIRECT),
    (Feature.IN_ORDER, VIRTIO_Q_IN_ORDER),
    (Feature.NOTIFY_ON_EMPTY, VIRTIO_Q_NOTIFY_ON_EMPTY),
)

_FAULTS = {
    VIRTIO_FAULT_AVAIL_JUMP: (BadIndex, "available index claims {value} chains (queue size {limit})"),
    VIRTIO_FAULT_HEAD_RANGE: (BadIndex, "available descriptor index {value} out of range (queue size {limit})"),
    VIRTIO_FAULT_NEXT_RANGE: (BadDescriptor, "next descriptor index {value} out of range (table size {limit})"),
    VIRTIO_FAULT_LOOP: (ChainLoop, "descriptor chain loops: {value} descriptors walked (table size {limit})"),
    VIRTIO_FAULT_CHAIN_LONG: (ChainTooLong, "descriptor chain of {value} or more descriptors (limit {limit})"),
    VIRTIO_FAULT_CHAIN_BYTES: (ChainTooLong, "descriptor chain of {value} or more bytes (limit {limit})"),
    VIRTIO_FAULT_SEGMENTS: (ChainTooLong, "descriptor chain of {value} or more pieces of memory (limit {limit})"),
    VIRTIO_FAULT_NESTED_INDIRECT: (BadDescriptor, "entry {value} of an indirect table is indirect"),
    VIRTIO_FAULT_INDIRECT_NEXT: (BadDescriptor, "descriptor {value} has both INDIRECT and NEXT"),
    VIRTIO_FAULT_INDIRECT_LEN: (BadDescriptor, "indirect table of {value} bytes (16 to {limit}, in steps of 16)"),
    VIRTIO_FAULT_INDIRECT_FEATURE: (BadDescriptor, "descriptor {value} is indirect; INDIRECT_DESC was not negotiated"),
    VIRTIO_FAULT_READ_AFTER_WRITE: (BadDescriptor, "descriptor {value} is device-readable after a device-writable one"),
    VIRTIO_FAULT_ZERO_LENGTH: (BadDescriptor, "descriptor {value} has length 0"),
    VIRTIO_FAULT_RING_OVERRUN: (BadIndex, "{value} descriptors outstanding (queue size {limit})"),
    VIRTIO_FAULT_USED_JUMP: (BadIndex, "used index claims {value} chains ({limit} outstanding)"),
    VIRTIO_FAULT_USED_RANGE: (BadIndex, "used id {value} out of range (queue size {limit})"),
    VIRTIO_FAULT_USED_UNKNOWN: (BadIndex, "used id {value} is not outstanding (queue size {limit})"),
    VIRTIO_FAULT_DRAINED: (RingError, "queue was drained of {value} chains: reset it before use"),
    VIRTIO_FAULT_USED_LEN: (BadDescriptor, "used length {value} is more than the chain's {limit} writable bytes"),
}


cdef class Queue(MemoryUser):
    """One end of a virtqueue, split or packed. Use :class:`virtio.DriverQueue` or :class:`virtio.DeviceQueue`.

    Threads: each method takes the queue's burst lock, so calls from several threads are safe but wait for each other.
    The two ends of a ring are two objects with a lock each.
    """

    cdef int setup(self, GuestMemory memory, object layout, object features, int index) except -1:
        if self.memory is not None:
            raise TypeError("queue is initialised already")
        if not 0 <= index <= 0xffff:
            raise ValueError(f"queue index {index} out of range (0 to 65535)")
        if not isinstance(layout, QueueLayout):
            raise TypeError(f"layout must be a QueueLayout, not {type(layout).__name__}")
        features = int(features)
        if features < 0:
            raise ValueError(f"features {features} is negative")
        if features & Feature.RING_PACKED and not layout.is_packed:
            raise ValueError("RING_PACKED was negotiated, but the layout is a split one")
        self.features = features
        self.index = index
        self.layout = layout
        self.memory = memory
        memory.attach(self)
        watch(self)
        return 0

    def _forked(self, int parent):
        """Break a queue that a thread of the parent was at work with; reset() heals it. See virtio.core.process."""
        if self.lock is not NULL and virtio_is_locked(self.lock):
            virtio_store32(&self.fault.code, VIRTIO_FAULT_NONE)
            latch(self.fault, VIRTIO_FAULT_FORKED, UINT32_MAX, parent, 0)
            virtio_store32(self.lock, 0)

    cdef int check_layout(self, object layout) except -1:
        """Raise unless layout fits this queue and lies in memory."""
        cdef uint64_t gpa, length, host
        if not isinstance(layout, QueueLayout):
            raise TypeError(f"layout must be a QueueLayout, not {type(layout).__name__}")
        if layout.is_packed != self.layout.is_packed:
            raise ValueError("a queue keeps its format, split or packed")
        for gpa, length in layout.areas:
            host = self.memory.translate(gpa, length)  # raises MemoryFault
            if (host ^ gpa) & 7:
                raise ValueError(f"guest address {gpa:#x} is at host address {host:#x}, which is aligned differently: "
                                 "a ring needs a region whose buffer is aligned to 8 bytes")
        return 0

    cdef uint32_t queue_flags(self):
        cdef uint32_t flags = 0
        for bit, flag in _FLAGS:
            if self.features & bit:
                flags |= <uint32_t>flag
        return flags

    cdef uint8_t *map_area(self, uint64_t gpa, uint64_t length) noexcept:
        """Return where a ring area is, or NULL and remember which one it was."""
        cdef virtio_region hit
        cdef uint8_t *host
        hit.gpa = 0
        hit.size = 0
        host = memory_translate(&self.memory.c, &hit, gpa, length)
        # areas are aligned in guest memory; a region over an odd host address would make atomic access undefined
        if host is NULL or (<uint64_t>host ^ gpa) & 7:
            self.lost_gpa = gpa
            self.lost_length = length
            return NULL
        return host

    cdef bint map_areas(self) noexcept:
        return 0

    cdef void hold(self) noexcept:
        if not virtio_trylock(self.lock):
            # whoever has it may be in a port that runs Python: it gets the GIL, or we would wait for each other
            with nogil:
                queue_lock(self.lock)

    cdef void release(self) noexcept:
        queue_unlock(self.lock)

    def comes_free(self, seconds):
        """Say whether no burst is under way, or ends within so many seconds."""
        end = time.monotonic() + seconds
        if virtio_load32(&self.fault.code) == VIRTIO_FAULT_FORKED:
            return False
        while not virtio_trylock(self.lock):
            if time.monotonic() >= end:
                return False
            time.sleep(LOOK)
        queue_unlock(self.lock)
        return True

    cdef void remap(self) noexcept:
        if not self.map_areas():
            # overrides what was latched before: from now on the ring must not be touched at all
            virtio_store32(&self.fault.code, VIRTIO_FAULT_NONE)
            latch(self.fault, VIRTIO_FAULT_RING_MEMORY, UINT32_MAX, self.lost_gpa, self.lost_length)

    cdef object error(self):
        """Return the latched fault as an exception, or None."""
        cdef object head
        cdef uint32_t code
        if self.fault is NULL:
            raise TypeError("Queue is the base of DriverQueue and DeviceQueue, and no queue itself")
        code = virtio_load32_acquire(&self.fault.code)  # whoever works the queue may find the fault just now
        if code == VIRTIO_FAULT_NONE:
            return None
        head = None if self.fault.head == UINT32_MAX else self.fault.head
        if code == VIRTIO_FAULT_RING_MEMORY:
            return MemoryFault(self.fault.value, self.fault.limit, "guest memory (a ring area)")
        if code == VIRTIO_FAULT_FORKED:
            return made_before("queue", self.fault.value)
        if code == VIRTIO_FAULT_MEMORY:
            return MemoryFault(self.fault.value, self.fault.limit, "guest memory (a descriptor's buffer)")
        kind, text = _FAULTS.get(code, (RingError, "broken: {value} (limit {limit})"))
        limit = self.fault.limit if "{limit}" in text else None
        return kind(text.format(value=self.fault.value, limit=limit), self.fault.value, limit, head)

    @property
    def size(self):
        """Number of descriptors."""
        return self.layout.size

    @property
    def packed(self):
        """Whether the ring is a packed one."""
        return self.layout.is_packed

    @property
    def broken(self):
        """What the peer did wrong, as the exception that the verbs raise; None while all is well.

        The first fault stays until :meth:`reset`. Nothing new is taken from a broken ring; chains popped before can
        still be given back.
        """
        return self.error()

    def explain_notify(self):
        """Say in words why the last notification decision was what it was (VIRTIO 1.4, 2.7.7, 2.7.10 and 2.8.10)."""
        cdef virtio_notify *n = self.note
        if n is NULL or self.layout is None:
            return "undecided: the queue was never initialised"
        span = f"old {n.old_index}, new {n.new_index}"
        event = f"{n.event & 0x7fff} (wrap {n.event >> 15})" if self.layout.is_packed else f"{n.event}"
        if n.reason == VIRTIO_NOTIFY_UNDECIDED:
            return "undecided: no decision was asked for yet"
        if n.reason == VIRTIO_NOTIFY_NOTHING_NEW:
            return f"no: nothing new since the last decision (index {n.new_index})"
        if n.reason == VIRTIO_NOTIFY_FORCED:
            return f"yes: first decision after a restore, when the peer's event index proves nothing ({span})"
        if n.reason == VIRTIO_NOTIFY_EVENT_CROSSED:
            return f"yes: the peer's event index {event} was passed ({span})"
        if n.reason == VIRTIO_NOTIFY_EVENT_AHEAD:
            return f"no: the peer's event index {event} was not passed ({span})"
        if n.reason == VIRTIO_NOTIFY_FLAG_ON:
            return f"yes: the peer's flags {n.flags} ask for notifications ({span})"
        if n.reason == VIRTIO_NOTIFY_FLAG_OFF:
            return f"no: the peer's flags {n.flags} suppress notifications ({span})"
        if n.reason == VIRTIO_NOTIFY_EMPTY:
            return f"yes: NOTIFY_ON_EMPTY, and every available chain is used ({span})"
        if n.reason == VIRTIO_NOTIFY_RESERVED:
            return f"yes: the peer's event flags {n.flags} are reserved or were not negotiated, so better safe ({span})"
        return "no: the queue is broken"

    cdef dict common_state(self, str end):
        layout = self.layout
        return {
            "end": end,
            "layout": {"size": layout.size, "desc": layout.desc, "driver": layout.driver, "device": layout.device,
                       "is_packed": layout.is_packed},
            "features": self.features,
            "index": self.index,
        }

    def __repr__(self):
        if self.layout is None:
            return f"<{type(self).__name__}: not initialised>"
        kind = "packed" if self.layout.is_packed else "split"
        state = "broken" if virtio_load32(&self.fault.code) else "ok"
        return f"<{type(self).__name__} {self.index}: {kind}, size {self.layout.size}, {state}>"
