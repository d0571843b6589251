"""The payload of generated frames."""

from libc.stdint cimport uint8_t, uint64_t


cdef uint8_t table[PATTERN_PERIOD + PATTERN_FRAME]


cdef void fill() noexcept nogil:
    """Bytes that look random, the same ones each time (splitmix64)."""
    cdef uint64_t state = 0, z
    cdef int i
    for i in range(PATTERN_PERIOD):
        state += <uint64_t>0x9e3779b97f4a7c15
        z = state
        z = (z ^ z >> 30) * <uint64_t>0xbf58476d1ce4e5b9
        z = (z ^ z >> 27) * <uint64_t>0x94d049bb133111eb
        table[i] = <uint8_t>(z >> 56)
    for i in range(PATTERN_FRAME):
        table[PATTERN_PERIOD + i] = table[i % PATTERN_PERIOD]


fill()
pattern = table
