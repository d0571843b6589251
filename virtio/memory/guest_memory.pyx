"""Guest memory: a map of regions, checked access to it, and the dirty log of a migration."""

cimport cython
from cpython.buffer cimport Py_buffer, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.number cimport PyNumber_Index
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, UINT64_MAX
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove

from virtio.core.atomic cimport (
    virtio_exchange8, virtio_load16_acquire, virtio_load32_acquire, virtio_load64_acquire, virtio_load8,
    virtio_store16_release, virtio_store32_release, virtio_store64_release,
)
from virtio.core.iov cimport iov_read_all
from virtio.memory.region cimport sort_regions

from weakref import ref

from virtio.errors import MemoryFault
from virtio.core.process import PATIENCE, ForkAwareLock


_LOG_MAX = 1 << 26  # bytes of a log that we allocate unasked: 2 TiB of addresses


cdef uint64_t log_bytes(tuple regions):
    """Return the bytes of a vhost log that covers the highest address."""
    cdef Region last
    if not regions:
        return 1
    last = regions[len(regions) - 1]
    return (last.gpa + (last.size - 1) >> VIRTIO_PAGE_SHIFT >> 3) + 1


cdef Region new_log(uint64_t needed):
    if needed > <uint64_t>_LOG_MAX:
        raise ValueError(f"a dirty log of {needed} bytes is too large to be allocated unasked (limit {_LOG_MAX}): "
                         "give start_log() a buffer")
    return Region(0, bytearray(needed))


cdef inline void copy_in(const memory_span *found, const uint8_t *data) noexcept nogil:
    cdef uint32_t i
    for i in range(found.parts):
        memmove(found.part[i].iov_base, data, found.part[i].iov_len)  # data may be a view of the same memory
        data += found.part[i].iov_len


cdef object view_of(tuple regions, memory_span *found, uint32_t i, uint64_t length):
    cdef Region region = regions[found.first + i]
    cdef Py_ssize_t offset = <uint8_t *>found.part[i].iov_base - region.host
    return PyMemoryView_FromObject(region)[offset:offset + <Py_ssize_t>length]


cdef class MemoryUser:
    """Something that keeps host addresses of guest memory: a queue. Told before and after the map changes."""

    cdef void hold(self) noexcept:
        pass

    cdef void remap(self) noexcept:
        pass

    cdef void release(self) noexcept:
        pass

    def comes_free(self, seconds):
        """Say whether it can be held, within so many seconds."""
        return True


class LastHeld(ref):
    """A reference to a user that is held behind those that are none: see :meth:`GuestMemory.hold_last`."""


cdef class GuestMemory:
    """The memory of a guest: up to 509 regions at any 64-bit guest-physical addresses, with holes or adjacent.

    ``regions`` are :class:`Region` objects or tuples (gpa, buffer). All addresses and lengths are in bytes. Whatever
    touches a byte outside of every region raises MemoryFault, and so do addresses that are negative or at or above
    2**64. A range of length 0 is nowhere outside for read, write, gather and log_dirty; translate, view and the
    reverse look-ups need its address to be inside.

    Threads: any thread may call anything at any time. A change of the map waits until no queue bound to this memory is
    within a burst, and bytes that an access found stay alive until it is done. What several threads (or the guest)
    write to the same bytes at the same time is theirs to order. In a child of fork(), where a thread of the parent was
    at work on a queue or on the map at that moment, a change raises RuntimeError, and changes nothing.
    """

    def __cinit__(self):
        self._regions = ()
        self._users = []
        self._lock = ForkAwareLock("guest memory")
        self.c.regions = <virtio_region *>calloc(VIRTIO_REGIONS_FLAT, sizeof(virtio_region))
        if self.c.regions is NULL:
            raise MemoryError
        for i in range(VIRTIO_REGIONS_FLAT):
            self.c.first[i] = UINT64_MAX

    def __init__(self, regions=()):
        self.replace(regions)

    def __dealloc__(self):
        free(self.c.regions)

    @classmethod
    def allocate(cls, size, gpa=0):
        """Make a memory of one region: ``size`` zeroed bytes at ``gpa``, which take memory only once touched.

        Raises ValueError for an empty region or one that ends above 2**64, OSError when there is no room.
        """
        return cls((Region.allocate(gpa, size),))

    # ---- the map ----

    @property
    def regions(self):
        """The regions, sorted by guest address."""
        return self._regions

    def replace(self, regions):
        """Replace the whole map, also while queues use it.

        Queues are stopped between two bursts, find their rings again in the new map, and go on; one whose ring is gone
        is broken. Buffers of regions that left are let go afterwards, once no memoryview of them is left either.

        Raises ValueError, and changes nothing, for overlapping regions, more than 509, or a map that the buffer given
        to start_log() does not cover.
        """
        with self._lock:
            self._install(sort_regions(regions))

    def add(self, region):
        """Add one region (or tuple) to the map; see :meth:`replace`."""
        with self._lock:
            self._install(sort_regions(self._regions + (region,)))

    def remove(self, region):
        """Remove one region, the very object, from the map; see :meth:`replace`. ValueError when it is not in it."""
        with self._lock:
            rest = tuple([other for other in self._regions if other is not region])
            if len(rest) == len(self._regions):
                raise ValueError(f"{region!r} is not in this memory")
            self._install(rest)

    cdef int attach(self, MemoryUser user) except -1:
        """Tell user of changes from now on, as long as it lives. Attach first, then translate: no change is missed."""
        with self._lock:
            live = [known for known in self._users if known() is not None]
            if all([known() is not user for known in live]):  # holding one twice would wait for ever
                live.append(ref(user))
            self._users = live
        return 0

    def hold_last(self, MemoryUser user not None):
        """Hold a user behind the others: a thread that has the lock of one of those may wait for this one's.

        So it is with a queue that frames are delivered into: the queue that they come from is locked meanwhile.
        """
        with self._lock:
            self._users = [LastHeld(user) if known() is user else known for known in self._users]

    cdef list _live_users(self):
        """Return the users, in the order in which they are to be held. One change at a time holds them."""
        cdef list users = sorted([(isinstance(known, LastHeld), known()) for known in self._users],
                                 key=lambda found: found[0])
        users = [user for _, user in users if user is not None]
        if not self._lock.origin.here:
            if not all([user.comes_free(PATIENCE) for user in users]):
                self._lock.origin.check()
            self._lock.adopt()
        return users

    cdef int _install(self, tuple regions) except -1:
        cdef Py_ssize_t count = len(regions)
        cdef Py_ssize_t room = max(count, <Py_ssize_t>VIRTIO_REGIONS_FLAT)
        cdef Py_ssize_t i
        cdef uint64_t needed = log_bytes(regions)
        cdef Region region
        cdef Region log = self._log
        cdef tuple _kept = self._regions  # the old buffers live until every user has let go of them
        cdef list users = self._live_users()
        cdef MemoryUser user
        cdef virtio_region *table
        if log is not None and needed > log.size:
            if not self._own_log:
                raise ValueError(f"the new map needs a dirty log of {needed} bytes, the one in use has {log.size}: "
                                 "start_log() with a larger one first")
            log = new_log(needed)
        table = <virtio_region *>calloc(room, sizeof(virtio_region))
        if table is NULL:
            raise MemoryError
        for i in range(count):
            region = regions[i]
            table[i].gpa = region.gpa
            table[i].size = region.size
            table[i].host = region.host
            table[i].uaddr = region.uaddr
        for i in range(count, room):  # see memory_region: the last address compares above the padding
            table[i] = table[count - 1] if count else table[i]
        for user in users:
            user.hold()
        with cython.critical_section(self):
            table, self.c.regions = self.c.regions, table
            for i in range(VIRTIO_REGIONS_FLAT):
                self.c.first[i] = self.c.regions[i].gpa if i < count else UINT64_MAX
            self.c.count = count
            self.c.generation += 1
            self._regions = regions
            if log is not self._log:
                memcpy(log.host, self.c.log, self.c.log_size)
                self.c.log = log.host
                self.c.log_size = log.size
                self._log = log
        for user in users:
            user.remap()
        for user in users:
            user.release()
        free(table)
        return 0

    # ---- finding ----

    cdef tuple _find(self, object gpa, object length, memory_span *found, uint32_t limit):
        """Find [gpa, gpa + length) in at most limit pieces, or raise; returns what keeps the pieces alive."""
        cdef uint64_t address
        cdef uint64_t size
        cdef int parts
        cdef tuple regions
        try:
            address = PyNumber_Index(gpa)
            size = PyNumber_Index(length)
        except OverflowError:
            raise MemoryFault(gpa, length) from None
        with cython.critical_section(self):
            regions = self._regions
            parts = memory_gather(&self.c, address, size, found.part, limit)
            if parts > 0:
                found.first = min(<uint32_t>(memory_region(&self.c, address) - self.c.regions), self.c.count - 1)
        if parts == -2:  # an honest answer needs to know whether all of it is memory
            self._find(gpa, length, found, VIRTIO_REGIONS_MAX)
            raise MemoryFault(gpa, length, "any one region (not contiguous: use gather)")
        if parts < 0:
            raise MemoryFault(gpa, length)
        found.parts = parts
        return regions

    cdef object _reverse(self, object start, object length, bint by_uaddr):
        cdef uint64_t address
        cdef uint64_t size
        cdef uint64_t offset
        cdef uint64_t gpa
        cdef uint32_t i
        cdef bint found = False
        try:
            address = PyNumber_Index(start)
            size = PyNumber_Index(length)
        except OverflowError:
            pass
        else:
            with cython.critical_section(self):
                for i in range(self.c.count):
                    offset = address - (self.c.regions[i].uaddr if by_uaddr else <uint64_t>self.c.regions[i].host)
                    if offset < self.c.regions[i].size and size <= self.c.regions[i].size - offset:
                        gpa = self.c.regions[i].gpa + offset
                        found = True
                        break
        if not found:
            raise MemoryFault(start, length, "the regions' uaddr ranges" if by_uaddr else "the regions' host memory")
        return gpa

    def translate(self, gpa, length=1):
        """Return the address in this process of [gpa, gpa + length), which must lie in one region.

        The address is good for as long as the region is in the map, or a memoryview of it lives.
        """
        cdef memory_span found
        self._find(gpa, length or 1, &found, 1)
        return <uint64_t>found.part[0].iov_base

    def uaddr_to_gpa(self, uaddr, length=1):
        """Return the guest address of [uaddr, uaddr + length) of the frontend, which must lie in one region."""
        return self._reverse(uaddr, length, True)

    def address_to_gpa(self, address, length=1):
        """Return the guest address of ``length`` bytes at ``address`` of this process, which must lie in one region.

        The lowest, when regions share their host memory.
        """
        return self._reverse(address, length, False)

    def buffer_to_gpa(self, buffer):
        """Return (guest address, bytes) of a buffer object that lies in guest memory, such as a view or a part of it.

        Raises MemoryFault when it lies elsewhere, BufferError when it is not contiguous.
        """
        cdef Py_buffer held
        PyObject_GetBuffer(buffer, &held, PyBUF_SIMPLE)
        try:
            return self._reverse(<uint64_t>held.buf, held.len, False), held.len
        finally:
            PyBuffer_Release(&held)

    # ---- access ----

    def view(self, gpa, length):
        """Return a writable memoryview of [gpa, gpa + length), which must lie in one region. Nothing is copied.

        The view keeps the region's buffer alive, also after the map is replaced (then it no longer is guest memory).
        While a dirty log is on, who writes through a view calls :meth:`log_dirty` afterwards.
        """
        cdef memory_span found
        cdef tuple regions = self._find(gpa, length or 1, &found, 1)
        return view_of(regions, &found, 0, length)

    def gather(self, gpa, length):
        """Return writable memoryviews that make up [gpa, gpa + length) in order, one for each adjacent region.

        What :meth:`view` says of lifetime and dirty log holds for each of them.
        """
        cdef memory_span found
        cdef tuple regions = self._find(gpa, length, &found, VIRTIO_REGIONS_MAX)
        return [view_of(regions, &found, i, found.part[i].iov_len) for i in range(found.parts)]

    def read(self, gpa, length):
        """Return a copy of [gpa, gpa + length), over adjacent regions too."""
        cdef memory_span found
        cdef tuple _kept = self._find(gpa, length, &found, VIRTIO_REGIONS_MAX)
        cdef bytes data = PyBytes_FromStringAndSize(NULL, length)
        iov_read_all(<uint8_t *>PyBytes_AS_STRING(data), found.part, found.parts)
        return data

    def write(self, gpa, data):
        """Copy a contiguous buffer to guest memory at ``gpa``, over adjacent regions too, and mark it in the dirty log.

        Nothing is written when part of it would lie outside.
        """
        cdef memory_span found
        cdef tuple _kept
        cdef Py_buffer held
        PyObject_GetBuffer(data, &held, PyBUF_SIMPLE)
        try:
            _kept = self._find(gpa, held.len, &found, VIRTIO_REGIONS_MAX)
            copy_in(&found, <const uint8_t *>held.buf)
            self._wrote(gpa, held.len)
        finally:
            PyBuffer_Release(&held)

    cdef int _wrote(self, uint64_t gpa, uint64_t length) except -1:
        with cython.critical_section(self):
            memory_log(&self.c, gpa, length)
        return 0

    cdef uint64_t _load(self, object gpa, uint32_t size) except? 0x0bad0bad0bad0bad:
        cdef memory_span found
        cdef tuple _kept = self._find(gpa, size, &found, VIRTIO_REGIONS_MAX)
        cdef void *base = found.part[0].iov_base
        cdef uint64_t value = 0
        if found.parts > 1 or <uint64_t>base & (size - 1):
            iov_read_all(<uint8_t *>&value, found.part, found.parts)
            return value
        if size == 1:
            return virtio_load8(<uint8_t *>base)
        if size == 2:
            return virtio_load16_acquire(<uint16_t *>base)
        if size == 4:
            return virtio_load32_acquire(<uint32_t *>base)
        return virtio_load64_acquire(<uint64_t *>base)

    cdef int _store(self, object gpa, uint64_t value, uint32_t size) except -1:
        cdef memory_span found
        cdef tuple _kept = self._find(gpa, size, &found, VIRTIO_REGIONS_MAX)
        cdef void *base = found.part[0].iov_base
        if found.parts > 1 or <uint64_t>base & (size - 1) or size == 1:
            copy_in(&found, <const uint8_t *>&value)
        elif size == 2:
            virtio_store16_release(<uint16_t *>base, <uint16_t>value)
        elif size == 4:
            virtio_store32_release(<uint32_t *>base, <uint32_t>value)
        else:
            virtio_store64_release(<uint64_t *>base, value)
        return self._wrote(gpa, size)

    def read_u8(self, gpa):
        """Return the byte at ``gpa``."""
        return self._load(gpa, 1)

    def read_u16(self, gpa):
        """Return the little-endian 16-bit number at ``gpa``.

        Here and in its like: one access with acquire order (writes: release) when its host address is aligned to it.
        """
        return self._load(gpa, 2)

    def read_u32(self, gpa):
        """Return the little-endian 32-bit number at ``gpa``."""
        return self._load(gpa, 4)

    def read_u64(self, gpa):
        """Return the little-endian 64-bit number at ``gpa``."""
        return self._load(gpa, 8)

    def write_u8(self, gpa, uint8_t value):
        """Write one byte, and mark it in the dirty log.

        Here and in its like: OverflowError for a value that does not fit.
        """
        self._store(gpa, value, 1)

    def write_u16(self, gpa, uint16_t value):
        """Write a little-endian 16-bit number, and mark it in the dirty log."""
        self._store(gpa, value, 2)

    def write_u32(self, gpa, uint32_t value):
        """Write a little-endian 32-bit number, and mark it in the dirty log."""
        self._store(gpa, value, 4)

    def write_u64(self, gpa, uint64_t value):
        """Write a little-endian 64-bit number, and mark it in the dirty log."""
        self._store(gpa, value, 8)

    # ---- the dirty log ----

    def start_log(self, buffer=None):
        """Log written pages: bit p % 8 of byte p // 8 stands for the 4096 bytes at p * 4096, as vhost has it.

        ``buffer`` is any writable buffer (a Region too), shared with whoever reads it, with a bit for the highest
        address in the map; bits that are set in it stay set. Without one a log of our own starts out clean, and grows
        with the map. A log that was on before is let go.

        Raises ValueError when the buffer is too small, or when our own would take more than 64 MiB.
        """
        cdef uint64_t needed
        cdef Region log
        with self._lock:
            needed = log_bytes(self._regions)
            log = new_log(needed) if buffer is None else Region(0, buffer)
            if log.size < needed:
                raise ValueError(f"a dirty log of {log.size} bytes is too small: this memory needs {needed}")
            self._set_log(log, buffer is None)

    def stop_log(self):
        """Stop logging, and let the log's buffer go."""
        with self._lock:
            self._set_log(None, False)

    cdef int _set_log(self, Region log, bint own) except -1:
        cdef Region _kept = self._log  # its buffer lives until no user can write to it
        cdef list users = self._live_users()
        cdef MemoryUser user
        for user in users:
            user.hold()
        with cython.critical_section(self):
            self._log = log
            self._own_log = own
            self.c.log = NULL if log is None else log.host
            self.c.log_size = 0 if log is None else log.size
        for user in users:
            user.release()
        return 0

    def log_dirty(self, gpa, length):
        """Mark the pages of [gpa, gpa + length) in the dirty log, if it is on. Call it after writing."""
        cdef memory_span found
        self._find(gpa, length, &found, VIRTIO_REGIONS_MAX)
        self._wrote(gpa, length)

    def dirty_pages(self, clear=False):
        """Return the numbers (address // 4096) of the pages marked in the dirty log, in order, whoever marked them.

        ``clear`` unmarks them, each byte of the log in one atomic exchange: no mark is lost. Take them before reading
        the pages. Raises ValueError when the log is off.
        """
        cdef list pages = []
        cdef uint8_t *log
        cdef uint64_t i
        cdef uint32_t bits
        cdef uint32_t bit
        cdef bint take = clear
        with self._lock:
            if self._log is None:
                raise ValueError("the dirty log is off: call start_log() first")
            log = self._log.host
            for i in range(self._log.size):
                bits = virtio_load8(&log[i])
                if bits and take:
                    bits = virtio_exchange8(&log[i], 0)
                for bit in range(8):
                    if bits >> bit & 1:
                        pages.append(i << 3 | bit)
        return pages

    def __repr__(self):
        return f"<GuestMemory: {self.c.count} regions, {sum([region.size for region in self._regions])} bytes>"
