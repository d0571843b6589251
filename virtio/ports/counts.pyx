"""What ports count."""

import errno

from virtio.core.counters cimport counted


cdef int add_counts(dict to, str name, const port_counts *counts) except -1:
    cdef int i
    for key, value in (("packets", counted(&counts.packets)), ("bytes", counted(&counts.bytes)),
                       ("dropped", counted(&counts.dropped)), ("full", counted(&counts.full))):
        key = f"{name}_{key}"
        to[key] = to.get(key, 0) + value
    for i in range(ERRNO_MAX):
        if counted(&counts.errors[i]):
            key = f"{name}_{errno.errorcode.get(i, 'error')}"
            to[key] = to.get(key, 0) + counted(&counts.errors[i])
    return 0
