"""File descriptors of another process: what they hold, and how they are closed without a wait.

A UNIX socket holds the descriptors that wait in its queue, and a listening one connections that are not accepted yet.
Whatever lies there stays open as long as the socket does: the other end of the connection by which it came, too.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from virtio.errors import VhostUserError

SCM_MAX_FD = 253  # of one message: the kernel's bound
FDS_SPACE = socket.CMSG_SPACE(SCM_MAX_FD * array.array("i").itemsize)  # with less the kernel closes the rest for us
SPACE = FDS_SPACE + socket.CMSG_SPACE(struct.calcsize("iII"))  # and the sender's credentials
PART = 1 << 16  # bytes of one look into a queue


def received(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors among what recvmsg() gives beside the data."""
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return list(fds)


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors, and those in the queues of sockets among them. None waits for data to be sent (SO_LINGER)."""
    left = list(fds)
    while left:
        within = take_one(left[-1])
        if within is not None:
            left += within  # these first: queues may be nested deeper than calls
            continue
        with suppress(OSError):
            os.close(left.pop())


def close_socket(it: socket.socket) -> None:
    """Close a socket to which another process sent, without a wait."""
    close_all([it.detach()] if it.fileno() >= 0 else [])


def make_write_only(fd: int, what: str) -> None:
    """End reading from a UNIX socket, for all who have it, and empty its queue: it holds no other descriptor then.

    At the other end nothing can be sent any more: the end of a vhost-user connection shows by that. Raises
    VhostUserError, with ``what`` has it, for a socket that listens or is of another family: closing it may take long.
    """
    try:
        with borrowed(fd) as it:
            family, listens = it.family, it.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise VhostUserError(f"{what}: {error}") from None
    if family != socket.AF_UNIX:
        raise VhostUserError(f"{what} has a socket of {getattr(family, 'name', f'family {family}')}, not of AF_UNIX")
    if listens:
        raise VhostUserError(f"{what} has a socket that listens")
    while (within := take_one(fd)) is not None:
        close_all(within)


def take_one(fd: int) -> list[int] | None:
    """End reading from a socket, and take out of its queue the descriptors of one message; None: nothing is left."""
    try:
        with borrowed(fd) as it:
            if it.family != socket.AF_UNIX:
                it.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return None
            it.shutdown(socket.SHUT_RD)  # nothing comes in from here on, and no call below waits
            if it.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return [it.accept()[0].detach()]
            it.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            it.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # tells a record of no bytes from the end
            data, ancillary, _, _ = it.recvmsg(PART, SPACE, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
            if not data and (it.type == socket.SOCK_STREAM or not ancillary):
                return None
            return received(ancillary)
    except ConnectionResetError:  # said once, before what is left in the queue
        return []
    except OSError:  # it is no socket, or its queue is empty
        return None


@contextmanager
def borrowed(fd: int) -> Iterator[socket.socket]:
    """Use a descriptor as a socket; it stays open. Raises OSError for one that is none."""
    it = socket.socket(fileno=fd)
    try:
        yield it
    finally:
        it.detach()
