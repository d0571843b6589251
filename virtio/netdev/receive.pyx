"""The task that takes frames from a port into a guest's receive queue."""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from virtio._ring cimport device_disable_notification
from virtio.core.atomic cimport virtio_load32, virtio_store32
from virtio.core.counters cimport add_count, counted
from virtio.core.iov cimport iovec
from virtio.core.lock cimport queue_lock, queue_unlock, virtio_trylock
from virtio.event.notifier cimport virtio_bell, virtio_bell_ring
from virtio.event.worker cimport virtio_task, virtio_turn, virtio_wait
from virtio.memory.guest_memory cimport VIRTIO_REGIONS_MAX
from virtio.netdev.filter cimport FILTER_TABLE, net_filter
from virtio.netdev.rxq cimport (
    RX_CHAINS, RX_DROP_CLOSED, RX_NO_LIMIT, net_rx_task, rx_ask_for_room, rx_is_open, rx_refuse, rx_settle, rx_start,
)
from virtio.offload.net_hdr cimport (
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_F_RSC_INFO,
    VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM, VIRTIO_OFFLOAD_CSUM, VIRTIO_OFFLOAD_MRG, VIRTIO_OFFLOAD_RSC,
    VIRTIO_OFFLOAD_TO_DRIVER, VIRTIO_OFFLOAD_TUNNEL_CSUM, header_size_of, offloads_of,
)
from virtio.ports.port cimport VIRTIO_BURST, VIRTIO_FRAME_MAX, VIRTIO_FRAME_MIN
from virtio.virtqueue.structs cimport virtio_chain


cdef enum:
    ETHERNET = 14  # bytes of its header


cdef uint32_t task_poll(virtio_task *task, virtio_turn *turn) noexcept nogil:
    cdef net_rx *rx = (<net_rx_task *>task).rx
    cdef virtio_bell *bell = NULL
    cdef uint32_t done = 0, before
    if not virtio_trylock(&rx.q.lock):
        return 0
    while task.active and not rx.idle:
        rx.stalled = 0
        rx.turn = turn
        turn.resume = 0
        if rx.pending:  # the port may have no more
            if rx_is_open(rx):
                before = rx.waiting.done
                done += rx_settle(rx) or rx.waiting.done > before
            else:
                rx_refuse(rx, 0)
        if not rx.pending and not rx.draining:
            done += rx.port.receive(rx.port, rx.pair, &rx.sink, VIRTIO_BURST, turn)
        if rx.stalled != rx.blocked and rx.by_hand and not rx.stalled:
            device_disable_notification(rx.q)
        rx.blocked = rx.stalled
        if not (rx.by_hand and rx.blocked and rx_ask_for_room(rx)):
            break
    bell = rx.sink.flush(&rx.sink)
    queue_unlock(&rx.q.lock)
    if bell is not NULL:
        virtio_bell_ring(bell)
    return done


cdef bint task_arm(virtio_task *task, virtio_wait *wait) noexcept nogil:
    cdef net_rx *rx = (<net_rx_task *>task).rx
    cdef bint work = False
    if not virtio_trylock(&rx.q.lock):
        return True
    if task.active and not rx.idle:
        if rx.blocked:
            work = rx.sink.arm(&rx.sink, wait)
        elif not rx.draining:
            work = rx.port.arm_receive(rx.port, rx.pair, wait)
    queue_unlock(&rx.q.lock)
    return work


cdef void task_disarm(virtio_task *task) noexcept nogil:
    cdef net_rx *rx = (<net_rx_task *>task).rx
    queue_lock(&rx.q.lock)
    if task.active and not rx.idle:
        if rx.blocked:
            rx.sink.disarm(&rx.sink)
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
        queue.for_frames()
        rx.nsegs = max(<uint32_t>RX_CHAINS, queue.q.max_chain) + VIRTIO_REGIONS_MAX
        rx.chains = <virtio_chain *>calloc(RX_CHAINS, sizeof(virtio_chain))
        rx.segs = <iovec *>calloc(rx.nsegs, sizeof(iovec))
        rx.scratch = <uint8_t *>malloc(VIRTIO_FRAME_MAX)
        if rx.chains is NULL or rx.segs is NULL or rx.scratch is NULL:
            raise MemoryError()
        rx.header = header_size_of(features)
        rx.port, rx.pair, rx.by_hand = &port.c, pair, by_hand
        rx.kick, rx.call, rx.trouble = &kick.c, &self.relay.c.bell, &trouble.c
        rx_start(rx)
        rx.sink.frame_max = frame_max
        rx.task.rx = rx
        rx.task.task.poll, rx.task.task.arm, rx.task.task.disarm = task_poll, task_arm, task_disarm
        self.accept(features)
        self.lock = &queue.q.lock
        self.task = &rx.task.task
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
