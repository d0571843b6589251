# What every port counts, for each queue and direction: written by the one thread that works it, read by any.
from libc.stdint cimport uint32_t, uint64_t

from virtio.core.counters cimport add_count


cdef enum:
    ERRNO_MAX = 134


cdef struct port_counts:
    uint64_t packets
    uint64_t bytes                # of frames; headers are not counted
    uint64_t dropped
    uint64_t full                 # times that there was no room for the next frame
    uint64_t errors[134]          # of those dropped: by errno


cdef inline void count_error(port_counts *counts, int error) noexcept nogil:
    """Count a frame that was dropped for an errno."""
    add_count(&counts.dropped, 1)
    add_count(&counts.errors[error if 0 < error < ERRNO_MAX else 0], 1)


# Add counts to a dict: "<name>_packets", "<name>_bytes", "<name>_dropped", "<name>_full"; "<name>_EIO" and the like.
cdef int add_counts(dict to, str name, const port_counts *counts) except -1
