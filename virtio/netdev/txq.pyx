"""The transmit queue of a network device."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from virtio._ring cimport (
    device_add_used_burst, device_disable_notification, device_enable_notification, device_navail,
    device_needs_notification, device_pop_burst, device_unpop_burst,
)
from virtio.core.atomic cimport virtio_fetch64, virtio_likely, virtio_put64, virtio_unlikely
from virtio.core.counters cimport add_count, counted
from virtio.core.iov cimport iov_take
from virtio.core.lock cimport queue_lock, queue_unlock, virtio_trylock
from virtio.event.notifier cimport virtio_bell_ring
from virtio.event.worker cimport (
    VIRTIO_WORK_BYTES, VIRTIO_WORK_CHAIN, VIRTIO_WORK_PIECE, VIRTIO_WORK_TURN, virtio_turn, virtio_wait,
    virtio_wait_bell,
)
from virtio.memory.guest_memory cimport VIRTIO_REGIONS_MAX
from virtio.offload.net_hdr cimport (
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_OK, header_size_of, net_hdr_check,
    net_hdr_load, offloads_of, virtio_net_hdr,
)
from virtio.ports.port cimport (
    VIRTIO_FRAME_MAX, VIRTIO_FRAME_MIN, VIRTIO_PACKET_PIECES, port_flush, port_offloads, port_ring, turn_is_full,
    turn_resume,
)
from virtio.ports.software_offload cimport execute_send, executor_figures, executor_free, executor_new, packet_needs
from virtio.virtqueue.chain_walk cimport put_piece
from virtio.virtqueue.fastpath cimport (
    run_ahead, run_commit, run_is_over, run_keep, run_next, run_start, virtio_run,
)
from virtio.virtqueue.structs cimport VIRTIO_FAULT_NONE, VIRTIO_Q_IN_ORDER, VIRTIO_Q_READ_TABLES
from virtio.offload.net_hdr import NetHeaderFault


cdef extern from "virtio/net_copy.h" nogil:
    uint16_t net_hdr_says "virtio_net_hdr_says"(const virtio_net_hdr *hdr)


cdef enum:
    BURST = 64  # VIRTIO_BURST: the size of the arrays
    SMALL = 2048  # a burst of frames of up to so many bytes is not cut by these: it is paid for later
    HOLD = 64  # used descriptors; and polls without work


cdef int load(net_tx *tx, const virtio_chain *chain, virtio_packet *packet) noexcept nogil:
    """Make a packet of a chain; return why it is to be dropped, or 0."""
    cdef uint32_t size = tx.header, empty
    cdef iovec *seg = tx.segs + chain.first
    cdef uint8_t bytes[24]
    if virtio_unlikely(chain.nwritable != 0):
        return TX_DROP_WRITABLE
    if virtio_unlikely(chain.readable < size + VIRTIO_FRAME_MIN):
        return TX_DROP_SHORT
    packet.len = chain.readable - size
    if virtio_unlikely(packet.len > VIRTIO_FRAME_MAX):
        return TX_DROP_LONG
    packet.first = chain.first
    packet.nsegs = chain.nreadable
    if virtio_likely(seg.iov_len > size):
        net_hdr_load(&packet.hdr, <const uint8_t *>seg.iov_base, size)
        seg.iov_base = <uint8_t *>seg.iov_base + size
        seg.iov_len -= size
    else:
        empty = iov_take(bytes, seg, size)
        packet.first += empty
        packet.nsegs -= empty
        net_hdr_load(&packet.hdr, bytes, size)
    if virtio_unlikely(packet.nsegs > VIRTIO_PACKET_PIECES):
        return TX_DROP_PIECES
    if virtio_likely(net_hdr_says(&packet.hdr) == 0):
        return VIRTIO_NET_HDR_OK
    return net_hdr_check(&packet.hdr, packet.len, tx.offloads)


cdef uint32_t send(net_tx *tx, uint32_t n, uint64_t size, bint says, virtio_turn *turn) noexcept nogil:
    """Send the first n packets, of `size` bytes; return how many were taken. says: a header of them says something."""
    cdef uint32_t i, taken, needs = 0
    cdef uint32_t before = tx.resume
    cdef const virtio_packet *packet
    for i in range(n if says else 0):
        needs |= packet_needs(&tx.packets[i], tx.segs + tx.packets[i].first)
    tx.packets[0].done = before
    turn.resume = 0
    if virtio_likely(needs & ~port_offloads(tx.port) == 0):
        taken = tx.port.send(tx.port, tx.pair, tx.packets, n, tx.segs, turn)
    else:
        taken = execute_send(tx.executor, tx.port, tx.pair, tx.packets, n, tx.segs, turn)
    tx.resume = turn_resume(turn, taken, before)
    add_count(&tx.frames, taken)
    if virtio_unlikely(taken < n):
        if turn_is_full(turn, taken, before):
            add_count(&tx.stalls, 1)
            tx.full = 1
        else:
            tx.width = max(taken, <uint32_t>1)
        size = 0
        for i in range(taken):
            size += tx.packets[i].len
    elif virtio_unlikely(tx.width < BURST):
        tx.width = min(<uint32_t>BURST, 2 * tx.width)
    turn.left -= <int64_t>taken * VIRTIO_WORK_CHAIN
    add_count(&tx.bytes, size)
    for i in range(taken if says else 0):
        packet = &tx.packets[i]
        if net_hdr_says(&packet.hdr):
            add_count(&tx.csum, packet.hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
            add_count(&tx.gso, packet.hdr.gso_type != VIRTIO_NET_HDR_GSO_NONE)
            add_count(&tx.gso_bytes, packet.len if packet.hdr.gso_type != VIRTIO_NET_HDR_GSO_NONE else 0)
    return taken


cdef uint32_t send_chains(net_tx *tx, uint32_t n, virtio_turn *turn) noexcept nogil:
    """Send the n chains popped; return how many of them are done."""
    cdef uint32_t i, count = 0, taken, done
    cdef uint64_t size = 0
    cdef uint64_t room = <uint64_t>turn.left * VIRTIO_WORK_BYTES
    cdef bint says = False
    for i in range(n):
        if virtio_unlikely(size >= room):
            tx.width = n = i
            break
        tx.why[i] = <uint8_t>load(tx, &tx.chains[i], &tx.packets[count])
        if virtio_unlikely(tx.why[i]):
            continue
        says |= net_hdr_says(&tx.packets[count].hdr) != 0
        size += tx.packets[count].len
        tx.chain_of[count] = i
        count += 1
    done = n
    if count == 0 or tx.chain_of[0]:
        tx.resume = 0  # what was cut in part is not there any more
    if count:
        taken = send(tx, count, size, says, turn)
        if taken < count:
            done = tx.chain_of[taken]
    if virtio_unlikely(count < n):
        for i in range(done):
            add_count(&tx.dropped[tx.why[i]], tx.why[i] != 0)
    return done


cdef inline uint32_t width_of(const net_tx *tx, const virtio_turn *turn) noexcept nogil:
    """Return how many frames a burst is to have at most: a turn may not take more."""
    cdef uint64_t frames
    if virtio_likely(turn.left >= <int64_t>BURST * (tx.port.work + VIRTIO_WORK_CHAIN)):
        return tx.width
    frames = 1 + <uint64_t>turn.left // (tx.port.work + VIRTIO_WORK_CHAIN)
    return <uint32_t>frames if frames < tx.width else tx.width


cdef uint32_t burst_chains(net_tx *tx, virtio_turn *turn) noexcept nogil:
    """Pop, send, give back; return how many chains are done."""
    cdef virtio_device_queue *q = tx.q
    cdef uint32_t width = width_of(tx, turn), done
    cdef uint32_t n = device_pop_burst(q, tx.chains, width, tx.segs, tx.nsegs)
    cdef const virtio_chain *last
    cdef uint32_t pieces
    if n == 0:
        return 0
    turn.empty = n < width and not device_navail(q)
    last = &tx.chains[n - 1]
    pieces = last.first + last.nreadable + last.nwritable + tx.chains[0].slots
    if virtio_unlikely(tx.closed):
        add_count(&tx.dropped[TX_DROP_CLOSED], n)
        tx.resume = 0
        done = n
    else:
        done = send_chains(tx, n, turn)
    # all that were walked, and those that were dropped; behind the port, which is to be given what is left for it
    turn.left -= <int64_t>pieces * VIRTIO_WORK_PIECE + <int64_t>n * VIRTIO_WORK_CHAIN
    device_add_used_burst(q, tx.chains, done)
    if virtio_unlikely(done < n):
        device_unpop_burst(q, tx.chains + done, n - done)
    return done


cdef inline uint32_t burst_run(net_tx *tx, virtio_turn *turn, bint packed) noexcept nogil:
    """The same of plain chains with frames that may be sent, up to the first that is not such a one."""
    cdef virtio_run run
    cdef virtio_packet *packet = tx.packets
    cdef iovec *seg = tx.segs
    cdef uint32_t size = tx.header, width = width_of(tx, turn), done, n
    cdef int64_t room = turn.left * VIRTIO_WORK_BYTES, bytes = 0
    cdef bint says = False
    if run_start(&run, tx.q, width, packed) == 0:
        return 0
    run_ahead(&run, False, packed)
    while run_next(&run, 0, packed):
        if virtio_unlikely(run.length < size + VIRTIO_FRAME_MIN or run.length - size > VIRTIO_FRAME_MAX):
            break
        packet.len = run.length - size
        if virtio_likely(virtio_fetch64(<const void *>run.host) & 0xffff == 0):  # flags and gso_type
            virtio_put64(&packet.hdr, 0)  # no other field means anything then
            virtio_put64(&packet.hdr.csum_offset, 0)
            virtio_put64(&packet.hdr.hash_report, 0)
        else:
            net_hdr_load(&packet.hdr, <const uint8_t *>run.host, size)
            if net_hdr_says(&packet.hdr) and net_hdr_check(&packet.hdr, packet.len, tx.offloads):
                break
            says = True
        virtio_put64(&packet.first, run.taken | <uint64_t>1 << 32)
        put_piece(seg, run.host + size, packet.len)
        run_keep(&run, tx.entries, 0, packed)
        bytes += packet.len
        packet += 1
        seg += 1
        if virtio_unlikely(run.length > SMALL and bytes >= room):
            break
    n = run.taken
    if n == 0:
        return 0
    turn.empty = n < width and run_is_over(&run, packed)
    done = send(tx, n, <uint64_t>bytes, says, turn)
    run_commit(&run, tx.entries, done, tx.q.flags & VIRTIO_Q_IN_ORDER != 0, packed)
    return done


cdef uint32_t burst(net_tx *tx, virtio_turn *turn) noexcept nogil:
    """Do a burst; return how many chains are done, or 1 for a part of the next."""
    cdef uint32_t done = 0
    cdef uint32_t before = tx.resume
    tx.full = 0
    if virtio_likely(not tx.closed):
        done = burst_run(tx, turn, True) if tx.q.packed else burst_run(tx, turn, False)
    if done == 0 and not tx.full and tx.resume == before:
        done = burst_chains(tx, turn)
    return done if done else tx.resume > before


cdef inline virtio_bell *call_due(net_tx *tx, uint32_t done) noexcept nogil:
    """Return the bell to ring once the lock is free, or NULL: an interrupt for chains given back waits for more."""
    tx.idle = 0 if done else tx.idle + 1
    if tx.q.pending == 0 or (tx.q.pending < tx.hold and tx.idle < HOLD):
        return NULL
    return tx.call if device_needs_notification(tx.q) else NULL


cdef uint32_t task_poll(virtio_task *task, virtio_turn *turn) noexcept nogil:
    cdef net_tx *tx = <net_tx *>task
    cdef virtio_device_queue *q = tx.q
    cdef virtio_bell *bell = NULL
    cdef virtio_bell *trouble = NULL
    cdef virtio_bell *other = NULL
    cdef uint32_t done = 0
    if not virtio_trylock(&q.lock):
        return 0
    if task.active:
        done = burst(tx, turn)
        while tx.by_hand and done == 0 and not tx.full and device_enable_notification(q):
            done = burst(tx, turn)
        bell = call_due(tx, done)
        if virtio_unlikely(q.fault.code != VIRTIO_FAULT_NONE and not tx.troubled):
            tx.troubled = 1
            trouble = tx.trouble
        other = port_flush(tx.port, tx.pair)
    queue_unlock(&q.lock)
    port_ring(tx.port, tx.pair, other)
    if bell is not NULL:
        virtio_bell_ring(bell)
    if trouble is not NULL:
        virtio_bell_ring(trouble)
    return done


cdef bint task_arm(virtio_task *task, virtio_wait *wait) noexcept nogil:
    cdef net_tx *tx = <net_tx *>task
    cdef virtio_bell *bell = NULL
    cdef bint work = False
    if not virtio_trylock(&tx.q.lock):
        return True
    if task.active:
        if tx.q.pending and device_needs_notification(tx.q):  # nothing is polled from here on
            bell = tx.call
        if tx.full and not tx.closed:
            work = tx.port.arm_send(tx.port, tx.pair, wait)
        else:
            work = device_enable_notification(tx.q)
            work |= virtio_wait_bell(wait, tx.kick)
    queue_unlock(&tx.q.lock)
    if bell is not NULL:
        virtio_bell_ring(bell)
    return work


cdef void task_disarm(virtio_task *task) noexcept nogil:
    cdef net_tx *tx = <net_tx *>task
    queue_lock(&tx.q.lock)
    if task.active:
        if tx.full:
            if tx.port.disarm is not NULL:
                tx.port.disarm(tx.port, tx.pair)
        else:
            device_disable_notification(tx.q)
    queue_unlock(&tx.q.lock)


# ---- the Python face ----

_DROPS = {fault.value: fault.name.lower() for fault in NetHeaderFault if fault}
_DROPS.update({
    TX_DROP_WRITABLE: "writable", TX_DROP_SHORT: "short", TX_DROP_LONG: "long", TX_DROP_PIECES: "pieces",
    TX_DROP_CLOSED: "closed",
})


cdef class NetTransmit(Task):
    """The task that takes frames from a guest's transmit queue, of queue pair ``pair``, and gives them to a port.

    ``features`` are the negotiated ones: they say how large the header is, and what a frame may leave undone. ``kick``
    is rung by the guest when there are frames, ``call`` by us to interrupt it, ``trouble`` once when it breaks the
    queue. ``by_hand``: no Worker runs it.

    It starts paused; with kicks off, unless by hand: a worker looks before it sleeps. Methods are called by one thread
    at a time, the device's; the bursts run on any.
    """

    def __init__(self, DeviceQueue queue not None, Port port not None, int pair, features, *, Bell kick not None,
                 Bell call not None, Bell trouble not None, bint by_hand=False):
        cdef net_tx *tx = &self.tx
        if self.task is not NULL:
            raise TypeError("transmit task is initialised already")
        self.queue, self.port = queue, port
        self.kick_bell, self.relay, self.trouble_bell = kick, Relay(call), trouble
        tx.q = queue.q
        # DPDK's driver (22.11) leaves WRITE set in the entry of a table that has the header
        queue.q.flags |= VIRTIO_Q_READ_TABLES
        queue.limit_walk(2 * VIRTIO_PACKET_PIECES)  # more than a frame has: a longer chain is known by that
        tx.header = header_size_of(features)
        tx.offloads = offloads_of(features, False)
        tx.port, tx.pair, tx.by_hand = &port.c, pair, by_hand
        tx.kick, tx.call, tx.trouble = &kick.c, &self.relay.c.bell, &trouble.c
        tx.width = BURST
        tx.hold = 1 if by_hand else min(<uint32_t>HOLD, max(<uint32_t>1, <uint32_t>queue.q.size // 4))
        tx.nsegs = queue.q.max_chain + VIRTIO_REGIONS_MAX + BURST
        tx.segs = <iovec *>calloc(tx.nsegs, sizeof(iovec))
        tx.executor = executor_new()
        if tx.segs is NULL or tx.executor is NULL:
            raise MemoryError()
        tx.task.poll, tx.task.arm, tx.task.disarm = task_poll, task_arm, task_disarm
        self.lock = &queue.q.lock
        self.task = &tx.task
        if not by_hand:
            queue.disable_notification()

    def __dealloc__(self):
        free(self.tx.segs)
        executor_free(self.tx.executor)

    def set_call(self, Bell bell not None):
        """Interrupt the guest by this bell from now on."""
        self.relay.aim(bell)

    def close(self, bint closed):
        """Drop frames from now on, or no longer: the link is down."""
        with nogil:
            queue_lock(&self.tx.q.lock)
            self.tx.closed = closed
            queue_unlock(&self.tx.q.lock)
        if self.worker is not None:
            self.worker.wake()

    def inject(self, bytes frame not None):
        """Send a frame as if the guest had: at least 14 bytes, nothing left undone. Return whether the port took it."""
        cdef net_tx *tx = &self.tx
        cdef virtio_packet packet
        cdef virtio_turn turn
        cdef iovec seg
        cdef virtio_bell *other = NULL
        cdef uint32_t taken
        if not VIRTIO_FRAME_MIN <= len(frame) <= VIRTIO_FRAME_MAX:
            raise ValueError(f"frame of {len(frame)} bytes ({VIRTIO_FRAME_MIN} to {VIRTIO_FRAME_MAX})")
        memset(&packet, 0, sizeof(packet))
        packet.nsegs = 1
        packet.len = <uint32_t>len(frame)
        seg.iov_base = <char *>frame
        seg.iov_len = packet.len
        memset(&turn, 0, sizeof(turn))
        turn.left = VIRTIO_WORK_TURN
        with nogil:
            queue_lock(&tx.q.lock)
            taken = tx.port.send(tx.port, tx.pair, &packet, 1, &seg, &turn)
            other = port_flush(tx.port, tx.pair)
            queue_unlock(&tx.q.lock)
            port_ring(tx.port, tx.pair, other)
        return taken == 1

    def statistics(self):
        """Return what was counted since it was made."""
        cdef net_tx *tx = &self.tx
        return {
            "frames": counted(&tx.frames), "bytes": counted(&tx.bytes), "csum": counted(&tx.csum),
            "gso": counted(&tx.gso),
            "gso_bytes": counted(&tx.gso_bytes), "stalls": counted(&tx.stalls),
            "dropped": {name: counted(&tx.dropped[i]) for i, name in _DROPS.items() if counted(&tx.dropped[i])},
            "executed": executor_figures(tx.executor),
        }
