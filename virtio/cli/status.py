"""Counters of a running process, at a UNIX socket: what `virtio net` offers and `virtio top` reads.

A client sends a line, any, and gets a line of JSON: {"pid": ..., "uptime": seconds, "endpoints": statistics}.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from virtio.vhost_user.listener import PathListener, remove_stale

REQUEST_MAX = 100  # bytes of a client's line
PATIENCE = 5.0  # seconds that either side has to send, or to take, an answer
CLIENTS = 16  # at once
RETRY = 0.2  # seconds between two attempts to take a client when no descriptors are left


def folder() -> Path:
    """Return where processes of this user have their sockets."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base:
        return Path(base) / "virtio"
    return Path("/run/virtio") if os.geteuid() == 0 else Path(tempfile.gettempdir()) / f"virtio-{os.geteuid()}"


def made_folder() -> Path:
    """Return that folder, made unless it is there. Raises OSError if somebody else has made it."""
    made = folder()
    made.mkdir(mode=0o700, parents=True, exist_ok=True)
    if made.stat().st_uid != os.geteuid():
        raise PermissionError(f"{made} is not ours")
    return made


def running() -> list[Path]:
    """Return the sockets of processes that run. Those that killed ones left are removed."""
    found = []
    for path in sorted(folder().glob("*.sock")):
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.setblocking(False)
                probe.connect(str(path))
        except BlockingIOError:  # it has much to do
            found.append(path)
        except ConnectionRefusedError:
            if path.stem.isdecimal() and not Path(f"/proc/{path.stem}").exists():
                with suppress(OSError):
                    remove_stale(str(path))
        except OSError:
            pass  # it goes at this moment, or is not ours
        else:
            found.append(path)
    return found


class StatusSocket:
    """Answers with what ``read()`` returns, at ``path`` (default: PID.sock in :func:`folder`). A context manager.

    Up to CLIENTS clients at once, each on a thread of its own for as long as it stays; a further one is cut off, and
    so is one that does not take its answer. Raises OSError when the socket cannot be made.
    """

    def __init__(self, read: Callable[[], dict[str, Any]], path: str | None = None) -> None:
        self._read = read
        self._since = time.monotonic()
        if path is None:
            path = str(made_folder() / f"{os.getpid()}.sock")
        self.path = path
        self._own = PathListener(path)
        self._listener = self._own.socket
        os.chmod(path, 0o600)
        self._lock = threading.Lock()
        self._clients: dict[socket.socket, threading.Thread] = {}
        self._ended = False

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="virtio-status", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._ended = True
            threads = [self._thread, *self._clients.values()]
            for sock in (self._listener, *self._clients):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        self._own.close()

    def _run(self) -> None:
        while not self._ended:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # no descriptors are left; or it is over
                time.sleep(0 if self._ended else RETRY)
                continue
            with self._lock:
                if self._ended or len(self._clients) == CLIENTS:
                    with connection, suppress(OSError):
                        connection.send(b'{"error": "too many look at it already"}\n')
                    continue
                thread = threading.Thread(target=self._serve, args=(connection,), name="virtio-status", daemon=True)
                self._clients[connection] = thread
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            while connection.recv(REQUEST_MAX):
                answer = {
                    "pid": os.getpid(), "uptime": round(time.monotonic() - self._since, 3), "endpoints": self._read(),
                }  # fmt: skip
                connection.settimeout(PATIENCE)
                connection.sendall(json.dumps(answer).encode() + b"\n")
                connection.settimeout(None)  # when it asks again is its own affair
        except OSError:
            pass  # it has gone, or is to go
        finally:
            with self._lock:
                del self._clients[connection]
                connection.close()


class Ended(ConnectionError):
    """The process at the other end of the socket has gone."""


class Status:
    """The other side: the counters of the process at ``path``. A context manager.

    Raises Ended when the process has ended, ConnectionError when it takes no more clients, and OSError.
    """

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # settimeout() comes later: with one, connect fails at once where it is to wait for its turn
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(PATIENCE), 0))
            self._socket.connect(path)
            self._socket.settimeout(PATIENCE)
        except BlockingIOError:
            self._socket.close()
            raise ConnectionError(f"nobody takes connections at {path}") from None
        except BaseException:
            self._socket.close()
            raise
        self._lines = self._socket.makefile("rb")

    def read(self) -> dict[str, Any]:
        """Ask, and return the answer."""
        try:
            self._socket.sendall(b"\n")
            line = self._lines.readline()
        except (BrokenPipeError, ConnectionResetError):
            line = b""
        if not line.endswith(b"\n"):
            raise Ended("the process has ended")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise ConnectionError(found["error"])
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()
