"""The MTU at the driver end: no longer frame goes to the device, by whatever way it comes (VIRTIO 1.4, 5.1.4.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mtu_frames import SERVICE, TPID, gso, tcp4
from netdev import HandDevice, attached
from undone import NONE

from bench.kernels.devicebench import ScriptPort
from virtio.net import Pump
from virtio.net.vtnet import Vtnet
from virtio.offload import NetHeader, Toeplitz
from virtio.vtnet.txq import transmit_by_flow

CSUM = NetHeader(flags=1, csum_start=34, csum_offset=16)
TSO = "HOST_TSO4 HOST_TSO6 HOST_ECN"
SEGMENTATION = TSO + " HOST_UFO HOST_USO"  # without it there are no large buffers
Given = list[tuple[NetHeader, bytes]]


def sized(size: int, *tags: bytes) -> bytes:
    """A TCP frame of ``size`` bytes besides its tags."""
    frame = tcp4(size - 66)
    return frame[:12] + b"".join(tag + b"\0\5" for tag in tags) + frame[12:]


def transmit(nic: Vtnet, given: Given, **options: Any) -> None:
    for header, frame in given:
        assert nic.transmit([frame], headers=None if options or header == NONE else header, **options) == 1


def transmit_views(nic: Vtnet, given: Given) -> None:
    for header, frame in given:
        (view,) = nic.buffers(1, len(frame))
        view[:] = frame
        assert nic.transmit([view], headers=header) == 1
        view.release()


def transmit_by_flows(nic: Vtnet, given: Given) -> None:
    toeplitz = Toeplitz(bytes(40))
    frames, headers = [frame for _, frame in given], [header for header, _ in given]
    assert transmit_by_flow([nic.pairs[0].transmit], toeplitz, frames, headers=headers) == len(frames)


def pump(nic: Vtnet, given: Given, *, in_place: bool) -> None:
    port = ScriptPort(in_place=in_place, offloads=0x1FF)
    with Pump(nic, port, worker=None) as pumped:
        port.give(given)
        while pumped.poll():
            pass


WAYS: dict[str, Callable[[Vtnet, Given], None]] = {
    "bytes": transmit,
    "views": transmit_views,
    "checksum": lambda nic, given: transmit(nic, given, checksum=True),
    "header": lambda nic, given: transmit(nic, [(CSUM, frame) for _, frame in given]),
    "flow": transmit_by_flows,
    "deliver": lambda nic, given: pump(nic, given, in_place=False),
    "reserve": lambda nic, given: pump(nic, given, in_place=True),
}
BY_SEGMENTS: dict[str, Callable[[Vtnet, Given], None]] = {
    "mss": lambda nic, given: [transmit(nic, [one], mss=one[0].gso_size) for one in given] and None,
    "header": transmit,
    "views": transmit_views,
    "flow": transmit_by_flows,
    "deliver": WAYS["deliver"],
    "reserve": WAYS["reserve"],
}


def settled(nic: Vtnet, device: HandDevice) -> list[bytes]:
    """Return the frames that were sent, when each buffer is free again."""
    sent = [frame for _, frame in device.sent_headers()]
    queue = nic.pairs[0].transmit
    assert queue.reclaim() == 0
    for pool in (queue.small, queue.large):
        assert pool is None or (pool.nfree, pool.lent) == (pool.count, 0)
    return sent


def too_large(nic: Vtnet) -> int:
    return nic.pairs[0].transmit.statistics()["too_large"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("refuse", ["", SEGMENTATION, SEGMENTATION + " CSUM"], ids=["gso", "no gso", "nothing"])
def test_a_frame_beyond_the_mtu_is_not_sent(way: str, refuse: str) -> None:
    """The Ethernet header and up to two VLAN tags count on top."""
    device = HandDevice(mtu=1500)
    nic = attached(device, refuse=refuse)
    good = [sized(1514), sized(80), sized(1514, TPID), sized(1514, SERVICE, TPID)]
    bad = [sized(1515), sized(1515, TPID), sized(2000), sized(1515, SERVICE, TPID), sized(1514, TPID, TPID, TPID)]
    if not refuse:
        bad += [sized(2049), sized(9000)]
    WAYS[way](nic, [(NONE, frame) for one in zip(bad, good, strict=False) for frame in one])
    WAYS[way](nic, [(NONE, frame) for frame in bad])
    assert [len(frame) for frame in settled(nic, device)] == [len(frame) for frame in good]
    assert too_large(nic) == len(good) + len(bad)


@pytest.mark.parametrize("way", BY_SEGMENTS)
@pytest.mark.parametrize("refuse", ["", TSO, SEGMENTATION], ids=["uncut", "cut", "cut, no large buffers"])
@pytest.mark.parametrize(("size", "passes"), [(1448, True), (1449, False), (536, True), (2000, False)])
def test_frames_of_segments_are_judged_by_these(way: str, refuse: str, size: int, passes: bool) -> None:
    if way in ("views", "reserve") and refuse == SEGMENTATION:
        pytest.skip("no buffer is as large")
    device = HandDevice(mtu=1500)
    nic = attached(device, refuse=refuse)
    BY_SEGMENTS[way](nic, [(gso(size), tcp4(2900))] * 3)
    sent = settled(nic, device)
    assert too_large(nic) == (0 if passes else 3)
    assert sum(len(frame) - 66 for frame in sent) == (8700 if passes else 0)
    assert len(sent) == (0 if not passes else 3 * -(-2900 // size) if refuse else 3)


@pytest.mark.parametrize("way", ["header", "deliver", "reserve"])
def test_a_frame_of_one_segment_is_no_longer_than_itself(way: str) -> None:
    """Linux's gso_size of a forwarded frame may be more than is in it."""
    device = HandDevice(mtu=1500)
    nic = attached(device)
    header = NetHeader(flags=1, gso_type=1, gso_size=1460, hdr_len=70, csum_start=38, csum_offset=16)
    BY_SEGMENTS[way](nic, [(header, sized(1514, TPID)), (header, sized(1515, TPID))])
    assert [len(frame) for frame in settled(nic, device)] == [1518]
    assert too_large(nic) == 1


def test_without_the_feature_any_frame_is_sent() -> None:
    device = HandDevice(mtu=1500)
    nic = attached(device, refuse="MTU", mtu=1400)
    transmit(nic, [(NONE, sized(size)) for size in (1514, 3000, 65000)])
    assert [len(frame) for frame in settled(nic, device)] == [1514, 3000, 65000]


@pytest.mark.parametrize("refuse", ["", "MTU"])
def test_an_mtu_that_was_set_is_kept(refuse: str) -> None:
    """FreeBSD's interface has one MTU for all writers: its stack and its bpf(4) send nothing longer."""
    device = HandDevice(mtu=9000)
    nic = attached(device, refuse=refuse)
    frames = [(NONE, sized(size)) for size in (1414, 1415, 2014, 2015, 9014, 9015)]
    for mtu, restart, sizes in [
        (1400, False, [1414]),
        (2000, False, [1414, 1415, 2014]),
        (1400, True, [1414]),
        (9000, False, [1414, 1415, 2014, 2015, 9014]),
    ]:
        nic.set_mtu(mtu)
        if restart:
            nic.reset()
        before = too_large(nic)
        transmit(nic, frames)
        assert [len(frame) for frame in settled(nic, device)] == sizes
        assert too_large(nic) - before == len(frames) - len(sizes)
