"""vtnet's receive queue at C level."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from virtio._ring cimport driver_dequeue_burst, driver_disable_intr, driver_enqueue_burst, driver_notify
from virtio.core.atomic cimport virtio_fetch64, virtio_likely, virtio_prefetch, virtio_put64, virtio_unlikely
from virtio.core.counters cimport add_count
from virtio.core.iov cimport iov_head, iov_write
from virtio.offload.counters cimport VIRTIO_RX_BAD, VIRTIO_RX_CSUM_NONE, VIRTIO_RX_NEEDS_CHECKSUM, VIRTIO_RX_UNKNOWN
from virtio.offload.frame cimport frame_parse, virtio_frame
from virtio.offload.inet_checksum cimport sum_finish, sum_gather
from virtio.offload.net_hdr cimport net_hdr_check, virtio_net_hdr
from virtio.offload.rx cimport offload_complete, offload_receive, rx_offload_clear
from virtio.offload.segmenter cimport VIRTIO_SEGMENT_HEADERS_MAX, segment_scratch
from virtio.ports.port cimport VIRTIO_BURST, VIRTIO_FRAME_MIN
from virtio.virtqueue.structs cimport VIRTIO_FAULT_NONE
from virtio.vtnet.lro cimport lro_merge
from virtio.vtnet.pool cimport pool_collect, pool_frame, pool_gpa, pool_put, pool_taken, pool_top


cdef inline void load_header(const vtnet_rx *rx, virtio_net_hdr *hdr, const uint8_t *p) noexcept nogil:
    """A private copy of what the device wrote, fetched once."""
    memset(hdr, 0, sizeof(virtio_net_hdr))
    if virtio_likely(rx.hdr_size == 12):
        virtio_put64(hdr, virtio_fetch64(p))
        memcpy(&hdr.csum_offset, p + 8, 4)
    else:
        memcpy(hdr, p, rx.hdr_size)


cdef inline bint arrive(vtnet_rx *rx, uint32_t limit) noexcept nogil:
    """Whether there is a completion at rx.out[rx.at]; dequeue up to limit if there was none."""
    if rx.at == rx.came:
        rx.at = 0
        rx.came = driver_dequeue_burst(rx.q, rx.out, limit if limit < VIRTIO_BURST else VIRTIO_BURST)
    return rx.at < rx.came


cdef bint more_buffers(vtnet_rx *rx, virtio_packet *packet, uint32_t wanted) noexcept nogil:
    """Take the buffers of a packet after the first; False if they did not all come.

    A device shows all buffers of a packet at once (5.1.9.4): what is not there will not come.
    """
    cdef const virtio_completion *next
    cdef bint fits = wanted < rx.pieces_max
    while wanted:
        if not arrive(rx, wanted):
            return False
        next = &rx.out[rx.at]
        rx.at += 1
        wanted -= 1
        if not fits or next.len == 0:
            fits = False
            rx_again(rx, <uint32_t>next.cookie)
            continue
        rx.buffers[rx.nsegs] = <uint32_t>next.cookie
        rx.segs[rx.nsegs].iov_base = pool_frame(rx.pool, <uint32_t>next.cookie) - rx.hdr_size
        rx.segs[rx.nsegs].iov_len = next.len
        rx.nsegs += 1
        packet.nsegs += 1
        packet.len += next.len
    return fits


cdef inline void drop(vtnet_rx *rx, const virtio_packet *packet, uint64_t *counter) noexcept nogil:
    """Post the buffers of a packet again, that was the last to be taken."""
    add_count(counter, 1)
    add_count(&rx.stats.ierrors, 1)
    while rx.nsegs > packet.first:
        rx.nsegs -= 1
        rx_again(rx, rx.buffers[rx.nsegs])


cdef bint examine(vtnet_rx *rx, virtio_packet *packet, uint32_t used) noexcept nogil:
    """Whether a packet whose first buffer has `used` bytes is sound; its other buffers are taken here."""
    cdef int fault
    if virtio_unlikely(used < rx.hdr_size):
        drop(rx, packet, &rx.stats.frame_too_short)
        return False
    packet.len = used - rx.hdr_size
    rx.segs[packet.first].iov_len = packet.len
    if rx.mergeable and virtio_unlikely(packet.hdr.num_buffers != 1):
        if packet.hdr.num_buffers == 0 or not more_buffers(rx, packet, <uint32_t>packet.hdr.num_buffers - 1):
            drop(rx, packet, &rx.stats.mergeable_failed)
            return False
    if virtio_unlikely(packet.len < VIRTIO_FRAME_MIN):
        drop(rx, packet, &rx.stats.frame_too_short)
        return False
    if virtio_unlikely(packet.len > rx.frame_max):
        drop(rx, packet, &rx.stats.frame_too_large)
        return False
    if packet.hdr.flags or packet.hdr.gso_type:
        fault = net_hdr_check(&packet.hdr, packet.len, rx.offloads)
        if virtio_unlikely(fault):
            add_count(&rx.header_faults[fault], 1)
            drop(rx, packet, &rx.stats.bad_header)
            return False
        add_count(&rx.stats.host_lro, packet.hdr.gso_type != 0)
        rx.typed |= packet.hdr.gso_type != 0
    return True


cdef uint32_t rx_take(vtnet_rx *rx, uint32_t limit) noexcept nogil:
    cdef const virtio_completion *next
    cdef virtio_packet *packet
    cdef uint32_t i, budget
    cdef uint8_t *frame
    cdef uint64_t bytes = 0
    if virtio_unlikely(rx.pool.retired):
        return 0
    if virtio_unlikely(rx.merged):  # somebody else had begun with these
        add_count(&rx.stats.iqdrops, rx.lro.n - rx.lro.first)
        rx_done_merged(rx, rx.lro.n - rx.lro.first)
    if rx.npackets:
        return rx.npackets - rx.first
    if virtio_unlikely(rx.pool.host is NULL) or not arrive(rx, limit):
        return 0
    for i in range(rx.at, rx.came):
        virtio_prefetch(pool_frame(rx.pool, <uint32_t>rx.out[i].cookie) - rx.hdr_size)
    # behind nothing but garbage there may be a packet; but a device may have garbage without end
    budget = rx.q.size
    while rx.npackets < limit and budget and (rx.at < rx.came or (rx.npackets == 0 and arrive(rx, limit))):
        budget -= 1
        next = &rx.out[rx.at]
        frame = pool_frame(rx.pool, <uint32_t>next.cookie)
        packet = &rx.packets[rx.npackets]
        load_header(rx, &packet.hdr, frame - rx.hdr_size)
        if virtio_unlikely(rx.nsegs + packet.hdr.num_buffers > RX_ROOM and rx.nsegs and rx.mergeable):
            break  # it may have more pieces than there is room for now
        rx.at += 1
        packet.first = rx.nsegs
        packet.nsegs = 1
        rx.buffers[rx.nsegs] = <uint32_t>next.cookie
        rx.segs[rx.nsegs].iov_base = frame
        rx.nsegs += 1
        if examine(rx, packet, next.len):
            rx.npackets += 1
            bytes += packet.len
    add_count(&rx.stats.ipackets, rx.npackets)
    add_count(&rx.stats.ibytes, bytes)
    return rx.npackets


cdef void rx_forget(vtnet_rx *rx, uint32_t n) noexcept nogil:
    """The first n packets are done with, and somebody else has their buffers."""
    rx.first += n
    if rx.first == rx.npackets:
        rx.first = rx.npackets = rx.nsegs = rx.typed = 0


cdef void rx_done(vtnet_rx *rx, uint32_t n) noexcept nogil:
    cdef uint32_t i, k
    cdef const virtio_packet *packet
    for i in range(rx.first, rx.first + n):
        packet = &rx.packets[i]
        for k in range(packet.first, packet.first + packet.nsegs):
            rx_again(rx, rx.buffers[k])
    rx_forget(rx, n)


cdef uint32_t rx_take_merged(vtnet_rx *rx, uint32_t limit) noexcept nogil:
    cdef uint32_t n
    if rx.merged:
        return rx.lro.n - rx.lro.first
    n = rx_take(rx, limit)
    if rx.lro is NULL or n < 2 or rx.first:
        return n
    lro_merge(rx.lro, rx.packets, n, rx.segs)
    rx.merged = 1
    return rx.lro.n


cdef void rx_done_merged(vtnet_rx *rx, uint32_t n) noexcept nogil:
    if not rx.merged:
        rx_done(rx, n)
        return
    rx.lro.first += n
    if rx.lro.first == rx.lro.n:
        rx.merged = 0
        rx_done(rx, rx.npackets - rx.first)


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
        add_count(&rx.stats.enq_replacement_failed, n - done)
        for i in range(done, n):
            pool_put(rx.pool, buffers[i])


cdef virtio_bell *rx_post(vtnet_rx *rx) noexcept nogil:
    cdef uint32_t at = 0
    cdef uint32_t n, room
    cdef uint32_t fresh[VIRTIO_BURST]
    if virtio_unlikely(rx.pool.retired):
        return NULL
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
            pool_taken(rx.pool)
            n += 1
        post(rx, fresh, n)
    if rx.q.pending and driver_notify(rx.q):
        return rx.kick
    return NULL


# ---- what headers say ----

cdef bint rx_classify(vtnet_rx *rx, const virtio_packet *packet, const uint8_t *p,
                      virtio_rx_offload *info) noexcept nogil:
    """Hold a packet's header against the packet, whose headers at least are at p; whether it can be true."""
    cdef virtio_frame parsed
    if virtio_likely(not packet.hdr.flags and not packet.hdr.gso_type):
        rx_offload_clear(info)
        info.segments = 1
        add_count(&rx.reasons[VIRTIO_RX_CSUM_NONE], 1)
        return True
    frame_parse(&parsed, p, packet.len)
    offload_receive(info, &packet.hdr, p, &parsed, rx.given)
    add_count(&rx.reasons[info.reason], 1)
    if info.verdict == VIRTIO_RX_BAD:
        add_count(&rx.stats.csum_failed, 1)
        add_count(&rx.stats.ierrors, 1)
        return False
    add_count(&rx.stats.csum, info.verdict != VIRTIO_RX_UNKNOWN)
    return True


cdef const uint8_t *rx_headers(const virtio_packet *packet, const iovec *pieces) noexcept nogil:
    """A packet's headers in one piece, to be parsed: behind those of many pieces there are zeros."""
    cdef uint8_t *scratch
    cdef size_t n
    if packet.nsegs == 1:
        return <const uint8_t *>pieces[0].iov_base
    scratch = segment_scratch()
    n = iov_head(scratch, pieces, packet.nsegs, 0, VIRTIO_SEGMENT_HEADERS_MAX)
    memset(scratch + n, 0, VIRTIO_SEGMENT_HEADERS_MAX - n)
    return scratch


cdef void store_word(const iovec *pieces, uint32_t at, uint16_t word) noexcept nogil:
    """Write a sum as it is stored."""
    iov_write(pieces, at, <const uint8_t *>&word, sizeof(word))


cdef void complete_pieces(const iovec *pieces, uint32_t n, uint32_t start, uint32_t field, uint32_t end) noexcept nogil:
    """checksum_complete() for what lies in pieces, and ends before they do."""
    store_word(pieces, start + field, sum_finish(sum_gather(pieces, n, start, end - start)))


cdef void rx_complete(const virtio_packet *packet, const iovec *pieces,
                      const virtio_rx_offload *info) noexcept nogil:
    cdef uint32_t i
    if info.verdict != VIRTIO_RX_NEEDS_CHECKSUM and not info.nmends:
        return
    if packet.nsegs == 1:
        offload_complete(<uint8_t *>pieces.iov_base, info)
        return
    for i in range(info.nmends):
        store_word(pieces, info.mends[i].at, info.mends[i].word)
    if info.verdict != VIRTIO_RX_NEEDS_CHECKSUM:
        return
    if info.pseudo:
        store_word(pieces, info.csum_start + info.csum_offset, info.pseudo)
    complete_pieces(pieces, packet.nsegs, info.csum_start, info.csum_offset, info.csum_end)
    if info.outer_start:
        complete_pieces(pieces, packet.nsegs, info.outer_start, 6, info.outer_end)


cdef void rx_open(vtnet_rx *rx, virtio_driver_queue *q, virtio_bell *kick, virtio_bell *call, vtnet_pool *pool,
                  uint32_t hdr_size, bint mergeable, bint separate, uint32_t offloads, uint32_t frame_max,
                  uint32_t *gone) noexcept nogil:
    memset(rx, 0, sizeof(vtnet_rx))
    rx.q = q
    rx.kick = kick
    rx.call = call
    rx.pool = pool
    rx.hdr_size = hdr_size
    rx.mergeable = mergeable
    rx.separate = separate
    rx.offloads = rx.given = offloads
    rx.gone = gone
    rx.frame_max = frame_max
    rx.slots = 2 if separate and q.max_indirect < 2 else 1
    rx.pieces_max = q.size if q.size < RX_PIECES else RX_PIECES
    driver_disable_intr(q)


cdef void rx_reset(vtnet_rx *rx) noexcept nogil:
    rx.first = rx.npackets = rx.nsegs = rx.typed = rx.ngone = rx.merged = rx.at = rx.came = 0
    driver_disable_intr(rx.q)
