"""An interrupt line: a level, told to whoever listens in the order in which it changed."""

from __future__ import annotations

from collections.abc import Callable

from virtio.core.process import ForkAwareLock


class Line:
    """Tells ``listener(level)`` when ``level()`` has changed, from whatever thread says so by :meth:`update`.

    No lock is held while the listener runs, so it may come back (read the ISR, which lowers the line). Nor do two calls
    of it overlap: a second thread leaves its change to the first. A pulse that begins and ends before anybody is told
    is not told. What the listener raises, ``update`` raises.
    """

    def __init__(self, level: Callable[[], bool], listener: Callable[[bool], object] | None = None) -> None:
        self._level = level
        self._listener = listener
        self._told = False
        self._telling = False
        self._lock = ForkAwareLock("interrupt line")

    @property
    def listener(self) -> Callable[[bool], object] | None:
        """Who is told. A new one takes the line for low until it is told."""
        return self._listener

    @listener.setter
    def listener(self, listener: Callable[[bool], object] | None) -> None:
        with self._lock:
            self._listener = listener
            self._told = False
        self.update()

    def update(self) -> None:
        """Tell the listener if the level is not what it was told."""
        with self._lock:
            if self._telling:
                return
            self._telling = True
        while True:
            # either this sees the newest change, or whoever made it finds _telling unset and tells it
            with self._lock:
                level = self._level()
                if level == self._told:
                    self._telling = False
                    return
                self._told = level
                listener = self._listener
            if listener is not None:
                try:
                    listener(level)
                except BaseException:
                    with self._lock:
                        self._telling = False
                    raise
