"""The process that made an object: a child of fork() has the object, and none of the threads that work it."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

PATIENCE = 0.25  # seconds that a lock is waited for in a child, where the thread that has it may not be

_current = os.getpid()


class Forked(Protocol):
    """An object that must know that it is in a child."""

    def _forked(self, parent: int) -> None:
        """Give up a lock that a thread of ``parent`` had at that moment: in this process it has no owner.

        What the lock guards may be half done: it is refused from now on, if that matters.
        """


_watched: weakref.WeakSet[Forked] = weakref.WeakSet()


def watch(it: Forked) -> None:
    """Have ``it._forked()`` called in each child of fork(), before anything else there runs. It is not kept alive."""
    _watched.add(it)


def _forked() -> None:
    global _current
    parent, _current = _current, os.getpid()
    for it in tuple(_watched):
        it._forked(parent)


os.register_at_fork(after_in_child=_forked)


def made_before(name: str, process: int) -> RuntimeError:
    """Return the error for an object that cannot be used in this child of ``process``."""
    return RuntimeError(f"{name} was made before fork() in process {process}, where its threads are")


class Origin:
    """The process in which this was made. :meth:`check` refuses in a child that fork() made of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process = _current

    @property
    def here(self) -> bool:
        """Whether this is that process."""
        return self.process == _current

    def check(self) -> None:
        """Raise RuntimeError in a child."""
        if self.process != _current:
            raise made_before(self.name, self.process)


class ForkAwareLock:
    """A reentrant lock. In a child of fork() it refuses, as :class:`Origin` does, if a thread of the parent has it.

    So it is until :meth:`adopt`, by which the child says that what the lock guards is in order.
    """

    def __init__(self, name: str) -> None:
        self.origin = Origin(name)
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        if self.origin.here:
            self._lock.acquire()
        elif not self._lock.acquire(timeout=PATIENCE):
            self.origin.check()
            self._lock.acquire()  # adopted meanwhile

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def adopt(self) -> None:
        """Be a lock of this process."""
        self.origin = Origin(self.origin.name)
