"""vtnet's receive queue, for Python."""

import os
from collections import namedtuple

from cpython.exc cimport PyErr_Clear
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from virtio._ring cimport driver_disable_intr
from virtio.core.atomic cimport virtio_load32_acquire
from virtio.core.counters cimport add_count, counted
from virtio.core.iov cimport iov_read_all, iovec
from virtio.core.lock cimport queue_lock, queue_unlock
from virtio.event.notifier cimport virtio_bell, virtio_bell_ring
from virtio.offload.counters cimport VIRTIO_RX_HDR
from virtio.offload.net_hdr cimport VIRTIO_NET_HDR_FAULTS, header_size_of, NetHeader, offloads_of
from virtio.offload.rx cimport offload_complete
from virtio.ports.port cimport VIRTIO_BURST
from virtio.virtqueue.structs cimport VIRTIO_FAULT_NONE
from virtio.vtnet.lro cimport lro_free, lro_new, vtnet_lro
from virtio.vtnet.pool cimport VTNET_VIEW
from virtio.vtnet.rxq cimport (
    RX_ROOM, VTNET_LRO_OFFLOADS, rx_again, rx_classify, rx_complete, rx_done_merged, rx_forget, rx_headers,
    rx_open, rx_packets, rx_post, rx_reset, rx_segs, rx_take, rx_take_merged, rx_waits, vtnet_rx_stats,
)

from virtio.offload.counters import ReceiveReason, ReceiveVerdict
from virtio.constants import Feature, NetFeature
from virtio.errors import DeviceBroken


cdef extern from "Python.h":
    PyObject *make_bytes "PyBytes_FromStringAndSize"(const char *data, Py_ssize_t n)  # NULL: no memory
    char *bytes_of "PyBytes_AS_STRING"(PyObject *made)
    void release "Py_DECREF"(PyObject *made)


ReceivedFrame = namedtuple("ReceivedFrame", ["verdict", "reason", "segments", "header"])
_VERDICTS = tuple(ReceiveVerdict)
_REASONS = {int(reason): reason for reason in ReceiveReason}


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
        cdef const virtio_packet *packets
        cdef const virtio_packet *packet
        cdef const iovec *segs
        cdef PyObject *made
        cdef uint8_t *to
        cdef uint32_t n, i
        cdef bint starved = False
        while limit and not starved:
            n = self.take(limit, True)
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
                    if complete:
                        offload_complete(to, &offload)
                    if received is not None:
                        received.add(packet, &offload)
                    frames.append(<object>made)
                release(made)
            rx_done_merged(rx, n)
            limit -= n
            with nogil:
                self.finish()
        if not frames:
            self.check(starved)
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
            n = self.take(limit, False)
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
        if not frames:
            self.check(False)
        return (frames, received) if info else frames

    cdef int check(self, bint starved) except -1:
        """Raise what is the reason for having received nothing, if there is one."""
        if starved:
            raise MemoryError()
        if virtio_load32_acquire(&self.c.q.fault.code) != VIRTIO_FAULT_NONE:
            raise DeviceBroken(f"receive queue {self.queue.index}: {self.queue.broken}")
        return 0

    cdef uint32_t take(self, uint32_t limit, bint merged) noexcept:
        """Take up to limit packets, and hold the lock; 0: none waits, and the lock is free again."""
        cdef uint32_t n
        with nogil:
            queue_lock(&self.c.q.lock)
            n = rx_take_merged(&self.c, limit) if merged else rx_take(&self.c, limit)
            if n > limit:
                n = limit
            if n == 0:
                self.finish()
        return n

    def retire(self):
        """Give and post nothing more: the queue gets other buffers, and another object of this class."""
        with nogil:
            queue_lock(&self.c.q.lock)
            self.pool.retire()
            queue_unlock(&self.c.q.lock)

    def forget(self):
        """Forget what is posted and what was taken: after a reset of the queue. Then :meth:`fill` it anew."""
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

        Headers that contradict what was negotiated are among them, whoever received the frame.
        """
        cdef uint32_t fault
        counts = {reason: counted(&self.c.reasons[<int>int(reason)]) for reason in ReceiveReason}
        for fault in range(<uint32_t>VIRTIO_NET_HDR_FAULTS):
            reason = _REASONS.get(VIRTIO_RX_HDR + fault)
            if reason is not None:
                counts[reason] += counted(&self.c.header_faults[fault])
        return counts
