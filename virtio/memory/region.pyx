"""A piece of guest memory: guest-physical addresses, and the bytes of this process that back them."""

cimport cython
from cpython.buffer cimport (PyBUF_FULL_RO, PyBuffer_FillInfo, PyBuffer_IsContiguous, PyBuffer_Release,
                             PyObject_GetBuffer)
from cpython.exc cimport PyErr_SetFromErrno
from cpython.number cimport PyNumber_Index
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t
from posix.mman cimport (MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE,
                         mmap, munmap)
from posix.unistd cimport _SC_PAGESIZE, sysconf

from virtio.core.atomic cimport virtio_load8
from virtio.memory.sigbus cimport guard_add, guard_is_lost, guard_remove, virtio_guard

from operator import attrgetter
from os import fstat
from stat import S_ISREG

cdef extern from "virtio/memory.h":
    enum:
        VIRTIO_REGIONS_MAX

_by_gpa = attrgetter("gpa")


@cython.no_gc_clear  # the bell's descriptor is in use as long as the mapping is there
cdef class Region:
    """Guest-physical addresses [gpa, gpa + size), backed by a buffer of this process.

    ``buffer`` is any writable C-contiguous buffer: bytearray, mmap, numpy array, memoryview, another Region. It is
    exported for as long as the region lives, so a bytearray cannot be resized meanwhile. ``uaddr`` is where the region
    lies in a second address space, the vhost-user frontend's; without one it equals ``gpa``.

    A region is a buffer itself: a memoryview of it keeps it alive, also after a map no longer has it. Regions never
    change and compare by identity; any thread may use one. Addresses and sizes are in bytes.

    Raises ValueError for an empty region or one that does not end at or below 2**64, BufferError for a buffer that is
    read-only or not contiguous.
    """

    def __init__(self, gpa, buffer, *, uaddr=None):
        if self.size:
            raise TypeError("region is initialised already")
        PyObject_GetBuffer(buffer, &self._buffer, PyBUF_FULL_RO)
        try:
            if self._buffer.readonly:
                raise BufferError(f"{type(buffer).__name__} buffer is read-only: guest memory must be writable")
            if not PyBuffer_IsContiguous(&self._buffer, b"C"):
                raise BufferError(f"{type(buffer).__name__} buffer is not C-contiguous")
            self._place(gpa, self._buffer.len, uaddr)
        except BaseException:
            PyBuffer_Release(&self._buffer)
            raise
        self._held = True
        self.host = <uint8_t *>self._buffer.buf

    @classmethod
    def from_address(cls, gpa, address, size, *, uaddr=None):
        """Back a region by ``size`` bytes at a raw ``address`` of this process.

        Nothing keeps those bytes alive: they must stay mapped and writable as long as the region or a view of it is in
        use. Raises ValueError as the constructor does, and for an address range that cannot be one.
        """
        cdef Region self = cls.__new__(cls)
        address = PyNumber_Index(address)
        if address <= 0 or address + PyNumber_Index(size) > 1 << 64:
            raise ValueError(f"{size} bytes at host address {address:#x} cannot be memory of this process")
        self._place(gpa, size, uaddr)
        self.host = <uint8_t *><uint64_t>address
        return self

    @classmethod
    def from_fd(cls, gpa, fd, size, offset=0, *, uaddr=None, bell=None):
        """Back a region by ``size`` bytes of the file ``fd`` from ``offset``, shared with all who map it.

        ``offset`` need not be a multiple of the page size; ``fd`` may be closed afterwards. Raises ValueError as the
        constructor does, and when the file ends before the region; OSError when it cannot be mapped for reading and
        writing.

        A file that is cut shorter later raises SIGBUS in this process: seal it (F_SEAL_SHRINK), trust its owner, or
        give a ``bell``, a :class:`Bell` with an eventfd. With one, this process takes SIGBUS, for good, and passes on
        what is about anything else to whoever had it before; who takes it later must pass it on likewise. An access
        that finds nothing then turns the whole region to zeroes of this process alone, makes it ``lost``, and rings
        the bell.
        """
        cdef Region self = cls.__new__(cls)
        offset = PyNumber_Index(offset)
        self._place(gpa, size, uaddr)
        if offset < 0:
            raise ValueError(f"file offset {offset} is negative")
        info = fstat(fd)
        if S_ISREG(info.st_mode) and offset + self.size > info.st_size:
            raise ValueError(f"region of {size} bytes at file offset {offset} ends after the file "
                             f"({info.st_size} bytes)")
        # hugetlbfs maps whole huge pages only, and names their size here
        page = sysconf(_SC_PAGESIZE)
        unit = max(page, info.st_blksize - info.st_blksize % page)
        skew = offset % unit
        self._mmap((skew + self.size + unit - 1) // unit * unit, MAP_SHARED, fd, offset - skew)
        if bell is not None:
            self._guard = guard_add(self._map, self._map_size, unit, bell.fileno())
            self._bell = bell
        self.host = <uint8_t *>self._map + <size_t>skew
        return self

    @classmethod
    def allocate(cls, gpa, size, *, uaddr=None):
        """Back a region by ``size`` new bytes, zeroed. They belong to this process alone: for shared ones use a memfd.

        Pages take memory only once they are touched. Raises ValueError as the constructor does, OSError when there is
        no room.
        """
        cdef Region self = cls.__new__(cls)
        self._place(gpa, size, uaddr)
        self._mmap(self.size, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        self.host = <uint8_t *>self._map
        return self

    cdef int _place(self, object gpa, object size, object uaddr) except -1:
        gpa = PyNumber_Index(gpa)
        size = PyNumber_Index(size)
        uaddr = gpa if uaddr is None else PyNumber_Index(uaddr)
        if size < 1:
            raise ValueError(f"region at {gpa:#x} is empty (size {size})")
        if size >= 1 << 63:
            raise ValueError(f"region of {size} bytes at {gpa:#x} is larger than an address space (limit 2^63 - 1)")
        for name, start in (("guest address", gpa), ("uaddr", uaddr)):
            if start < 0 or start + size > 1 << 64:
                raise ValueError(f"region of {size} bytes at {name} {start:#x} is not within 0 to 2^64")
        self.gpa = gpa
        self.uaddr = uaddr
        self.size = size
        return 0

    cdef int _mmap(self, size_t size, int flags, int fd, object offset) except -1:
        cdef void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, offset)
        if base == MAP_FAILED:
            PyErr_SetFromErrno(OSError)
        self._map = base
        self._map_size = size
        return 0

    def __dealloc__(self):
        if self._held:
            PyBuffer_Release(&self._buffer)
        if self._guard is not NULL:
            guard_remove(<virtio_guard *>self._guard)
        if self._map is not NULL:
            munmap(self._map, self._map_size)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self.host is NULL:
            raise BufferError("region is not initialised")
        PyBuffer_FillInfo(buffer, self, self.host, <Py_ssize_t>self.size, 0, flags)

    @property
    def address(self):
        """Where ``gpa`` is in this process."""
        return <uint64_t>self.host

    @property
    def lost(self):
        """Whether its file was cut shorter, or has no room left, and zeroes lie in its place. Only with a ``bell``.

        Whoever asks has the end of the region looked at, which is what a file that was cut shorter lacks first.
        """
        if self._guard is NULL:
            return False
        virtio_load8(self.host + self.size - 1)
        return guard_is_lost(<virtio_guard *>self._guard)

    def __repr__(self):
        return f"<Region {self.gpa:#x}: {self.size} bytes>"


cdef tuple sort_regions(object regions):
    """Return regions sorted, as Region objects; raises ValueError unless they make a map."""
    cdef list found = []
    cdef Region before, region
    for item in regions:
        if isinstance(item, tuple) and len(item) == 2:
            item = Region(item[0], item[1])
        elif not isinstance(item, Region):
            raise TypeError(f"a region is a Region or a tuple (gpa, buffer), not {type(item).__name__}")
        if (<Region>item).host is NULL:
            raise ValueError("region is not initialised")
        found.append(item)
    if len(found) > VIRTIO_REGIONS_MAX:
        raise ValueError(f"{len(found)} regions are too many (limit {VIRTIO_REGIONS_MAX})")
    found.sort(key=_by_gpa)
    for before, region in zip(found, found[1:]):
        if region.gpa - before.gpa < before.size:
            raise ValueError(f"region of {region.size} bytes at {region.gpa:#x} overlaps the one of "
                             f"{before.size} bytes at {before.gpa:#x}")
    return tuple(found)
