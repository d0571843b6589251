"""Executing offloads: frames that leave something undone become frames that leave no more undone than is allowed."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from virtio.core.counters cimport add_count, counted
from virtio.core.iov cimport iov_head, iov_read_all, iov_size, iov_slice, iovec
from virtio.event.worker cimport virtio_work_bytes
from virtio.offload.batch cimport Batch
from virtio.offload.frame cimport frame_parse, virtio_frame
from virtio.offload.inet_checksum cimport store_sum16, sum_bytes, sum_finish, sum_gather, sum_swap
from virtio.offload.net_hdr cimport VIRTIO_OFFLOAD_TO_DRIVER, net_hdr_check, NetHeader
from virtio.offload.protocols cimport TCP_FIELD, UDP_FIELD
from virtio.offload.segment_lengths cimport lengths_exact, segment_headers_of
from virtio.offload.segment_write cimport segment_headers, segment_views
from virtio.offload.segmenter cimport (
    VIRTIO_SEGMENT_COUNT, VIRTIO_SEGMENT_EXTENSION, VIRTIO_SEGMENT_FRAGMENT, VIRTIO_SEGMENT_FRAME,
    VIRTIO_SEGMENT_HEADERS, VIRTIO_SEGMENT_IP_LENGTH, VIRTIO_SEGMENT_JUMBO, VIRTIO_SEGMENT_LENGTH,
    VIRTIO_SEGMENT_NETWORK, VIRTIO_SEGMENT_PROTOCOL, VIRTIO_SEGMENT_SIZE, VIRTIO_SEGMENT_TCP, VIRTIO_SEGMENT_TUNNEL,
    VIRTIO_SEGMENT_TYPE, VIRTIO_SEGMENT_UDP_LENGTH, VIRTIO_SEGMENT_UFO_TUNNEL, segment_header_size, segment_plan_pieces,
)
from virtio.ports.port cimport VIRTIO_PACKET_PIECES, VIRTIO_WORK_SEGMENT, port_offloads


cdef enum:
    SHORT = 256  # frames up to here are copied whole: one piece is cheaper for the taker than two


cdef net_executor *executor_new() noexcept nogil:
    return <net_executor *>calloc(1, sizeof(net_executor))


cdef void executor_free(net_executor *x) noexcept nogil:
    free(x)


cdef bint is_exact(const virtio_packet *packet, const iovec *segs) noexcept nogil:
    cdef virtio_frame parsed
    cdef const uint8_t *p
    if packet.hdr.flags & VIRTIO_NET_HDR_F_RSC_INFO or packet.nsegs > VIRTIO_PACKET_PIECES:
        return True
    p = segment_headers_of(segs, packet.nsegs)
    frame_parse(&parsed, p, packet.len)
    return lengths_exact(&parsed, p, packet.hdr.gso_type)


cdef void execute_start(net_executor *x, const virtio_packet *packets, uint32_t n, const iovec *segs,
                        uint32_t offloads) noexcept nogil:
    x.input = packets
    x.input_segs = segs
    x.ninput = n
    x.offloads = offloads
    x.at = 0
    x.segment = packets.done if n else 0
    x.limit = EXECUTE_BATCH
    x.planned = False


cdef inline uint32_t add_packet(net_executor *x, uint32_t first) noexcept nogil:
    """Count a packet whose pieces are x.segs[first .. npieces)."""
    cdef virtio_packet *out = &x.packets[x.count]
    cdef uint32_t length = <uint32_t>iov_size(x.segs + first, x.npieces - first)
    out.first = first
    out.nsegs = x.npieces - first
    out.len = length
    x.bytes += length
    x.input_of[x.count] = x.at
    x.segment_of[x.count] = x.segment
    x.count += 1
    return length


cdef bint add_view(net_executor *x, const virtio_packet *packet) noexcept nogil:
    """Pass a packet on as it is. False: there is no room in this batch."""
    cdef uint32_t first = x.npieces
    if packet.nsegs > EXECUTE_PIECES - first:
        return False
    memcpy(x.segs + first, x.input_segs + packet.first, packet.nsegs * sizeof(iovec))
    x.npieces += packet.nsegs
    x.packets[x.count].hdr = packet.hdr
    add_packet(x, first)
    return True


cdef bint add_checksum(net_executor *x, const virtio_packet *packet) noexcept nogil:
    """Complete a checksum in a copy of the bytes up to it. False: there is no room in this batch.

    It is the sum from csum_start to the frame's end (VIRTIO 1.4, 5.1.9.2), and never 0: see checksum_complete.
    """
    cdef uint32_t field = <uint32_t>packet.hdr.csum_start + packet.hdr.csum_offset
    cdef uint32_t head = field + 2, start = packet.hdr.csum_start, first = x.npieces
    cdef const iovec *pieces = x.input_segs + packet.first
    cdef size_t left
    cdef uint8_t *to = x.scratch + x.scratch_used
    cdef uint64_t sum, rest
    if head > packet.len:
        add_count(&x.dropped[EXECUTE_BAD_CHECKSUM], 1)
        return True
    if packet.len <= SHORT:
        head = packet.len
    if packet.nsegs + 1 > EXECUTE_PIECES - first or head > EXECUTE_SCRATCH - x.scratch_used:
        return False
    x.segs[first].iov_base = to
    x.segs[first].iov_len = head
    x.npieces += 1
    iov_head(to, pieces, packet.nsegs, 0, head)
    left = packet.len - head  # seen, not copied
    x.npieces += iov_slice(x.segs + x.npieces, packet.nsegs, pieces, packet.nsegs, head, &left)
    sum = sum_bytes(to + start, head - start)
    if packet.len > head:
        rest = sum_gather(x.segs + first + 1, x.npieces - first - 1, 0, packet.len - head)
        sum += sum_swap(rest) if (head - start) & 1 else rest
    store_sum16(to + field, sum_finish(sum))
    x.scratch_used += (head + 63) & ~<uint32_t>63
    memset(&x.packets[x.count].hdr, 0, sizeof(virtio_net_hdr))
    add_packet(x, first)
    add_count(&x.checksums, 1)
    return True


cdef bint add_segments(net_executor *x, const virtio_packet *packet) noexcept nogil:
    """Cut a packet. False: it goes on in the next batch, behind x.segment segments."""
    cdef virtio_segmenter *s = &x.plan
    cdef uint32_t stride, n, first, views
    cdef virtio_net_hdr *hdr
    cdef uint8_t *to
    cdef int code
    if not x.planned:
        code = segment_plan_pieces(s, x.input_segs + packet.first, packet.nsegs, packet.hdr.gso_type,
                                   packet.hdr.gso_size, segment_options(&packet.hdr, x.offloads),
                                   EXECUTE_SEGMENTS_MAX)
        if code:
            add_count(&x.dropped[code], 1)
            return True
        x.planned = True
        add_count(&x.frames, x.segment == 0)
    stride = (s.header + s.extra + 15) & ~<uint32_t>15
    while x.segment < s.count:
        n = min(s.count - x.segment, x.limit - x.count, (EXECUTE_SCRATCH - x.scratch_used) // stride)
        to = x.scratch + x.scratch_used
        segment_headers(s, x.segment, n, to, stride)
        for _ in range(n):
            first = x.npieces
            if first == EXECUTE_PIECES or segment_views(s, x.segment, 1, x.segs + first + 1,
                                                        EXECUTE_PIECES - first - 1, &views) == 0:
                return False
            x.segs[first].iov_base = to
            x.segs[first].iov_len = segment_header_size(s, x.segment)
            x.npieces = first + 1 + views
            hdr = &x.packets[x.count].hdr
            memset(hdr, 0, sizeof(virtio_net_hdr))
            if s.needs_csum:
                hdr.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
                hdr.csum_start = s.l4
                hdr.csum_offset = TCP_FIELD if s.kind == VIRTIO_SEGMENT_TCP else UDP_FIELD
            add_packet(x, first)
            x.scratch_used += stride
            to += stride
            x.segment += 1
            add_count(&x.segments, 1)
        if n == 0:
            return False
    return True


cdef uint32_t execute_next(net_executor *x) noexcept nogil:
    cdef const virtio_packet *packet
    cdef uint32_t needs
    cdef bint done
    x.count = x.npieces = x.scratch_used = 0
    x.bytes = 0
    while x.at < x.ninput and x.count < x.limit:
        packet = x.input + x.at
        needs = packet_needs(packet, x.input_segs + packet.first) & ~x.offloads
        if packet.nsegs > VIRTIO_PACKET_PIECES:
            add_count(&x.dropped[EXECUTE_BAD_PIECES], 1)
            done = True
        elif needs == 0:
            done = add_view(x, packet)
        elif packet.hdr.gso_type == VIRTIO_NET_HDR_GSO_NONE:
            done = add_checksum(x, packet)
        else:
            done = add_segments(x, packet)
        if not done:
            break
        x.at += 1
        x.segment = 0
        x.planned = False
    return x.count


cdef uint32_t execute_stop(net_executor *x, uint32_t taken, uint32_t *resume) noexcept nogil:
    resume[0] = x.segment_of[taken]
    return x.input_of[taken]


cdef inline uint32_t batch_limit(const virtio_port *port, const virtio_turn *turn) noexcept nogil:
    """Return how many packets the next batch may have: those that a turn does not take would be made in vain."""
    cdef int64_t n = turn.left // <int64_t>(port.work + VIRTIO_WORK_SEGMENT)
    if n >= EXECUTE_BATCH:
        return EXECUTE_BATCH
    return <uint32_t>n if n > 0 else 1


cdef uint32_t execute_send(net_executor *x, virtio_port *port, uint32_t queue, const virtio_packet *packets, uint32_t n,
                           const iovec *segs, virtio_turn *turn) noexcept nogil:
    cdef uint32_t allowed = port_offloads(port), needs = 0, i, taken
    for i in range(n):
        needs |= packet_needs(&packets[i], segs + packets[i].first)
    if needs & ~allowed == 0:
        return port.send(port, queue, packets, n, segs, turn)
    execute_start(x, packets, n, segs, allowed)
    x.limit = batch_limit(port, turn)
    while execute_next(x):
        turn.left -= <int64_t>x.count * VIRTIO_WORK_SEGMENT + virtio_work_bytes(x.bytes)
        taken = port.send(port, queue, x.packets, x.count, x.segs, turn)
        if taken < x.count:
            return execute_stop(x, taken, &turn.resume)
        if turn.left <= 0 and x.at < n:
            turn.resume = x.segment
            return x.at
        x.limit = batch_limit(port, turn)
    return n


# ---- the Python face ----

_DROPS = {
    VIRTIO_SEGMENT_TYPE: "type", VIRTIO_SEGMENT_SIZE: "size", VIRTIO_SEGMENT_LENGTH: "length",
    VIRTIO_SEGMENT_FRAME: "frame", VIRTIO_SEGMENT_NETWORK: "network", VIRTIO_SEGMENT_PROTOCOL: "protocol",
    VIRTIO_SEGMENT_FRAGMENT: "fragment", VIRTIO_SEGMENT_TUNNEL: "tunnel", VIRTIO_SEGMENT_UFO_TUNNEL: "ufo-tunnel",
    VIRTIO_SEGMENT_EXTENSION: "extension", VIRTIO_SEGMENT_JUMBO: "jumbo", VIRTIO_SEGMENT_UDP_LENGTH: "udp-length",
    VIRTIO_SEGMENT_HEADERS: "headers", VIRTIO_SEGMENT_IP_LENGTH: "ip-length",
    VIRTIO_SEGMENT_COUNT: "count",
    EXECUTE_BAD_CHECKSUM: "checksum", EXECUTE_BAD_PIECES: "pieces",
}


cdef dict executor_figures(const net_executor *x):
    return {
        "checksums": counted(&x.checksums), "frames": counted(&x.frames), "segments": counted(&x.segments),
        "dropped": {name: counted(&x.dropped[code]) for code, name in _DROPS.items() if counted(&x.dropped[code])},
    }


cdef class Executor:
    """Does what frames leave undone: completes checksums, and cuts what is to be cut (TSO, USO, UFO, of tunnels too).

    One thread at a time.
    """

    def __cinit__(self):
        self.x = executor_new()
        if self.x is NULL:
            raise MemoryError()

    def __dealloc__(self):
        executor_free(self.x)

    def execute(self, packets, uint32_t offloads=0):
        """Return what becomes of packets, each a ``(NetHeader, frame)``, in the same form.

        A frame is a buffer, or a list of them: its pieces. ``offloads`` are VIRTIO_OFFLOAD_* bits that may be left
        undone. What cannot be done is dropped and counted. Raises ValueError for a header that
        :meth:`NetHeader.check` does not pass with every feature.
        """
        cdef list items = list(packets), out = []
        cdef list batches = []
        cdef uint32_t n = <uint32_t>len(items), nsegs = 0, i, k
        cdef Batch batch
        cdef virtio_packet *input = NULL
        cdef iovec *segs = NULL
        for _, frame in items:
            batch = Batch()
            batch.load(frame if isinstance(frame, (list, tuple)) else (frame,), None, False)
            batches.append(batch)
            nsegs += batch.count
        input = <virtio_packet *>calloc(n + 1, sizeof(virtio_packet))
        segs = <iovec *>malloc((nsegs + 1) * sizeof(iovec))
        try:
            if input is NULL or segs is NULL:
                raise MemoryError()
            nsegs = 0
            for i in range(n):
                batch = batches[i]
                (<NetHeader?>items[i][0]).store(&input[i].hdr)
                input[i].first = nsegs
                input[i].nsegs = batch.count
                for k in range(batch.count):
                    segs[nsegs + k].iov_base = batch.data[k]
                    segs[nsegs + k].iov_len = batch.lengths[k]
                    input[i].len += batch.lengths[k]
                nsegs += batch.count
                k = net_hdr_check(&input[i].hdr, input[i].len, ~<uint32_t>VIRTIO_OFFLOAD_TO_DRIVER)
                if k:
                    raise ValueError(f"packet {i}: {items[i][0]!r} cannot be of a frame of {input[i].len} bytes")
            execute_start(self.x, input, n, segs, offloads)
            while execute_next(self.x):
                for i in range(self.x.count):
                    out.append(self.packet(&self.x.packets[i]))
        finally:
            free(input)
            free(segs)
        return out

    cdef tuple packet(self, const virtio_packet *packet):
        cdef NetHeader header = NetHeader()
        cdef bytes frame = PyBytes_FromStringAndSize(NULL, packet.len)
        header.load(&packet.hdr)
        iov_read_all(<uint8_t *>PyBytes_AS_STRING(frame), self.x.segs + packet.first, packet.nsegs)
        return header, frame

    def statistics(self):
        """Return what was counted: checksums completed, frames cut, segments made of them, dropped by reason."""
        return executor_figures(self.x)
