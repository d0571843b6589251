# An array of C structs that Python sees as a read-only sequence and as a buffer of records.
cdef class Records:
    cdef void *items
    cdef Py_ssize_t itemsize     # bytes
    cdef Py_ssize_t shape[1]     # how many
    cdef const char *format      # of an item, as PEP 3118 writes it: a literal

    cdef int reserve(self, Py_ssize_t count, Py_ssize_t itemsize, const char *format) except -1
    cdef object record(self, Py_ssize_t i)
