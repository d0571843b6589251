"""The receive queue of a network device, as a sink."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from virtio._ring cimport (
    device_add_used_burst, device_disable_notification, device_enable_notification, device_log_written, device_navail,
    device_needs_notification, device_pop_burst, device_unpop_burst,
)
from virtio.core.atomic cimport virtio_get64, virtio_likely, virtio_put64, virtio_unlikely
from virtio.core.counters cimport add_count
from virtio.core.iov cimport iov_head, iov_read, iov_slice, iov_write
from virtio.event.worker cimport (
    VIRTIO_WORK_FRAME, VIRTIO_WORK_PIECE, VIRTIO_WORK_SEGMENT, virtio_wait, virtio_wait_bell, virtio_work_bytes,
)
from virtio.netdev.filter cimport FILTER_HEAD, FILTER_PROMISC, filter_passes
from virtio.offload.inet_checksum cimport store_sum16, sum_copy, sum_finish
from virtio.offload.mtu cimport MTU_TAGS, exceeds, limit_of
from virtio.offload.net_hdr cimport VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, virtio_net_hdr
from virtio.offload.pieces cimport complete
from virtio.offload.protocols cimport TCP_FIELD, UDP_FIELD
from virtio.offload.segment_write cimport segment_copy
from virtio.offload.segmenter cimport (
    VIRTIO_SEGMENT_HEADERS_MAX, VIRTIO_SEGMENT_TCP, segment_header_size, segment_payload_size, segment_plan_pieces,
)
from virtio.ports.port cimport VIRTIO_BURST, VIRTIO_FRAME_MIN, turn_resume
from virtio.ports.software_offload cimport (
    EXECUTE_SEGMENTS_MAX, is_exact, is_exact_plain, net_hdr_needs, packet_needs, segment_options,
)
from virtio.virtqueue.fastpath cimport run_ahead, run_commit, run_keep, run_next, run_start, virtio_run
from virtio.virtqueue.structs cimport VIRTIO_DESC_F_WRITE, VIRTIO_FAULT_NONE, VIRTIO_Q_INDIRECT


cdef extern from "virtio/net_copy.h" nogil:
    void copy_frame "virtio_copy_frame"(uint8_t *to, const uint8_t *p, size_t n)
    void put_net_hdr "virtio_put_net_hdr"(uint8_t *to, const virtio_net_hdr *hdr, uint16_t num_buffers, uint32_t size)
    void put_no_hdr "virtio_put_no_hdr"(uint8_t *to, uint32_t size)
    uint16_t net_hdr_says "virtio_net_hdr_says"(const virtio_net_hdr *hdr)


cdef enum:
    NO_ROOM = 0
    NEVER = -1
    RESERVES = 3      # frames that are popped for when a port reads one: it is not alone


cdef inline void set_written(virtio_chain *chain, uint32_t written) noexcept nogil:
    """chain.written, stored with the word that it is loaded with later."""
    virtio_put64(&chain.written, virtio_get64(&chain.written) >> 32 << 32 | written)


# ---- chains ----

cdef void publish(net_rx *rx) noexcept nogil:
    """Give the written chains back to the guest."""
    cdef uint32_t i
    if rx.used == 0:
        return
    if virtio_unlikely(rx.q.memory.log is not NULL):
        for i in range(rx.used):
            device_log_written(rx.q, &rx.chains[i], rx.segs)
    device_add_used_burst(rx.q, rx.chains, rx.used)
    rx.published = 1


cdef void put_back(net_rx *rx) noexcept nogil:
    """Hold no chain any more."""
    publish(rx)
    if rx.popped > rx.used:
        device_unpop_burst(rx.q, rx.chains + rx.used, rx.popped - rx.used)
    rx.used = rx.popped = 0


cdef uint32_t refill(net_rx *rx, uint32_t limit) noexcept nogil:
    """Pop chains, the free ones anew; return how many there are: 0 when none waits."""
    cdef const virtio_chain *last
    put_back(rx)
    rx.popped = device_pop_burst(rx.q, rx.chains, min(limit, <uint32_t>RX_CHAINS), rx.segs, rx.nsegs)
    if rx.popped:
        last = &rx.chains[rx.popped - 1]
        rx.turn.left -= (<int64_t>(last.first + last.nreadable + last.nwritable + rx.chains[0].slots)
                         * VIRTIO_WORK_PIECE)
    return rx.popped


cdef bint is_whole_queue(net_rx *rx) noexcept nogil:
    """Say whether no more chains can come while those popped are not used."""
    cdef bint by_pieces = not rx.q.packed and not rx.q.flags & VIRTIO_Q_INDIRECT
    cdef uint32_t i, descriptors = 0
    for i in range(rx.popped):
        descriptors += rx.chains[i].nwritable if by_pieces else rx.chains[i].slots
    return descriptors >= rx.q.size


cdef uint32_t look(net_rx *rx, uint64_t total, uint32_t ahead, uint64_t *have) noexcept nogil:
    """Return how many chains from rx.used on it takes for total bytes, header included; or all that there are.

    *have: their bytes. Their pieces are one list. Not mergeable: the next chain, if there is one. Enough are popped for
    `ahead` frames of that size, if buffers are as large as the last one was.
    """
    cdef uint32_t i = rx.used, before = 0
    cdef uint32_t limit = <uint32_t>(total // rx.size_seen + 1) * ahead
    cdef bint last = False
    cdef virtio_chain *chain
    while True:
        have[0] = 0
        while i < rx.popped:
            chain = rx.chains + i
            i += 1
            if virtio_unlikely(chain.nreadable != 0 or chain.writable < rx.header):
                # no buffer for a frame. In order, so with those before it
                while rx.used < i:
                    set_written(&rx.chains[rx.used], 0)
                    rx.used += 1
                add_count(&rx.bad_chains, 1)
                have[0] = 0
                continue
            have[0] += chain.writable
            if have[0] >= total or not rx.mergeable:
                rx.size_seen = max(chain.writable, <uint32_t>64)
                return i - rx.used
        if last:
            return rx.popped - rx.used
        # not enough of them are held: pop again, as many as there are
        last = refill(rx, limit) <= before
        limit = RX_CHAINS
        before = rx.popped
        i = 0


cdef void stall(net_rx *rx, uint64_t total) noexcept nogil:
    """Take note that a frame found no room."""
    add_count(&rx.stalls, not rx.stalled)
    rx.stalled = 1
    rx.wanted = total


cdef int gather(net_rx *rx, uint64_t total, uint32_t ahead) noexcept nogil:
    """Return how many chains from rx.used on take total bytes; NO_ROOM: not now; NEVER: never."""
    cdef uint64_t have = 0
    cdef uint32_t n, before = 0
    while True:
        n = look(rx, total, ahead, &have)
        if have >= total:
            return <int>n
        # or the queue is broken; or all that there can be is there
        if n and not rx.mergeable or rx.q.fault.code != VIRTIO_FAULT_NONE or n and is_whole_queue(rx):
            return NEVER
        if n == 0 or not device_navail(rx.q):
            stall(rx, total)
            return NO_ROOM
        if n == before:  # more waits than can be held
            return NEVER
        before = n  # they may have come since we looked


cdef void drop_never(net_rx *rx) noexcept nogil:
    add_count(&rx.dropped[RX_DROP_BROKEN if rx.q.fault.code != VIRTIO_FAULT_NONE else RX_DROP_TOO_LARGE], 1)


cdef inline uint32_t pieces_of(const net_rx *rx, uint32_t n) noexcept nogil:
    """Pieces of the n chains from rx.used on, which start at room_of."""
    cdef const virtio_chain *last = rx.chains + rx.used + n - 1
    return last.first + last.nwritable - rx.chains[rx.used].first


cdef inline iovec *room_of(const net_rx *rx) noexcept nogil:
    return rx.segs + rx.chains[rx.used].first


cdef void take(net_rx *rx, uint32_t n, uint64_t total) noexcept nogil:
    """The n chains from rx.used on have a frame: total bytes, header included."""
    cdef virtio_chain *chain
    add_count(&rx.frames, 1)
    add_count(&rx.bytes, total - rx.header)
    add_count(&rx.merged, n > 1)
    rx.turn.left -= VIRTIO_WORK_FRAME + virtio_work_bytes(total)
    for _ in range(n):
        chain = rx.chains + rx.used
        set_written(chain, <uint32_t>min(total, <uint64_t>chain.writable))
        total -= chain.written
        rx.used += 1


# ---- frames in pieces ----

cdef void write_header(net_rx *rx, const iovec *to, const virtio_net_hdr *hdr, uint32_t length,
                       uint32_t buffers) noexcept nogil:
    """The header, at the start of the pieces; one that says nothing unless the guest accepts what it says."""
    cdef uint8_t bytes[24]
    cdef virtio_net_hdr none
    if hdr.flags & ~rx.flags:
        memset(&none, 0, sizeof(none))
        put_net_hdr(bytes, &none, <uint16_t>buffers, rx.header)
    else:
        put_net_hdr(bytes, hdr, <uint16_t>buffers, rx.header)
        add_count(&rx.csum, hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
        if hdr.gso_type != VIRTIO_NET_HDR_GSO_NONE:
            add_count(&rx.gso, 1)
            add_count(&rx.gso_bytes, length)
    iov_write(to, 0, bytes, rx.header)


cdef bint is_wanted(const net_rx *rx, const iovec *pieces, uint32_t npieces, uint32_t skip) noexcept nogil:
    """Ask the filter about a frame, skip bytes into the pieces."""
    cdef uint8_t head[FILTER_HEAD]
    memset(head, 0, sizeof(head))
    iov_head(head, pieces, npieces, skip, FILTER_HEAD)
    return filter_passes(&rx.filter, head)


# ---- the sink ----

cdef inline uint32_t beyond(const net_rx *rx, const virtio_net_hdr *hdr, uint32_t needs) noexcept nogil:
    """What of `needs` the guest does not accept: VIRTIO_OFFLOAD_*.

    All of it if there is a flag that the guest does not know: then write_header leaves out what the header says.
    """
    return needs & ~(0 if hdr.flags & ~rx.flags else rx.sink.offloads)


cdef bint cut(net_rx *rx, const virtio_packet *packet, const iovec *source) noexcept nogil:
    """Put a frame in as segments. False: no room for all of them, or the turn is over; it goes on where it stopped."""
    cdef virtio_segmenter *s = &rx.plan
    cdef uint32_t i, size
    cdef virtio_net_hdr hdr
    cdef iovec *to
    cdef int n
    if segment_plan_pieces(s, source, packet.nsegs, packet.hdr.gso_type, packet.hdr.gso_size,
                           segment_options(&packet.hdr, rx.sink.offloads), EXECUTE_SEGMENTS_MAX):
        add_count(&rx.dropped[RX_DROP_SEGMENT], 1)
        return True
    if packet.len > rx.limit and segment_header_size(s, 0) + segment_payload_size(s, 0) > limit_of(rx.limit, source, 0):
        add_count(&rx.dropped[RX_DROP_MTU], 1)
        return True
    memset(&hdr, 0, sizeof(hdr))
    if s.needs_csum:
        hdr.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
        hdr.csum_start = s.l4
        hdr.csum_offset = TCP_FIELD if s.kind == VIRTIO_SEGMENT_TCP else UDP_FIELD
    add_count(&rx.cut, packet.done == 0)
    for i in range(packet.done, s.count):
        if virtio_unlikely(rx.turn.left <= 0 and i > packet.done):
            rx.turn.resume = i
            return False
        size = segment_header_size(s, i) + segment_payload_size(s, i)
        n = gather(rx, rx.header + size, s.count - i)
        if n == NO_ROOM:
            rx.turn.resume = i
            return False
        if n == NEVER:
            drop_never(rx)
            continue
        to = room_of(rx)
        segment_copy(s, i, to, pieces_of(rx, n), rx.header)
        rx.turn.left -= VIRTIO_WORK_SEGMENT
        write_header(rx, to, &hdr, size, n)
        take(rx, n, rx.header + size)
    return True


cdef bint place(net_rx *rx, const virtio_packet *packet, const iovec *source) noexcept nogil:
    """Put a frame in, whatever it is. False: no room now."""
    cdef uint32_t i
    cdef const virtio_net_hdr *hdr = &packet.hdr
    cdef uint64_t at = rx.header
    cdef bint summed = False
    cdef iovec *to
    cdef int n
    cdef uint32_t undone = beyond(rx, hdr, packet_needs(packet, source))
    if undone and hdr.gso_type != VIRTIO_NET_HDR_GSO_NONE:
        return cut(rx, packet, source)
    if virtio_unlikely(packet.len > rx.limit) and exceeds(rx.limit, hdr, packet.len, source, 0):
        add_count(&rx.dropped[RX_DROP_MTU], 1)
        return True
    if undone:
        if <uint32_t>hdr.csum_start + hdr.csum_offset + 2 > packet.len:
            add_count(&rx.dropped[RX_DROP_CHECKSUM], 1)
            return True
        summed = True
    n = gather(rx, rx.header + <uint64_t>packet.len, 1)
    if n == NO_ROOM:
        return False
    if n == NEVER:
        drop_never(rx)
        return True
    to = room_of(rx)
    for i in range(packet.nsegs):
        iov_write(to, at, <const uint8_t *>source[i].iov_base, source[i].iov_len)
        at += source[i].iov_len
    if summed:
        complete(to, pieces_of(rx, n), rx.header, hdr, packet.len)
        add_count(&rx.checksums, 1)
    write_header(rx, to, hdr, packet.len, n)
    take(rx, n, at)
    return True


cdef inline void copy_complete(uint8_t *to, const uint8_t *p, uint32_t length,
                               const virtio_net_hdr *hdr) noexcept nogil:
    """Copy a frame and complete its checksum in one pass; the field is within the frame."""
    cdef uint32_t start = hdr.csum_start
    memcpy(to, p, start)
    store_sum16(to + start + hdr.csum_offset, sum_finish(sum_copy(to + start, p + start, length - start)))


cdef bint rx_is_open(const net_rx *rx) noexcept nogil:
    return rx.task.task.active and not rx.closed and rx.q.fault.code == VIRTIO_FAULT_NONE


cdef uint32_t rx_refuse(net_rx *rx, uint32_t n) noexcept nogil:
    """What deliver answers when it is not open: that it took them, unless it is only paused."""
    if not rx.task.task.active:
        return 0
    add_count(&rx.dropped[RX_DROP_CLOSED if rx.closed else RX_DROP_BROKEN], n + rx.pending)
    rx.pending = 0
    return n


cdef bint rx_settle(net_rx *rx) noexcept nogil:
    """Put the frame in that waits in scratch; False: there is still no room for all of it, or the turn is over."""
    cdef bint placed
    if not rx.pending:
        return True
    placed = place(rx, &rx.waiting, &rx.waiting_piece)
    rx.waiting.done = turn_resume(rx.turn, placed, rx.waiting.done)
    rx.turn.resume = 0
    rx.pending = not placed
    return placed


cdef inline bint is_plain(const virtio_packet *packet) noexcept nogil:
    """Whether a frame is in one piece, and not to be cut."""
    return packet.nsegs == 1 and net_hdr_says(&packet.hdr) <= 0xff


cdef inline bint write_plain(net_rx *rx, uint8_t *to, const virtio_packet *packet, const uint8_t *p,
                             uint32_t header) noexcept nogil:
    """Write a plain frame and its header; they fit. False: its checksum is to be completed, and cannot be."""
    cdef uint32_t says = net_hdr_says(&packet.hdr)
    if virtio_likely(says == 0):
        put_no_hdr(to, header)
    elif says & ~rx.flags == 0:
        put_net_hdr(to, &packet.hdr, 1, header)
        add_count(&rx.csum, says & VIRTIO_NET_HDR_F_NEEDS_CSUM)
    elif says & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        if <uint32_t>packet.hdr.csum_start + packet.hdr.csum_offset + 2 > packet.len:
            return False
        put_no_hdr(to, header)
        copy_complete(to + header, p, packet.len, &packet.hdr)
        add_count(&rx.checksums, 1)
        return True
    else:
        put_no_hdr(to, header)
    copy_frame(to + header, p, packet.len)
    return True


cdef inline uint32_t deliver_run(net_rx *rx, const virtio_packet *packets, uint32_t n, const iovec *segs,
                                 bint packed) noexcept nogil:
    """Put plain frames, none of them over the MTU, into plain chains, up to the first that is not; return how many."""
    cdef virtio_run run
    cdef const virtio_packet *packet = packets
    cdef uint32_t header = rx.header, total
    cdef uint64_t size = 0
    if run_start(&run, rx.q, min(n, <uint32_t>VIRTIO_BURST), packed) == 0:
        return 0
    run_ahead(&run, True, packed)
    while run_next(&run, VIRTIO_DESC_F_WRITE, packed):
        total = header + packet.len
        if virtio_unlikely(total > run.length or not is_plain(packet)):
            break
        if virtio_unlikely(not write_plain(rx, <uint8_t *>run.host, packet,
                                           <const uint8_t *>segs[packet.first].iov_base, header)):
            break
        run_keep(&run, rx.entries, total, packed)
        size += packet.len
        packet += 1
    run_commit(&run, rx.entries, run.taken, False, packed)
    rx.turn.left -= <int64_t>run.taken * VIRTIO_WORK_FRAME + virtio_work_bytes(size)
    rx.published |= run.taken != 0
    add_count(&rx.frames, run.taken)
    add_count(&rx.bytes, size)
    return run.taken


cdef inline uint32_t within_mtu(const net_rx *rx, const virtio_packet *packets, uint32_t n) noexcept nogil:
    """Return how many frames there are before the first over the MTU."""
    cdef uint32_t i
    if rx.limit == RX_NO_LIMIT:
        return n
    for i in range(n):
        if packets[i].len > rx.limit:
            return i
    return n


cdef uint32_t rx_deliver(virtio_sink *sink, const virtio_packet *packets, uint32_t n, const iovec *segs,
                         virtio_turn *turn) noexcept nogil:
    cdef net_rx *rx = <net_rx *>sink
    cdef const virtio_packet *packet
    cdef const iovec *source
    cdef bint all = rx.filter.modes & FILTER_PROMISC
    cdef uint32_t i = 0
    rx.turn = turn
    if virtio_unlikely(not rx_is_open(rx)):
        return rx_refuse(rx, n)
    if virtio_unlikely(rx.pending) and not rx_settle(rx):
        return 0
    put_back(rx)
    if all:
        i = within_mtu(rx, packets, n)
        i = deliver_run(rx, packets, i, segs, True) if rx.q.packed else deliver_run(rx, packets, i, segs, False)
    while i < n and (i == 0 or turn.left > 0):
        packet = packets + i
        source = segs + packet.first
        if not all and not is_wanted(rx, source, packet.nsegs, 0):
            add_count(&rx.filtered, 1)
            turn.left -= VIRTIO_WORK_FRAME
        elif not place(rx, packet, source):
            break
        i += 1
    if virtio_unlikely(i < n and rx.q.fault.code != VIRTIO_FAULT_NONE):
        return i + rx_refuse(rx, n - i)
    return i


cdef uint32_t rx_reserve(virtio_sink *sink, iovec *to, uint32_t limit, virtio_turn *turn) noexcept nogil:
    """Room for a frame: as much of it as there is in the guest's buffers, the rest in scratch."""
    cdef net_rx *rx = <net_rx *>sink
    cdef size_t left = sink.frame_max
    cdef uint64_t have = 0
    cdef uint32_t n = 0
    rx.reserved = 0
    rx.room = 0
    rx.turn = turn
    if not rx.task.task.active:
        return 0
    if rx_is_open(rx):
        if not rx_settle(rx):
            return 0
        rx.reserved = look(rx, rx.header + (left if rx.mergeable else VIRTIO_FRAME_MIN), RESERVES, &have)
        if rx.reserved == 0 and rx.q.fault.code == VIRTIO_FAULT_NONE:
            stall(rx, rx.header)
            return 0
    if rx.reserved:
        n = iov_slice(to, limit - 1, room_of(rx), pieces_of(rx, rx.reserved), rx.header, &left)
        rx.room = sink.frame_max - left
    if left:
        to[n].iov_base = rx.scratch
        to[n].iov_len = left
        n += 1
    return n


cdef void put_aside(net_rx *rx, const virtio_net_hdr *hdr, uint32_t length) noexcept nogil:
    """Put a frame in that is partly in scratch, or in the way of its own segments: all of it by way of scratch."""
    cdef uint32_t there = <uint32_t>min(rx.room, <uint64_t>length)
    memmove(rx.scratch + there, rx.scratch, length - there)
    iov_read(rx.scratch, room_of(rx), rx.header, there)
    rx.waiting.hdr = hdr[0]
    rx.waiting.first = 0
    rx.waiting.nsegs = 1
    rx.waiting.len = length
    rx.waiting.done = 0
    rx.waiting_piece.iov_base = rx.scratch
    rx.waiting_piece.iov_len = length
    if not rx.filter.modes & FILTER_PROMISC and not is_wanted(rx, &rx.waiting_piece, 1, 0):
        add_count(&rx.filtered, 1)
        return
    rx.pending = 1
    rx_settle(rx)


cdef bint is_exact_there(net_rx *rx, const virtio_net_hdr *hdr, uint32_t length) noexcept nogil:
    """is_exact() of a frame with a type that was read in place."""
    cdef const iovec *to = room_of(rx)
    cdef uint32_t there = <uint32_t>min(rx.room, <uint64_t>length), n = min(there, <uint32_t>VIRTIO_SEGMENT_HEADERS_MAX)
    cdef uint8_t headers[VIRTIO_SEGMENT_HEADERS_MAX]
    cdef iovec pieces[2]
    cdef virtio_packet packet
    packet.hdr, packet.first, packet.nsegs, packet.len = hdr[0], 0, 1, length
    if to.iov_len > rx.header:
        pieces[0].iov_base, pieces[0].iov_len = <uint8_t *>to.iov_base + rx.header, to.iov_len - rx.header
        if is_exact_plain(&packet, pieces):
            return True
    iov_read(headers, to, rx.header, n)
    pieces[0].iov_base, pieces[0].iov_len = headers, n
    pieces[1].iov_base, pieces[1].iov_len = rx.scratch, length - there
    packet.nsegs = 2  # no more of them is looked at than has room for headers
    return is_exact(&packet, pieces)


cdef void rx_commit(virtio_sink *sink, const virtio_net_hdr *hdr, uint32_t length) noexcept nogil:
    cdef net_rx *rx = <net_rx *>sink
    cdef uint32_t n = 0, npieces, undone = beyond(rx, hdr, net_hdr_needs(hdr))
    cdef bint cut = False
    cdef uint64_t total = rx.header + <uint64_t>length, have = 0
    cdef iovec *to
    if rx.reserved == 0:
        rx_refuse(rx, 1)
        return
    if hdr.gso_type != VIRTIO_NET_HDR_GSO_NONE:
        cut = undone or not is_exact_there(rx, hdr, length)
    if length > rx.room and not rx.mergeable and not cut:
        add_count(&rx.dropped[RX_DROP_MTU if length > <uint64_t>rx.limit + MTU_TAGS else RX_DROP_TOO_LARGE], 1)
        return
    if length > rx.room or cut:
        put_aside(rx, hdr, length)
        return
    to = room_of(rx)
    npieces = pieces_of(rx, rx.reserved)
    if not rx.filter.modes & FILTER_PROMISC and not is_wanted(rx, to, npieces, rx.header):
        add_count(&rx.filtered, 1)
        return
    if virtio_unlikely(length > rx.limit) and exceeds(rx.limit, hdr, length, to, rx.header):
        add_count(&rx.dropped[RX_DROP_MTU], 1)
        return
    if undone:
        if not complete(to, npieces, rx.header, hdr, length):
            add_count(&rx.dropped[RX_DROP_CHECKSUM], 1)
            return
        add_count(&rx.checksums, 1)
    while have < total:
        have += rx.chains[rx.used + n].writable
        n += 1
    write_header(rx, to, hdr, length, n)
    take(rx, n, total)


cdef virtio_bell *rx_flush(virtio_sink *sink) noexcept nogil:
    cdef net_rx *rx = <net_rx *>sink
    put_back(rx)
    if virtio_unlikely(rx.q.fault.code != VIRTIO_FAULT_NONE and not rx.troubled):
        rx.troubled = 1
        return rx.trouble
    if not rx.published:
        return NULL
    rx.published = 0
    return rx.call if device_needs_notification(rx.q) else NULL


cdef bint rx_ask_for_room(net_rx *rx) noexcept nogil:
    """Turn kicks on; say whether there is room already for what found none.

    Chains that are too few were announced before: the kick is to come for the next ones, so it is asked for behind
    them.
    """
    cdef uint64_t have = 0
    cdef bint more
    cdef uint32_t i
    cdef virtio_turn turn  # of no task: once before a sleep
    rx.turn = &turn
    turn.left = turn.resume = 0
    refill(rx, RX_CHAINS)
    for i in range(rx.popped):
        have += rx.chains[i].writable
    more = device_enable_notification(rx.q)
    put_back(rx)
    return more or have >= (rx.wanted if rx.mergeable else 1) or rx.q.fault.code != VIRTIO_FAULT_NONE


cdef bint rx_arm(virtio_sink *sink, virtio_wait *wait) noexcept nogil:
    cdef net_rx *rx = <net_rx *>sink
    if not rx.task.task.active:
        wait.full = 1  # it will be, or the port will be told that it is gone
        return False
    if rx.closed or rx_ask_for_room(rx):
        return True
    return virtio_wait_bell(wait, rx.kick)


cdef void rx_disarm(virtio_sink *sink) noexcept nogil:
    cdef net_rx *rx = <net_rx *>sink
    if rx.task.task.active:
        device_disable_notification(rx.q)


cdef void rx_start(net_rx *rx) noexcept nogil:
    rx.filter.modes = FILTER_PROMISC
    rx.size_seen = 1526
    rx.limit = RX_NO_LIMIT
    rx.sink.lock = &rx.q.lock
    rx.sink.deliver, rx.sink.reserve, rx.sink.commit = rx_deliver, rx_reserve, rx_commit
    rx.sink.flush, rx.sink.arm, rx.sink.disarm = rx_flush, rx_arm, rx_disarm
