"""The receive queue of a network device, as a sink; and the task that takes frames from a port into it."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from virtio._ring cimport device_disable_notification, device_enable_notification, device_needs_notification
from virtio.core.atomic cimport virtio_likely, virtio_load32, virtio_store32, virtio_unlikely
from virtio.core.counters cimport add_count, counted
from virtio.core.iov cimport iov_slice
from virtio.core.lock cimport queue_lock, queue_unlock, virtio_trylock
from virtio.event.notifier cimport virtio_bell_ring
from virtio.event.worker cimport VIRTIO_WORK_CHAIN, virtio_wait, virtio_wait_bell, virtio_work_bytes
from virtio.memory.guest_memory cimport VIRTIO_REGIONS_MAX
from virtio.netdev.filter cimport FILTER_PROMISC, FILTER_TABLE
from virtio.netdev.rx_buffers cimport look, pieces_of, put_back, refill, room_of, stall, take
from virtio.netdev.rx_frame cimport (
    beyond, is_exact_there, is_open, is_wanted, place, put_aside, refuse, settle, write_header,
)
from virtio.offload.inet_checksum cimport store_sum16, sum_copy, sum_finish
from virtio.offload.mtu cimport MTU_TAGS, exceeds
from virtio.offload.net_hdr cimport (
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_F_RSC_INFO,
    VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_OFFLOAD_CSUM, VIRTIO_OFFLOAD_MRG,
    VIRTIO_OFFLOAD_RSC, VIRTIO_OFFLOAD_TO_DRIVER, VIRTIO_OFFLOAD_TUNNEL_CSUM, header_size_of, offloads_of,
    virtio_net_hdr,
)
from virtio.offload.pieces cimport complete
from virtio.offload.protocols cimport ETHERNET
from virtio.ports.port cimport VIRTIO_BURST, VIRTIO_FRAME_MAX, VIRTIO_FRAME_MIN, VIRTIO_PACKET_PIECES
from virtio.ports.software_offload cimport net_hdr_needs
from virtio.virtqueue.fastpath cimport run_ahead, run_commit, run_keep, run_next, run_start, virtio_run
from virtio.virtqueue.structs cimport VIRTIO_DESC_F_WRITE, VIRTIO_FAULT_NONE


cdef extern from "virtio/net_copy.h" nogil:
    void copy_frame "virtio_copy_frame"(uint8_t *to, const uint8_t *p, size_t n)
    void put_net_hdr "virtio_put_net_hdr"(uint8_t *to, const virtio_net_hdr *hdr, uint16_t num_buffers, uint32_t size)
    void put_no_hdr "virtio_put_no_hdr"(uint8_t *to, uint32_t size)
    uint16_t net_hdr_says "virtio_net_hdr_says"(const virtio_net_hdr *hdr)


cdef enum:
    RESERVES = 3  # frames that are popped for when a port reads one: it is not alone


# ---- runs of plain frames ----

cdef inline void copy_complete(uint8_t *to, const uint8_t *p, uint32_t length,
                               const virtio_net_hdr *hdr) noexcept nogil:
    """Copy a frame and complete its checksum in one pass; the field is within the frame."""
    cdef uint32_t start = hdr.csum_start
    memcpy(to, p, start)
    store_sum16(to + start + hdr.csum_offset, sum_finish(sum_copy(to + start, p + start, length - start)))


cdef inline bint is_plain(const virtio_packet *packet) noexcept nogil:
    """Say whether a frame is in one piece, and not to be cut."""
    return packet.nsegs == 1 and net_hdr_says(&packet.hdr) <= 0xff


cdef inline bint write_plain(net_rx *rx, uint8_t *to, const virtio_packet *packet, const uint8_t *p,
                             uint32_t header) noexcept nogil:
    """Write a plain frame and its header; they fit. False: its checksum is to be completed, and cannot be."""
    cdef uint32_t says = net_hdr_says(&packet.hdr)
    if virtio_likely(says == 0):
        put_no_hdr(to, header)
    elif says & ~rx.flags == 0:
        put_net_hdr(to, &packet.hdr, 1, header)
        add_count(&rx.csum, says & VIRTIO_NET_HDR_F_NEEDS_CSUM)
    elif says & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        if <uint32_t>packet.hdr.csum_start + packet.hdr.csum_offset + 2 > packet.len:
            return False
        put_no_hdr(to, header)
        copy_complete(to + header, p, packet.len, &packet.hdr)
        add_count(&rx.checksums, 1)
        return True
    else:
        put_no_hdr(to, header)
    copy_frame(to + header, p, packet.len)
    return True


cdef inline uint32_t deliver_run(net_rx *rx, const virtio_packet *packets, uint32_t n, const iovec *segs,
                                 bint packed) noexcept nogil:
    """Put plain frames, none of them over the MTU, into plain chains, up to the first that is not; return how many."""
    cdef virtio_run run
    cdef const virtio_packet *packet = packets
    cdef uint32_t header = rx.header, total
    cdef uint64_t size = 0
    if run_start(&run, rx.q, min(n, <uint32_t>VIRTIO_BURST), packed) == 0:
        return 0
    run_ahead(&run, True, packed)
    while run_next(&run, VIRTIO_DESC_F_WRITE, packed):
        total = header + packet.len
        if virtio_unlikely(total > run.length or not is_plain(packet)):
            break
        if virtio_unlikely(not write_plain(rx, <uint8_t *>run.host, packet,
                                           <const uint8_t *>segs[packet.first].iov_base, header)):
            break
        run_keep(&run, rx.entries, total, packed)
        size += packet.len
        packet += 1
    run_commit(&run, rx.entries, run.taken, False, packed)
    rx.turn.left -= <int64_t>run.taken * VIRTIO_WORK_CHAIN + virtio_work_bytes(size)
    rx.published |= run.taken != 0
    add_count(&rx.frames, run.taken)
    add_count(&rx.bytes, size)
    return run.taken


cdef inline uint32_t within_mtu(const net_rx *rx, const virtio_packet *packets, uint32_t n) noexcept nogil:
    """Return how many frames there are before the first over the MTU."""
    cdef uint32_t i
    if rx.limit == RX_NO_LIMIT:
        return n
    for i in range(n):
        if packets[i].len > rx.limit:
            return i
    return n


# ---- the sink ----

cdef uint32_t rx_deliver(virtio_sink *sink, const virtio_packet *packets, uint32_t n, const iovec *segs,
                         virtio_turn *turn) noexcept nogil:
    cdef net_rx *rx = <net_rx *>sink
    cdef const virtio_packet *packet
    cdef const iovec *source
    cdef bint all = rx.filter.modes & FILTER_PROMISC
    cdef uint32_t i = 0
    rx.turn = turn
    if virtio_unlikely(not is_open(rx)):
        return refuse(rx, n)
    if virtio_unlikely(rx.pending) and not settle(rx):
        return 0
    put_back(rx)
    if all:
        i = within_mtu(rx, packets, n)
        i = deliver_run(rx, packets, i, segs, True) if rx.q.packed else deliver_run(rx, packets, i, segs, False)
    while i < n and (i == 0 or turn.left > 0):
        packet = packets + i
        source = segs + packet.first
        if not all and not is_wanted(rx, source, packet.nsegs, 0):
            add_count(&rx.filtered, 1)
            turn.left -= VIRTIO_WORK_CHAIN
        elif not place(rx, packet, source):
            break
        i += 1
    if virtio_unlikely(i < n and not is_open(rx)):
        turn.resume = 0  # of a frame that is dropped
        return i + refuse(rx, n - i)
    return i


cdef uint32_t rx_reserve(virtio_sink *sink, iovec *to, uint32_t limit, virtio_turn *turn) noexcept nogil:
    """Give room for a frame: as much of it as there is in the guest's buffers, the rest in scratch."""
    cdef net_rx *rx = <net_rx *>sink
    cdef size_t left = sink.frame_max
    cdef uint64_t have = 0
    cdef uint32_t n = 0
    rx.reserved = 0
    rx.room = 0
    rx.turn = turn
    if not rx.task.active:
        return 0
    if is_open(rx):
        if not settle(rx):
            return 0
        rx.reserved = look(rx, rx.header + (left if rx.mergeable else VIRTIO_FRAME_MIN), RESERVES, &have)
        if rx.reserved == 0 and rx.q.fault.code == VIRTIO_FAULT_NONE:
            stall(rx, rx.header)
            return 0
    if rx.reserved:
        n = iov_slice(to, limit - 1, room_of(rx), pieces_of(rx, rx.reserved), rx.header, &left)
        rx.room = sink.frame_max - left
    if left:
        to[n].iov_base = rx.scratch
        to[n].iov_len = left
        n += 1
    return n


cdef void rx_commit(virtio_sink *sink, const virtio_net_hdr *hdr, uint32_t length) noexcept nogil:
    cdef net_rx *rx = <net_rx *>sink
    cdef uint32_t n = 0, npieces, undone = beyond(rx, hdr, net_hdr_needs(hdr))
    cdef bint cut = False
    cdef uint64_t total = rx.header + <uint64_t>length, have = 0
    cdef iovec *to
    if rx.reserved == 0:
        refuse(rx, 1)
        return
    if hdr.gso_type != VIRTIO_NET_HDR_GSO_NONE:
        cut = undone or not is_exact_there(rx, hdr, length)
    if length > rx.room and not rx.mergeable and not cut:
        add_count(&rx.dropped[RX_DROP_MTU if length > <uint64_t>rx.limit + MTU_TAGS else RX_DROP_TOO_LARGE], 1)
        return
    if length > rx.room or cut:
        put_aside(rx, hdr, length)
        return
    to = room_of(rx)
    npieces = pieces_of(rx, rx.reserved)
    if not rx.filter.modes & FILTER_PROMISC and not is_wanted(rx, to, npieces, rx.header):
        add_count(&rx.filtered, 1)
        return
    if virtio_unlikely(length > rx.limit) and exceeds(rx.limit, hdr, length, to, rx.header):
        add_count(&rx.dropped[RX_DROP_MTU], 1)
        return
    if undone:
        if not complete(to, npieces, rx.header, hdr, length):
            add_count(&rx.dropped[RX_DROP_CHECKSUM], 1)
            return
        add_count(&rx.checksums, 1)
    while have < total:
        have += rx.chains[rx.used + n].writable
        n += 1
    write_header(rx, to, hdr, length, n)
    take(rx, n, total)


cdef virtio_bell *rx_flush(virtio_sink *sink) noexcept nogil:
    cdef net_rx *rx = <net_rx *>sink
    put_back(rx)
    if virtio_unlikely(rx.q.fault.code != VIRTIO_FAULT_NONE and not rx.troubled):
        rx.troubled = 1
        return rx.trouble
    if not rx.published:
        return NULL
    rx.published = 0
    return rx.call if device_needs_notification(rx.q) else NULL


cdef bint ask_for_room(net_rx *rx) noexcept nogil:
    """Turn kicks on; say whether there is room already for the frame that found none.

    Chains that are too few were announced before: the kick is to come for the next ones, so it is asked for behind
    them.
    """
    cdef uint64_t have = 0
    cdef bint more
    cdef uint32_t i
    cdef virtio_turn turn  # of no task: once before a sleep
    rx.turn = &turn
    turn.left = turn.resume = 0
    refill(rx, RX_CHAINS)
    for i in range(rx.popped):
        have += rx.chains[i].writable
    more = device_enable_notification(rx.q)
    put_back(rx)
    return more or have >= (rx.wanted if rx.mergeable else 1) or rx.q.fault.code != VIRTIO_FAULT_NONE


cdef bint rx_arm(virtio_sink *sink, virtio_wait *wait) noexcept nogil:
    cdef net_rx *rx = <net_rx *>sink
    if not rx.task.active:
        wait.full = 1  # it will be, or the port will be told that it is gone
        return False
    if rx.closed or ask_for_room(rx):
        return True
    return virtio_wait_bell(wait, rx.kick)


cdef void rx_disarm(virtio_sink *sink) noexcept nogil:
    cdef net_rx *rx = <net_rx *>sink
    if rx.task.active:
        device_disable_notification(rx.q)


# ---- the task ----

cdef inline net_rx *rx_of(virtio_task *task) noexcept nogil:
    """Return the queue of this task, which lies right behind the sink."""
    return <net_rx *>(<virtio_sink *>task - 1)


cdef uint32_t task_poll(virtio_task *task, virtio_turn *turn) noexcept nogil:
    cdef net_rx *rx = rx_of(task)
    cdef virtio_bell *bell = NULL
    cdef uint32_t done = 0, before
    if not virtio_trylock(&rx.q.lock):
        return 0
    while task.active and not rx.idle:
        rx.stalled = 0
        rx.turn = turn
        turn.resume = 0
        if rx.pending:  # the port may have no more
            if is_open(rx):
                before = rx.waiting.done
                done += settle(rx) or rx.waiting.done > before
            else:
                refuse(rx, 0)
        if not rx.pending and not rx.draining:
            done += rx.port.receive(rx.port, rx.pair, &rx.sink, VIRTIO_BURST, turn)
        if rx.stalled != rx.blocked and rx.by_hand and not rx.stalled:
            device_disable_notification(rx.q)
        rx.blocked = rx.stalled
        if not (rx.by_hand and rx.blocked and ask_for_room(rx)):
            break
    bell = rx_flush(&rx.sink)
    queue_unlock(&rx.q.lock)
    if bell is not NULL:
        virtio_bell_ring(bell)
    return done


cdef bint task_arm(virtio_task *task, virtio_wait *wait) noexcept nogil:
    cdef net_rx *rx = rx_of(task)
    cdef bint work = False
    if not virtio_trylock(&rx.q.lock):
        return True
    if task.active and not rx.idle:
        if rx.blocked:
            work = rx_arm(&rx.sink, wait)
        elif not rx.draining:
            work = rx.port.arm_receive(rx.port, rx.pair, wait)
    queue_unlock(&rx.q.lock)
    return work


cdef void task_disarm(virtio_task *task) noexcept nogil:
    cdef net_rx *rx = rx_of(task)
    queue_lock(&rx.q.lock)
    if task.active and not rx.idle:
        if rx.blocked:
            rx_disarm(&rx.sink)
        elif rx.port.disarm is not NULL:
            rx.port.disarm(rx.port, rx.pair)
    queue_unlock(&rx.q.lock)


# ---- the Python face ----

_DROPS = ("closed", "broken", "too_large", "segment", "checksum", "mtu")


def guest_offloads(features):
    """Return what the GUEST_* bits among features allow a frame to the guest to leave undone: VIRTIO_OFFLOAD_* bits."""
    return offloads_of(features, True) & ~<uint32_t>(VIRTIO_OFFLOAD_TO_DRIVER | VIRTIO_OFFLOAD_MRG)


cdef class NetReceive(Task):
    """The task that takes frames from a port and puts them into a guest's receive queue, of queue pair ``pair``.

    ``features`` are the negotiated ones: they say how large the header is, whether buffers are mergeable, and what the
    guest accepts undone. ``kick`` is rung when the guest has added buffers, ``call`` by us to interrupt it, ``trouble``
    once when it breaks the queue. ``frame_max`` is the largest frame that the port is asked for. ``by_hand``: no Worker
    runs it.

    It starts paused, and with kicks off: they are of use only while it waits for buffers. Methods are called by one
    thread at a time, the device's; the bursts run on any.
    """

    def __init__(self, DeviceQueue queue not None, Port port not None, int pair, features, *, Bell kick not None,
                 Bell call not None, Bell trouble not None, uint32_t frame_max=VIRTIO_FRAME_MAX, bint by_hand=False):
        cdef net_rx *rx = &self.rx
        if self.task is not NULL:
            raise TypeError("receive task is initialised already")
        if not VIRTIO_FRAME_MIN <= frame_max <= VIRTIO_FRAME_MAX:
            raise ValueError(f"frame_max {frame_max} out of range ({VIRTIO_FRAME_MIN} to {VIRTIO_FRAME_MAX})")
        self.queue, self.port = queue, port
        self.kick_bell, self.relay, self.trouble_bell = kick, Relay(call), trouble
        rx.q = queue.q
        queue.limit_walk(2 * VIRTIO_PACKET_PIECES)  # more than a frame has: a longer chain is known by that
        rx.nsegs = max(<uint32_t>RX_CHAINS, queue.q.max_chain) + VIRTIO_REGIONS_MAX
        rx.chains = <virtio_chain *>calloc(RX_CHAINS, sizeof(virtio_chain))
        rx.segs = <iovec *>calloc(rx.nsegs, sizeof(iovec))
        rx.scratch = <uint8_t *>malloc(VIRTIO_FRAME_MAX)
        if rx.chains is NULL or rx.segs is NULL or rx.scratch is NULL:
            raise MemoryError()
        rx.header = header_size_of(features)
        rx.port, rx.pair, rx.by_hand = &port.c, pair, by_hand
        rx.kick, rx.call, rx.trouble = &kick.c, &self.relay.c.bell, &trouble.c
        rx.filter.modes = FILTER_PROMISC
        rx.size_seen = 1526
        rx.limit = RX_NO_LIMIT
        rx.sink.lock, rx.sink.frame_max = &queue.q.lock, frame_max
        rx.sink.deliver, rx.sink.reserve, rx.sink.commit = rx_deliver, rx_reserve, rx_commit
        rx.sink.flush, rx.sink.arm, rx.sink.disarm = rx_flush, rx_arm, rx_disarm
        rx.task.poll, rx.task.arm, rx.task.disarm = task_poll, task_arm, task_disarm
        self.accept(features)
        self.lock = &queue.q.lock
        self.task = &rx.task
        queue.memory.hold_last(queue)
        queue.disable_notification()

    def __dealloc__(self):
        free(self.rx.chains)
        free(self.rx.segs)
        free(self.rx.scratch)

    def accept(self, features):
        """Be told what the guest accepts undone: the GUEST_* bits among features."""
        cdef uint32_t offloads = offloads_of(features, True)
        cdef uint32_t flags = 0
        if offloads & VIRTIO_OFFLOAD_CSUM:
            flags |= VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID
        if offloads & VIRTIO_OFFLOAD_RSC:
            flags |= VIRTIO_NET_HDR_F_RSC_INFO
        if offloads & VIRTIO_OFFLOAD_TUNNEL_CSUM:
            flags |= VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM
        with nogil:  # until it is free again: the GIL is not waited for with a lock that a worker may want
            queue_lock(self.rx.sink.lock)
            self.rx.flags = flags
            self.rx.mergeable = offloads & VIRTIO_OFFLOAD_MRG != 0
            virtio_store32(&self.rx.sink.offloads, offloads)
            queue_unlock(self.rx.sink.lock)

    @property
    def offloads(self):
        """What the guest accepts undone: VIRTIO_OFFLOAD_* bits."""
        return virtio_load32(&self.rx.sink.offloads)

    def set_call(self, Bell bell not None):
        """Interrupt the guest by this bell from now on."""
        self.relay.aim(bell)

    def close(self, bint closed, *, bint idle=False):
        """Drop frames from now on, or no longer: the link is down, or the pair is not in use.

        ``idle``: and ask the port for none; those that come of themselves are dropped.
        """
        with nogil:
            queue_lock(self.rx.sink.lock)
            self.rx.closed = closed
            self.rx.idle = closed and idle
            queue_unlock(self.rx.sink.lock)
        if self.worker is not None:
            self.worker.wake()

    def limit(self, mtu):
        """Drop frames that are longer than this MTU, and a frame to be cut if its segments are; None: none.

        The Ethernet header and VLAN tags count on top.
        """
        cdef uint32_t limit = RX_NO_LIMIT if mtu is None else mtu + ETHERNET
        with nogil:
            queue_lock(self.rx.sink.lock)
            self.rx.limit = limit
            queue_unlock(self.rx.sink.lock)

    def drain(self):
        """Ask the port for no more; return whether a frame waits that was read of it, and finds no room yet."""
        cdef bint pending
        with nogil:
            queue_lock(self.rx.sink.lock)
            self.rx.draining = 1
            pending = self.rx.pending
            queue_unlock(self.rx.sink.lock)
        return pending

    def abandon(self):
        """Drop the frame that waits for room, if there is one: the queue ends."""
        cdef net_rx *rx = &self.rx
        with nogil:
            queue_lock(rx.sink.lock)
            add_count(&rx.dropped[RX_DROP_CLOSED], rx.pending)
            rx.pending = 0
            queue_unlock(rx.sink.lock)

    def filter(self, *, int modes, bytes mac, unicast=(), multicast=(), vlans=None):
        """Filter frames: ``modes`` are FILTER_* bits, addresses are 6 bytes, ``vlans`` 512 bytes of bits or None."""
        cdef net_filter f
        cdef bytes address
        cdef uint32_t i = 0
        memset(&f, 0, sizeof(f))
        if len(unicast) + len(multicast) > FILTER_TABLE:
            raise ValueError(f"{len(unicast) + len(multicast)} addresses (limit {FILTER_TABLE})")
        f.modes = modes
        f.mac = int.from_bytes(mac, "little")
        f.nuni, f.nmulti = len(unicast), len(multicast)
        for address in (*unicast, *multicast):
            f.table[i] = int.from_bytes(address, "little")
            i += 1
        if vlans is not None:
            f.vlan_filter = 1
            for i in range(64):
                f.vlans[i] = int.from_bytes(vlans[8 * i:8 * i + 8], "little")
        with nogil:
            queue_lock(self.rx.sink.lock)
            self.rx.filter = f
            queue_unlock(self.rx.sink.lock)

    def connect(self):
        """Give the port the queue: ports that deliver of themselves do so from now on."""
        self.port.connect(self.rx.pair, &self.rx.sink, self)
        self.connected = True

    def disconnect(self):
        """Take the queue from the port: it is not touched once this returns."""
        if self.connected:
            self.connected = False
            self.port.connect(self.rx.pair, NULL, None)

    def statistics(self):
        """Return what was counted since it was made."""
        cdef net_rx *rx = &self.rx
        return {
            "frames": counted(&rx.frames), "bytes": counted(&rx.bytes), "merged": counted(&rx.merged),
            "csum": counted(&rx.csum), "gso": counted(&rx.gso),
            "gso_bytes": counted(&rx.gso_bytes), "cut": counted(&rx.cut), "checksums": counted(&rx.checksums),
            "filtered": counted(&rx.filtered), "bad_chains": counted(&rx.bad_chains), "stalls": counted(&rx.stalls),
            "dropped": {name: counted(&rx.dropped[i]) for i, name in enumerate(_DROPS) if counted(&rx.dropped[i])},
        }
