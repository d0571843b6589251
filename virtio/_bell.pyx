"""Bells: how one side of a queue wakes the other."""

import os
import sys

from virtio._queue cimport counted, virtio_store32


cdef extern from "unistd.h" nogil:
    int close(int fd)


cdef void ring_function(virtio_bell *bell) noexcept nogil:
    with gil:
        call_function(<Bell>bell.owner)


cdef void call_function(Bell bell) noexcept:
    try:
        bell.function()
    except BaseException:
        # nobody above is Python that could take it: an interrupt handler has no caller
        sys.excepthook(*sys.exc_info())


cdef class Bell:
    """Wakes whoever serves a queue: a kick for the device, an interrupt for the driver.

    ``Bell()`` has an eventfd of its own, which is written to only while somebody sleeps on it. ``Bell(fd)`` writes to
    an eventfd that others read, at each ring; the caller keeps it open, and closes it, unless the bell shall ``own``
    it, and close it when it goes. ``Bell(function)`` calls
    ``function()`` on the ringing thread, which holds no queue's lock then; what it raises goes to ``sys.excepthook``.

    Any thread may call anything. Raises OSError when there is no file descriptor left, TypeError for what is none of
    these.
    """

    def __cinit__(self):
        self.c.fd = -1

    def __init__(self, target=None, *, bint own=False):
        if self.function is not None or self.c.fd >= 0:
            raise TypeError("bell is initialised already")
        if target is None:
            self.c.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self.own = True
        elif callable(target):
            self.function = target
            self.c.owner = <void *>self
            self.c.call = ring_function
        elif isinstance(target, int) or hasattr(target, "fileno"):
            self.c.fd = target if isinstance(target, int) else target.fileno()
            self.c.always = 1
            self.own = self.c.foreign = own
        else:
            raise TypeError(f"a bell rings an eventfd or a function, not {type(target).__name__}")

    def __dealloc__(self):
        if self.own and self.c.fd >= 0:
            close(self.c.fd)  # not os.close: at the interpreter's end there is no os any more

    def ring(self):
        """Wake the other side."""
        with nogil:
            virtio_bell_ring(&self.c)

    def answer(self):
        """Return whether it was rung since the last answer (of its own eventfd, or of one that was given)."""
        cdef bint rung = virtio_bell_answer(&self.c)
        if self.c.fd >= 0 and virtio_bell_drain(&self.c):
            rung = True
        return rung

    def fileno(self):
        """Return the eventfd; ValueError if there is none.

        Once it was asked for, each ring writes to it: whoever polls it needs to know nothing else.
        """
        if self.c.fd < 0:
            raise ValueError("a bell that calls a function has no file descriptor")
        virtio_store32(&self.c.always, 1)
        return self.c.fd

    @property
    def rings(self):
        """Times it was rung."""
        return counted(&self.c.rings)

    @property
    def writes(self):
        """Writes to the eventfd that this took: system calls."""
        return counted(&self.c.writes)

    def __repr__(self):
        what = f"fd {self.c.fd}" if self.function is None else f"{self.function!r}"
        return f"<Bell: {what}, rung {counted(&self.c.rings)} times>"
