"""Planted errors, one for each sanitizer: tools/sanitize.sh runs them and expects a report. Never in a normal build."""

from libc.stdlib cimport free, malloc


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


def overflow():
    """Write one byte past an allocation."""
    cdef char *block = <char *>malloc(16)
    cdef volatile char *end = block + 16
    end[0] = 1
    free(block)


def shift():
    """Shift an int by more bits than it has."""
    return shift_by(40)


def race():
    """Write to one variable from two threads."""
    with nogil:
        race_two_threads()
