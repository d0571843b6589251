"""vtnet's transmit queue."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from virtio._ring cimport (
    driver_dequeue_burst, driver_disable_intr, driver_enqueue_burst, driver_notify, driver_postpone_intr,
)
from virtio.core.atomic cimport (
    virtio_get64, virtio_likely, virtio_load32_acquire, virtio_put64, virtio_unlikely,
)
from virtio.core.counters cimport add_count, counted
from virtio.core.iov cimport iov_read_all, iovec
from virtio.core.lock cimport queue_lock, queue_unlock
from virtio.event.notifier cimport Bell, virtio_bell, virtio_bell_ring
from virtio.event.worker cimport virtio_wait, virtio_wait_bell, virtio_wait_us
from virtio.offload.frame cimport frame_parse, virtio_frame
from virtio.offload.inet_checksum cimport checksum_complete
from virtio.offload.mtu cimport exceeds
from virtio.offload.net_hdr cimport (
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM, VIRTIO_OFFLOAD_ALL, VIRTIO_OFFLOAD_CSUM,
    VIRTIO_OFFLOAD_ECN, header_size_of, net_hdr_check, offloads_of, virtio_net_hdr,
)
from virtio.offload.protocols cimport ETHERNET
from virtio.offload.toeplitz cimport frame_hash, Toeplitz, virtio_hash
from virtio.ports.port cimport VIRTIO_BURST, VIRTIO_FRAME_MAX, VIRTIO_FRAME_MIN, virtio_sink
from virtio.virtqueue.driver_common cimport driver_outstanding
from virtio.virtqueue.driver_queue cimport DriverQueue
from virtio.virtqueue.structs cimport (
    VIRTIO_FAULT_NONE, VIRTIO_Q_EVENT_IDX, virtio_completion, virtio_driver_queue, virtio_request, virtio_sg,
)
from virtio.vtnet.pool cimport (
    Pool, VTNET_NONE, VTNET_SENT, VTNET_VIEW, pool_collect, pool_frame, pool_gpa, pool_put, pool_put_sent, pool_taken,
    pool_top, pool_view_at, vtnet_pool,
)
from virtio.vtnet.tx_batch cimport TxBatch

from virtio.offload.counters import TransmitReason
from virtio.constants import Feature
from virtio.errors import DeviceBroken

cdef enum:
    FLOW_QUEUES = 256
    ALL_HASHES = 0x1ff  # VIRTIO_NET_HASH_TYPE_*


# ---- the burst that is collected ----


cdef inline void put_back(vtnet_tx *tx, uint64_t cookie) noexcept nogil:
    """Give the buffers of a chain back to their pools."""
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


cdef inline void publish(vtnet_tx *tx) noexcept nogil:
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
    """Write the header in front of a frame, with the fields that a driver may set (5.1.9.2)."""
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


cdef inline bint find_place(vtnet_tx *tx, const uint8_t *data, uint32_t len, vtnet_place *at) noexcept nogil:
    """Choose the buffer for a frame of len bytes that lies at data; there is room. False: none is large enough."""
    at.small = pool_view_at(tx.small, data)
    at.large = VTNET_NONE if at.small != VTNET_NONE else pool_view_at(tx.large, data)
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


cdef inline void send(vtnet_tx *tx, const virtio_net_hdr *hdr, const vtnet_place *at, uint32_t len) noexcept nogil:
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


# ---- the ring and its room ----


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


cdef bint tx_drop_unfit(vtnet_tx *tx, const virtio_net_hdr *hdr, const iovec *pieces, uint32_t len) noexcept nogil:
    if len < VIRTIO_FRAME_MIN:
        add_count(&tx.stats.too_short, 1)
    elif len > tx.limit and exceeds(tx.limit, hdr, len, pieces, 0):
        add_count(&tx.stats.too_large, 1)
    else:
        return False
    return True


cdef int tx_send_pieces(vtnet_tx *tx, const virtio_net_hdr *hdr, const iovec *pieces, uint32_t npieces,
                        uint32_t len) noexcept nogil:
    """Send a frame in pieces with its header, which is such as net_hdr_check passes for any offloads.

    1: taken, sent or dropped; 0: no room now.
    """
    cdef virtio_net_hdr nothing
    cdef vtnet_place at
    cdef int sent
    cdef bint much = beyond(tx, hdr)
    if tx.nreq == VIRTIO_BURST:
        publish(tx)
    if virtio_unlikely(is_unusual(tx, len)) and tx_drop_unfit(tx, hdr, pieces, len):
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


include "tx_offload.pxi"
include "tx_sink.pxi"


# ---- the sink ----


cdef virtio_bell *tx_flush(virtio_sink *sink) noexcept nogil:
    cdef vtnet_tx *tx = <vtnet_tx *>sink
    publish(tx)
    tx.bytes = 0
    if tx.q.pending and driver_notify(tx.q):
        return tx.kick
    return NULL


cdef bint tx_arm(virtio_sink *sink, virtio_wait *wait) noexcept nogil:
    """Wait for buffers to come back. Work already, if a caller found no room and there is some now."""
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
    """Drop frames beyond this limit from now on, and a frame of segments if these are."""
    tx.limit = limit
    tx.usual = min(limit, tx.sink.frame_max) - VIRTIO_FRAME_MIN


cdef void tx_forget(vtnet_tx *tx) noexcept nogil:
    """Forget the burst: after a reset of the queue, when nothing is out. The pools are the caller's to fill again."""
    tx.nreq = tx.nsg = tx.nslots = tx.bytes = tx.wanting = 0
    driver_disable_intr(tx.q)


# ---- for Python ----

cdef inline int send_frame(vtnet_tx *tx, TxBatch batch, uint32_t i) noexcept nogil:
    """Send frame i of a batch. 1: taken, sent or dropped; 0: no room now."""
    cdef virtio_net_hdr nothing
    cdef const virtio_net_hdr *hdr = &nothing
    cdef iovec piece
    cdef uint32_t len = batch.frames.lengths[i]
    if batch.want:
        return tx_send_wanted(tx, batch.frames.data[i], len, batch.want, batch.mss)
    if batch.headers is not NULL and batch.given[i]:
        hdr = &batch.headers[i]
        if net_hdr_check(&batch.headers[i], len, VIRTIO_OFFLOAD_ALL):
            add_count(&tx.stats.bad_header, 1)
            return 1
    else:
        memset(&nothing, 0, sizeof(nothing))
    piece.iov_base = batch.frames.data[i]
    piece.iov_len = len
    return tx_send_pieces(tx, hdr, &piece, 1, len)


cdef void finish(vtnet_tx *tx) noexcept nogil:
    """Show the device the frames that were sent, let go of the lock, and kick."""
    cdef virtio_bell *bell = tx_flush(&tx.sink)
    queue_unlock(tx.sink.lock)
    if bell is not NULL:
        virtio_bell_ring(bell)


cdef object broken(VtnetTransmit queue):
    """The exception for a queue that takes nothing more."""
    return DeviceBroken(f"transmit queue {queue.queue.index}: {queue.queue.broken}")


def transmit_by_flow(queues, Toeplitz toeplitz not None, frames, *, bint checksum=False, uint16_t mss=0, layer=None,
                     headers=None, offsets=None):
    """Send frames by the queue that each one's flow belongs to; return how many were taken, in order.

    ``queues`` are VtnetTransmits. It ends at the first frame whose queue is full. See :meth:`VtnetTransmit.transmit`.
    """
    cdef TxBatch batch = TxBatch()
    cdef tuple members = tuple(queues)
    cdef vtnet_tx *txs[FLOW_QUEUES]
    cdef virtio_bell *bells[FLOW_QUEUES]
    cdef virtio_frame parsed
    cdef virtio_hash found
    cdef uint32_t n = len(members)
    cdef uint32_t i, k
    cdef uint32_t at = 0
    if not 1 <= n <= FLOW_QUEUES:
        raise ValueError(f"{n} queues out of range (1 to {FLOW_QUEUES})")
    for i in range(n):
        txs[i] = &(<VtnetTransmit?>members[i]).c
    batch.load(frames, checksum, mss, layer, headers, offsets)
    with nogil:
        # each lock once, in the queues' order: so two such calls do not wait for each other
        for i in range(n):
            queue_lock(txs[i].sink.lock)
            tx_begin(txs[i])
        for i in range(batch.frames.count):
            frame_parse(&parsed, batch.frames.data[i], batch.frames.lengths[i])
            frame_hash(&found, toeplitz.table, ALL_HASHES, 0, &parsed, batch.frames.data[i])
            at = found.value % n
            if not send_frame(txs[at], batch, i):
                break
        else:
            i = batch.frames.count
        for k in range(n):
            bells[k] = tx_flush(&txs[k].sink)
            queue_unlock(txs[k].sink.lock)
        for k in range(n):
            if bells[k] is not NULL:
                virtio_bell_ring(bells[k])
    if i < batch.frames.count and virtio_load32_acquire(&txs[at].q.fault.code) != VIRTIO_FAULT_NONE:
        raise broken(members[at])
    return i


cdef class VtnetTransmit:
    """The transmit queue of a vtnet driver: ``queue`` is its ring, ``small`` and ``large`` its buffers in guest memory.

    ``features`` are the negotiated bits. ``kick`` is rung when the device is to look at the queue; ``interrupt`` is
    what the device rings. With segmentation offloads there must be ``large`` buffers. Any thread may call; calls on one
    queue wait for each other. Source: VIRTIO 1.4, 5.1.9.1 and 5.1.9.2; if_vtnet(4).
    """

    def __init__(self, DriverQueue queue not None, Bell kick not None, Bell interrupt, Pool small not None, Pool large,
                 *, features):
        cdef vtnet_tx *tx = &self.c
        if self.queue is not None:
            raise TypeError("queue is initialised already")
        if small.c.room < VIRTIO_FRAME_MIN or (large is not None and large.c.room < VIRTIO_FRAME_MAX):
            raise ValueError(f"buffers of {small.room} and {large.room if large else 0} bytes (the large ones take "
                             f"{VIRTIO_FRAME_MAX})")
        cdef uint32_t offloads = offloads_of(features, False)
        cdef uint32_t hdr_size = header_size_of(features)
        cdef bint separate = not features & (Feature.VERSION_1 | Feature.ANY_LAYOUT)
        cdef virtio_bell *call = &interrupt.c if interrupt is not None else NULL
        cdef vtnet_pool *more = &large.c if large is not None else NULL
        if large is None and offloads & ~<uint32_t>(VIRTIO_OFFLOAD_CSUM | VIRTIO_OFFLOAD_ECN):
            raise ValueError("segmentation was negotiated, and there are no buffers for large frames")
        self.queue, self.kick, self.interrupt, self.small, self.large = queue, kick, interrupt, small, large
        with nogil:
            queue_lock(queue.lock)
            tx_open(tx, queue.q, &kick.c, call, &small.c, more, hdr_size, separate, offloads)
            queue_unlock(queue.lock)
        queue.memory.hold_last(queue)  # pumps deliver into it

    def transmit(self, frames, *, bint checksum=False, uint16_t mss=0, layer=None, headers=None, offsets=None):
        """Send Ethernet frames; return how many were taken, in order: fewer than given when the queue is full.

        See :meth:`virtio.net.Vtnet.transmit`.
        """
        cdef TxBatch batch = TxBatch()
        cdef vtnet_tx *tx = &self.c
        cdef uint32_t i
        batch.load(frames, checksum, mss, layer, headers, offsets)
        with nogil:
            queue_lock(tx.sink.lock)
            tx_begin(tx)
            for i in range(batch.frames.count):
                if not send_frame(tx, batch, i):
                    break
            else:
                i = batch.frames.count
            finish(tx)
        if i < batch.frames.count and virtio_load32_acquire(&tx.q.fault.code) != VIRTIO_FAULT_NONE:
            raise broken(self)
        return i

    def buffers(self, uint32_t n, uint32_t length=0):
        """Return up to ``n`` writable memoryviews of free buffers, ``length`` bytes each (0: all that small ones take).

        See :meth:`virtio.net.Vtnet.buffers`.
        """
        cdef Pool pool = self.small
        cdef uint32_t got = 0
        cdef uint32_t *taken
        cdef uint32_t i
        cdef list views = []
        if length > pool.c.room and self.large is not None:
            pool = self.large
        if length > pool.c.room:
            raise ValueError(f"length {length} is more than a buffer takes ({pool.c.room})")
        taken = <uint32_t *>calloc(n + 1, sizeof(uint32_t))
        if taken is NULL:
            raise MemoryError()
        with nogil:
            queue_lock(self.c.sink.lock)
            if pool.c.nfree < n:
                tx_reclaim(&self.c)
            # one stays, for what is sent from elsewhere
            while got < n and pool.c.nfree > 1 and pool.c.host is not NULL:
                taken[got] = pool_top(&pool.c)
                pool_taken(&pool.c)
                pool.c.state[taken[got]] = VTNET_VIEW
                got += 1
            queue_unlock(self.c.sink.lock)
        for i in range(got):
            views.append(pool.view(taken[i], 0, length if length else pool.c.room))
        free(taken)
        return views

    def reclaim(self):
        """Take back what the device has used; return how many frames are still out."""
        cdef uint32_t out
        with nogil:
            queue_lock(self.c.sink.lock)
            tx_reclaim(&self.c)
            out = driver_outstanding(self.c.q)
            queue_unlock(self.c.sink.lock)
        return out

    def limit(self, mtu):
        """Drop frames that are longer than this MTU, and a frame of segments if these are; None: none.

        The Ethernet header and VLAN tags count on top.
        """
        cdef uint32_t limit = TX_NO_LIMIT if mtu is None else mtu + ETHERNET
        with nogil:
            queue_lock(self.c.sink.lock)
            tx_limit(&self.c, limit)
            queue_unlock(self.c.sink.lock)

    def retire(self):
        """Take nothing more: the queue gets other buffers, and another object of this class."""
        with nogil:
            queue_lock(self.c.sink.lock)
            self.small.retire()
            if self.large is not None:
                self.large.retire()
            queue_unlock(self.c.sink.lock)

    def forget(self):
        """Forget what is out: after a reset of the queue, which alone makes it usable again."""
        with nogil:
            queue_lock(self.c.sink.lock)
            tx_forget(&self.c)
            self.small.refill()
            if self.large is not None:
                self.large.refill()
            queue_unlock(self.c.sink.lock)

    @property
    def offloads(self):
        """VIRTIO_OFFLOAD_* bits: what is left to the device."""
        return self.c.sink.offloads

    @property
    def header_size(self):
        """Bytes of the virtio_net_hdr."""
        return self.c.hdr_size

    @property
    def frame_max(self):
        """Bytes of the largest frame that is taken without being cut."""
        return self.c.sink.frame_max

    def statistics(self):
        """Return what was counted, by name."""
        cdef vtnet_tx_stats *stats = &self.c.stats
        return {
            "opackets": counted(&stats.opackets), "obytes": counted(&stats.obytes), "omcasts": counted(&stats.omcasts),
            "csum": counted(&stats.csum),
            "tso": counted(&stats.tso), "rescheduled": counted(&stats.rescheduled),
            "segments": counted(&stats.segments),
            "too_large": counted(&stats.too_large), "too_short": counted(&stats.too_short),
            "refused": counted(&stats.refused),
            "bad_header": counted(&stats.bad_header), "copied": counted(&stats.copied), "intrs": counted(&stats.intrs),
        }

    def reasons(self):
        """Return what became of the offloads that were asked for: TransmitReason to how often."""
        return {reason: counted(&self.c.reasons[<int>int(reason)]) for reason in TransmitReason}
