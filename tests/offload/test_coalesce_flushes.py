"""Coalescing: when flows are flushed, by count, bytes, age, want of room, and for the asking."""

from __future__ import annotations

import random

from tcpstream import BOTH, Segment, again, flat, groups, map_bytes, run, stream

from virtio.offload import Coalescer


def test_flush_by_count() -> None:
    segments = [bytes(one) for one in stream(10)]
    coalescer = Coalescer(segments=4)
    results = coalescer.receive(segments)
    assert [merged.segments for merged in results] == [4, 4]
    assert coalescer.statistics()["held"] == 2
    assert [merged.segments for merged in coalescer.flush()] == [2]
    assert [merged.segments for merged in Coalescer(segments=4).receive([segments[i] for i in (0, 2, 4, 6)])] == [1] * 4


@BOTH
def test_flush_by_bytes(ipv6: bool) -> None:
    """As soon as no segment like the others fits; a merged packet never exceeds the limit."""
    head = 60 if ipv6 else 40
    coalescer = Coalescer(max_bytes=head + 350)
    results = coalescer.receive([bytes(one) for one in stream(4, ipv6=ipv6)])
    assert [merged.segments for merged in results] == [3]
    assert [merged.segments for merged in Coalescer(max_bytes=head + 300).receive(map_bytes(stream(3, ipv6=ipv6)))] == [
        3
    ]
    got, _, counted = run(stream(3, ipv6=ipv6), max_bytes=head + 199)
    assert (got, counted["passed"]) == ([[0], [1], [2]], {"too_large": 3})
    a, b, c, d = stream(4, ipv6=ipv6)
    got, _, counted = run([a, c, d, b], max_bytes=head + 350)
    assert (got, counted["flushed"]) == ([[0], [1, 2], [3]], {"bytes": 1, "asked": 1})


@BOTH
def test_largest_packet(ipv6: bool) -> None:
    """The IP packet of 65535 bytes is full: no length field overflows."""
    payload = (65535 - (60 if ipv6 else 40)) // 3
    segments = stream(4, Segment(payload=b"p" * payload, ipv6=ipv6))
    got, results, counted = run(segments)
    assert (got, counted["flushed"]) == ([[0, 1, 2], [3]], {"bytes": 1, "asked": 1})
    assert len(results[0]) == (74 if ipv6 else 54) + 3 * payload


@BOTH
def test_flush_by_bytes_of_flows_in_turn(ipv6: bool) -> None:
    """Three segments fit to the byte; with a byte less two do."""
    limit = (60 if ipv6 else 40) + 300
    a, b = stream(6, ipv6=ipv6), stream(6, ipv6=ipv6, host=2)
    turns = [one for pair in zip(a, b, strict=True) for one in pair]
    assert groups(turns, max_bytes=limit) == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]
    assert groups(turns, max_bytes=limit - 1) == [[i, i + 2] for i in (0, 1, 4, 5, 8, 9)]


def test_flush_by_age() -> None:
    coalescer = Coalescer(max_age_ns=100)
    first, other = stream(3), stream(3, host=2)
    assert coalescer.receive(bytes(first[0]), now=1000) == []
    assert coalescer.receive(bytes(other[0]), now=1050) == []
    assert coalescer.receive(bytes(first[1]), now=1099) == []
    (merged,) = coalescer.receive(bytes(first[2]), now=1100)  # takes part, then leaves
    assert merged.segments == 3
    assert coalescer.receive([], now=1149) == []
    (merged,) = coalescer.receive([], now=1150)
    assert merged.passed == "alone"
    assert coalescer.statistics()["flushed"]["age"] == 2
    assert coalescer.receive(bytes(first[0]), now=2000) == coalescer.receive([], now=5) == []  # time goes back


def test_age_of_zero_holds_nothing_over_a_call() -> None:
    coalescer = Coalescer(max_age_ns=0)
    assert [merged.segments for merged in coalescer.receive(map_bytes(stream(5)))] == [5]
    assert coalescer.statistics()["held"] == 0


def test_many_flows_are_due_at_once() -> None:
    """More results than there is room for in one call of the kernel."""
    coalescer = Coalescer(flows=1000, segments=8, max_age_ns=10)
    frames = [bytes(one) for host in range(250) for port in (1, 2, 3, 4) for one in stream(2, host=host, sport=port)]
    assert coalescer.receive(frames, now=0) == []
    results = coalescer.receive([], now=10)
    assert [merged.segments for merged in results] == [2] * 1000
    assert [again(merged)[0] for merged in results] == frames[::2]  # oldest first


def test_flush_when_the_table_is_full() -> None:
    """The flow that began first makes place, though others were quiet for longer."""
    flows = [stream(3, host=host) for host in range(4)]
    got, _, counted = run([*(f[0] for f in flows[:3]), flows[0][1], flows[3][0], flows[0][2]], flows=3)
    assert got == [[0, 3], [1], [2], [4], [5]]
    assert counted["flushed"] == {"table": 2, "asked": 3}


def test_flush_of_one_flow() -> None:
    coalescer = Coalescer()
    coalescer.receive(map_bytes([*stream(3), *stream(2, host=2)]))
    assert coalescer.flush(bytes(Segment(host=3))) == coalescer.flush(b"") == []
    (merged,) = coalescer.flush(bytes(Segment(payload=b"", ack=5)))  # whatever the rest of the frame is
    assert merged.segments == 3
    assert [merged.segments for merged in coalescer.flush()] == [2]


def test_table_of_many_flows() -> None:
    """Every flow is found among thousands, while others come and go."""
    rng = random.Random(5)
    coalescer = Coalescer(flows=3000, segments=16)
    flows = [stream(5, host=host, sport=port, payload=b"abc") for host in range(256) for port in range(12)][:3000]
    frames = []
    for step in range(5):
        rng.shuffle(flows)
        frames += [bytes(flow[step]) for flow in flows]
        for flow in flows[: 300 if step == 2 else 0]:
            frames.append(bytes(flow[0].but(payload=b"", ack=5)))
    results = coalescer.receive(frames) + coalescer.flush()
    assert sorted(flat(map(again, results))) == sorted(frames)
    assert sorted(merged.segments for merged in results) == [1] * 300 + [2] * 300 + [3] * 300 + [5] * 2700
