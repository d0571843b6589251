# Runs of plain chains at the device end of a virtqueue: what most chains of a network device are.
#
# A plain chain is one descriptor in one piece of memory. Those are popped one by one and used in the same order, with
# no virtio_chain between, which saves four in ten of the instructions. A run ends at whatever is not plain, which stays
# in the queue for device_pop_burst; that finds faults too. Nothing of the queue is taken until the commit.
#
#     if run_start(&run, q, limit, packed):
#         while run_next(&run, flags, packed):     # the buffer: run.host, run.length
#             run_keep(&run, entries, written, packed)
#         run_commit(&run, entries, n, batch, packed)    # the first n of them
#
# Its functions are to be inlined: the run then lies in registers. Callers hold q.lock.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from virtio.core.atomic cimport (
    virtio_load16, virtio_load64, virtio_load64_acquire, virtio_prefetch, virtio_prefetch_write, virtio_put64,
    virtio_store16_release, virtio_store64, virtio_store64_release, virtio_unlikely,
)
from virtio.core.counters cimport add_count
from virtio.virtqueue.chain_walk cimport range_holds, walk_is_single
from virtio.virtqueue.split_device cimport split_refresh_avail
from virtio.virtqueue.structs cimport (
    VIRTIO_DESC_F_AVAIL, VIRTIO_DESC_F_USED, VIRTIO_DESC_F_WRITE, VIRTIO_FAULT_NONE, VIRTIO_Q_FAR, virtio_device_queue,
)


cdef struct virtio_run:
    virtio_device_queue *q
    const uint64_t *desc   # split: the table; packed: the ring
    const uint16_t *avail  # split: the available ring's entries
    uint8_t *used          # split: the used ring's entries
    uint32_t wrap          # split: size - 1; packed: size
    uint32_t at            # split: index of the next available entry; packed: slot of the next descriptor
    uint32_t used_at       # the same of the next used one
    uint32_t limit         # chains that may still be taken
    uint32_t taken         # chains
    uint64_t marks         # packed: of an available descriptor on this lap (2.8.1),
    uint64_t used_marks    # and of a used one
    # the region of the last lookup
    uint64_t gpa
    uint64_t room
    uint64_t shift
    # of the chain that was taken last
    uint64_t host
    uint32_t length
    uint32_t id            # its head (split), or buffer id


cdef enum:
    RUN_FLAGS = 0x7        # NEXT, WRITE, INDIRECT


cdef inline uint64_t run_both() noexcept nogil:
    return <uint64_t>(VIRTIO_DESC_F_AVAIL | VIRTIO_DESC_F_USED) << 48


cdef inline uint32_t run_start(virtio_run *run, virtio_device_queue *q, uint32_t limit, bint packed) noexcept nogil:
    """Begin a run of up to limit chains; return how many there may be: 0 if none waits, or the queue has no runs."""
    cdef uint32_t ready
    run.limit = run.taken = 0
    run.marks = run.used_marks = 0
    run.avail = NULL
    run.used = NULL
    # nothing here is noted in a log, nor for a backend after us
    if q.fault.code != VIRTIO_FAULT_NONE or q.memory.log is not NULL or q.inflight is not NULL:
        return 0
    run.q = q
    run.at, run.used_at = q.next_avail, q.next_used
    run.gpa, run.room, run.shift = q.hit.gpa, q.hit.size, <uint64_t>q.hit.host - q.hit.gpa
    if packed:
        run.desc = <const uint64_t *>q.ring
        run.wrap = q.size
        run.marks = <uint64_t>(VIRTIO_DESC_F_AVAIL if q.avail_wrap else VIRTIO_DESC_F_USED) << 48
        run.used_marks = run_both() if q.used_wrap else 0
        ready = <uint32_t>q.size - q.inuse
    else:
        run.desc = <const uint64_t *>q.desc
        run.avail = q.avail.ring
        run.used = <uint8_t *>q.used.ring
        run.wrap = <uint32_t>q.size - 1
        ready = <uint16_t>(q.avail_seen - q.next_avail)
        if ready < limit:
            ready = split_refresh_avail(q)
    run.limit = ready if ready < limit else limit
    return run.limit


cdef inline void run_ahead(const virtio_run *run, bint write, bint packed) noexcept nogil:
    """Fetch what a burst takes, if the driver is on another core: the buffers of all its chains, and used entries.

    A line from there takes as long as the work for many a chain. They are asked for at once, so that they come
    together: a distance of some chains ahead would have only so many on the way.
    """
    cdef uint32_t at = run.at
    cdef uint32_t head
    cdef uint32_t i
    cdef uint64_t addr
    cdef const uint8_t *host
    if not run.q.flags & VIRTIO_Q_FAR:
        return
    for i in range(run.limit):
        if packed:
            if (virtio_load64(run.desc + 2 * <uint64_t>at + 1) ^ run.marks) & run_both():
                return
            addr = virtio_load64(run.desc + 2 * <uint64_t>at)
            at += 1
            if at == run.wrap:  # the next lap has other marks; a burst later it is this one
                return
        else:
            if i % 8 == 0:
                virtio_prefetch_write(run.used + 8 * <uint64_t>((run.used_at + i) & run.wrap))
            head = virtio_load16(run.avail + (at & run.wrap))
            if head > run.wrap:
                return
            addr = virtio_load64(run.desc + 2 * <uint64_t>head)
            at += 1
        if addr - run.gpa >= run.room:
            continue
        host = <const uint8_t *>(run.shift + addr)
        if write:
            virtio_prefetch_write(host)
            virtio_prefetch_write(host + 64)
        else:
            virtio_prefetch(host)
            virtio_prefetch(host + 64)


cdef inline bint run_is_over(const virtio_run *run, bint packed) noexcept nogil:
    """Whether nothing waits behind the chains that were kept: a run may also end at a chain that is not plain."""
    if packed:
        return ((virtio_load64(run.desc + 2 * <uint64_t>run.at + 1) ^ run.marks) & run_both()) != 0
    return run.limit == 0


cdef inline bint run_next(virtio_run *run, uint32_t flags, bint packed) noexcept nogil:
    """Look at the next chain: whether there is one, plain and with these flags. run_keep takes it."""
    cdef uint64_t addr
    cdef uint64_t word
    cdef uint32_t head
    if run.limit == 0:
        return False
    if packed:
        # acquire: the rest is read after the word that announces it (2.8.21)
        word = virtio_load64_acquire(run.desc + 2 * <uint64_t>run.at + 1)
        if (word & (run_both() | <uint64_t>RUN_FLAGS << 48)) != (run.marks | <uint64_t>flags << 48):
            return False
        addr = virtio_load64(run.desc + 2 * <uint64_t>run.at)
        run.id = <uint32_t>(word >> 32) & 0xffff
    else:
        head = virtio_load16(run.avail + (run.at & run.wrap))
        if virtio_unlikely(head > run.wrap):
            return False
        addr = virtio_load64(run.desc + 2 * <uint64_t>head)
        word = virtio_load64(run.desc + 2 * <uint64_t>head + 1)
        if <uint32_t>(word >> 32) & RUN_FLAGS != flags:
            return False
        run.id = head
    if virtio_unlikely(not range_holds(run.gpa, run.room, addr, <uint32_t>word)):
        if not walk_is_single(run.q, addr, <uint32_t>word, 0):
            return False
        run.gpa, run.room = run.q.hit.gpa, run.q.hit.size
        run.shift = <uint64_t>run.q.hit.host - run.gpa
    run.host = run.shift + addr
    run.length = <uint32_t>word
    return True


cdef inline void run_keep(virtio_run *run, uint64_t *entries, uint32_t written, bint packed) noexcept nogil:
    """Take the chain looked at, to be used with the bytes written."""
    if packed:
        # the length counts (2.8.7) where something was written
        entries[run.taken] = (written | <uint64_t>run.id << 32
                              | <uint64_t>(VIRTIO_DESC_F_WRITE if written else 0) << 48)
        run.at += 1
        if virtio_unlikely(run.at == run.wrap):
            run.at = 0
            run.marks ^= run_both()
    else:
        entries[run.taken] = run.id | <uint64_t>written << 32
        run.at += 1
    run.limit -= 1
    run.taken += 1


cdef inline void run_skip(virtio_run *run, uint32_t n) noexcept nogil:
    """Go on behind n used descriptors, a lap at most."""
    run.used_at += n
    if run.used_at >= run.wrap:
        run.used_at -= run.wrap
        run.used_marks ^= run_both()


cdef inline void run_put_packed(virtio_run *run, const uint64_t *entries, uint32_t n) noexcept nogil:
    """Use n descriptors, the last first: the driver polls the first one, and each look at its line takes it away."""
    cdef uint64_t *slot
    cdef uint64_t marks
    cdef uint32_t at
    cdef uint32_t i = n
    run_skip(run, n)
    at, marks = run.used_at, run.used_marks
    while True:
        if virtio_unlikely(at == 0):
            at = run.wrap
            marks ^= run_both()
        at -= 1
        i -= 1
        slot = <uint64_t *>run.desc + 2 * <uint64_t>at + 1
        if i == 0:
            break
        virtio_store64(slot, entries[i] | marks)
    # release: buffers and later used descriptors are visible before the one that the driver looks at first
    virtio_store64_release(slot, entries[0] | marks)


cdef inline void run_commit(virtio_run *run, const uint64_t *entries, uint32_t n, bint batch,
                            bint packed) noexcept nogil:
    """Use the first n chains that were kept, and show the driver; the queue goes on behind them.

    batch: nothing was written, and the driver takes them in order: one entry for all, where the first's would be,
    naming the last (2.7.9, 2.8.9).
    """
    cdef virtio_device_queue *q = run.q
    cdef uint32_t at, i
    if n == 0:
        return
    if packed:
        if batch:
            run_put_packed(run, entries + n - 1, 1)
            run_skip(run, n - 1)
        else:
            run_put_packed(run, entries, n)
        q.used_wrap = run.used_marks != 0
        at = q.next_avail + n
        if at >= run.wrap:
            at -= run.wrap
            q.avail_wrap = not q.avail_wrap
        q.next_avail = <uint16_t>at
    else:
        if batch:
            virtio_put64(run.used + 8 * <uint64_t>(run.used_at & run.wrap), entries[n - 1])
        else:
            for i in range(n):
                virtio_put64(run.used + 8 * <uint64_t>((run.used_at + i) & run.wrap), entries[i])
        run.used_at += n
        # release: buffers and used entries are visible before the index that announces them (2.7.8.2)
        virtio_store16_release(&q.used.idx, <uint16_t>run.used_at)
        q.next_avail = <uint16_t>(q.next_avail + n)
    q.next_used = <uint16_t>run.used_at
    add_count(&q.chains, n)
    add_count(&q.completions, n)
    q.pending += n
