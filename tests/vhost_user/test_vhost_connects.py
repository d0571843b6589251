"""Connections that come and go while the cycle collector is off: each takes with it all that it had.

In a program that turned the collector off, or that has few objects and so seldom runs it, a cycle keeps a connection's
descriptors and its guest's memory.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from descriptors import open_kinds
from vhost_device import Upper, running
from vhost_frontend import SIZE, Frontend, layout_of
from waiting import wait_for

from virtio import Device
from virtio.net import Loopback, NetDevice
from virtio.vhost_user import PROTOCOL, Server
from virtio.vhost_user.message import CONFIG, INFLIGHT, LOG, U64, Request

R = Request
TIMES = 20  # each way to end
OURS = ("virtio", "socket", "selectors", "threading")


class Fragile(Upper):
    """A device in Python with bugs: an exception of a hook, with all who called in its traceback."""

    def config_written(self, offset: int, data: bytes) -> bool:
        raise ZeroDivisionError("by mistake")

    def notified(self, index: int) -> None:
        for chain in self.chains(index):
            if chain.read().startswith(b"break"):
                raise ZeroDivisionError("by mistake")
            chain.write(chain.read().upper())


DEVICES: dict[str, Callable[[], Device]] = {
    "python": Fragile,
    "net": lambda: NetDevice(Loopback()),
    "net with workers": lambda: NetDevice(Loopback(queues=2), worker="own", queue_pairs=2),
}


# ---- ends of a connection: what a frontend does whose first ring runs ----


def goes(frontend: Frontend) -> None:
    """Close the socket: nothing else is said."""


def stops(frontend: Frontend) -> None:
    frontend.stop(0)


def is_refused(frontend: Frontend) -> None:
    frontend.say(77)


def breaks_off(frontend: Frontend) -> None:
    frontend.socket.send(b"half")


def meets_a_bug(frontend: Frontend) -> None:
    frontend.say(R.SET_CONFIG, CONFIG.pack(0, 1, 0) + b"x")


def breaks_its_ring(frontend: Frontend) -> None:
    error = os.eventfd(0)
    frontend.order(R.SET_VRING_ERR, U64.pack(0), [error])
    os.close(error)
    layout = layout_of(0, False)
    frontend.memory.write(layout.driver + 2, b"\xff\x7f")  # more available than there can be
    frontend.kick(0)


def cuts_its_memory(frontend: Frontend) -> None:
    os.ftruncate(frontend.fd, 4096)
    frontend.kick(0)
    with suppress(OSError, EOFError):  # which may end it
        frontend.ask_u64(R.GET_FEATURES)


def is_called_by_sockets(frontend: Frontend) -> None:
    for request in (R.SET_VRING_CALL, R.SET_VRING_ERR, R.SET_BACKEND_REQ_FD):
        ours, other = socket.socketpair()
        with ours, other:
            frontend.order(request, U64.pack(0) if request != R.SET_BACKEND_REQ_FD else b"", [ours.fileno()])


def passes_itself(frontend: Frontend) -> None:
    frontend.say(R.SET_VRING_CALL, U64.pack(0), [frontend.socket.fileno()])


def has_files(frontend: Frontend) -> None:
    """A dirty log, an inflight region."""
    frontend.stop(0)
    frontend.order(R.SET_LOG_BASE, LOG.pack(SIZE // 4096, 0), [frontend.fd])
    frontend.say(R.GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, 2, 64))
    payload, (fd,) = frontend.answer()
    frontend.order(R.SET_INFLIGHT_FD, payload, [fd])
    os.close(fd)
    frontend.start(0, layout_of(0, False))


ENDS = [
    goes, stops, is_refused, breaks_off, meets_a_bug, breaks_its_ring, cuts_its_memory, is_called_by_sockets,
    passes_itself, has_files,
]  # fmt: skip


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def objects() -> Counter[str]:
    """How many there are of each type of ours, and of those that hold descriptors. Errors are kept on purpose."""
    names = (f"{type(it).__module__}.{type(it).__qualname__}" for it in gc.get_objects())
    return Counter(name for name in names if name.partition(".")[0] in OURS and "virtio.errors" not in name)


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
@pytest.mark.parametrize("name", DEVICES)
def test_a_connection_takes_with_it_all_that_it_had(
    name: str, end: Callable[[Frontend], None], no_collector: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Log records that are kept keep nothing of it either."""
    caplog.set_level(logging.DEBUG, "virtio")
    device = DEVICES[name]()
    with Server(device, tmp_path / "s") as server:

        def once() -> None:
            with Frontend(str(tmp_path / "s")) as frontend:
                running(frontend, False, protocol=PROTOCOL)
                with suppress(OSError, EOFError):
                    end(frontend)
            wait_for(lambda: not server.connected)

        once()
        once()
        files, things = open_kinds(), objects()
        for _ in range(TIMES):
            once()
        wait_for(lambda: not open_kinds() - files)
        assert not {kind: n for kind, n in (objects() - things).items() if n >= TIMES}
        assert not device.live
    close = getattr(device, "close", None)
    if close:
        close()


def test_a_frontend_that_is_turned_away_leaves_nothing(no_collector: None, tmp_path: Path) -> None:
    """No descriptors are left for a connection: it fails half made."""
    with Server(Upper(), tmp_path / "s") as server:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        files, things = open_kinds(), objects()
        held: list[int] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, limits[1]), limits[1]))
        try:
            for i, client in enumerate(clients):
                with suppress(OSError):
                    while True:
                        held.append(os.dup(0))
                for _ in range(i + 1):  # for the connection, and part of what it takes
                    os.close(held.pop())
                client.connect(str(tmp_path / "s"))
                client.settimeout(10)
                with suppress(ConnectionError):
                    assert client.recv(1) == b""
        finally:
            for fd in held:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for client in clients:
                client.close()
        assert server.connections == 0
        assert not open_kinds() - files
        assert not {kind: n for kind, n in (objects() - things).items() if n >= len(clients)}
