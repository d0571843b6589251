"""Many frames from Python as C arrays, without copying them."""

from cpython.buffer cimport (PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release,
                             PyObject_CheckBuffer, PyObject_GetBuffer)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.tuple cimport PyTuple_CheckExact
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc

cdef enum:
    LIMIT = 0xffffffff  # frames in a call, and bytes in a frame


cdef class Batch:
    """Frames handed in as a sequence of buffers, or as one buffer with offsets.

    With ``offsets``, n + 1 rising numbers, frame i is ``frames[offsets[i]:offsets[i + 1]]`` of the one buffer
    ``frames``; an array of 32- or 64-bit integers (array.array, numpy) is read without making Python numbers. The
    memory stays held, so that it cannot be resized, until the Batch is gone.

    Raises TypeError for what is no buffer, BufferError for a buffer that is read-only and must not be, ValueError for
    lengths and offsets out of range.
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
        cdef int flags = PyBUF_WRITABLE if writable else PyBUF_SIMPLE
        cdef Py_buffer *view
        cdef Py_ssize_t size
        cdef object item
        if offsets is not None:
            return self.load_packed(frames, offsets, flags)
        if not PyTuple_CheckExact(frames):
            if PyObject_CheckBuffer(frames) or isinstance(frames, str):
                raise TypeError(f"a batch is a sequence of buffers, or one buffer with offsets; not one "
                                f"{type(frames).__name__}")
            frames = tuple(frames)  # a list could change while a buffer's own code runs
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

    cdef int cut(self, uint32_t i, int64_t first, int64_t last) except -1:
        if first < 0 or last < first or last > self.held[0].len:
            raise ValueError(f"frame {i}: offsets {first} to {last} out of range (rising, 0 to {self.held[0].len})")
        if last - first > LIMIT:
            raise ValueError(f"frame {i} has {last - first} bytes (limit {LIMIT})")
        self.data[i] = <uint8_t *>self.held[0].buf + first
        self.lengths[i] = <uint32_t>(last - first)
        return 0

    cdef int load_packed(self, object buffer, object offsets, int flags) except -1:
        cdef Py_buffer bounds
        cdef Py_ssize_t i, n
        cdef list numbers
        cdef const int32_t *narrow
        cdef const int64_t *wide
        self.source = buffer
        if PyObject_CheckBuffer(offsets):
            PyObject_GetBuffer(offsets, &bounds, PyBUF_ND | PyBUF_FORMAT)
            try:
                if bounds.ndim != 1 or bounds.format[0] not in b"iIlLqQ" or bounds.itemsize not in (4, 8):
                    raise TypeError(f"offsets are one row of 32- or 64-bit integers, not {bounds.ndim} dimensions of "
                                    f"format {(<bytes>bounds.format).decode()!r}")
                n = bounds.shape[0] - 1
                self.open_packed(buffer, flags, n)
                narrow = <const int32_t *>bounds.buf
                wide = <const int64_t *>bounds.buf
                for i in range(n):
                    if bounds.itemsize == 8:
                        self.cut(<uint32_t>i, wide[i], wide[i + 1])
                    elif bounds.format[0] == c"I" or bounds.format[0] == c"L":
                        self.cut(<uint32_t>i, <uint32_t>narrow[i], <uint32_t>narrow[i + 1])
                    else:
                        self.cut(<uint32_t>i, narrow[i], narrow[i + 1])
            finally:
                PyBuffer_Release(&bounds)
        else:
            numbers = [int(offset) for offset in offsets]
            n = len(numbers) - 1
            self.open_packed(buffer, flags, n)
            for i in range(n):
                self.cut(<uint32_t>i, numbers[i], numbers[i + 1])
        self.count = <uint32_t>n
        return 0

    cdef int open_packed(self, object buffer, int flags, Py_ssize_t n) except -1:
        if n < 0:
            raise ValueError("offsets are one more than there are frames: at least 1, not 0")
        self.reserve(n, 1)
        PyObject_GetBuffer(buffer, &self.held[0], flags)
        self.nheld = 1
        return 0
