"""A port that tests play."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy

from virtio.core.atomic cimport virtio_load64, virtio_store64
from virtio.core.counters cimport add_count, counted
from virtio.core.iov cimport iov_read_all, iov_size, iov_write, iovec
from virtio.core.lock cimport queue_lock, queue_unlock
from virtio.event.worker cimport virtio_turn, virtio_wait
from virtio.offload.net_hdr cimport NetHeader
from virtio.ports.port cimport VIRTIO_PACKET_PIECES, sink_deliver, virtio_packet, virtio_sink


# ---- the port ----

cdef void free_frame(script_frame *frame) noexcept nogil:
    if frame is not NULL:
        free(frame.data)
        free(frame)


cdef script_frame *copy_packet(const virtio_packet *packet, const iovec *segs) noexcept nogil:
    cdef script_frame *frame = <script_frame *>calloc(1, sizeof(script_frame))
    if frame is NULL:
        return NULL
    frame.hdr = packet.hdr
    frame.len = packet.len
    frame.nsegs = packet.nsegs
    frame.data = <uint8_t *>malloc(packet.len + 1)
    iov_read_all(frame.data, segs + packet.first, packet.nsegs)
    return frame


cdef uint32_t script_send(virtio_port *port, uint32_t queue, const virtio_packet *packets, uint32_t n,
                          const iovec *segs, virtio_turn *turn) noexcept nogil:
    cdef script_state *c = <script_state *>port.owner
    cdef script_queue *q = &c.queues[queue]
    cdef int64_t room
    cdef uint32_t i, taken = n
    queue_lock(&q.lock)
    for i in range(n):
        room = <int64_t>virtio_load64(&c.room)
        if room == 0:
            add_count(&c.refused, 1)
            taken = i
            break
        if room > 0:
            virtio_store64(&c.room, room - 1)
        if c.keep:
            if q.nsent == q.sent_size:
                q.sent_size = 2 * q.sent_size + 64
                q.sent = <script_frame **>realloc(q.sent, q.sent_size * sizeof(script_frame *))
            q.sent[q.nsent] = copy_packet(&packets[i], segs)
        q.nsent += c.keep
    queue_unlock(&q.lock)
    return taken


cdef bint give_in_place(script_frame *frame, virtio_sink *sink, virtio_turn *turn) noexcept nogil:
    cdef iovec room[VIRTIO_PACKET_PIECES]
    cdef uint32_t n = sink.reserve(sink, room, VIRTIO_PACKET_PIECES, turn), length
    if n == 0:
        return False
    length = <uint32_t>min(iov_size(room, n), <size_t>frame.len)  # as a TAP: what finds no room is cut off
    iov_write(room, 0, frame.data, length)
    sink.commit(sink, &frame.hdr, length)
    return True


cdef bint give_copy(script_frame *frame, virtio_sink *sink, virtio_turn *turn) noexcept nogil:
    cdef virtio_packet packet
    packet.hdr = frame.hdr
    packet.first = 0
    packet.nsegs = frame.nsegs
    packet.len = frame.len
    return sink_deliver(sink, &packet, 1, frame.segs, turn, &frame.resume) == 1


cdef uint32_t script_receive(virtio_port *port, uint32_t queue, virtio_sink *sink, uint32_t limit,
                             virtio_turn *turn) noexcept nogil:
    cdef script_state *c = <script_state *>port.owner
    cdef script_queue *q = &c.queues[queue]
    cdef script_frame *frame
    cdef uint32_t done = 0, before
    queue_lock(&q.lock)
    while done < limit and q.count and turn.left > 0:
        frame = q.given[q.first]
        before = frame.resume
        if not (give_in_place(frame, sink, turn) if c.in_place else give_copy(frame, sink, turn)):
            done += frame.resume > before
            break
        free_frame(q.given[q.first])
        q.first += 1
        q.count -= 1
        done += 1
    queue_unlock(&q.lock)
    return done


cdef bint script_arm_send(virtio_port *port, uint32_t queue, virtio_wait *wait) noexcept nogil:
    cdef script_state *c = <script_state *>port.owner
    wait.full = 1
    return virtio_load64(&c.room) != 0


cdef bint script_arm_receive(virtio_port *port, uint32_t queue, virtio_wait *wait) noexcept nogil:
    wait.full = 1
    return waiting(&(<script_state *>port.owner).queues[queue]) != 0


cdef uint32_t waiting(script_queue *q) noexcept nogil:
    cdef uint32_t count
    queue_lock(&q.lock)
    count = q.count
    queue_unlock(&q.lock)
    return count


cdef class ScriptPort(Port):
    """A port whose frames a test gives, and that keeps what is sent to it.

    ``offloads``: VIRTIO_OFFLOAD_* bits that a frame sent here may leave undone. ``in_place``: frames are written by
    reserve and commit, in place of deliver. ``calls`` is what the device told it. Any thread may call, beside workers
    that run the device.
    """

    def __init__(self, *, uint32_t queues=1, uint32_t offloads=0, bint in_place=False, bint keep=True):
        if self.script.port is not NULL or not 1 <= queues <= SCRIPT_QUEUES:
            raise ValueError(f"{queues} queues (at most {SCRIPT_QUEUES}), or made already")
        self.script.port = &self.c
        self.script.in_place, self.script.keep, self.script.room = in_place, keep, <uint64_t>-1
        self.calls = []
        self.c.send, self.c.receive = script_send, script_receive
        self.c.arm_send, self.c.arm_receive = script_arm_send, script_arm_receive
        self.c.offloads, self.c.queues, self.c.owner = offloads, queues, &self.script

    def __dealloc__(self):
        cdef script_queue *q
        cdef uint32_t i, k
        for k in range(<uint32_t>SCRIPT_QUEUES):
            q = &self.script.queues[k]
            for i in range(q.count):
                free_frame(q.given[q.first + i])
            for i in range(q.nsent):
                free_frame(q.sent[i])
            free(q.given)
            free(q.sent)

    cdef script_queue *queue_of(self, int queue) except NULL:
        if not 0 <= queue < SCRIPT_QUEUES:
            raise ValueError(f"queue {queue} out of range (0 to {SCRIPT_QUEUES - 1})")
        return &self.script.queues[queue]

    def give(self, frames, *, int queue=0, splits=()):
        """Let the device receive these: each a (NetHeader, bytes), in pieces that end at ``splits``."""
        cdef script_queue *q = self.queue_of(queue)
        cdef script_frame *frame
        cdef bytes data
        cdef uint32_t at, end
        for header, data in frames:
            frame = <script_frame *>calloc(1, sizeof(script_frame))
            (<NetHeader?>header).store(&frame.hdr)
            frame.len = len(data)
            frame.data = <uint8_t *>malloc(frame.len + 1)
            memcpy(frame.data, <const char *>data, frame.len)
            at = 0
            for end in (*sorted(set(splits)), frame.len):
                if at < end <= frame.len:
                    frame.segs[frame.nsegs].iov_base = frame.data + at
                    frame.segs[frame.nsegs].iov_len = end - at
                    frame.nsegs += 1
                    at = end
            with nogil:
                queue_lock(&q.lock)
                if q.first + q.count == q.size:
                    q.size = 2 * q.size + 64
                    q.given = <script_frame **>realloc(q.given, q.size * sizeof(script_frame *))
                q.given[q.first + q.count] = frame
                q.count += 1
                queue_unlock(&q.lock)

    def waiting(self, int queue=0):
        """Return how many frames the device has not received yet."""
        cdef script_queue *q = self.queue_of(queue)
        cdef uint32_t count
        with nogil:
            count = waiting(q)
        return count

    def take(self, int queue=0):
        """Return what was sent here since the last call: a list of (NetHeader, bytes)."""
        cdef script_queue *q = self.queue_of(queue)
        cdef NetHeader header
        cdef script_frame **sent
        cdef uint32_t i, n
        cdef list out = []
        with nogil:
            queue_lock(&q.lock)
            sent, n = q.sent, q.nsent
            q.sent, q.nsent, q.sent_size = NULL, 0, 0
            queue_unlock(&q.lock)
        for i in range(n):
            header = NetHeader()
            header.load(&sent[i].hdr)
            out.append((header, PyBytes_FromStringAndSize(<char *>sent[i].data, sent[i].len)))
            free_frame(sent[i])
        free(sent)
        return out

    def set_offloads(self, uint32_t offloads):
        """Take frames with this undone from now on."""
        self.c.offloads = offloads

    @property
    def room(self):
        """Frames that it still takes until it is full; -1: any number."""
        return <int64_t>virtio_load64(&self.script.room)

    @room.setter
    def room(self, int64_t room):
        virtio_store64(&self.script.room, room)

    @property
    def refused(self):
        """How often it did not take all of a burst."""
        return counted(&self.script.refused)

    cdef int connect(self, uint32_t queue, virtio_sink *sink, object owner) except -1:
        self.calls.append(("connect" if sink is not NULL else "disconnect", queue))
        return 0

    def receive_offloads(self, uint32_t offloads, int header_size):
        """Note it in ``calls``."""
        self.calls.append(("receive_offloads", offloads, header_size))

    def set_queues(self, int pairs):
        """Note it in ``calls``."""
        self.calls.append(("set_queues", pairs))


# ---- loops ----
