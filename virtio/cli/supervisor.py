"""What a process has of a supervisor: sockets that it inherits, somebody who wants to know, the signal to end."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from virtio.errors import ConfigError

log = logging.getLogger("virtio.net")

LISTEN_FDS_START = 3  # the first of systemd's sockets (sd_listen_fds(3))
LISTEN_FDS_MAX = 64  # more than anybody has endpoints
PATIENCE = 2.0  # seconds that a supervisor whose queue is full is waited for


def notify(state: str) -> None:
    """Tell the supervisor that started us, if it wants to know (sd_notify(3)). That it has gone is no error of ours."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
            supervisor.settimeout(PATIENCE)
            supervisor.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
    except OSError as error:
        log.warning("NOTIFY_SOCKET %s: %s is not told: %s", address, state, error)


def activated() -> list[int]:
    """Return the descriptors that LISTEN_FDS gives this process; none if LISTEN_PID names another (sd_listen_fds(3)).

    Raises ConfigError for a LISTEN_FDS that is no number, or too large.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    text = os.environ.get("LISTEN_FDS", "")
    if not (text.isdecimal() and int(text) <= LISTEN_FDS_MAX):
        raise ConfigError(f"LISTEN_FDS {text!r} is not within 0 to {LISTEN_FDS_MAX}")
    return list(range(LISTEN_FDS_START, LISTEN_FDS_START + int(text)))


def inherited(fd: int) -> tuple[socket.socket, bool]:
    """Take over an inherited UNIX stream socket; return it, and whether it listens (else it is connected).

    Raises ConfigError for what is none, and leaves that open.
    """
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise ConfigError(f"fd {fd} is no socket")
    except (OSError, OverflowError):
        raise ConfigError(f"fd {fd} is not open") from None
    found = socket.socket(fileno=fd)
    try:
        if found.family != socket.AF_UNIX or found.type != socket.SOCK_STREAM:
            raise ConfigError(f"fd {fd} is no UNIX stream socket")
        listens = bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        if not listens:
            found.getpeername()
    except OSError:
        found.detach()
        raise ConfigError(f"fd {fd} neither listens nor is connected") from None
    except BaseException:
        found.detach()
        raise
    os.set_inheritable(fd, False)
    return found, listens


class Stopped(Exception):
    """A signal came amid what may be broken off."""


class Stop:
    """Waits until a signal comes, or a thread says so.

    What wakes it is written by the C handler, on whichever thread the kernel chose for the signal. A handler in Python
    would not do: it runs on the main thread, which sleeps on if the kernel chose another; and threading.Event may
    deadlock in one. Signals stay with it: one for a process, made by the main thread.
    """

    def __init__(self, *signals: int) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in signals:
            signal.signal(number, self._came)
        self._may_break = False

    def _came(self, *_: object) -> None:
        if self._may_break:
            self._may_break = False
            raise Stopped

    @contextmanager
    def breaks(self) -> Iterator[None]:
        """Let signals break off what the main thread does within: it may wait, for a pipe's reader. Raises Stopped.

        At once, if one came before.
        """
        self._may_break = True
        try:
            if self.wait(0):
                raise Stopped
            yield
        finally:
            self._may_break = False

    def set(self) -> None:
        """End the wait, now or when it comes."""
        with suppress(BlockingIOError):  # it is set many times already
            os.write(self._write, b"\0")

    def wait(self, seconds: float | None = None) -> bool:
        """Sleep until it is set, or for so long; return whether it is."""
        waiting = select.poll()
        waiting.register(self._read, select.POLLIN)
        return bool(waiting.poll(None if seconds is None else seconds * 1000))
