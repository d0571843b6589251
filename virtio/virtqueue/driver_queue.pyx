"""The driver end of a virtqueue, split or packed."""

from cpython.buffer cimport PyObject_CheckBuffer
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, UINT32_MAX
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memset

from virtio._ring cimport (
    driver_dequeue_burst, driver_disable_intr, driver_enable_intr, driver_enqueue_burst, driver_notify, driver_nused,
    driver_postpone_intr,
)
from virtio.core.atomic cimport virtio_load16, virtio_load32, virtio_load32_acquire, virtio_store32
from virtio.core.counters cimport counted
from virtio.virtqueue.driver_common cimport driver_outstanding
from virtio.virtqueue.driver_state cimport MAX_INDIRECT, check_state, driver_resume, driver_state
from virtio.virtqueue.packed_driver cimport packed_driver_start
from virtio.virtqueue.split_driver cimport split_driver_start
from virtio.virtqueue.structs cimport (
    VIRTIO_ENQ_BYTES, VIRTIO_ENQ_EMPTY, VIRTIO_ENQ_FULL, VIRTIO_ENQ_TOO_BIG, VIRTIO_FAULT_DRAINED,
    VIRTIO_FAULT_NONE, VIRTIO_FAULT_RING_MEMORY, VIRTIO_Q_CLAMP_USED_LEN, latch, state_ndesc, state_writable,
    virtio_avail, virtio_completion, virtio_desc, virtio_desc_state, virtio_notify, virtio_packed_desc,
    virtio_packed_event, virtio_request, virtio_used,
)

from virtio.constants import Feature, Postpone
from virtio.errors import DoesNotFit, QueueFull, SnapshotError
from virtio.virtqueue.layout import QueueLayout
from virtio.virtqueue.saved import layout_of, placed


cdef extern from "Python.h":
    PyObject *PyList_GET_ITEM(object o, Py_ssize_t i)  # borrowed
    void PyList_SET_ITEM(object o, Py_ssize_t i, object item)  # steals a reference, keeps that of the old item


cdef extern from "stdlib.h":
    int posix_memalign(void **memptr, size_t alignment, size_t size)


cdef enum:
    BURST = 64  # completions taken at a time


cdef class DriverQueue(Queue):
    """The driver end of a virtqueue: makes chains of buffers available and takes them back.

    ``features`` are the negotiated bits (of them the queue reads EVENT_IDX, INDIRECT_DESC, IN_ORDER and
    RING_PACKED). ``indirect`` is the guest address of the tables for INDIRECT_DESC, ``size * max_indirect * 16`` bytes:
    chains of 2 to ``max_indirect`` pieces then take one descriptor. ``clamp_used_len`` cuts and counts used lengths
    that exceed the chain, as some legacy devices report them, where otherwise the queue breaks.

    The ring areas are zeroed: create the driver end before the device starts on the ring. Raises ValueError for
    parameters that do not fit together, MemoryFault when an area is outside of memory.

    Source: VIRTIO 1.4, 2.7 and 2.8; verbs as in FreeBSD's virtqueue(9). Threads: see Queue.
    """

    def __cinit__(self):
        cdef void *block = NULL
        if posix_memalign(&block, 64, sizeof(virtio_driver_queue)) != 0:
            raise MemoryError()
        memset(block, 0, sizeof(virtio_driver_queue))
        self.q = <virtio_driver_queue *>block
        self.note = &self.q.notify
        self.fault = &self.q.fault
        self.lock = &self.q.lock
        self.fault.code = VIRTIO_FAULT_RING_MEMORY  # until it is opened, no verb touches a ring
        self.cookies = []

    def __dealloc__(self):
        if self.q is not NULL:
            free(self.q.state)
            free(self.q)

    def __init__(self, GuestMemory memory not None, layout, *, features=0, int index=0, indirect=None, max_indirect=0,
                 bint clamp_used_len=False):
        self.open(memory, layout, features, index, indirect, max_indirect, clamp_used_len)
        self.reset()

    cdef int open(self, GuestMemory memory, object layout, object features, int index, object indirect,
                  object max_indirect, bint clamp) except -1:
        if not isinstance(layout, QueueLayout):
            raise TypeError(f"layout must be a QueueLayout, not {type(layout).__name__}")
        if indirect is not None:
            if not int(features) & Feature.INDIRECT_DESC:
                raise ValueError("indirect tables were given, but INDIRECT_DESC was not negotiated")
            if not 2 <= max_indirect <= MAX_INDIRECT:
                raise ValueError(f"max_indirect {max_indirect} out of range (2 to {MAX_INDIRECT})")
            if indirect % 16:
                raise ValueError(f"indirect tables at {indirect:#x} are not aligned to 16 bytes")
        elif max_indirect:
            raise ValueError(f"max_indirect {max_indirect} without a guest address for the tables")
        self.indirect_at = indirect
        self.q.max_indirect = max_indirect if indirect is not None else 0
        self.q.packed = layout.is_packed
        self.setup(memory, layout, features, index)
        self.q.flags = self.queue_flags() | (VIRTIO_Q_CLAMP_USED_LEN if clamp else 0)
        return 0

    cdef int renew(self, object layout, bint zero) except -1:
        """Bind to layout as a fresh queue; raises and changes nothing when that cannot be."""
        cdef virtio_driver_queue *q = self.q
        cdef virtio_desc_state *state
        cdef list cookies
        cdef Py_ssize_t size
        self.check_layout(layout)
        size = layout.size
        if self.indirect_at is not None:
            self.memory.translate(self.indirect_at, <uint64_t>size * q.max_indirect * 16)
        cookies = [None] * size
        # one block: the states, and behind them the links
        state = <virtio_desc_state *>calloc(size, sizeof(virtio_desc_state) + sizeof(uint16_t))
        if state is NULL:
            raise MemoryError()
        self.hold()
        free(q.state)
        q.state = state
        q.links = <uint16_t *>(state + size)
        q.size = <uint16_t>size
        self.layout = layout
        cookies, self.cookies = self.cookies, cookies  # the old ones die after the lock is released
        self.start()
        self.remap()
        if zero and self.fault.code == VIRTIO_FAULT_NONE:
            memset(q.desc, 0, 16 * size)
            memset(q.avail, 0, 4 if q.packed else 6 + 2 * size)
            memset(q.used, 0, 4 if q.packed else 6 + 8 * size)
        self.release()
        return 0

    cdef bint map_areas(self) noexcept:
        cdef virtio_driver_queue *q = self.q
        cdef uint64_t size = q.size
        cdef uint8_t *tables = NULL
        cdef uint8_t *desc = self.map_area(self.layout.desc, 16 * size)
        cdef uint8_t *driver = self.map_area(self.layout.driver, 4 if q.packed else 6 + 2 * size)
        cdef uint8_t *device = self.map_area(self.layout.device, 4 if q.packed else 6 + 8 * size)
        if desc is NULL or driver is NULL or device is NULL:
            return 0
        if self.indirect_at is not None:
            tables = self.map_area(self.indirect_at, size * q.max_indirect * 16)
            if tables is NULL:
                return 0
            q.indirect_gpa = self.indirect_at
        q.indirect = tables
        q.desc = <virtio_desc *>desc
        q.ring = <virtio_packed_desc *>desc
        q.avail = <virtio_avail *>driver
        q.used = <virtio_used *>device
        q.my_event = <virtio_packed_event *>driver
        q.peer_event = <virtio_packed_event *>device
        return 1

    cdef void start(self) noexcept:
        if self.q.packed:
            packed_driver_start(self.q)
        else:
            split_driver_start(self.q)
        memset(self.note, 0, sizeof(virtio_notify))
        virtio_store32(&self.fault.code, VIRTIO_FAULT_NONE)

    def reset(self, layout=None):
        """Go back to a fresh queue, healed and empty, at ``layout`` or where it was (VIRTIO 1.4, 2.6.1 RING_RESET).

        For when the device no longer works the ring: after a device or queue reset. What was outstanding is forgotten;
        :meth:`drain` first to have the cookies. The ring areas are zeroed. A new layout may have another size, not
        another format. Raises MemoryFault and ValueError as the constructor does, and then changes nothing.
        """
        self.renew(self.layout if layout is None else layout, True)

    # ---- buffers ----

    cdef int parse(self, object pieces, sg_list *out) except -1:
        """Append pieces to out; return how many they were."""
        cdef object gpa, length
        cdef virtio_sg *grown
        cdef int n = 0
        for piece in pieces:
            if isinstance(piece, tuple):
                gpa, length = piece
            elif PyObject_CheckBuffer(piece):
                gpa, length = self.memory.buffer_to_gpa(piece)
            else:
                raise TypeError(f"a piece is (guest address, length) or a buffer, not {type(piece).__name__}")
            if not 0 <= gpa < 1 << 64:
                raise ValueError(f"guest address {gpa} is no 64-bit address")
            if not 0 < length < 1 << 32:
                raise ValueError(f"piece of {length} bytes (1 to {(1 << 32) - 1})")
            if out.n == out.room:
                grown = <virtio_sg *>realloc(out.sg, 2 * (out.room + 8) * sizeof(virtio_sg))
                if grown is NULL:
                    raise MemoryError()
                out.sg = grown
                out.room = 2 * (out.room + 8)
            out.sg[out.n].gpa = gpa
            out.sg[out.n].len = length
            out.n += 1
            n += 1
        if n > 0xffff:
            raise DoesNotFit(f"chain of {n} pieces (queue size {self.q.size})", n, self.q.size)
        return n

    cdef object refuse(self, int why, uint32_t pieces):
        """Return the exception for a chain of so many pieces that was not enqueued."""
        cdef uint32_t nfree = self.nfree
        if why == VIRTIO_ENQ_FULL:
            return QueueFull(f"no descriptor is free (queue size {self.q.size})")
        if why == VIRTIO_ENQ_TOO_BIG:
            return DoesNotFit(f"chain of {pieces} pieces needs more descriptors than are free ({nfree} of "
                              f"{self.q.size}; indirect tables take {self.q.max_indirect})", pieces, nfree)
        if why == VIRTIO_ENQ_BYTES:
            return ValueError(f"chain of more than {UINT32_MAX} bytes")
        if why == VIRTIO_ENQ_EMPTY:
            return ValueError("chain of no pieces")
        return self.error()

    def enqueue(self, readable=(), writable=(), cookie=None):
        """Make one chain available to the device; return its head (split) or buffer id (packed).

        ``readable`` and ``writable`` are sequences of pieces, which the device reads and writes: (guest address,
        length in bytes) or a buffer object that lies in guest memory. ``cookie`` is any object; dequeue gives it back.
        Tell the device with :meth:`notify`, once for as many chains as you like.

        Raises QueueFull (no descriptor is free), DoesNotFit (some are, but too few), ValueError (no pieces, or more
        than
        2^32 - 1 bytes), MemoryFault (a buffer that is not guest memory), or the error that broke the queue.
        """
        cdef sg_list list_
        cdef virtio_request req
        cdef uint32_t done = 0
        cdef int why = 0
        list_.sg = NULL
        list_.room = list_.n = 0
        try:
            req.readable = self.parse(readable, &list_)
            req.writable = self.parse(writable, &list_)
            req.cookie = 0
            self.hold()
            done = driver_enqueue_burst(self.q, list_.sg, &req, 1, &why)
            if done:
                self.cookies[req.head] = cookie
            self.release()
        finally:
            free(list_.sg)
        if not done:
            raise self.refuse(why, list_.n)
        return req.head

    def enqueue_burst(self, chains):
        """Make chains available, each (readable, writable, cookie) as in :meth:`enqueue`; return how many were taken.

        They are taken in order until one does not fit; what the device sees, it sees at once. Returns fewer than were
        given when the queue is full; raises as :meth:`enqueue` when the first cannot be taken for another reason.
        Nothing is enqueued when one of the arguments is no chain.
        """
        cdef sg_list list_
        cdef list items = list(chains)
        cdef uint32_t n = <uint32_t>len(items)
        cdef virtio_request *req = <virtio_request *>malloc((n + 1) * sizeof(virtio_request))
        cdef uint32_t done = 0
        cdef uint32_t i
        cdef int why = 0
        list_.sg = NULL
        list_.room = list_.n = 0
        if req is NULL:
            raise MemoryError()
        try:
            for i in range(n):
                items[i] = item = tuple(items[i])
                readable, writable, _ = item
                req[i].readable = self.parse(readable, &list_)
                req[i].writable = self.parse(writable, &list_)
                req[i].cookie = 0
            self.hold()
            done = driver_enqueue_burst(self.q, list_.sg, req, n, &why)
            for i in range(done):
                self.cookies[req[i].head] = (<tuple>items[i])[2]
            self.release()
            if done == 0 and n and why != VIRTIO_ENQ_FULL:
                raise self.refuse(why, <uint32_t>req[0].readable + req[0].writable)
        finally:
            free(list_.sg)
            free(req)
        return done

    def dequeue(self):
        """Take back one used chain: (cookie, bytes that the device wrote), or None when none waits.

        Raises the error that broke the queue, if it is broken.
        """
        cdef list got = self.dequeue_burst(1)
        return got[0] if got else None

    def dequeue_burst(self, Py_ssize_t limit=256):
        """Take back up to ``limit`` used chains, in the order of the used ring: a list of (cookie, bytes written).

        What came back before the device broke the queue is returned; the call after that raises the error.
        """
        cdef virtio_completion out[BURST]
        cdef PyObject *taken[BURST]
        cdef list result = []
        cdef uint32_t n, want, i
        while limit > 0:
            want = BURST if limit > BURST else <uint32_t>limit
            self.hold()
            n = driver_dequeue_burst(self.q, out, want)
            for i in range(n):  # under the lock, since the next enqueue may reuse the head; references move, none dies
                taken[i] = PyList_GET_ITEM(self.cookies, out[i].head)
                Py_INCREF(None)
                PyList_SET_ITEM(self.cookies, out[i].head, None)
            self.release()
            for i in range(n):
                cookie = <object>taken[i]
                Py_DECREF(cookie)  # the list's reference
                result.append((cookie, out[i].len))
            limit -= n
            if n < want:
                break
        if not result and virtio_load32_acquire(&self.fault.code) != VIRTIO_FAULT_NONE:
            raise self.error()
        return result

    def drain(self):
        """Forget everything outstanding; return its cookies, by head.

        For a queue whose device no longer works it: after a reset, before :meth:`reset`.
        """
        cdef list result = []
        cdef list cookies = [None] * self.q.size  # made before the lock: an allocation may run a finaliser
        cdef uint32_t head
        self.hold()
        for head in range(self.q.size):
            if state_ndesc(self.q.state[head].word):
                self.q.state[head].word = 0
                result.append(self.cookies[head])
        self.q.completions = self.q.chains
        # the ring no longer matches what the device may still see of it: only a reset makes it usable again
        latch(self.fault, VIRTIO_FAULT_DRAINED, UINT32_MAX, len(result), 0)
        self.cookies, cookies = cookies, self.cookies
        self.release()
        return result

    # ---- notification ----

    def notify(self):
        """Say whether the device must be kicked for what was enqueued since the last call.

        The caller then writes the queue's index, or :meth:`notification_data`, to the device's notify register or
        eventfd. Source: VIRTIO 1.4, 2.7.13.4 and 2.8.21.3.
        """
        cdef bint yes
        self.hold()
        yes = driver_notify(self.q)
        self.release()
        return yes

    def notification_data(self):
        """Return the 32-bit value of a kick when NOTIFICATION_DATA was negotiated (VIRTIO 1.4, 2.9)."""
        cdef uint32_t next = self.q.next_avail
        if self.q.packed:
            next |= <uint32_t>self.q.avail_wrap << 15
        return self.index | next << 16

    def enable_intr(self):
        """Ask for an interrupt at the next completion; return whether some wait already.

        True: process them now and call again, for no interrupt may come for them.
        """
        cdef bint waiting
        self.hold()
        waiting = driver_enable_intr(self.q)
        self.release()
        return waiting

    def postpone_intr(self, hint):
        """Ask for an interrupt after a share of the outstanding chains: Postpone.SHORT 1/4, LONG 3/4, EMPTIED all.

        Returns whether more than that share waits already, as :meth:`enable_intr`. Without EVENT_IDX the interrupt
        comes at the next completion.
        """
        cdef int kind = Postpone(hint)
        cdef bint waiting
        self.hold()
        waiting = driver_postpone_intr(self.q, kind)
        self.release()
        return waiting

    def disable_intr(self):
        """Ask for no interrupts; a hint to the device, not a promise by it."""
        self.hold()
        driver_disable_intr(self.q)
        self.release()

    # ---- figures ----

    @property
    def nfree(self):
        """Descriptors free."""
        cdef uint32_t n
        self.hold()
        n = self.q.nfree
        self.release()
        return n

    @property
    def nused(self):
        """Used chains that wait to be dequeued. Looks at the ring."""
        cdef uint32_t n
        self.hold()
        n = driver_nused(self.q)
        self.release()
        return n

    @property
    def outstanding(self):
        """Chains enqueued and not yet dequeued."""
        cdef uint32_t n
        self.hold()
        n = <uint32_t>driver_outstanding(self.q)
        self.release()
        return n

    @property
    def full(self):
        """Whether no descriptor is free."""
        return self.nfree == 0

    @property
    def empty(self):
        """Whether nothing is outstanding."""
        return self.outstanding == 0

    def counters(self):
        """Return what was counted since the queue was made, reset or restored: chains, completions, kicks,
        kicks_suppressed, clamped.
        """
        return {
            "chains": counted(&self.q.chains),
            "completions": counted(&self.q.completions),
            "kicks": counted(&self.note.sent),
            "kicks_suppressed": counted(&self.note.suppressed),
            "clamped": counted(&self.q.clamped),
        }

    def dump(self):
        """Return the ring's state for a person, in the manner of FreeBSD's virtqueue_dump."""
        cdef virtio_driver_queue *q = self.q
        cdef uint32_t head
        cdef uint64_t word
        name = f"VQ: driver {self.index} - size={q.size}; free={q.nfree}; used={self.nused}; queued={q.pending};"
        if self.fault.code == VIRTIO_FAULT_RING_MEMORY:
            return f"{name} broken: {self.error()}"
        if q.packed:
            lines = [f"{name} next_avail={q.next_avail}; avail_wrap={q.avail_wrap}; next_used={q.next_used}; "
                     f"used_wrap={q.used_wrap}; driver_event={virtio_load32(q.my_event):#x}; "
                     f"device_event={virtio_load32(q.peer_event):#x}"]
        else:
            lines = [f"{name} desc_head_idx={q.free_head}; avail.idx={virtio_load16(&q.avail.idx)}; "
                     f"used_cons_idx={q.next_used}; used.idx={virtio_load16(&q.used.idx)}; "
                     f"used_event_idx={virtio_load16(q.avail.ring + q.size)}; "
                     f"avail.flags={virtio_load16(&q.avail.flags):#x}; used.flags={virtio_load16(&q.used.flags):#x}"]
        for head in range(q.size):
            word = q.state[head].word
            if state_ndesc(word):
                lines.append(f"  chain {head}: {state_ndesc(word)} descriptor(s), "
                             f"{state_writable(word)} bytes writable")
        if self.fault.code != VIRTIO_FAULT_NONE:
            lines.append(f"  broken: {self.error()}")
        return "\n".join(lines)

    # ---- snapshot ----

    def state(self):
        """Return the queue's private state as plain data (JSON-able), for :meth:`restore`.

        The ring itself is in guest memory and must be saved with it; cookies are the caller's to save, by head. Take
        both ends' states and the memory while nothing runs.
        """
        state = self.common_state("driver")
        state["indirect"] = self.indirect_at
        state.update(driver_state(self.q))
        return state

    @classmethod
    def restore(cls, GuestMemory memory not None, state, cookies=None):
        """Return a queue that goes on where ``state`` was taken, on memory that holds the ring of that moment.

        ``cookies`` maps heads to cookies (default: each outstanding chain's cookie is its head). The next
        :meth:`notify` says yes whatever the event index: a kick may have been lost with the old process. Raises
        SnapshotError for a state that is malformed; it is a MemoryFault too when the ring is not in memory.
        """
        cdef DriverQueue self = cls.__new__(cls)
        check_state(state)
        layout = layout_of(state["layout"], "layout")
        if state["features"] & Feature.RING_PACKED and not layout.is_packed:
            raise SnapshotError("layout", "is a split one, but RING_PACKED was negotiated")
        with placed("indirect"):
            self.open(memory, layout, state["features"], state["index"], state["indirect"], state["max_indirect"],
                      state["clamp_used_len"])
            with placed("layout"):
                self.check_layout(layout)
            self.renew(layout, False)
        driver_resume(self.q, state)
        for head, _, _ in state["outstanding"]:
            self.cookies[head] = head if cookies is None else cookies.get(head)
        return self
