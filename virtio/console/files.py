"""A port of a console joined to file descriptors: a pseudo-terminal, a socket, a pipe, standard input and output."""

from __future__ import annotations

import os
import pty
import select
import threading
import tty
from contextlib import suppress
from typing import Self

from virtio.console.ports import ConsolePort
from virtio.core import signals
from virtio.core.process import Origin
from virtio.event.notifier import Bell

CHUNK = 1 << 12  # bytes of one read and of one write


class FileBridge:
    """Carries bytes between ``port`` and files, on a thread of its own, from :meth:`start` to :meth:`close`.

    What is read from ``source`` goes to the guest; what the guest sends is written to ``target`` (None: to ``source``).
    Both stay the caller's, are made non-blocking, and get their mode back at the end. At the end of ``source`` the
    thread reads it no more; when ``target`` fails it ends. ``error`` is the OSError that ended it, or None.

    Each side waits for the other: while a file takes nothing, the guest waits, unless the port is ``lossy``. The port's
    ``on_ready`` is taken; its ``on_data`` must be None (ValueError). A context manager. Threads: any, one at a time.
    """

    def __init__(self, port: ConsolePort, source: int, target: int | None = None) -> None:
        if port.on_data is not None:
            raise ValueError(f"{port!r} has on_data: nothing is left to write")
        self.port = port
        self.source = source
        self.target = source if target is None else target
        self.path = ""
        self.error: OSError | None = None
        self._bell = Bell()
        self._ended = False
        self._reading = True
        self._pending = b""  # read from the port, not yet written
        self._own: tuple[int, ...] = ()
        self._blocking = {fd: os.get_blocking(fd) for fd in (self.source, self.target)}
        self._thread = threading.Thread(target=self._run, name="virtio-console", daemon=True)
        self._origin = Origin("bridge")

    @classmethod
    def pty(cls, port: ConsolePort) -> Self:
        """Return a bridge to a new pseudo-terminal, raw, without echo. ``path`` is its file. OSError without one.

        The kernel keeps some KiB that nobody reads; then the guest waits, unless the port is ``lossy``.
        """
        main, other = pty.openpty()
        try:
            tty.setraw(other)
            bridge = cls(port, main)
            bridge.path = os.ttyname(other)
        except BaseException:
            os.close(main)
            os.close(other)
            raise
        bridge._own = main, other  # while the other side is open here, nobody's close hangs up
        return bridge

    def start(self) -> Self:
        """Begin."""
        self._origin.check()
        for fd in self._blocking:
            os.set_blocking(fd, False)
        self.port.on_ready = self._bell.ring
        self._thread.start()
        return self

    def close(self) -> None:
        """End; what waits in the port stays there. A second time does nothing. RuntimeError in a child of fork()."""
        self._origin.check()
        if self._ended:
            return
        self._ended = True
        if self._thread.ident is not None:
            self._bell.ring()
            self._thread.join()
            self.port.on_ready = None
            for fd, blocking in self._blocking.items():
                os.set_blocking(fd, blocking)
        for fd in self._own:
            os.close(fd)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self._origin.here:
            self.close()

    def _run(self) -> None:
        signals.begin_thread()
        try:
            while not self._ended:
                self._turn()
        except OSError as error:
            self.error = error

    def _turn(self) -> None:
        if not self._pending:
            self._pending = self.port.read(CHUNK)
        room = self.port.limit - self.port.out_waiting
        wanted = {self._bell.fileno(): select.POLLIN}
        if self._reading and room > 0 and self.port.open:
            wanted[self.source] = select.POLLIN
        if self._pending:
            wanted[self.target] = wanted.get(self.target, 0) | select.POLLOUT
        waiting = select.poll()
        for fd, events in wanted.items():
            waiting.register(fd, events)
        ready = dict(waiting.poll())
        if ready.get(self._bell.fileno()):
            self._bell.answer()
        if wanted.get(self.target, 0) & select.POLLOUT and ready.get(self.target, 0) & ~select.POLLIN:
            self._write()
        if wanted.get(self.source, 0) & select.POLLIN and ready.get(self.source, 0) & ~select.POLLOUT:
            self._read(min(room, CHUNK))

    def _write(self) -> None:
        with suppress(BlockingIOError):
            self._pending = self._pending[os.write(self.target, self._pending) :]

    def _read(self, size: int) -> None:
        try:
            data = os.read(self.source, size)
        except BlockingIOError:
            return
        if data:
            self.port.write(data)
        else:
            self._reading = False
