"""Streams between two kernels: what is sent, and that it arrives."""

from __future__ import annotations

import hashlib
import socket
import threading
from typing import Any

from netns import A, B, Link

FAMILIES = {4: (socket.AF_INET, "10.77.0.1", "10.77.0.2"), 6: (socket.AF_INET6, "fd77::1", "fd77::2")}
UDP_SEGMENT = 103
STREAM = 12 << 20  # bytes each way


def content(seed: int, size: int) -> bytes:
    return (hashlib.shake_256(seed.to_bytes(4, "big")).digest(1 << 16) * (size // (1 << 16) + 1))[:size]


def stream_both_ways(link: Link, version: int, size: int = STREAM, port: int = 5001, options: Any = (),
                     addresses: tuple[str, str] | None = None) -> None:  # fmt: skip
    """Send size bytes over TCP from A to B and from B to A at the same time; compare the hashes of what arrives."""
    family, _, address = FAMILIES[version]
    address = addresses[B] if addresses else address
    listener = link.namespaces[B].socket(family, socket.SOCK_STREAM)
    client = link.namespaces[A].socket(family, socket.SOCK_STREAM)
    for level, name, value in options:
        client.setsockopt(level, name, value)
        listener.setsockopt(level, name, value)
    listener.bind((address, port))
    listener.listen(1)
    client.connect((address, port))
    server, _ = listener.accept()
    server.settimeout(30)
    got: dict[str, str] = {}
    sent = {"to B": content(1, size), "to A": content(2, size)}

    def take(name: str, end: socket.socket) -> None:
        digest, left = hashlib.sha256(), size
        while left and (data := end.recv(1 << 18)):
            digest.update(data)
            left -= len(data)
        got[name] = digest.hexdigest()

    threads = [
        threading.Thread(target=client.sendall, args=(sent["to B"],)),
        threading.Thread(target=server.sendall, args=(sent["to A"],)),
        threading.Thread(target=take, args=("to B", server)),
        threading.Thread(target=take, args=("to A", client)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for end in (client, server, listener):
        end.close()
    assert got == {name: hashlib.sha256(data).hexdigest() for name, data in sent.items()}
