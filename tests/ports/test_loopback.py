"""The loopback port: every frame comes back to its sender."""

from __future__ import annotations

import pytest

from bench.kernels.portbench import MemorySink, arm, connect, receive, send
from virtio.net.ports import Loopback
from virtio.offload import NetHeader


def numbered(count: int) -> list[tuple[NetHeader | None, list[bytes]]]:
    return [(None, [bytes(14), bytes([i])]) for i in range(count)]


def test_frames_come_back_as_they_were() -> None:
    port, sink = Loopback(), MemorySink(size=8)
    connect(port, 0, sink)
    hdr = NetHeader(flags=1, gso_type=1, gso_size=100, csum_start=34, csum_offset=16)
    frame = [bytes(range(200)), bytes(3000)]
    assert send(port, [(hdr, frame), (None, [bytes(60)])]) == 2
    (got, first), (_, second) = sink.take()
    assert (got.flags, got.gso_type, got.gso_size, got.csum_start, got.csum_offset) == (1, 1, 100, 34, 16)
    assert first == b"".join(frame)
    assert second == bytes(60)
    assert (sink.flushes, sink.bell.rings, sink.unlocked) == (1, 1, 0)
    assert receive(port, sink) == 0
    assert port.statistics() == {"send_packets": 2, "send_bytes": 3260, "send_dropped": 0, "send_full": 0}


def test_each_queue_to_itself() -> None:
    port = Loopback(queues=3)
    sinks = [MemorySink(size=8) for _ in range(3)]
    for i, sink in enumerate(sinks):
        connect(port, i, sink)
    for i in range(3):
        assert send(port, [(None, [bytes(14), bytes([i])])], i) == 1
    assert [[frame[-1] for _, frame in sink.take()] for sink in sinks] == [[0], [1], [2]]
    with pytest.raises(ValueError, match="queue 3 of a loopback: limit 2"):
        connect(port, 3, sinks[0])


def test_full_waits_or_drops() -> None:
    port, sink = Loopback(), MemorySink(size=4)
    connect(port, 0, sink)
    assert send(port, numbered(6)) == 4
    assert arm(port, "send") == (False, [], 50, 0)
    assert len(sink.take()) == 4
    assert send(port, numbered(2)) == 2
    port = Loopback(full="drop")
    connect(port, 0, sink)
    assert send(port, numbered(6)) == 6
    assert port.statistics()["send_dropped"] == 4
    assert arm(port, "send") == (True, [], -1, 0)


def test_nobody_there() -> None:
    port = Loopback()
    assert send(port, numbered(3)) == 3
    assert port.statistics()["send_dropped"] == 3


def test_arguments() -> None:
    with pytest.raises(ValueError, match="queues 0 is not within 1 to 256"):
        Loopback(queues=0)
    with pytest.raises(ValueError, match="full 'x' is neither 'wait' nor 'drop'"):
        Loopback(full="x")
    assert Loopback().offloads == 0x1FF
    assert repr(Loopback(queues=2)) == "<Loopback: 2 queues, wait when full>"
