"""vtnet's receive queue."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from virtio._bell cimport Bell, virtio_bell, virtio_bell_ring
from virtio._driver_queue cimport DriverQueue
from virtio._memory cimport iovec
from virtio._net_hdr cimport *
from virtio._port cimport VIRTIO_BURST, VIRTIO_FRAME_MAX, VIRTIO_FRAME_MIN, virtio_packet
from virtio._ring cimport *
from virtio._vtnet_pool cimport *

from virtio.constants import Feature, NetFeature


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


cdef uint32_t more_buffers(vtnet_rx *rx, virtio_packet *packet, uint32_t wanted, uint32_t len) noexcept nogil:
    """Take the buffers of a packet after the first; return the packet's length, 0 if they did not all come.

    A device shows all buffers of a packet at once (5.1.9.4): what is not there will not come.
    """
    cdef virtio_completion out[VIRTIO_BURST]
    cdef uint32_t got = 0
    cdef uint32_t n, i, limit
    cdef bint fits = wanted < rx.pieces_max
    while got < wanted:
        limit = wanted - got
        n = driver_dequeue_burst(rx.q, out, limit if limit < VIRTIO_BURST else VIRTIO_BURST)
        if n == 0:
            fits = False
            break
        for i in range(n):
            if not fits or out[i].len == 0:
                fits = False
                again(rx, <uint32_t>out[i].cookie)
                continue
            rx.buffers[rx.nsegs] = <uint32_t>out[i].cookie
            rx.segs[rx.nsegs].iov_base = pool_frame(rx.pool, <uint32_t>out[i].cookie) - rx.hdr_size
            rx.segs[rx.nsegs].iov_len = out[i].len
            rx.nsegs += 1
            len += out[i].len
        got += n
    packet.nsegs = rx.nsegs - packet.first
    return len if fits else 0


cdef inline void drop(vtnet_rx *rx, const virtio_packet *packet, uint64_t *counter) noexcept nogil:
    """Post the buffers of a packet again, that was the last to be taken."""
    counter[0] += 1
    rx.stats.ierrors += 1
    while rx.nsegs > packet.first:
        rx.nsegs -= 1
        again(rx, rx.buffers[rx.nsegs])


cdef bint examine(vtnet_rx *rx, virtio_packet *packet, uint32_t used) noexcept nogil:
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
        len = more_buffers(rx, packet, <uint32_t>packet.hdr.num_buffers - 1, len)
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
    cdef virtio_completion out[VIRTIO_BURST]
    cdef virtio_packet *packet
    cdef uint32_t got, i, buffer
    cdef uint8_t *frame
    cdef uint64_t bytes = 0
    if rx.npackets:
        return rx.npackets - rx.first
    if virtio_unlikely(rx.pool.host is NULL):
        return 0
    if limit > VIRTIO_BURST:
        limit = VIRTIO_BURST
    got = driver_dequeue_burst(rx.q, out, limit)
    for i in range(got):
        virtio_prefetch(pool_frame(rx.pool, <uint32_t>out[i].cookie) - rx.hdr_size)
    i = 0
    while i < got:
        buffer = <uint32_t>out[i].cookie
        frame = pool_frame(rx.pool, buffer)
        packet = &rx.packets[rx.npackets]
        packet.first = rx.nsegs
        packet.nsegs = 1
        rx.buffers[rx.nsegs] = buffer
        rx.segs[rx.nsegs].iov_base = frame
        rx.nsegs += 1
        load_header(rx, &packet.hdr, frame - rx.hdr_size)
        if examine(rx, packet, out[i].len):
            rx.npackets += 1
            bytes += packet.len
        i += 1
    rx.stats.ipackets += rx.npackets
    rx.stats.ibytes += bytes
    return rx.npackets


cdef void rx_done(vtnet_rx *rx, uint32_t n) noexcept nogil:
    cdef uint32_t i, k
    cdef const virtio_packet *packet
    for i in range(rx.first, rx.first + n):
        packet = &rx.packets[i]
        for k in range(packet.first, packet.first + packet.nsegs):
            again(rx, rx.buffers[k])
    rx.first += n
    if rx.first == rx.npackets:
        rx.first = rx.npackets = rx.nsegs = 0


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


# ---- the Python face ----

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

    def receive(self, uint32_t limit=64, *, bint info=False):
        """Take up to ``limit`` frames that wait; return them as a list of bytes.

        See :meth:`virtio.net.Vtnet.receive`.
        """
        cdef vtnet_rx *rx = &self.c
        cdef list frames = []
        cdef Received received = None
        cdef const virtio_packet *packet
        cdef PyObject *made
        cdef uint8_t *to
        cdef uint32_t n, i, want
        cdef uint32_t got = 0
        cdef bint starved = False
        if info:
            received = Received()
            received.reserve(limit, sizeof(vtnet_received), RECEIVED_FORMAT)
        while got < limit and not starved:
            want = limit - got
            with nogil:
                queue_lock(&rx.q.lock)
                n = rx_take(rx, want)
                if n > want:
                    n = want
                if n == 0:
                    self.finish()
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
                to = <uint8_t *>PyBytes_AS_STRING(<object>made)
                copy_out(to, &rx.segs[packet.first], packet.nsegs)
                if virtio_unlikely(packet.hdr.flags or packet.hdr.gso_type) and not self.classify(packet, to, received):
                    Py_DECREF(<object>made)
                    continue
                if received is not None:
                    received.add(&packet.hdr)
                rx.stats.copied += packet.len
                append(frames, <object>made)
                Py_DECREF(<object>made)
            rx_done(rx, n)
            with nogil:
                self.finish()
            got += n
        if starved:
            PyErr_Clear()
            if not frames:
                raise MemoryError()
        return (frames, received) if info else frames
