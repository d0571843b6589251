"""Exercisers of the path from one guest to another: what a frame costs the device end, and its copies alone."""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from virtio.core.clock cimport now_ns
from virtio.core.iov cimport iov_read_all, iovec
from virtio.core.lock cimport queue_lock, queue_unlock
from virtio.event.notifier cimport virtio_bell, virtio_bell_ring
from virtio.event.worker cimport Task, virtio_task, virtio_turn
from virtio.ports.port cimport VIRTIO_BURST, Port, virtio_packet, virtio_port, virtio_sink
from virtio.vtnet.rxq cimport VtnetReceive, rx_done, rx_post, rx_take, vtnet_rx
from virtio.vtnet.txq cimport VtnetTransmit


cdef enum:
    WHOLE = 1 << 30    # units of work: a burst is never over before its end
    FRAME = 1 << 16    # bytes of each buffer in between, at most
    SPARE = 192        # so that buffers do not all fall into the same sets of a cache


# ---- the baseline: two copies ----

cdef uint32_t two_send(virtio_port *port, uint32_t queue, const virtio_packet *packets, uint32_t n,
                       const iovec *segs, virtio_turn *turn) noexcept nogil:
    return (<TwoCopies>port.owner).copy_twice(packets, n, segs, turn)


cdef class TwoCopies(Port):
    """A cable as other data paths have it: each frame is copied into a buffer of ours, and from there to its receiver.

    ``other`` is the end that frames go to; set it on both ends. For frames of up to 65536 bytes.
    """

    cdef virtio_sink *sink
    cdef public TwoCopies other
    cdef uint8_t *buffers
    cdef iovec segs[64]
    cdef virtio_packet packets[64]

    def __init__(self):
        cdef uint32_t i
        self.c.send = two_send
        self.c.owner = <void *>self
        self.c.offloads = 0xfff
        if self.buffers is NULL:
            self.buffers = <uint8_t *>malloc(<size_t>VIRTIO_BURST * (FRAME + SPARE))
        if self.buffers is NULL:
            raise MemoryError()
        for i in range(<uint32_t>VIRTIO_BURST):
            self.segs[i].iov_base = self.buffers + <size_t>i * (FRAME + SPARE)

    def __dealloc__(self):
        free(self.buffers)

    cdef int connect(self, uint32_t queue, virtio_sink *sink, object owner) except -1:
        self.sink = sink
        return 0

    cdef uint32_t copy_twice(self, const virtio_packet *packets, uint32_t n, const iovec *segs,
                             virtio_turn *turn) noexcept nogil:
        cdef virtio_sink *sink = self.other.sink
        cdef virtio_bell *bell
        cdef uint32_t i
        if sink is NULL:
            return n
        for i in range(n):
            iov_read_all(<uint8_t *>self.segs[i].iov_base, segs + packets[i].first, packets[i].nsegs)
            self.segs[i].iov_len = packets[i].len
            self.packets[i] = packets[i]
            self.packets[i].first = i
            self.packets[i].nsegs = 1
        queue_lock(sink.lock)
        n = sink.deliver(sink, self.packets, n, self.segs, turn)
        bell = sink.flush(sink)
        queue_unlock(sink.lock)
        if bell is not NULL:
            virtio_bell_ring(bell)
        return n


# ---- loops ----

def forward(VtnetTransmit transmit not None, VtnetReceive receive not None, tasks, uint32_t length, long count, *,
            uint32_t burst=32):
    """Send frames from one driver to another through devices; return the nanoseconds a packet of the devices' tasks.

    What the drivers do in between, on this thread too, is not counted: they write each frame and do not read it.
    Raises RuntimeError when a burst does not arrive whole.
    """
    cdef virtio_packet packets[64]
    cdef iovec segs[64]
    cdef virtio_task *run[8]
    cdef uint32_t ntasks = 0, i, n = burst, got = burst, taken
    cdef virtio_sink *sink = &transmit.c.sink
    cdef vtnet_rx *rx = &receive.c
    cdef uint8_t *frames
    cdef int64_t spent = 0, start
    cdef virtio_turn turn
    cdef long done = 0
    if not 1 <= burst <= VIRTIO_BURST or not 60 <= length <= FRAME:
        raise ValueError(f"burst {burst} (1 to {VIRTIO_BURST}) or length {length} (60 to {FRAME}) out of range")
    for task in tasks:
        if ntasks == 8:
            raise ValueError("more than 8 tasks")
        run[ntasks] = (<Task?>task).task
        ntasks += 1
    frames = <uint8_t *>calloc(burst, length)
    if frames is NULL:
        raise MemoryError()
    memset(packets, 0, sizeof(packets))
    for i in range(burst):
        frames[i * length] = 2
        segs[i].iov_base = frames + i * length
        segs[i].iov_len = length
        packets[i].first = i
        packets[i].nsegs = 1
        packets[i].len = length
    with nogil:
        while done < count and got == n:
            queue_lock(sink.lock)
            turn.left, turn.resume = WHOLE, 0
            sink.deliver(sink, packets, n, segs, &turn)
            sink.flush(sink)
            queue_unlock(sink.lock)
            start = now_ns()
            for i in range(ntasks):
                turn.left = WHOLE
                run[i].poll(run[i], &turn)
            spent += now_ns() - start
            queue_lock(&rx.q.lock)
            got = taken = rx_take(rx, VIRTIO_BURST)
            while taken:
                rx_done(rx, taken)
                taken = rx_take(rx, VIRTIO_BURST)
                got += taken
            rx_post(rx)
            queue_unlock(&rx.q.lock)
            done += got
    free(frames)
    if got != n:
        raise RuntimeError(f"{got} of {n} frames arrived after {done}")
    return spent / <double>done


def copies(uint32_t length, long count, *, uint32_t burst=32, uint32_t senders=192, uint32_t receivers=256,
           uint32_t stride=2048 + 192):
    """Copy as a cable must, and do nothing else; return the nanoseconds a copy.

    From ``senders`` buffers in turn, each written before (uncounted), as a driver does: vtnet takes buffers back when
    three quarters of its 256 are out. To ``receivers`` buffers in turn.
    """
    cdef uint8_t *source
    cdef uint8_t *to
    cdef uint8_t *frame
    cdef uint32_t i, at = 0, of = 0
    cdef int64_t spent = 0, start
    cdef long done = 0
    if not 1 <= length <= stride:
        raise ValueError(f"length {length} is not within 1 to {stride}")
    if not 1 <= burst <= senders:
        raise ValueError(f"burst {burst} is not within 1 to {senders} senders")
    senders -= senders % burst
    source = <uint8_t *>calloc(senders, stride)
    to = <uint8_t *>calloc(receivers, stride)
    frame = <uint8_t *>calloc(1, stride)
    if source is NULL or to is NULL or frame is NULL:
        free(source)
        free(to)
        free(frame)
        raise MemoryError()
    with nogil:
        while done < count:
            for i in range(burst):
                memcpy(source + <size_t>(of + i) * stride, frame, length)
            start = now_ns()
            for i in range(burst):
                memcpy(to + <size_t>at * stride, source + <size_t>(of + i) * stride, length)
                at += 1
                if at == receivers:
                    at = 0
            spent += now_ns() - start
            of += burst
            if of == senders:
                of = 0
            done += burst
    free(source)
    free(to)
    free(frame)
    return spent / <double>done
