"""Coalescing from Python: arguments, kinds of buffers and their life, threads."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from tcpstream import ACK, SYN, Segment, again, flat, map_bytes, stream

from virtio.offload import Coalescer, Merged


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flows": 0}, r"flows 0 out of range \(1 to 65000\)"),
        ({"flows": 65001}, "flows 65001"),
        ({"segments": 1}, r"segments 1 out of range \(2 to 1024\)"),
        ({"segments": 1025}, "segments 1025"),
        ({"max_bytes": 65536}, r"max_bytes 65536 out of range \(1 to 65535\)"),
        ({"max_age_ns": -1}, "max_age_ns -1"),
        ({"flows": 2**70}, f"flows {2**70} out of range"),
        ({"max_age_ns": 2**64 - 1}, f"max_age_ns {2**64 - 1} out of range"),
    ],
)
def test_parameters_out_of_range(options: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Coalescer(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["flows", "segments", "max_bytes", "max_age_ns"])
@pytest.mark.parametrize("value", [1.5, "5", 2.0])
def test_parameters_that_are_no_integers(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"{name} is an int, not {value!r}"):
        Coalescer(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("now", [-1, 2**64])
def test_a_time_out_of_range(now: int) -> None:
    coalescer = Coalescer(max_age_ns=5)
    with pytest.raises(ValueError, match=rf"now {now} out of range \(0 to {2**64 - 1}\)"):
        coalescer.receive(b"abc", now=now)
    with pytest.raises(TypeError, match=r"now is an int, not 0\.5"):
        coalescer.receive(b"abc", now=0.5)  # type: ignore[arg-type]
    assert coalescer.statistics()["frames"] == 0


@pytest.mark.parametrize("trusted", [[1, 0], (True, False), np.array([7, 0]), np.array([True, False]), iter([1, ""])])
def test_trust_of_each_frame(trusted: Sequence[bool]) -> None:
    frames = [bytes(Segment(tcp_checksum=5, sport=port)) for port in (1, 2)]
    coalescer = Coalescer(max_age_ns=0)
    assert sorted(str(merged.passed) for merged in coalescer.receive(frames, trusted=trusted)) == ["alone", "checksum"]


@pytest.mark.parametrize("trusted", [True, np.True_])
def test_trust_of_all_frames(trusted: bool) -> None:
    frames = [bytes(Segment(tcp_checksum=5, sport=port)) for port in (1, 2)]
    coalescer = Coalescer(max_age_ns=0)
    assert [merged.passed for merged in coalescer.receive(frames, trusted=trusted)] == ["alone", "alone"]
    assert [merged.passed for merged in coalescer.receive(frames, trusted=not trusted)] == ["checksum", "checksum"]


@pytest.mark.parametrize("trusted", [5, 1, 0, None, "ab", np.int64(1)])
def test_trust_that_is_no_bool(trusted: object) -> None:
    coalescer = Coalescer()
    with pytest.raises(TypeError, match="trusted is a bool, or a sequence of one for each frame, not "):
        coalescer.receive([b"abc"] * 5, trusted=trusted)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="3 values of trusted for 5 frames"):
        coalescer.receive([b"abc"] * 5, trusted=[True] * 3)
    assert coalescer.statistics()["frames"] == 0


def test_wrong_arguments() -> None:
    coalescer = Coalescer()
    with pytest.raises(TypeError):
        coalescer.receive(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        coalescer.receive([b"", "x"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="offsets 0 to 5 out of range"):
        coalescer.receive(b"abc", offsets=[0, 5])
    with pytest.raises(TypeError):
        Merged()
    assert coalescer.statistics()["frames"] == 0


@pytest.mark.parametrize("kind", [bytearray, memoryview, lambda f: np.frombuffer(f, np.uint8), "packed", "array"])
def test_kinds_of_buffers(kind: Callable[[bytes], bytes] | str) -> None:
    frames = map_bytes(stream(6))
    coalescer = Coalescer()
    if isinstance(kind, str):
        offsets = [sum(map(len, frames[:i])) for i in range(7)]
        many = np.array(offsets, np.int64) if kind == "array" else offsets
        results = coalescer.receive(b"".join(frames), offsets=many)
    else:
        results = coalescer.receive([kind(frame) for frame in frames])
    (merged,) = results + coalescer.flush()
    assert again(merged) == frames


def test_wider_items() -> None:
    """A buffer of 16-bit numbers is as good as one of bytes."""
    frames = [np.frombuffer(frame, np.uint16) for frame in map_bytes(stream(2))]
    coalescer = Coalescer()
    (merged,) = coalescer.receive(frames) + coalescer.flush()
    assert [bytes(piece) for piece in merged.pieces] == [one.payload for one in stream(2)]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_frames_without_bytes(shape: tuple[int, ...]) -> None:
    (merged,) = Coalescer().receive([memoryview(np.zeros(shape, np.uint8))])
    (piece,) = merged.pieces
    assert (merged.passed, len(merged), bytes(merged), bytes(piece), piece.nbytes) == ("malformed", 0, b"", b"", 0)


@pytest.mark.parametrize("kind", [">u2", "<u4", "S2", "u1,u1"])
def test_formats_that_memoryview_does_not_cast(kind: str) -> None:
    segments = stream(2, payload=b"p" * 102)
    frames = [memoryview(np.frombuffer(bytearray(bytes(one)), kind)) for one in segments]
    coalescer = Coalescer()
    (merged,) = coalescer.receive(frames) + coalescer.flush()
    pieces = merged.pieces
    del merged
    pieces[1][101] = 7
    assert bytes(frames[1])[-1] == 7
    assert [bytes(piece) for piece in pieces] == [segments[0].payload, segments[1].payload[:101] + b"\x07"]


def test_pieces_are_views() -> None:
    frames = [bytearray(bytes(one)) for one in stream(2)]
    coalescer = Coalescer()
    (merged,) = coalescer.receive(frames) + coalescer.flush()
    assert [piece.obj for piece in merged.pieces] == frames
    assert [piece.obj is frame for piece, frame in zip(merged.pieces, frames, strict=True)] == [True, True]
    merged.pieces[1][0] = 7
    assert frames[1][54] == 7


class Owned(bytearray):
    """A buffer that can be watched, and has attributes."""

    holder: object = None


def test_buffers_are_held_and_released() -> None:
    frames = [Owned(bytes(one)) for one in [*stream(3), Segment(flags=ACK | SYN, host=9)]]
    watched = [weakref.ref(frame) for frame in frames]
    coalescer = Coalescer()
    (passed,) = coalescer.receive(frames)
    with pytest.raises(BufferError):
        frames[0].extend(b"x")
    del frames, passed
    gc.collect()
    assert all(ref() is not None for ref in watched)  # held
    (merged,) = coalescer.flush()
    assert again(merged) == map_bytes(stream(3))
    assert all(ref() is not None for ref in watched)
    views = merged.pieces
    del merged
    gc.collect()
    assert watched[3]() is None
    assert [ref() is not None for ref in watched] == [True, True, True, False]
    del views
    gc.collect()
    assert all(ref() is None for ref in watched)


def test_what_is_held_goes_with_the_coalescer() -> None:
    frames = [Owned(bytes(one)) for host in range(5) for one in stream(3, host=host)]
    watched = [weakref.ref(frame) for frame in frames]
    coalescer = Coalescer(segments=8)
    assert coalescer.receive(frames) == []
    del frames, coalescer
    gc.collect()
    assert all(ref() is None for ref in watched)


def test_cycles_of_what_is_held_are_collected() -> None:
    """A buffer that knows its coalescer, or what came out of it."""
    watched: list[weakref.ref[Owned]] = []
    for flush in (False, True):
        frames = [Owned(bytes(one)) for one in stream(3)]
        coalescer = Coalescer()
        coalescer.receive(frames[:2])
        coalescer.receive(frames[2])
        for frame in frames:
            frame.holder = coalescer.flush() if flush and frame is frames[0] else coalescer
        watched += map(weakref.ref, frames)
        del frames, frame, coalescer
    gc.collect()
    assert [ref() for ref in watched] == [None] * 6


def test_a_cycle_through_an_untouched_frame_is_collected() -> None:
    frame = Owned(b"abc")
    frame.holder = Coalescer().receive([frame])
    watched = weakref.ref(frame)
    del frame
    gc.collect()
    assert watched() is None


def test_a_result_of_many_calls_holds_them_all() -> None:
    frames = [Owned(bytes(one)) for one in stream(6)]
    watched = [weakref.ref(frame) for frame in frames]
    want = list(map(bytes, frames))
    coalescer = Coalescer()
    for i in (0, 1, 3, 2, 4, 5):
        coalescer.receive([frames[i], bytes(Segment(payload=b"", host=9))])
    (merged,) = coalescer.flush()
    del frames, coalescer
    gc.collect()
    assert again(merged) == want and None not in [ref() for ref in watched]
    del merged
    gc.collect()
    assert {ref() for ref in watched} == {None}


def test_results_outlive_the_next_calls() -> None:
    """What a call gave stays as it is, though the coalescer uses its memory again."""
    coalescer = Coalescer(flows=2, segments=4)
    kept = []
    want = []
    for i in range(50):
        frames = map_bytes(stream(4, seq=1000 * i, sport=i + 1))
        kept += coalescer.receive(frames)
        want += frames
    assert flat(map(again, kept)) == want


def test_repr_and_order_of_results() -> None:
    coalescer = Coalescer()
    (merged,) = coalescer.receive(map_bytes(stream(3))) + coalescer.flush()
    assert repr(merged) == "<Merged: 354 bytes, 3 segments of 100>"
    (passed,) = coalescer.receive(b"abc")
    assert repr(passed) == "<Merged: 3 bytes, untouched (malformed)>"


@pytest.mark.threads
def test_threads_share_one() -> None:
    """Calls take turns; nothing is lost, though a flow's frames may now come from several threads."""
    coalescer = Coalescer(flows=16, segments=8)
    outs: list[list[bytes]] = [[] for _ in range(4)]
    streams = [map_bytes(stream(600, host=host, payload=b"x" * 20)) for host in range(4)]

    def work(i: int) -> None:
        for start in range(0, 600, 30):
            for merged in coalescer.receive(streams[i][start : start + 30]):
                outs[i] += again(merged)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rest = flat(map(again, coalescer.flush()))
    assert sorted(flat(outs) + rest) == sorted(flat(streams))
