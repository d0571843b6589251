"""vtnet's transmit queue, for Python."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from virtio.core.atomic cimport virtio_load32_acquire
from virtio.core.counters cimport add_count, counted
from virtio.core.iov cimport iovec
from virtio.core.lock cimport queue_lock, queue_unlock
from virtio.event.notifier cimport virtio_bell, virtio_bell_ring
from virtio.offload.batch cimport Batch
from virtio.offload.frame cimport frame_parse, virtio_frame
from virtio.offload.net_hdr cimport (
    VIRTIO_OFFLOAD_CSUM, VIRTIO_OFFLOAD_ECN, VIRTIO_OFFLOAD_TSO4, VIRTIO_OFFLOAD_TSO6, VIRTIO_OFFLOAD_TUNNEL,
    VIRTIO_OFFLOAD_TUNNEL_CSUM, VIRTIO_OFFLOAD_UFO, VIRTIO_OFFLOAD_USO4, VIRTIO_OFFLOAD_USO6, header_size_of,
    net_hdr_check, NetHeader, offloads_of, virtio_net_hdr,
)
from virtio.offload.toeplitz cimport frame_hash, Toeplitz, virtio_hash
from virtio.offload.tx cimport VIRTIO_TX_WANT_CSUM, VIRTIO_TX_WANT_INNER
from virtio.ports.port cimport VIRTIO_FRAME_MAX, VIRTIO_FRAME_MIN
from virtio.virtqueue.driver_common cimport driver_outstanding
from virtio.virtqueue.structs cimport VIRTIO_FAULT_NONE
from virtio.vtnet.pool cimport VTNET_VIEW, pool_taken, pool_top, vtnet_pool
from virtio.vtnet.txq cimport (
    TX_NO_LIMIT, tx_begin, tx_forget, tx_limit, tx_open, tx_reclaim, tx_send_pieces, tx_send_wanted, vtnet_tx_stats,
)

from virtio.offload.counters import TransmitReason
from virtio.constants import Feature
from virtio.errors import DeviceBroken

cdef enum:
    FLOW_QUEUES = 256
    ALL_HASHES = 0x1ff  # VIRTIO_NET_HASH_TYPE_*
    ETHERNET = 14
    ALL_OFFLOADS = (VIRTIO_OFFLOAD_CSUM | VIRTIO_OFFLOAD_TSO4 | VIRTIO_OFFLOAD_TSO6 | VIRTIO_OFFLOAD_ECN
                    | VIRTIO_OFFLOAD_UFO | VIRTIO_OFFLOAD_USO4 | VIRTIO_OFFLOAD_USO6 | VIRTIO_OFFLOAD_TUNNEL
                    | VIRTIO_OFFLOAD_TUNNEL_CSUM)

cdef class Headers:
    """What Python gives as headers: none, one for all, or one for each, as C structs."""

    cdef virtio_net_hdr *each
    cdef uint8_t *given

    def __dealloc__(self):
        free(self.each)

    cdef int load(self, object headers, uint32_t count) except -1:
        cdef uint32_t i
        if isinstance(headers, NetHeader):
            headers = (headers,) * count
        headers = tuple(headers)
        if len(headers) != count:
            raise ValueError(f"{len(headers)} headers for {count} frames")
        self.each = <virtio_net_hdr *>calloc(count + 1, sizeof(virtio_net_hdr) + 1)
        if self.each is NULL:
            raise MemoryError()
        self.given = <uint8_t *>(self.each + count + 1)
        for i in range(count):
            header = (<tuple>headers)[i]
            if header is None:
                continue
            if not isinstance(header, NetHeader):
                raise TypeError(f"header {i} is a {type(header).__name__}, not a NetHeader")
            (<NetHeader>header).store(&self.each[i])
            self.given[i] = 1
        return 0


cdef class Order:
    """A burst that Python wants sent, and how."""

    cdef Batch batch
    cdef Headers headers   # or None
    cdef uint32_t want     # VIRTIO_TX_WANT_*
    cdef uint32_t mss

    cdef int load(self, object frames, bint checksum, uint32_t mss, object layer, object headers,
                  object offsets) except -1:
        if mss or checksum:
            if headers is not None:
                raise ValueError("either headers are given, or what they are to say")
            self.want = VIRTIO_TX_WANT_CSUM
            if layer is None:
                self.want |= VIRTIO_TX_WANT_INNER if mss else 0
            elif layer == "inner":
                self.want |= VIRTIO_TX_WANT_INNER
            elif layer != "outer":
                raise ValueError(f"layer {layer!r} is neither 'inner' nor 'outer'")
        self.mss = mss
        self.batch = Batch()
        self.batch.load(frames, offsets, False)
        if headers is not None:
            self.headers = Headers()
            self.headers.load(headers, self.batch.count)
        return 0

    cdef int send(self, vtnet_tx *tx, uint32_t i) noexcept nogil:
        """Send frame i. 1: taken, sent or dropped; 0: no room now."""
        cdef virtio_net_hdr nothing
        cdef const virtio_net_hdr *hdr = &nothing
        cdef iovec piece
        if self.want:
            return tx_send_wanted(tx, self.batch.data[i], self.batch.lengths[i], self.want, self.mss)
        if self.headers is not None and self.headers.given[i]:
            hdr = &self.headers.each[i]
            if net_hdr_check(&self.headers.each[i], self.batch.lengths[i], ALL_OFFLOADS):
                add_count(&tx.stats.bad_header, 1)
                return 1
        else:
            memset(&nothing, 0, sizeof(nothing))
        piece.iov_base = self.batch.data[i]
        piece.iov_len = self.batch.lengths[i]
        return tx_send_pieces(tx, hdr, &piece, 1, self.batch.lengths[i])


cdef object broken(VtnetTransmit queue):
    """The exception for a queue that takes nothing more."""
    return DeviceBroken(f"transmit queue {queue.queue.index}: {queue.queue.broken}")


def transmit_by_flow(queues, Toeplitz toeplitz not None, frames, *, bint checksum=False, uint16_t mss=0, layer=None,
                     headers=None, offsets=None):
    """Send frames by the queue that each one's flow belongs to; return how many were taken, in order.

    ``queues`` are VtnetTransmits. It ends at the first frame whose queue is full. See :meth:`VtnetTransmit.transmit`.
    """
    cdef Order order = Order()
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
    order.load(frames, checksum, mss, layer, headers, offsets)
    with nogil:
        # each lock once, in the queues' order: so two such calls do not wait for each other
        for i in range(n):
            queue_lock(txs[i].sink.lock)
            tx_begin(txs[i])
        for i in range(order.batch.count):
            frame_parse(&parsed, order.batch.data[i], order.batch.lengths[i])
            frame_hash(&found, toeplitz.table, ALL_HASHES, 0, &parsed, order.batch.data[i])
            at = found.value % n
            if not order.send(txs[at], i):
                break
        else:
            i = order.batch.count
        for k in range(n):
            bells[k] = txs[k].sink.flush(&txs[k].sink)
            queue_unlock(txs[k].sink.lock)
        for k in range(n):
            if bells[k] is not NULL:
                virtio_bell_ring(bells[k])
    if i < order.batch.count and virtio_load32_acquire(&txs[at].q.fault.code) != VIRTIO_FAULT_NONE:
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

    cdef void finish(self) noexcept nogil:
        """Show the device what was sent, let go of the lock, and kick."""
        cdef virtio_bell *bell = self.c.sink.flush(&self.c.sink)
        queue_unlock(self.c.sink.lock)
        if bell is not NULL:
            virtio_bell_ring(bell)

    def transmit(self, frames, *, bint checksum=False, uint16_t mss=0, layer=None, headers=None, offsets=None):
        """Send Ethernet frames; return how many were taken, in order: fewer than given when the queue is full.

        See :meth:`virtio.net.Vtnet.transmit`.
        """
        cdef Order order = Order()
        cdef vtnet_tx *tx = &self.c
        cdef uint32_t i
        order.load(frames, checksum, mss, layer, headers, offsets)
        with nogil:
            queue_lock(tx.sink.lock)
            tx_begin(tx)
            for i in range(order.batch.count):
                if not order.send(tx, i):
                    break
            else:
                i = order.batch.count
            self.finish()
        if i < order.batch.count and virtio_load32_acquire(&tx.q.fault.code) != VIRTIO_FAULT_NONE:
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
