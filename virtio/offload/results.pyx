"""Arrays of C structs as sequences and buffers."""

from collections.abc import Sequence

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE
from libc.stdlib cimport free


cdef extern from "stdlib.h":
    int posix_memalign(void **memptr, size_t alignment, size_t size)


cdef class Records:
    """Internal: the base of Frames, Hashes and Verdicts, which fill it once and then never change it."""

    def __dealloc__(self):
        free(self.items)

    cdef int reserve(self, Py_ssize_t count, Py_ssize_t itemsize, const char *format) except -1:
        # a record of 64 bytes is then a cache line
        if posix_memalign(&self.items, 64, (count + 1) * itemsize) != 0:
            raise MemoryError()
        self.shape[0] = count
        self.itemsize = itemsize
        self.format = format
        return 0

    cdef object record(self, Py_ssize_t i):
        raise NotImplementedError

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        cdef Py_ssize_t i
        if isinstance(index, slice):
            return [self.record(i) for i in range(*index.indices(self.shape[0]))]
        i = index
        if i < 0:
            i += self.shape[0]
        if not 0 <= i < self.shape[0]:
            raise IndexError(f"index {index} out of range ({self.shape[0]} frames)")
        return self.record(i)

    def __iter__(self):
        cdef Py_ssize_t i
        for i in range(self.shape[0]):
            yield self.record(i)

    def __reversed__(self):
        cdef Py_ssize_t i
        for i in range(self.shape[0] - 1, -1, -1):
            yield self.record(i)

    # comparing is Python's, so these are Sequence's own
    __contains__ = Sequence.__contains__
    index = Sequence.index
    count = Sequence.count

    def __getbuffer__(self, Py_buffer *view, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError(f"{type(self).__name__} is read-only")
        view.buf = self.items
        view.len = self.shape[0] * self.itemsize
        view.readonly = 1
        view.itemsize = self.itemsize
        view.format = <char *>self.format if flags & PyBUF_FORMAT else <char *>NULL
        view.ndim = 1
        view.shape = &self.shape[0] if flags & PyBUF_ND else <Py_ssize_t *>NULL
        view.strides = &self.itemsize if (flags & PyBUF_STRIDES) == PyBUF_STRIDES else <Py_ssize_t *>NULL
        view.suboffsets = NULL
        view.internal = NULL
        view.obj = self


Sequence.register(Records)
