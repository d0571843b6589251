"""The port made of Python functions: one call a burst, and whatever they do, the device lives."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from bench.kernels.portbench import MemorySink, arm, disarm, receive, send
from virtio.net.ports import CallPort
from virtio.offload import NetHeader


@pytest.fixture
def raised() -> Iterator[list[BaseException]]:
    """What goes to sys.excepthook."""
    found: list[BaseException] = []
    before = sys.excepthook
    sys.excepthook = lambda kind, error, trace: found.append(error)
    yield found
    sys.excepthook = before


def frame(number: int, size: int = 60) -> bytes:
    return bytes(14) + number.to_bytes(4, "big") + bytes(size - 18)


def test_send_gets_a_burst_at_once() -> None:
    calls: list[list[tuple[NetHeader, bytes]]] = []
    port = CallPort(send=calls.append)
    hdr = NetHeader(flags=1, gso_type=1, gso_size=1448, csum_start=34, csum_offset=16)
    assert send(port, [(hdr, [frame(0)[:20], frame(0)[20:]]), (None, [frame(1)]), (None, [b"", b"x" * 65589])]) == 3
    assert len(calls) == 1
    assert [data for _, data in calls[0]] == [frame(0), frame(1), b"x" * 65589]
    got = calls[0][0][0]
    assert (got.flags, got.gso_type, got.gso_size, got.csum_start, got.csum_offset) == (1, 1, 1448, 34, 16)
    counts = port.statistics()
    assert (counts["send_packets"], counts["send_bytes"], counts["send_dropped"]) == (3, 120 + 65589, 0)


def test_receive_gives_bytes_buffers_and_headers() -> None:
    hdr = NetHeader(flags=1, csum_start=14, csum_offset=2)
    given: list[Any] = [frame(0), bytearray(frame(1)), memoryview(frame(2)), (hdr, frame(3))]
    limits: list[int] = []

    def give(limit: int) -> list[Any]:
        limits.append(limit)
        return [given.pop(0) for _ in range(len(given))]

    port, sink = CallPort(receive=give, interval_us=0), MemorySink()
    assert receive(port, sink, 32) == 4
    got = sink.take()
    assert [data for _, data in got] == [frame(i) for i in range(4)]
    assert [h.flags for h, _ in got] == [0, 0, 0, 1]
    assert (got[3][0].csum_start, got[3][0].csum_offset) == (14, 2)
    assert receive(port, sink, 32) == 0
    assert limits == [32, 32]
    assert port.statistics()["receive_packets"] == 4
    assert sink.unlocked == 0


def test_what_was_not_taken_is_kept() -> None:
    queue = deque(frame(i) for i in range(200))

    def give(limit: int) -> list[bytes]:
        return [queue.popleft() for _ in range(min(100, len(queue)))]  # more than limit

    port, sink = CallPort(receive=give, interval_us=0), MemorySink(size=7)
    seen: list[bytes] = []
    for _ in range(100):
        receive(port, sink, 10)
        seen += [data for _, data in sink.take()]
    assert seen == [frame(i) for i in range(200)]
    assert port.statistics()["receive_full"] > 0


def test_no_frames() -> None:
    answers: list[Any] = [None, [], (), iter(())]
    port = CallPort(receive=lambda limit: answers.pop(0), interval_us=0)
    for _ in range(4):
        assert receive(port, MemorySink()) == 0
    assert answers == []


def test_it_is_asked_again_when_woken_or_after_the_interval() -> None:
    asked: list[float] = []
    port, sink = CallPort(receive=lambda limit: asked.append(0), interval_us=200_000), MemorySink()
    for _ in range(5):
        receive(port, sink)
    assert len(asked) == 1
    ready, fds, us, _ = arm(port, "receive")
    assert (ready, len(fds)) == (False, 1)
    assert 0 < us <= 200_000
    port.wake()
    assert arm(port, "receive")[0]
    receive(port, sink)
    assert len(asked) == 2
    disarm(port)  # whoever was asleep looks again: the bell that woke it may be answered by now
    receive(port, sink)
    assert len(asked) == 3
    assert not arm(port, "receive")[0]
    time.sleep(0.21)
    assert arm(port, "receive")[0]
    receive(port, sink)
    assert len(asked) == 4


def test_it_is_asked_again_at_once_while_it_gives_something() -> None:
    given: list[list[bytes]] = [[], [frame(0)], [frame(1)], [frame(2)], []]
    port, sink = CallPort(receive=lambda limit: given.pop(0), interval_us=1_000_000), MemorySink()
    assert receive(port, sink) == 0
    port.wake()
    assert [receive(port, sink) for _ in range(5)] == [1, 1, 1, 0, 0]
    assert given == []


def test_send_that_raises(raised: list[BaseException]) -> None:
    def fail(frames: object) -> None:
        raise RuntimeError("no")

    port = CallPort(send=fail)
    assert send(port, [(None, [frame(0)])] * 3) == 3
    assert port.statistics()["send_dropped"] == 3
    assert port.statistics()["send_packets"] == 0
    assert [str(error) for error in raised] == ["no"]


def test_receive_that_raises(raised: list[BaseException]) -> None:
    def fail(limit: int) -> Iterator[bytes]:
        yield frame(0)
        raise RuntimeError("no")

    port, sink = CallPort(receive=fail, interval_us=0), MemorySink()
    receive(port, sink)
    receive(port, sink)
    assert [data for _, data in sink.take()] == [frame(0)]  # what came before stays
    assert [str(error) for error in raised] == ["no"]


@pytest.mark.parametrize(
    "bad",
    [
        bytes(13), bytes(65590), 7, "text", memoryview(bytes(120))[::2], (1, 2, 3),
        (None, 5), ("header", bytes(60)),
        (NetHeader(flags=1, csum_start=59, csum_offset=0), bytes(60)),
        (NetHeader(gso_type=1), bytes(60)),
    ],
)  # fmt: skip
def test_a_frame_that_cannot_be_harms_no_other(bad: Any, raised: list[BaseException]) -> None:
    given = [[frame(0), bad, frame(1)]]
    port, sink = CallPort(receive=lambda limit: given.pop() if given else None, interval_us=0), MemorySink()
    assert receive(port, sink) == 2
    assert [data for _, data in sink.take()] == [frame(0), frame(1)]
    assert port.statistics()["receive_dropped"] == 1
    assert len(raised) == 1


def test_a_buffer_cannot_shrink_while_it_waits() -> None:
    data = bytearray(frame(0))
    port, sink = CallPort(receive=lambda limit: [data] * 3, interval_us=0), MemorySink(size=1)
    assert receive(port, sink) == 1
    with pytest.raises(BufferError):
        data.clear()


def test_a_header_that_changes_while_it_waits() -> None:
    hdr = NetHeader(flags=1, csum_start=14, csum_offset=2)
    given = [[frame(0), (hdr, frame(1))]]
    port, sink = CallPort(receive=lambda limit: given.pop() if given else None, interval_us=0), MemorySink(size=1)
    assert receive(port, sink) == 1
    sink.take()
    hdr.csum_start = 60
    assert receive(port, sink) == 1
    ((got, data),) = sink.take()
    assert (got.flags, got.csum_start, data) == (0, 0, frame(1))


def test_interrupt_reaches_who_waits_for_it(raised: list[BaseException]) -> None:
    """^C while the user's function runs is not lost in the data path."""

    def interrupted(frames: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            send(CallPort(send=interrupted), [(None, [frame(0)])])
            for _ in range(1000):
                time.sleep(0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert raised == []


def test_functions_on_another_thread() -> None:
    got: list[bytes] = []
    port = CallPort(send=lambda frames: got.extend(data for _, data in frames))
    thread = threading.Thread(target=lambda: send(port, [(None, [frame(5)])]))
    thread.start()
    thread.join()
    assert got == [frame(5)]


def test_one_function_only() -> None:
    assert send(CallPort(), [(None, [frame(0)])]) == 1
    assert receive(CallPort(), MemorySink()) == 0
    assert not arm(CallPort(), "receive")[0]
    assert CallPort().offloads == 0
    assert CallPort(offloads=0x1F).offloads == 0x1F


def test_arguments() -> None:
    with pytest.raises(TypeError, match="5 is not callable"):
        CallPort(send=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="offloads 0x200 has bits beyond 0x1ff"):
        CallPort(offloads=0x200)
    with pytest.raises(ValueError, match="interval_us -1 is not within 0 to 1000000000"):
        CallPort(interval_us=-1)
