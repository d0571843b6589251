# The buffers of a receive queue: chains that are popped for a burst.
#
# Compiled into virtio.netdev.rxq and nowhere else.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from virtio._ring cimport device_add_used_burst, device_log_written, device_navail, device_pop_burst, device_unpop_burst
from virtio.core.atomic cimport virtio_get64, virtio_put64, virtio_unlikely
from virtio.core.counters cimport add_count
from virtio.core.iov cimport iovec
from virtio.event.worker cimport VIRTIO_WORK_CHAIN, VIRTIO_WORK_PIECE, virtio_work_bytes
from virtio.netdev.rxq cimport RX_CHAINS, RX_DROP_BROKEN, RX_DROP_TOO_LARGE, net_rx
from virtio.virtqueue.structs cimport VIRTIO_FAULT_NONE, VIRTIO_Q_INDIRECT, virtio_chain


cdef enum:
    NO_ROOM = 0
    NEVER = -1


cdef inline void set_written(virtio_chain *chain, uint32_t written) noexcept nogil:
    """Store chain.written with the word that it is loaded with later."""
    virtio_put64(&chain.written, virtio_get64(&chain.written) >> 32 << 32 | written)


cdef inline void publish(net_rx *rx) noexcept nogil:
    """Give the written chains back to the guest."""
    cdef uint32_t i
    if rx.used == 0:
        return
    if virtio_unlikely(rx.q.memory.log is not NULL):
        for i in range(rx.used):
            device_log_written(rx.q, &rx.chains[i], rx.segs)
    device_add_used_burst(rx.q, rx.chains, rx.used)
    rx.published = 1


cdef inline void put_back(net_rx *rx) noexcept nogil:
    """Hold no chain any more."""
    publish(rx)
    if rx.popped > rx.used:
        device_unpop_burst(rx.q, rx.chains + rx.used, rx.popped - rx.used)
    rx.used = rx.popped = 0


cdef inline uint32_t refill(net_rx *rx, uint32_t limit) noexcept nogil:
    """Pop chains, the free ones again; return how many there are: 0 when none waits."""
    cdef const virtio_chain *last
    put_back(rx)
    rx.popped = device_pop_burst(rx.q, rx.chains, min(limit, <uint32_t>RX_CHAINS), rx.segs, rx.nsegs)
    if rx.popped:
        last = &rx.chains[rx.popped - 1]
        rx.turn.left -= (<int64_t>(last.first + last.nreadable + last.nwritable + rx.chains[0].slots)
                         * VIRTIO_WORK_PIECE)
    return rx.popped


cdef inline bint is_whole_queue(net_rx *rx) noexcept nogil:
    """Say whether no more chains can come while those popped are not used."""
    cdef bint by_pieces = not rx.q.packed and not rx.q.flags & VIRTIO_Q_INDIRECT
    cdef uint32_t i, descriptors = 0
    for i in range(rx.popped):
        descriptors += rx.chains[i].nwritable if by_pieces else rx.chains[i].slots
    return descriptors >= rx.q.size


cdef inline uint32_t look(net_rx *rx, uint64_t total, uint32_t ahead, uint64_t *have) noexcept nogil:
    """Return how many chains from rx.used on it takes for total bytes, header included; or all that there are.

    *have: their bytes. Their pieces are one list. Not mergeable: the next chain, if there is one. Enough are popped for
    `ahead` frames of that size, if buffers are as large as the last one was.
    """
    cdef uint32_t i = rx.used, before = 0
    cdef uint32_t limit = <uint32_t>(total // rx.size_seen + 1) * ahead
    cdef bint last = False
    cdef virtio_chain *chain
    while True:
        have[0] = 0
        while i < rx.popped:
            chain = rx.chains + i
            i += 1
            if virtio_unlikely(chain.nreadable != 0 or chain.writable < rx.header):
                # no buffer for a frame. In order, so with those before it
                while rx.used < i:
                    set_written(&rx.chains[rx.used], 0)
                    rx.used += 1
                add_count(&rx.bad_chains, 1)
                have[0] = 0
                continue
            have[0] += chain.writable
            if have[0] >= total or not rx.mergeable:
                rx.size_seen = max(chain.writable, <uint32_t>64)
                return i - rx.used
        if last:
            return rx.popped - rx.used
        # not enough of them are held: pop again, as many as there are
        last = refill(rx, limit) <= before
        limit = RX_CHAINS
        before = rx.popped
        i = 0


cdef inline void stall(net_rx *rx, uint64_t total) noexcept nogil:
    """Note that a frame found no room."""
    add_count(&rx.stalls, not rx.stalled)
    rx.stalled = 1
    rx.wanted = total


cdef inline int gather(net_rx *rx, uint64_t total, uint32_t ahead) noexcept nogil:
    """Return how many chains from rx.used on take total bytes; NO_ROOM: not now; NEVER: never."""
    cdef uint64_t have = 0
    cdef uint32_t n, before = 0
    while True:
        n = look(rx, total, ahead, &have)
        if have >= total:
            return <int>n
        # or the queue is broken; or all that there can be is there
        if n and not rx.mergeable or rx.q.fault.code != VIRTIO_FAULT_NONE or n and is_whole_queue(rx):
            return NEVER
        if n == 0 or not device_navail(rx.q):
            stall(rx, total)
            return NO_ROOM
        if n == before:  # more waits than can be held
            return NEVER
        before = n  # they may have come since we looked


cdef inline void drop_never(net_rx *rx) noexcept nogil:
    """Count a frame for which gather answered NEVER."""
    add_count(&rx.dropped[RX_DROP_BROKEN if rx.q.fault.code != VIRTIO_FAULT_NONE else RX_DROP_TOO_LARGE], 1)


cdef inline uint32_t pieces_of(const net_rx *rx, uint32_t n) noexcept nogil:
    """Return the number of pieces of the n chains from rx.used on; room_of is the first."""
    cdef const virtio_chain *last = rx.chains + rx.used + n - 1
    return last.first + last.nwritable - rx.chains[rx.used].first


cdef inline iovec *room_of(const net_rx *rx) noexcept nogil:
    """Return the pieces of the chains from rx.used on."""
    return rx.segs + rx.chains[rx.used].first


cdef inline void take(net_rx *rx, uint32_t n, uint64_t total) noexcept nogil:
    """Use the n chains from rx.used on, which have a frame: total bytes, header included."""
    cdef virtio_chain *chain
    add_count(&rx.frames, 1)
    add_count(&rx.bytes, total - rx.header)
    add_count(&rx.merged, n > 1)
    rx.turn.left -= VIRTIO_WORK_CHAIN + virtio_work_bytes(total)
    for _ in range(n):
        chain = rx.chains + rx.used
        set_written(chain, <uint32_t>min(total, <uint64_t>chain.writable))
        total -= chain.written
        rx.used += 1
