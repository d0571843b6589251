"""A frontend's own end of its connection comes back to the server among its descriptors; then the frontend dies.

A server that keeps such a descriptor keeps its own connection alive, sees no end of it, and serves no other frontend.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from odd_sockets import lingering, nested
from vhost_device import Upper, exchange, running, served
from vhost_frontend import GPA, SIZE, UADDR, Frontend
from waiting import wait_for

from virtio.vhost_user import PROTOCOL, ProtocolFeature, Server
from virtio.vhost_user.message import CONFIG, INFLIGHT, LOG, REGION, TABLE, U64, Request

R = Request
KINDS = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM, "sequential": socket.SOCK_SEQPACKET}


def deep(fd: int) -> int:
    """Return a UNIX socket in whose queue one waits in whose queue one waits ... in whose queue fd waits."""
    outer = os.dup(fd)
    for _ in range(20):
        inner, outer = outer, nested(outer)
        os.close(inner)
    return outer


def unaccepted(fd: int) -> int:
    """Return a UNIX socket that listens; fd waits in a connection that it has not accepted."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("")  # a name of the kernel's choice
        listener.listen(1)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(listener.getsockname())
            socket.send_fds(client, [b"x"], [fd])
        return os.dup(listener.fileno())


WAYS: dict[str, Callable[[int], int]] = {
    "itself": os.dup,
    **{f"in the queue of a {name} socket": lambda fd, kind=kind: nested(fd, kind) for name, kind in KINDS.items()},
    "twenty queues deep": deep,
    "in a connection that is not accepted": unaccepted,
}
MESSAGES: dict[int, bytes] = {
    R.SET_VRING_CALL: U64.pack(0),
    R.SET_VRING_ERR: U64.pack(0),
    R.SET_VRING_KICK: U64.pack(0),
    R.SET_BACKEND_REQ_FD: b"",
    R.SET_MEM_TABLE: TABLE.pack(1, 0) + REGION.pack(GPA, SIZE, UADDR, 0),
    R.ADD_MEM_REG: bytes(8) + REGION.pack(GPA, SIZE, UADDR, 0),
    R.SET_LOG_BASE: LOG.pack(4096, 0),
    R.SET_LOG_FD: b"",
    R.SET_INFLIGHT_FD: INFLIGHT.pack(4096, 0, 1, 8),
    R.SET_OWNER: b"",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("request_", MESSAGES, ids=lambda number: Request(number).name)
def test_a_frontend_that_passes_its_own_connection_and_dies(request_: int, way: str, tmp_path: Path) -> None:
    with served(Upper(), tmp_path / "s") as (server, frontend):
        frontend.negotiate(protocol=PROTOCOL)
        fd = WAYS[way](frontend.socket.fileno())
        frontend.say(request_, MESSAGES[request_], [fd])
        os.close(fd)
        frontend.socket.close()
        wait_for(lambda: server.connections == 1 and not server.connected)
        with Frontend(str(tmp_path / "s")) as second:
            assert exchange(second, running(second, False), b"next") == b"NEXT"


@pytest.mark.parametrize("request_", [R.SET_VRING_CALL, R.SET_VRING_ERR, R.SET_BACKEND_REQ_FD])
def test_its_own_connection_is_refused_by_name(request_: int, tmp_path: Path) -> None:
    with served(Upper(), tmp_path / "s") as (server, frontend):
        frontend.negotiate(protocol=PROTOCOL)
        frontend.say(request_, MESSAGES[request_], [frontend.socket.fileno()])
        wait_for(lambda: server.error is not None)
        assert str(server.error) == f"{Request(request_).name} has an end of a vhost-user connection"


@pytest.mark.parametrize("request_", [R.SET_VRING_CALL, R.SET_BACKEND_REQ_FD])
def test_two_connections_that_hold_each_other(request_: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each server has the other's: neither sees an end. They may be of two processes."""
    monkeypatch.setattr("virtio.vhost_user.backend.LOOK", 0.05)
    with served(Upper(), tmp_path / "a") as (one, first), served(Upper(), tmp_path / "b") as (two, second):
        for frontend in (first, second):
            frontend.negotiate(protocol=PROTOCOL)
        for frontend, other in ((first, second), (second, first)):
            frontend.say(request_, MESSAGES[request_], [other.socket.fileno()])
        first.socket.close()
        second.socket.close()
        wait_for(lambda: not one.connected and not two.connected)


def test_a_socket_that_calls_is_called_though_its_reader_is_in_our_hands_too(tmp_path: Path) -> None:
    """Both ends of a pair: the call of one ring, the err of the other. Neither is read; neither side waits."""
    with served(Upper(), tmp_path / "s") as (server, frontend):
        driver = running(frontend, False)
        ours, other = socket.socketpair()
        frontend.order(R.SET_VRING_CALL, U64.pack(0), [ours.fileno()])
        frontend.order(R.SET_VRING_ERR, U64.pack(0), [other.fileno()])
        ours.close()
        other.close()
        for i in range(10):
            assert exchange(frontend, driver, b"x%d" % i) == b"X%d" % i
        frontend.socket.close()
        wait_for(lambda: not server.connected)
        assert server.error is None


class Slow(Upper):
    """Takes its configuration when it may."""

    def __init__(self) -> None:
        self.may = threading.Event()
        super().__init__()

    def config_written(self, offset: int, data: bytes) -> bool:
        return self.may.wait(10)


@pytest.mark.parametrize("half", [False, True], ids=["whole", "half"])
@pytest.mark.parametrize("way", WAYS)
def test_a_lingering_socket_in_a_queue_holds_nobody(
    way: str, half: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In what was not yet received when the connection ends; and in the queue of a socket that was."""
    monkeypatch.setattr("virtio.vhost_user.connection.PATIENCE", 0.1 if half else 10)
    device = Slow()
    with served(device, tmp_path / "s") as (server, frontend):
        frontend.negotiate(protocol=PROTOCOL)
        ours, others = lingering()
        fd = WAYS[way](ours.fileno())
        ours.close()
        if half:
            socket.send_fds(frontend.socket, [b"x"], [fd])
        else:
            frontend.say(R.SET_CONFIG, CONFIG.pack(0, 1, 0) + b"x")
            frontend.say(R.SET_VRING_NUM, b"")
            frontend.say(R.SET_OWNER, b"", [fd])
        os.close(fd)
        device.may.set()
        wait_for(lambda: not server.connected, 5)
        with Frontend(str(tmp_path / "s")) as second:
            second.socket.settimeout(5)
            second.ask_u64(R.GET_FEATURES)
        for other in others:
            other.close()


def test_more_descriptors_than_a_message_may_have_are_closed_at_once(tmp_path: Path) -> None:
    with served(Upper(), tmp_path / "s") as (server, frontend):
        frontend.negotiate()
        ours, others = lingering()
        socket.send_fds(frontend.socket, [b"x"], [ours.fileno()] * 200)
        ours.close()
        wait_for(lambda: server.error is not None, 5)
        assert "more than 32 file descriptors" in str(server.error)
        wait_for(lambda: not server.connected, 5)
        for other in others:
            other.close()


def test_a_listening_socket_is_not_called(tmp_path: Path) -> None:
    with served(Upper(), tmp_path / "s") as (server, frontend):
        frontend.negotiate()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind("")
            listener.listen(1)
            frontend.say(R.SET_VRING_CALL, U64.pack(0), [listener.fileno()])
            wait_for(lambda: server.error is not None)
        assert "has a socket that listens" in str(server.error)


def test_a_frontend_that_shuts_its_reading_side_has_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtio.vhost_user.backend.LOOK", 0.05)
    with served(Upper(), tmp_path / "s") as (server, frontend):
        frontend.negotiate(protocol=ProtocolFeature.REPLY_ACK)
        frontend.socket.shutdown(socket.SHUT_RD)
        wait_for(lambda: not server.connected)
        assert server.error is None


def test_a_served_socket_of_two(tmp_path: Path) -> None:
    """A connection that was given, in place of a path, is watched like any."""
    given, other = socket.socketpair()
    over: list[bool] = []
    with Server(Upper(), connection=given, over=lambda: over.append(True)), other:
        frontend = Frontend.__new__(Frontend)
        frontend.socket, frontend.acknowledged = other, False
        frontend.negotiate(protocol=PROTOCOL)
        frontend.say(R.SET_VRING_CALL, U64.pack(0), [other.fileno()])
        other.close()
        wait_for(lambda: over)
