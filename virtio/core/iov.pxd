# Bytes that lie in pieces: struct iovec, as system calls take it.
from libc.stddef cimport size_t


cdef extern from "sys/uio.h" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
