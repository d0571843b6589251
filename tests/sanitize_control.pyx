"""Planted errors, one for each sanitizer: tools/sanitize.sh runs them and expects a report. Never in a normal build."""

from libc.stdlib cimport free, malloc
from libc.string cimport memset


cdef extern from *:
    """
    #include <pthread.h>
    static int racy;
    static void *writer(void *unused)
    {
        for (int i = 0; i < 100000; i++)
            racy++;
        return unused;
    }
    static void race_two_threads(void)
    {
        pthread_t a, b;
        pthread_create(&a, 0, writer, 0);
        pthread_create(&b, 0, writer, 0);
        pthread_join(a, 0);
        pthread_join(b, 0);
    }
    static int shift_by(int n) { return 1 << n; }
    """
    void race_two_threads() nogil
    int shift_by(int n) nogil


def overflow(int size=17):
    """Write past the end of an allocation of 16 bytes."""
    cdef char *block = <char *>malloc(16)
    memset(block, 1, size)
    cdef int last = block[size - 1]  # used below, or the compiler drops the write
    free(block)
    return last


def shift():
    """Shift an int by more bits than it has."""
    return shift_by(40)


def race():
    """Write to one variable from two threads."""
    with nogil:
        race_two_threads()
