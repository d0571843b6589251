"""Executing offloads: what leaves is what a device that obeys the header literally sends."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from frames import Made, frames
from hypothesis import assume, given
from hypothesis import strategies as st
from naive_device import alike, transmit
from undone import (
    CSUM,
    EVERY,
    HOST,
    KINDS,
    TSO4,
    TUNNEL,
    TUNNEL_CSUM,
    UFO,
    USO4,
    USO6,
    needs,
    payload,
    reassemble,
    sound,
    udp_right,
    ufo,
    undone,
)

from virtio.offload import NetHeader, TransmitOutcome, prepare_transmit
from virtio.ports.software_offload import Executor

PLAIN = (NetHeader(), bytes(range(60)))


def split(frame: bytes, ends: tuple[int, ...]) -> list[bytes]:
    bounds = [0, *sorted(end for end in set(ends) if 0 < end < len(frame)), len(frame)]
    return [frame[a:b] for a, b in pairwise(bounds)]


def frames_of(packets: list[tuple[NetHeader, bytes]]) -> list[bytes]:
    assert all(header == NetHeader() for header, _ in packets)
    return [frame for _, frame in packets]


PIECES = pytest.mark.parametrize("ends", [(), (14,), (1, 13, 35, 53, 54, 100, 1000)], ids=["one", "two", "many"])


@PIECES
@pytest.mark.parametrize("size", [0, 1, 17, 200, 1400, 1401, 60000])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "vxlan"])
def test_checksum(kind: str, size: int, ends: tuple[int, ...]) -> None:
    header, frame = undone(kind, size)
    made = Executor().execute([(header, split(frame, ends))])
    assert frames_of(made) == transmit(header, frame)
    assert sound(made[0][1])


@PIECES
@pytest.mark.parametrize("size", [1449, 2896, 60001])
@pytest.mark.parametrize("kind", list(KINDS))
def test_segments(kind: str, size: int, ends: tuple[int, ...]) -> None:
    header, frame = undone(kind, size, 1448)
    executor = Executor()
    made = executor.execute([(header, split(frame, ends))])
    assert frames_of(made) == transmit(header, frame)
    assert all(sound(each) for _, each in made)
    figures = executor.statistics()
    assert (figures["frames"], figures["segments"]) == (1, -(-size // 1448))


@pytest.mark.parametrize("kind", list(KINDS))
def test_segments_whose_checksums_may_stay_undone(kind: str) -> None:
    header, frame = undone(kind, 5000, 1448)
    made = Executor().execute([(header, frame)], CSUM)
    assert all(each.flags == 1 and each.gso_type == 0 for each, _ in made)
    assert [transmit(each, data)[0] for each, data in made] == transmit(header, frame)


@PIECES
@pytest.mark.parametrize("offloads", [0, CSUM])
@pytest.mark.parametrize("size", [1500, 3000, 30001])
def test_fragments(size: int, offloads: int, ends: tuple[int, ...]) -> None:
    header, frame = ufo(size, 1480)
    made = Executor().execute([(header, split(frame, ends))], offloads)
    datagram = reassemble(frames_of(made))
    assert datagram[8:] == payload(size)
    assert udp_right(frame, datagram)
    assert all(len(each) <= 14 + 20 + 1480 for _, each in made)


@pytest.mark.parametrize("kind", list(KINDS))
def test_only_what_must_be_done_is(kind: str) -> None:
    """With all that it needs a frame passes as it is; with any less it does not."""
    header, frame = undone(kind, 5000, 1448)
    needed = needs(header, kind)
    assert Executor().execute([(header, frame)], needed) == [(header, frame)]
    for bit in range(9):
        if needed >> bit & 1:
            assert len(Executor().execute([(header, frame)], EVERY & ~(1 << bit))) > 1


def test_what_needs_nothing_passes_whatever_else_its_header_says() -> None:
    header = NetHeader(hdr_len=40, csum_start=9, hash_value=5)
    assert Executor().execute([(header, PLAIN[1])]) == [(header, PLAIN[1])]


def test_order_and_batches() -> None:
    """More than a batch holds, of all kinds: the order stays."""
    packets = []
    expected = []
    for i in range(40):
        for kind, mss in (("tcp4", 100), ("udp6", 0)):
            header, frame = undone(kind, 1000 + i, mss)
            packets += [(header, frame), PLAIN]
            expected += [*transmit(header, frame), PLAIN[1]]
    assert frames_of(Executor().execute(packets)) == expected


def test_a_checksum_of_zero_is_written_as_all_ones() -> None:
    header, frame = undone("udp4", 10)
    for word in range(0x10000):
        data = bytearray(frame)
        data[-2:] = word.to_bytes(2, "big")
        out = Executor().execute([(header, bytes(data))])[0][1]
        if out[40:42] == b"\xff\xff":
            return
    pytest.fail("no payload gives a checksum of 0")


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (NetHeader(flags=1, gso_type=1, gso_size=10, csum_start=34, csum_offset=16), "protocol"),  # UDP
        (NetHeader(flags=1, gso_type=4, gso_size=10, csum_start=34, csum_offset=16), "network"),
        (NetHeader(flags=1, gso_type=5, gso_size=1, csum_start=34, csum_offset=6), "count"),
        (NetHeader(flags=1, gso_type=3, gso_size=7, csum_start=34, csum_offset=6), "size"),
    ],
)
def test_what_cannot_be_cut_is_dropped_with_a_reason(header: NetHeader, reason: str) -> None:
    executor = Executor()
    frame = undone("udp4", 3000)[1]
    assert executor.execute([PLAIN, (header, frame), PLAIN]) == [PLAIN, PLAIN]
    assert executor.statistics()["dropped"] == {reason: 1}


def test_segments_are_bounded() -> None:
    header, frame = undone("tcp4", 60000, 1448)
    header.gso_size = 30
    assert len(Executor().execute([(header, frame)])) == 2000
    header.gso_size = 29  # 2069 segments, over the limit of 2048
    executor = Executor()
    assert executor.execute([(header, frame)]) == []
    assert executor.statistics()["dropped"] == {"count": 1}


def test_pieces_are_bounded() -> None:
    header, frame = undone("tcp4", 1400)
    executor = Executor()
    assert len(executor.execute([(header, split(frame, tuple(range(1024))))])) == 1
    assert executor.execute([(header, split(frame, tuple(range(1025)))), PLAIN]) == [PLAIN]
    assert executor.statistics()["dropped"] == {"pieces": 1}


def test_a_header_that_cannot_be_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"packet 1.*60 bytes"):
        Executor().execute([PLAIN, (NetHeader(flags=1, csum_start=59, csum_offset=6), PLAIN[1])])


offload_sets = st.integers(0, EVERY)


@given(made=frames(max_payload=3000, padding=0), mss=st.integers(0, 400), offloads=offload_sets, data=st.data())
def test_any_frame(made: Made, mss: int, offloads: int, data: Any) -> None:
    """Whatever leaves is what the naive device makes of what was given, and leaves no more undone than allowed."""
    frame = bytearray(made.data)
    ready = prepare_transmit(frame, HOST, mss, layer=data.draw(st.sampled_from(["inner", "outer"])))
    assume(ready.outcome in (TransmitOutcome.SENT_AS, TransmitOutcome.DONE_IN_SOFTWARE))
    ends = tuple(data.draw(st.lists(st.integers(1, max(len(frame) - 1, 1)), max_size=6)))
    expected = transmit(ready.header, frame)
    out = Executor().execute([(ready.header, split(bytes(frame), ends))], offloads)
    got = []
    for header, each in out:
        kind = header.gso_type & 0x1F
        used = (CSUM if header.flags & 1 else 0) | {0: 0, 1: TSO4, 4: 4, 3: UFO, 5: USO4 | USO6}[kind]
        if header.gso_type & 0x60:
            used |= TUNNEL | (TUNNEL_CSUM if header.flags & 8 else 0)
        assert not used & ~offloads, (header, offloads)
        got += transmit(header, each)
    assert alike(got, expected)
