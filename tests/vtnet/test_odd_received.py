"""Odd lengths at the driver's end: a frame with a type and lengths of 0 or of a segment (LRO, vhost, other guests)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
from naive_device import transmit
from netdev import HandDevice, attached
from odd_lengths import MSS, lengths, lie, put, split, ufo6
from scapy.layers.inet import TCP
from undone import CSUM, ETHER, EVERY, KINDS, V4, sound, ufo, undone

from bench.kernels.devicebench import ScriptPort
from virtio.constants import NetFeature as F
from virtio.net import Pump
from virtio.offload import NetHeader, ReceiveVerdict, complete_receive

ALL = sum(feature for feature in F if feature.name.startswith("GUEST_"))
TSO = NetHeader(gso_type=1, gso_size=MSS)
PLAIN = [kind for kind in KINDS if kind != "vxlan"]
RINGS = pytest.mark.parametrize(("want", "withhold"), list(product(["", "RING_PACKED"], ["", "MRG_RXBUF"])))


def large(kind: str) -> tuple[NetHeader, bytes]:
    """A frame of 5 segments; of 3 fragments."""
    return {"ufo4": ufo, "ufo6": ufo6}[kind](2100, 800) if kind.startswith("ufo") else undone(kind, 2100, MSS)


def odd_ones(kind: str) -> Iterator[tuple[NetHeader, bytes]]:
    """The frame with each of its lengths wrong, and with all, with and without NEEDS_CSUM."""
    header, frame = large(kind)
    fields = lengths(frame)
    for said, which in product(("zero", "segment"), {(one,) for one in fields} | {tuple(fields)}):
        odd = lie(frame, list(which), said, header.gso_size - 8 * kind.startswith("ufo"))
        odd = put(odd, header.csum_start + header.csum_offset, 0x1234)  # of whatever length the sum was
        for flags in (header.flags, header.flags & ~1, header.flags & ~1 | 2):
            given = NetHeader.from_bytes(header.to_bytes(24), 24)
            given.flags = flags
            yield given, odd


def give(device: HandDevice, header: NetHeader, frame: bytes) -> None:
    """In as many buffers as it takes, or in short ones: a header's fields are parted."""
    assert device.give(frame, header=header) == 1
    if device.negotiated & F.MRG_RXBUF:
        first, *rest = split(frame, 9, 17, 19, 39, 51, 59, 700)
        header.num_buffers = 1 + len(rest)
        device.give_raw(header.to_bytes(device.header_size) + first, *rest)


@RINGS
@pytest.mark.parametrize("kind", [*PLAIN, "ufo4", "ufo6"])
def test_lengths_become_the_frames(kind: str, want: str, withhold: str) -> None:
    header, frame = large(kind)
    [right] = transmit(NetHeader(flags=1, csum_start=header.csum_start, csum_offset=header.csum_offset), frame)
    nic = attached(device := HandDevice(withhold=withhold), want=want)
    for given, odd in odd_ones(kind):
        give(device, given, odd)
        frames, info = nic.receive_info()
        assert set(frames) == {right} and {one.segments for one in info} == {3 if kind.startswith("ufo") else 5}
        give(device, given, odd)
        assert {b"".join(views) for views in nic.receive_views()} == {right}
        give(device, given, odd)
        assert set(nic.receive(complete=False)) == {odd}
    assert nic.statistics()["rx_csum_failed"] == 0


def test_lengths_around_a_tunnel() -> None:
    header, frame = large("vxlan")
    right = bytearray(frame)
    assert complete_receive(header, right, ALL).segments == 5 and sound(right)
    for given, odd in odd_ones("vxlan"):
        got = complete_receive(given, data := bytearray(odd), ALL)
        assert (got.segments, got.levels, data) == (5, 2, right)


@pytest.mark.parametrize("offloads", [0, CSUM, EVERY])
@pytest.mark.parametrize("kind", PLAIN)
def test_lengths_by_way_of_a_pump(kind: str, offloads: int) -> None:
    device, port, want = HandDevice(), ScriptPort(offloads=offloads), transmit(*large(kind))
    with Pump(attached(device), port, worker=None) as pump:
        for given, odd in odd_ones(kind):
            device.give(odd, header=given)
            pump.poll()
            assert [data for header, frame in port.take() for data in transmit(header, frame)] == want


@pytest.mark.parametrize("end", [0, 6])
def test_a_checksum_of_0_stays_and_a_trailer_is_no_payload(end: int) -> None:
    right = put(large("udp4")[1], 40, 0)
    for at in (16, 38):
        data = bytearray(put(right, at, 0) + b"\xff" * end)
        got = complete_receive(NetHeader(gso_type=5, gso_size=MSS), data, ALL)
        assert (got.verdict, got.segments) == (ReceiveVerdict.UNKNOWN, 5) and data == right + b"\xff" * end


@RINGS
@pytest.mark.parametrize("kind", PLAIN)
def test_without_a_type_a_length_of_0_is_left(kind: str, want: str, withhold: str) -> None:
    """5.1.9.4: the sum is of all from csum_start on."""
    header, frame = undone(kind, 300)
    nic = attached(device := HandDevice(withhold=withhold), want=want)
    for which in {(one,) for one in lengths(frame)} | {tuple(lengths(frame))}:
        odd = lie(frame, list(which), "zero")
        for given, right in ((header, transmit(header, odd)[0]), (NetHeader(flags=2), odd), (NetHeader(), odd)):
            give(device, given, odd)
            assert set(nic.receive()) == {right}
            give(device, given, odd)
            assert {b"".join(views) for views in nic.receive_views()} == {right}


def test_what_cannot_be_meant() -> None:
    """A field within headers, a length beyond the frame, and padding that no length measures."""
    frame = bytes(ETHER / V4 / TCP() / b"123456")
    for header, said in ((NetHeader(flags=1, csum_start=24, csum_offset=2), 0), (TSO, 0), (TSO, 2000)):
        data = bytearray(put(frame, 16, said))
        assert complete_receive(header, data, ALL).verdict is ReceiveVerdict.BAD
        assert data == put(frame, 16, said)
