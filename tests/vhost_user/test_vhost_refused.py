"""What a frontend may not say: each such message ends its connection, with a reason, and nothing else."""

from __future__ import annotations

import os
import resource
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest
from odd_sockets import lingering
from vhost_device import Upper, exchange, running, served
from vhost_frontend import SIZE, UADDR, Frontend, u32s
from waiting import wait_for

from virtio.errors import VhostUserError
from virtio.net import Loopback, NetDevice
from virtio.vhost_user import PROTOCOL, Server
from virtio.vhost_user.message import ADDRESS, CONFIG, INFLIGHT, NO_FD, REGION, STATE, TABLE, U64, Request

R = Request

BAD: dict[str, tuple[int, bytes, int, str]] = {
    # name: request, payload, eventfds that come with it, what it is told
    "unknown request": (99, b"", 0, "request 99"),
    "request 0": (0, b"", 0, "request 0"),
    "short u64": (R.SET_FEATURES, b"\0\0\0\0", 0, r"SET_FEATURES has 4 bytes \(8\)"),
    "features not offered": (R.SET_FEATURES, U64.pack(1 << 63), 0, "not offered"),
    "protocol not offered": (R.SET_PROTOCOL_FEATURES, U64.pack(1 << 40), 0, "bits 0x10000000000 were not offered"),
    "size 0": (R.SET_VRING_NUM, STATE.pack(0, 0), 0, r"size 0 of ring 0 out of range \(1 to 32768\)"),
    "size too large": (R.SET_VRING_NUM, STATE.pack(0, 32769), 0, "size 32769"),
    "no such ring": (R.SET_VRING_NUM, STATE.pack(2, 4), 0, r"ring 2 out of range \(2 rings\)"),
    "ring of 255": (R.SET_VRING_CALL, U64.pack(255 | NO_FD), 0, "ring 255 out of range"),
    "short address": (R.SET_VRING_ADDR, bytes(39), 0, "SET_VRING_ADDR has 39 bytes"),
    "kick without fd": (R.SET_VRING_KICK, U64.pack(0), 0, r"has 0 file descriptors \(1\)"),
    "kick with two": (R.SET_VRING_KICK, U64.pack(0), 2, "has 2 file descriptors"),
    "kick too early": (R.SET_VRING_KICK, U64.pack(0), 1, "ring 0 is kicked before its size and addresses are set"),
    "enable 2": (R.SET_VRING_ENABLE, STATE.pack(0, 2), 0, "2 is neither 0 nor 1"),
    "no regions": (R.SET_MEM_TABLE, TABLE.pack(0, 0), 0, r"0 regions \(1 to 8\)"),
    "nine regions": (R.SET_MEM_TABLE, TABLE.pack(9, 0) + bytes(288), 9, "9 regions"),
    "regions cut short": (R.SET_MEM_TABLE, TABLE.pack(2, 0) + bytes(32), 2, "of 2 regions has 40 bytes"),
    "regions without files": (R.SET_MEM_TABLE, TABLE.pack(1, 0) + REGION.pack(0, 4096, 0, 0), 0, "0 file descriptors"),
    "region of an eventfd": (R.SET_MEM_TABLE, TABLE.pack(1, 0) + REGION.pack(0, 4096, 0, 0), 1, "region of 0x1000"),
    "remove nothing": (R.REM_MEM_REG, bytes(8) + REGION.pack(0, 1, 2, 3), 0, "no region of 0x1 bytes at 0x0"),
    "log without file": (R.SET_LOG_BASE, bytes(16), 0, "SET_LOG_BASE has 0 file descriptors"),
    "config longer than it is": (R.SET_CONFIG, CONFIG.pack(0, 8, 0) + b"abc", 0, "8 bytes, of which 3 came"),
    "channel without socket": (R.SET_BACKEND_REQ_FD, b"", 0, "0 file descriptors"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_message_ends_its_connection_and_nothing_else(name: str, tmp_path: Path) -> None:
    request, payload, count, says = BAD[name]
    device = Upper()
    with Server(device, tmp_path / "s") as server, Server(Upper(), tmp_path / "other") as _:
        with Frontend(str(tmp_path / "other")) as honest, Frontend(str(tmp_path / "s")) as frontend:
            driver = running(honest, False)
            fds = [os.eventfd(0) for _ in range(count)]
            frontend.negotiate(protocol=PROTOCOL)
            frontend.say(request, payload, fds)
            with pytest.raises((EOFError, ConnectionError)):
                frontend.answer()
            wait_for(lambda: server.error is not None)
            assert isinstance(server.error, VhostUserError)
            with pytest.raises(VhostUserError, match=says):
                raise server.error
            assert exchange(honest, driver, b"here") == b"HERE"
            for fd in fds:
                os.close(fd)
        with Frontend(str(tmp_path / "s")) as frontend:  # the next is served
            assert exchange(frontend, running(frontend, False), b"next") == b"NEXT"


@pytest.mark.parametrize("request_", [R.SET_VRING_CALL, R.SET_VRING_ERR, R.SET_BACKEND_REQ_FD, R.SET_OWNER])
def test_a_socket_that_lingers_holds_nobody(request_: int, tmp_path: Path) -> None:
    with served(Upper(), tmp_path / "s") as (server, frontend):
        frontend.negotiate(protocol=PROTOCOL)
        ours, others = lingering()
        frontend.say(request_, U64.pack(0), [ours.fileno()])
        ours.close()
        if request_ != R.SET_OWNER:
            wait_for(lambda: server.error is not None, 5)
            assert "has a socket of AF_INET, not of AF_UNIX" in str(server.error)
            wait_for(lambda: not server.connected, 5)
        else:  # nobody took it
            frontend.socket.settimeout(5)
            frontend.ask_u64(R.GET_QUEUE_NUM)
        for other in others:
            other.close()


@pytest.mark.parametrize("what", ["version", "payload", "cut", "silent"])
def test_what_is_no_message(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtio.vhost_user.connection.PATIENCE", 0.2)
    with served(Upper(), tmp_path / "s") as (server, frontend):
        if what == "version":
            frontend.say(R.GET_FEATURES, version=2)
        elif what == "payload":
            frontend.socket.send(u32s(1, 1, 1 << 20))
        elif what == "cut":
            frontend.socket.send(u32s(1, 1))
            frontend.socket.shutdown(socket.SHUT_WR)
        else:
            frontend.socket.send(u32s(R.SET_FEATURES, 1, 8))
        with pytest.raises((EOFError, ConnectionError)):
            frontend.answer()
        wait_for(lambda: not server.connected)
        assert (server.error is None) == (what in ("cut", "silent"))


@pytest.mark.timeout(60)
def test_a_server_ends_in_the_middle_of_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtio.vhost_user.connection.PATIENCE", 1000)
    with served(Upper(), tmp_path / "s") as (server, frontend):
        frontend.ask_u64(R.GET_FEATURES)
        frontend.socket.send(b"x")
        wait_for(lambda: server.connected)


def test_a_message_that_drips_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The patience is that for a whole message."""
    monkeypatch.setattr("virtio.vhost_user.connection.PATIENCE", 0.2)
    with served(Upper(), tmp_path / "s") as (server, frontend), pytest.raises(ConnectionError):
        for byte in u32s(R.SET_FEATURES, 1, 4000) + bytes(4000):
            frontend.socket.send(bytes([byte]))
            time.sleep(0.05)
    assert server.error is None


def test_a_nack_comes_before_the_end(tmp_path: Path) -> None:
    with served(Upper(), tmp_path / "s") as (_, frontend):
        frontend.negotiate()
        frontend.say(R.SET_VRING_NUM, STATE.pack(0, 40000), flags=8)
        assert U64.unpack(frontend.answer()[0]) == (1,)
        with pytest.raises(EOFError):
            frontend.answer()


def test_rings_may_not_lie_outside_of_memory(tmp_path: Path) -> None:
    with served(Upper(), tmp_path / "s") as (server, frontend):
        frontend.negotiate()
        frontend.share_memory()
        frontend.order(R.SET_VRING_NUM, STATE.pack(0, 256))
        end = UADDR + SIZE
        frontend.order(R.SET_VRING_ADDR, ADDRESS.pack(0, 0, end - 16, UADDR, UADDR + 0x1000, 0))
        frontend.say(R.SET_VRING_KICK, U64.pack(0), [os.eventfd(0)])
        with pytest.raises((EOFError, ConnectionError)):
            frontend.answer()
        wait_for(lambda: server.error is not None)
        assert "ring 0" in str(server.error)


@pytest.mark.parametrize("request_", [R.GET_INFLIGHT_FD, R.SET_VRING_KICK], ids=["memfd", "eventfd"])
def test_descriptors_that_run_out_amid_a_message_are_no_bug(
    request_: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server needs one more than there is: it says so, in one line, and serves the next frontend."""
    device = NetDevice(Loopback())  # whose data path takes kicks
    with served(device, tmp_path / "s") as (server, frontend):
        running(frontend, False, protocol=PROTOCOL)
        payload = INFLIGHT.pack(0, 0, 1, 64) if request_ == R.GET_INFLIGHT_FD else U64.pack(NO_FD)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, limits[1]), limits[1]))
        held: list[int] = []
        try:
            with suppress(OSError):
                while True:
                    held.append(os.dup(0))
            frontend.say(request_, payload)
            wait_for(lambda: server.error is not None)
        finally:
            for fd in held:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert isinstance(server.error, VhostUserError)
        assert str(server.error) == f"{Request(request_).name}: [Errno 24] Too many open files"
        wait_for(lambda: not server.connected)
        assert "Traceback" not in caplog.text
        with Frontend(str(tmp_path / "s")) as second:
            second.ask_u64(R.GET_FEATURES)
