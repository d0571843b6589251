# Numbers from Python that have a range.
from cpython.long cimport PyLong_AsLongLongAndOverflow


# A Python int from first to last as a C number; else ValueError, of whatever size it is. TypeError for what is no int.
cdef inline long long number_within(object value, long long first, long long last, str name) except? -1:
    cdef int overflow = 0
    cdef long long number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow or not first <= number <= last:
        raise ValueError(f"{name} {value} out of range ({first} to {last})")
    return number
