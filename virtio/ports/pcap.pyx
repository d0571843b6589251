"""Ports onto capture files, in the format of libpcap: one plays frames back, one writes them."""

import os
import stat
import struct

from libc.errno cimport EAGAIN, EINTR, EMSGSIZE, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset

from virtio.core.atomic cimport virtio_store32
from virtio.core.clock cimport now_ns, wall_ns
from virtio.core.counters cimport add_count, counted
from virtio.core.iov cimport iov_head, iovec
from virtio.core.lock cimport queue_lock, queue_unlock
from virtio.event.worker cimport (
    VIRTIO_WORK_BYTES, VIRTIO_WORK_SYSCALL, pollfd, virtio_turn, virtio_wait, virtio_wait_fd, virtio_wait_us,
    virtio_work_bytes,
)
from virtio.ports.counts cimport add_counts, count_error, port_counts
from virtio.ports.port cimport (
    VIRTIO_BURST, VIRTIO_FRAME_MAX, VIRTIO_FRAME_MIN, Port, sink_deliver, virtio_packet, virtio_port, virtio_sink,
)

from virtio.errors import ConfigError


cdef extern from "unistd.h" nogil:
    ssize_t c_read "read"(int fd, void *to, size_t n)
    ssize_t c_write "write"(int fd, const void *p, size_t n)
    int64_t lseek(int fd, int64_t offset, int whence)
    int ftruncate(int fd, int64_t size)


cdef extern from "errno.h" nogil:
    enum:
        ECANCELED


cdef extern from "poll.h" nogil:
    enum:
        POLLIN
        POLLOUT
    int poll(pollfd *fds, unsigned long n, int timeout)


cdef enum:
    FILE_HEADER = 24
    RECORD = 16               # bytes of header of each record
    RECORD_MAX = 262144       # bytes of data, as in libpcap
    BUFFER = 1 << 20
    ETHERNET = 1              # LINKTYPE_ETHERNET

    STAMP = 40                # units of work: the clock is read, a header written
    CENTURY = 3000000000000000000  # ns: what lies further ahead is as far ahead

    MORE = 0                  # what take_record found: nothing whole in the buffer,
    FOUND = 1                 # a record,
    BROKEN = 2                # one that cannot be


# ---- reading ----

cdef struct pcap_reader:
    uint32_t lock             # so that it can be closed while frames pass
    int fd
    bint swapped              # written by a host of the other endianness
    bint nanoseconds
    bint may_wait             # not a regular file: more may come later
    uint32_t fcs              # bytes behind each frame that are not of it
    double speed              # 0: as fast as they are taken
    int64_t loops             # passes that are left, 0: without end
    bint done
    bint waiting              # for the file to have more
    uint32_t broken           # bytes of data that a record claims to have: it ended there
    uint32_t partial          # bytes at the end that are no whole record
    uint64_t passed           # frames of this pass that were given
    int64_t origin            # ns: time of the pass's first frame, in the file
    int64_t since             # and here, 0: it has not begun
    int64_t due               # ns: when the next frame may come
    uint32_t resume           # segments that are out of the frame that comes next
    uint32_t at               # buffer[at .. end) is yet to be used
    uint32_t end
    uint8_t *buffer
    uint64_t snapped          # frames of which the file lacks the end
    port_counts counts


cdef struct record:
    int64_t time              # ns
    uint32_t length
    bint snapped
    const uint8_t *data
    uint32_t next             # in the buffer


cdef inline uint32_t word(const pcap_reader *r, const uint8_t *p) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, p, 4)
    return bswap32(value) if r.swapped else value


cdef extern from *:
    uint32_t bswap32 "__builtin_bswap32"(uint32_t v) nogil


cdef int take_record(pcap_reader *r, uint32_t at, record *found) noexcept nogil:
    cdef const uint8_t *p = r.buffer + at
    cdef uint32_t stored, whole
    if r.end - at < RECORD:
        return MORE
    stored = word(r, p + 8)
    if stored > RECORD_MAX:
        r.broken = stored
        return BROKEN
    if r.end - at - RECORD < stored:
        return MORE
    found.time = <int64_t>word(r, p) * 1000000000 + <int64_t>word(r, p + 4) * (1 if r.nanoseconds else 1000)
    # what is stored behind the frame is none of it: some writers pad records. An original length of 0 is unknown
    whole = word(r, p + 12)
    if whole == 0:
        whole = stored
    whole = whole - r.fcs if whole > r.fcs else 0
    found.length = stored if stored < whole else whole
    found.snapped = stored < whole
    found.data = p + RECORD
    found.next = at + RECORD + stored
    return FOUND


cdef bint refill(pcap_reader *r) noexcept nogil:
    """Read more of the file; False: there is nothing for now, or no more (done)."""
    cdef ssize_t got
    if r.at:
        memmove(r.buffer, r.buffer + r.at, r.end - r.at)
        r.end -= r.at
        r.at = 0
    while True:
        got = c_read(r.fd, r.buffer + r.end, BUFFER - r.end)
        if got >= 0 or errno != EINTR:
            break
    if got > 0:
        r.end += <uint32_t>got
        return True
    if got < 0 and errno == EAGAIN:
        r.waiting = True
        return False
    if got < 0:
        add_count(&r.counts.errors[errno], 1)
    elif r.end == 0 and r.passed and r.loops != 1 and lseek(r.fd, FILE_HEADER, 0) == FILE_HEADER:
        r.loops -= r.loops > 0
        r.passed = 0
        r.since = 0
        return True
    r.partial = r.end
    r.done = True
    return False


cdef bint is_due(pcap_reader *r, const record *found) noexcept nogil:
    cdef int64_t now
    cdef double ahead
    if r.speed == 0:
        return True
    now = now_ns()
    if r.since == 0:
        r.since = now
        r.origin = found.time
    ahead = <double>(found.time - r.origin) / r.speed
    r.due = r.since + <int64_t>(ahead if ahead < CENTURY else CENTURY)
    return r.due <= now


cdef uint32_t give(pcap_reader *r, virtio_sink *sink, uint32_t limit, virtio_turn *turn) noexcept nogil:
    cdef virtio_packet packets[VIRTIO_BURST]
    cdef iovec segs[VIRTIO_BURST]
    cdef uint32_t after[VIRTIO_BURST]  # where in the buffer the file goes on when it is taken
    cdef uint32_t snapped[VIRTIO_BURST]
    cdef int64_t room = turn.left * VIRTIO_WORK_BYTES
    cdef record found
    cdef uint32_t n, taken, at, i, before = r.resume
    cdef int state
    if limit > VIRTIO_BURST:
        limit = VIRTIO_BURST
    while not r.done:
        n = 0
        at = r.at
        while n < limit and <int64_t>(at - r.at) < room:
            state = take_record(r, at, &found)
            if state == BROKEN:
                r.done = n == 0  # first what comes before it
                break
            if state == MORE or not is_due(r, &found):
                break
            at = found.next
            if not VIRTIO_FRAME_MIN <= found.length <= VIRTIO_FRAME_MAX:
                if n:  # counted when all before it is taken
                    break
                count_error(&r.counts, EMSGSIZE)
                r.at = at
                continue
            memset(&packets[n], 0, sizeof(virtio_packet))
            packets[n].first = n
            packets[n].nsegs = 1
            packets[n].len = found.length
            snapped[n] = found.snapped
            segs[n].iov_base = <void *>found.data
            segs[n].iov_len = found.length
            after[n] = at
            n += 1
        if n:
            taken = sink_deliver(sink, packets, n, segs, turn, &r.resume)
            if taken < n and turn.left > 0:
                add_count(&r.counts.full, 1)
            for i in range(taken):
                add_count(&r.counts.bytes, packets[i].len)
                add_count(&r.snapped, snapped[i])
            add_count(&r.counts.packets, taken)
            r.passed += taken
            if taken:
                r.at = after[taken - 1]
            return taken if taken else r.resume > before
        if state != MORE or not refill(r):
            return 0
    return 0


cdef uint32_t reader_receive(virtio_port *port, uint32_t queue, virtio_sink *sink, uint32_t limit,
                             virtio_turn *turn) noexcept nogil:
    cdef pcap_reader *r = <pcap_reader *>port.owner
    cdef uint32_t taken
    if queue:
        return 0
    queue_lock(&r.lock)
    taken = give(r, sink, limit, turn)
    queue_unlock(&r.lock)
    return taken


cdef bint wait_for_more(pcap_reader *r, virtio_wait *wait) noexcept nogil:
    cdef int64_t ahead
    if r.done:
        return False
    if r.waiting:
        r.waiting = False
        virtio_wait_fd(wait, r.fd, POLLIN)
        return False
    if r.speed == 0:
        return True
    ahead = r.due - now_ns()
    if ahead <= 0:
        return True
    virtio_wait_us(wait, ahead // 1000 + 1)
    return False


cdef bint reader_arm_receive(virtio_port *port, uint32_t queue, virtio_wait *wait) noexcept nogil:
    cdef pcap_reader *r = <pcap_reader *>port.owner
    cdef bint work
    if queue:
        return False
    queue_lock(&r.lock)
    work = wait_for_more(r, wait)
    queue_unlock(&r.lock)
    return work


def open_capture(path):
    """Return (fd, whether the bytes are swapped, of nanoseconds, FCS bytes of a frame)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        head = b""
        while len(head) < <int>FILE_HEADER and (more := os.read(fd, FILE_HEADER - len(head))):
            head += more
        if head[:4] == b"\x0a\x0d\x0d\x0a":
            raise ConfigError(f"{path} is a pcapng file: convert it (editcap -F nsecpcap)")
        known = {b"\xa1\xb2\xc3\xd4": (">", False), b"\xd4\xc3\xb2\xa1": ("<", False),
                 b"\xa1\xb2\x3c\x4d": (">", True), b"\x4d\x3c\xb2\xa1": ("<", True)}
        if len(head) < <int>FILE_HEADER or head[:4] not in known:
            raise ConfigError(f"{path} is no capture file: it begins with {head[:4].hex() or 'nothing'}")
        order, nanoseconds = known[head[:4]]
        version, link = struct.unpack(f"{order}H14xI", head[4:])
        if version != 2:
            raise ConfigError(f"{path} is of version {version} of the format: limit 2")
        if link & 0xffff != ETHERNET:
            raise ConfigError(f"{path} is of link type {link & 0xffff}: only Ethernet, 1, will do")
        return fd, order == ">", nanoseconds, (link >> 28) * 2 if link & 0x04000000 else 0
    except BaseException:
        os.close(fd)
        raise


cdef class PcapReader(Port):
    """Gives the frames of a capture file (classic libpcap, of micro- or nanoseconds, either endianness).

    ``speed`` 1.0 keeps the times of the file, 2.0 halves them; None gives frames as fast as they are taken. ``loops``
    is how often the file is played, None for ever. ``queues`` queue pairs (1 to 256): frames come on the first.
    What is sent here is dropped. A named pipe will do, once.

    Raises ConfigError for a file that is none, or not of Ethernet, OSError if it cannot be read, ValueError for
    arguments out of range. Frames of less than 14 and more than 65589 bytes are dropped, and count as EMSGSIZE. Where
    the file is cut off or makes no sense it ends: ``fault`` says how.
    """

    cdef pcap_reader _r
    cdef readonly str path

    cdef void free_locks(self) noexcept:
        virtio_store32(&self._r.lock, 0)

    def __init__(self, path, *, speed=None, loops=1, int queues=1):
        if self._r.buffer is not NULL:
            raise TypeError("capture file is open already")
        if speed is not None and not 0 < speed <= 1e9:
            raise ValueError(f"speed {speed} is not within 0 to 1e9")
        if loops is not None and loops < 1:
            raise ValueError(f"loops {loops}: limit 1 at least")
        if not 1 <= queues <= 256:
            raise ValueError(f"queues {queues} is not within 1 to 256")
        self.path = os.fsdecode(path)
        self._r.buffer = <uint8_t *>malloc(BUFFER)
        if self._r.buffer is NULL:
            raise MemoryError()
        self._r.fd = -1
        self._r.fd, self._r.swapped, self._r.nanoseconds, self._r.fcs = open_capture(path)
        self._r.may_wait = not stat.S_ISREG(os.fstat(self._r.fd).st_mode)
        if self._r.may_wait:
            if loops != 1:
                raise ValueError(f"{self.path} is no regular file: loops {loops}, limit 1")
            os.set_blocking(self._r.fd, False)
        self._r.speed = speed or 0
        self._r.loops = loops or 0
        self.c.owner = &self._r
        self.c.queues = queues
        self.c.receive = reader_receive
        self.c.arm_receive = reader_arm_receive

    def __dealloc__(self):
        if self._r.buffer is not NULL and self._r.fd >= 0:
            os.close(self._r.fd)
        free(self._r.buffer)

    @property
    def done(self):
        """Whether all frames were given."""
        cdef bint done
        with nogil:
            queue_lock(&self._r.lock)
            done = self._r.done
            queue_unlock(&self._r.lock)
        return done

    @property
    def fault(self):
        """What was wrong with the file where it ended, or None."""
        if not self.done:  # from then on nothing changes
            return None
        if self._r.broken:
            return f"a record of {self._r.broken} bytes: limit {RECORD_MAX}"
        if self._r.partial:
            return f"{self._r.partial} bytes at the end are no whole record"
        return None

    def statistics(self):
        """Return receive_packets, receive_bytes, receive_dropped, receive_full, and receive_snapped.

        That is how many frames were given without their end, because the file has no more of them.
        """
        cdef dict counts = {}
        add_counts(counts, "receive", &self._r.counts)
        counts["receive_snapped"] = counted(&self._r.snapped)
        return counts

    def close(self):
        """Close the file; it gives nothing from then on."""
        cdef int fd
        with nogil:
            queue_lock(&self._r.lock)
            self._r.done = True
            fd, self._r.fd = self._r.fd, -1
            queue_unlock(&self._r.lock)
        if fd >= 0:
            os.close(fd)

    def __repr__(self):
        return f"<PcapReader {self.path}: {counted(&self._r.counts.packets)} frames given>"


# ---- writing ----

cdef struct pcap_writer:
    uint32_t lock             # queues share the file
    int fd                    # -1: closed
    int stop                  # eventfd: ends the wait for a reader; -1: the file is regular
    uint32_t snaplen
    bint regular
    int64_t size              # of the file, whole records only
    uint8_t *buffer
    uint32_t used
    uint64_t packets          # in the buffer,
    uint64_t bytes
    port_counts counts


cdef bint wait_for_reader(pcap_writer *w) noexcept nogil:
    """Wait until a pipe has room; False when it is to be closed."""
    cdef pollfd fds[2]
    fds[0].fd = w.fd
    fds[0].events = POLLOUT
    fds[1].fd = w.stop
    fds[1].events = POLLIN
    fds[0].revents = fds[1].revents = 0
    poll(fds, 2, -1)
    return fds[1].revents == 0


cdef void flush(pcap_writer *w) noexcept nogil:
    cdef uint32_t done = 0
    cdef int error = 0
    cdef ssize_t n
    cdef uint64_t _
    while done < w.used:
        n = c_write(w.fd, w.buffer + done, w.used - done)
        if n >= 0:
            done += <uint32_t>n
            continue
        error = errno
        if error == EAGAIN and not w.regular:
            if wait_for_reader(w):
                continue
            error = ECANCELED
        if error != EINTR:
            break
    if done == w.used:
        w.size += w.used
        add_count(&w.counts.packets, w.packets)
        add_count(&w.counts.bytes, w.bytes)
    else:
        for _ in range(w.packets):
            count_error(&w.counts, error)
        # no part of a record may stay, or what follows is unreadable
        if done and w.regular and ftruncate(w.fd, w.size) == 0:
            lseek(w.fd, w.size, 0)
    w.used = 0
    w.packets = w.bytes = 0


cdef void add_record(pcap_writer *w, const virtio_packet *packet, const iovec *segs) noexcept nogil:
    cdef int64_t now = wall_ns()
    cdef uint32_t left = packet.len if packet.len < w.snaplen else w.snaplen
    cdef uint32_t head[4]
    if w.used + RECORD + left > BUFFER:
        flush(w)
    head[0] = <uint32_t>(now // 1000000000)
    head[1] = <uint32_t>(now % 1000000000)
    head[2] = left
    head[3] = packet.len
    memcpy(w.buffer + w.used, head, RECORD)
    w.used += RECORD
    w.used += <uint32_t>iov_head(w.buffer + w.used, segs + packet.first, packet.nsegs, 0, left)
    w.packets += 1
    w.bytes += packet.len


cdef uint32_t writer_send(virtio_port *port, uint32_t queue, const virtio_packet *packets, uint32_t n,
                          const iovec *segs, virtio_turn *turn) noexcept nogil:
    cdef pcap_writer *w = <pcap_writer *>port.owner
    cdef uint64_t size = 0
    cdef uint32_t i
    queue_lock(&w.lock)
    if w.fd < 0:
        add_count(&w.counts.dropped, n)
    else:
        for i in range(n):
            size += packets[i].len
            add_record(w, &packets[i], segs)
        turn.left -= <int64_t>n * port.work + 2 * virtio_work_bytes(size) + 2 * VIRTIO_WORK_SYSCALL  # copied twice
        flush(w)  # with each burst, so that who reads along sees it
    queue_unlock(&w.lock)
    return n


cdef class PcapWriter(Port):
    """Writes what it is sent to a capture file, with times of nanoseconds; one write(2) for each burst.

    An existing file is replaced. ``snaplen`` is how many bytes of a frame are kept at most (1 to 262144). ``offloads``
    (VIRTIO_OFFLOAD_*) is what a frame may leave undone: nothing by default, so that frames are written as they would be
    on a wire; with 0x1ff as the guest gives them, uncut and with checksums to be completed. ``queues`` queue pairs (1
    to 256) share the file. It has nothing to give. Into a pipe it waits for the reader, and the queue with it, until
    :meth:`close`; then what is on its way counts under ECANCELED.

    Raises OSError if the file cannot be made, ValueError for arguments out of range. A frame that cannot be written, as
    the disk is full, is dropped, counts under the name of its errno, and leaves nothing in the file.
    """

    cdef pcap_writer _w
    cdef readonly str path

    cdef void free_locks(self) noexcept:
        virtio_store32(&self._w.lock, 0)

    def __init__(self, path, *, int snaplen=RECORD_MAX, uint32_t offloads=0, int queues=1):
        if self._w.buffer is not NULL:
            raise TypeError("capture file is open already")
        if not 1 <= snaplen <= <int>RECORD_MAX:
            raise ValueError(f"snaplen {snaplen} is not within 1 to {RECORD_MAX}")
        if not 1 <= queues <= 256:
            raise ValueError(f"queues {queues} is not within 1 to 256")
        if offloads > 0x1ff:
            raise ValueError(f"offloads {offloads:#x} has bits beyond 0x1ff")
        self.path = os.fsdecode(path)
        self._w.buffer = <uint8_t *>malloc(BUFFER)
        if self._w.buffer is NULL:
            raise MemoryError()
        self._w.fd = self._w.stop = -1
        self._w.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        os.write(self._w.fd, struct.pack("=IHHiIII", 0xa1b23c4d, 2, 4, 0, 0, snaplen, ETHERNET))
        self._w.regular = stat.S_ISREG(os.fstat(self._w.fd).st_mode)
        if not self._w.regular:
            self._w.stop = os.eventfd(0, os.EFD_CLOEXEC)
            os.set_blocking(self._w.fd, False)
        self._w.size = FILE_HEADER
        self._w.snaplen = snaplen
        self.c.owner = &self._w
        self.c.send = writer_send
        self.c.work = STAMP
        self.c.offloads = offloads
        self.c.queues = queues

    def __dealloc__(self):
        if self._w.buffer is not NULL and self._w.fd >= 0:
            os.close(self._w.fd)
        if self._w.buffer is not NULL and self._w.stop >= 0:
            os.close(self._w.stop)
        free(self._w.buffer)

    def statistics(self):
        """Return send_packets, send_bytes, send_dropped, and, for each errno, send_ENOSPC and the like."""
        cdef dict counts = {}
        add_counts(counts, "send", &self._w.counts)
        return counts

    def close(self):
        """Close the file; what is sent from then on is dropped."""
        if self._w.stop >= 0:
            os.eventfd_write(self._w.stop, 1)
        with nogil:
            queue_lock(&self._w.lock)
        fd, self._w.fd = self._w.fd, -1
        queue_unlock(&self._w.lock)
        if fd >= 0:
            os.close(fd)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        return f"<PcapWriter {self.path}: {counted(&self._w.counts.packets)} frames written>"
