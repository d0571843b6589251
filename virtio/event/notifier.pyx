"""Bells: how one side of a queue wakes the other."""

import os
import signal
import sys

from virtio.core.atomic cimport virtio_store32
from virtio.core.counters cimport counted

from virtio.core import signals

signals.take(signal.SIGURG)    # it ends a write that holds its thread: untrusted eventfds, foreign_bell.h
signals.block(signal.SIGPIPE)  # an eventfd may be a socket that is not read


cdef extern from "unistd.h" nogil:
    int close(int fd)


cdef extern from "virtio/foreign_bell.h" nogil:
    int virtio_watch_begin()
    void virtio_watch_end()
    void virtio_foreign_write(virtio_bell *bell)


cdef void ring_foreign(virtio_bell *bell) noexcept nogil:
    virtio_store32(&bell.rung, 1)
    virtio_foreign_write(bell)


cdef void ring_function(virtio_bell *bell) noexcept nogil:
    with gil:
        call_function((<Bell>bell.owner).function)


cdef void ring_watched(virtio_bell *bell) noexcept nogil:
    virtio_bell_wake(bell)
    with gil:
        call_function((<Bell>bell.owner).watcher)


cdef void call_function(object function) noexcept:
    try:
        if function is not None:  # a watcher may have gone just now
            function()
    except BaseException:
        # nobody above is Python that could take it: an interrupt handler has no caller
        sys.excepthook(*sys.exc_info())


cdef class Bell:
    """Wakes whoever serves a queue: a kick for the device, an interrupt for the driver.

    ``Bell()`` has an eventfd of its own, which is written to only while somebody sleeps on it. ``Bell(fd)`` writes to
    an eventfd that others read, at each ring; the caller keeps it open, and closes it. ``Bell(fd, own=True)`` closes it
    when it goes, and has no trust in those who share it: they may let it fill, set it blocking, or read what is theirs
    to write; whoever rings does not wait (one write in which a thread was held for 10 ms or more is its last).
    ``Bell(function)`` calls ``function()`` on the ringing thread, which holds no queue's lock then; what it raises goes
    to ``sys.excepthook``.

    Any thread may call anything. Raises OSError when there is no file descriptor left, TypeError for what is none of
    these.
    """

    def __cinit__(self):
        self.c.fd = -1

    def __init__(self, target=None, *, bint own=False):
        cdef int error
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
            self.own = own
            if own:
                error = virtio_watch_begin()
                if error:
                    raise OSError(error, os.strerror(error))
                self.c.foreign = 1
                self.c.call = ring_foreign
        else:
            raise TypeError(f"a bell rings an eventfd or a function, not {type(target).__name__}")

    def __dealloc__(self):
        if self.c.foreign:
            virtio_watch_end()
        if self.own and self.c.fd >= 0:
            with nogil:  # it may be a socket that takes its time
                close(self.c.fd)  # not os.close: at the interpreter's end there is no os any more

    def ring(self):
        """Wake the other side."""
        with nogil:
            virtio_bell_ring(&self.c)

    def watch(self, watcher):
        """Call ``watcher()`` after each ring, on the ringing thread, until another is set; None: none.

        Only for a bell with an eventfd of its own: any other stays as it is. A write to the eventfd does not call it.
        """
        if not self.own or self.c.foreign:
            return
        self.watcher = watcher
        self.c.owner = <void *>self
        if watcher is None:
            virtio_bell_set_call(&self.c, NULL)
        else:
            virtio_bell_set_call(&self.c, ring_watched)

    def answer(self):
        """Return whether it was rung since the last answer (of its own eventfd, or of one that was given)."""
        cdef bint rung = virtio_bell_answer(&self.c)
        if self.c.fd >= 0 and virtio_bell_drain(&self.c):
            rung = True
        return rung

    def fileno(self):
        """Return the eventfd; ValueError if there is none.

        Once it was asked for, each ring writes to it, as does a ring before that if it is not answered.
        """
        if self.c.fd < 0:
            raise ValueError("a bell that calls a function has no file descriptor")
        virtio_bell_open(&self.c)
        return self.c.fd

    @property
    def rings(self):
        """Times it was rung."""
        return counted(&self.c.rings)

    @property
    def writes(self):
        """Writes to the eventfd that this took: system calls."""
        return counted(&self.c.writes)

    @property
    def dead(self):
        """Whether it is rung no more, for whoever shares its descriptor held a thread that rang it."""
        return self.c.dead != 0

    def __repr__(self):
        what = f"fd {self.c.fd}" if self.function is None else f"{self.function!r}"
        return f"<Bell: {what}, rung {counted(&self.c.rings)} times>"
