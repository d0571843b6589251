"""The process that made an object: a child of fork() has the object, and none of the threads that work it."""

from __future__ import annotations

import os

_current = os.getpid()


def _forked() -> None:
    global _current
    _current = os.getpid()


os.register_at_fork(after_in_child=_forked)


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
            raise RuntimeError(f"{self.name} was made before fork() in process {self.process}, where its threads are")
