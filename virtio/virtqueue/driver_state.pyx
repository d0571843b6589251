"""The private state of a driver queue as plain data."""

from libc.stdint cimport uint16_t, uint32_t

from virtio.virtqueue.driver_common cimport driver_outstanding
from virtio.virtqueue.structs cimport (
    VIRTIO_CHAIN_END, VIRTIO_Q_CLAMP_USED_LEN, VIRTIO_Q_IN_ORDER, state_ndesc, state_word, state_writable,
)

from virtio.errors import SnapshotError
from virtio.virtqueue.saved import (
    FEATURES_MAX, U16, U32, U64, entries, fields, flag, mapping, number, optional, text, tuples
)

# what DriverQueue.state() gives; the rest depends on the queue's size
QUEUE = fields({
    "end": text, "layout": mapping, "features": number(0, FEATURES_MAX), "index": number(0, U16),
    "indirect": optional(number(0, U64)), "max_indirect": number(0, MAX_INDIRECT), "clamp_used_len": flag,
    "next_avail": number(0, U16), "avail_wrap": flag, "next_used": number(0, U16), "used_wrap": flag,
    "free_head": number(0, U16), "oldest": number(0, U16), "batch": optional(tuples(number(0, U16), number(0, U32))),
    "pending": number(0, U64), "intr_enabled": flag, "used_event": number(0, U16), "avail_flags": number(0, U16),
    "event_word": number(0, U32), "links": entries(number(0, U16)), "outstanding": entries(entries(number(0, U32), 3)),
})


def link_of(size):
    """Return the check of a link: a descriptor of the queue, or the end of the list."""
    within = number(0, size - 1)

    def check(value, field):
        if value != VIRTIO_CHAIN_END:
            within(value, field)

    return check


cdef dict driver_state(virtio_driver_queue *q):
    cdef uint32_t i
    return dict(
        max_indirect=q.max_indirect, clamp_used_len=bool(q.flags & VIRTIO_Q_CLAMP_USED_LEN),
        next_avail=q.next_avail, avail_wrap=q.avail_wrap, next_used=q.next_used, used_wrap=q.used_wrap,
        free_head=q.free_head, oldest=q.oldest, batch=[q.batch_id, q.batch_len] if q.batch else None,
        pending=q.pending, intr_enabled=q.intr_enabled, used_event=q.used_event, avail_flags=q.avail_flags,
        event_word=q.event_word, links=[q.links[i] for i in range(q.size)],
        outstanding=[[i, state_ndesc(q.state[i].word), state_writable(q.state[i].word)] for i in range(q.size)
                     if state_ndesc(q.state[i].word)],
    )


cdef int check_state(object state) except -1:
    QUEUE(state)
    if state["end"] != "driver":
        raise SnapshotError("end", f"is {state['end']!r:.80}, not 'driver'")
    return 0


cdef int check_links(virtio_driver_queue *q, object state) except -1:
    """Raise unless the free list and the chains use each descriptor (packed: the free list each free id) once.

    With IN_ORDER there is no list to check: chains lie one behind the other, the oldest first.
    """
    cdef set seen = set()
    cdef uint32_t at, _k
    if q.flags & VIRTIO_Q_IN_ORDER:
        at = state["next_used"] if q.packed else q.oldest
        for _k in range(driver_outstanding(q)):
            if state_ndesc(q.state[at].word) == 0:
                raise SnapshotError("outstanding", f"has no chain at descriptor {at}, where the next in order is")
            at = (at + state_ndesc(q.state[at].word)) % q.size
        if at != (state["next_avail"] if q.packed else q.free_head):
            raise SnapshotError("outstanding", f"ends at descriptor {at}, not where the next chain goes")
        return 0
    for head, ndesc, _ in state["outstanding"]:
        at = head
        for _k in range(1 if q.packed else ndesc):
            if at >= q.size or at in seen:
                raise SnapshotError("links", f"reach descriptor {at} twice or nowhere")
            seen.add(at)
            at = q.links[at]
    at = q.free_head
    while len(seen) < q.size:
        if at >= q.size or at in seen:
            raise SnapshotError("links", f"reach descriptor {at} twice or nowhere")
        seen.add(at)
        at = q.links[at]
    return 0


cdef int driver_resume(virtio_driver_queue *q, object state) except -1:
    cdef uint32_t size = q.size
    cdef uint32_t i, slots = 0
    links, outstanding = state["links"], state["outstanding"]
    entries(link_of(size), size)(links, "links")
    entries(tuples(number(0, size - 1), number(1, size), number(0, U32)), most=size)(outstanding, "outstanding")
    for _, ndesc, _ in outstanding:
        slots += ndesc
    if slots > size or len({chain[0] for chain in outstanding}) != len(outstanding):
        raise SnapshotError("outstanding", f"has {slots} descriptors, or a head twice: queue size {size}")
    for key in ("next_avail", "next_used") if q.packed else ("free_head", "oldest"):
        if not (key == "free_head" and slots == size):
            number(0, size - 1)(state[key], key)
    if state["batch"] is not None and state["batch"][0] not in {chain[0] for chain in outstanding}:
        raise SnapshotError("batch", f"ends with chain {state['batch'][0]}, which is not outstanding")
    for i in range(size):
        q.links[i] = links[i]
    for head, ndesc, writable in outstanding:
        q.state[head].word = state_word(writable, ndesc)
    q.chains = len(outstanding)
    q.nfree = <uint16_t>(size - slots)
    q.free_head, q.oldest = state["free_head"], state["oldest"]
    check_links(q, state)
    q.next_avail, q.next_used = state["next_avail"], state["next_used"]
    q.used_seen = q.next_used
    q.avail_wrap, q.used_wrap = bool(state["avail_wrap"]), bool(state["used_wrap"])
    if state["batch"] is not None:
        q.batch = 1
        q.batch_id, q.batch_len = state["batch"]
    q.pending, q.intr_enabled = state["pending"], bool(state["intr_enabled"])
    q.used_event, q.avail_flags, q.event_word = state["used_event"], state["avail_flags"], state["event_word"]
    q.notify.force = 1
    return 0
