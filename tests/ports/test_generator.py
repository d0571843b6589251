"""The packet generator and the verifying sink: what goes wrong between them is found, and named."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.kernels.portbench import MemorySink, arm, receive, send
from virtio.net.ports import Generator, Sink
from virtio.offload import NetHeader, Verdict, complete_checksum, segment, verify

Frame = tuple[NetHeader, bytes]
FAULTS = ("missing", "late", "repeated", "corrupt", "bad_checksum")


def made(generator: Generator, count: int, queue: int = 0) -> list[Frame]:
    """The next frames of a generator."""
    sink = MemorySink(size=64)
    frames: list[Frame] = []
    while len(frames) < count:
        assert receive(generator, sink, min(64, count - len(frames)), queue)
        frames += sink.take()
    assert sink.unlocked == 0
    return frames


def give(sink: Sink, frames: list[Frame], queue: int = 0, pieces: int = 1) -> dict[str, int]:
    """Send frames, each in so many pieces; return what the sink finds wrong in all that came so far."""
    for start in range(0, len(frames), 64):
        burst = [(hdr, cut(frame, pieces)) for hdr, frame in frames[start : start + 64]]
        assert send(sink, burst, queue) == len(burst)
    return sink.faults()


def cut(frame: bytes, pieces: int) -> list[bytes]:
    ends = [len(frame) * i // pieces for i in range(pieces + 1)]
    return [frame[a:b] for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize("pieces", [1, 2, 7, 40])
@pytest.mark.parametrize("size", [30, 60, 64, 256, 257, 1514, 65589])
def test_raw_frames_are_what_they_should_be(size: int, pieces: int) -> None:
    generator, sink = Generator(size), Sink()
    frames = made(generator, 70)
    assert {len(frame) for _, frame in frames} == {size}
    assert len({frame for _, frame in frames}) == 70
    assert {(hdr.flags, hdr.gso_type) for hdr, _ in frames} == {(0, 0)}
    assert frames[0][1][:14] == bytes.fromhex("ffffffffffff 020000000001 88b5")
    assert give(sink, frames, pieces=pieces) == {}
    counts = sink.statistics()
    assert (counts["send_packets"], counts["send_bytes"], counts["foreign"]) == (70, 70 * size, 0)
    assert generator.statistics()["receive_bytes"] == 70 * size


@pytest.mark.parametrize("pieces", [1, 3, 60])
@pytest.mark.parametrize("options", [{}, {"partial": True}, {"gso_size": 1448}])
@pytest.mark.parametrize("size", [55, 60, 257, 1514, 65549])
def test_tcp_frames_are_what_they_should_be(size: int, options: dict[str, int], pieces: int) -> None:
    frames = made(Generator(size, kind="tcp", **options), 70)
    assert give(Sink(), frames, pieces=pieces) == {}
    at = 0
    for number, (hdr, frame) in enumerate(frames):
        assert len(frame) == size
        assert int.from_bytes(frame[38:42], "big") == at
        assert int.from_bytes(frame[18:20], "big") == number
        at += size - 54
        if options:
            assert (hdr.flags, hdr.csum_start, hdr.csum_offset) == (1, 34, 16)
            frame = bytearray(frame)
            complete_checksum(frame, 34, 16)
        else:
            assert hdr.flags == 0
        if size - 54 > options.get("gso_size", 70000):
            assert (hdr.gso_type, hdr.gso_size, hdr.hdr_len) == (1, 1448, 54)
        else:
            assert hdr.gso_type == 0
        assert verify(frame)[:2] == (Verdict.GOOD, Verdict.GOOD), number


def test_sizes_follow_one_another() -> None:
    sizes = [60, 1514, 590]
    frames = made(Generator(sizes, count=7), 7)
    assert [len(frame) for _, frame in frames] == [60, 1514, 590, 60, 1514, 590, 60]


def test_count_ends_it() -> None:
    generator, sink = Generator(count=10), MemorySink(size=64)
    assert not generator.done
    assert arm(generator, "receive")[0]
    assert receive(generator, sink, 7) == 7
    assert receive(generator, sink, 7) == 3
    assert receive(generator, sink, 7) == 0
    assert generator.done
    assert arm(generator, "receive") == (False, [], -1, 0)


def test_stop_ends_it() -> None:
    generator, sink = Generator(), MemorySink(size=64)
    assert receive(generator, sink, 7) == 7
    generator.stop()
    assert receive(generator, sink, 7) == 0
    assert arm(generator, "receive") == (False, [], -1, 0)
    assert not generator.done


def test_what_was_not_taken_comes_again() -> None:
    generator, small, sink = Generator(count=20), MemorySink(size=3), Sink()
    frames: list[Frame] = []
    while not generator.done:
        receive(generator, small, 8)
        frames += small.take()
    assert len(frames) == 20
    assert generator.statistics()["receive_full"] > 0
    assert give(sink, frames) == {}


def test_rate_is_kept() -> None:
    generator, sink = Generator(rate=5000), MemorySink(size=4, keep=False)
    start = time.monotonic()
    while time.monotonic() - start < 0.3:
        if receive(generator, sink, 64) == 0:
            ready, fds, us, _ = arm(generator, "receive")
            assert fds == []
            assert ready or 0 < us <= 201
    elapsed = time.monotonic() - start
    # never ahead; behind only as far as this test was kept from running, which a busy machine does
    assert sink.packets <= elapsed * 5000 + 2
    assert sink.packets > 5


def test_rate_does_not_make_up_for_long_ago() -> None:
    generator, sink = Generator(rate=1000), MemorySink(size=64, keep=False)
    receive(generator, sink, 64)
    time.sleep(0.1)
    assert receive(generator, sink, 64) <= 12  # of 10 ms


def test_queues_are_flows_of_their_own() -> None:
    generator, sink = Generator(queues=3, flow=5), Sink(queues=3)
    for queue in range(3):
        assert give(sink, made(generator, 10, queue), queue) == {}
    assert sink.statistics()["send_packets"] == 30
    # the frames of one flow are not those of another
    one, other = (made(Generator(100, flow=flow), 1)[0][1] for flow in (1, 2))
    assert one[30:] != other[30:]


@pytest.mark.parametrize("kind", ["raw", "tcp"])
def test_loss_reordering_and_repetition_are_told_apart(kind: str) -> None:
    frames = made(Generator(154, kind=kind), 10)  # type: ignore[arg-type]
    unit = 1 if kind == "raw" else 100
    sink = Sink()
    assert give(sink, frames[:3]) == {}
    assert give(sink, frames[5:7]) == {"missing": 2 * unit}
    assert give(sink, frames[3:4]) == {"missing": unit, "late": unit}
    assert give(sink, frames[3:4]) == {"missing": unit, "late": unit, "repeated": unit}
    assert give(sink, frames[6:7]) == {"missing": unit, "late": unit, "repeated": 2 * unit}
    assert give(sink, frames[4:5]) == {"late": 2 * unit, "repeated": 2 * unit}
    assert give(sink, frames[7:]) == {"late": 2 * unit, "repeated": 2 * unit}
    sink.clear()
    assert sink.statistics()["send_packets"] == 0
    assert give(sink, frames) == {}


def test_tcp_that_comes_again_in_part() -> None:
    """Bytes are counted, not frames."""
    whole = made(Generator(154, kind="tcp"), 4)  # bytes 0 to 100, ...
    other = made(Generator([104, 154], kind="tcp"), 4)  # 0 to 50, 50 to 150, 150 to 200, 200 to 300
    sink = Sink()
    assert give(sink, [whole[0], other[1]]) == {"repeated": 50}
    assert give(sink, [other[3]]) == {"repeated": 50, "missing": 50}
    assert give(sink, [whole[1]]) == {"repeated": 100, "late": 50}
    assert give(sink, [whole[3]]) == {"repeated": 100, "late": 50}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 39), max_size=120))
def test_any_order_is_accounted_for(order: list[int]) -> None:
    frames = made(Generator(60), 40)
    counts = dict.fromkeys(FAULTS, 0)
    seen: set[int] = set()
    top = 0
    for number in order:
        if number in seen:
            counts["repeated"] += 1
        elif number < top:
            counts["late"] += 1
        seen.add(number)
        top = max(top, number + 1)
    counts["missing"] = top - len(seen)
    found = give(Sink(), [frames[number] for number in order])
    assert found == {name: count for name, count in counts.items() if count}


def test_more_gaps_than_are_remembered() -> None:
    frames = made(Generator(60), 200)
    sink = Sink()
    assert give(sink, frames[1::2]) == {"missing": 100}
    assert give(sink, frames[::2]) == {"missing": 36, "late": 64, "repeated": 36}  # the oldest 36 were given up


@pytest.mark.parametrize("kind", ["raw", "tcp"])
def test_any_bit_that_changes_is_found(kind: str) -> None:
    frame = made(Generator(100, kind=kind), 2)[0]  # type: ignore[arg-type]
    missed = []
    for bit in range(14 * 8, 800):
        wrong = bytearray(frame[1])
        wrong[bit // 8] ^= 1 << bit % 8
        sink = Sink()
        give(sink, [(frame[0], bytes(wrong))])
        counts = sink.statistics()
        if not any(counts[name] for name in (*FAULTS, "foreign")):
            missed.append(bit)
    assert missed == []


def test_a_frame_cut_short_is_corrupt() -> None:
    for kind in ("raw", "tcp"):
        _, frame = made(Generator(1514, kind=kind), 1)[0]  # type: ignore[arg-type]
        sink = Sink()
        assert give(sink, [(NetHeader(), frame[:-1])]) == {"corrupt": 1}
    assert give(sink, [(NetHeader(), frame[:-1])]) == {"corrupt": 2}


def test_frames_of_others_are_foreign() -> None:
    sink = Sink()
    assert give(sink, [(NetHeader(), bytes(n)) for n in (0, 13, 14, 29, 60, 1514)]) == {}
    assert sink.statistics()["foreign"] == 6


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=0, max_size=90), st.sampled_from(["raw", "tcp"]), st.integers(0, 90), st.integers(1, 9))
def test_garbage_does_no_harm(garbage: bytes, kind: str, at: int, pieces: int) -> None:
    _, frame = made(Generator(90, kind=kind), 1)[0]  # type: ignore[arg-type]
    sink = Sink()
    give(sink, [(NetHeader(), (frame[:at] + garbage)[:90])], pieces=pieces)
    assert sink.statistics()["send_packets"] == 1


def test_a_wrong_checksum_is_seen_unless_the_header_excuses_it() -> None:
    _, frame = made(Generator(200, kind="tcp"), 1)[0]
    wrong = frame[:50] + bytes([frame[50] ^ 1]) + frame[51:]
    assert give(Sink(), [(NetHeader(), wrong)]) == {"bad_checksum": 1}
    for flags in (1, 2):
        assert give(Sink(), [(NetHeader(flags=flags), wrong)]) == {}
    wrong = frame[:24] + bytes([frame[24] ^ 1]) + frame[25:]  # of the IPv4 header
    assert give(Sink(), [(NetHeader(flags=2), wrong)]) == {"bad_checksum": 1}


def test_tcp_stays_verifiable_when_it_is_cut() -> None:
    frames = made(Generator(40054, kind="tcp", gso_size=1448), 3)
    sink = Sink()
    segments = [(NetHeader(), b"".join(part)) for hdr, frame in frames for part in segment(frame, hdr.gso_size)]
    assert len(segments) == 3 * 28
    assert give(sink, segments) == {}
    assert sink.statistics()["bad_checksum"] == 0
    random.Random(1).shuffle(segments)
    found = give(Sink(), segments[:-1])
    assert "corrupt" not in found
    assert found["missing"] > 0


def test_positions_beyond_32_bits() -> None:
    """TCP's numbers wrap; the sink's do not."""
    generator, sink = Generator(65549, kind="tcp", partial=True), Sink()
    forget = MemorySink(size=64, keep=False)
    for _ in range(1030):
        assert receive(generator, forget, 64) == 64
    frames = made(generator, 10)
    assert int.from_bytes(frames[0][1][38:42], "big") == 1030 * 64 * 65495 % 2**32
    assert 1030 * 64 * 65495 > 2**32
    # the sink's flow begins elsewhere: what lies more than 2^31 ahead or behind it cannot know
    assert give(sink, frames) != {}


def test_counting_only() -> None:
    sink = Sink(verify=False)
    assert give(sink, [(NetHeader(), b"x" * 60)] * 3) == {}
    assert sink.statistics()["send_packets"] == 3
    assert sink.statistics()["foreign"] == 0


def test_a_generator_verifies_too() -> None:
    generator = Generator()
    frames = made(generator, 3)
    assert give(generator, [frames[0], frames[2]]) == {"missing": 1}


def test_offloads() -> None:
    assert Sink().offloads == 0
    assert Sink(offloads=0x1FF).offloads == 0x1FF
    assert Generator(offloads=3).offloads == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 29}, "size 29 of a raw frame is not within 30 to 65589"),
        ({"size": 65590}, "size 65590 of a raw frame is not within 30 to 65589"),
        ({"size": 54, "kind": "tcp"}, "size 54 of a tcp frame is not within 55 to 65549"),
        ({"size": []}, "0 sizes: limit 1 to 64"),
        ({"kind": "udp"}, "kind 'udp' is neither 'raw' nor 'tcp'"),
        ({"gso_size": 100}, "raw frames have no checksum"),
        ({"kind": "tcp", "gso_size": 65536}, "gso_size 65536 is not within 0 to 65535"),
        ({"flow": 255, "queues": 2}, "flow 255 of 2 queues is not within 0 to 254"),
        ({"count": 0}, "count 0: limit 1 at least"),
        ({"rate": 0}, "rate 0 is not within 0 to 1e9 frames a second"),
        ({"source": "02:00"}, "MAC '02:00' is not six bytes"),
        ({"queues": 0}, "queues 0 is not within 1 to 256"),
        ({"offloads": 0x200}, "offloads 0x200 has bits beyond 0x1ff"),
    ],
)
def test_arguments(options: dict[str, object], message: str) -> None:
    options = {"size": 60, **options}
    with pytest.raises(ValueError, match=f"^{message}"):
        Generator(options.pop("size"), **options)  # type: ignore[arg-type]
