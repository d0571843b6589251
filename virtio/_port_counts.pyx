"""What ports count."""

import errno


cdef int add_counts(dict to, str name, const port_counts *counts) except -1:
    cdef int i
    for key, value in (("packets", counts.packets), ("bytes", counts.bytes), ("dropped", counts.dropped),
                       ("full", counts.full)):
        key = f"{name}_{key}"
        to[key] = to.get(key, 0) + value
    for i in range(ERRNO_MAX):
        if counts.errors[i]:
            key = f"{name}_{errno.errorcode.get(i, 'error')}"
            to[key] = to.get(key, 0) + counts.errors[i]
    return 0
