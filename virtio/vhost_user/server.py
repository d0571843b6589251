"""A socket at which a device is served: listening or connecting, and again when the frontend has gone."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable
from typing import Any, Self

from virtio.core import signals
from virtio.core.logs import limited
from virtio.core.process import Origin
from virtio.device import Device
from virtio.errors import VirtioError, bare, in_full
from virtio.vhost_user.backend import Backend
from virtio.vhost_user.descriptors import close_socket
from virtio.vhost_user.listener import PathListener

log = limited("virtio.vhost_user")

RETRY = 0.2  # seconds between two attempts to connect


class Server:
    """Serves ``device`` at the UNIX socket ``path``, to one frontend at a time, on a thread of its own.

    ``client``: connect to a socket at which the frontend listens, and again whenever it has gone. In place of a path:
    ``listener``, a socket that listens (it is made non-blocking, and closed in the end, but goes on to listen for
    others who have it), or ``connection``, one at whose other end a frontend is: it is served once, then ``over`` is
    called, on the server's thread. ``options`` are :class:`virtio.vhost_user.Backend`'s. A context manager.

    A frontend that breaks the protocol loses its connection, and the next may come. ``error`` is what the last one was
    told, or None. Raises OSError when the socket cannot be made. A socket file that is there already is replaced if
    no process has it. Any thread may call.
    """

    def __init__(
        self,
        device: Device,
        path: str | os.PathLike[str] = "",
        *,
        client: bool = False,
        listener: socket.socket | None = None,
        connection: socket.socket | None = None,
        over: Callable[[], object] | None = None,
        **options: Any,
    ) -> None:
        self.device = device
        self.path = os.fspath(path)
        self.client = client
        self.error: Exception | None = None
        self.connections = 0
        self.options = {"name": self.path or "vhost-user", **options}
        self.name = self.options["name"]
        self._backend: Backend | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._own = PathListener(self.path) if listener is None and connection is None and not client else None
        self._listener = self._own.socket if self._own is not None else listener
        if self._listener is not None:
            self._listener.setblocking(False)
        self._given = connection
        self._over = over
        # a listening socket cannot be shut down to wake us: others who have it would find it dead
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._origin = Origin("server")

    def start(self) -> Self:
        """Begin to serve."""
        self._origin.check()
        self._thread = threading.Thread(target=self._run, name=f"virtio-{self.path}", daemon=True)
        self._thread.start()
        return self

    @property
    def connected(self) -> bool:
        """Whether a frontend is there."""
        return self._backend is not None

    def close(self) -> None:
        """End: the device drains, the frontend is cut off, the socket file goes if it is the one that was made here.

        In a child of fork() it raises RuntimeError, and leaving the context does nothing: the parent serves on.
        """
        self._origin.check()
        if self.connected:
            self.device.drain()
        self._ended.set()
        with self._lock:
            if self._backend is not None:
                self._backend.stop()
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1
        if self._given is not None:  # it was never served
            self._given.close()
        if self._own is not None:
            self._own.close()
        elif self._listener is not None:
            self._listener.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self._origin.here:
            self.close()

    def _run(self) -> None:
        signals.begin_thread()
        if self._given is not None:
            given, self._given = self._given, None
            self._serve(given)
            if self._over is not None:
                self._over()
            return
        while not self._ended.is_set():
            connection = self._connection()
            if connection is not None:
                self._serve(connection)

    def _connection(self) -> socket.socket | None:
        try:
            if self._listener is not None:
                waiting = select.poll()
                waiting.register(self._listener, select.POLLIN)
                waiting.register(self._wake, select.POLLIN)
                waiting.poll()
                return None if self._ended.is_set() else self._listener.accept()[0]
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.setblocking(False)  # a listener may leave its queue full
                connection.connect(self.path)
            except BaseException:
                connection.close()
                raise
        except OSError as error:
            if not self._ended.is_set():
                log.debug("%s: %s", self.name, str(error))
                self._ended.wait(RETRY)
            return None
        return connection

    def _serve(self, connection: socket.socket) -> None:
        try:
            backend = Backend(self.device, connection, **self.options)
        except OSError as error:  # no file descriptors are left
            log.error("%s: a frontend is turned away: %s", self.name, str(error))
            self.error = bare(error)
            close_socket(connection)
            self._ended.wait(RETRY)
            return
        with self._lock:
            if self._ended.is_set():
                backend.stop()
            self._backend = backend
        self.connections += 1
        log.info("%s: a frontend is there", self.name)
        try:
            backend.run()
        except VirtioError as error:
            self.error = bare(error)
            log.error("%s: %s", self.name, str(error))
        except Exception as error:  # a bug of ours
            log.error("%s: the connection is given up\n%s", self.name, in_full(error))
            self.error = bare(error)
        finally:
            with self._lock:
                self._backend = None
