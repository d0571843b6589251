"""Coalescing of TCP segments (LRO, GRO) from Python: frames in, merged frames out."""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject, PyTypeObject, traverseproc
from libc.stdint cimport uint8_t, uint32_t, uint64_t, UINT64_MAX
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from virtio.core.atomic cimport virtio_relax
from virtio.core.clock cimport now_ns
from virtio.core.lock cimport virtio_is_locked, virtio_trylock, virtio_unlock
from virtio.offload.batch cimport Batch
from virtio.offload.coalesce cimport (
    VIRTIO_COALESCE_FLOWS_MAX, VIRTIO_COALESCE_SEGMENTS_MAX, VIRTIO_FLUSH_AGE, VIRTIO_FLUSH_ASKED, VIRTIO_FLUSH_BYTES,
    VIRTIO_FLUSH_CWR, VIRTIO_FLUSH_ENDED, VIRTIO_FLUSH_FAR, VIRTIO_FLUSH_HEADER, VIRTIO_FLUSH_ID, VIRTIO_FLUSH_OVERLAP,
    VIRTIO_FLUSH_PASSED, VIRTIO_FLUSH_SEGMENTS, VIRTIO_FLUSH_SIZE, VIRTIO_FLUSH_TABLE, VIRTIO_PASS_ALONE,
    VIRTIO_PASS_CHECKSUM, VIRTIO_PASS_CHECKSUM_FORM, VIRTIO_PASS_EXTENSIONS, VIRTIO_PASS_FRAGMENT,
    VIRTIO_PASS_IP_OPTIONS, VIRTIO_PASS_MALFORMED, VIRTIO_PASS_NO_PAYLOAD, VIRTIO_PASS_NOT_TCP, VIRTIO_PASS_OVERLAP,
    VIRTIO_PASS_PADDED, VIRTIO_PASS_PUSHED, VIRTIO_PASS_TCP_FLAGS, VIRTIO_PASS_TOO_LARGE, VIRTIO_PASS_VLANS,
    coalesce_burst, coalesce_flush, coalesce_flush_flow, coalesce_room, coalescer_close, coalescer_limits,
    coalescer_open, virtio_coalesce_counters, virtio_coalescer, virtio_merged, virtio_piece,
)
from virtio.offload.net_hdr cimport NetHeader, virtio_net_hdr

import os

from virtio.core.process import made_before, watch


cdef extern from "Python.h":
    bint PyIndex_Check(object o)
    bint PyObject_CheckBuffer(object o)


cdef extern from "sched.h" nogil:
    int sched_yield()


cdef extern from * nogil:
    enum:
        ACQ_REL "__ATOMIC_ACQ_REL"
    uint64_t sub_fetch "__atomic_sub_fetch"(uint64_t *p, uint64_t n, int order)


cdef enum:
    CHUNK = 256  # frames of a batch taken in at a time, between which other threads may

_PASSED = {
    VIRTIO_PASS_ALONE: "alone", VIRTIO_PASS_NOT_TCP: "not_tcp", VIRTIO_PASS_MALFORMED: "malformed",
    VIRTIO_PASS_FRAGMENT: "fragment", VIRTIO_PASS_IP_OPTIONS: "ip_options", VIRTIO_PASS_EXTENSIONS: "extensions",
    VIRTIO_PASS_VLANS: "vlans", VIRTIO_PASS_PADDED: "padded", VIRTIO_PASS_TCP_FLAGS: "tcp_flags",
    VIRTIO_PASS_NO_PAYLOAD: "no_payload", VIRTIO_PASS_CHECKSUM: "checksum",
    VIRTIO_PASS_CHECKSUM_FORM: "checksum_form", VIRTIO_PASS_PUSHED: "pushed", VIRTIO_PASS_TOO_LARGE: "too_large",
    VIRTIO_PASS_OVERLAP: "overlap",
}
_FLUSHED = {
    VIRTIO_FLUSH_SEGMENTS: "segments", VIRTIO_FLUSH_BYTES: "bytes", VIRTIO_FLUSH_AGE: "age",
    VIRTIO_FLUSH_ASKED: "asked", VIRTIO_FLUSH_TABLE: "table", VIRTIO_FLUSH_ENDED: "ended",
    VIRTIO_FLUSH_HEADER: "header", VIRTIO_FLUSH_ID: "id", VIRTIO_FLUSH_SIZE: "size", VIRTIO_FLUSH_CWR: "cwr",
    VIRTIO_FLUSH_OVERLAP: "overlap", VIRTIO_FLUSH_FAR: "far", VIRTIO_FLUSH_PASSED: "passed",
}


cdef uint64_t number(str name, object value, uint64_t low, uint64_t high) except? 0:
    if not PyIndex_Check(value):
        raise TypeError(f"{name} is an int, not {value!r}")
    value = int(value)
    if not low <= value <= high:
        raise ValueError(f"{name} {value} out of range ({low} to {high})")
    return value


@cython.final
@cython.internal
@cython.no_gc_clear
cdef class Input(Batch):
    """The frames of one call. A Coalescer has a reference to it while it holds one of them, a Merged while it is there.

    A frame's cookie is the address of its tag, which tells the Input and the frame's number in it.
    """

    cdef PyObject **tags      # [count], each this object; then
    cdef uint64_t *cookies    # [count]
    cdef uint8_t *trusted     # [count], or NULL
    cdef uint64_t kept        # frames that the Coalescer has, or did not take in yet

    def __dealloc__(self):
        free(self.tags)
        free(self.trusted)

    cdef int tag(self) except -1:
        cdef uint32_t i
        self.tags = <PyObject **>malloc((<size_t>self.count + 1) * (sizeof(PyObject *) + sizeof(uint64_t)))
        if self.tags is NULL:
            raise MemoryError()
        self.cookies = <uint64_t *>(self.tags + self.count)
        for i in range(self.count):
            self.tags[i] = <PyObject *>self
            self.cookies[i] = <uint64_t>(&self.tags[i])
        self.kept = self.count
        return 0

    cdef int trust(self, object trusted) except -1:
        """Read what receive() is told of the checksums. A number is refused: it could be meant as a count of frames."""
        cdef bytes flags
        if not isinstance(trusted, bool):
            if type(trusted).__module__ == "numpy" and type(trusted).__name__ in ("bool", "bool_"):
                trusted = bool(trusted)
            elif isinstance(trusted, str) or not hasattr(trusted, "__iter__"):
                raise TypeError(f"trusted is a bool, or a sequence of one for each frame, not {trusted!r}")
        if trusted is False:
            return 0
        self.trusted = <uint8_t *>malloc(<size_t>self.count + 1)
        if self.trusted is NULL:
            raise MemoryError()
        if trusted is True:
            memset(self.trusted, 1, self.count)
            return 0
        flags = bytes([bool(flag) for flag in trusted])
        if len(flags) != self.count:
            raise ValueError(f"{len(flags)} values of trusted for {self.count} frames")
        memcpy(self.trusted, PyBytes_AS_STRING(flags), self.count)
        return 0

    cdef object view(self, uint32_t i, const uint8_t *base, uint32_t length):
        """A memoryview of length bytes at base, in frame i."""
        cdef Py_ssize_t start
        cdef Window window
        if isinstance(self.source, tuple):
            start = base - self.data[i]
            view = memoryview(self.source[i])
        else:  # one buffer with offsets
            start = base - <const uint8_t *>self.held[0].buf
            view = memoryview(self.source)
        if view.format == "B" and view.ndim == 1:
            return view[start:start + length]
        window = Window.__new__(Window)
        window.source, window.base, window.length, window.readonly = self, base, length, view.readonly
        return memoryview(window)


# Cython's traversal knows Python attributes only; but each Py_buffer has a reference to its object, too.
ctypedef int (*visit_call)(PyObject *o, void *arg) noexcept
ctypedef int (*traverse_call)(PyObject *o, visit_call visit, void *arg) noexcept

cdef PyTypeObject *input_type = <PyTypeObject *>Input
cdef traverse_call traverse_attributes = <traverse_call><void *>input_type.tp_traverse


cdef int traverse(PyObject *o, visit_call visit, void *arg) noexcept:
    cdef uint32_t i
    cdef PyObject *held
    cdef int stop
    for i in range((<Batch>o).nheld):
        held = <PyObject *>(<Batch>o).held[i].obj
        stop = visit(held, arg) if held is not NULL else 0
        if stop:
            return stop
    return traverse_attributes(o, visit, arg)


input_type.tp_traverse = <traverseproc><void *>traverse


@cython.final
@cython.internal
@cython.no_gc_clear
cdef class Window:
    """Bytes of a frame whose buffer is no row of bytes: memoryview.cast() does not know all shapes and formats."""

    cdef Input source
    cdef const uint8_t *base
    cdef uint32_t length
    cdef bint readonly

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void *>self.base, self.length, self.readonly, flags)


cdef inline Input input_of(const virtio_piece *piece):
    return <Input>(<PyObject **>piece.cookie)[0]


@cython.final
@cython.freelist(256)
@cython.no_gc_clear
cdef class Merged:
    """What a Coalescer gives back: segments merged into one frame, or a frame untouched.

    The frame is :attr:`header` followed by :attr:`pieces`, which are views of the input buffers; ``bytes()`` joins
    them, ``len()`` counts their bytes. A frame given back untouched has an empty header and is its own one piece. The
    input buffers are held as long as this object is: all those of the calls that its segments came in.

    The IP length, IPv4 checksum and TCP flags in the header are right for the whole; its TCP checksum is that of the
    pseudo header, as NEEDS_CSUM has it (VIRTIO 1.4, 5.1.9.2).

    Threads: immutable. Cannot be made from Python.
    """

    cdef object sources            # the Input; a list of several in the order of the pieces
    cdef bytes block               # of a merged frame: virtio_merged, then virtio_piece[segments]
    cdef const virtio_merged *m    # in the block, NULL for an untouched frame
    cdef const virtio_piece *first
    cdef virtio_piece whole        # of an untouched frame
    cdef virtio_net_hdr net
    cdef uint8_t why

    def __init__(self):
        raise TypeError("Merged objects come from a Coalescer")

    @property
    def header(self):
        """Ethernet, IP and TCP header for all segments, as bytes; empty for an untouched frame."""
        return b"" if self.m is NULL else PyBytes_FromStringAndSize(<const char *>self.m.header, self.m.header_length)

    @property
    def pieces(self):
        """What follows the header: a list of memoryviews of the input buffers, in sequence order."""
        cdef const virtio_piece *piece
        cdef Input source
        cdef uint32_t i, frame
        cdef list views = []
        for i in range(self.segments):
            piece = self.first + i
            source = input_of(piece)
            frame = <uint32_t>(<PyObject **>piece.cookie - source.tags)
            views.append(source.view(frame, piece.base, piece.length))
        return views

    @property
    def segments(self):
        """Input frames in it; 1 for an untouched frame."""
        return 1 if self.m is NULL else self.m.segments

    @property
    def net_header(self):
        """What struct virtio_net_hdr says of the frame, a :class:`~virtio.offload.NetHeader` of its own each time.

        ``num_buffers`` is 1. A merged frame has NEEDS_CSUM, with ``csum_start`` and ``csum_offset``; with rsc_info
        RSC_INFO, too, and the number of segments and 0 duplicate ACKs there. An untouched frame has DATA_VALID if TCP's
        checksum is known to be right. ``gso_type`` has ECN if the first segment has CWR.
        """
        cdef NetHeader header = NetHeader.__new__(NetHeader)
        header.load(&self.net)
        return header

    @property
    def gso_type(self):
        """The header's, for segmentation: TCPV4 1 or TCPV6 4, perhaps with ECN 0x80; 0 for an untouched frame."""
        return self.net.gso_type

    @property
    def gso_size(self):
        """The header's: payload bytes of each segment but perhaps the last; 0 for an untouched frame."""
        return self.net.gso_size

    @property
    def fixed_id(self):
        """Whether all segments have the same IPv4 id. struct virtio_net_hdr cannot tell; segmentation must be told."""
        return self.m is not NULL and bool(self.m.fixed_id)

    @property
    def passed(self):
        """Why the frame is untouched: a key of ``Coalescer.statistics()["passed"]``; None if it is merged."""
        return _PASSED.get(self.why)

    def __len__(self):
        return self.whole.length if self.m is NULL else self.m.length

    def __bytes__(self):
        cdef bytes joined = PyBytes_FromStringAndSize(NULL, len(self))
        cdef char *to = PyBytes_AS_STRING(joined)
        cdef uint32_t i
        if self.m is not NULL:
            memcpy(to, self.m.header, self.m.header_length)
            to += self.m.header_length
        for i in range(self.segments):
            memcpy(to, self.first[i].base, self.first[i].length)
            to += self.first[i].length
        return joined

    def __repr__(self):
        if self.m is NULL:
            return f"<Merged: {len(self)} bytes, untouched ({self.passed})>"
        return f"<Merged: {len(self)} bytes, {self.segments} segments of {self.gso_size}>"


# Results of one call of the kernel, and memory for the next.
cdef struct results:
    virtio_merged *out
    virtio_piece *pieces      # of all merged ones, one after the other
    size_t room               # for so many pieces
    uint32_t count
    uint32_t taken            # frames
    bint more                 # flows wait that found no room


cdef inline int fill(Merged item, const virtio_merged *m, const virtio_piece *pieces) except -1:
    """What a result says, and references to what it lies in."""
    cdef size_t bytes = m.segments * sizeof(virtio_piece)
    cdef Input source = input_of(pieces)
    cdef uint32_t i
    item.net = m.net
    item.why = m.passed
    item.sources = source
    if m.pieces is NULL:
        item.whole = m.whole
        item.first = &item.whole
        return 0
    for i in range(1, m.segments):
        if input_of(&pieces[i]) is not source:
            source = input_of(&pieces[i])
            if isinstance(item.sources, list):
                (<list>item.sources).append(source)
            else:
                item.sources = [item.sources, source]
    item.block = PyBytes_FromStringAndSize(NULL, sizeof(virtio_merged) + bytes)
    memcpy(PyBytes_AS_STRING(item.block), m, sizeof(virtio_merged))
    memcpy(PyBytes_AS_STRING(item.block) + sizeof(virtio_merged), pieces, bytes)
    item.first = <const virtio_piece *>(PyBytes_AS_STRING(item.block) + sizeof(virtio_merged))
    item.m = <const virtio_merged *>PyBytes_AS_STRING(item.block)
    return 0


@cython.final
@cython.no_gc_clear
cdef class Coalescer:
    """Merges TCP segments of a flow into large frames, losslessly: what it gives, segmented again, is the very input.

    ``flows`` of which something is held at a time (1 to 65000); when one more comes, the oldest is flushed.
    ``segments`` held of a flow (2 to 1024). ``max_bytes`` of a merged IP packet with its headers (1 to 65535).
    ``max_age_ns``: from the arrival of a flow's first segment until it is flushed, looked at when :meth:`receive` has
    taken its frames in; None for no such limit, 0 to hold nothing over a call. ``verify``: verify the IPv4 header's
    checksum and TCP's first, and let pass what is wrong; with False it is believed, and what was wrong comes out right.
    ``fixed_id``: merge segments with DF and all the same IPv4 id, too; see :attr:`Merged.fixed_id`. ``rsc_info``: for
    VIRTIO_NET_F_RSC_EXT, the number of segments in the header instead of where the checksum is.

    Which segments merge is said in coalesce.pxd: in short, those that one header can stand for. All others pass
    untouched. A flow's frames leave in order of arrival, but those held together leave in sequence order.

    Memory, (192 + 32 * segments) bytes a flow, is allocated once. Raises ValueError for a parameter out of range,
    MemoryError.

    Threads: any may call; calls take turns, between every 256 frames of a batch. Batches are worked on without the GIL.

    Source: VIRTIO 1.4, 5.1.9.4; RFC 9293; the rules are those of Linux's GRO, made lossless, and with reordering.
    """

    cdef virtio_coalescer c
    cdef uint32_t lock
    cdef int lost         # the process of which a thread was in a call at fork(), if this one is its child
    cdef object __weakref__
    cdef results spare    # of which one call at a time makes use
    cdef set inputs       # of which frames are held

    def __cinit__(self, *, flows=64, segments=64, max_bytes=65535, max_age_ns=None, verify=True, fixed_id=False,
                  rsc_info=False):
        cdef coalescer_limits limits
        cdef bytes secret = os.urandom(sizeof(limits.secret))
        limits.flows = <uint32_t>number("flows", flows, 1, VIRTIO_COALESCE_FLOWS_MAX)
        limits.segments = <uint32_t>number("segments", segments, 2, VIRTIO_COALESCE_SEGMENTS_MAX)
        limits.max_bytes = <uint32_t>number("max_bytes", max_bytes, 1, 65535)
        limits.max_age = UINT64_MAX if max_age_ns is None else number("max_age_ns", max_age_ns, 0, UINT64_MAX - 1)
        self.inputs = set()
        limits.verify, limits.allow_fixed_id, limits.rsc_info = bool(verify), bool(fixed_id), bool(rsc_info)
        memcpy(limits.secret, PyBytes_AS_STRING(secret), sizeof(limits.secret))
        if coalescer_open(&self.c, &limits) < 0:
            raise MemoryError()
        watch(self)

    def _forked(self, int parent):
        """Be of no use any more, if a thread of the parent was in a call. See virtio.core.process."""
        if virtio_is_locked(&self.lock):
            self.lost, self.lock = parent, 0

    cdef int check(self) except -1:
        if self.lost:
            raise made_before("coalescer", self.lost)
        return 0

    def __dealloc__(self):
        if self.lost:
            return  # half of a change was done: what it holds stays
        coalescer_close(&self.c)
        free(self.spare.out)
        free(self.spare.pieces)

    cdef void own(self) noexcept nogil:
        """Become the owner. No owner runs Python code, so none is it for long."""
        cdef uint32_t spins = 0
        while not virtio_trylock(&self.lock):
            spins += 1
            if spins & 63 == 0:
                sched_yield()
            else:
                virtio_relax()

    cdef int run(self, const uint8_t *const *frames, const uint32_t *lengths, const uint64_t *cookies,
                 const uint8_t *trusted, uint32_t n, uint64_t now, results *r) noexcept nogil:
        """Take n frames in; or, without cookies, flush the flow of the one frame; or, without frames, all. -1: no
        memory, and nothing was done.
        """
        cdef virtio_coalescer *c = &self.c
        cdef const virtio_merged *m
        cdef virtio_piece *to
        cdef uint32_t room = coalesce_room(c) + CHUNK
        cdef size_t pieces
        cdef uint32_t i
        self.own()
        r[0] = self.spare
        memset(&self.spare, 0, sizeof(self.spare))
        pieces = <size_t>c.held_segments + n
        if r.out is NULL:
            r.out = <virtio_merged *>malloc(room * sizeof(virtio_merged))
        if r.room < pieces:
            free(r.pieces)
            r.pieces = <virtio_piece *>malloc(pieces * sizeof(virtio_piece))
            r.room = pieces
        if r.out is NULL or r.room and r.pieces is NULL:
            virtio_unlock(&self.lock)
            free(r.out)
            free(r.pieces)
            return -1
        r.taken = n
        if cookies is not NULL:
            r.taken = coalesce_burst(c, frames, lengths, cookies, trusted, n, now, r.out, room, &r.count)
            r.more = c.behind or r.taken < n
        elif frames is not NULL:
            r.count = coalesce_flush_flow(c, frames[0], lengths[0], r.out, room)
            r.more = 0
        else:
            r.count = coalesce_flush(c, r.out, room)
            r.more = c.held_flows != 0
        to = r.pieces
        for i in range(r.count):
            m = &r.out[i]
            if m.segments > 1:
                memcpy(to, m.pieces, m.segments * sizeof(virtio_piece))
                to += m.segments
        virtio_unlock(&self.lock)
        return 0

    cdef int release(self, Input source, uint64_t frames) except -1:
        """So many of its frames are held no longer: they were given back, or never taken in."""
        if sub_fetch(&source.kept, frames, ACQ_REL) == 0:
            self.inputs.discard(source)
        return 0

    cdef int unwrap(self, results *r, list merged) except -1:
        """Append a Merged for each result. What they lie in is held until all of them hold it."""
        cdef const virtio_piece *next = r.pieces
        cdef const virtio_piece *pieces
        cdef const virtio_merged *m
        cdef Merged item
        cdef uint32_t i, j
        cdef uint64_t frames = 0
        cdef Input last = None
        try:
            for i in range(r.count):
                m = &r.out[i]
                item = Merged.__new__(Merged)
                fill(item, m, next if m.pieces is not NULL else &m.whole)
                if m.pieces is not NULL:
                    next += m.segments
                merged.append(item)
        finally:
            next = r.pieces
            for i in range(r.count):
                m = &r.out[i]
                pieces = &m.whole
                if m.pieces is not NULL:
                    pieces = next
                    next += m.segments
                for j in range(m.segments):
                    if last is not input_of(&pieces[j]):
                        if last is not None:
                            self.release(last, frames)
                        last = input_of(&pieces[j])
                        frames = 0
                    frames += 1
            if last is not None:
                self.release(last, frames)
            self.own()
            if self.spare.out is NULL:
                self.spare = r[0]
                r.out, r.pieces = NULL, NULL
            virtio_unlock(&self.lock)
            free(r.out)
            free(r.pieces)
        return 0

    def receive(self, frames, *, offsets=None, now=None, trusted=False):
        """Take in a frame or many; return what is ready, a list of :class:`Merged`.

        ``frames`` is one buffer, which is one frame; or a sequence of buffers; or, with ``offsets`` (n + 1 rising
        numbers), one buffer in which frame i is ``frames[offsets[i]:offsets[i + 1]]``. They are not copied: they stay
        held until what holds them is given back and gone, and must not change before.

        ``now`` is the time in nanoseconds; the default is the monotonic clock's if there is a ``max_age_ns``.
        ``trusted``: whether the TCP checksum is known to be right (VIRTIO_NET_HDR_F_DATA_VALID), for all frames, or for
        each: a sequence of as many truth values.

        Raises TypeError, BufferError and ValueError as for any batch, TypeError for a ``now`` that is no integer or a
        ``trusted`` that is neither a bool nor a sequence, ValueError for a ``now`` that is not in 64 bits or another
        number of ``trusted``, MemoryError.
        """
        cdef Input batch = Input.__new__(Input)
        cdef uint64_t when = 0
        cdef uint32_t at = 0
        cdef uint32_t n
        cdef const uint8_t *trust = NULL
        self.check()
        cdef results r
        cdef list merged = []
        cdef bint single = offsets is None and PyObject_CheckBuffer(frames)
        cdef int failed
        if now is not None:
            when = number("now", now, 0, UINT64_MAX)
        elif self.c.max_age != UINT64_MAX:
            when = <uint64_t>now_ns()
        batch.load((frames,) if single else frames, offsets, False)
        batch.trust(trusted)
        batch.tag()
        if batch.count:
            self.inputs.add(batch)
        try:
            while True:
                n = batch.count - at if batch.count - at < CHUNK else <uint32_t>CHUNK
                if batch.trusted is not NULL:
                    trust = batch.trusted + at
                if single:
                    failed = self.run(<const uint8_t *const *>batch.data + at, batch.lengths + at, batch.cookies + at,
                                      trust, n, when, &r)
                else:
                    with nogil:
                        failed = self.run(<const uint8_t *const *>batch.data + at, batch.lengths + at,
                                          batch.cookies + at, trust, n, when, &r)
                if failed:
                    raise MemoryError()
                at += r.taken
                self.unwrap(&r, merged)
                if at == batch.count and not r.more:
                    return merged
        finally:
            if at < batch.count:
                self.release(batch, batch.count - at)

    def flush(self, frame=None):
        """Give out all that is held, the oldest flow first; or, given a frame, what is held of the flow that it is of.

        Returns a list of :class:`Merged`. Raises TypeError for what is no buffer, MemoryError.
        """
        cdef Batch batch = Batch.__new__(Batch)
        cdef list merged = []
        cdef results r
        self.check()
        if frame is not None:
            batch.load((frame,), None, False)
        while True:
            if self.run(<const uint8_t *const *>batch.data, batch.lengths, NULL, NULL, 0, 0, &r):
                raise MemoryError()
            self.unwrap(&r, merged)
            if not r.more:
                return merged

    def statistics(self):
        """Return counters since the beginning, as a dict.

        ``frames`` taken in, each of which is now one of ``held``, of ``segments`` or of ``passed``: ``held``, in
        ``held_flows``; merged frames given back, ``merged``, and input frames in them, ``segments``; ``passed``
        untouched, and ``flushed`` flows, both dicts by reason (see include/virtio/coalesce.h).
        """
        cdef virtio_coalesce_counters counters
        cdef uint32_t held, flows
        self.check()
        self.own()
        memcpy(&counters, &self.c.counters, sizeof(counters))
        held, flows = self.c.held_segments, self.c.held_flows
        virtio_unlock(&self.lock)
        return {
            "frames": counters.frames, "held": held, "held_flows": flows, "merged": counters.merged,
            "segments": counters.segments,
            "passed": {name: counters.passed[<int>why] for why, name in _PASSED.items()},
            "flushed": {name: counters.flushed[<int>why] for why, name in _FLUSHED.items()},
        }
