"""The packet generator: frames that a Sink can verify."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from virtio.core.atomic cimport virtio_load32, virtio_store32
from virtio.core.clock cimport now_ns
from virtio.core.counters cimport add_count, counted
from virtio.core.iov cimport iovec
from virtio.event.worker cimport VIRTIO_WORK_BYTES, virtio_turn, virtio_wait, virtio_wait_us
from virtio.offload.inet_checksum cimport store_sum16, sum_bytes, sum_fold, sum_pseudo4
from virtio.offload.net_hdr cimport VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4, virtio_net_hdr
from virtio.offload.protocols cimport ETHERNET, ETHERTYPE_IPV4
from virtio.ports.checker cimport Sink, sink_state
from virtio.ports.counts cimport add_counts, port_counts
from virtio.ports.pattern cimport (
    ADDRESS_FROM, ADDRESS_TO, ETHERTYPE_RAW, FLOWS_MAX, FRAME_RAW, FRAME_TCP, PORT_DISCARD,
    RAW_HEADER, RAW_MAGIC, TCP_HEADER, pattern_of, put_be16, put_be32, raw_stamp,
)
from virtio.ports.port cimport VIRTIO_BURST, VIRTIO_FRAME_MAX, sink_deliver, virtio_packet, virtio_port, virtio_sink

from virtio.offload.mac import mac_bytes


cdef enum:
    WHOLE = 256            # a frame up to this size is made in one piece: copying is cheaper than a second one
    SIZES_MAX = 64
    LAG = 10000000         # ns: what nobody took for longer than this is not made up for


cdef struct generator_queue:
    uint8_t header[TCP_HEADER]
    uint32_t flow
    uint64_t frames        # made and taken
    uint64_t position      # units made and taken
    int64_t since          # ns: the rate counts from here, 0: it has not begun,
    uint64_t paced         # and from this frame
    uint32_t resume        # segments that are out of the frame that comes next
    port_counts counts
    # of the burst that is being made
    uint64_t before[VIRTIO_BURST + 1]
    virtio_packet packets[VIRTIO_BURST]
    iovec segs[2 * VIRTIO_BURST]
    uint8_t blocks[VIRTIO_BURST][WHOLE]


cdef struct generator:
    int kind
    uint32_t sizes[SIZES_MAX]
    uint32_t nsizes
    uint32_t gso_size      # 0: none
    uint32_t partial       # the checksum is left to be completed
    uint64_t count         # frames of each queue; 0: without end
    double rate            # frames a nanosecond of each queue, 0: as fast as they are taken
    uint32_t stopped
    generator_queue *queues


cdef void make_raw(generator_queue *q, uint8_t *block, uint64_t number, uint32_t size) noexcept nogil:
    cdef raw_stamp stamp
    memcpy(block, q.header, ETHERNET)
    stamp.magic = RAW_MAGIC
    stamp.flow = <uint16_t>q.flow
    stamp.length = size
    stamp.number = number
    memcpy(block + ETHERNET, &stamp, sizeof(stamp))


cdef void make_tcp(const generator *g, generator_queue *q, uint8_t *block, virtio_net_hdr *hdr, uint64_t frame,
                   uint64_t position, uint32_t size, const uint8_t *payload) noexcept nogil:
    cdef uint32_t length = size - TCP_HEADER + 20  # of TCP
    cdef uint64_t sum
    memcpy(block, q.header, TCP_HEADER)
    put_be16(block + 16, size - ETHERNET)
    put_be16(block + 18, <uint32_t>frame & 0xffff)
    store_sum16(block + 24, <uint16_t>~sum_fold(sum_bytes(block + ETHERNET, 20)))
    put_be32(block + 38, <uint32_t>position)
    sum = sum_pseudo4(block + 26, block + 30, 6, length)
    if g.partial:
        store_sum16(block + 50, sum_fold(sum))
        hdr.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
        hdr.csum_start = ETHERNET + 20
        hdr.csum_offset = 16
        if g.gso_size and length - 20 > g.gso_size:
            hdr.gso_type = VIRTIO_NET_HDR_GSO_TCPV4
            hdr.gso_size = <uint16_t>g.gso_size
            hdr.hdr_len = TCP_HEADER
    else:
        sum += sum_bytes(block + ETHERNET + 20, 20) + sum_bytes(payload, length - 20)
        store_sum16(block + 50, <uint16_t>~sum_fold(sum))


cdef uint32_t make_burst(const generator *g, generator_queue *q, uint32_t n, int64_t room) noexcept nogil:
    """Make the next n frames, fewer where these are of room bytes; return their number."""
    cdef uint32_t i, size, header
    cdef uint32_t pieces = 0
    cdef uint64_t position = q.position
    cdef const uint8_t *payload
    cdef uint8_t *block
    cdef virtio_packet *packet
    header = RAW_HEADER if g.kind == FRAME_RAW else TCP_HEADER
    for i in range(n):
        if room <= 0:
            n = i
            break
        size = g.sizes[(q.frames + i) % g.nsizes]
        room -= size
        block = q.blocks[(q.frames + i) % VIRTIO_BURST]  # in the same place when it is given again
        packet = &q.packets[i]
        memset(&packet.hdr, 0, sizeof(packet.hdr))
        payload = pattern_of(g.kind, q.flow, position)
        q.before[i] = position
        if g.kind == FRAME_RAW:
            make_raw(q, block, position, size)
            position += 1
        else:
            make_tcp(g, q, block, &packet.hdr, q.frames + i, position, size, payload)
            position += size - TCP_HEADER
        packet.first = pieces
        packet.len = size
        q.segs[pieces].iov_base = block
        if size <= WHOLE:
            memcpy(block + header, payload, size - header)
            q.segs[pieces].iov_len = size
            packet.nsegs = 1
        else:
            q.segs[pieces].iov_len = header
            q.segs[pieces + 1].iov_base = <void *>payload
            q.segs[pieces + 1].iov_len = size - header
            packet.nsegs = 2
        pieces += packet.nsegs
    q.before[n] = position
    return n


cdef inline int64_t next_due(const generator *g, const generator_queue *q) noexcept nogil:
    return q.since + <int64_t>(<double>(q.frames - q.paced) / g.rate)


cdef uint32_t due_frames(const generator *g, generator_queue *q, uint32_t limit) noexcept nogil:
    """How many frames may be made now, up to limit."""
    cdef int64_t now, due
    if virtio_load32(&g.stopped):
        return 0
    if g.count and g.count - q.frames < limit:
        limit = <uint32_t>(g.count - q.frames)
    if g.rate == 0 or limit == 0:
        return limit
    now = now_ns()
    if q.since == 0 or now - next_due(g, q) > LAG:
        q.since = now
        q.paced = q.frames
    due = <int64_t>(<double>(now - q.since) * g.rate) + 1 - <int64_t>(q.frames - q.paced)
    if due <= 0:
        return 0
    return <uint32_t>due if due < <int64_t>limit else limit


cdef uint32_t generator_receive(virtio_port *port, uint32_t queue, virtio_sink *sink, uint32_t limit,
                                virtio_turn *turn) noexcept nogil:
    cdef generator *g = <generator *>(<sink_state *>port.owner).generator
    cdef generator_queue *q = &g.queues[queue]
    cdef uint32_t n = due_frames(g, q, limit if limit < VIRTIO_BURST else VIRTIO_BURST)
    cdef uint64_t size = 0
    cdef uint32_t before = q.resume, taken, i
    if n == 0:
        return 0
    n = make_burst(g, q, n, turn.left * VIRTIO_WORK_BYTES)
    taken = sink_deliver(sink, q.packets, n, q.segs, turn, &q.resume)
    if taken < n and turn.left > 0:
        add_count(&q.counts.full, 1)
    for i in range(taken):
        size += q.packets[i].len
    add_count(&q.counts.bytes, size)
    add_count(&q.counts.packets, taken)
    add_count(&q.frames, taken)
    q.position = q.before[taken]
    return taken if taken else q.resume > before


cdef bint generator_arm_receive(virtio_port *port, uint32_t queue, virtio_wait *wait) noexcept nogil:
    cdef generator *g = <generator *>(<sink_state *>port.owner).generator
    cdef generator_queue *q = &g.queues[queue]
    cdef int64_t ahead
    if g.count and q.frames >= g.count or virtio_load32(&g.stopped):
        return False
    if due_frames(g, q, 1):
        return True
    ahead = next_due(g, q) - now_ns()
    if ahead <= 0:
        return True
    virtio_wait_us(wait, ahead // 1000 + 1)
    return False


cdef class Generator(Sink):
    """Gives frames that a :class:`Sink` can verify; what it is sent it verifies itself, as a Sink does.

    ``size`` is the bytes of a frame, or a list of up to 64 sizes that follow one another. ``kind`` is "raw" (Ethernet
    of type 0x88b5, 30 to 65589 bytes) or "tcp" (a stream of IPv4 and TCP, 55 to 65549 bytes; it may be cut and merged).
    ``count`` frames from each queue, None for no end; ``rate`` frames a second from each queue, None for as fast as
    they are taken. Of TCP, ``partial`` leaves checksums to be completed, and ``gso_size`` lets frames with more payload
    than that be cut (it implies ``partial``). Queue i gives flow ``flow`` + i; flows are below 256. ``source`` and
    ``destination`` are MACs. Other arguments are the Sink's. Raises ValueError for arguments out of range.
    """

    cdef generator _g
    cdef readonly str kind

    def __init__(self, size=60, *, str kind="raw", count=None, rate=None, bint partial=False, int gso_size=0,
                 int flow=0, source="02:00:00:00:00:01", destination="ff:ff:ff:ff:ff:ff", int queues=1, **options):
        cdef int i
        cdef uint32_t low = RAW_HEADER if kind == "raw" else TCP_HEADER + 1
        cdef uint32_t high = VIRTIO_FRAME_MAX if kind == "raw" else 65535 + ETHERNET
        super().__init__(queues=queues, **options)
        if kind not in ("raw", "tcp"):
            raise ValueError(f"kind {kind!r} is neither 'raw' nor 'tcp'")
        sizes = (size,) if isinstance(size, int) else tuple(size)
        if not 1 <= len(sizes) <= SIZES_MAX:
            raise ValueError(f"{len(sizes)} sizes: limit 1 to {SIZES_MAX}")
        for size in sizes:
            if not low <= size <= high:
                raise ValueError(f"size {size} of a {kind} frame is not within {low} to {high}")
        if kind == "raw" and (partial or gso_size):
            raise ValueError("raw frames have no checksum: partial and gso_size are for TCP")
        if not 0 <= gso_size <= 65535:
            raise ValueError(f"gso_size {gso_size} is not within 0 to 65535")
        if not 0 <= flow <= <int>FLOWS_MAX - queues:
            raise ValueError(f"flow {flow} of {queues} queues is not within 0 to {FLOWS_MAX - queues}")
        if count is not None and count < 1:
            raise ValueError(f"count {count}: limit 1 at least")
        if rate is not None and not 0 < rate <= 1e9:
            raise ValueError(f"rate {rate} is not within 0 to 1e9 frames a second")
        self.kind = kind
        self._g.kind = FRAME_RAW if kind == "raw" else FRAME_TCP
        self._g.nsizes = <uint32_t>len(sizes)
        for i in range(len(sizes)):
            self._g.sizes[i] = sizes[i]
        self._g.gso_size = gso_size
        self._g.partial = partial or gso_size > 0
        self._g.count = count or 0
        self._g.rate = (rate or 0) * 1e-9
        self._g.queues = <generator_queue *>calloc(queues, sizeof(generator_queue))
        if self._g.queues is NULL:
            raise MemoryError()
        macs = mac_bytes(destination) + mac_bytes(source)
        for i in range(queues):
            self._g.queues[i].flow = flow + i
            fill_header(&self._g.queues[i], macs, kind == "raw")
        self._state.generator = &self._g
        self.c.receive = generator_receive
        self.c.arm_receive = generator_arm_receive

    def __dealloc__(self):
        free(self._g.queues)

    def stop(self):
        """Give no more frames, for good; those given may still be on their way. From any thread."""
        virtio_store32(&self._g.stopped, 1)

    @property
    def done(self):
        """Whether every queue has given its ``count`` frames. Not what :meth:`stop` is about."""
        cdef uint32_t i
        if not self._g.count:
            return False
        for i in range(self.c.queues):
            if counted(&self._g.queues[i].frames) < self._g.count:
                return False
        return True

    def statistics(self):
        """Return those of the Sink, and receive_packets, receive_bytes, receive_full: what it gave."""
        cdef dict counts = Sink.statistics(self)
        cdef uint32_t i
        for i in range(self.c.queues):
            add_counts(counts, "receive", &self._g.queues[i].counts)
        return counts


cdef int fill_header(generator_queue *q, bytes macs, bint raw) except -1:
    """What is the same in all frames of a queue."""
    cdef uint8_t *p = q.header
    cdef const uint8_t *addresses = macs
    memcpy(p, addresses, 12)
    put_be16(p + 12, ETHERTYPE_RAW if raw else ETHERTYPE_IPV4)
    p[14] = 0x45
    p[20] = 0x40                 # do not fragment
    p[22] = 64                   # hops
    p[23] = 6
    put_be32(p + 26, ADDRESS_FROM)
    put_be32(p + 30, ADDRESS_TO)
    put_be16(p + 34, 0xc000 + q.flow)
    put_be16(p + 36, PORT_DISCARD)
    p[46] = 0x50                 # header of 20 bytes
    p[47] = 0x10                 # ACK
    put_be16(p + 48, 0xffff)     # window
    return 0
