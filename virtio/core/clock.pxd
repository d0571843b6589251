# Clocks.
from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec


cdef inline int64_t clock_ns(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef inline int64_t now_ns() noexcept nogil:
    """Return the time of the monotonic clock."""
    return clock_ns(CLOCK_MONOTONIC)


cdef inline int64_t now_us() noexcept nogil:
    """Return the time of the monotonic clock in microseconds."""
    return clock_ns(CLOCK_MONOTONIC) // 1000


cdef inline int64_t wall_ns() noexcept nogil:
    """Return the time since 1970."""
    return clock_ns(CLOCK_REALTIME)


cdef inline int64_t thread_ns() noexcept nogil:
    """Return the CPU time that the calling thread has used."""
    return clock_ns(CLOCK_THREAD_CPUTIME_ID)
