# A piece of guest memory and what keeps its bytes alive.
from cpython.buffer cimport Py_buffer
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t


cdef class Region:
    cdef readonly uint64_t gpa     # first guest-physical address
    cdef readonly uint64_t size    # bytes; 0 until initialised
    cdef readonly uint64_t uaddr   # first address in the frontend's address space
    cdef uint8_t *host             # where gpa is in this process
    cdef Py_buffer _buffer         # what backs it: a buffer (when _held), ...
    cdef bint _held
    cdef void *_map                # ... a mapping of our own, or (NULL) memory that the caller keeps alive
    cdef size_t _map_size
    cdef void *_guard              # of that mapping, against its file being cut shorter (memory/sigbus.pxd); or NULL
    cdef object _bell              # what is rung then
    cdef object __weakref__
    cdef int _place(self, object gpa, object size, object uaddr) except -1
    cdef int _mmap(self, size_t size, int flags, int fd, object offset) except -1


cdef tuple sort_regions(object regions)
