"""Coalescing of TCP segments (LRO, GRO) from Python: frames in, merged frames out."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_DECREF
from libc.stdint cimport uint8_t, uint32_t, uint64_t, UINT64_MAX
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from virtio._batch cimport Batch
from virtio._coalesce cimport *
from virtio._net_hdr cimport NetHeader

import os


cdef extern from "Python.h":
    bint PyObject_CheckBuffer(object o)


cdef extern from "sched.h" nogil:
    int sched_yield()


cdef extern from "time.h" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    enum:
        CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *now)


cdef extern from "virtio/atomic.h" nogil:
    bint virtio_trylock(uint32_t *lock)
    void virtio_unlock(uint32_t *lock)
    void virtio_relax()


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


@cython.final
@cython.internal
cdef class Input(Batch):
    """The frames of one call. Each frame that is not given back yet owns a reference to it.

    A frame's cookie is the address of its tag, which tells the Input and the frame's number in it.
    """

    cdef PyObject **tags      # [count], each this object
    cdef uint64_t *cookies    # [count]
    cdef uint8_t *trusted     # [count], or NULL

    def __dealloc__(self):
        free(self.tags)
        free(self.cookies)
        free(self.trusted)

    cdef int tag(self, object trusted) except -1:
        cdef uint32_t i
        cdef bytes flags
        self.tags = <PyObject **>malloc((self.count + 1) * sizeof(PyObject *))
        self.cookies = <uint64_t *>malloc((self.count + 1) * sizeof(uint64_t))
        if self.tags is NULL or self.cookies is NULL:
            raise MemoryError()
        if trusted is not False:
            self.trusted = <uint8_t *>malloc(self.count + 1)
            if self.trusted is NULL:
                raise MemoryError()
            if trusted is True:
                memset(self.trusted, 1, self.count)
            else:
                flags = bytes(trusted)
                if len(flags) != self.count:
                    raise ValueError(f"{len(flags)} values of trusted for {self.count} frames")
                memcpy(self.trusted, PyBytes_AS_STRING(flags), self.count)
        for i in range(self.count):
            self.tags[i] = <PyObject *>self
            self.cookies[i] = <uint64_t>(&self.tags[i])
            Py_INCREF(self)
        return 0

    cdef object view(self, uint32_t i, const uint8_t *base, uint32_t length):
        """A memoryview of length bytes at base, in frame i."""
        cdef Py_ssize_t start
        if isinstance(self.source, tuple):
            start = base - self.data[i]
            view = memoryview(self.source[i])
        else:  # one buffer with offsets
            start = base - <const uint8_t *>self.held[0].buf
            view = memoryview(self.source)
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
        return view[start:start + length]


cdef inline Input input_of(const virtio_piece *piece):
    return <Input>(<PyObject **>piece.cookie)[0]


cdef void drop(const virtio_piece *pieces, uint32_t count):
    """Give up the references that pieces own."""
    cdef uint32_t i
    for i in range(count):
        Py_DECREF(input_of(&pieces[i]))


@cython.final
@cython.freelist(64)
cdef class Merged:
    """What a Coalescer gives back: segments merged into one frame, or a frame untouched.

    The frame is :attr:`header` followed by :attr:`pieces`, which are views of the input buffers; ``bytes()`` joins
    them, ``len()`` counts their bytes. A frame given back untouched has an empty header and is its own one piece. The
    input buffers are held as long as this object is: all those of the calls that its segments came in.

    The IP length, IPv4 checksum and TCP flags in the header are right for the whole; its TCP checksum is that of the
    pseudo header, as NEEDS_CSUM has it (VIRTIO 1.4, 5.1.9.2).

    Threads: immutable. Cannot be made from Python.
    """

    cdef virtio_merged m
    cdef virtio_piece *owned  # pieces of a merged frame; NULL: m.whole

    def __init__(self):
        raise TypeError("Merged objects come from a Coalescer")

    def __dealloc__(self):
        if self.m.segments:
            drop(self.piece(0), self.m.segments)
        free(self.owned)

    cdef const virtio_piece *piece(self, uint32_t i) noexcept:
        return self.owned + i if self.owned is not NULL else &self.m.whole

    @property
    def header(self):
        """Ethernet, IP and TCP header for all segments, as bytes; empty for an untouched frame."""
        return PyBytes_FromStringAndSize(<const char *>self.m.header, self.m.header_length)

    @property
    def pieces(self):
        """What follows the header: a list of memoryviews of the input buffers, in sequence order."""
        cdef const virtio_piece *piece
        cdef Input source
        cdef uint32_t i, frame
        cdef list views = []
        for i in range(self.m.segments):
            piece = self.piece(i)
            source = input_of(piece)
            frame = <uint32_t>(<PyObject **>piece.cookie - source.tags)
            views.append(source.view(frame, piece.base, piece.length))
        return views

    @property
    def segments(self):
        """Input frames in it; 1 for an untouched frame."""
        return self.m.segments

    @property
    def net_header(self):
        """What struct virtio_net_hdr says of the frame, a :class:`~virtio.offload.NetHeader` of its own each time.

        ``num_buffers`` is 1. A merged frame has NEEDS_CSUM, with ``csum_start`` and ``csum_offset``; with rsc_info
        RSC_INFO, too, and the number of segments and 0 duplicate ACKs there. An untouched frame has DATA_VALID if TCP's
        checksum is known to be right. ``gso_type`` has ECN if the first segment has CWR.
        """
        cdef NetHeader header = NetHeader.__new__(NetHeader)
        header.load(&self.m.net)
        return header

    @property
    def gso_type(self):
        """The header's, for segmentation: TCPV4 1 or TCPV6 4, perhaps with ECN 0x80; 0 for an untouched frame."""
        return self.m.net.gso_type

    @property
    def gso_size(self):
        """The header's: payload bytes of each segment but perhaps the last; 0 for an untouched frame."""
        return self.m.net.gso_size

    @property
    def fixed_id(self):
        """Whether all segments have the same IPv4 id. struct virtio_net_hdr cannot tell; segmentation must be told."""
        return bool(self.m.fixed_id)

    @property
    def passed(self):
        """Why the frame is untouched: a key of ``Coalescer.statistics()["passed"]``; None if it is merged."""
        return _PASSED.get(self.m.passed)

    def __len__(self):
        return self.m.length

    def __bytes__(self):
        cdef bytes joined = PyBytes_FromStringAndSize(NULL, self.m.length)
        cdef char *to = PyBytes_AS_STRING(joined)
        cdef uint32_t i
        memcpy(to, self.m.header, self.m.header_length)
        to += self.m.header_length
        for i in range(self.m.segments):
            memcpy(to, self.piece(i).base, self.piece(i).length)
            to += self.piece(i).length
        return joined

    def __repr__(self):
        if self.m.passed != VIRTIO_PASS_NONE:
            return f"<Merged: {self.m.length} bytes, untouched ({self.passed})>"
        return f"<Merged: {self.m.length} bytes, {self.m.segments} segments of {self.m.net.gso_size}>"


# Results of one call of the kernel, copied from its memory.
cdef struct results:
    virtio_merged *out
    virtio_piece *pieces      # of all merged ones, one after the other
    uint32_t count
    uint32_t taken            # frames
    bint more                 # flows wait that found no room


cdef Merged wrap(const virtio_merged *m, const virtio_piece *pieces):
    """Make the object. It takes over the references that the pieces own, unless this fails."""
    cdef Merged merged = Merged.__new__(Merged)
    if m.segments > 1:
        merged.owned = <virtio_piece *>malloc(m.segments * sizeof(virtio_piece))
        if merged.owned is NULL:
            raise MemoryError()
        memcpy(merged.owned, pieces, m.segments * sizeof(virtio_piece))
    memcpy(&merged.m, m, <size_t>(<const uint8_t *>m.header - <const uint8_t *>m) + m.header_length)
    return merged


cdef int unwrap(results *r, list merged) except -1:
    """Append a Merged for each result; without a list drop them all. Frees the results."""
    cdef uint32_t done = 0
    cdef const virtio_piece *pieces = r.pieces
    cdef const virtio_merged *m
    cdef Merged item
    try:
        while done < r.count and merged is not None:
            m = &r.out[done]
            item = wrap(m, pieces)
            done += 1
            if m.segments > 1:
                pieces += m.segments
            merged.append(item)
    finally:
        while done < r.count:
            m = &r.out[done]
            done += 1
            drop(pieces if m.segments > 1 else &m.whole, m.segments)
            if m.segments > 1:
                pieces += m.segments
        free(r.out)
        free(r.pieces)
    return 0


@cython.final
cdef class Coalescer:
    """Merges TCP segments of a flow into large frames, losslessly: what it gives, segmented again, is the very input.

    ``flows`` of which something is held at a time (1 to 65000); when one more comes, the oldest is flushed.
    ``segments`` held of a flow (2 to 1024). ``max_bytes`` of a merged IP packet with its headers (1 to 65535).
    ``max_age_ns``: from the arrival of a flow's first segment until it is flushed, looked at when :meth:`receive` has
    taken its frames in; None for no such limit, 0 to hold nothing over a call. ``verify``: verify the IPv4 header's
    checksum and TCP's first, and let pass what is wrong; with False it is believed, and what was wrong comes out right.
    ``fixed_id``: merge segments with DF and all the same IPv4 id, too; see :attr:`Merged.fixed_id`. ``rsc_info``: for
    VIRTIO_NET_F_RSC_EXT, the number of segments in the header instead of where the checksum is.

    Which segments merge is said in virtio/_coalesce.pxd: in short, those that one header can stand for. All others pass
    untouched. A flow's frames leave in order of arrival, but those held together leave in sequence order.

    Memory, (192 + 32 * segments) bytes a flow, is allocated once. Raises ValueError for a parameter out of range,
    MemoryError.

    Threads: any may call; calls take turns, between every 256 frames of a batch. Batches are worked on without the GIL.

    Source: VIRTIO 1.4, 5.1.9.4; RFC 9293; the rules are those of Linux's GRO, made lossless, and with reordering.
    """

    cdef virtio_coalescer c
    cdef uint32_t lock

    def __cinit__(self, *, flows=64, segments=64, max_bytes=65535, max_age_ns=None, verify=True, fixed_id=False,
                  rsc_info=False):
        cdef coalescer_limits limits
        cdef bytes secret = os.urandom(sizeof(limits.secret))
        for name, value, low, high in (
            ("flows", flows, 1, VIRTIO_COALESCE_FLOWS_MAX), ("segments", segments, 2, VIRTIO_COALESCE_SEGMENTS_MAX),
            ("max_bytes", max_bytes, 1, 65535),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} {value} out of range ({low} to {high})")
        if max_age_ns is not None and not 0 <= max_age_ns < UINT64_MAX:
            raise ValueError(f"max_age_ns {max_age_ns} out of range (0 to {UINT64_MAX - 1}, or None)")
        limits.flows, limits.segments, limits.max_bytes = flows, segments, max_bytes
        limits.max_age = UINT64_MAX if max_age_ns is None else max_age_ns
        limits.verify, limits.allow_fixed_id, limits.rsc_info = bool(verify), bool(fixed_id), bool(rsc_info)
        memcpy(limits.secret, PyBytes_AS_STRING(secret), sizeof(limits.secret))
        if coalescer_open(&self.c, &limits) < 0:
            raise MemoryError()

    def __dealloc__(self):
        cdef results r
        if self.c.records is NULL:
            return
        while self.c.held_flows and self.run(NULL, NULL, NULL, NULL, 0, 0, &r) == 0:
            unwrap(&r, None)
        coalescer_close(&self.c)

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
        cdef uint32_t room = coalesce_room(c) + n
        cdef uint32_t i
        self.own()
        r.out = <virtio_merged *>malloc(room * sizeof(virtio_merged))
        r.pieces = <virtio_piece *>malloc((c.held_segments + n + 1) * sizeof(virtio_piece))
        if r.out is NULL or r.pieces is NULL:
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

    def receive(self, frames, *, offsets=None, now=None, trusted=False):
        """Take in a frame or many; return what is ready, a list of :class:`Merged`.

        ``frames`` is one buffer, which is one frame; or a sequence of buffers; or, with ``offsets`` (n + 1 rising
        numbers), one buffer in which frame i is ``frames[offsets[i]:offsets[i + 1]]``. They are not copied: they stay
        held until what holds them is given back and gone, and must not change before.

        ``now`` is the time in nanoseconds; the default is the monotonic clock's if there is a ``max_age_ns``.
        ``trusted``: whether the TCP checksum is known to be right (VIRTIO_NET_HDR_F_DATA_VALID), for all frames, or for
        each: a sequence of as many bools.

        Raises TypeError, BufferError and ValueError as for any batch, ValueError for another number of ``trusted``,
        MemoryError.
        """
        cdef Input batch = Input.__new__(Input)
        cdef timespec clock
        cdef uint64_t when = 0
        cdef uint32_t at = 0
        cdef uint32_t n
        cdef const uint8_t *trust = NULL
        cdef results r
        cdef list merged = []
        cdef bint single = offsets is None and PyObject_CheckBuffer(frames)
        cdef int failed
        if now is not None:
            when = now
        elif self.c.max_age != UINT64_MAX:
            clock_gettime(CLOCK_MONOTONIC, &clock)
            when = <uint64_t>clock.tv_sec * 1000000000 + <uint64_t>clock.tv_nsec
        batch.load((frames,) if single else frames, offsets, False)
        batch.tag(trusted)
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
                unwrap(&r, merged)
                if at == batch.count and not r.more:
                    return merged
        except BaseException:
            while at < batch.count:  # the frames that nobody took keep no reference
                Py_DECREF(batch)
                at += 1
            raise

    def flush(self, frame=None):
        """Give out all that is held, the oldest flow first; or, given a frame, what is held of the flow that it is of.

        Returns a list of :class:`Merged`. Raises TypeError for what is no buffer, MemoryError.
        """
        cdef Batch batch = Batch.__new__(Batch)
        cdef list merged = []
        cdef results r
        if frame is not None:
            batch.load((frame,), None, False)
        while True:
            if self.run(<const uint8_t *const *>batch.data, batch.lengths, NULL, NULL, 0, 0, &r):
                raise MemoryError()
            unwrap(&r, merged)
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
