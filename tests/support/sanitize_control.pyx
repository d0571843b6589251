"""Planted errors, one for each sanitizer: tools/sanitize.sh runs them and expects a report. Never in a normal build."""

import threading

from libc.stdlib cimport free, malloc
from libc.string cimport memset


cdef extern from *:
    """
    static volatile int racy; /* so that the loop is one */
    static void write_often(void)
    {
        for (int i = 0; i < 20000000; i++)
            racy++;
    }
    static int shift_by(int n) { return 1 << n; }
    """
    void write_often() nogil
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


def write():
    with nogil:
        write_often()


def race():
    """Write to one variable from two Python threads, as the loops of virtio run."""
    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
