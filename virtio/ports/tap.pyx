"""The TAP port: frames to and from the Linux kernel."""

import errno as errnos
import fcntl
import os
import socket
import struct

cimport cython
from libc.errno cimport EAGAIN, EBADFD, EFAULT, EINTR, EMSGSIZE, ENOMEM, EPROTO, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from virtio.core.atomic cimport virtio_store32
from virtio.core.counters cimport add_count
from virtio.core.iov cimport iov_head, iov_read_all, iov_size, iovec
from virtio.core.lock cimport queue_lock, queue_unlock
from virtio.event.worker cimport VIRTIO_WORK_SYSCALL, virtio_turn, virtio_wait, virtio_wait_fd, virtio_work_bytes
from virtio.memory.sigbus cimport guard_touch
from virtio.offload.net_hdr cimport (
    VIRTIO_NET_HDR_OK, VIRTIO_OFFLOAD_CSUM, VIRTIO_OFFLOAD_CUT, VIRTIO_OFFLOAD_ECN, VIRTIO_OFFLOAD_TO_DRIVER,
    VIRTIO_OFFLOAD_TSO4, VIRTIO_OFFLOAD_TSO6, VIRTIO_OFFLOAD_TUNNEL, VIRTIO_OFFLOAD_TUNNEL_CSUM, VIRTIO_OFFLOAD_UFO,
    VIRTIO_OFFLOAD_USO4, VIRTIO_OFFLOAD_USO6, net_hdr_check, virtio_net_hdr,
)
from virtio.ports.counts cimport add_counts, count_error
from virtio.ports.port cimport VIRTIO_FRAME_MAX, VIRTIO_PACKET_PIECES, virtio_packet, virtio_port, virtio_sink
from virtio.ports.software_offload cimport net_hdr_needs

from virtio.errors import ConfigError


cdef extern from "sys/uio.h" nogil:
    ssize_t readv(int fd, const iovec *iov, int count)
    ssize_t writev(int fd, const iovec *iov, int count)


cdef extern from "unistd.h" nogil:
    int close_fd "close"(int fd)


cdef extern from "poll.h" nogil:
    enum:
        POLLIN
        POLLOUT


cdef enum:
    SEND = 0
    RECEIVE = 1
    READ = VIRTIO_WORK_SYSCALL
    WRITE = 3 * VIRTIO_WORK_SYSCALL  # the kernel's network stack is in it
    WHOLE = 1 << 30                  # units of work: more than any frame takes
    PIECES = VIRTIO_PACKET_PIECES  # IOV_MAX
    ANY = (VIRTIO_OFFLOAD_CSUM | VIRTIO_OFFLOAD_TSO4 | VIRTIO_OFFLOAD_TSO6 | VIRTIO_OFFLOAD_ECN | VIRTIO_OFFLOAD_UFO
           | VIRTIO_OFFLOAD_USO4 | VIRTIO_OFFLOAD_USO6 | VIRTIO_OFFLOAD_TUNNEL | VIRTIO_OFFLOAD_TUNNEL_CSUM)

# linux/if_tun.h. TUN_F_* are VIRTIO_OFFLOAD_*, bit for bit.
TUNSETIFF, TUNSETOFFLOAD, TUNGETIFF = 0x400454CA, 0x400454D0, 0x800454D2
TUNGETVNETHDRSZ, TUNSETVNETHDRSZ, TUNSETQUEUE = 0x800454D7, 0x400454D8, 0x400454D9
IFF_TUN, IFF_TAP, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR = 0x1, 0x2, 0x100, 0x1000, 0x4000
IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE = 0x200, 0x400
SIOCSIFMTU = 0x8922
SIZES = (10, 12, 20, 24)

# What a kernel may lack, newest first: what is left out when it says EINVAL.
STEPS = (
    VIRTIO_OFFLOAD_TUNNEL_CSUM,
    VIRTIO_OFFLOAD_TUNNEL | VIRTIO_OFFLOAD_TUNNEL_CSUM,
    VIRTIO_OFFLOAD_USO4 | VIRTIO_OFFLOAD_USO6,
    VIRTIO_OFFLOAD_ECN,
    VIRTIO_OFFLOAD_TSO4 | VIRTIO_OFFLOAD_TSO6,
    VIRTIO_OFFLOAD_CSUM,
)


# ---- the data path ----

cdef void touch(const iovec *iov, uint32_t n) noexcept nogil:
    """Find out about guest memory that the kernel could not use: its file was cut shorter."""
    cdef uint32_t i
    for i in range(n):
        guard_touch(iov[i].iov_base, iov[i].iov_len)


cdef uint8_t *scratch_of(tap_side *side) noexcept nogil:
    if side.scratch is NULL:
        side.scratch = <uint8_t *>malloc(VIRTIO_FRAME_MAX)
    return side.scratch


cdef inline ssize_t write_pieces(tap_side *side, const iovec *iov, uint32_t pieces) noexcept nogil:
    """Write the header, iov[0], if there is one, and pieces after it; return -errno for none."""
    cdef ssize_t done
    if side.header:
        done = writev(side.fd, iov, <int>pieces + 1)
    else:
        done = writev(side.fd, iov + 1, <int>pieces)
    return -errno if done < 0 else done


cdef ssize_t write_gathered(tap_side *side, iovec *iov, const virtio_packet *packet, const iovec *segs) noexcept nogil:
    """Write a frame of more pieces than one writev takes: copied together first. Returns -errno for none."""
    cdef uint8_t *scratch = scratch_of(side)
    cdef size_t length = iov_size(segs + packet.first, packet.nsegs)
    if scratch is NULL:
        return -ENOMEM
    if length > VIRTIO_FRAME_MAX:
        return -EMSGSIZE
    iov_read_all(scratch, segs + packet.first, packet.nsegs)
    iov[1].iov_base = scratch
    iov[1].iov_len = length
    return write_pieces(side, iov, 1)


cdef ssize_t write_frame(tap_side *side, iovec *iov, const virtio_packet *packet, const iovec *segs) noexcept nogil:
    """Write a frame; iov has its header's in front, and PIECES in all. Returns -errno for none."""
    if packet.nsegs > PIECES - 1:
        return write_gathered(side, iov, packet, segs)
    memcpy(&iov[1], &segs[packet.first], packet.nsegs * sizeof(iovec))
    return write_pieces(side, iov, packet.nsegs)


cdef uint32_t tap_send(virtio_port *port, uint32_t queue, const virtio_packet *packets, uint32_t n, const iovec *segs,
                       virtio_turn *turn) noexcept nogil:
    cdef tap_side *side = &(<tap_side **>port.owner)[SEND][queue]
    cdef iovec iov[PIECES]
    cdef uint32_t i = 0
    cdef uint64_t size = 0
    cdef uint32_t sent = 0
    cdef ssize_t done
    iov[0].iov_len = side.header
    queue_lock(&side.lock)
    while i < n and (i == 0 or turn.left > 0):
        iov[0].iov_base = <void *>&packets[i].hdr
        done = -EBADFD if side.gone else write_frame(side, iov, &packets[i], segs)
        if done == -EINTR:
            continue
        if done == -EAGAIN:
            add_count(&side.counts.full, 1)
            break
        if done >= 0:
            sent += 1
            size += packets[i].len
        else:
            if done == -EBADFD:
                side.gone |= side.attached  # the interface was deleted
            elif done == -EFAULT:
                touch(&segs[packets[i].first], packets[i].nsegs)
            count_error(&side.counts, <int>-done)
        turn.left -= WRITE + virtio_work_bytes(packets[i].len)
        i += 1
    queue_unlock(&side.lock)
    add_count(&side.counts.packets, sent)
    add_count(&side.counts.bytes, size)
    return i


cdef bint deliver_copy(tap_side *side, virtio_sink *sink, const virtio_net_hdr *hdr, const iovec *room, uint32_t pieces,
                       uint32_t length, virtio_turn *turn) noexcept nogil:
    """Deliver the frame in room, which leaves more undone than its sink takes, so that the sink completes it.

    All of it, however much is left of the turn: the kernel does not take it back.
    """
    cdef uint8_t *scratch = scratch_of(side)
    cdef virtio_packet packet
    cdef virtio_turn whole_turn
    cdef bint taken
    cdef iovec whole
    if scratch is NULL or length > VIRTIO_FRAME_MAX:
        return False
    iov_head(scratch, room, pieces, 0, length)
    whole.iov_base = scratch
    whole.iov_len = length
    packet.hdr = hdr[0]
    packet.first = 0
    packet.nsegs = 1
    packet.len = length
    packet.done = 0
    whole_turn.left = WHOLE
    whole_turn.resume = 0
    taken = sink.deliver(sink, &packet, 1, &whole, &whole_turn) == 1
    turn.left -= WHOLE - whole_turn.left
    return taken


cdef void accept(tap_side *side, virtio_sink *sink, virtio_net_hdr *hdr, const iovec *room, uint32_t pieces,
                 uint32_t length, virtio_turn *turn) noexcept nogil:
    """Give the sink the frame that was read into its room."""
    hdr.num_buffers = 1
    if hdr.flags or hdr.gso_type:
        if (net_hdr_check(hdr, length, sink.offloads | VIRTIO_OFFLOAD_TO_DRIVER) != VIRTIO_NET_HDR_OK
                or net_hdr_needs(hdr) & (VIRTIO_OFFLOAD_CUT | VIRTIO_OFFLOAD_ECN) & ~sink.offloads):
            # The interface was told of the sink's offloads only after it queued this frame, or a NIC's LRO merged it
            # and says nothing of the checksum, or the header is wrong
            if net_hdr_check(hdr, length, ANY | VIRTIO_OFFLOAD_TO_DRIVER) != VIRTIO_NET_HDR_OK:
                count_error(&side.counts, EPROTO)
            elif deliver_copy(side, sink, hdr, room, pieces, length, turn):
                add_count(&side.counts.packets, 1)
                add_count(&side.counts.bytes, length)
            else:
                count_error(&side.counts, ENOMEM)
            return
    sink.commit(sink, hdr, length)
    add_count(&side.counts.packets, 1)
    add_count(&side.counts.bytes, length)


cdef uint32_t tap_receive(virtio_port *port, uint32_t queue, virtio_sink *sink, uint32_t limit,
                          virtio_turn *turn) noexcept nogil:
    cdef tap_side *side = &(<tap_side **>port.owner)[RECEIVE][queue]
    cdef iovec iov[PIECES]
    cdef virtio_net_hdr hdr
    cdef uint8_t beyond  # the byte after the room: what writes it does not fit
    cdef size_t room
    cdef ssize_t got
    cdef uint32_t taken = 0
    cdef uint32_t pieces
    iov[0].iov_base = &hdr
    iov[0].iov_len = side.header
    queue_lock(&side.lock)
    while taken < limit and not side.gone and turn.left > 0:
        pieces = sink.reserve(sink, &iov[1], PIECES - 2, turn)
        if pieces == 0:
            add_count(&side.counts.full, 1)
            break
        room = side.header + iov_size(&iov[1], pieces)
        iov[1 + pieces].iov_base = &beyond
        iov[1 + pieces].iov_len = 1
        memset(&hdr, 0, sizeof(hdr))
        if side.header:
            got = readv(side.fd, iov, <int>pieces + 2)
        else:
            got = readv(side.fd, &iov[1], <int>pieces + 1)
        if got < 0:
            if errno == EINTR:
                continue
            if errno == EBADFD:
                side.gone |= side.attached  # the interface was deleted
            elif errno == EAGAIN:
                turn.empty = 1
            else:
                count_error(&side.counts, errno)
                if errno == EFAULT:
                    touch(&iov[1], pieces)
            break
        taken += 1
        turn.left -= READ + virtio_work_bytes(<uint64_t>got)
        if <size_t>got > room:
            count_error(&side.counts, EMSGSIZE)
        elif <size_t>got <= side.header:
            count_error(&side.counts, EPROTO)
        else:
            accept(side, sink, &hdr, &iov[1], pieces, <uint32_t>(<size_t>got - side.header), turn)
    queue_unlock(&side.lock)
    return taken


cdef int open_fd(tap_side *side) noexcept nogil:
    """The descriptor to wait for, -1 if nothing will come."""
    cdef int fd = -1
    queue_lock(&side.lock)
    if side.attached and not side.gone:
        fd = side.fd
    queue_unlock(&side.lock)
    return fd


cdef bint tap_arm_send(virtio_port *port, uint32_t queue, virtio_wait *wait) noexcept nogil:
    cdef int fd = open_fd(&(<tap_side **>port.owner)[SEND][queue])
    if fd < 0:
        return True  # whatever is sent is dropped at once
    virtio_wait_fd(wait, fd, POLLOUT)
    return False


cdef bint tap_arm_receive(virtio_port *port, uint32_t queue, virtio_wait *wait) noexcept nogil:
    cdef int fd = open_fd(&(<tap_side **>port.owner)[RECEIVE][queue])
    if fd >= 0:
        virtio_wait_fd(wait, fd, POLLIN)
    return False


# ---- making it ----

def interface_request(name, flags):
    """struct ifreq with a name and flags."""
    return struct.pack("16sH22x", os.fsencode(name), flags)


def open_queue(name, flags):
    """Return (fd, name) of a new queue of an interface, which is made unless it is there."""
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ConfigError("no /dev/net/tun: load the kernel's tun module (modprobe tun)") from None
    try:
        made = fcntl.ioctl(fd, TUNSETIFF, interface_request(name, flags))
    except OSError:
        os.close(fd)
        raise
    return fd, os.fsdecode(made[:16].rstrip(b"\0"))


def open_queues(name, flags, queues):
    """Return (fds, name)."""
    fds = []
    try:
        while len(fds) < queues:
            try:
                fd, name = open_queue(name, flags)
            except OSError as error:
                # a persistent interface is either of one queue or of several for good
                if error.errno == errnos.EINVAL and not fds and not flags & IFF_MULTI_QUEUE:
                    flags |= IFF_MULTI_QUEUE
                    continue
                raise OSError(error.errno, f"TAP {name!r}, queue {len(fds)} of {queues}: {error.strerror}") from None
            fds.append(fd)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return fds, name


def query(fd):
    """Return (name, flags) of the interface behind fd; ConfigError unless it is a TAP's."""
    try:
        found = fcntl.ioctl(fd, TUNGETIFF, interface_request("", 0))
    except OSError as error:
        raise ConfigError(f"fd {fd} is not a TAP's: {error.strerror}") from None
    name, flags = struct.unpack("16sH22x", found)
    if not flags & IFF_TAP:
        raise ConfigError(f"fd {fd} is a TUN interface's: only TAP, with Ethernet headers, will do")
    return os.fsdecode(name.rstrip(b"\0")), flags


@cython.no_gc_clear  # the descriptors are closed in __dealloc__, which must still find them
cdef class Tap(Port):
    """A TAP interface of the Linux kernel: what is sent here, the kernel receives, and the other way round.

    ``Tap("tap0")`` makes the interface, or takes a persistent one of that name; ``Tap()`` lets the kernel choose a
    name; a name with "%d" gets a number. It is made in the network namespace of the calling thread. ``fd``, or ``fds``
    for several queues, are open ones of a TAP, as libvirt hands over: then name, header and number of queues are
    theirs; they are duplicated, and made non-blocking (which the originals share). They must be of IFF_NO_PI, which
    the kernel does not tell.

    ``queues`` queue pairs (1 to 256). ``header_size`` is that of the virtio_net_hdr before each frame between us and
    the kernel (10, 12, 20 or 24; by default 24, which tunnels use, where the kernel knows them, else 12); with
    ``vnet_header=False`` there is none, and no offload either. ``mtu`` sets the interface's.

    Raises OSError for what the kernel refuses (EPERM: needs CAP_NET_ADMIN; EBUSY: somebody else has the interface
    open), ConfigError for an fd that is no TAP's, and where there is no /dev/net/tun, ValueError for arguments out of
    range.

    A frame that the kernel refuses is dropped and counted under the name of its errno (EIO: the interface is down). A
    frame that is larger than the room for it counts as EMSGSIZE, a header that makes no sense as EPROTO.
    """

    def __cinit__(self):
        self.c.send = tap_send
        self.c.work = WRITE
        self.c.receive = tap_receive
        self.c.arm_send = tap_arm_send
        self.c.arm_receive = tap_arm_receive
        self._fds = ()

    cdef void free_locks(self) noexcept:
        cdef int direction
        cdef uint32_t i
        for direction in range(2):
            for i in range(0 if self._sides[direction] is NULL else self.c.queues):
                virtio_store32(&self._sides[direction][i].lock, 0)

    def __init__(self, name=None, *, fd=None, fds=None, int queues=1, header_size=None, bint vnet_header=True,
                 mtu=None):
        if self._fds:
            raise TypeError("TAP is open already")
        if header_size is not None and header_size not in SIZES:
            raise ValueError(f"header_size {header_size} is none of 10, 12, 20, 24")
        if not 1 <= queues <= 256:
            raise ValueError(f"queues {queues} is not within 1 to 256")
        if (name is not None) + (fd is not None) + (fds is not None) > 1:
            raise ValueError("give one of name, fd and fds")
        if fd is not None:
            fds = (fd,)
        if fds is None:
            self._create(name or "", queues, vnet_header)
        else:
            self._adopt(tuple(fds))
        try:
            self._set_up(header_size, fds is None, mtu)
        except BaseException:
            self.close()
            raise

    def _create(self, name, queues, vnet_header):
        if len(os.fsencode(name)) > 15:
            raise ValueError(f"interface name {name!r} has {len(os.fsencode(name))} bytes: limit 15")
        flags = IFF_TAP | IFF_NO_PI
        if vnet_header:
            flags |= IFF_VNET_HDR
        if queues > 1:
            flags |= IFF_MULTI_QUEUE
        fds, self.name = open_queues(name, flags, queues)
        self._fds = tuple(fds)

    def _adopt(self, fds):
        if not 1 <= len(fds) <= 256:
            raise ValueError(f"{len(fds)} fds: limit 1 to 256")
        found = {query(fd) for fd in fds}
        if len(found) > 1:
            raise ConfigError(f"fds of different interfaces, or with different flags: {sorted(found)}")
        self.name = found.pop()[0]
        own = []
        try:
            for fd in fds:
                mine = os.dup(fd)
                own.append(mine)
                os.set_blocking(mine, False)
        except BaseException:
            for fd in own:
                os.close(fd)
            raise
        self._fds = tuple(own)

    def _set_up(self, header_size, made, mtu):
        cdef int i, direction
        cdef int queues = len(self._fds)
        vnet_header = bool(query(self._fds[0])[1] & IFF_VNET_HDR)
        self.known_offloads = self._ask_kernel(ANY & ~VIRTIO_OFFLOAD_UFO) if vnet_header else 0
        if not vnet_header:
            self.header_size = 0
        elif made or header_size is not None:
            if header_size is None:
                header_size = 24 if self.known_offloads & VIRTIO_OFFLOAD_TUNNEL else 12
            fcntl.ioctl(self._fds[0], TUNSETVNETHDRSZ, struct.pack("i", header_size))
            self.header_size = header_size
        else:
            size, = struct.unpack("i", fcntl.ioctl(self._fds[0], TUNGETVNETHDRSZ, bytes(4)))
            if size not in SIZES:
                raise ConfigError(f"{self.name} has a header of {size} bytes: none of 10, 12, 20, 24")
            self.header_size = size
        if self.header_size < 24:
            self.known_offloads &= ~<uint32_t>(VIRTIO_OFFLOAD_TUNNEL | VIRTIO_OFFLOAD_TUNNEL_CSUM)
        self.receive_offloads(0, self.header_size)
        if mtu is not None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                fcntl.ioctl(control, SIOCSIFMTU, struct.pack("16si20x", os.fsencode(self.name), mtu))
        for direction in range(2):
            self._sides[direction] = <tap_side *>calloc(queues, sizeof(tap_side))
            if self._sides[direction] is NULL:
                raise MemoryError()
            for i in range(queues):
                self._sides[direction][i].fd = self._fds[i]
                self._sides[direction][i].header = self.header_size
                self._sides[direction][i].attached = 1
        self.c.owner = self._sides
        self.c.queues = queues

    def _ask_kernel(self, wanted):
        """Set offloads; return those that the kernel knows."""
        for step in (0, *STEPS):
            wanted &= ~step
            try:
                fcntl.ioctl(self._fds[0], TUNSETOFFLOAD, wanted)
            except OSError as error:
                if error.errno != errnos.EINVAL:
                    raise
            else:
                break
        return wanted

    def __dealloc__(self):
        cdef uint32_t i
        cdef int direction
        for direction in range(2):
            if self._sides[direction] is not NULL:
                for i in range(self.c.queues):
                    if direction == SEND and self._sides[SEND][i].fd >= 0:
                        close_fd(self._sides[SEND][i].fd)
                    free(self._sides[direction][i].scratch)
                free(self._sides[direction])

    def receive_offloads(self, uint32_t offloads, int header_size):
        """Let the kernel leave these undone in frames that it gives; what it does not know it does itself.

        ``granted_offloads`` says what it was. Any header size of the user's will do.
        """
        cdef uint32_t wanted = offloads & self.known_offloads
        if not self._fds or not self.header_size:
            return
        # what the kernel takes together only: if it refuses, it is not known for which of them
        if not (wanted & VIRTIO_OFFLOAD_USO4 and wanted & VIRTIO_OFFLOAD_USO6):
            wanted &= ~<uint32_t>(VIRTIO_OFFLOAD_USO4 | VIRTIO_OFFLOAD_USO6)
        if not wanted & (VIRTIO_OFFLOAD_TSO4 | VIRTIO_OFFLOAD_TSO6):
            wanted &= ~<uint32_t>(VIRTIO_OFFLOAD_ECN | VIRTIO_OFFLOAD_TUNNEL)
        if not wanted & VIRTIO_OFFLOAD_TUNNEL:
            wanted &= ~<uint32_t>VIRTIO_OFFLOAD_TUNNEL_CSUM
        self.granted_offloads = self._ask_kernel(wanted)
        # The kernel takes these however it is set, but tunnels only if it may send them too
        virtio_store32(
            &self.c.offloads,
            VIRTIO_OFFLOAD_CSUM | VIRTIO_OFFLOAD_TSO4 | VIRTIO_OFFLOAD_TSO6 | VIRTIO_OFFLOAD_ECN | VIRTIO_OFFLOAD_UFO
            | (self.known_offloads & (VIRTIO_OFFLOAD_USO4 | VIRTIO_OFFLOAD_USO6))
            | (self.granted_offloads & (VIRTIO_OFFLOAD_TUNNEL | VIRTIO_OFFLOAD_TUNNEL_CSUM)),
        )

    def set_queues(self, int pairs):
        """Let the kernel use the first ``pairs`` queues; ValueError unless that is 1 to ``queues``."""
        cdef int i
        if not 1 <= pairs <= <int>self.c.queues:
            raise ValueError(f"{pairs} queue pairs: limit 1 to {self.c.queues}")
        if not self._fds:
            return
        for i in range(len(self._fds)):
            if self._sides[SEND][i].attached == (i < pairs):
                continue
            request = interface_request("", IFF_ATTACH_QUEUE if i < pairs else IFF_DETACH_QUEUE)
            # detached from before the kernel does it until it has undone it: a worker that fails meanwhile must not
            # take the interface for deleted
            self._set_attached(i, False)
            try:
                fcntl.ioctl(self._fds[i], TUNSETQUEUE, request)
            except OSError:
                self._set_attached(i, i >= pairs)
                raise
            self._set_attached(i, i < pairs)

    cdef void _set_attached(self, int queue, bint attached) noexcept:
        cdef int direction
        with nogil:
            for direction in range(2):
                queue_lock(&self._sides[direction][queue].lock)
                self._sides[direction][queue].attached = attached
                queue_unlock(&self._sides[direction][queue].lock)

    @property
    def fds(self):
        """File descriptors, one a queue; they are the TAP's to close."""
        return self._fds

    def fileno(self):
        """Return the first queue's file descriptor; ValueError when it is closed."""
        if not self._fds:
            raise ValueError(f"TAP {self.name} is closed")
        return self._fds[0]

    def statistics(self):
        """Return the sums over all queues: send_packets, send_bytes, send_dropped, send_full, receive_...

        And, for each errno of a frame that was dropped, send_EIO and the like.
        """
        cdef uint32_t i
        cdef dict counts = {}
        if self.c.owner is not NULL:
            for i in range(self.c.queues):
                add_counts(counts, "send", &self._sides[SEND][i].counts)
                add_counts(counts, "receive", &self._sides[RECEIVE][i].counts)
        return counts

    def close(self):
        """Close it: an interface that is not persistent is gone then. What is sent from here on is dropped."""
        cdef uint32_t i
        cdef int direction
        fds, self._fds = self._fds, ()
        if self.c.owner is not NULL:
            with nogil:  # a worker's burst ends first: the number may be another file's soon
                for direction in range(2):
                    for i in range(self.c.queues):
                        queue_lock(&self._sides[direction][i].lock)
                        self._sides[direction][i].gone = 1
                        self._sides[direction][i].fd = -1
                        queue_unlock(&self._sides[direction][i].lock)
        for fd in fds:
            os.close(fd)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        state = f"{self.c.queues} queues" if self._fds else "closed"
        return f"<Tap {self.name}: {state}>"
