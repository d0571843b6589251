"""Counters of a running process, at a UNIX socket: what `virtio net` offers and `virtio top` reads.

A client sends a line, any, and gets a line of JSON: {"pid": ..., "uptime": seconds, "endpoints": statistics}.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from virtio.vhost_user.server import listen

REQUEST_MAX = 100  # bytes of a client's line
PATIENCE = 5.0  # seconds that a client may take


def folder() -> Path:
    """Return where processes of this user have their sockets."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base:
        return Path(base) / "virtio"
    return Path("/run/virtio") if os.geteuid() == 0 else Path(tempfile.gettempdir()) / f"virtio-{os.geteuid()}"


class StatusSocket:
    """Answers with what ``read()`` returns, at ``path`` (default: PID.sock in :func:`folder`). A context manager.

    One client at a time, on a thread of its own. Raises OSError when the socket cannot be made.
    """

    def __init__(self, read: Callable[[], dict[str, Any]], path: str | None = None) -> None:
        self._read = read
        self._since = time.monotonic()
        if path is None:
            folder().mkdir(mode=0o700, parents=True, exist_ok=True)
            path = str(folder() / f"{os.getpid()}.sock")
        self.path = path
        self._listener = listen(path)
        os.chmod(path, 0o600)
        self._connection: socket.socket | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="virtio-status", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        if (connection := self._connection) is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        with suppress(OSError):
            os.unlink(self.path)

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.settimeout(PATIENCE)
                self._connection = connection
                while not self._ended and connection.recv(REQUEST_MAX):
                    answer = {
                        "pid": os.getpid(), "uptime": round(time.monotonic() - self._since, 3),
                        "endpoints": self._read(),
                    }  # fmt: skip
                    connection.sendall(json.dumps(answer).encode() + b"\n")


class Status:
    """The other side: the counters of the process at ``path``. A context manager. Raises OSError, also when it ends."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE)
        try:
            self._socket.connect(path)
        except BaseException:
            self._socket.close()
            raise
        self._lines = self._socket.makefile("rb")

    def read(self) -> dict[str, Any]:
        """Ask, and return the answer."""
        self._socket.sendall(b"\n")
        line = self._lines.readline()
        if not line:
            raise ConnectionError("the process has ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()
