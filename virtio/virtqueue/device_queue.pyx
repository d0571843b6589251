"""The device end of a virtqueue, split or packed."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, UINT32_MAX
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from virtio._ring cimport (
    device_add_used_burst, device_disable_notification, device_enable_notification, device_navail,
    device_needs_notification, device_pop_burst, device_unpop_burst,
)
from virtio.core.atomic cimport virtio_load16, virtio_load32, virtio_load32_acquire, virtio_store32, virtio_store64
from virtio.core.counters cimport counted
from virtio.memory.guest_memory cimport VIRTIO_REGIONS_MAX, memory_gather
from virtio.virtqueue.inflight cimport inflight_pop_again
from virtio.virtqueue.packed_device cimport packed_device_start
from virtio.virtqueue.split_device cimport split_device_start
from virtio.virtqueue.structs cimport (
    VIRTIO_FAULT_NONE, VIRTIO_FAULT_RING_MEMORY, VIRTIO_Q_FAR, VIRTIO_Q_IN_ORDER, virtio_avail, virtio_desc,
    virtio_notify, virtio_packed_desc, virtio_packed_event, virtio_used,
)

from virtio.constants import Feature
from virtio.errors import SnapshotError, SnapshotFault
from virtio.virtqueue.saved import (
    FEATURES_MAX, U16, U32, U64, entries, fields, flag, layout_of, mapping, number, optional, placed, text, tuples,
    within
)


cdef extern from "stdlib.h":
    int posix_memalign(void **memptr, size_t alignment, size_t size)


cdef enum:
    BURST = 64  # chains popped at a time


# what state() gives; the rest depends on the queue's size
QUEUE = fields({
    "end": text, "layout": mapping, "features": number(0, FEATURES_MAX), "index": number(0, U16),
    "max_chain": optional(number(1, U16)), "next_avail": number(0, U16), "avail_wrap": flag,
    "next_used": number(0, U16), "used_wrap": flag, "pending": number(0, U64), "notify_enabled": flag,
    "used_flags": number(0, U16), "avail_event": number(0, U16), "event_word": number(0, U32),
    "outstanding": entries(mapping), "lost": number(0, U16),
})
PIECES = entries(tuples(number(0, U64), number(1, U32)), most=U16)


def chain_of(size, packed):
    """Return the check of an outstanding chain."""
    return fields({
        "head": number(0, U16 if packed else size - 1), "slots": number(1, size if packed else 1),
        "written": number(0, U32), "readable": PIECES, "writable": PIECES,
    })


cdef class DeviceQueue(Queue):
    """The device end of a virtqueue: pops the chains that a driver makes available and gives them back used.

    ``features`` are the negotiated bits (of them the queue reads EVENT_IDX, INDIRECT_DESC, IN_ORDER, NOTIFY_ON_EMPTY
    and RING_PACKED). ``max_chain`` bounds the descriptors of a chain, indirect ones included: the queue size unless
    given, which is the spec's limit (VIRTIO 1.4, 2.7.5.3.1); some old drivers need more.

    The ring is taken as a fresh one: nothing popped, nothing used. Raises ValueError for parameters that do not fit
    together, MemoryFault when an area is outside of memory.

    Source: VIRTIO 1.4, 2.7 and 2.8; verbs as in rust-vmm's virtio-queue. Threads: see Queue.
    """

    def __cinit__(self):
        cdef void *block = NULL
        if posix_memalign(&block, 64, sizeof(virtio_device_queue)) != 0:
            raise MemoryError()
        memset(block, 0, sizeof(virtio_device_queue))
        self.q = <virtio_device_queue *>block
        self.note = &self.q.notify
        self.fault = &self.q.fault
        self.lock = &self.q.lock
        self.fault.code = VIRTIO_FAULT_RING_MEMORY  # until it is opened, no verb touches a ring
        self.taken = {}
        self.walk = UINT32_MAX

    def __dealloc__(self):
        free(self.q)

    def __init__(self, GuestMemory memory not None, layout, *, features=0, int index=0, max_chain=None):
        self.open(memory, layout, features, index, max_chain)
        self.reset()

    cdef int open(self, GuestMemory memory, object layout, object features, int index, object max_chain) except -1:
        if max_chain is not None and not 1 <= max_chain <= 0xffff:
            raise ValueError(f"max_chain {max_chain} out of range (1 to 65535)")
        self.max_chain = max_chain
        self.q.memory = &memory.c
        self.setup(memory, layout, features, index)
        self.q.packed = layout.is_packed
        self.q.flags = self.queue_flags()
        return 0

    cdef bint map_areas(self) noexcept:
        cdef virtio_device_queue *q = self.q
        cdef uint64_t size = q.size
        cdef uint8_t *desc = self.map_area(self.layout.desc, 16 * size)
        cdef uint8_t *driver = self.map_area(self.layout.driver, 4 if q.packed else 6 + 2 * size)
        cdef uint8_t *device = self.map_area(self.layout.device, 4 if q.packed else 6 + 8 * size)
        q.hit.size = 0  # a host address of the old map
        if desc is NULL or driver is NULL or device is NULL:
            return 0
        q.desc = <virtio_desc *>desc
        q.ring = <virtio_packed_desc *>desc
        q.avail = <virtio_avail *>driver
        q.used = <virtio_used *>device
        q.my_event = <virtio_packed_event *>device
        q.peer_event = <virtio_packed_event *>driver
        q.used_gpa = self.layout.desc if q.packed else self.layout.device
        q.event_gpa = self.layout.device
        return 1

    def reset(self, layout=None):
        """Go back to a fresh queue, healed and empty, at ``layout`` or where it was (VIRTIO 1.4, 2.6.1 RING_RESET).

        Chains popped and not given back are void: add_used refuses them. What :meth:`track` was given is left as it is,
        and not written any more. A new layout may have another size, not another format. Raises MemoryFault and
        ValueError as the constructor does, and then changes nothing.
        """
        cdef dict taken
        cdef Chain chain
        layout = self.layout if layout is None else layout
        self.check_layout(layout)
        self.hold()
        self.q.inflight = NULL
        self.inflight = None
        taken, self.taken = self.taken, {}
        self.q.size = layout.size
        self.q.max_chain = layout.size if self.max_chain is None else self.max_chain
        self.q.max_walk = min(self.q.max_chain, self.walk)
        self.layout = layout
        if self.q.packed:
            packed_device_start(self.q)
        else:
            split_device_start(self.q)
        memset(self.note, 0, sizeof(virtio_notify))
        virtio_store32(&self.fault.code, VIRTIO_FAULT_NONE)
        self.remap()
        self.release()
        for chain in taken.values():
            chain.owner = None

    cdef void limit_walk(self, uint32_t most) noexcept:
        """Walk no more than so many pieces of a chain, of which the device uses fewer. Before the first burst."""
        self.walk = most
        self.q.max_walk = min(self.q.max_chain, self.walk)

    # ---- chains ----

    def pop(self):
        """Take the next available chain, or None when none waits. Raises the error that broke the queue, if it is
        broken.
        """
        cdef list got = self.pop_burst(1)
        return got[0] if got else None

    def pop_burst(self, Py_ssize_t limit=256):
        """Take up to ``limit`` available chains: a list of Chain, in the driver's order.

        What was popped before the driver broke the queue is returned; the call after that raises the error.
        """
        cdef virtio_chain chains[BURST]
        cdef list result = []
        cdef uint32_t room = self.q.max_chain + VIRTIO_REGIONS_MAX + BURST
        cdef iovec *segs = <iovec *>malloc(room * sizeof(iovec))
        cdef tuple regions
        cdef uint32_t n, want, i
        cdef bint more = True
        if segs is NULL:
            raise MemoryError()
        if self.memory is None:
            limit = 0  # never initialised: the fault below says so
        try:
            while more and limit > 0:
                want = BURST if limit > BURST else <uint32_t>limit
                self.hold()
                regions = self.memory._regions
                n = device_pop_burst(self.q, chains, want, segs, room)
                self.release()
                for i in range(n):
                    result.append(self.wrap(&chains[i], segs, regions))
                limit -= n
                more = n > 0  # fewer than wanted may mean only that segs was full
        finally:
            free(segs)
        if not result and virtio_load32_acquire(&self.fault.code) != VIRTIO_FAULT_NONE:
            raise self.error()
        return result

    cdef Chain view(self, const virtio_chain *c, const iovec *segs, tuple regions):
        """Make the Python object of a popped chain."""
        cdef Chain chain = Chain.__new__(Chain)
        cdef uint32_t n = c.nreadable + c.nwritable
        cdef iovec *copy
        if n > 2:
            copy = <iovec *>malloc(n * sizeof(iovec))
            if copy is NULL:
                raise MemoryError()
            chain.segs = copy
        memcpy(chain.segs, segs + c.first, n * sizeof(iovec))
        chain.c = c[0]
        chain.c.first = 0
        chain.regions = regions
        return chain

    cdef Chain wrap(self, const virtio_chain *c, const iovec *segs, tuple regions):
        """The same, and note it as outstanding."""
        cdef Chain chain = self.view(c, segs, regions)
        chain.owner = self
        chain.serial = self.serial
        self.taken[self.serial] = chain
        self.serial += 1
        return chain

    cdef int claim(self, Chain chain, uint64_t expected) except -1:
        """Raise unless chain is outstanding here, and the next one in order where that counts."""
        if chain.owner is not self:
            raise ValueError(f"chain {chain.c.head} is not outstanding here: given back already, or reset away")
        if self.q.flags & VIRTIO_Q_IN_ORDER and chain.serial != expected:
            raise ValueError(f"chain {chain.c.head} is not the oldest outstanding one, and IN_ORDER was negotiated")
        return 0

    def unpop(self, Chain chain not None):
        """Put back the chain that was popped last, untouched: it is popped, and checked, again.

        Raises ValueError unless it is outstanding here and nothing was popped after it.
        """
        self.claim(chain, chain.serial)
        if chain.serial != self.serial - 1:
            raise ValueError(f"chain {chain.c.head} was not the last to be popped")
        del self.taken[chain.serial]
        chain.owner = None
        self.serial -= 1
        self.hold()
        device_unpop_burst(self.q, &chain.c, 1)
        self.release()

    def add_used(self, Chain chain not None, written=None):
        """Give a chain back to the driver. ``written``: bytes written into its writable parts (default: chain.written).

        Raises ValueError for a chain that is not outstanding here, that is out of order under IN_ORDER, or for more
        bytes than are writable. Works on a broken queue too. Then ask :meth:`needs_notification`, once for as many
        chains as you like.
        """
        if written is not None:
            chain.written = written
        self.add_used_burst((chain,))

    def add_used_burst(self, chains):
        """Give chains back, each with its ``written`` bytes; the driver sees them at once. See :meth:`add_used`.

        Nothing is given back when one of them cannot be.
        """
        cdef list items = list(chains)
        cdef uint32_t n = <uint32_t>len(items)
        cdef uint32_t i
        cdef Chain chain
        cdef uint64_t expected
        cdef virtio_chain *used
        if n == 0:
            return
        expected = next(iter(self.taken), 0)
        for i in range(n):
            chain = <Chain?>items[i]
            self.claim(chain, expected + i)
        if len({(<Chain>chain_).serial for chain_ in items}) != n:
            raise ValueError("a chain is given back twice in one burst")
        used = <virtio_chain *>malloc(n * sizeof(virtio_chain))
        if used is NULL:
            raise MemoryError()
        for i in range(n):
            chain = <Chain>items[i]
            used[i] = chain.c
            if self.q.memory.log is not NULL:
                self.log_written(chain)
            chain.owner = None
            del self.taken[chain.serial]
        self.hold()
        device_add_used_burst(self.q, used, n)
        self.release()
        free(used)

    cdef int log_written(self, Chain chain) except -1:
        """Mark what was written into chain in the dirty log."""
        cdef uint64_t left = chain.c.written
        for gpa, length in chain.pieces(chain.c.nreadable, chain.c.nwritable):
            if left == 0:
                break
            self.memory.log_dirty(gpa, min(length, left))
            left -= min(length, left)
        return 0

    # ---- notification ----

    def needs_notification(self):
        """Say whether the driver must be interrupted for what was given back since the last call.

        The caller then raises the interrupt or writes the call eventfd. Source: VIRTIO 1.4, 2.7.7, 2.7.10 and 2.8.10.
        """
        cdef bint yes
        self.hold()
        yes = device_needs_notification(self.q)
        self.release()
        return yes

    def enable_notification(self):
        """Ask to be kicked for the next chain; return whether some are available already.

        True: process them now and call again, for no kick may come for them.
        """
        cdef bint waiting
        self.hold()
        waiting = device_enable_notification(self.q)
        self.release()
        return waiting

    def disable_notification(self):
        """Ask for no kicks; a hint to the driver, not a promise by it."""
        self.hold()
        device_disable_notification(self.q)
        self.release()

    # ---- figures ----

    @property
    def available(self):
        """Chains that wait to be popped (of a packed ring: 1 if one does, else 0). Looks at the ring."""
        cdef uint32_t n
        self.hold()
        n = device_navail(self.q)
        self.release()
        return n

    @property
    def far(self):
        """Whether the driver runs on another core: then its buffers are fetched ahead. It may be set before the queue
        is used; that costs some 3 ns a chain if the driver is on this core, and saves more if it is not.
        """
        return self.q.flags & VIRTIO_Q_FAR != 0

    @far.setter
    def far(self, bint yes):
        self.q.flags = self.q.flags & ~<uint32_t>VIRTIO_Q_FAR | (VIRTIO_Q_FAR if yes else 0)

    @property
    def outstanding(self):
        """The chains popped and not given back, oldest first."""
        return list(self.taken.values())

    def counters(self):
        """Return what was counted since the queue was made, reset or restored: chains, completions, calls,
        calls_suppressed.
        """
        return {
            "chains": counted(&self.q.chains),
            "completions": counted(&self.q.completions),
            "calls": counted(&self.note.sent),
            "calls_suppressed": counted(&self.note.suppressed),
        }

    def dump(self):
        """Return the ring's state for a person, in the manner of FreeBSD's virtqueue_dump."""
        cdef virtio_device_queue *q = self.q
        name = (f"VQ: device {self.index} - size={q.size}; available={self.available}; inuse={len(self.taken)}; "
                f"unsignalled={q.pending};")
        if self.fault.code == VIRTIO_FAULT_RING_MEMORY:
            return f"{name} broken: {self.error()}"
        if q.packed:
            lines = [f"{name} next_avail={q.next_avail}; avail_wrap={q.avail_wrap}; next_used={q.next_used}; "
                     f"used_wrap={q.used_wrap}; driver_event={virtio_load32(q.peer_event):#x}; "
                     f"device_event={virtio_load32(q.my_event):#x}"]
        else:
            lines = [f"{name} avail.idx={virtio_load16(&q.avail.idx)}; avail_cons_idx={q.next_avail}; "
                     f"used.idx={q.next_used}; used_event_idx={virtio_load16(q.avail.ring + q.size)}; "
                     f"avail_event_idx={q.avail_event}; avail.flags={virtio_load16(&q.avail.flags):#x}; "
                     f"used.flags={q.used_flags:#x}"]
        lines.extend(f"  {chain!r}" for chain in self.taken.values())
        if self.fault.code != VIRTIO_FAULT_NONE:
            lines.append(f"  broken: {self.error()}")
        return "\n".join(lines)

    # ---- chains that outlive the process ----

    def track(self, Inflight inflight not None):
        """Note what is popped and given back in ``inflight``, for who works this ring after us; go on where it stands.

        An empty region begins where the queue stands. Of any other, the chains that were in flight are popped again
        before those of the ring, in the order in which they were popped first. Then also the queue stands where the
        region says (packed), or behind used.idx by what is in flight (split).

        Raises RingError for a region that cannot be, ValueError if it is too small, if a queue has had it, or if chains
        are outstanding; the error that broke the queue, if it is broken. :meth:`reset` ends it.

        Source: QEMU's docs/interop/vhost-user.rst, "Inflight I/O tracking".
        """
        if virtio_load32_acquire(&self.fault.code) != VIRTIO_FAULT_NONE:
            raise self.error()
        if self.inflight is not None:
            raise ValueError("queue has an inflight region already")
        self.hold()
        try:
            inflight.attach(self.q)
            self.inflight = inflight
        finally:
            self.release()

    cdef list waiting(self):
        """Return the chains that are in flight and were not popped again yet, which they are not by this."""
        cdef virtio_device_queue *q = self.q
        cdef virtio_chain chains[BURST]
        cdef uint32_t room = q.max_chain + VIRTIO_REGIONS_MAX + BURST
        cdef iovec *segs
        cdef uint32_t i, n = 1, total = 0
        cdef list result = []
        if q.inflight is NULL:
            return result
        segs = <iovec *>malloc(room * sizeof(iovec))
        if segs is NULL:
            raise MemoryError()
        self.hold()
        try:
            while n:
                n = inflight_pop_again(q, chains, BURST, segs, room)
                total += n
                for i in range(n):
                    result.append(self.view(&chains[i], segs, self.memory._regions))
        finally:
            q.inflight.again -= total
            virtio_store64(&q.chains, q.chains - total)
            self.release()
            free(segs)
        return result

    # ---- snapshot ----

    def state(self):
        """Return the queue's private state as plain data (JSON-able), for :meth:`restore`.

        The ring itself is in guest memory and must be saved with it. Chains that are outstanding are part of it; so are
        those that :meth:`track` found and were not popped again yet. The region that it was given is not. ``lost``:
        slots (split: chains) popped by whoever worked the ring before, which never come back. Take both ends' states
        and the memory while nothing runs.
        """
        cdef virtio_device_queue *q = self.q
        cdef Chain chain
        state = self.common_state("device")
        state.update(
            max_chain=self.max_chain, next_avail=q.next_avail, avail_wrap=q.avail_wrap, next_used=q.next_used,
            used_wrap=q.used_wrap, pending=q.pending, notify_enabled=q.notify_enabled, used_flags=q.used_flags,
            avail_event=q.avail_event, event_word=q.event_word,
        )
        state["outstanding"] = [
            {"head": chain.c.head, "slots": chain.c.slots, "written": chain.c.written,
             "readable": chain.pieces(0, chain.c.nreadable),
             "writable": chain.pieces(chain.c.nreadable, chain.c.nwritable)}
            for chain in [*self.taken.values(), *self.waiting()]
        ]
        state["lost"] = q.inuse if q.packed else <uint16_t>(q.next_avail - q.next_used)
        state["lost"] -= sum([saved["slots"] for saved in state["outstanding"]])
        return state

    @classmethod
    def restore(cls, GuestMemory memory not None, state):
        """Return a queue that goes on where ``state`` was taken, on memory that holds the ring of that moment.

        Its ``outstanding`` chains are to be finished, or done again. The next :meth:`needs_notification` says yes
        whatever the event index: an interrupt may have been lost with the old process. Raises SnapshotError for a state
        that is malformed or contradicts itself; it is a MemoryFault too when the ring or a chain is not in memory.
        """
        cdef DeviceQueue self = cls.__new__(cls)
        cdef virtio_device_queue *q = self.q
        cdef uint32_t slots = 0
        cdef uint32_t used
        QUEUE(state)
        if state["end"] != "device":
            raise SnapshotError("end", f"is {state['end']!r:.80}, not 'device'")
        layout = layout_of(state["layout"], "layout")
        if state["features"] & Feature.RING_PACKED and not layout.is_packed:
            raise SnapshotError("layout", "is a split one, but RING_PACKED was negotiated")
        self.open(memory, layout, state["features"], state["index"], state["max_chain"])
        with placed("layout"):
            self.reset()
        entries(chain_of(q.size, q.packed), most=q.size)(state["outstanding"], "outstanding")
        for i, saved in enumerate(state["outstanding"]):
            slots += saved["slots"]
            with within(f"outstanding[{i}]"):
                self.rebuild(saved)
        number(0, q.size)(state["lost"], "lost")
        slots += state["lost"]
        if slots > q.size:
            raise SnapshotError("outstanding", f"has {slots} descriptors with the lost ones: queue size {q.size}")
        for key in ("next_avail", "next_used"):
            number(0, q.size - 1 if q.packed else 0xffff)(state[key], key)
        q.next_avail, q.next_used, q.inuse = state["next_avail"], state["next_used"], slots
        q.chains = len(self.taken)
        q.avail_wrap, q.used_wrap = bool(state["avail_wrap"]), bool(state["used_wrap"])
        if q.packed:
            used = (q.next_avail + q.size - q.next_used) if q.avail_wrap != q.used_wrap else q.next_avail - q.next_used
        else:
            used = <uint16_t>(q.next_avail - q.next_used)
        if used != slots:
            raise SnapshotError("outstanding", f"has {slots} slots with the lost ones, between used position "
                                f"{q.next_used} and {q.next_avail}")
        q.avail_seen = q.next_avail
        q.pending, q.notify_enabled = state["pending"], bool(state["notify_enabled"])
        q.used_flags, q.avail_event, q.event_word = state["used_flags"], state["avail_event"], state["event_word"]
        self.note.force = 1
        return self

    cdef int rebuild(self, object saved) except -1:
        """Make a Chain again from its saved form."""
        cdef virtio_chain c
        cdef iovec *segs
        cdef uint32_t n = 0
        cdef uint32_t room = len(saved["readable"]) + len(saved["writable"])
        cdef int got
        cdef uint64_t gpa, length
        for name in ("readable", "writable"):
            if sum([piece[1] for piece in saved[name]]) > 0xffffffff:
                raise SnapshotError(name, "has more than 4294967295 bytes")
        if saved["written"] > sum([piece[1] for piece in saved["writable"]]):
            raise SnapshotError("written", f"is {saved['written']}: more than is writable")
        memset(&c, 0, sizeof(c))
        c.head, c.slots = saved["head"], saved["slots"]
        room = 2 * room + VIRTIO_REGIONS_MAX  # the new map may have other seams
        segs = <iovec *>malloc(room * sizeof(iovec))
        if segs is NULL:
            raise MemoryError()
        try:
            for name in ("readable", "writable"):
                for i, (gpa, length) in enumerate(saved[name]):
                    got = memory_gather(&self.memory.c, gpa, length, segs + n, room - n)
                    if got < 0:
                        raise SnapshotFault(f"{name}[{i}]", gpa, length)
                    n += got
                    if name == "readable":
                        c.nreadable += got
                        c.readable += length
                    else:
                        c.nwritable += got
                        c.writable += length
            self.wrap(&c, segs, self.memory._regions).written = saved["written"]
        finally:
            free(segs)
        return 0
