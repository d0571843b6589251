"""The verifying sink: takes the frames of generators, and says what is wrong with them."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memmove, memset

from virtio.core.counters cimport add_count, counted
from virtio.core.iov cimport iov_cursor, iov_head, iov_left, iovec
from virtio.event.worker cimport virtio_turn, virtio_work_bytes
from virtio.offload.inet_checksum cimport sum_fold, sum_gather, sum_pseudo4
from virtio.offload.net_hdr cimport (
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_OFFLOAD_ALL,
)
from virtio.offload.protocols cimport ETHERNET
from virtio.ports.counts cimport add_counts
from virtio.ports.pattern cimport (
    FLOWS_MAX, FRAME_CORRUPT, FRAME_FOREIGN, FRAME_RAW, FRAME_TCP, TCP_HEADER, pattern_of, read_header, stretch,
)
from virtio.ports.port cimport virtio_packet, virtio_port


cdef enum:
    VERIFY = 30  # units of work: a header is read


# ---- what came of a flow ----

cdef void add_hole(sink_flow *flow, uint64_t start, uint64_t end) noexcept nogil:
    if flow.nholes == HOLES:  # the oldest is given up: what comes of it late counts as repeated
        flow.nholes -= 1
        memmove(&flow.holes[0], &flow.holes[1], flow.nholes * sizeof(sink_hole))
    flow.holes[flow.nholes].start = start
    flow.holes[flow.nholes].end = end
    flow.nholes += 1


cdef uint64_t fill_holes(sink_flow *flow, uint64_t start, uint64_t end) noexcept nogil:
    """Take [start, end) out of the holes; return how many units that were."""
    cdef uint64_t filled = 0, low, high, last
    cdef uint32_t i = 0
    while i < flow.nholes:
        low = flow.holes[i].start if flow.holes[i].start > start else start
        high = flow.holes[i].end if flow.holes[i].end < end else end
        if low >= high:
            i += 1
            continue
        filled += high - low
        last = flow.holes[i].end
        if low > flow.holes[i].start:
            flow.holes[i].end = low
            if high < last:
                add_hole(flow, high, last)
            i += 1
        elif high < last:
            flow.holes[i].start = high
            i += 1
        else:
            flow.nholes -= 1
            memmove(&flow.holes[i], &flow.holes[i + 1], (flow.nholes - i) * sizeof(sink_hole))
    return filled


cdef void account(sink_queue *q, sink_flow *flow, uint64_t start, uint64_t end) noexcept nogil:
    """Units [start, end) of a flow came."""
    cdef uint64_t filled, old
    if start >= flow.next:
        if start > flow.next:
            add_hole(flow, flow.next, start)
            add_count(&q.missing, start - flow.next)
        flow.next = end
        return
    old = end if end < flow.next else flow.next
    filled = fill_holes(flow, start, old)
    add_count(&q.missing, <uint64_t>-<int64_t>filled)
    add_count(&q.late, filled)
    add_count(&q.repeated, old - start - filled)
    if end > flow.next:
        flow.next = end


# ---- the data path ----

cdef bint payload_differs(const uint8_t *expected, const iovec *pieces, uint32_t skip, uint32_t length) noexcept nogil:
    cdef iov_cursor at
    cdef size_t part
    at.piece, at.skip = pieces, skip
    while length:
        part = min(iov_left(&at), <size_t>length)
        if memcmp(expected, <const uint8_t *>at.piece.iov_base + at.skip, part) != 0:
            return True
        expected += part
        length -= <uint32_t>part
        at.skip += part
    return False


cdef bint checksum_wrong(const virtio_packet *packet, const uint8_t *head, const stretch *s,
                         const iovec *pieces) noexcept nogil:
    cdef uint32_t length = s.payload + TCP_HEADER - ETHERNET - 20
    cdef uint64_t sum
    if sum_fold(sum_gather(pieces, packet.nsegs, ETHERNET, 20)) != 0xffff:
        return True
    if packet.hdr.flags & (VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID):
        return False
    sum = sum_gather(pieces, packet.nsegs, ETHERNET + 20, length)
    return sum_fold(sum + sum_pseudo4(head + 26, head + 30, 6, length)) != 0xffff


cdef void verify_frame(sink_queue *q, const virtio_packet *packet, const iovec *pieces) noexcept nogil:
    cdef uint8_t copy[TCP_HEADER]
    cdef const uint8_t *head = <const uint8_t *>pieces.iov_base
    cdef uint32_t have
    cdef stretch s
    cdef sink_flow *flow
    cdef int kind
    cdef int32_t ahead
    cdef uint64_t start
    if packet.nsegs and pieces.iov_len >= TCP_HEADER:
        have = TCP_HEADER
    else:
        have = <uint32_t>iov_head(copy, pieces, packet.nsegs, 0, TCP_HEADER)
        head = copy
    kind = read_header(&s, head, have, packet.len)
    if kind == FRAME_FOREIGN:
        add_count(&q.foreign, 1)
        return
    if kind == FRAME_CORRUPT:
        add_count(&q.corrupt, 1)
        return
    flow = q.flows[s.flow]
    if flow is NULL:
        flow = <sink_flow *>calloc(1, sizeof(sink_flow))
        if flow is NULL:
            add_count(&q.foreign, 1)
            return
        q.flows[s.flow] = flow
    start = s.number
    if kind == FRAME_TCP:
        ahead = <int32_t>(<uint32_t>start - <uint32_t>flow.next)
        start = flow.next + <uint64_t><int64_t>ahead
        if ahead < 0 and flow.next < <uint64_t>-<int64_t>ahead:  # before the first
            add_count(&q.corrupt, 1)
            return
        if checksum_wrong(packet, head, &s, pieces):
            add_count(&q.bad_checksum, 1)
    if payload_differs(pattern_of(kind, s.flow, start), pieces, s.header, s.payload):
        add_count(&q.corrupt, 1)
        return
    account(q, flow, start, start + (1 if kind == FRAME_RAW else s.payload))


cdef uint32_t sink_send(virtio_port *port, uint32_t queue, const virtio_packet *packets, uint32_t n,
                        const iovec *segs, virtio_turn *turn) noexcept nogil:
    cdef sink_queue *q = &(<sink_state *>port.owner).queues[queue]
    cdef uint64_t size = 0
    cdef uint32_t i
    for i in range(n):
        size += packets[i].len
        verify_frame(q, &packets[i], &segs[packets[i].first])
    turn.left -= <int64_t>n * port.work + 2 * virtio_work_bytes(size)  # summed, and compared
    add_count(&q.counts.packets, n)
    add_count(&q.counts.bytes, size)
    return n


cdef uint32_t sink_count(virtio_port *port, uint32_t queue, const virtio_packet *packets, uint32_t n,
                         const iovec *segs, virtio_turn *turn) noexcept nogil:
    cdef sink_queue *q = &(<sink_state *>port.owner).queues[queue]
    cdef uint64_t size = 0
    cdef uint32_t i
    for i in range(n):
        size += packets[i].len
    add_count(&q.counts.packets, n)
    add_count(&q.counts.bytes, size)
    return n


cdef class Sink(Port):
    """Takes whatever it is sent, and verifies what is of a :class:`Generator`: every byte, each checksum, the order.

    ``verify=False`` only counts. ``offloads`` (VIRTIO_OFFLOAD_*) is what a frame may leave undone: by default
    nothing. ``queues`` queue pairs (1 to 256); a flow is to stay on one of them. Raises ValueError for arguments out of
    range.
    """

    def __init__(self, *, int queues=1, uint32_t offloads=0, bint verify=True):
        if self._state.queues is not NULL:
            raise TypeError("sink is made already")
        if not 1 <= queues <= 256:
            raise ValueError(f"queues {queues} is not within 1 to 256")
        if offloads > VIRTIO_OFFLOAD_ALL:
            raise ValueError(f"offloads {offloads:#x} has bits beyond {VIRTIO_OFFLOAD_ALL:#x}")
        self._state.queues = <sink_queue *>calloc(queues, sizeof(sink_queue))
        if self._state.queues is NULL:
            raise MemoryError()
        self.verify = verify
        self.c.owner = &self._state
        self.c.send = sink_send if verify else sink_count
        self.c.work = VERIFY if verify else 0
        self.c.offloads = offloads
        self.c.queues = queues

    def __dealloc__(self):
        cdef uint32_t i
        cdef int j
        if self._state.queues is not NULL:
            for i in range(self.c.queues):
                for j in range(FLOWS_MAX):
                    free(self._state.queues[i].flows[j])
            free(self._state.queues)

    def statistics(self):
        """Return the sums over all queues: send_packets, send_bytes, and what was found, 0 each if all is well.

        missing, late, repeated: raw frames, or bytes of TCP (up to 64 gaps of a flow are remembered; what fills one is
        late, and not missing any more). corrupt, bad_checksum: frames. foreign: frames that are no generator's.
        """
        cdef dict counts = {}
        cdef sink_queue *q
        cdef uint32_t i
        for i in range(self.c.queues):
            q = &self._state.queues[i]
            add_counts(counts, "send", &q.counts)
            for name, value in (("missing", counted(&q.missing)), ("late", counted(&q.late)),
                                ("repeated", counted(&q.repeated)), ("corrupt", counted(&q.corrupt)),
                                ("bad_checksum", counted(&q.bad_checksum)), ("foreign", counted(&q.foreign))):
                counts[name] = counts.get(name, 0) + value
        return counts

    def faults(self):
        """Return those of missing, late, repeated, corrupt and bad_checksum that are not 0."""
        counts = self.statistics()
        names = ("missing", "late", "repeated", "corrupt", "bad_checksum")
        return {name: counts[name] for name in names if counts[name]}

    def clear(self):
        """Forget what came: numbers and flows begin anew. No frames may come meanwhile."""
        cdef uint32_t i
        cdef int j
        for i in range(self.c.queues):
            for j in range(FLOWS_MAX):
                free(self._state.queues[i].flows[j])
            memset(&self._state.queues[i], 0, sizeof(sink_queue))

    def __repr__(self):
        return f"<{type(self).__name__}: {self.c.queues} queues>"
