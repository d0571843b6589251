# Offloads of a transmit queue: what a frame asks for is left to the device, done here, or refused and counted.
#
# A checksum is completed in the buffer; segments are written straight into buffers of their own. Included by
# txq.pyx, whose functions these use inline.
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from virtio.core.atomic cimport virtio_likely, virtio_unlikely
from virtio.core.counters cimport add_count
from virtio.core.iov cimport iovec
from virtio.offload.counters cimport VIRTIO_TX_REFUSED, VIRTIO_TX_SEGMENT_IN_SOFTWARE
from virtio.offload.frame cimport frame_parse, virtio_frame, virtio_layer
from virtio.offload.inet_checksum cimport checksum_complete
from virtio.offload.mtu cimport limit_of
from virtio.offload.net_hdr cimport VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_OFFLOAD_CSUM, virtio_net_hdr
from virtio.offload.segment_write cimport segment_copy
from virtio.offload.segmenter cimport (
    SEGMENT_AUTO, VIRTIO_SEGMENT_OK, segment_header_size, segment_payload_size, segment_plan_parsed,
    segment_plan_pieces, virtio_segmenter,
)
from virtio.offload.tx cimport VIRTIO_TX_WANT_INNER, offload_transmit, tx_outcome
from virtio.ports.port cimport VIRTIO_BURST, VIRTIO_FRAME_MIN
from virtio.ports.software_offload cimport net_hdr_needs, segment_options
from virtio.vtnet.pool cimport VTNET_NONE, pool_frame, pool_taken, pool_top


cdef inline bint beyond(const vtnet_tx *tx, const virtio_net_hdr *hdr) noexcept nogil:
    """Whether a header leaves something undone that the device does not do."""
    if virtio_likely(not hdr.gso_type and not hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM):
        return False
    return net_hdr_needs(hdr) & ~tx.sink.offloads


cdef inline bint is_unusual(const vtnet_tx *tx, uint32_t len) noexcept nogil:
    """Whether a frame is too short, or longer than most: one comparison for both."""
    return len - VIRTIO_FRAME_MIN > tx.usual


cdef int tx_cut(vtnet_tx *tx, virtio_segmenter *plan) noexcept nogil:
    """Write the segments of a plan, each into a buffer of its own. 1: sent; 0: no room now; -1: never."""
    cdef virtio_net_hdr nothing
    cdef iovec to
    cdef uint32_t i, small
    if plan.count > tx.small.count or plan.count > tx.q.size // tx.slots:
        return -1
    if plan.header + plan.extra + plan.unit > tx.small.room:
        return -1
    # all or none: a frame of which half is sent cannot be given back to its sender
    if tx.small.nfree < plan.count or tx.q.nfree < tx.nslots + plan.count * tx.slots:
        tx_reclaim(tx)
        if tx.small.nfree < plan.count or tx.q.nfree < tx.nslots + plan.count * tx.slots:
            add_count(&tx.stats.rescheduled, 1)
            tx.wanting = 1
            return 0
    memset(&nothing, 0, sizeof(nothing))
    for i in range(plan.count):
        if tx.nreq == VIRTIO_BURST:
            publish(tx)
        small = pool_top(tx.small)
        pool_taken(tx.small)
        to.iov_base = pool_frame(tx.small, small)
        to.iov_len = tx.small.room
        collect(tx, &nothing, small, VTNET_NONE, segment_copy(plan, i, &to, 1, 0), False)
    add_count(&tx.stats.segments, plan.count)
    return 1


cdef int cut_pieces(vtnet_tx *tx, const virtio_net_hdr *hdr, const iovec *pieces,
                    uint32_t npieces) noexcept nogil:
    """Segment a frame by its header. As tx_cut."""
    cdef virtio_segmenter plan
    if segment_plan_pieces(&plan, pieces, npieces, hdr.gso_type, hdr.gso_size, segment_options(hdr, 0),
                           tx.q.size) != VIRTIO_SEGMENT_OK:
        return -1
    return tx_cut(tx, &plan)


cdef inline uint32_t reserved(const vtnet_tx *tx, uint32_t len, iovec *pieces) noexcept nogil:
    """Find the pieces of a frame that was read into the reserved room; return how many there are."""
    pieces[0].iov_base = pool_frame(tx.small, pool_top(tx.small))
    pieces[0].iov_len = len
    if len <= tx.small.room:
        return 1
    pieces[0].iov_len = tx.small.room
    pieces[1].iov_base = pool_frame(tx.large, pool_top(tx.large))
    pieces[1].iov_len = len - tx.small.room
    return 2


cdef void commit_beyond(vtnet_tx *tx, const virtio_net_hdr *hdr, uint32_t len) noexcept nogil:
    """A frame that was read into the reserved room, and whose header says more than was negotiated."""
    cdef uint32_t small = pool_top(tx.small)
    cdef uint32_t large = VTNET_NONE
    cdef virtio_net_hdr nothing
    cdef iovec pieces[2]
    cdef uint32_t n = reserved(tx, len, pieces)
    cdef int sent
    pool_taken(tx.small)
    if n == 2:
        large = pool_top(tx.large)
        pool_taken(tx.large)
    if hdr.gso_type:
        sent = cut_pieces(tx, hdr, pieces, n)
        # it lies in our buffers, and cannot be given back: without room it is lost, as on any full queue
        if sent < 1:
            add_count(&tx.stats.refused, 1)
        put_back(tx, cookie_of(small, large, False))
        return
    memset(&nothing, 0, sizeof(nothing))
    if n == 2 or checksum_complete(<uint8_t *>pieces[0].iov_base, len, hdr.csum_start, hdr.csum_offset):
        add_count(&tx.stats.refused, 1)
        put_back(tx, cookie_of(small, large, False))
        return
    collect(tx, &nothing, small, VTNET_NONE, len, False)


cdef int tx_send_wanted(vtnet_tx *tx, uint8_t *data, uint32_t len, uint32_t want, uint32_t mss) noexcept nogil:
    """Send a frame of which the checksum is wanted (VIRTIO_TX_WANT_*), and segments of mss bytes of payload (0: none).

    1: taken, sent or dropped; 0: no room now.
    """
    cdef virtio_net_hdr hdr
    cdef virtio_frame parsed
    cdef virtio_segmenter plan
    cdef const virtio_layer *layer
    cdef vtnet_place at
    cdef iovec piece
    cdef uint32_t offloads = tx.sink.offloads
    cdef uint32_t head = len
    cdef int reason, sent
    if tx.nreq == VIRTIO_BURST:
        publish(tx)
    if virtio_unlikely(len < VIRTIO_FRAME_MIN):
        add_count(&tx.stats.too_short, 1)
        return 1
    if virtio_unlikely(not tx_has_room(tx, len)):
        return 0
    piece.iov_base = data
    piece.iov_len = len
    frame_parse(&parsed, data, len)
    layer = &parsed.inner if parsed.tunnel and want & VIRTIO_TX_WANT_INNER else &parsed.outer
    if mss and layer.end - layer.payload > mss:
        head = layer.payload  # the rest is copied when it is known where to: the frame may be cut
    if not find_place(tx, data, len, &at):
        if head == len:
            add_count(&tx.stats.too_large, 1)
            return 1
        at.frame = data  # which is not touched, as it can only be cut
        offloads &= VIRTIO_OFFLOAD_CSUM
    elif not at.view:
        memcpy(at.frame, data, head)
    reason = offload_transmit(&hdr, at.frame, &parsed, want, mss, offloads)
    if tx_outcome(reason) == VIRTIO_TX_SEGMENT_IN_SOFTWARE:
        sent = -1
        if segment_plan_parsed(&plan, &parsed, data, SEGMENT_AUTO, mss, 0, tx.q.size) == VIRTIO_SEGMENT_OK:
            if (len > tx.limit
                    and segment_header_size(&plan, 0) + segment_payload_size(&plan, 0) > limit_of(tx.limit, &piece, 0)):
                add_count(&tx.stats.too_large, 1)
                return 1
            sent = tx_cut(tx, &plan)
        if sent == 0:
            return 0
        add_count(&tx.stats.refused, sent < 0)
    elif tx_outcome(reason) == VIRTIO_TX_REFUSED:
        add_count(&tx.stats.refused, 1)
    elif virtio_unlikely(is_unusual(tx, len)) and tx_drop_unfit(tx, &hdr, &piece, len):
        return 1
    else:
        if not at.view:
            memcpy(at.frame + head, data + head, len - head)
            add_count(&tx.stats.copied, len)
        send(tx, &hdr, &at, len)
    add_count(&tx.reasons[reason], 1)
    return 1
