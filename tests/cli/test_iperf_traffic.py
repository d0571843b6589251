"""The built-in sender and receiver, over the loopback interface: what is sent, and whether a wrong byte is found."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from virtio.cli.iperf import stream as iperf_stream
from virtio.cli.iperf import traffic as iperf_traffic
from virtio.cli.iperf.stream import BLOCK
from virtio.cli.iperf.traffic import End, Iperf3, Result, Streams, TrafficError, connect, read_iperf3


class Here:
    """The namespace that the test is in."""

    def socket(self, family: int, kind: int) -> socket.socket:
        return socket.socket(family, kind)

    def popen(self, words: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        return subprocess.Popen(words, **options)


HERE = Here()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_stream_is_verified_and_timed(address: str) -> None:
    with Streams() as streams:
        result = streams.run(HERE, HERE, address, 0.2)
        assert result.looked
        assert result.wrong == ""
        assert result.bytes >= BLOCK
        assert result.bytes % BLOCK == 0
        assert 0.1 < result.seconds < 5
        assert result.mbit_s == pytest.approx(result.bytes * 8 / result.seconds / 1e6)
        hashed = streams.run_hashed(HERE, HERE, address, 3 * BLOCK)
        assert (hashed.bytes, hashed.wrong) == (3 * BLOCK, "")


def test_several_streams_at_a_time() -> None:
    with Streams(3) as streams:
        assert len({end.process.pid for end in streams.ends}) == 6
        result = streams.run_hashed(HERE, HERE, "127.0.0.1", 2 * BLOCK)
        assert (result.bytes, result.wrong) == (6 * BLOCK, "")


class Meddler(Here):
    """Makes listeners whose connections go through a function that may change what passes."""

    def __init__(self, change: Callable[[bytearray, int], bytearray]) -> None:
        self.change = change
        self.threads: list[threading.Thread] = []

    def between(self, client: socket.socket, server: socket.socket) -> None:
        at = 0
        with client, server:
            while data := client.recv(1 << 16):
                server.sendall(self.change(bytearray(data), at))
                at += len(data)


def meddled(monkeypatch: pytest.MonkeyPatch, change: Callable[[bytearray, int], bytearray]) -> None:
    meddler = Meddler(change)

    def connected(*_: Any) -> tuple[socket.socket, socket.socket]:
        (client, near), (far, server) = (connect(HERE, HERE, "127.0.0.1") for _ in range(2))
        threading.Thread(target=meddler.between, args=(near, far), daemon=True).start()
        return client, server

    monkeypatch.setattr(iperf_traffic, "connect", connected)


AT = BLOCK + 100_001


def flip(data: bytearray, at: int) -> bytearray:
    if at <= AT < at + len(data):
        data[AT - at] ^= 0x20
    return data


def lose(data: bytearray, at: int) -> bytearray:
    if at <= AT < at + len(data):
        del data[AT - at]
    return data


def repeat_blocks(data: bytearray, at: int) -> bytearray:
    """Give each block the number 0."""
    for i in range(len(data)):
        if (at + i) % BLOCK < 8:
            data[i] = 0
    return data


def same(data: bytearray, at: int) -> bytearray:
    return data


@pytest.mark.parametrize(
    ("change", "plain", "hashed"),
    [
        (flip, f"byte {AT} is ", "SHA-256"),
        (lose, " bytes arrived", " bytes arrived"),
        (repeat_blocks, f"byte {BLOCK} is 0x00, not 0x01", "SHA-256"),
        (same, "", ""),
    ],
)
def test_each_wrong_byte_is_found(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[bytearray, int], bytearray], plain: str, hashed: str
) -> None:
    meddled(monkeypatch, change)
    with Streams() as streams:
        for result, words in (
            (streams.run(HERE, HERE, "127.0.0.1", 0.3), plain),
            (streams.run_hashed(HERE, HERE, "127.0.0.1", 4 * BLOCK), hashed),
        ):
            assert words in result.wrong
            assert bool(words) == bool(result.wrong)


def test_a_short_last_block_is_compared_too() -> None:
    client, server = connect(HERE, HERE, "127.0.0.1")
    with client, server:
        block = iperf_stream.pattern(7)
        iperf_stream.NUMBER.pack_into(block, 0, 0)
        block[50] ^= 1
        client.sendall(block[:51])
        client.shutdown(socket.SHUT_WR)
        found = iperf_stream.receive(server, 7)
    assert (found["bytes"], found["wrong"]) == (51, f"byte 50 is {block[50]:#04x}, not {block[50] ^ 1:#04x}")


def test_fresh_blocks_never_repeat() -> None:
    blocks = [iperf_stream.fresh(seed, number) for seed in (1, 2) for number in range(4)]
    assert {len(block) for block in blocks} == {BLOCK}
    assert len({hashlib.sha256(block).digest() for block in blocks}) == 8


def test_a_stream_to_nowhere_and_one_that_stalls_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(Here):
        def socket(self, family: int, kind: int) -> socket.socket:
            raise OSError("no sockets here")

    with pytest.raises(OSError, match="no sockets here"), Streams() as streams:
        streams.run(Elsewhere(), HERE, "127.0.0.1", 0.1)
    with pytest.raises(TrafficError, match=r"no connection to 192\.0\.2\.1"), Streams() as streams:
        streams.run(HERE, HERE, "192.0.2.1", 0.1)  # not our address: cannot be bound
    with Streams() as streams:
        a, b = socket.socketpair()
        with a, b:
            streams.ends[0].order(a, do="receive", seed=1)
            with pytest.raises(TrafficError, match="no answer"):
                streams.ends[0].answer(0.2)
    with Streams() as streams:
        a, b = socket.socketpair()
        with a, b:
            monkeypatch.setattr(iperf_traffic, "STALL", 0.5)
            for what in ("receive", "send", "receive-hashed", "send-hashed"):
                streams.ends[0].order(a, do=what, seed=1, seconds=60, bytes=1 << 30)
                with pytest.raises(TrafficError, match=r"stream: stalled for 0\.5 s"):
                    streams.ends[0].answer(10)


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_an_end_that_dies_is_said_and_the_next_run_is_not_touched(which: int) -> None:
    with Streams(2) as streams:
        streams.ends[which].process.kill()
        streams.ends[which].process.wait()
        with pytest.raises(TrafficError, match=r"program"):
            streams.run(HERE, HERE, "127.0.0.1", 0.1)
        hashed = streams.run_hashed(HERE, HERE, "127.0.0.1", BLOCK)
        assert (hashed.bytes, hashed.wrong) == (2 * BLOCK, "")
        pids = [end.process.pid for end in streams.ends]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_end_ends_when_its_owner_is_gone() -> None:
    end = End()
    try:
        end.control.close()  # as when the owner is killed
        assert end.process.wait(timeout=10) == 0
    finally:
        end.close()


def test_errors_within_an_order_are_told() -> None:
    end = End()
    try:
        with socket.socket() as unconnected:
            end.order(unconnected, do="receive", seed=1)
            with pytest.raises(TrafficError, match="stream: "):
                end.answer(10)
        with socket.socket() as unconnected:  # and it serves the next
            end.order(unconnected, do="send", seed=1, seconds=1, bytes=0)
            with pytest.raises(TrafficError, match="stream: "):
                end.answer(10)
    finally:
        end.close()


def test_iperf3_is_read() -> None:
    text = '{"end": {"sum_received": {"bytes": 1250000, "seconds": 0.01}}}'
    assert read_iperf3(text) == Result(1250000, 0.01, looked=False)
    assert read_iperf3(text).mbit_s == 1000.0
    with pytest.raises(TrafficError, match="unable to connect"):
        read_iperf3('{"start": {}, "error": "unable to connect"}')
    for bad in ("", "[]", "{}", '{"end": 3}'):
        with pytest.raises(TrafficError, match="iperf3 said"):
            read_iperf3(bad)


def test_iperf3_runs(tmp_path: Path) -> None:
    from peers import need_peer

    program = need_peer("iperf3", "iperf3")
    begin = time.monotonic()
    result = Iperf3(2, program).run(HERE, HERE, "127.0.0.1", 1)
    assert time.monotonic() - begin > 0.9
    assert result.bytes > 0
    assert not result.looked
    with pytest.raises(TrafficError, match=r"iperf3 -s: "):
        Iperf3(1, program).run(HERE, HERE, "192.0.2.1", 1)
    with pytest.raises(TrafficError, match="cannot be run"):
        Iperf3(1, str(tmp_path / "none")).run(HERE, HERE, "127.0.0.1", 1)
