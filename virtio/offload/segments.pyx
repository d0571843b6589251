"""Cutting frames into segments, for Python."""

from collections.abc import Sequence

cimport cython
from cpython.buffer cimport Py_buffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport UINT32_MAX, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from virtio.core.iov cimport iov_size, iovec
from virtio.core.limits cimport number_within
from virtio.offload.batch cimport Batch
from virtio.offload.frame cimport (
    VIRTIO_EXTENSIONS_MAX, VIRTIO_L3_ARP, VIRTIO_L3_IPV4, VIRTIO_L3_IPV6, VIRTIO_L3_NONE, VIRTIO_L3_OTHER,
    VIRTIO_STOP_EXTENSIONS, VIRTIO_STOP_IP_LENGTH, VIRTIO_STOP_IP_VERSION, VIRTIO_STOP_IPV4_IHL, VIRTIO_STOP_LLC_LENGTH,
    VIRTIO_STOP_OFFSETS, VIRTIO_STOP_OPTION, VIRTIO_STOP_ROUTING, VIRTIO_STOP_SHORT_ETHERNET,
    VIRTIO_STOP_SHORT_EXTENSION, VIRTIO_STOP_SHORT_L3, VIRTIO_STOP_SHORT_L4, VIRTIO_STOP_SHORT_TUNNEL,
    VIRTIO_STOP_SHORT_VLAN, VIRTIO_STOP_TCP_OFFSET, VIRTIO_STOP_UDP_LENGTH,
)
from virtio.offload.segment_write cimport segment_copy, segment_headers
from virtio.offload.segmenter cimport (
    SEGMENT_AUTO, SEGMENT_FIXED_ID, SEGMENT_FIXED_OUTER_ID, SEGMENT_PARTIAL, VIRTIO_SEGMENT_COUNT,
    VIRTIO_SEGMENT_EXTENSION, VIRTIO_SEGMENT_FRAGMENT, VIRTIO_SEGMENT_FRAME, VIRTIO_SEGMENT_HEADERS,
    VIRTIO_SEGMENT_IP_LENGTH, VIRTIO_SEGMENT_JUMBO, VIRTIO_SEGMENT_LENGTH, VIRTIO_SEGMENT_NETWORK,
    VIRTIO_SEGMENT_PROTOCOL, VIRTIO_SEGMENT_SIZE, VIRTIO_SEGMENT_TUNNEL, VIRTIO_SEGMENT_TYPE, VIRTIO_SEGMENT_UDP_LENGTH,
    VIRTIO_SEGMENT_UFO_TUNNEL, segment_header_size, segment_payload_at, segment_payload_size, segment_plan,
    segment_plan_pieces, virtio_segmenter,
)

from virtio.errors import SegmentError

FAULTS = {
    VIRTIO_STOP_SHORT_ETHERNET: "it ends within the Ethernet header",
    VIRTIO_STOP_SHORT_VLAN: "it ends within a VLAN tag",
    VIRTIO_STOP_SHORT_L3: "it ends within the network header",
    VIRTIO_STOP_IP_VERSION: "the IP version does not match the EtherType",
    VIRTIO_STOP_IPV4_IHL: "the IPv4 header length is under 20",
    VIRTIO_STOP_IP_LENGTH: "the IP length is beyond the frame or below its own header",
    VIRTIO_STOP_SHORT_EXTENSION: "it ends within an extension header",
    VIRTIO_STOP_EXTENSIONS: f"more than {VIRTIO_EXTENSIONS_MAX} extension headers",
    VIRTIO_STOP_SHORT_L4: "it ends within the transport header",
    VIRTIO_STOP_TCP_OFFSET: "the TCP data offset is under 20 bytes or beyond the packet",
    VIRTIO_STOP_UDP_LENGTH: "the UDP length is under 8 or beyond the packet",
    VIRTIO_STOP_OFFSETS: "headers beyond the first 65535 bytes",
    VIRTIO_STOP_SHORT_TUNNEL: "it ends within the tunnel header",
    VIRTIO_STOP_LLC_LENGTH: "the 802.3 length is beyond the frame",
    VIRTIO_STOP_OPTION: "an IP option does not fit into the header that holds it",
    VIRTIO_STOP_ROUTING: "a routing header or source route points out of itself",
}
NETWORKS = {
    VIRTIO_L3_NONE: "none", VIRTIO_L3_IPV4: "IPv4", VIRTIO_L3_IPV6: "IPv6", VIRTIO_L3_ARP: "ARP",
    VIRTIO_L3_OTHER: "another",
}
REASONS = {
    VIRTIO_SEGMENT_TYPE: ("type", "gso_type {0:#x} says nothing to cut"),
    VIRTIO_SEGMENT_SIZE: ("size", "gso_size {0} is too small (at least {1})"),
    VIRTIO_SEGMENT_LENGTH: ("length", "the frame's pieces have {0} bytes (limit {1})"),
    VIRTIO_SEGMENT_FRAME: ("frame", "the frame is not sound: {2}"),
    VIRTIO_SEGMENT_NETWORK: ("network", "the network protocol is {2}, which is not what the gso_type cuts"),
    VIRTIO_SEGMENT_PROTOCOL: ("protocol", "the transport protocol is {0}, the gso_type says {1}"),
    VIRTIO_SEGMENT_FRAGMENT: ("fragment", "the frame is a fragment already, at byte {0}"),
    VIRTIO_SEGMENT_TUNNEL: ("tunnel", "a tunnel ({2} around it) that is not the gso_type's, or in another"),
    VIRTIO_SEGMENT_UFO_TUNNEL: ("ufo-tunnel", "gso_type {0:#x} asks for IP fragments inside of a tunnel"),
    VIRTIO_SEGMENT_EXTENSION: ("extension", "extension header {0} cannot be repeated in each segment"),
    VIRTIO_SEGMENT_JUMBO: ("jumbo", "a jumbogram of {0} bytes (limit {1})"),
    VIRTIO_SEGMENT_UDP_LENGTH: ("udp-length", "the UDP length is {0}, but the packet has {1}"),
    VIRTIO_SEGMENT_HEADERS: ("headers", "headers of at least {0} bytes (limit {1})"),
    VIRTIO_SEGMENT_IP_LENGTH: ("ip-length", "the IP length is {0}, but the frame has {1}"),
    VIRTIO_SEGMENT_COUNT: ("count", "{0} segments (limit {1})"),
}


cdef object error_of(const virtio_segmenter *s, int code):
    cdef str reason, text, word = ""
    reason, text = REASONS[code]
    if code == VIRTIO_SEGMENT_FRAME:
        word = FAULTS[s.value]
    elif code == VIRTIO_SEGMENT_NETWORK or code == VIRTIO_SEGMENT_TUNNEL:
        word = NETWORKS[s.value]
    return SegmentError(text.format(s.value, s.limit, word), reason, s.value, s.limit if s.limit else None)


cdef int open_frame(virtio_segmenter *s, Batch batch, iovec **pieces, object frame, object gso_size,
                    object gso_type, str checksum, bint fixed_id, bint fixed_outer_id,
                    object max_segments) except -1:
    """Plan it. The batch and *pieces, to be freed, hold what the plan refers to."""
    cdef uint32_t options = 0, kind = SEGMENT_AUTO, i, size, limit
    cdef int code
    if checksum == "partial":
        options = SEGMENT_PARTIAL
    elif checksum != "full":
        raise ValueError(f"checksum {checksum!r} is neither 'full' nor 'partial'")
    size = <uint32_t>number_within(gso_size, 0, UINT32_MAX, "gso_size")
    limit = <uint32_t>number_within(max_segments, 1, UINT32_MAX, "max_segments")
    if gso_type is not None:
        kind = <uint32_t>number_within(gso_type, 0, 0xff, "gso_type")
    if fixed_id:
        options |= SEGMENT_FIXED_ID
    if fixed_outer_id:
        options |= SEGMENT_FIXED_OUTER_ID
    batch.load(frame if isinstance(frame, (list, tuple)) else (frame,), None, False)
    if batch.count == 1:
        code = segment_plan(s, batch.data[0], batch.lengths[0], kind, size, options, limit)
    else:
        pieces[0] = <iovec *>malloc((batch.count + 1) * sizeof(iovec))
        if pieces[0] is NULL:
            raise MemoryError()
        for i in range(batch.count):
            pieces[0][i].iov_base = batch.data[i]
            pieces[0][i].iov_len = batch.lengths[i]
        code = segment_plan_pieces(s, pieces[0], batch.count, kind, size, options, limit)
    if code:
        raise error_of(s, code)
    return 0


cdef extern from "Python.h":
    Py_buffer *PyMemoryView_GET_BUFFER(object view)


cdef object bytes_view(object piece):
    """A memoryview of the piece's bytes in a row."""
    cdef object view = memoryview(piece)
    cdef Py_buffer *buffer = PyMemoryView_GET_BUFFER(view)
    if buffer.len == 0:
        return memoryview(b"")  # cast() takes no shape with a 0 in it
    if buffer.ndim == 1 and buffer.format[0] == c"B":
        return view
    return view.cast("B")


@cython.final
cdef class Segments:
    """The segments of a frame, as :func:`segment` gives them: a sequence.

    ``segments[i]`` is a tuple of memoryviews, read-only headers, then the payload where it lies in the frame: one view,
    or as many as it takes in a frame of pieces. ``b"".join(segments[i])`` is the segment. ``headers`` is the one bytes
    object that the header views are of, a block of ``stride`` bytes for each segment; only the first IPv4 fragment's
    fills it. Holds the frame's memory. Any thread may use it.
    """

    cdef virtio_segmenter s
    cdef Batch batch
    cdef iovec *pieces
    cdef tuple source           # memoryviews of the frame's pieces
    cdef object header_view
    cdef readonly bytes headers

    def __init__(self):
        raise TypeError("Segments come from segment()")

    def __dealloc__(self):
        free(self.pieces)

    cdef int write_headers(self) except -1:
        cdef uint32_t stride = self.s.header + self.s.extra
        self.headers = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>stride * self.s.count)
        segment_headers(&self.s, 0, self.s.count, <uint8_t *>PyBytes_AS_STRING(self.headers), stride)
        self.header_view = memoryview(self.headers)
        return 0

    @property
    def stride(self):
        """Bytes of ``headers`` for each segment."""
        return self.s.header + self.s.extra

    def __len__(self):
        return self.s.count

    def __getitem__(self, index):
        cdef Py_ssize_t i
        if isinstance(index, slice):
            return [self.views_of(i) for i in range(*index.indices(self.s.count))]
        return self.views_of(index)

    def __iter__(self):
        cdef Py_ssize_t i
        for i in range(self.s.count):
            yield self.views_of(i)

    def __reversed__(self):
        cdef Py_ssize_t i
        for i in range(<Py_ssize_t>self.s.count - 1, -1, -1):
            yield self.views_of(i)

    # comparing is Python's, so these are Sequence's own
    __contains__ = Sequence.__contains__
    index = Sequence.index
    count = Sequence.count

    cdef tuple views_of(self, Py_ssize_t i):
        cdef uint32_t k, at, size, part
        cdef Py_ssize_t start
        cdef list views
        if i < 0:
            i += self.s.count
        if not 0 <= i < self.s.count:
            raise IndexError(f"segment {i} out of range (0 to {self.s.count - 1})")
        k = <uint32_t>i
        start = i * (self.s.header + self.s.extra)
        header = self.header_view[start:start + segment_header_size(&self.s, k)]
        at = self.s.payload_at + segment_payload_at(&self.s, k)
        size = segment_payload_size(&self.s, k)
        if self.s.frame is not NULL:
            return header, self.source[0][at:at + size]
        views = [header]
        for i in range(self.batch.count):
            if size == 0:
                break
            part = self.batch.lengths[i]
            if at < part:
                part = min(part - at, size)
                views.append(self.source[i][at:at + part])
                size -= part
                at = 0
            else:
                at -= part
        return tuple(views)

    def packets(self):
        """Return the segments as a list of bytes."""
        cdef list result = []
        cdef bytes packet
        cdef iovec whole
        cdef uint32_t i
        with cython.critical_section(self):
            for i in range(self.s.count):
                whole.iov_len = segment_header_size(&self.s, i) + segment_payload_size(&self.s, i)
                packet = PyBytes_FromStringAndSize(NULL, whole.iov_len)
                whole.iov_base = PyBytes_AS_STRING(packet)
                segment_copy(&self.s, i, &whole, 1, 0)
                result.append(packet)
        return result


def segment(frame, gso_size, gso_type=None, *, checksum="full", fixed_id=False, fixed_outer_id=False,
            max_segments=0xffff):
    """Cut a frame into segments that carry at most ``gso_size`` bytes of payload; return :class:`Segments`.

    ``frame`` is an Ethernet frame, a buffer or a list or tuple of buffers that are its pieces, split anywhere; nothing
    of it is copied but its headers, and nothing in it is changed. ``gso_type`` is that of struct virtio_net_hdr: TCPV4,
    TCPV6, UDP_L4 (datagrams), or UDP (IP fragments; ``gso_size`` then counts the UDP header, and is rounded down to a
    multiple of 8), with UDP_TUNNEL_IPV4 or UDP_TUNNEL_IPV6 for the packet within VXLAN or GENEVE. None: TCP segments or
    UDP datagrams of the innermost packet. A payload that fits, or none, is one segment; bytes behind the IP packet are
    left out. With a ``gso_type`` the IP and UDP lengths may be 0, or a segment's: they are then the frame's.

    With ``checksum="full"`` all checksums are right, whatever they are in ``frame``; with ``"partial"`` the transport
    checksum is left at the sum of the pseudo header, as VIRTIO_NET_HDR_F_NEEDS_CSUM has it (not that of fragments,
    which is the whole datagram's). ``fixed_id`` gives all segments the same IPv4 identification instead of rising ones,
    ``fixed_outer_id`` does so around the tunnel. ``max_segments`` bounds the work that a small ``gso_size`` asks for.

    Raises SegmentError for a frame that cannot be cut so, ValueError for arguments out of range. Source: VIRTIO 1.4,
    5.1.9.2; field by field as Linux does it. Any thread may call; the GIL is held.
    """
    cdef Segments self = Segments.__new__(Segments)
    self.batch = Batch()
    open_frame(&self.s, self.batch, &self.pieces, frame, gso_size, gso_type, checksum, fixed_id, fixed_outer_id,
               max_segments)
    self.source = tuple([bytes_view(piece) for piece in self.batch.source])
    self.write_headers()
    return self


Sequence.register(Segments)


cdef int write_all(virtio_segmenter *s, const iovec *to, const uint32_t *counts, uint64_t *room) noexcept nogil:
    """Write every segment to its counts[i] pieces, or to one each; -1 if all fit.

    Else the number of the first that does not, room being what its pieces hold, and nothing is written.
    """
    cdef uint32_t i, n, first = 0
    for i in range(s.count):
        n = counts[i] if counts is not NULL else 1
        room[0] = iov_size(to + first, n)
        if room[0] < segment_header_size(s, i) + segment_payload_size(s, i):
            return <int>i
        first += n
    first = 0
    for i in range(s.count):
        n = counts[i] if counts is not NULL else 1
        segment_copy(s, i, to + first, n, 0)
        first += n
    return -1


def segment_into(frame, gso_size, buffers, gso_type=None, *, checksum="full", fixed_id=False, fixed_outer_id=False,
                 max_segments=0xffff):
    """Cut a frame as :func:`segment` does, and write each segment into one of ``buffers``; return the list of lengths.

    Each of ``buffers`` is a writable buffer, or a list or tuple of them that are filled in turn; they may be longer
    than the segments and more than there are, but must not overlap the frame. Copy and checksum are one pass.

    Raises SegmentError as :func:`segment` does, and for buffers that are too few (reason ``"buffers"``) or too small
    (``"room"``); nothing is written then. BufferError if a buffer is read-only. Works without the GIL: no other thread
    may use the frame or the buffers meanwhile.
    """
    cdef Batch batch = Batch(), targets = Batch()
    cdef virtio_segmenter s
    cdef iovec *pieces = NULL
    cdef iovec *to = NULL
    cdef uint32_t *counts = NULL
    cdef tuple given = tuple(buffers)
    cdef list flat, lengths
    cdef bint whole = True
    cdef uint32_t i
    cdef uint64_t room = 0
    cdef int short
    try:
        open_frame(&s, batch, &pieces, frame, gso_size, gso_type, checksum, fixed_id, fixed_outer_id, max_segments)
        if <uint64_t>len(given) < s.count:
            raise SegmentError(f"{s.count} segments do not fit into {len(given)} buffers", "buffers", s.count,
                               len(given))
        for buffer in given:
            if isinstance(buffer, (list, tuple)):
                whole = False
                break
        if whole:
            targets.load(given, None, True)
        else:
            counts = <uint32_t *>malloc(len(given) * sizeof(uint32_t))
            if counts is NULL:
                raise MemoryError()
            flat = []
            i = 0
            for buffer in given:
                parts = tuple(buffer) if isinstance(buffer, (list, tuple)) else (buffer,)
                counts[i] = <uint32_t>len(parts)
                flat += parts
                i += 1
            targets.load(flat, None, True)
        to = <iovec *>malloc((targets.count + 1) * sizeof(iovec))
        if to is NULL:
            raise MemoryError()
        for i in range(targets.count):
            to[i].iov_base = targets.data[i]
            to[i].iov_len = targets.lengths[i]
        with nogil:
            short = write_all(&s, to, counts, &room)
        if short >= 0:
            i = <uint32_t>short
            need = segment_header_size(&s, i) + segment_payload_size(&s, i)
            raise SegmentError(f"segment {i} of {need} bytes does not fit into its buffer of {room}", "room", need,
                               room)
        lengths = [s.header + s.unit] * s.count  # but for the last; the extra headers of the first are in its unit
        lengths[s.count - 1] = s.header + s.last
        return lengths
    finally:
        free(pieces)
        free(to)
        free(counts)
