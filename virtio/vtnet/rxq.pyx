"""vtnet's receive queue."""

import os

from cpython.exc cimport PyErr_Clear
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from virtio._ring cimport driver_dequeue_burst, driver_disable_intr, driver_enqueue_burst, driver_notify
from virtio.core.atomic cimport (
    virtio_fetch64, virtio_likely, virtio_load32_acquire, virtio_prefetch, virtio_put64, virtio_unlikely,
)
from virtio.core.counters cimport add_count, counted
from virtio.core.iov cimport iov_read_all, iovec
from virtio.core.lock cimport queue_lock, queue_unlock
from virtio.event.notifier cimport Bell, virtio_bell, virtio_bell_ring
from virtio.offload.counters cimport VIRTIO_RX_HDR, virtio_rx_offload
from virtio.offload.net_hdr cimport (
    VIRTIO_NET_HDR_FAULTS, header_size_of, net_hdr_check, offloads_of, virtio_net_hdr,
)
from virtio.offload.rx cimport offload_complete
from virtio.ports.port cimport VIRTIO_BURST, VIRTIO_FRAME_MIN, virtio_packet
from virtio.virtqueue.driver_queue cimport DriverQueue
from virtio.virtqueue.structs cimport VIRTIO_FAULT_NONE, virtio_completion, virtio_driver_queue
from virtio.vtnet.lro cimport lro_free, lro_merge, lro_new, vtnet_lro
from virtio.vtnet.pool cimport (
    Pool, VTNET_VIEW, pool_collect, pool_frame, pool_gpa, pool_put, pool_taken, pool_top, vtnet_pool,
)
from virtio.vtnet.received cimport Received, new_received, received_add
from virtio.vtnet.rx_headers cimport rx_classify, rx_complete, rx_headers, rx_is_incomplete

from virtio.offload.counters import ReceiveReason
from virtio.constants import Feature, NetFeature
from virtio.errors import DeviceBroken


cdef extern from "Python.h":
    PyObject *make_bytes "PyBytes_FromStringAndSize"(const char *data, Py_ssize_t n)  # NULL: no memory
    char *bytes_of "PyBytes_AS_STRING"(PyObject *made)
    void release "Py_DECREF"(PyObject *made)


_REASONS = {int(reason): reason for reason in ReceiveReason}


cdef inline void rx_again(vtnet_rx *rx, uint32_t buffer) noexcept nogil:
    """Post a buffer again, with the next rx_post."""
    rx.gone[rx.ngone] = buffer
    rx.ngone += 1


cdef inline void load_header(const vtnet_rx *rx, virtio_net_hdr *hdr, const uint8_t *p) noexcept nogil:
    """A private copy of what the device wrote, fetched once."""
    memset(hdr, 0, sizeof(virtio_net_hdr))
    if virtio_likely(rx.hdr_size == 12):
        virtio_put64(hdr, virtio_fetch64(p))
        memcpy(&hdr.csum_offset, p + 8, 4)
    else:
        memcpy(hdr, p, rx.hdr_size)


cdef inline bint arrive(vtnet_rx *rx, uint32_t limit) noexcept nogil:
    """Whether there is a completion at rx.out[rx.at]; dequeue up to limit if there was none."""
    if rx.at == rx.came:
        rx.at = 0
        rx.came = driver_dequeue_burst(rx.q, rx.out, limit if limit < VIRTIO_BURST else VIRTIO_BURST)
    return rx.at < rx.came


cdef bint more_buffers(vtnet_rx *rx, virtio_packet *packet, uint32_t wanted) noexcept nogil:
    """Take the buffers of a packet after the first; False if they did not all come.

    A device shows all buffers of a packet at once (5.1.9.4): what is not there will not come.
    """
    cdef const virtio_completion *next
    cdef bint fits = wanted < rx.pieces_max
    while wanted:
        if not arrive(rx, wanted):
            return False
        next = &rx.out[rx.at]
        rx.at += 1
        wanted -= 1
        if not fits or next.len == 0:
            fits = False
            rx_again(rx, <uint32_t>next.cookie)
            continue
        rx.buffers[rx.nsegs] = <uint32_t>next.cookie
        rx.segs[rx.nsegs].iov_base = pool_frame(rx.pool, <uint32_t>next.cookie) - rx.hdr_size
        rx.segs[rx.nsegs].iov_len = next.len
        rx.nsegs += 1
        packet.nsegs += 1
        packet.len += next.len
    return fits


cdef inline void drop(vtnet_rx *rx, const virtio_packet *packet, uint64_t *counter) noexcept nogil:
    """Post the buffers of a packet again, that was the last to be taken."""
    add_count(counter, 1)
    add_count(&rx.stats.ierrors, 1)
    while rx.nsegs > packet.first:
        rx.nsegs -= 1
        rx_again(rx, rx.buffers[rx.nsegs])


cdef bint examine(vtnet_rx *rx, virtio_packet *packet, uint32_t used) noexcept nogil:
    """Whether a packet whose first buffer has `used` bytes is sound; its other buffers are taken here."""
    cdef int fault
    if virtio_unlikely(used < rx.hdr_size):
        drop(rx, packet, &rx.stats.frame_too_short)
        return False
    packet.len = used - rx.hdr_size
    rx.segs[packet.first].iov_len = packet.len
    if rx.mergeable and virtio_unlikely(packet.hdr.num_buffers != 1):
        if packet.hdr.num_buffers == 0 or not more_buffers(rx, packet, <uint32_t>packet.hdr.num_buffers - 1):
            drop(rx, packet, &rx.stats.mergeable_failed)
            return False
    if virtio_unlikely(packet.len < VIRTIO_FRAME_MIN):
        drop(rx, packet, &rx.stats.frame_too_short)
        return False
    if virtio_unlikely(packet.len > rx.frame_max):
        drop(rx, packet, &rx.stats.frame_too_large)
        return False
    if packet.hdr.flags or packet.hdr.gso_type:
        fault = net_hdr_check(&packet.hdr, packet.len, rx.offloads)
        if virtio_unlikely(fault):
            add_count(&rx.header_faults[fault], 1)
            drop(rx, packet, &rx.stats.bad_header)
            return False
        add_count(&rx.stats.host_lro, packet.hdr.gso_type != 0)
        rx.typed |= packet.hdr.gso_type != 0
    return True


cdef uint32_t rx_take(vtnet_rx *rx, uint32_t limit) noexcept nogil:
    cdef const virtio_completion *next
    cdef virtio_packet *packet
    cdef uint32_t i, budget
    cdef uint8_t *frame
    cdef uint64_t bytes = 0
    if virtio_unlikely(rx.pool.retired):
        return 0
    if virtio_unlikely(rx.merged):  # another caller had begun with these
        add_count(&rx.stats.iqdrops, rx.lro.n - rx.lro.first)
        rx_done_merged(rx, rx.lro.n - rx.lro.first)
    if rx.npackets:
        return rx.npackets - rx.first
    if virtio_unlikely(rx.pool.host is NULL) or not arrive(rx, limit):
        return 0
    for i in range(rx.at, rx.came):
        virtio_prefetch(pool_frame(rx.pool, <uint32_t>rx.out[i].cookie) - rx.hdr_size)
    # behind nothing but garbage there may be a packet; but a device may have garbage without end
    budget = rx.q.size
    while rx.npackets < limit and budget and (rx.at < rx.came or (rx.npackets == 0 and arrive(rx, limit))):
        budget -= 1
        next = &rx.out[rx.at]
        frame = pool_frame(rx.pool, <uint32_t>next.cookie)
        packet = &rx.packets[rx.npackets]
        load_header(rx, &packet.hdr, frame - rx.hdr_size)
        if virtio_unlikely(rx.nsegs + packet.hdr.num_buffers > RX_ROOM and rx.nsegs and rx.mergeable):
            break  # it may have more pieces than there is room for now
        rx.at += 1
        packet.first = rx.nsegs
        packet.nsegs = 1
        rx.buffers[rx.nsegs] = <uint32_t>next.cookie
        rx.segs[rx.nsegs].iov_base = frame
        rx.nsegs += 1
        if examine(rx, packet, next.len):
            rx.npackets += 1
            bytes += packet.len
    add_count(&rx.stats.ipackets, rx.npackets)
    add_count(&rx.stats.ibytes, bytes)
    return rx.npackets


cdef void rx_forget(vtnet_rx *rx, uint32_t n) noexcept nogil:
    """The first n packets are done with; their buffers are not posted again here."""
    rx.first += n
    if rx.first == rx.npackets:
        rx.first = rx.npackets = rx.nsegs = rx.typed = 0


cdef void rx_done(vtnet_rx *rx, uint32_t n) noexcept nogil:
    cdef uint32_t i, k
    cdef const virtio_packet *packet
    for i in range(rx.first, rx.first + n):
        packet = &rx.packets[i]
        for k in range(packet.first, packet.first + packet.nsegs):
            rx_again(rx, rx.buffers[k])
    rx_forget(rx, n)


cdef uint32_t rx_take_merged(vtnet_rx *rx, uint32_t limit) noexcept nogil:
    cdef uint32_t n
    if rx.merged:
        return rx.lro.n - rx.lro.first
    n = rx_take(rx, limit)
    if rx.lro is NULL or n < 2 or rx.first:
        return n
    lro_merge(rx.lro, rx.packets, n, rx.segs)
    rx.merged = 1
    return rx.lro.n


cdef void rx_done_merged(vtnet_rx *rx, uint32_t n) noexcept nogil:
    if not rx.merged:
        rx_done(rx, n)
        return
    rx.lro.first += n
    if rx.lro.first == rx.lro.n:
        rx.merged = 0
        rx_done(rx, rx.npackets - rx.first)


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
        add_count(&rx.stats.enq_replacement_failed, n - done)
        for i in range(done, n):
            pool_put(rx.pool, buffers[i])


cdef virtio_bell *rx_post(vtnet_rx *rx) noexcept nogil:
    cdef uint32_t at = 0
    cdef uint32_t n, room
    cdef uint32_t fresh[VIRTIO_BURST]
    if virtio_unlikely(rx.pool.retired):
        return NULL
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
            pool_taken(rx.pool)
            n += 1
        post(rx, fresh, n)
    if rx.q.pending and driver_notify(rx.q):
        return rx.kick
    return NULL


cdef void rx_open(vtnet_rx *rx, virtio_driver_queue *q, virtio_bell *kick, virtio_bell *call, vtnet_pool *pool,
                  uint32_t hdr_size, bint mergeable, bint separate, uint32_t offloads, uint32_t frame_max,
                  uint32_t *gone) noexcept nogil:
    memset(rx, 0, sizeof(vtnet_rx))
    rx.q = q
    rx.kick = kick
    rx.call = call
    rx.pool = pool
    rx.hdr_size = hdr_size
    rx.mergeable = mergeable
    rx.separate = separate
    rx.offloads = rx.given = offloads
    rx.gone = gone
    rx.frame_max = frame_max
    rx.slots = 2 if separate and q.max_indirect < 2 else 1
    rx.pieces_max = q.size if q.size < RX_PIECES else RX_PIECES
    driver_disable_intr(q)


cdef void rx_reset(vtnet_rx *rx) noexcept nogil:
    rx.first = rx.npackets = rx.nsegs = rx.typed = rx.ngone = rx.merged = rx.at = rx.came = 0
    driver_disable_intr(rx.q)


# ---- for Python ----

cdef void finish(vtnet_rx *rx) noexcept nogil:
    """Give buffers back to the device, let go of the lock, and kick."""
    cdef virtio_bell *bell = rx_post(rx)
    queue_unlock(&rx.q.lock)
    if bell is not NULL:
        virtio_bell_ring(bell)


cdef uint32_t take(vtnet_rx *rx, uint32_t limit, bint merged) noexcept:
    """Take up to limit packets, and hold the lock; 0: none waits, and the lock is free again."""
    cdef uint32_t n
    with nogil:
        queue_lock(&rx.q.lock)
        n = rx_take_merged(rx, limit) if merged else rx_take(rx, limit)
        if n > limit:
            n = limit
        if n == 0:
            finish(rx)
    return n


cdef int check(VtnetReceive queue, bint starved) except -1:
    """Raise the reason for having received nothing, if there is one."""
    if starved:
        raise MemoryError()
    if virtio_load32_acquire(&queue.c.q.fault.code) != VIRTIO_FAULT_NONE:
        raise DeviceBroken(f"receive queue {queue.queue.index}: {queue.queue.broken}")
    return 0


cdef class VtnetReceive:
    """The receive queue of a vtnet driver: ``queue`` is its ring, ``pool`` its buffers in guest memory.

    ``features`` are the negotiated bits, ``frame_max`` the largest frame that is taken, in bytes. ``kick`` is rung when
    the device is to look at the queue; ``interrupt`` is what the device rings. Any thread may call; calls on one queue
    wait for each other. Source: VIRTIO 1.4, 5.1.9.3 and 5.1.9.4; if_vtnet(4).
    """

    def __init__(self, DriverQueue queue not None, Bell kick not None, Bell interrupt, Pool pool not None, *, features,
                 uint32_t frame_max):
        cdef uint32_t offloads = offloads_of(features, True)
        cdef uint32_t hdr_size = header_size_of(features)
        cdef bint mergeable = bool(features & NetFeature.MRG_RXBUF)
        cdef bint separate = not mergeable and not features & (Feature.VERSION_1 | Feature.ANY_LAYOUT)
        cdef virtio_bell *call = &interrupt.c if interrupt is not None else NULL
        if self.queue is not None:
            raise TypeError("queue is initialised already")
        if not mergeable and pool.c.room < frame_max:
            raise ValueError(f"buffers of {pool.c.room} bytes, and frames of up to {frame_max} without MRG_RXBUF")
        self.gone = <uint32_t *>calloc(pool.c.count, sizeof(uint32_t))
        if self.gone is NULL:
            raise MemoryError()
        self.queue, self.kick, self.interrupt, self.pool = queue, kick, interrupt, pool
        with nogil:
            queue_lock(queue.lock)
            rx_open(&self.c, queue.q, &kick.c, call, &pool.c, hdr_size, mergeable, separate, offloads, frame_max,
                    self.gone)
            queue_unlock(queue.lock)

    def __dealloc__(self):
        free(self.gone)
        lro_free(self.c.lro)

    def set_lro(self, bint on):
        """Merge TCP segments that come in one burst, or do not; before the first frame.

        What :meth:`receive` and a pump get is merged then; :meth:`receive_views` never is.
        """
        cdef bytes secret = os.urandom(32)
        cdef vtnet_lro *lro = NULL
        if on:
            lro = lro_new(<const uint64_t *><const char *>secret)
            if lro is NULL:
                raise MemoryError()
        with nogil:
            queue_lock(&self.c.q.lock)
            if self.c.merged:
                rx_done_merged(&self.c, self.c.lro.n - self.c.lro.first)
            self.c.lro, lro = lro, self.c.lro
            self.c.given = self.c.offloads | (VTNET_LRO_OFFLOADS if on else 0)
            queue_unlock(&self.c.q.lock)
        lro_free(lro)

    def fill(self):
        """Post every free buffer. Once at the start; from then on the other calls do it."""
        with nogil:
            queue_lock(&self.c.q.lock)
            finish(&self.c)

    def receive(self, uint32_t limit=64, *, bint info=False, bint complete=True):
        """Take up to ``limit`` frames that wait; return them as a list of bytes.

        See :meth:`virtio.net.Vtnet.receive`.
        """
        cdef vtnet_rx *rx = &self.c
        cdef list frames = []
        cdef Received received = new_received(limit) if info else None
        cdef virtio_rx_offload offload
        cdef const virtio_packet *packets
        cdef const virtio_packet *packet
        cdef const iovec *segs
        cdef PyObject *made
        cdef uint8_t *to
        cdef uint32_t n, i
        cdef bint starved = False
        while limit and not starved:
            n = take(rx, limit, True)
            if n == 0:
                break
            # under the lock with the GIL: nothing here runs code of others, or waits
            packets, segs = rx_packets(rx), rx_segs(rx)
            for i in range(n):
                packet = &packets[i]
                made = make_bytes(NULL, packet.len)
                if made is NULL:
                    PyErr_Clear()
                    starved = True
                    add_count(&rx.stats.iqdrops, 1)
                    continue
                to = <uint8_t *>bytes_of(made)
                iov_read_all(to, &segs[packet.first], packet.nsegs)
                add_count(&rx.stats.copied, packet.len)
                if rx_classify(rx, packet, to, &offload):
                    if complete and rx_is_incomplete(&offload):
                        offload_complete(to, &offload)
                    if received is not None:
                        received_add(received, packet, &offload)
                    frames.append(<object>made)
                release(made)
            rx_done_merged(rx, n)
            limit -= n
            with nogil:
                finish(rx)
        if not frames:
            check(self, starved)
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
            n = take(rx, limit, False)
            if n == 0:
                break
            at = kept = 0
            for i in range(rx.first, rx.first + n):
                packet = &rx.packets[i]
                pieces = &rx.segs[packet.first]
                if not rx_classify(rx, packet, rx_headers(packet, pieces), &offload):
                    for k in range(packet.first, packet.first + packet.nsegs):
                        rx_again(rx, rx.buffers[k])
                    continue
                if complete:
                    rx_complete(packet, pieces, &offload)
                if received is not None:
                    received_add(received, packet, &offload)
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
                finish(rx)
            at = 0
            for i in range(kept):
                # the pieces after the first start where the first has its header
                frames.append(tuple([
                    self.pool.view(buffers[at + k], 0 if k == 0 else -<int32_t>rx.hdr_size, lengths[at + k])
                    for k in range(counts[i])
                ]))
                at += counts[i]
        if not frames:
            check(self, False)
        return (frames, received) if info else frames

    def retire(self):
        """Give and post nothing more: the queue gets other buffers, and another object of this class."""
        with nogil:
            queue_lock(&self.c.q.lock)
            self.pool.retire()
            queue_unlock(&self.c.q.lock)

    def forget(self):
        """Forget the posted and the used buffers, after a reset of the queue. Call :meth:`fill` next."""
        with nogil:
            queue_lock(&self.c.q.lock)
            rx_reset(&self.c)
            self.pool.refill()
            queue_unlock(&self.c.q.lock)

    def arm(self):
        """Ask for an interrupt when a frame comes; return whether one waits already. The next call asks for none."""
        cdef bint waiting
        with nogil:
            queue_lock(&self.c.q.lock)
            waiting = rx_waits(&self.c)
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
    def frame_max(self):
        """Bytes of the largest frame that is taken."""
        return self.c.frame_max

    @property
    def posted(self):
        """Buffers that the device has."""
        return self.queue.outstanding

    def statistics(self):
        """Return what was counted, by name."""
        cdef vtnet_rx_stats *stats = &self.c.stats
        return {
            "ipackets": counted(&stats.ipackets), "ibytes": counted(&stats.ibytes), "ierrors": counted(&stats.ierrors),
            "iqdrops": counted(&stats.iqdrops),
            "csum": counted(&stats.csum), "csum_failed": counted(&stats.csum_failed),
            "host_lro": counted(&stats.host_lro),
            "rescheduled": counted(&stats.rescheduled), "mergeable_failed": counted(&stats.mergeable_failed),
            "frame_too_large": counted(&stats.frame_too_large), "frame_too_short": counted(&stats.frame_too_short),
            "bad_header": counted(&stats.bad_header), "enq_replacement_failed": counted(&stats.enq_replacement_failed),
            "copied": counted(&stats.copied), "lro_queued": 0 if self.c.lro is NULL else counted(&self.c.lro.queued),
            "lro_flushed": 0 if self.c.lro is NULL else counted(&self.c.lro.flushed),
        }

    def reasons(self):
        """Return what became of what headers said of checksums: ReceiveReason to how often.

        Headers that contradict what was negotiated count too, by whichever call the frame was received.
        """
        cdef uint32_t fault
        counts = {reason: counted(&self.c.reasons[<int>int(reason)]) for reason in ReceiveReason}
        for fault in range(<uint32_t>VIRTIO_NET_HDR_FAULTS):
            reason = _REASONS.get(VIRTIO_RX_HDR + fault)
            if reason is not None:
                counts[reason] += counted(&self.c.header_faults[fault])
        return counts
