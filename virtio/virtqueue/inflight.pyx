"""Chains in flight, noted in memory that outlives the process: a vhost-user backend is killed, and the next goes on.

Source: "Inflight I/O tracking" of QEMU's docs/interop/vhost-user.rst, whose names and steps these are. The layout is in
include/virtio/inflight.h.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from virtio.core.atomic cimport (
    virtio_load16, virtio_load16_acquire, virtio_load64, virtio_load64_acquire, virtio_store16, virtio_store16_release,
    virtio_store64, virtio_store64_release, virtio_store8_release,
)
from virtio.core.counters cimport add_count
from virtio.memory.guest_memory cimport VIRTIO_REGIONS_MAX
from virtio.virtqueue.chain_walk cimport WALK_OK, walk_packed, walk_split
from virtio.virtqueue.packed_device cimport packed_add_used_burst, packed_is_avail, packed_pop_burst, packed_unpop_burst
from virtio.virtqueue.split_device cimport split_add_used_burst, split_pop_burst, split_unpop_burst
from virtio.virtqueue.structs cimport (
    VIRTIO_DESC_F_AVAIL, VIRTIO_DESC_F_NEXT, VIRTIO_DESC_F_USED, VIRTIO_FAULT_NONE, VIRTIO_FAULT_RING_MEMORY,
    VIRTIO_INFLIGHT_VERSION, VIRTIO_RING_MAX, device_popped_again, device_put_back, virtio_desc_state_packed,
    virtio_desc_state_split, virtio_packed_desc, virtio_queue_region_packed, virtio_queue_region_split,
)

from virtio.errors import BadIndex, ChainLoop

cdef enum:
    ALIGN = 64  # bytes of a queue's region: a multiple of it, as every backend has it
    IDS = 0x10000
    COUNTER_BITS = 63  # what needs more, nobody counts to


# ---- split ----

cdef void note_split(virtio_inflight *f, const virtio_chain *chains, uint32_t n) noexcept nogil:
    """Take note of chains popped."""
    cdef virtio_desc_state_split *state
    cdef uint32_t i
    for i in range(n):
        state = f.split.desc + chains[i].head
        virtio_store64(&state.counter, f.counter)
        f.counter += 1
        virtio_store8_release(&state.inflight, 1)


cdef void forget_split(virtio_inflight *f, const virtio_chain *chains, uint32_t n) noexcept nogil:
    """Take note that chains are not in flight any more."""
    cdef uint32_t i
    for i in range(n):
        virtio_store8_release(&f.split.desc[chains[i].head].inflight, 0)


cdef void use_split(virtio_device_queue *q, const virtio_chain *chains, uint32_t n) noexcept nogil:
    cdef virtio_inflight *f = q.inflight
    cdef uint32_t i
    for i in range(n):
        virtio_store16_release(&f.split.desc[chains[i].head].next, f.last_batch_head)
        f.last_batch_head = chains[i].head
        virtio_store16_release(&f.split.last_batch_head, f.last_batch_head)
    split_add_used_burst(q, chains, n)  # used.idx, by a release store
    forget_split(f, chains, n)
    virtio_store16_release(&f.split.used_idx, q.next_used)


# ---- packed ----

cdef void put_free_heads(virtio_inflight *f, uint16_t old) noexcept nogil:
    """Store free_head, and the old one. With version and desc_num they are one word."""
    cdef uint64_t word = VIRTIO_INFLIGHT_VERSION | <uint64_t>f.entries << 16 | <uint64_t>f.free_head << 32
    virtio_store64_release(<uint64_t *>&f.packed.version, word | <uint64_t>old << 48)


cdef void put_used(virtio_inflight *f, uint32_t idx, bint wrap, uint32_t old, bint old_wrap) noexcept nogil:
    """Store used_idx, its wrap counter, and the old ones: one word, so that index and counter belong together."""
    cdef uint64_t word = idx | <uint64_t>old << 16 | <uint64_t>wrap << 32 | <uint64_t>old_wrap << 40
    virtio_store64_release(<uint64_t *>&f.packed.used_idx, word)


cdef inline uint16_t mark_of(uint32_t i, uint32_t slots, uint16_t flags) noexcept nogil:
    """The flags of descriptor i of a list: NEXT as it was walked, whatever the driver has written since."""
    return (flags | VIRTIO_DESC_F_NEXT) if i + 1 < slots else <uint16_t>(flags & ~VIRTIO_DESC_F_NEXT)


cdef void note_packed(virtio_device_queue *q, uint32_t slot, const virtio_chain *chains, uint32_t n) noexcept nogil:
    """Take note of chains popped, from slot on."""
    cdef virtio_inflight *f = q.inflight
    cdef virtio_desc_state_packed *state
    cdef uint32_t i, j, slots, entry, last
    cdef uint64_t word
    cdef uint16_t head, flags
    for i in range(n):
        slots = chains[i].slots
        head = f.free_head
        entry = last = head
        for j in range(slots):
            state = f.packed.desc + entry
            word = virtio_load64(<uint64_t *>&q.ring[slot].len)
            flags = mark_of(j, slots, <uint16_t>(word >> 48))
            virtio_store64(<uint64_t *>&state.id, chains[i].head | <uint64_t>flags << 16 | word << 32)
            virtio_store64(&state.addr, virtio_load64(&q.ring[slot].addr))
            slot = slot + 1 if slot + 1 < q.size else 0
            last = entry
            entry = f.next[entry]
        state = f.packed.desc + head
        virtio_store64(&state.counter, f.counter)
        f.counter += 1
        virtio_store64_release(<uint64_t *>&state.inflight,
                               1 | <uint64_t>f.next[head] << 16 | <uint64_t>last << 32 | <uint64_t>slots << 48)
        f.last[head] = <uint16_t>last
        f.num[head] = <uint16_t>slots
        f.older[head] = f.by_id[chains[i].head]
        f.by_id[chains[i].head] = head + 1
        f.free_head = <uint16_t>entry
        put_free_heads(f, f.free_head)  # from here on it counts


cdef uint32_t free_packed(virtio_inflight *f, const virtio_chain *chain) noexcept nogil:
    """Put a chain's entries back into the free list; return how many chains that were: 0 if it was not popped here.

    A driver may have given an id to several chains at a time. Then one of as many descriptors is meant: no entry may be
    free less often than its slot is.
    """
    cdef uint16_t *link = f.by_id + chain.head
    cdef uint16_t head
    while link[0] and f.num[link[0] - 1] != chain.slots:
        link = f.older + link[0] - 1
    if link[0] == 0:
        return 0
    head = link[0] - 1
    link[0] = f.older[head]
    f.next[f.last[head]] = f.free_head
    virtio_store16_release(&f.packed.desc[f.last[head]].next, f.free_head)
    f.free_head = head
    return 1


cdef void forget_packed(virtio_inflight *f, uint32_t n) noexcept nogil:
    """Take note that the n chains put into the free list last are not in flight any more."""
    cdef uint16_t head = f.free_head
    for _ in range(n):
        virtio_store8_release(&f.packed.desc[head].inflight, 0)
        head = f.next[f.last[head]]


cdef void unpop_packed(virtio_inflight *f, const virtio_chain *chains, uint32_t n) noexcept nogil:
    cdef uint32_t i, count = 0
    for i in range(n):
        count += free_packed(f, &chains[n - 1 - i])
    put_free_heads(f, f.free_head)  # what is in the free list is not in flight, whatever its entry says
    forget_packed(f, count)


cdef void use_packed(virtio_device_queue *q, const virtio_chain *chains, uint32_t n) noexcept nogil:
    cdef virtio_inflight *f = q.inflight
    cdef uint16_t old_free_head = f.free_head
    cdef uint32_t i, count = 0, idx = q.next_used
    cdef bint wrap = q.used_wrap
    for i in range(n):
        count += free_packed(f, &chains[i])
        idx += chains[i].slots
        if idx >= q.size:
            idx -= q.size
            wrap = not wrap
    put_free_heads(f, old_free_head)
    put_used(f, idx, wrap, q.next_used, q.used_wrap)
    packed_add_used_burst(q, chains, n)  # the first descriptor last, by a release store
    forget_packed(f, count)
    put_free_heads(f, f.free_head)
    put_used(f, idx, wrap, idx, wrap)


# ---- both ----

cdef uint32_t inflight_pop_again(virtio_device_queue *q, virtio_chain *chains, uint32_t limit, iovec *segs,
                                 uint32_t nsegs) noexcept nogil:
    cdef virtio_inflight *f = q.inflight
    cdef virtio_chain *chain
    cdef const uint64_t *desc
    cdef uint32_t n = 0, s = 0
    cdef uint16_t at
    cdef int why
    if q.fault.code != VIRTIO_FAULT_NONE:
        limit = min(limit, device_put_back(q))
    while n < limit and f.again < f.listed and s < nsegs:
        chain = chains + n
        at = f.heads[f.again]
        if q.packed:
            desc = <const uint64_t *>(f.copies + at)
            why = walk_packed(q, f.copies, at, 0, chain, segs, s, nsegs, desc[0], desc[1])
        else:
            desc = <const uint64_t *>(q.desc + at)
            chain.head = at
            why = walk_split(q, chain, segs, s, nsegs, virtio_load64(desc), virtio_load64(desc + 1))
        if why != WALK_OK:
            break
        s += <uint32_t>chain.nreadable + chain.nwritable
        f.again += 1
        n += 1
    add_count(&q.chains, n)
    if q.fault.code != VIRTIO_FAULT_NONE and (n or f.again < f.listed):
        device_popped_again(q, n)
    return n


cdef uint32_t inflight_pop_burst(virtio_device_queue *q, virtio_chain *chains, uint32_t limit, iovec *segs,
                                 uint32_t nsegs) noexcept nogil:
    """Take chains: those of the backend before us first. See split_pop_burst."""
    cdef virtio_inflight *f = q.inflight
    cdef uint32_t n = inflight_pop_again(q, chains, limit, segs, nsegs)
    cdef uint32_t s = 0, slot = q.next_avail
    cdef uint32_t got, i
    if q.fault.code != VIRTIO_FAULT_NONE and f.again < f.listed:
        return n  # those come first
    if n:
        s = chains[n - 1].first + chains[n - 1].nreadable + chains[n - 1].nwritable
        # a chain that would fit into the whole array must not be told that it fits into none
        if f.again < f.listed or nsegs - s < q.max_chain + VIRTIO_REGIONS_MAX:
            return n
    chains += n
    if q.packed:
        got = packed_pop_burst(q, chains, limit - n, segs + s, nsegs - s)
        note_packed(q, slot, chains, got)
    else:
        got = split_pop_burst(q, chains, limit - n, segs + s, nsegs - s)
        note_split(f, chains, got)
    f.fresh += got
    for i in range(got):
        chains[i].first += s
    return n + got


cdef void inflight_unpop_burst(virtio_device_queue *q, const virtio_chain *chains, uint32_t n) noexcept nogil:
    """Put back the last n chains popped, none of them used. Those of the backend before us stay in flight."""
    cdef virtio_inflight *f = q.inflight
    cdef uint32_t fresh = n if n < f.fresh else <uint32_t>f.fresh
    chains += n - fresh
    f.again -= n - fresh
    virtio_store64(&q.chains, q.chains - (n - fresh))
    if q.fault.code != VIRTIO_FAULT_NONE:
        q.put_back += n - fresh
    f.fresh -= fresh
    f.counter -= fresh
    if q.packed:
        unpop_packed(f, chains, fresh)
        packed_unpop_burst(q, chains, fresh)
    else:
        forget_split(f, chains, fresh)
        split_unpop_burst(q, fresh)


cdef void inflight_add_used_burst(virtio_device_queue *q, const virtio_chain *chains, uint32_t n) noexcept nogil:
    """Give n chains back; they are in flight until the driver sees them used. See split_add_used_burst."""
    if n == 0 or q.fault.code == VIRTIO_FAULT_RING_MEMORY:
        return
    if q.packed:
        use_packed(q, chains, n)
    else:
        use_split(q, chains, n)


# ---- the region, as it is found ----

cdef int check_range(str what, uint64_t value, uint64_t limit) except -1:
    if value >= limit:
        raise BadIndex(f"inflight region: {what} is {value} (limit {limit - 1})", value, limit - 1)
    return 0


cdef int check_equal(str what, uint64_t value, uint64_t wanted) except -1:
    if value != wanted:
        raise BadIndex(f"inflight region: {what} is {value}, not {wanted}", value, wanted)
    return 0


cdef class Inflight:
    """The region of one queue in ``region`` at ``offset``, for ``entries`` descriptors. Sizes are in bytes.

    ``DeviceQueue.track`` takes it; from then on what the queue pops and gives back is noted there. Raises ValueError
    for entries that no queue has, and for an offset that is not a multiple of 8 or leaves too little room.

    The region is shared with a frontend that is not believed: it is read when the queue is given it, and refused if it
    contradicts itself. One queue has it, once, under its lock.

    Source: QEMU's docs/interop/vhost-user.rst, "Inflight I/O tracking".
    """

    def __init__(self, Region region not None, offset, int entries):
        if self.region is not None:
            raise TypeError("inflight region is initialised already")
        if not 1 <= entries <= <int>VIRTIO_RING_MAX:
            raise ValueError(f"inflight region of {entries} descriptors (1 to {VIRTIO_RING_MAX})")
        if offset < 0 or (region.address + offset) % 8:
            raise ValueError(f"inflight region at offset {offset}, which is no multiple of 8")
        if offset + self.size(entries, False) > region.size:
            raise ValueError(f"inflight region of {entries} descriptors at offset {offset} does not fit into "
                             f"{region.size} bytes")
        self.region, self.offset, self.entries = region, offset, entries
        self.c.entries = <uint16_t>entries

    def __dealloc__(self):
        free(self.c.next)
        free(self.c.last)
        free(self.c.num)
        free(self.c.older)
        free(self.c.by_id)
        free(self.c.heads)
        free(self.c.copies)

    @staticmethod
    def size(int entries, bint packed):
        """Return the bytes of one queue's region."""
        cdef size_t size
        if packed:
            size = sizeof(virtio_queue_region_packed) + entries * sizeof(virtio_desc_state_packed)
        else:
            size = sizeof(virtio_queue_region_split) + entries * sizeof(virtio_desc_state_split)
        return (size + ALIGN - 1) // ALIGN * ALIGN

    @property
    def waiting(self):
        """Chains of the backend before us that are to be popped again."""
        return self.c.listed - self.c.again

    cdef int attach(self, virtio_device_queue *q) except -1:
        """Make q go on where the region says, or the region begin where q stands. The caller holds q's lock.

        Raises RingError for what cannot be in a region; ValueError if it is not for this queue. q is then as it was.
        """
        if self.attached:
            raise ValueError("inflight region was given to a queue already")
        if q.next_avail != q.next_used or q.inuse:
            raise ValueError("chains are outstanding")
        if self.entries < q.size:
            raise ValueError(f"inflight region of {self.entries} descriptors (queue size {q.size})")
        if self.offset + self.size(self.entries, q.packed) > self.region.size:
            raise ValueError(f"inflight region of {self.entries} descriptors at offset {self.offset} does not fit into "
                             f"{self.region.size} bytes")
        self.attached = True
        if q.packed:
            self.attach_packed(q)
        else:
            self.attach_split(q)
        q.inflight = &self.c
        return 0

    cdef int list_again(self, list found, uint32_t descriptors) except -1:
        """Keep the chains found, as (counter, head), in the order of their counters."""
        cdef uint32_t i
        found.sort()
        self.c.heads = <uint16_t *>calloc(len(found) + 1, sizeof(uint16_t))
        self.c.copies = <virtio_packed_desc *>calloc(descriptors + 1, sizeof(virtio_packed_desc))
        if self.c.heads is NULL or self.c.copies is NULL:
            raise MemoryError()
        for i in range(<uint32_t>len(found)):
            self.c.heads[i] = found[i][1]
        self.c.listed = <uint32_t>len(found)
        self.c.counter = max(found)[0] + 1 if found else 0
        return 0

    cdef int attach_split(self, virtio_device_queue *q) except -1:
        cdef virtio_queue_region_split *r = <virtio_queue_region_split *>(self.region.host + self.offset)
        cdef uint16_t version = virtio_load16(&r.version)
        cdef uint16_t used_idx, batch, made
        cdef uint32_t at
        cdef uint64_t word, counter
        cdef list found = []
        cdef set cleared = set()
        self.c.split = r
        if version == 0:
            memset(r, 0, self.size(self.entries, False))
            virtio_store16(&r.desc_num, <uint16_t>self.entries)
            virtio_store16(&r.used_idx, q.next_used)
            virtio_store16_release(&r.version, VIRTIO_INFLIGHT_VERSION)
            return 0
        check_equal("version", version, VIRTIO_INFLIGHT_VERSION)
        check_equal("features", virtio_load64(&r.features), 0)
        check_equal("desc_num", virtio_load16(&r.desc_num), self.entries)
        # the last batch was seen by the driver, if used.idx says so: the entries may not say it yet
        used_idx = virtio_load16(&r.used_idx)
        batch = <uint16_t>(q.next_used - used_idx)
        if batch > self.entries:
            raise BadIndex(f"inflight region: used_idx {used_idx} is {batch} chains behind used.idx {q.next_used} "
                           f"(limit {self.entries})", batch, self.entries)
        at = virtio_load16(&r.last_batch_head)
        self.c.last_batch_head = <uint16_t>at
        for _ in range(batch):
            check_range("descriptor of the last batch", at, self.entries)
            cleared.add(at)
            at = <uint16_t>(virtio_load64(<uint64_t *>&r.desc[at].inflight) >> 48)
        for at in range(<uint32_t>self.entries):
            word = virtio_load64(<uint64_t *>&r.desc[at].inflight) & 0xff
            check_range(f"inflight of descriptor {at}", word, 2)
            if word and at not in cleared:
                check_range("descriptor in flight", at, q.size)
                counter = virtio_load64(&r.desc[at].counter)
                check_range(f"counter of descriptor {at}", counter, <uint64_t>1 << COUNTER_BITS)
                found.append((counter, at))
        made = <uint16_t>(virtio_load16_acquire(&q.avail.idx) - q.next_used)
        if len(found) > made:
            raise BadIndex(f"inflight region: {len(found)} chains in flight, of which {made} were made available",
                           len(found), made)
        self.list_again(found, 0)
        for at in cleared:
            virtio_store8_release(&r.desc[at].inflight, 0)
        virtio_store16_release(&r.used_idx, q.next_used)
        q.next_avail = q.avail_seen = <uint16_t>(q.next_used + len(found))
        return 0

    cdef int begin_packed(self, virtio_device_queue *q) except -1:
        """Make an empty region, of a queue that stands where it does."""
        cdef virtio_queue_region_packed *r = self.c.packed
        cdef uint32_t i
        memset(r, 0, self.size(self.entries, True))
        for i in range(<uint32_t>self.entries):
            self.c.next[i] = <uint16_t>(i + 1)
            virtio_store16(&r.desc[i].next, <uint16_t>(i + 1))
        put_used(&self.c, q.next_used, q.used_wrap, q.next_used, q.used_wrap)
        put_free_heads(&self.c, 0)  # and the version
        return 0

    cdef int attach_packed(self, virtio_device_queue *q) except -1:
        cdef virtio_inflight *f = &self.c
        cdef virtio_queue_region_packed *r = <virtio_queue_region_packed *>(self.region.host + self.offset)
        cdef uint64_t heads = virtio_load64(<uint64_t *>&r.version)
        cdef uint64_t used = virtio_load64(<uint64_t *>&r.used_idx)
        cdef int idx = used & 0xffff, old = used >> 16 & 0xffff
        cdef int wrap = used >> 32 & 0xff, old_wrap = used >> 40 & 0xff
        cdef int batch, slots
        cdef bint seen
        f.packed = r
        f.next = <uint16_t *>calloc(self.entries, sizeof(uint16_t))
        f.last = <uint16_t *>calloc(self.entries, sizeof(uint16_t))
        f.num = <uint16_t *>calloc(self.entries, sizeof(uint16_t))
        f.older = <uint16_t *>calloc(self.entries, sizeof(uint16_t))
        f.by_id = <uint16_t *>calloc(IDS, sizeof(uint16_t))
        if f.next is NULL or f.last is NULL or f.num is NULL or f.older is NULL or f.by_id is NULL:
            raise MemoryError()
        if heads & 0xffff == 0:
            return self.begin_packed(q)
        check_equal("version", heads & 0xffff, VIRTIO_INFLIGHT_VERSION)
        check_equal("features", virtio_load64(&r.features), 0)
        check_equal("desc_num", heads >> 16 & 0xffff, self.entries)
        check_range("used_idx", idx, q.size)
        check_range("old_used_idx", old, q.size)
        check_range("used_wrap_counter", wrap, 2)
        check_range("old_used_wrap_counter", old_wrap, 2)
        batch = idx - old + (q.size if wrap != old_wrap else 0)
        if not 0 <= batch <= q.size:
            raise BadIndex(f"inflight region: used_idx {idx} is {batch} slots ahead of old_used_idx {old} "
                           f"(limit {q.size})", batch, q.size)
        # the last batch was seen by the driver, if its first descriptor is not an available one any more
        seen = batch and not packed_is_avail(virtio_load64_acquire(<uint64_t *>&q.ring[old].len), old_wrap)
        f.free_head = <uint16_t>(heads >> 32) if seen else <uint16_t>(heads >> 48)
        slots = self.read_packed(q)
        if seen:
            old, old_wrap = idx, wrap
        else:
            hide_used(q, <uint32_t>old, old_wrap, <uint32_t>batch)
        put_free_heads(f, f.free_head)
        put_used(f, <uint32_t>old, old_wrap, <uint32_t>old, old_wrap)
        self.settle_free()
        q.next_used, q.used_wrap = <uint16_t>old, old_wrap
        q.inuse = <uint16_t>slots
        q.next_avail = <uint16_t>((old + slots) % q.size)
        q.avail_wrap = old_wrap ^ (old + slots >= q.size)
        return 0

    cdef int read_packed(self, virtio_device_queue *q) except -1:
        """Read all entries, once; list the chains in flight; return how many slots of the ring they have."""
        cdef virtio_inflight *f = &self.c
        cdef uint32_t entry, at, num, slots = 0, count = 0
        cdef uint64_t word, counter
        cdef bytearray taken = bytearray(self.entries)  # entries that are in the free list or in a chain
        cdef list found = []
        cdef dict nums = {}
        for entry in range(<uint32_t>self.entries):
            word = virtio_load64(<uint64_t *>&f.packed.desc[entry].inflight)
            check_range(f"inflight of entry {entry}", word & 0xff, 2)
            f.next[entry], f.last[entry] = <uint16_t>(word >> 16), <uint16_t>(word >> 32)
            if word & 0xff:
                nums[entry] = <uint16_t>(word >> 48)
        at = f.free_head
        while at != <uint32_t>self.entries:
            self.take_entry(taken, "free list", at)
            nums.pop(at, None)  # popped and not noted to the end, or used and not noted to the end
            count += 1
            at = f.next[at]
        for entry, num in nums.items():
            check_range(f"num of entry {entry}", num, <uint64_t>q.size + 1)
            if num == 0:
                raise BadIndex(f"inflight region: num of entry {entry} is 0 (1 to {q.size})", 0, q.size)
            at = entry
            for _ in range(num - 1):
                self.take_entry(taken, f"chain of entry {entry}", at)
                at = f.next[at]
            self.take_entry(taken, f"chain of entry {entry}", at)
            check_equal(f"last of entry {entry}", f.last[entry], at)
            counter = virtio_load64(&f.packed.desc[entry].counter)
            check_range(f"counter of entry {entry}", counter, <uint64_t>1 << COUNTER_BITS)
            found.append((counter, entry))
            slots += num
        check_range("number of slots in flight", slots, <uint64_t>q.size + 1)
        check_equal("number of entries that are free or in flight", count + slots, self.entries)
        self.list_again(found, slots)
        self.copy_packed(nums)
        return slots

    cdef int take_entry(self, bytearray taken, str what, uint32_t at) except -1:
        check_range(f"entry in the {what}", at, self.entries)
        if taken[at]:
            raise ChainLoop(f"inflight region: {what} comes to entry {at}, which is taken", at, self.entries)
        taken[at] = 1
        return 0

    cdef int copy_packed(self, dict nums) except -1:
        """Copy the descriptors of the chains listed, whose heads become where their copies begin."""
        cdef virtio_inflight *f = &self.c
        cdef virtio_desc_state_packed *state
        cdef uint32_t i, j, num, at, n = 0
        cdef uint16_t head, id = 0
        cdef uint64_t word
        for i in range(f.listed):
            head = f.heads[i]
            f.heads[i] = <uint16_t>n
            num = nums[head]
            f.num[head] = <uint16_t>num
            at = head
            for j in range(num):
                state = f.packed.desc + at
                word = virtio_load64(<uint64_t *>&state.id)
                check_equal(f"NEXT in flags of entry {at}", word >> 16 & VIRTIO_DESC_F_NEXT,
                            VIRTIO_DESC_F_NEXT if j + 1 < num else 0)
                id = <uint16_t>word
                f.copies[n].addr = virtio_load64(&state.addr)
                f.copies[n].len = <uint32_t>(word >> 32)
                f.copies[n].id = id
                f.copies[n].flags = <uint16_t>(word >> 16)
                n += 1
                at = f.next[at]
            f.older[head] = f.by_id[id]  # the last descriptor's counts (2.8.5)
            f.by_id[id] = head + 1
        return 0

    cdef void settle_free(self) noexcept:
        """Say of each free entry that it is not in flight."""
        cdef uint16_t at = self.c.free_head
        while at != self.c.entries:
            virtio_store8_release(&self.c.packed.desc[at].inflight, 0)
            at = self.c.next[at]


cdef void hide_used(virtio_device_queue *q, uint32_t slot, bint wrap, uint32_t batch) noexcept:
    """Make descriptors available again of a batch from slot on, of which the driver has not seen the first used.

    Those behind the first were marked before it. Left so, the driver would take them for used as soon as the first is.
    """
    cdef uint16_t both = VIRTIO_DESC_F_AVAIL | VIRTIO_DESC_F_USED
    cdef uint16_t flags
    for _ in range(batch):
        flags = virtio_load16(&q.ring[slot].flags)
        if flags & both == (both if wrap else 0):
            virtio_store16(&q.ring[slot].flags, flags ^ <uint16_t>VIRTIO_DESC_F_USED if wrap else
                           flags | <uint16_t>VIRTIO_DESC_F_USED)
        slot += 1
        if slot == q.size:
            slot = 0
            wrap = not wrap
