"""Many frames from Python as C arrays, without copying them."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.list cimport PyList_CheckExact
from cpython.tuple cimport PyTuple_CheckExact
from libc.stdlib cimport free, malloc

cdef enum:
    LIMIT = 0xffffffff  # frames in a call, and bytes in a frame


cdef class Batch:
    """Frames handed in as a sequence of buffers, or as one buffer and offsets. Internal: see virtio.offload.

    With ``offsets`` (n + 1 rising numbers, as Arrow does) frame i is ``frames[offsets[i]:offsets[i + 1]]`` of the one
    buffer ``frames``. The memory stays held, and so cannot be resized, until the Batch is gone.
    """

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.nheld):
            PyBuffer_Release(&self.held[i])
        free(self.held)
        free(self.data)
        free(self.lengths)

    cdef int reserve(self, Py_ssize_t count, Py_ssize_t buffers) except -1:
        if count > LIMIT:
            raise ValueError(f"{count} frames in one call (limit {LIMIT})")
        self.data = <uint8_t **>malloc((count + 1) * sizeof(uint8_t *))
        self.lengths = <uint32_t *>malloc((count + 1) * sizeof(uint32_t))
        self.held = <Py_buffer *>malloc((buffers + 1) * sizeof(Py_buffer))
        if self.data is NULL or self.lengths is NULL or self.held is NULL:
            raise MemoryError()
        return 0

    cdef int load(self, object frames, object offsets, bint writable) except -1:
        """Take the frames in. Raises TypeError for what is no buffer, ValueError for lengths and offsets off range.

        Nothing of the caller's runs between the first buffer held and the last: a sequence is copied first.
        """
        cdef int flags = PyBUF_WRITABLE if writable else PyBUF_SIMPLE
        cdef Py_buffer *view
        cdef Py_ssize_t size
        cdef object item
        self.writable = writable
        if offsets is not None:
            return self.load_packed(frames, offsets, flags)
        if not PyTuple_CheckExact(frames):
            if not PyList_CheckExact(frames) and isinstance(frames, (bytes, bytearray, memoryview, str)):
                raise TypeError(f"a batch is a sequence of buffers, or one buffer with offsets, not one {type(frames).__name__}")
            frames = tuple(frames)
        self.source = frames
        self.reserve(len(frames), len(frames))
        for item in <tuple>frames:
            if PyBytes_CheckExact(item) and not writable:
                self.data[self.count] = <uint8_t *>PyBytes_AS_STRING(item)
                size = PyBytes_GET_SIZE(item)
            else:
                view = &self.held[self.nheld]
                PyObject_GetBuffer(item, view, flags)
                self.nheld += 1
                self.data[self.count] = <uint8_t *>view.buf
                size = view.len
            if size > LIMIT:
                raise ValueError(f"frame {self.count} has {size} bytes (limit {LIMIT})")
            self.lengths[self.count] = <uint32_t>size
            self.count += 1
        return 0

    cdef int load_packed(self, object buffer, object offsets, int flags) except -1:
        cdef Py_ssize_t at, last
        cdef Py_ssize_t i, n
        cdef object bounds = [int(offset) for offset in offsets]
        if not bounds:
            raise ValueError("offsets must have one number more than there are frames, not none")
        n = len(bounds) - 1
        self.reserve(n, 1)
        PyObject_GetBuffer(buffer, &self.held[0], flags)
        self.nheld = 1
        last = bounds[0]
        if last < 0:
            raise ValueError(f"offset {last} is negative")
        for i in range(n):
            at = bounds[i + 1]
            if at < last or at > self.held[0].len:
                raise ValueError(f"offset {at} out of range ({last} to {self.held[0].len})")
            if at - last > LIMIT:
                raise ValueError(f"frame {i} has {at - last} bytes (limit {LIMIT})")
            self.data[i] = <uint8_t *>self.held[0].buf + last
            self.lengths[i] = <uint32_t>(at - last)
            last = at
        self.count = <uint32_t>n
        return 0
