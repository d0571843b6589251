# A frame that is not plain, on its way into the buffers of a receive queue: its header, the filter, the MTU. It is put
# in whole or cut, or waits in scratch for room.
#
# Compiled into virtio.netdev.rxq and nowhere else.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memmove, memset

from virtio.core.atomic cimport virtio_unlikely
from virtio.core.counters cimport add_count
from virtio.core.iov cimport iov_head, iov_read, iov_write, iovec
from virtio.netdev.filter cimport FILTER_HEAD, FILTER_PROMISC, filter_passes
from virtio.netdev.rx_buffers cimport NEVER, NO_ROOM, drop_never, gather, pieces_of, room_of, take
from virtio.netdev.rxq cimport (
    RX_DROP_BROKEN, RX_DROP_CHECKSUM, RX_DROP_CLOSED, RX_DROP_MTU, RX_DROP_SEGMENT, net_rx,
)
from virtio.offload.mtu cimport exceeds, limit_of
from virtio.offload.net_hdr cimport VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, virtio_net_hdr
from virtio.offload.pieces cimport complete
from virtio.offload.protocols cimport TCP_FIELD, UDP_FIELD
from virtio.offload.segment_write cimport segment_copy
from virtio.offload.segmenter cimport (
    VIRTIO_SEGMENT_HEADERS_MAX, VIRTIO_SEGMENT_TCP, segment_header_size, segment_payload_size, segment_plan_pieces,
    virtio_segmenter,
)
from virtio.ports.port cimport VIRTIO_WORK_SEGMENT, turn_resume, virtio_packet
from virtio.ports.software_offload cimport (
    EXECUTE_SEGMENTS_MAX, is_exact, is_exact_plain, packet_needs, segment_options,
)
from virtio.virtqueue.structs cimport VIRTIO_FAULT_NONE, device_put_back


cdef extern from "virtio/net_copy.h" nogil:
    void put_net_hdr "virtio_put_net_hdr"(uint8_t *to, const virtio_net_hdr *hdr, uint16_t num_buffers, uint32_t size)


cdef inline void write_header(net_rx *rx, const iovec *to, const virtio_net_hdr *hdr, uint32_t length,
                              uint32_t buffers) noexcept nogil:
    """Write the header at the start of the pieces: an empty one if the guest does not know one of its flags."""
    cdef uint8_t bytes[24]
    cdef virtio_net_hdr none
    if hdr.flags & ~rx.flags:
        memset(&none, 0, sizeof(none))
        put_net_hdr(bytes, &none, <uint16_t>buffers, rx.header)
    else:
        put_net_hdr(bytes, hdr, <uint16_t>buffers, rx.header)
        add_count(&rx.csum, hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
        if hdr.gso_type != VIRTIO_NET_HDR_GSO_NONE:
            add_count(&rx.gso, 1)
            add_count(&rx.gso_bytes, length)
    iov_write(to, 0, bytes, rx.header)


cdef inline bint is_wanted(const net_rx *rx, const iovec *pieces, uint32_t npieces, uint32_t skip) noexcept nogil:
    """Ask the filter about a frame, skip bytes into the pieces."""
    cdef uint8_t head[FILTER_HEAD]
    memset(head, 0, sizeof(head))
    iov_head(head, pieces, npieces, skip, FILTER_HEAD)
    return filter_passes(&rx.filter, head)


cdef inline uint32_t beyond(const net_rx *rx, const virtio_net_hdr *hdr, uint32_t needs) noexcept nogil:
    """Return which of `needs` the guest does not accept, as VIRTIO_OFFLOAD_*.

    All of them if there is a flag that the guest does not know: write_header then writes an empty header.
    """
    return needs & ~(0 if hdr.flags & ~rx.flags else rx.sink.offloads)


cdef inline bint cut(net_rx *rx, const virtio_packet *packet, const iovec *source) noexcept nogil:
    """Put a frame in as segments. False: no room for all of them, or the turn is over; it goes on where it stopped."""
    cdef virtio_segmenter *s = &rx.plan
    cdef uint32_t i, size
    cdef virtio_net_hdr hdr
    cdef iovec *to
    cdef int n
    if segment_plan_pieces(s, source, packet.nsegs, packet.hdr.gso_type, packet.hdr.gso_size,
                           segment_options(&packet.hdr, rx.sink.offloads), EXECUTE_SEGMENTS_MAX):
        add_count(&rx.dropped[RX_DROP_SEGMENT], 1)
        return True
    if packet.len > rx.limit and segment_header_size(s, 0) + segment_payload_size(s, 0) > limit_of(rx.limit, source, 0):
        add_count(&rx.dropped[RX_DROP_MTU], 1)
        return True
    memset(&hdr, 0, sizeof(hdr))
    if s.needs_csum:
        hdr.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
        hdr.csum_start = s.l4
        hdr.csum_offset = TCP_FIELD if s.kind == VIRTIO_SEGMENT_TCP else UDP_FIELD
    add_count(&rx.cut, packet.done == 0)
    for i in range(packet.done, s.count):
        if virtio_unlikely(rx.turn.left <= 0 and i > packet.done):
            rx.turn.resume = i
            return False
        size = segment_header_size(s, i) + segment_payload_size(s, i)
        n = gather(rx, rx.header + size, s.count - i)
        if n == NO_ROOM:
            rx.turn.resume = i
            return False
        if n == NEVER:
            drop_never(rx)
            continue
        to = room_of(rx)
        segment_copy(s, i, to, pieces_of(rx, n), rx.header)
        rx.turn.left -= VIRTIO_WORK_SEGMENT
        write_header(rx, to, &hdr, size, n)
        take(rx, n, rx.header + size)
    return True


cdef inline bint place(net_rx *rx, const virtio_packet *packet, const iovec *source) noexcept nogil:
    """Put a frame in, whatever it is. False: no room now."""
    cdef uint32_t i
    cdef const virtio_net_hdr *hdr = &packet.hdr
    cdef uint64_t at = rx.header
    cdef bint summed = False
    cdef iovec *to
    cdef int n
    cdef uint32_t undone = beyond(rx, hdr, packet_needs(packet, source))
    if undone and hdr.gso_type != VIRTIO_NET_HDR_GSO_NONE:
        return cut(rx, packet, source)
    if virtio_unlikely(packet.len > rx.limit) and exceeds(rx.limit, hdr, packet.len, source, 0):
        add_count(&rx.dropped[RX_DROP_MTU], 1)
        return True
    if undone:
        if <uint32_t>hdr.csum_start + hdr.csum_offset + 2 > packet.len:
            add_count(&rx.dropped[RX_DROP_CHECKSUM], 1)
            return True
        summed = True
    n = gather(rx, rx.header + <uint64_t>packet.len, 1)
    if n == NO_ROOM:
        return False
    if n == NEVER:
        drop_never(rx)
        return True
    to = room_of(rx)
    for i in range(packet.nsegs):
        iov_write(to, at, <const uint8_t *>source[i].iov_base, source[i].iov_len)
        at += source[i].iov_len
    if summed:
        complete(to, pieces_of(rx, n), rx.header, hdr, packet.len)
        add_count(&rx.checksums, 1)
    write_header(rx, to, hdr, packet.len, n)
    take(rx, n, at)
    return True


cdef inline bint is_open(const net_rx *rx) noexcept nogil:
    """Say whether frames are put in: the task runs, the link is up, the guest did not break the queue.

    Good chains that were popped with a bad one, and put back, still take frames.
    """
    return (rx.task.active and not rx.closed
            and (rx.q.fault.code == VIRTIO_FAULT_NONE or device_put_back(rx.q) != 0))


cdef inline uint32_t refuse(net_rx *rx, uint32_t n) noexcept nogil:
    """Drop n frames of a queue that is not open; return how many: 0 of one that is only paused, whose frames wait."""
    if not rx.task.active:
        return 0
    add_count(&rx.dropped[RX_DROP_CLOSED if rx.closed else RX_DROP_BROKEN], n + rx.pending)
    rx.pending = 0
    return n


cdef inline bint settle(net_rx *rx) noexcept nogil:
    """Put the frame in that waits in scratch. False: there is still no room for all of it, or the turn is over."""
    cdef bint placed
    if not rx.pending:
        return True
    placed = place(rx, &rx.waiting, &rx.waiting_piece)
    rx.waiting.done = turn_resume(rx.turn, placed, rx.waiting.done)
    rx.turn.resume = 0
    rx.pending = not placed
    return placed


cdef inline void put_aside(net_rx *rx, const virtio_net_hdr *hdr, uint32_t length) noexcept nogil:
    """Put a frame in that is partly in scratch, or in the way of its own segments: all of it by way of scratch."""
    cdef uint32_t there = <uint32_t>min(rx.room, <uint64_t>length)
    memmove(rx.scratch + there, rx.scratch, length - there)
    iov_read(rx.scratch, room_of(rx), rx.header, there)
    rx.waiting.hdr = hdr[0]
    rx.waiting.first = 0
    rx.waiting.nsegs = 1
    rx.waiting.len = length
    rx.waiting.done = 0
    rx.waiting_piece.iov_base = rx.scratch
    rx.waiting_piece.iov_len = length
    if not rx.filter.modes & FILTER_PROMISC and not is_wanted(rx, &rx.waiting_piece, 1, 0):
        add_count(&rx.filtered, 1)
        return
    rx.pending = 1
    settle(rx)


cdef inline bint is_exact_there(net_rx *rx, const virtio_net_hdr *hdr, uint32_t length) noexcept nogil:
    """Return is_exact() of a frame with a type that was read in place."""
    cdef const iovec *to = room_of(rx)
    cdef uint32_t there = <uint32_t>min(rx.room, <uint64_t>length), n = min(there, <uint32_t>VIRTIO_SEGMENT_HEADERS_MAX)
    cdef uint8_t headers[VIRTIO_SEGMENT_HEADERS_MAX]
    cdef iovec pieces[2]
    cdef virtio_packet packet
    packet.hdr, packet.first, packet.nsegs, packet.len = hdr[0], 0, 1, length
    if to.iov_len > rx.header:
        pieces[0].iov_base, pieces[0].iov_len = <uint8_t *>to.iov_base + rx.header, to.iov_len - rx.header
        if is_exact_plain(&packet, pieces):
            return True
    iov_read(headers, to, rx.header, n)
    pieces[0].iov_base, pieces[0].iov_len = headers, n
    pieces[1].iov_base, pieces[1].iov_len = rx.scratch, length - there
    packet.nsegs = 2  # no more of them is looked at than has room for headers
    return is_exact(&packet, pieces)
