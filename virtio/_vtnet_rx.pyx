"""vtnet's receive queue."""

from collections import namedtuple

from cpython.exc cimport PyErr_Clear
from cpython.object cimport PyObject
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from virtio._bell cimport Bell, virtio_bell, virtio_bell_ring
from virtio._checksum cimport sum_fold, sum_gather
from virtio._driver_queue cimport DriverQueue
from virtio._frame cimport frame_parse, virtio_frame
from virtio._memory cimport iovec
from virtio._net_hdr cimport *
from virtio._offload_rx cimport *
from virtio._port cimport VIRTIO_BURST, VIRTIO_FRAME_MAX, VIRTIO_FRAME_MIN, virtio_packet
from virtio._ring cimport *
from virtio._segment cimport VIRTIO_SEGMENT_HEADERS_MAX, segment_scratch
from virtio._vtnet_pool cimport *

from virtio._offload_counters import ReceiveReason, ReceiveVerdict
from virtio.constants import Feature, NetFeature


cdef extern from "Python.h":
    PyObject *make_bytes "PyBytes_FromStringAndSize"(const char *data, Py_ssize_t n)  # NULL: no memory
    char *bytes_of "PyBytes_AS_STRING"(PyObject *made)
    void release "Py_DECREF"(PyObject *made)


ReceivedFrame = namedtuple("ReceivedFrame", ["verdict", "reason", "segments", "header"])
_VERDICTS = tuple(ReceiveVerdict)
_REASONS = {int(reason): reason for reason in ReceiveReason}


cdef inline void load_header(const vtnet_rx *rx, virtio_net_hdr *hdr, const uint8_t *p) noexcept nogil:
    """A private copy of what the device wrote, fetched once."""
    memset(hdr, 0, sizeof(virtio_net_hdr))
    if virtio_likely(rx.hdr_size == 12):
        virtio_put64(hdr, virtio_fetch64(p))
        memcpy(&hdr.csum_offset, p + 8, 4)
    else:
        memcpy(hdr, p, rx.hdr_size)


cdef inline void again(vtnet_rx *rx, uint32_t buffer) noexcept nogil:
    rx.gone[rx.ngone] = buffer
    rx.ngone += 1


cdef struct arrivals:   # completions that were dequeued, and not looked at
    virtio_completion out[64]
    uint32_t at
    uint32_t n


cdef uint32_t more_buffers(vtnet_rx *rx, virtio_packet *packet, uint32_t wanted, uint32_t len,
                           arrivals *came) noexcept nogil:
    """Take the buffers of a packet after the first; return the packet's length, 0 if they did not all come.

    A device shows all buffers of a packet at once (5.1.9.4): what is not there will not come.
    """
    cdef const virtio_completion *next
    cdef bint fits = wanted < rx.pieces_max
    while wanted:
        if came.at == came.n:
            came.at = 0
            came.n = driver_dequeue_burst(rx.q, came.out, wanted if wanted < VIRTIO_BURST else VIRTIO_BURST)
            if came.n == 0:
                return 0
        next = &came.out[came.at]
        came.at += 1
        wanted -= 1
        if not fits or next.len == 0:
            fits = False
            again(rx, <uint32_t>next.cookie)
            continue
        rx.buffers[rx.nsegs] = <uint32_t>next.cookie
        rx.segs[rx.nsegs].iov_base = pool_frame(rx.pool, <uint32_t>next.cookie) - rx.hdr_size
        rx.segs[rx.nsegs].iov_len = next.len
        rx.nsegs += 1
        len += next.len
    packet.nsegs = rx.nsegs - packet.first
    return len if fits else 0


cdef inline void drop(vtnet_rx *rx, const virtio_packet *packet, uint64_t *counter) noexcept nogil:
    """Post the buffers of a packet again, that was the last to be taken."""
    counter[0] += 1
    rx.stats.ierrors += 1
    while rx.nsegs > packet.first:
        rx.nsegs -= 1
        again(rx, rx.buffers[rx.nsegs])


cdef bint examine(vtnet_rx *rx, virtio_packet *packet, uint32_t used, arrivals *came) noexcept nogil:
    """Whether a packet whose first buffer has `used` bytes is sound; its other buffers are taken here."""
    cdef uint32_t len
    cdef int fault
    if virtio_unlikely(used < rx.hdr_size + VIRTIO_FRAME_MIN):
        drop(rx, packet, &rx.stats.frame_too_short)
        return False
    len = used - rx.hdr_size
    rx.segs[packet.first].iov_len = len
    if rx.mergeable and virtio_unlikely(packet.hdr.num_buffers != 1):
        if packet.hdr.num_buffers == 0:
            drop(rx, packet, &rx.stats.mergeable_failed)
            return False
        len = more_buffers(rx, packet, <uint32_t>packet.hdr.num_buffers - 1, len, came)
        if len == 0:
            drop(rx, packet, &rx.stats.mergeable_failed)
            return False
    if virtio_unlikely(len > rx.frame_max):
        drop(rx, packet, &rx.stats.frame_too_large)
        return False
    packet.len = len
    if packet.hdr.flags or packet.hdr.gso_type:
        fault = net_hdr_check(&packet.hdr, len, rx.offloads)
        if virtio_unlikely(fault):
            rx.header_faults[fault] += 1
            drop(rx, packet, &rx.stats.bad_header)
            return False
        rx.stats.host_lro += packet.hdr.gso_type != 0
    return True


cdef uint32_t rx_take(vtnet_rx *rx, uint32_t limit) noexcept nogil:
    cdef arrivals came
    cdef const virtio_completion *next
    cdef virtio_packet *packet
    cdef uint32_t i
    cdef uint8_t *frame
    cdef uint64_t bytes = 0
    if rx.npackets:
        return rx.npackets - rx.first
    if virtio_unlikely(rx.pool.host is NULL):
        return 0
    came.at = 0
    came.n = driver_dequeue_burst(rx.q, came.out, limit if limit < VIRTIO_BURST else VIRTIO_BURST)
    for i in range(came.n):
        virtio_prefetch(pool_frame(rx.pool, <uint32_t>came.out[i].cookie) - rx.hdr_size)
    while came.at < came.n:
        next = &came.out[came.at]
        came.at += 1
        frame = pool_frame(rx.pool, <uint32_t>next.cookie)
        packet = &rx.packets[rx.npackets]
        packet.first = rx.nsegs
        packet.nsegs = 1
        rx.buffers[rx.nsegs] = <uint32_t>next.cookie
        rx.segs[rx.nsegs].iov_base = frame
        rx.nsegs += 1
        load_header(rx, &packet.hdr, frame - rx.hdr_size)
        if examine(rx, packet, next.len, &came):
            rx.npackets += 1
            bytes += packet.len
    rx.stats.ipackets += rx.npackets
    rx.stats.ibytes += bytes
    return rx.npackets


cdef void rx_forget(vtnet_rx *rx, uint32_t n) noexcept nogil:
    """The first n packets are done with, and somebody else has their buffers."""
    rx.first += n
    if rx.first == rx.npackets:
        rx.first = rx.npackets = rx.nsegs = 0


cdef void rx_done(vtnet_rx *rx, uint32_t n) noexcept nogil:
    cdef uint32_t i, k
    cdef const virtio_packet *packet
    for i in range(rx.first, rx.first + n):
        packet = &rx.packets[i]
        for k in range(packet.first, packet.first + packet.nsegs):
            again(rx, rx.buffers[k])
    rx_forget(rx, n)


cdef void post(vtnet_rx *rx, const uint32_t *buffers, uint32_t n) noexcept nogil:
    """Make up to VIRTIO_BURST buffers available to the device; what does not fit goes to the pool."""
    cdef uint32_t i, done
    cdef uint32_t sgs = 0
    cdef uint64_t gpa
    cdef int why = 0
    for i in range(n):
        gpa = pool_gpa(rx.pool, buffers[i]) - rx.hdr_size
        rx.sg[sgs].gpa = gpa
        if virtio_unlikely(rx.separate):
            rx.sg[sgs].len = rx.hdr_size
            sgs += 1
            rx.sg[sgs].gpa = gpa + rx.hdr_size
            rx.sg[sgs].len = rx.pool.room
        else:
            rx.sg[sgs].len = rx.pool.room + rx.hdr_size
        sgs += 1
        rx.req[i].cookie = buffers[i]
        rx.req[i].readable = 0
        rx.req[i].writable = <uint16_t>(1 + rx.separate)
    done = driver_enqueue_burst(rx.q, rx.sg, rx.req, n, &why)
    if virtio_unlikely(done < n):
        rx.stats.enq_replacement_failed += n - done
        for i in range(done, n):
            pool_put(rx.pool, buffers[i])


cdef virtio_bell *rx_post(vtnet_rx *rx) noexcept nogil:
    cdef uint32_t at = 0
    cdef uint32_t n, room
    cdef uint32_t fresh[VIRTIO_BURST]
    while at < rx.ngone:
        n = rx.ngone - at
        if n > VIRTIO_BURST:
            n = VIRTIO_BURST
        post(rx, rx.gone + at, n)
        at += n
    rx.ngone = 0
    pool_collect(rx.pool)
    # what Python gave back; and at the start everything
    while virtio_unlikely(rx.pool.nfree and rx.q.nfree >= rx.slots and rx.q.fault.code == VIRTIO_FAULT_NONE
                          and rx.pool.host is not NULL):
        room = rx.q.nfree // rx.slots
        n = 0
        while n < VIRTIO_BURST and n < room and rx.pool.nfree:
            fresh[n] = pool_top(rx.pool)
            rx.pool.nfree -= 1
            n += 1
        post(rx, fresh, n)
    if rx.q.pending and driver_notify(rx.q):
        return rx.kick
    return NULL


# ---- what Python gets ----

cdef bint classify(vtnet_rx *rx, const virtio_packet *packet, const uint8_t *p,
                   virtio_rx_offload *info) noexcept nogil:
    """Hold a packet's header against the packet, whose headers at least are at p; whether it can be true."""
    cdef virtio_frame parsed
    if virtio_likely(not packet.hdr.flags and not packet.hdr.gso_type):
        memset(info, 0, sizeof(virtio_rx_offload))
        info.segments = 1
        rx.reasons[VIRTIO_RX_CSUM_NONE] += 1
        return True
    frame_parse(&parsed, p, packet.len)
    offload_receive(info, &packet.hdr, p, &parsed, rx.offloads)
    rx.reasons[info.reason] += 1
    if info.verdict == VIRTIO_RX_BAD:
        rx.stats.csum_failed += 1
        rx.stats.ierrors += 1
        return False
    rx.stats.csum += info.verdict != VIRTIO_RX_UNKNOWN
    return True


cdef inline void copy_out(uint8_t *to, const iovec *pieces, uint32_t n) noexcept nogil:
    cdef uint32_t k
    for k in range(n):
        memcpy(to, pieces[k].iov_base, pieces[k].iov_len)
        to += pieces[k].iov_len


cdef const uint8_t *headers_of(const virtio_packet *packet, const iovec *pieces) noexcept nogil:
    """A packet's headers in one piece, to be parsed: behind those of many pieces there are zeros."""
    cdef uint8_t *scratch
    cdef uint32_t k, part
    cdef uint32_t n = 0
    if packet.nsegs == 1:
        return <const uint8_t *>pieces[0].iov_base
    scratch = segment_scratch()
    for k in range(packet.nsegs):
        part = <uint32_t>pieces[k].iov_len
        if part > VIRTIO_SEGMENT_HEADERS_MAX - n:
            part = VIRTIO_SEGMENT_HEADERS_MAX - n
        memcpy(scratch + n, pieces[k].iov_base, part)
        n += part
        if n == VIRTIO_SEGMENT_HEADERS_MAX:
            return scratch
    memset(scratch + n, 0, VIRTIO_SEGMENT_HEADERS_MAX - n)
    return scratch


cdef void store_at(const iovec *pieces, uint32_t at, uint8_t value) noexcept nogil:
    """Write one byte of a packet in pieces."""
    while at >= pieces.iov_len:
        at -= <uint32_t>pieces.iov_len
        pieces += 1
    (<uint8_t *>pieces.iov_base)[at] = value


cdef void complete_pieces(const iovec *pieces, uint32_t n, uint32_t start, uint32_t field, uint32_t end) noexcept nogil:
    """checksum_complete() for what lies in pieces, and ends before they do."""
    cdef uint16_t checksum = <uint16_t>~sum_fold(sum_gather(pieces, n, start, end - start))
    cdef const uint8_t *stored = <const uint8_t *>&checksum
    if checksum == 0:
        checksum = 0xffff
    store_at(pieces, start + field, stored[0])
    store_at(pieces, start + field + 1, stored[1])


cdef void complete_in_place(const virtio_packet *packet, const iovec *pieces,
                            const virtio_rx_offload *info) noexcept nogil:
    if info.verdict != VIRTIO_RX_NEEDS_CHECKSUM:
        return
    if packet.nsegs == 1:
        offload_complete(<uint8_t *>pieces.iov_base, info)
        return
    complete_pieces(pieces, packet.nsegs, info.csum_start, info.csum_offset, info.csum_end)
    if info.outer_start:
        complete_pieces(pieces, packet.nsegs, info.outer_start, 6, info.outer_end)


cdef Received new_received(uint32_t limit):
    cdef Received received = Received()
    received.reserve(limit, sizeof(vtnet_received), b"=BBxxI" b"BBHHHHHIHHHH")
    received.shape[0] = 0
    return received


cdef class Received(Records):
    """What the headers of received frames said, as a sequence of :class:`ReceivedFrame`, in the frames' order.

    Also a buffer of records of 32 bytes: verdict, reason (a byte each), 16 bits unused, segments (32 bits), and the
    virtio_net_hdr.
    """

    cdef void add(self, const virtio_packet *packet, const virtio_rx_offload *info) noexcept:
        cdef vtnet_received *record = <vtnet_received *>self.items + self.shape[0]
        record.verdict = info.verdict
        record.reason = info.reason
        record.reserved = 0
        record.segments = info.segments
        record.hdr = packet.hdr
        self.shape[0] += 1

    cdef object record(self, Py_ssize_t i):
        cdef const vtnet_received *record = <const vtnet_received *>self.items + i
        cdef NetHeader header = NetHeader()
        header.load(&record.hdr)
        return ReceivedFrame(_VERDICTS[record.verdict], _REASONS[record.reason], record.segments, header)


cdef class VtnetReceive:
    """The receive queue of a vtnet driver: ``queue`` is its ring, ``pool`` its buffers in guest memory.

    ``features`` are the negotiated bits, ``frame_max`` the largest frame that is taken, in bytes. ``kick`` is rung when
    the device is to look at the queue; ``interrupt`` is what the device rings. Any thread may call; calls on one queue
    wait for each other. Source: VIRTIO 1.4, 5.1.9.3 and 5.1.9.4; if_vtnet(4).
    """

    def __init__(self, DriverQueue queue not None, Bell kick not None, Bell interrupt, Pool pool not None, *, features,
                 uint32_t frame_max):
        cdef vtnet_rx *rx = &self.c
        if self.queue is not None:
            raise TypeError("queue is initialised already")
        rx.q = queue.q
        rx.kick = &kick.c
        rx.call = &interrupt.c if interrupt is not None else NULL
        rx.pool = &pool.c
        rx.hdr_size = header_size_of(features)
        rx.mergeable = bool(features & NetFeature.MRG_RXBUF)
        rx.separate = not features & (Feature.VERSION_1 | Feature.ANY_LAYOUT) and not rx.mergeable
        rx.offloads = offloads_of(features, True)
        rx.frame_max = frame_max
        rx.slots = 1 if not rx.separate or rx.q.max_indirect >= 2 else 2
        rx.pieces_max = min(<uint32_t>RX_PIECES, <uint32_t>rx.q.size)
        if not rx.mergeable and pool.c.room < frame_max:
            raise ValueError(f"buffers of {pool.c.room} bytes, and frames of up to {frame_max} without MRG_RXBUF")
        self.queue, self.kick, self.interrupt, self.pool = queue, kick, interrupt, pool
        with nogil:
            queue_lock(&rx.q.lock)
            driver_disable_intr(rx.q)
            queue_unlock(&rx.q.lock)

    cdef void finish(self) noexcept nogil:
        """Give buffers back to the device, let go of the lock, and kick."""
        cdef virtio_bell *bell = rx_post(&self.c)
        queue_unlock(&self.c.q.lock)
        if bell is not NULL:
            virtio_bell_ring(bell)

    def fill(self):
        """Post every free buffer. Once at the start; from then on the other calls do it."""
        with nogil:
            queue_lock(&self.c.q.lock)
            self.finish()

    def receive(self, uint32_t limit=64, *, bint info=False, bint complete=True):
        """Take up to ``limit`` frames that wait; return them as a list of bytes.

        See :meth:`virtio.net.Vtnet.receive`.
        """
        cdef vtnet_rx *rx = &self.c
        cdef list frames = []
        cdef Received received = new_received(limit) if info else None
        cdef virtio_rx_offload offload
        cdef const virtio_packet *packet
        cdef PyObject *made
        cdef uint8_t *to
        cdef uint32_t n, i
        cdef bint starved = False
        while limit and not starved:
            n = self.take(limit)
            if n == 0:
                break
            # under the lock with the GIL: nothing here runs code of others, or waits
            for i in range(rx.first, rx.first + n):
                packet = &rx.packets[i]
                made = make_bytes(NULL, packet.len)
                if made is NULL:
                    starved = True
                    rx.stats.iqdrops += 1
                    continue
                to = <uint8_t *>bytes_of(made)
                copy_out(to, &rx.segs[packet.first], packet.nsegs)
                rx.stats.copied += packet.len
                if classify(rx, packet, to, &offload):
                    if complete:
                        offload_complete(to, &offload)
                    if received is not None:
                        received.add(packet, &offload)
                    frames.append(<object>made)
                release(made)
            rx_done(rx, n)
            limit -= n
            with nogil:
                self.finish()
        if starved and not frames:
            raise MemoryError()
        PyErr_Clear()
        return (frames, received) if info else frames

    def receive_views(self, uint32_t limit=64, *, bint info=False, bint complete=True):
        """Take up to ``limit`` frames that wait, and leave them where they are: each is a tuple of memoryviews.

        See :meth:`virtio.net.Vtnet.receive_views`.
        """
        cdef vtnet_rx *rx = &self.c
        cdef list frames = []
        cdef Received received = new_received(limit) if info else None
        cdef virtio_rx_offload offload
        cdef const virtio_packet *packet
        cdef const iovec *pieces
        cdef uint32_t buffers[RX_ROOM]
        cdef uint32_t lengths[RX_ROOM]
        cdef uint32_t counts[VIRTIO_BURST]
        cdef uint32_t n, i, k, kept, at
        while limit:
            n = self.take(limit)
            if n == 0:
                break
            at = kept = 0
            for i in range(rx.first, rx.first + n):
                packet = &rx.packets[i]
                pieces = &rx.segs[packet.first]
                if not classify(rx, packet, headers_of(packet, pieces), &offload):
                    for k in range(packet.first, packet.first + packet.nsegs):
                        again(rx, rx.buffers[k])
                    continue
                if complete:
                    complete_in_place(packet, pieces, &offload)
                if received is not None:
                    received.add(packet, &offload)
                for k in range(packet.nsegs):
                    buffers[at] = rx.buffers[packet.first + k]
                    lengths[at] = <uint32_t>pieces[k].iov_len
                    rx.pool.state[buffers[at]] = VTNET_VIEW
                    at += 1
                counts[kept] = packet.nsegs
                kept += 1
            rx_forget(rx, n)
            limit -= n
            with nogil:
                self.finish()
            at = 0
            for i in range(kept):
                # the pieces after the first start where the first has its header
                frames.append(tuple([
                    self.pool.view(buffers[at + k], 0 if k == 0 else -<int32_t>rx.hdr_size, lengths[at + k])
                    for k in range(counts[i])
                ]))
                at += counts[i]
        return (frames, received) if info else frames

    cdef uint32_t take(self, uint32_t limit) noexcept:
        """Take up to limit packets, and hold the lock; 0: none waits, and the lock is free again."""
        cdef uint32_t n
        with nogil:
            queue_lock(&self.c.q.lock)
            n = rx_take(&self.c, limit)
            if n > limit:
                n = limit
            if n == 0:
                self.finish()
        return n

    def forget(self):
        """Forget what is posted and what was taken: after a reset of the queue. Then :meth:`fill` it anew."""
        with nogil:
            queue_lock(&self.c.q.lock)
            self.c.first = self.c.npackets = self.c.nsegs = self.c.ngone = 0
            self.pool.refill()
            driver_disable_intr(self.c.q)
            queue_unlock(&self.c.q.lock)

    def arm(self):
        """Ask for an interrupt when a frame comes; return whether one waits already. The next call asks for none."""
        cdef bint waiting
        with nogil:
            queue_lock(&self.c.q.lock)
            waiting = driver_enable_intr(self.c.q)
            queue_unlock(&self.c.q.lock)
        return waiting

    def disarm(self):
        """Ask for no interrupts."""
        with nogil:
            queue_lock(&self.c.q.lock)
            driver_disable_intr(self.c.q)
            queue_unlock(&self.c.q.lock)

    @property
    def offloads(self):
        """VIRTIO_OFFLOAD_* bits: what the device may leave undone, or merge."""
        return self.c.offloads

    @property
    def posted(self):
        """Buffers that the device has."""
        return driver_outstanding(self.c.q)

    def statistics(self):
        """Return what was counted, by name."""
        cdef vtnet_rx_stats *stats = &self.c.stats
        return {
            "ipackets": stats.ipackets, "ibytes": stats.ibytes, "ierrors": stats.ierrors, "iqdrops": stats.iqdrops,
            "csum": stats.csum, "csum_failed": stats.csum_failed, "host_lro": stats.host_lro,
            "rescheduled": stats.rescheduled, "mergeable_failed": stats.mergeable_failed,
            "frame_too_large": stats.frame_too_large, "frame_too_short": stats.frame_too_short,
            "bad_header": stats.bad_header, "enq_replacement_failed": stats.enq_replacement_failed,
            "copied": stats.copied,
        }

    def reasons(self):
        """Return what became of what headers said of checksums: ReceiveReason to how often.

        Headers that contradict what was negotiated are among them, whoever received the frame.
        """
        cdef uint32_t fault
        counts = {reason: self.c.reasons[int(reason)] for reason in ReceiveReason}
        for fault in range(<uint32_t>VIRTIO_NET_HDR_FAULTS):
            reason = _REASONS.get(VIRTIO_RX_HDR + fault)
            if reason is not None:
                counts[reason] += self.c.header_faults[fault]
        return counts
