# The burst that a transmit queue collects: the buffers of its frames, their headers, and the way to the ring.
#
# Compiled into virtio.vtnet.txq and nowhere else.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from virtio._ring cimport driver_enqueue_burst
from virtio.core.atomic cimport virtio_get64, virtio_likely, virtio_put64, virtio_unlikely
from virtio.core.counters cimport add_count
from virtio.offload.net_hdr cimport (
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM, virtio_net_hdr,
)
from virtio.virtqueue.structs cimport virtio_request, virtio_sg
from virtio.vtnet.pool cimport (
    VTNET_HEAD, VTNET_NONE, VTNET_SENT, VTNET_VIEW, pool_frame, pool_gpa, pool_put, pool_put_sent, pool_taken,
    pool_top, vtnet_pool,
)
from virtio.vtnet.txq cimport vtnet_tx

cdef enum:
    IS_VIEW = 0x80000000  # in a cookie


cdef inline uint64_t cookie_of(uint32_t small, uint32_t large, bint view) noexcept nogil:
    """The cookie of a chain: its buffers, and whether Python may have them."""
    return small | <uint64_t>large << 32 | (IS_VIEW if view else 0)


cdef inline void put_back(vtnet_tx *tx, uint64_t cookie) noexcept nogil:
    """Give the buffers of a chain back to their pools."""
    cdef uint32_t small = <uint32_t>cookie & VTNET_NONE
    cdef uint32_t large = <uint32_t>(cookie >> 32)
    if virtio_unlikely(cookie & IS_VIEW):
        if small != VTNET_NONE:
            pool_put_sent(tx.small, small)
        else:
            pool_put_sent(tx.large, large)
        return
    if small != VTNET_NONE:
        pool_put(tx.small, small)
    if large != VTNET_NONE:
        pool_put(tx.large, large)


cdef inline void publish(vtnet_tx *tx) noexcept nogil:
    """Make the frames collected available to the device."""
    cdef int why = 0
    cdef uint32_t done, i
    if tx.nreq == 0:
        return
    done = driver_enqueue_burst(tx.q, tx.sg, tx.req, tx.nreq, &why)
    for i in range(done, tx.nreq):  # the queue broke
        put_back(tx, tx.req[i].cookie)
    tx.nreq = tx.nsg = tx.nslots = 0


cdef inline void put_header(const vtnet_tx *tx, uint8_t *frame, const virtio_net_hdr *hdr) noexcept nogil:
    """Write the header in front of a frame, with the fields that a driver may set (5.1.9.2)."""
    cdef uint8_t *p = frame - tx.hdr_size
    cdef virtio_net_hdr clean
    cdef uint64_t first
    if virtio_likely(tx.hdr_size <= 12):
        # NEEDS_CSUM is all that may be said without a tunnel: DATA_VALID is the device's
        first = virtio_get64(hdr) & ~<uint64_t>0xff | (hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
        virtio_put64(p, first)
        (<uint16_t *>(p + 8))[0] = hdr.csum_offset
        if tx.hdr_size == 12:
            (<uint16_t *>(p + 10))[0] = 0
        return
    clean = hdr[0]
    clean.flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM
    clean.num_buffers = 0
    clean.hash_value = 0
    clean.hash_report = clean.padding = 0
    memcpy(p, &clean, tx.hdr_size)


cdef inline void collect(vtnet_tx *tx, const virtio_net_hdr *hdr, uint32_t small, uint32_t large, uint32_t len,
                         bint view) noexcept nogil:
    """Add a frame of len bytes to the burst. It starts in the small buffer, if there is one; the rest is in large."""
    cdef vtnet_pool *pool = tx.small if small != VTNET_NONE else tx.large
    cdef uint32_t first = small if small != VTNET_NONE else large
    cdef uint8_t *frame = pool_frame(pool, first)
    cdef uint64_t gpa = pool_gpa(pool, first)
    cdef virtio_sg *sg = &tx.sg[tx.nsg]
    cdef virtio_request *req = &tx.req[tx.nreq]
    cdef uint32_t head = len
    cdef uint32_t pieces = 1
    put_header(tx, frame, hdr)
    if head > pool.room:
        head = pool.room
    if virtio_likely(not tx.separate):
        sg[0].gpa = gpa - tx.hdr_size
        sg[0].len = head + tx.hdr_size
    else:
        sg[0].gpa = gpa - tx.hdr_size
        sg[0].len = tx.hdr_size
        sg[1].gpa = gpa
        sg[1].len = head
        pieces = 2
    if virtio_unlikely(head < len):
        sg[pieces].gpa = pool_gpa(tx.large, large)
        sg[pieces].len = len - head
        pieces += 1
    req.cookie = cookie_of(small, large, view)
    req.readable = <uint16_t>pieces
    req.writable = 0
    tx.bytes += len
    tx.nreq += 1
    tx.nsg += pieces
    tx.nslots += 1 if pieces == 1 or pieces <= tx.q.max_indirect else pieces
    add_count(&tx.stats.opackets, 1)
    add_count(&tx.stats.obytes, len)
    add_count(&tx.stats.omcasts, frame[0] & 1)
    if virtio_unlikely(hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM):
        if hdr.gso_type:
            add_count(&tx.stats.tso, 1)
        else:
            add_count(&tx.stats.csum, 1)


cdef struct place:  # the buffer that a frame is copied into, or lies in already
    uint8_t *frame
    uint32_t small
    uint32_t large
    bint view       # Python has the buffer: the frame lies there already


cdef inline uint32_t index_in(const vtnet_pool *pool, const uint8_t *data) noexcept nogil:
    """The buffer whose frame starts at data, if Python has it and it may be sent; VTNET_NONE otherwise."""
    cdef uint64_t offset
    cdef uint32_t i
    if pool is NULL or pool.host is NULL:
        return VTNET_NONE
    offset = <uint64_t>data - <uint64_t>pool.host
    if virtio_likely(offset >= <uint64_t>pool.count * pool.stride):
        return VTNET_NONE
    i = <uint32_t>(offset // pool.stride)
    if offset % pool.stride != VTNET_HEAD or pool.state[i] != VTNET_VIEW:
        return VTNET_NONE
    return i


cdef inline bint find_place(vtnet_tx *tx, const uint8_t *data, uint32_t len, place *at) noexcept nogil:
    """Choose the buffer for a frame of len bytes that lies at data; there is room. False: none is large enough."""
    at.small = index_in(tx.small, data)
    at.large = VTNET_NONE if at.small != VTNET_NONE else index_in(tx.large, data)
    at.view = at.small != VTNET_NONE or at.large != VTNET_NONE
    if virtio_unlikely(at.view):
        at.frame = <uint8_t *>data
        return len <= (tx.small.room if at.small != VTNET_NONE else tx.large.room)
    if virtio_likely(len <= tx.small.room):
        at.small = pool_top(tx.small)
        at.frame = pool_frame(tx.small, at.small)
        return True
    if len > tx.sink.frame_max:
        return False
    at.large = pool_top(tx.large)
    at.frame = pool_frame(tx.large, at.large)
    return True


cdef inline void send(vtnet_tx *tx, const virtio_net_hdr *hdr, const place *at, uint32_t len) noexcept nogil:
    """Take the buffer, and add the frame in it to the burst."""
    if virtio_unlikely(at.view):
        if at.small != VTNET_NONE:
            tx.small.state[at.small] |= VTNET_SENT
        else:
            tx.large.state[at.large] |= VTNET_SENT
    elif at.small != VTNET_NONE:
        pool_taken(tx.small)
    else:
        pool_taken(tx.large)
    collect(tx, hdr, at.small, at.large, len, at.view)
