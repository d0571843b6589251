# Frames that a port brings: the sink's reserve, commit and deliver (include/virtio/port.h) on a transmit queue.
#
# Included by txq.pyx, whose functions these use inline.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from virtio.core.atomic cimport virtio_prefetch_write, virtio_unlikely
from virtio.core.counters cimport add_count
from virtio.core.iov cimport iovec
from virtio.event.worker cimport (
    VIRTIO_WORK_BYTES, VIRTIO_WORK_CHAIN, virtio_turn, virtio_work_bytes,
)
from virtio.offload.net_hdr cimport virtio_net_hdr
from virtio.ports.port cimport VIRTIO_BURST, VIRTIO_WORK_SEGMENT, virtio_packet, virtio_sink
from virtio.vtnet.pool cimport VTNET_NONE, pool_frame, pool_taken, pool_top

cdef enum:
    AHEAD = 16  # buffers whose lines are fetched before they are written


cdef uint32_t tx_reserve(virtio_sink *sink, iovec *to, uint32_t limit, virtio_turn *turn) noexcept nogil:
    cdef vtnet_tx *tx = <vtnet_tx *>sink
    cdef uint32_t i
    if tx.nreq == VIRTIO_BURST:
        publish(tx)
    if limit < 2 or tx.bytes >= TX_BURST_BYTES or not tx_has_room(tx, sink.frame_max):
        return 0
    i = pool_top(tx.small)
    to[0].iov_base = pool_frame(tx.small, i)
    to[0].iov_len = tx.small.room
    if tx.large is NULL:
        return 1
    to[1].iov_base = pool_frame(tx.large, pool_top(tx.large))
    to[1].iov_len = sink.frame_max - tx.small.room
    return 2


cdef void tx_commit(virtio_sink *sink, const virtio_net_hdr *hdr, uint32_t len) noexcept nogil:
    cdef vtnet_tx *tx = <vtnet_tx *>sink
    cdef uint32_t small, large
    cdef iovec pieces[2]
    if virtio_unlikely(is_unusual(tx, len)):
        if len > sink.frame_max:
            add_count(&tx.stats.too_large, 1)
            return
        reserved(tx, len, pieces)
        if tx_drop_unfit(tx, hdr, pieces, len):
            return
    if virtio_unlikely(beyond(tx, hdr)):
        commit_beyond(tx, hdr, len)
        return
    small = pool_top(tx.small)
    pool_taken(tx.small)
    large = VTNET_NONE
    if len > tx.small.room:
        large = pool_top(tx.large)
        pool_taken(tx.large)
    collect(tx, hdr, small, large, len, False)


cdef inline void fetch_ahead(const vtnet_tx *tx, uint32_t n) noexcept nogil:
    """Get the first lines of the next n small buffers back from the device's CPU, all at once."""
    cdef const uint8_t *frame
    cdef uint32_t i
    if n > tx.small.nfree:
        n = tx.small.nfree
    for i in range(n):
        frame = pool_frame(tx.small, tx.small.free[tx.small.nfree - 1 - i])
        virtio_prefetch_write(frame - 1)
        virtio_prefetch_write(frame)


cdef uint32_t tx_deliver(virtio_sink *sink, const virtio_packet *packets, uint32_t n, const iovec *segs,
                         virtio_turn *turn) noexcept nogil:
    cdef vtnet_tx *tx = <vtnet_tx *>sink
    cdef uint32_t i = 0
    cdef uint32_t bytes = tx.bytes
    cdef uint32_t room = tx.bytes + <uint32_t>min(<int64_t>0x40000000, max(turn.left, <int64_t>1) * VIRTIO_WORK_BYTES)
    cdef uint64_t segments = tx.stats.segments
    tx_begin(tx)
    while i < n:
        if i % AHEAD == 0:
            if virtio_unlikely(tx.bytes >= room):
                break
            fetch_ahead(tx, n - i if n - i < AHEAD else AHEAD)
        if not tx_send_pieces(tx, &packets[i].hdr, &segs[packets[i].first], packets[i].nsegs, packets[i].len):
            break
        i += 1
    turn.left -= (<int64_t>i * VIRTIO_WORK_CHAIN + virtio_work_bytes(tx.bytes - bytes)
                  + <int64_t>(tx.stats.segments - segments) * VIRTIO_WORK_SEGMENT)
    return i
