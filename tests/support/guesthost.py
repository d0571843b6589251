"""The other end of a guest's cable: the servers in a namespace that a guest's job talks to."""

from __future__ import annotations

import fcntl
import hashlib
import os
import queue
import socket
import termios
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

from virtio.net import Namespace

SIZE = 2 << 20
# bytes of UDP's datagrams: of a frame, of one that is as large as may be, of several
DATAGRAMS = (1, 2, 17, 18, 19, 512, 1400, 1471, 1472, 1473, 2000, 4000) * 4
WINDOW = 4  # datagrams on their way: no buffer overflows, so none may be lost
PATIENCE = 60  # seconds: a machine may be busy


class Host:
    """Servers, by IPv4 and 6: port 5001 gives ``size`` bytes, 5002 takes some, 5003 wants back what it sends until
    ``enough`` is set, 5004 does what was put into ``orders``, one for each connection; and UDP's 5005 as 5003.
    """

    def __init__(self, space: Namespace, stack: ExitStack, size: int = SIZE) -> None:
        self.data = os.urandom(size)
        self.out = 0  # bytes given so far, over all streams
        self.arrived = 0  # streams that the guest's kernel has, whether or not they were read
        self.given = hashlib.sha256(self.data).hexdigest()
        self.taken: list[str] = []
        self.enough = threading.Event()
        self.back = 0  # bytes that came back
        self.exchanged: list[tuple[str, str]] = []  # of streams and of datagrams: what was sent, what came back
        self.orders: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.space = space
        for port, serve in ((5001, self.give), (5002, self.take), (5003, self.exchange), (5004, self.order)):
            listener = space.socket(socket.AF_INET6, socket.SOCK_STREAM)
            listener.bind(("::", port))  # IPv4 too
            listener.listen(8)
            stack.callback(listener.close)
            threading.Thread(target=self.accept, args=(listener, serve), daemon=True).start()
        datagrams = space.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        datagrams.bind(("::", 5005))
        stack.callback(datagrams.close)
        threading.Thread(target=self.datagrams, args=(datagrams,), daemon=True).start()

    def accept(self, listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection, serve), daemon=True).start()

    def serve(self, connection: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        # the guest may be gone, without a word: what is missing then is seen in what did not come
        with connection, suppress(OSError):
            connection.settimeout(PATIENCE)
            serve(connection)

    def give(self, connection: socket.socket) -> None:
        for at in range(0, len(self.data), 1 << 16):
            connection.sendall(self.data[at : at + (1 << 16)])
            self.out += 1 << 16
        connection.shutdown(socket.SHUT_WR)
        end = time.monotonic() + PATIENCE
        while fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)) != bytes(4) and time.monotonic() < end:
            time.sleep(0.002)
        self.arrived += 1
        connection.recv(1)

    def take(self, connection: socket.socket) -> None:
        digest = hashlib.sha256()
        while part := connection.recv(1 << 16):
            digest.update(part)
        self.taken.append(digest.hexdigest())

    def exchange(self, connection: socket.socket) -> None:
        sent, came = hashlib.sha256(), hashlib.sha256()

        def back() -> None:
            while part := connection.recv(1 << 16):
                came.update(part)
                self.back += len(part)

        reader = threading.Thread(target=back, daemon=True)
        reader.start()
        while not self.enough.is_set():
            data = os.urandom(1 << 16)
            sent.update(data)
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        reader.join()
        self.exchanged.append((sent.hexdigest(), came.hexdigest()))

    def order(self, connection: socket.socket) -> None:
        if (action := self.orders.get()) is not None:
            action()

    def datagrams(self, server: socket.socket) -> None:
        """Of each guest that says something: all datagrams, in turn; an empty one ends it."""
        while True:
            try:
                _, guest = server.recvfrom(1 << 16)
            except OSError:
                return
            sent, came = hashlib.sha256(), hashlib.sha256()
            server.settimeout(PATIENCE)
            for number, size in enumerate((*DATAGRAMS, *[0] * WINDOW)):
                if size:
                    data = os.urandom(size)
                    sent.update(size.to_bytes(2) + data)
                    server.sendto(data, guest)
                if number >= WINDOW:
                    data = server.recv(1 << 16)
                    came.update(len(data).to_bytes(2) + data)
            server.settimeout(None)
            self.exchanged.append((sent.hexdigest(), came.hexdigest()))
            server.sendto(b"", guest)

    def frames(self, to: str, count: int, vlan: int | None = None) -> None:
        """Send frames that are not for the guest's kernel, within a VLAN."""
        head = bytes.fromhex(to.replace(":", "") + "020000000077")
        tag = b"" if vlan is None else b"\x81\x00" + vlan.to_bytes(2)
        with self.space.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind(("tap0", 0))
            for _ in range(count):
                sender.send(head + tag + b"\x88\xb5" + bytes(50))
