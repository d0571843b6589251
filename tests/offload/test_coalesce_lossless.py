"""Coalescing loses nothing: random streams of several flows, disturbed in every way, come out byte for byte."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from offloads import each_simd
from tcpstream import (
    ACK,
    CWR,
    DF,
    ECE,
    FIN,
    NEEDS_CSUM,
    PSH,
    RST,
    SYN,
    TCPV4,
    TCPV6,
    TIMESTAMP,
    URG,
    Segment,
    again,
    flat,
)

from virtio.offload import Coalescer, Merged

# what happens to a segment, beside what its stream has it be
EVENTS = [
    {}, {}, {}, {}, {}, {}, {"flags": ACK | PSH}, {"flags": ACK | FIN}, {"flags": ACK | CWR}, {"flags": ACK | ECE},
    {"flags": ACK | CWR | PSH}, {"flags": ACK | URG, "urgent": 1}, {"flags": ACK | SYN}, {"flags": RST}, {"ack": 78},
    {"window": 7}, {"tos": 3}, {"ttl": 9}, {"label": 5}, {"options": TIMESTAMP + b"12345678"}, {"payload": b""},
    {"payload": b"!"}, {"payload": b"odd"}, {"tcp_checksum": 0x1234}, {"ip_checksum": 1}, {"tcp_checksum": 0xFFFF},
    {"fragment": 0}, {"fragment": 0x2000}, {"fragment": 0x8000}, {"padding": bytes(6)}, {"ip_options": b"\x01" * 4},
    {"extensions": b"\x06\x00\x01\x04\x00\x00\x00\x00"}, {"id": 0}, {"id": 7}, {"urgent": 9},
]  # fmt: skip
MSS = 24


@st.composite
def flows(draw: st.DrawFn, number: int) -> list[Segment]:
    """One flow's segments in the order in which they arrive."""
    start = Segment(
        seq=draw(st.sampled_from([0, 1000, 0x7FFFFFE0, 0xFFFFFFD0])),
        id=draw(st.sampled_from([0, 500, 0xFFFE])),
        fragment=draw(st.sampled_from([DF, DF, 0])),
        ipv6=draw(st.booleans()),
        options=draw(st.sampled_from([b"", TIMESTAMP + bytes(8)])),
        tags=draw(st.sampled_from([(), (), ((0x8100, 5),), ((0x88A8, 5), (0x8100, 6))])),
        host=1 + number // 2,
        sport=1025 + number,
    )
    step = draw(st.sampled_from([1, 1, 1, 0]))  # of ids
    now, sent = start, []
    for i in range(draw(st.integers(1, 14))):
        event = draw(st.sampled_from(EVENTS))
        one = now.but(**{"payload": bytes([65 + number, i] * (MSS // 2)), **event})
        sent.append(one)
        now = now.but(seq=(now.seq + len(one.payload)) % (1 << 32), id=(now.id + step) % (1 << 16))
        if draw(st.integers(0, 9)) == 9:  # a jump
            now = now.but(seq=(now.seq + draw(st.sampled_from([1, MSS, 1 << 29, 1 << 30, 1 << 31]))) % (1 << 32))
    arrived: list[Segment] = []
    for one in sent:
        fate = draw(st.integers(0, 11))
        if fate == 0:  # lost
            continue
        place = len(arrived) - (draw(st.integers(1, 4)) if fate <= 3 else 0)  # late ones: before others in the list
        arrived.insert(max(place, 0), one)
        if fate == 4:  # twice, perhaps the second time cut otherwise
            cut = draw(st.sampled_from([0, 0, 1, 5]))
            arrived.append(one.but(payload=one.payload[cut:], seq=(one.seq + cut) % (1 << 32)))
    return arrived


@st.composite
def mixed(draw: st.DrawFn) -> list[tuple[int, Segment]]:
    """Several flows' segments, (flow, segment), in the order in which they arrive."""
    queues = [list(draw(flows(number))) for number in range(draw(st.integers(1, 3)))]
    arrived = []
    while any(queues):
        number = draw(st.sampled_from([i for i, queue in enumerate(queues) if queue]))
        for _ in range(draw(st.integers(1, 4))):
            if queues[number]:
                arrived.append((number, queues[number].pop(0)))
    return arrived


OPTIONS = st.fixed_dictionaries(
    {
        "flows": st.sampled_from([1, 2, 64]),
        "segments": st.sampled_from([2, 3, 8, 64]),
        "max_bytes": st.sampled_from([65535, 65535, 150, 120]),
        "max_age_ns": st.sampled_from([None, 0, 3]),
        "fixed_id": st.booleans(),
    }
)


def check_order(arrived: list[tuple[int, Segment]], out: list[tuple[bytes, bool]]) -> None:
    """Within a flow, whoever came first leaves first, unless both were held and the sequence numbers say otherwise.

    Of frames that came twice nobody can say which is which: they are left out.
    """
    place = {frame: (number, held) for number, (frame, held) in enumerate(out)}
    counts = Counter(bytes(segment) for _, segment in arrived)
    single = [(flow, segment, *place[bytes(segment)]) for flow, segment in arrived if counts[bytes(segment)] == 1]
    for (flow, first, left, held), (other, later, later_left, later_held) in combinations(single, 2):
        if flow == other and later_left < left:
            assert 0 < (first.seq - later.seq) % (1 << 32) < 1 << 31
            assert held and later_held


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(mixed(), OPTIONS, st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(0, 9))
def test_lossless(arrived: list[tuple[int, Segment]], options: dict[str, int], bursts: list[int], flush: int) -> None:
    frames = [bytes(segment) for _, segment in arrived]
    for _ in each_simd():
        coalescer = Coalescer(**options)  # type: ignore[arg-type]
        results: list[Merged] = []
        at = turn = 0
        while at < len(frames):
            n = bursts[turn % len(bursts)]
            results += coalescer.receive(frames[at : at + n] if n > 1 else frames[at], now=turn)
            at += n
            turn += 1
            if turn == flush:
                results += coalescer.flush()
            elif turn == flush + 1:
                results += coalescer.flush(frames[0])
            counted = coalescer.statistics()
            assert counted["frames"] == counted["held"] + counted["segments"] + sum(counted["passed"].values())
            assert counted["held_flows"] <= options["flows"]
        results += coalescer.flush()
        out = [(frame, merged.passed in (None, "alone")) for merged in results for frame in again(merged)]
        assert sorted(frame for frame, _ in out) == sorted(frames)
        check_order(arrived, out)
        counted = coalescer.statistics()
        assert counted["held"] == counted["held_flows"] == 0
        assert counted["merged"] == sum(merged.passed is None for merged in results)
        assert sum(counted["passed"].values()) == sum(merged.passed is not None for merged in results)
        for merged in results:
            if merged.passed is None:
                assert 2 <= merged.segments <= options["segments"]
                ip = merged.net_header.csum_start - (40 if merged.gso_type & 7 == TCPV6 else 20)
                assert len(merged) - ip <= options["max_bytes"]
                assert merged.net_header.flags == NEEDS_CSUM
                assert merged.gso_type & 7 in (TCPV4, TCPV6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=90), max_size=20))
def test_any_bytes(frames: list[bytes]) -> None:
    coalescer = Coalescer()
    results = coalescer.receive(frames) + coalescer.flush()
    assert sorted(flat(map(again, results))) == sorted(frames)


@settings(max_examples=300, deadline=None)
@given(mixed(), st.data())
def test_damaged_frames(arrived: list[tuple[int, Segment]], data: st.DataObject) -> None:
    """Bytes flipped, frames cut: with verification nothing is lost."""
    frames = []
    for _, segment in arrived:
        frame = bytearray(bytes(segment))
        if data.draw(st.integers(0, 3)) == 0:
            at = data.draw(st.integers(0, min(len(frame), 80) - 1))
            frame[at] ^= data.draw(st.integers(1, 255))
            del frame[data.draw(st.sampled_from([len(frame), at])) :]
        frames.append(bytes(frame))
    coalescer = Coalescer(fixed_id=data.draw(st.booleans()))
    results = coalescer.receive(frames) + coalescer.flush()
    assert sorted(flat(map(again, results))) == sorted(frames)


@pytest.mark.parametrize("step", [1, 3, 7])
def test_in_order_input_stays_in_order(step: int) -> None:
    """Losses do not reorder: what arrives in sequence leaves in sequence."""
    segments = [Segment().after(i, payload=bytes([i]) * 100) for i in range(60) if i % step or step == 1]
    coalescer = Coalescer(segments=8)
    results = [merged for one in segments for merged in coalescer.receive(bytes(one))] + coalescer.flush()
    assert flat(map(again, results)) == [bytes(one) for one in segments]
