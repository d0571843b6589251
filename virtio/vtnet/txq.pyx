"""vtnet's transmit queue at C level."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from virtio._ring cimport (
    driver_dequeue_burst, driver_disable_intr, driver_enqueue_burst, driver_notify, driver_postpone_intr,
)
from virtio.core.atomic cimport virtio_get64, virtio_likely, virtio_prefetch_write, virtio_put64, virtio_unlikely
from virtio.core.counters cimport add_count
from virtio.core.iov cimport iov_read_all
from virtio.event.worker cimport (
    VIRTIO_WORK_BYTES, VIRTIO_WORK_FRAME, VIRTIO_WORK_SEGMENT, virtio_turn, virtio_wait, virtio_wait_bell,
    virtio_wait_us, virtio_work_bytes,
)
from virtio.offload.counters cimport VIRTIO_TX_REFUSED, VIRTIO_TX_SEGMENT_IN_SOFTWARE
from virtio.offload.frame cimport frame_parse, virtio_frame, virtio_layer
from virtio.offload.inet_checksum cimport checksum_complete
from virtio.offload.mtu cimport exceeds, limit_of
from virtio.offload.net_hdr cimport VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM, VIRTIO_OFFLOAD_CSUM
from virtio.offload.segment_write cimport segment_copy
from virtio.offload.segmenter cimport (
    SEGMENT_AUTO, VIRTIO_SEGMENT_OK, segment_header_size, segment_payload_size, segment_plan_parsed,
    segment_plan_pieces, virtio_segmenter,
)
from virtio.offload.tx cimport VIRTIO_TX_WANT_INNER, offload_transmit, tx_outcome
from virtio.ports.port cimport VIRTIO_BURST, VIRTIO_FRAME_MAX, VIRTIO_FRAME_MIN, virtio_packet
from virtio.ports.software_offload cimport net_hdr_needs, segment_options
from virtio.virtqueue.split_driver cimport driver_outstanding
from virtio.virtqueue.structs cimport VIRTIO_FAULT_NONE, VIRTIO_Q_EVENT_IDX, virtio_completion
from virtio.vtnet.pool cimport (
    VTNET_HEAD, VTNET_NONE, VTNET_SENT, VTNET_VIEW, pool_collect, pool_frame, pool_gpa, pool_put, pool_put_sent,
    pool_taken, pool_top,
)

cdef enum:
    IS_VIEW = 0x80000000  # in a cookie
    AHEAD = 16            # buffers whose lines are fetched before they are written


cdef inline uint64_t cookie_of(uint32_t small, uint32_t large, bint view) noexcept nogil:
    """What a chain is known by: its buffers, and whether Python may have them."""
    return small | <uint64_t>large << 32 | (IS_VIEW if view else 0)


cdef inline void put_back(vtnet_tx *tx, uint64_t cookie) noexcept nogil:
    cdef uint32_t small = <uint32_t>cookie & VTNET_NONE
    cdef uint32_t large = <uint32_t>(cookie >> 32)
    if virtio_unlikely(cookie & IS_VIEW):
        if small != VTNET_NONE:
            pool_put_sent(tx.small, small)
        else:
            pool_put_sent(tx.large, large)
        return
    if small != VTNET_NONE:
        pool_put(tx.small, small)
    if large != VTNET_NONE:
        pool_put(tx.large, large)


cdef uint32_t tx_reclaim(vtnet_tx *tx) noexcept nogil:
    cdef virtio_completion out[VIRTIO_BURST]
    cdef uint32_t total = 0
    cdef uint32_t i
    cdef uint32_t n = VIRTIO_BURST
    if virtio_unlikely(tx.small.retired):  # what comes back belongs to the queue's new buffers
        return 0
    while n == VIRTIO_BURST:
        n = driver_dequeue_burst(tx.q, out, VIRTIO_BURST)
        for i in range(n):
            put_back(tx, out[i].cookie)
        total += n
    if total:
        tx.sleep_us = TX_SLEEP_US
    pool_collect(tx.small)
    if tx.large is not NULL:
        pool_collect(tx.large)
    if not tx.q.intr_enabled and tx.q.flags & VIRTIO_Q_EVENT_IDX and total:
        driver_disable_intr(tx.q)  # an event index that stays behind is met each 2^16 chains
    return total


cdef void tx_begin(vtnet_tx *tx) noexcept nogil:
    if tx.q.nfree <= tx.threshold or (tx.large is not NULL and tx.large.nfree + TX_LARGE_OUT <= tx.large.count):
        tx_reclaim(tx)


cdef inline bint room_now(const vtnet_tx *tx, uint32_t len) noexcept nogil:
    return (tx.q.nfree >= tx.nslots + tx.slots and tx.q.fault.code == VIRTIO_FAULT_NONE
            and tx.small.nfree != 0 and tx.small.host is not NULL
            and (len <= tx.small.room or tx.large is NULL or (tx.large.nfree != 0 and tx.large.host is not NULL)))


cdef bint tx_has_room(vtnet_tx *tx, uint32_t len) noexcept nogil:
    if virtio_likely(room_now(tx, len)):
        return True
    tx_reclaim(tx)
    if room_now(tx, len):
        return True
    if tx.q.fault.code != VIRTIO_FAULT_NONE:
        return False
    add_count(&tx.stats.rescheduled, 1)
    tx.wanting = 1
    return False


cdef void publish(vtnet_tx *tx) noexcept nogil:
    """Make the frames collected available to the device."""
    cdef int why = 0
    cdef uint32_t done, i
    if tx.nreq == 0:
        return
    done = driver_enqueue_burst(tx.q, tx.sg, tx.req, tx.nreq, &why)
    for i in range(done, tx.nreq):  # the queue broke
        put_back(tx, tx.req[i].cookie)
    tx.nreq = tx.nsg = tx.nslots = 0


cdef inline void put_header(const vtnet_tx *tx, uint8_t *frame, const virtio_net_hdr *hdr) noexcept nogil:
    """The header in front of a frame: what a driver may say (5.1.9.2)."""
    cdef uint8_t *p = frame - tx.hdr_size
    cdef virtio_net_hdr clean
    cdef uint64_t first
    if virtio_likely(tx.hdr_size <= 12):
        # NEEDS_CSUM is all that may be said without a tunnel: DATA_VALID is the device's
        first = virtio_get64(hdr) & ~<uint64_t>0xff | (hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
        virtio_put64(p, first)
        (<uint16_t *>(p + 8))[0] = hdr.csum_offset
        if tx.hdr_size == 12:
            (<uint16_t *>(p + 10))[0] = 0
        return
    clean = hdr[0]
    clean.flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM
    clean.num_buffers = 0
    clean.hash_value = 0
    clean.hash_report = clean.padding = 0
    memcpy(p, &clean, tx.hdr_size)


cdef inline void collect(vtnet_tx *tx, const virtio_net_hdr *hdr, uint32_t small, uint32_t large, uint32_t len,
                         bint view) noexcept nogil:
    """Add a frame of len bytes to the burst. It starts in the small buffer, if there is one; the rest is in large."""
    cdef vtnet_pool *pool = tx.small if small != VTNET_NONE else tx.large
    cdef uint32_t first = small if small != VTNET_NONE else large
    cdef uint8_t *frame = pool_frame(pool, first)
    cdef uint64_t gpa = pool_gpa(pool, first)
    cdef virtio_sg *sg = &tx.sg[tx.nsg]
    cdef virtio_request *req = &tx.req[tx.nreq]
    cdef uint32_t head = len
    cdef uint32_t pieces = 1
    put_header(tx, frame, hdr)
    if head > pool.room:
        head = pool.room
    if virtio_likely(not tx.separate):
        sg[0].gpa = gpa - tx.hdr_size
        sg[0].len = head + tx.hdr_size
    else:
        sg[0].gpa = gpa - tx.hdr_size
        sg[0].len = tx.hdr_size
        sg[1].gpa = gpa
        sg[1].len = head
        pieces = 2
    if virtio_unlikely(head < len):
        sg[pieces].gpa = pool_gpa(tx.large, large)
        sg[pieces].len = len - head
        pieces += 1
    req.cookie = cookie_of(small, large, view)
    req.readable = <uint16_t>pieces
    req.writable = 0
    tx.bytes += len
    tx.nreq += 1
    tx.nsg += pieces
    tx.nslots += 1 if pieces == 1 or pieces <= tx.q.max_indirect else pieces
    add_count(&tx.stats.opackets, 1)
    add_count(&tx.stats.obytes, len)
    add_count(&tx.stats.omcasts, frame[0] & 1)
    if virtio_unlikely(hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM):
        if hdr.gso_type:
            add_count(&tx.stats.tso, 1)
        else:
            add_count(&tx.stats.csum, 1)


cdef inline bint beyond(const vtnet_tx *tx, const virtio_net_hdr *hdr) noexcept nogil:
    """Whether a header leaves something undone that the device does not do."""
    if virtio_likely(not hdr.gso_type and not hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM):
        return False
    return net_hdr_needs(hdr) & ~tx.sink.offloads


cdef inline bint is_unusual(const vtnet_tx *tx, uint32_t len) noexcept nogil:
    """Whether a frame is too short, or longer than most: one comparison for both."""
    return len - VIRTIO_FRAME_MIN > tx.usual


cdef bint drop_unfit(vtnet_tx *tx, const virtio_net_hdr *hdr, const iovec *pieces, uint32_t len) noexcept nogil:
    """Drop an unusual frame if it is too short, or longer than the MTU allows; return whether that was done."""
    if len < VIRTIO_FRAME_MIN:
        add_count(&tx.stats.too_short, 1)
    elif len > tx.limit and exceeds(tx.limit, hdr, len, pieces, 0):
        add_count(&tx.stats.too_large, 1)
    else:
        return False
    return True


# ---- what the device does not do ----

cdef int cut(vtnet_tx *tx, virtio_segmenter *plan) noexcept nogil:
    """Write the segments of a plan, each into a buffer of its own. 1: sent; 0: no room now; -1: never."""
    cdef virtio_net_hdr nothing
    cdef iovec to
    cdef uint32_t i, small
    if plan.count > tx.small.count or plan.count > tx.q.size // tx.slots:
        return -1
    if plan.header + plan.extra + plan.unit > tx.small.room:
        return -1
    # all or none: a frame of which half is sent cannot be given back to whoever sends it
    if tx.small.nfree < plan.count or tx.q.nfree < tx.nslots + plan.count * tx.slots:
        tx_reclaim(tx)
        if tx.small.nfree < plan.count or tx.q.nfree < tx.nslots + plan.count * tx.slots:
            add_count(&tx.stats.rescheduled, 1)
            tx.wanting = 1
            return 0
    memset(&nothing, 0, sizeof(nothing))
    for i in range(plan.count):
        if tx.nreq == VIRTIO_BURST:
            publish(tx)
        small = pool_top(tx.small)
        pool_taken(tx.small)
        to.iov_base = pool_frame(tx.small, small)
        to.iov_len = tx.small.room
        collect(tx, &nothing, small, VTNET_NONE, segment_copy(plan, i, &to, 1, 0), False)
    add_count(&tx.stats.segments, plan.count)
    return 1


cdef int cut_pieces(vtnet_tx *tx, const virtio_net_hdr *hdr, const iovec *pieces, uint32_t npieces) noexcept nogil:
    """Segment a frame by its header. As cut."""
    cdef virtio_segmenter plan
    if segment_plan_pieces(&plan, pieces, npieces, hdr.gso_type, hdr.gso_size, segment_options(hdr, 0),
                           tx.q.size) != VIRTIO_SEGMENT_OK:
        return -1
    return cut(tx, &plan)


cdef uint32_t reserved(const vtnet_tx *tx, uint32_t len, iovec *pieces) noexcept nogil:
    """Find the pieces of a frame that was read into the reserved room; return how many there are."""
    pieces[0].iov_base = pool_frame(tx.small, pool_top(tx.small))
    pieces[0].iov_len = len
    if len <= tx.small.room:
        return 1
    pieces[0].iov_len = tx.small.room
    pieces[1].iov_base = pool_frame(tx.large, pool_top(tx.large))
    pieces[1].iov_len = len - tx.small.room
    return 2


cdef void commit_beyond(vtnet_tx *tx, const virtio_net_hdr *hdr, uint32_t len) noexcept nogil:
    """A frame that was read into the reserved room, and whose header says more than was negotiated."""
    cdef uint32_t small = pool_top(tx.small)
    cdef uint32_t large = VTNET_NONE
    cdef virtio_net_hdr nothing
    cdef iovec pieces[2]
    cdef uint32_t n = reserved(tx, len, pieces)
    cdef int sent
    pool_taken(tx.small)
    if n == 2:
        large = pool_top(tx.large)
        pool_taken(tx.large)
    if hdr.gso_type:
        sent = cut_pieces(tx, hdr, pieces, n)
        # it lies in our buffers, and cannot be given back: without room it is lost, as on any full queue
        if sent < 1:
            add_count(&tx.stats.refused, 1)
        put_back(tx, cookie_of(small, large, False))
        return
    memset(&nothing, 0, sizeof(nothing))
    if n == 2 or checksum_complete(<uint8_t *>pieces[0].iov_base, len, hdr.csum_start, hdr.csum_offset):
        add_count(&tx.stats.refused, 1)
        put_back(tx, cookie_of(small, large, False))
        return
    collect(tx, &nothing, small, VTNET_NONE, len, False)


# ---- the sink ----

cdef uint32_t tx_reserve(virtio_sink *sink, iovec *to, uint32_t limit, virtio_turn *turn) noexcept nogil:
    cdef vtnet_tx *tx = <vtnet_tx *>sink
    cdef uint32_t i
    if tx.nreq == VIRTIO_BURST:
        publish(tx)
    if limit < 2 or tx.bytes >= TX_BURST_BYTES or not tx_has_room(tx, sink.frame_max):
        return 0
    i = pool_top(tx.small)
    to[0].iov_base = pool_frame(tx.small, i)
    to[0].iov_len = tx.small.room
    if tx.large is NULL:
        return 1
    to[1].iov_base = pool_frame(tx.large, pool_top(tx.large))
    to[1].iov_len = sink.frame_max - tx.small.room
    return 2


cdef void tx_commit(virtio_sink *sink, const virtio_net_hdr *hdr, uint32_t len) noexcept nogil:
    cdef vtnet_tx *tx = <vtnet_tx *>sink
    cdef uint32_t small, large
    cdef iovec pieces[2]
    if virtio_unlikely(is_unusual(tx, len)):
        if len > sink.frame_max:
            add_count(&tx.stats.too_large, 1)
            return
        reserved(tx, len, pieces)
        if drop_unfit(tx, hdr, pieces, len):
            return
    if virtio_unlikely(beyond(tx, hdr)):
        commit_beyond(tx, hdr, len)
        return
    small = pool_top(tx.small)
    pool_taken(tx.small)
    large = VTNET_NONE
    if len > tx.small.room:
        large = pool_top(tx.large)
        pool_taken(tx.large)
    collect(tx, hdr, small, large, len, False)


cdef struct place:       # where a frame is put, or lies already
    uint8_t *frame
    uint32_t small
    uint32_t large
    bint view           # Python has the buffer: the frame lies there already


cdef inline uint32_t index_in(const vtnet_pool *pool, const uint8_t *data) noexcept nogil:
    """The buffer whose frame starts at data, if Python has it and it may be sent; VTNET_NONE otherwise."""
    cdef uint64_t offset
    cdef uint32_t i
    if pool is NULL or pool.host is NULL:
        return VTNET_NONE
    offset = <uint64_t>data - <uint64_t>pool.host
    if virtio_likely(offset >= <uint64_t>pool.count * pool.stride):
        return VTNET_NONE
    i = <uint32_t>(offset // pool.stride)
    if offset % pool.stride != VTNET_HEAD or pool.state[i] != VTNET_VIEW:
        return VTNET_NONE
    return i


cdef inline bint find_place(vtnet_tx *tx, const uint8_t *data, uint32_t len, place *at) noexcept nogil:
    """Choose the buffer for a frame of len bytes that lies at data; there is room. False: none is large enough."""
    at.small = index_in(tx.small, data)
    at.large = VTNET_NONE if at.small != VTNET_NONE else index_in(tx.large, data)
    at.view = at.small != VTNET_NONE or at.large != VTNET_NONE
    if virtio_unlikely(at.view):
        at.frame = <uint8_t *>data
        return len <= (tx.small.room if at.small != VTNET_NONE else tx.large.room)
    if virtio_likely(len <= tx.small.room):
        at.small = pool_top(tx.small)
        at.frame = pool_frame(tx.small, at.small)
        return True
    if len > tx.sink.frame_max:
        return False
    at.large = pool_top(tx.large)
    at.frame = pool_frame(tx.large, at.large)
    return True


cdef inline void send(vtnet_tx *tx, const virtio_net_hdr *hdr, const place *at, uint32_t len) noexcept nogil:
    """Take the buffer, and add the frame in it to the burst."""
    if virtio_unlikely(at.view):
        if at.small != VTNET_NONE:
            tx.small.state[at.small] |= VTNET_SENT
        else:
            tx.large.state[at.large] |= VTNET_SENT
    elif at.small != VTNET_NONE:
        pool_taken(tx.small)
    else:
        pool_taken(tx.large)
    collect(tx, hdr, at.small, at.large, len, at.view)


cdef int tx_send_pieces(vtnet_tx *tx, const virtio_net_hdr *hdr, const iovec *pieces, uint32_t npieces,
                        uint32_t len) noexcept nogil:
    """Send a frame in pieces with its header. 1: taken, sent or dropped; 0: no room now."""
    cdef virtio_net_hdr nothing
    cdef place at
    cdef int sent
    cdef bint much = beyond(tx, hdr)
    if tx.nreq == VIRTIO_BURST:
        publish(tx)
    if virtio_unlikely(is_unusual(tx, len)) and drop_unfit(tx, hdr, pieces, len):
        return 1
    if virtio_unlikely(much and hdr.gso_type):
        sent = cut_pieces(tx, hdr, pieces, npieces)
        add_count(&tx.stats.refused, sent < 0)
        return sent != 0
    if virtio_unlikely(not tx_has_room(tx, len)):
        return 0
    if virtio_unlikely(not find_place(tx, <uint8_t *>pieces[0].iov_base, len, &at)):
        add_count(&tx.stats.too_large, 1)
        return 1
    if virtio_likely(not at.view):
        add_count(&tx.stats.copied, len)
        iov_read_all(at.frame, pieces, npieces)
    if virtio_unlikely(much):
        memset(&nothing, 0, sizeof(nothing))
        if checksum_complete(at.frame, len, hdr.csum_start, hdr.csum_offset):
            add_count(&tx.stats.refused, 1)
            return 1
        hdr = &nothing
    send(tx, hdr, &at, len)
    return 1


cdef int tx_send_wanted(vtnet_tx *tx, uint8_t *data, uint32_t len, uint32_t want, uint32_t mss) noexcept nogil:
    """Send a frame of which the checksum, or segments, are wanted. 1: taken, sent or dropped; 0: no room now."""
    cdef virtio_net_hdr hdr
    cdef virtio_frame parsed
    cdef virtio_segmenter plan
    cdef const virtio_layer *layer
    cdef place at
    cdef iovec piece
    cdef uint32_t offloads = tx.sink.offloads
    cdef uint32_t head = len
    cdef int reason, sent
    if tx.nreq == VIRTIO_BURST:
        publish(tx)
    if virtio_unlikely(len < VIRTIO_FRAME_MIN):
        add_count(&tx.stats.too_short, 1)
        return 1
    if virtio_unlikely(not tx_has_room(tx, len)):
        return 0
    piece.iov_base = data
    piece.iov_len = len
    frame_parse(&parsed, data, len)
    layer = &parsed.inner if parsed.tunnel and want & VIRTIO_TX_WANT_INNER else &parsed.outer
    if mss and layer.end - layer.payload > mss:
        head = layer.payload  # the rest is copied when it is known where to: the frame may be cut
    if not find_place(tx, data, len, &at):
        if head == len:
            add_count(&tx.stats.too_large, 1)
            return 1
        at.frame = data  # which is not touched, as it can only be cut
        offloads &= VIRTIO_OFFLOAD_CSUM
    elif not at.view:
        memcpy(at.frame, data, head)
    reason = offload_transmit(&hdr, at.frame, &parsed, want, mss, offloads)
    if tx_outcome(reason) == VIRTIO_TX_SEGMENT_IN_SOFTWARE:
        sent = -1
        if segment_plan_parsed(&plan, &parsed, data, SEGMENT_AUTO, mss, 0, tx.q.size) == VIRTIO_SEGMENT_OK:
            if (len > tx.limit
                    and segment_header_size(&plan, 0) + segment_payload_size(&plan, 0) > limit_of(tx.limit, &piece, 0)):
                add_count(&tx.stats.too_large, 1)
                return 1
            sent = cut(tx, &plan)
        if sent == 0:
            return 0
        add_count(&tx.stats.refused, sent < 0)
    elif tx_outcome(reason) == VIRTIO_TX_REFUSED:
        add_count(&tx.stats.refused, 1)
    elif virtio_unlikely(is_unusual(tx, len)) and drop_unfit(tx, &hdr, &piece, len):
        return 1
    else:
        if not at.view:
            memcpy(at.frame + head, data + head, len - head)
            add_count(&tx.stats.copied, len)
        send(tx, &hdr, &at, len)
    add_count(&tx.reasons[reason], 1)
    return 1


cdef inline void fetch_ahead(const vtnet_tx *tx, uint32_t n) noexcept nogil:
    """Get the first lines of the next n small buffers back from the device's CPU, all at once."""
    cdef const uint8_t *frame
    cdef uint32_t i
    if n > tx.small.nfree:
        n = tx.small.nfree
    for i in range(n):
        frame = pool_frame(tx.small, tx.small.free[tx.small.nfree - 1 - i])
        virtio_prefetch_write(frame - 1)
        virtio_prefetch_write(frame)


cdef uint32_t tx_deliver(virtio_sink *sink, const virtio_packet *packets, uint32_t n, const iovec *segs,
                         virtio_turn *turn) noexcept nogil:
    cdef vtnet_tx *tx = <vtnet_tx *>sink
    cdef uint32_t i = 0
    cdef uint32_t bytes = tx.bytes
    cdef uint32_t room = tx.bytes + <uint32_t>min(<int64_t>0x40000000, max(turn.left, <int64_t>1) * VIRTIO_WORK_BYTES)
    cdef uint64_t segments = tx.stats.segments
    tx_begin(tx)
    while i < n:
        if i % AHEAD == 0:
            if virtio_unlikely(tx.bytes >= room):
                break
            fetch_ahead(tx, n - i if n - i < AHEAD else AHEAD)
        if not tx_send_pieces(tx, &packets[i].hdr, &segs[packets[i].first], packets[i].nsegs, packets[i].len):
            break
        i += 1
    turn.left -= (<int64_t>i * VIRTIO_WORK_FRAME + virtio_work_bytes(tx.bytes - bytes)
                  + <int64_t>(tx.stats.segments - segments) * VIRTIO_WORK_SEGMENT)
    return i


cdef virtio_bell *tx_flush(virtio_sink *sink) noexcept nogil:
    cdef vtnet_tx *tx = <vtnet_tx *>sink
    publish(tx)
    tx.bytes = 0
    if tx.q.pending and driver_notify(tx.q):
        return tx.kick
    return NULL


cdef bint tx_arm(virtio_sink *sink, virtio_wait *wait) noexcept nogil:
    """Wait for buffers to come back. Work already, if somebody found no room and there is some now."""
    cdef vtnet_tx *tx = <vtnet_tx *>sink
    tx_reclaim(tx)
    if tx.q.fault.code != VIRTIO_FAULT_NONE:
        return False
    if tx.wanting and room_now(tx, tx.sink.frame_max):
        tx.wanting = 0
        return True
    if driver_outstanding(tx.q) == 0:
        return False
    virtio_wait_us(wait, tx.sleep_us)
    if tx.sleep_us < TX_SLEEP_MAX_US:
        tx.sleep_us *= 2
    if tx.call is not NULL and tx.stats.opackets - tx.intr_at >= TX_INTR_PACKETS:
        tx.intr_at = tx.stats.opackets
        add_count(&tx.stats.intrs, 1)
        if driver_postpone_intr(tx.q, 1 if tx.wanting else 2):
            tx_reclaim(tx)
            if tx.wanting and room_now(tx, tx.sink.frame_max):
                tx.wanting = 0
                return True
        return virtio_wait_bell(wait, tx.call)
    return False


cdef void tx_disarm(virtio_sink *sink) noexcept nogil:
    cdef vtnet_tx *tx = <vtnet_tx *>sink
    if tx.q.intr_enabled:
        driver_disable_intr(tx.q)


cdef void tx_open(vtnet_tx *tx, virtio_driver_queue *q, virtio_bell *kick, virtio_bell *call, vtnet_pool *small,
                  vtnet_pool *large, uint32_t hdr_size, bint separate, uint32_t offloads) noexcept nogil:
    cdef uint32_t pieces = 1 + separate + (large is not NULL)
    memset(tx, 0, sizeof(vtnet_tx))
    tx.sink.lock = &q.lock
    tx.sink.deliver = tx_deliver
    tx.sink.reserve = tx_reserve
    tx.sink.commit = tx_commit
    tx.sink.flush = tx_flush
    tx.sink.arm = tx_arm
    tx.sink.disarm = tx_disarm
    tx.sink.offloads = offloads
    tx.sink.frame_max = VIRTIO_FRAME_MAX if large is not NULL else small.room
    tx.q = q
    tx.kick = kick
    tx.call = call
    tx.small = small
    tx.large = large
    tx.hdr_size = hdr_size
    tx.separate = separate
    tx.slots = 1 if pieces <= q.max_indirect else pieces
    tx.threshold = q.size // 4
    if tx.threshold < tx.slots:
        tx.threshold = tx.slots
    tx.sleep_us = TX_SLEEP_US
    tx_limit(tx, TX_NO_LIMIT)
    driver_disable_intr(q)


cdef void tx_limit(vtnet_tx *tx, uint32_t limit) noexcept nogil:
    tx.limit = limit
    tx.usual = min(limit, tx.sink.frame_max) - VIRTIO_FRAME_MIN


cdef void tx_forget(vtnet_tx *tx) noexcept nogil:
    tx.nreq = tx.nsg = tx.nslots = tx.bytes = tx.wanting = 0
    driver_disable_intr(tx.q)
