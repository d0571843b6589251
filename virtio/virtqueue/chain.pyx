"""A chain of buffers at the device end, as Python sees it."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t, UINT32_MAX
from libc.stdlib cimport free

from virtio.core.iov cimport iov_head, iov_write


cdef class Chain:
    """One chain of buffers that the driver made available: a view of guest memory, popped by DeviceQueue.

    First come the parts the device reads, then those it writes. Give it back with ``DeviceQueue.add_used``. The views
    stay valid memory for as long as they live, even when the memory map is replaced.
    """

    def __cinit__(self):
        self.segs = self.small

    def __dealloc__(self):
        if self.segs is not self.small:
            free(self.segs)

    cdef list views(self, uint32_t first, uint32_t n, bint readonly):
        cdef list result = []
        cdef uint64_t host, length, base
        cdef uint32_t i
        for i in range(first, first + n):
            host = <uint64_t>self.segs[i].iov_base
            length = self.segs[i].iov_len
            for region in self.regions:
                base = region.address
                if base <= host < base + <uint64_t>region.size:
                    view = memoryview(region)[host - base:host - base + length]
                    result.append(view.toreadonly() if readonly else view)
                    break
        return result

    @property
    def head(self):
        """Index of its first descriptor (split), or its buffer id (packed)."""
        return self.c.head

    @property
    def readable(self):
        """The parts that the device reads, as a list of read-only memoryviews of guest memory (no copy)."""
        return self.views(0, self.c.nreadable, True)

    @property
    def writable(self):
        """The parts that the device writes, as a list of memoryviews of guest memory (no copy).

        Say how many bytes you wrote, from the first on, by ``written`` or the argument of ``add_used``.
        """
        return self.views(self.c.nreadable, self.c.nwritable, False)

    @property
    def readable_length(self):
        """Bytes of the readable parts."""
        return self.c.readable

    @property
    def writable_length(self):
        """Bytes of the writable parts."""
        return self.c.writable

    @property
    def written(self):
        """Bytes written, which add_used reports to the driver; ValueError beyond the writable parts."""
        return self.c.written

    @written.setter
    def written(self, value):
        if not 0 <= value <= min(self.c.writable, UINT32_MAX):
            raise ValueError(f"{value} bytes written into a chain of {self.c.writable} writable bytes")
        self.c.written = value

    def read(self, offset=0, length=None):
        """Return up to ``length`` bytes (default: all) of the readable parts from ``offset`` on, as one bytes
        object.
        """
        cdef uint64_t skip, want
        if offset < 0 or (length is not None and length < 0):
            raise ValueError(f"offset {offset} and length {length} must not be negative")
        skip = min(offset, self.c.readable)
        want = self.c.readable - skip
        if length is not None and length < want:
            want = length
        result = PyBytes_FromStringAndSize(NULL, want)
        iov_head(<uint8_t *>PyBytes_AS_STRING(result), self.segs, self.c.nreadable, skip, want)
        return result

    def write(self, data, offset=None):
        """Copy a buffer into the writable parts at ``offset`` (default: behind what was written); return its length.

        Moves ``written`` to the end of it if that is further. Raises ValueError, and writes nothing, when it does not
        fit, or when the chain was given back already.
        """
        cdef Py_buffer view
        cdef uint64_t at, total
        at = self.c.written if offset is None else offset
        if self.owner is None:
            raise ValueError(f"chain {self.c.head} was given back: its memory is the driver's again")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            total = view.len
            if at > self.c.writable or total > self.c.writable - at:
                raise ValueError(f"{total} bytes at offset {at} do not fit in {self.c.writable} writable bytes")
            iov_write(self.segs + self.c.nreadable, at, <const uint8_t *>view.buf, total)
        finally:
            PyBuffer_Release(&view)
        if at + total > self.c.written:
            self.c.written = <uint32_t>min(at + total, UINT32_MAX)
        return total

    cdef list pieces(self, uint32_t first, uint32_t n):
        """Return parts as [guest address, length], by the map that the chain was popped under."""
        cdef list result = []
        cdef uint64_t host, base
        cdef uint32_t i
        for i in range(first, first + n):
            host = <uint64_t>self.segs[i].iov_base
            for region in self.regions:
                base = region.address
                if base <= host < base + <uint64_t>region.size:
                    result.append([region.gpa + host - base, self.segs[i].iov_len])
                    break
        return result

    def __repr__(self):
        return (f"<Chain {self.c.head}: {self.c.readable} bytes readable, {self.c.writable} writable, "
                f"{self.c.written} written>")
