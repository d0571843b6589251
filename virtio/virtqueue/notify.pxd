# The one place that decides whether the peer is notified: both ends, both formats (VIRTIO 1.4, 2.7.10 and 2.8.10).
#
# The caller has published its new entries and run virtio_fence(): the fence orders that publication before the load of
# the peer's event index or flags. The peer does the mirror image (event index or flags, fence, look at the ring), so at
# least one of the two sees the other, and no wake-up is lost.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from virtio.core.counters cimport add_count
from virtio.virtqueue.structs cimport (
    VIRTIO_EVENT_DESC, VIRTIO_EVENT_DISABLE, VIRTIO_EVENT_ENABLE, VIRTIO_NOTIFY_BROKEN, VIRTIO_NOTIFY_EVENT_AHEAD,
    VIRTIO_NOTIFY_EVENT_CROSSED, VIRTIO_NOTIFY_FLAG_OFF, VIRTIO_NOTIFY_FLAG_ON, VIRTIO_NOTIFY_FORCED,
    VIRTIO_NOTIFY_NOTHING_NEW, VIRTIO_NOTIFY_RESERVED, virtio_notify,
)


cdef inline bint notify_verdict(virtio_notify *n, bint yes, uint8_t reason) noexcept nogil:
    n.reason = reason
    add_count(&n.sent, yes)
    add_count(&n.suppressed, not yes)
    return yes


cdef inline bint notify_quiet(virtio_notify *n, uint16_t index, uint64_t pending, bint broken) noexcept nogil:
    """Say whether the answer is no without a look at the peer: the queue is broken, or nothing is new or forced."""
    n.new_index = index
    # beyond 2^16 every event index was passed, so the count may stop there
    n.old_index = <uint16_t>(index - (pending if pending < 0xffff else 0xffff))
    if broken:
        n.reason = VIRTIO_NOTIFY_BROKEN
    elif pending == 0 and not n.force:
        n.reason = VIRTIO_NOTIFY_NOTHING_NEW
    else:
        return 0
    return 1


cdef inline bint need_event(uint16_t event, uint16_t new_index, uint16_t old_index) noexcept nogil:
    """Say whether event lies in (old, new], modulo 2^16 (2.7.10, vring_need_event)."""
    return <uint16_t>(new_index - event - 1) < <uint16_t>(new_index - old_index)


cdef inline bint notify_by_event(virtio_notify *n, uint16_t event) noexcept nogil:
    """Decide for a split ring with EVENT_IDX."""
    n.event = event
    if n.force:
        # a snapshot may have been taken between the peer's re-arm and our publication: its index proves nothing
        n.force = 0
        return notify_verdict(n, 1, VIRTIO_NOTIFY_FORCED)
    if need_event(event, n.new_index, n.old_index):
        return notify_verdict(n, 1, VIRTIO_NOTIFY_EVENT_CROSSED)
    return notify_verdict(n, 0, VIRTIO_NOTIFY_EVENT_AHEAD)


cdef inline bint notify_by_flag(virtio_notify *n, uint16_t flags) noexcept nogil:
    """Decide for a split ring without EVENT_IDX: bit 0 of used.flags or avail.flags."""
    n.flags = flags
    if n.force:
        n.force = 0
        return notify_verdict(n, 1, VIRTIO_NOTIFY_FORCED)
    if flags & 1:
        return notify_verdict(n, 0, VIRTIO_NOTIFY_FLAG_OFF)
    return notify_verdict(n, 1, VIRTIO_NOTIFY_FLAG_ON)


cdef inline bint notify_by_word(virtio_notify *n, uint32_t word, bint event_idx, uint16_t size,
                                bint wrap) noexcept nogil:
    """Decide for a packed ring: word is one snapshot of the peer's event suppression structure, wrap our counter."""
    cdef uint16_t event = word & 0x7fff
    cdef uint16_t added = <uint16_t>(n.new_index - n.old_index)
    n.event = word & 0xffff
    n.flags = (word >> 16) & 3
    if n.force:
        n.force = 0
        return notify_verdict(n, 1, VIRTIO_NOTIFY_FORCED)
    if n.flags == VIRTIO_EVENT_DISABLE:
        return notify_verdict(n, 0, VIRTIO_NOTIFY_FLAG_OFF)
    if n.flags == VIRTIO_EVENT_ENABLE:
        return notify_verdict(n, 1, VIRTIO_NOTIFY_FLAG_ON)
    if n.flags != VIRTIO_EVENT_DESC or not event_idx:
        return notify_verdict(n, 1, VIRTIO_NOTIFY_RESERVED)
    if <bint>((word >> 15) & 1) != wrap:  # the offset belongs to the lap before
        event = <uint16_t>(event - size)
    # a whole lap since the last decision passes every offset
    if added >= size or need_event(event, n.new_index, n.old_index):
        return notify_verdict(n, 1, VIRTIO_NOTIFY_EVENT_CROSSED)
    return notify_verdict(n, 0, VIRTIO_NOTIFY_EVENT_AHEAD)
