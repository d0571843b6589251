# Many frames from Python as C arrays.
cimport cython
from cpython.buffer cimport Py_buffer
from libc.stdint cimport int64_t, uint8_t, uint32_t


cdef class Batch:
    cdef uint8_t **data          # [count] first byte of each frame
    cdef uint32_t *lengths       # [count] bytes
    cdef uint32_t count
    cdef Py_buffer *held         # buffers to release; bytes objects need none: `source` keeps them
    cdef uint32_t nheld
    cdef object source           # what the frames lie in: keeps them alive

    # Take the frames in, once. writable: every frame must be. See the class for errors.
    @cython.final
    cdef int load(self, object frames, object offsets, bint writable) except -1
    cdef int load_packed(self, object buffer, object offsets, int flags) except -1
    cdef int open_packed(self, object buffer, int flags, Py_ssize_t n) except -1
    cdef int cut(self, uint32_t i, int64_t first, int64_t last) except -1
    cdef int reserve(self, Py_ssize_t count, Py_ssize_t buffers) except -1
