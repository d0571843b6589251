"""Sockets that are trouble for whoever is given them: one that lingers, one in whose queue another waits."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress


def lingering() -> tuple[socket.socket, list[socket.socket]]:
    """A TCP socket that is not closed before all has gone that it has to send, and others that keep it from that."""
    listener, ours = socket.create_server(("127.0.0.1", 0)), socket.socket()
    ours.connect(listener.getsockname())
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 30))
    ours.setblocking(False)
    with suppress(BlockingIOError):
        while ours.send(bytes(4096)):
            pass
    return ours, [listener, listener.accept()[0]]


def nested(fd: int, kind: int = socket.SOCK_STREAM) -> int:
    """Return a UNIX socket in whose queue fd waits."""
    ours, other = socket.socketpair(socket.AF_UNIX, kind)
    with ours, other:
        for empty in range(2 * (kind != socket.SOCK_STREAM)):  # records of no bytes, with and without credentials
            other.send(b"" if not empty else b"x")
        socket.send_fds(other, [b"x"], [fd])
        return os.dup(ours.fileno())
