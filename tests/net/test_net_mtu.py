"""The MTU that was negotiated: no longer frame comes to the driver, by whatever port (VIRTIO 1.4, 5.1.4.1)."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from formats import FORMATS
from mtu_frames import SERVICE, TPID, gso, tcp4
from nic import ALL, PACKED, RawNic, attach
from undone import NONE, payload

from bench.kernels.devicebench import ScriptPort
from virtio.constants import NetFeature as F
from virtio.net.device import NetDevice
from virtio.net.ports import Cable, CallPort, Generator, Loopback, PcapReader, Port
from virtio.offload import NetHeader

GUEST = F.GUEST_TSO4 | F.GUEST_TSO6 | F.GUEST_ECN | F.GUEST_UFO | F.GUEST_USO4 | F.GUEST_USO6


def tagged(size: int, *tags: bytes) -> bytes:
    """A frame of ``size`` bytes besides its tags."""
    frame = payload(size)
    return frame[:12] + b"".join(tag + b"\0\5" for tag in tags) + b"\x88\xb5" + frame[14:]


def mtu_nic(port: Port, *, packed: bool = False, without: int = 0, mtu: int = 1500, **options: Any) -> RawNic:
    device = NetDevice(port, mtu=mtu, **options)
    nic = attach(device, ALL & ~PACKED & ~int(without) | (PACKED if packed else 0))
    nic.post(100)
    return nic


def dropped(nic: RawNic) -> dict[str, int]:
    found: dict[str, int] = nic.device.statistics()["rx0"]["dropped"]
    return found


@FORMATS
@pytest.mark.parametrize("promiscuous", [True, False], ids=["all", "filtered"])
@pytest.mark.parametrize("in_place", [False, True], ids=["deliver", "reserve"])
@pytest.mark.parametrize("without", [0, int(GUEST), int(F.MRG_RXBUF | GUEST)], ids=["gso", "no gso", "whole"])
def test_a_frame_beyond_the_mtu_is_dropped(packed: bool, promiscuous: bool, in_place: bool, without: int) -> None:
    """The Ethernet header and VLAN tags count on top."""
    port = ScriptPort(in_place=in_place, offloads=0x1FF)
    nic = mtu_nic(port, packed=packed, without=without)
    if not promiscuous:
        assert nic.control(0, 0, b"\0") == nic.control(0, 1, b"\1") == nic.control(0, 2, b"\1") == 0
        assert nic.control(2, 0, b"\5\0") == 0
    good = [
        tagged(1514),
        tagged(60),
        tagged(1514, TPID),
        tagged(1514, SERVICE, TPID),
    ]
    bad = [tagged(1515), tagged(1515, TPID), tagged(1519), tagged(1515, SERVICE, TPID), tagged(2000)]
    frames = [frame for pair in zip(bad, [*good, good[0]], strict=True) for frame in pair]
    port.give([(NONE, frame) for frame in frames])
    while nic.device.poll():
        pass
    assert [frame for _, frame in nic.receive()] == [*good, good[0]]
    assert dropped(nic) == {"mtu": 5}


def test_without_the_feature_any_frame_passes() -> None:
    port = ScriptPort()
    nic = mtu_nic(port, without=int(F.MTU))
    port.give([(NONE, payload(3000))])
    nic.device.poll()
    assert [len(frame) for _, frame in nic.receive()] == [3000]


@pytest.mark.parametrize("in_place", [False, True], ids=["deliver", "reserve"])
@pytest.mark.parametrize("cut", [False, True], ids=["uncut", "cut"])
@pytest.mark.parametrize(("size", "passes"), [(1448, True), (1449, False), (32, True), (9000, False)])
def test_frames_of_segments_are_judged_by_these(in_place: bool, cut: bool, size: int, passes: bool) -> None:
    port = ScriptPort(in_place=in_place, offloads=0x1FF)
    nic = mtu_nic(port, without=int(GUEST) if cut else 0)
    port.give([(gso(size), tcp4(2900))])
    while nic.device.poll():
        pass
    got = nic.receive()
    if in_place and cut:  # no TAP gives types to a guest that takes none; it cuts off what is beyond its room
        assert got == [] and dropped(nic) == {"segment": 1}
        return
    assert bool(got) == passes
    assert dropped(nic) == ({} if passes else {"mtu": 1})
    if passes and not cut:
        assert [frame for _, frame in got] == [tcp4(2900)] and got[0][0].gso_size == size
    if passes and cut:
        assert b"".join(frame[66:] for _, frame in got) == tcp4(2900)[66:]
        assert max(len(frame) for _, frame in got) == 66 + size


@pytest.mark.parametrize(
    ("header", "passes"),
    [
        (NetHeader(flags=1, gso_type=5, gso_size=1472, csum_start=34, csum_offset=6), True),  # USO
        (NetHeader(flags=1, gso_type=5, gso_size=1473, csum_start=34, csum_offset=6), False),
        (NetHeader(flags=1, gso_type=3, gso_size=1480, csum_start=34, csum_offset=6), True),  # UFO: fragments
        (NetHeader(flags=1, gso_type=3, gso_size=1488, csum_start=34, csum_offset=6), False),
        (NetHeader(gso_type=1, gso_size=1448, hdr_len=66), True),
        (NetHeader(gso_type=1, gso_size=1460, hdr_len=66), False),
    ],
)
def test_other_kinds_of_segments(header: NetHeader, passes: bool) -> None:
    port = ScriptPort()
    nic = mtu_nic(port)
    port.give([(header, tcp4(2900))])
    nic.device.poll()
    assert bool(nic.receive()) == passes
    assert dropped(nic) == ({} if passes else {"mtu": 1})


def write_pcap(path: Path, frame: bytes) -> None:
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    path.write_bytes(head + struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame)


@pytest.mark.parametrize("kind", ["call", "cable", "loopback", "generator", "pcap"])
def test_whatever_the_port(kind: str, tmp_path: Path) -> None:
    frame = payload(3000)
    path = tmp_path / "long.pcap"
    write_pcap(path, frame)
    given = [frame]
    ports: dict[str, Any] = {
        "call": lambda: CallPort(receive=lambda limit: [given.pop()] if given else []),
        "loopback": Loopback,
        "generator": lambda: Generator(3000, count=1),
        "pcap": lambda: PcapReader(str(path)),
        "cable": lambda: Cable(),
    }
    port = ports[kind]()
    peer = None
    if kind == "cable":
        port, other = port
        peer = attach(NetDevice(other))
    nic = mtu_nic(port)
    if kind in ("cable", "loopback"):
        sender = peer or nic
        sender.send([(NONE, frame)])
        sender.device.poll()
        assert len(sender.reap()) == 1
    while nic.device.poll():
        pass
    assert nic.receive() == []
    assert dropped(nic) == {"mtu": 1}
    nic.device.close()


@pytest.mark.parametrize("live", [False, True])
def test_the_mtu_that_a_vhost_user_frontend_says(live: bool) -> None:
    """NET_SET_MTU: what its driver was told may be less than the device's own."""
    port = ScriptPort()
    device = NetDevice(port, mtu=9000)
    nic = RawNic(device, wanted=ALL & ~PACKED)
    if live:
        nic.attach()
    assert device.frontend_mtu(1500)
    if not live:  # as QEMU does: before the first ring starts
        nic.attach()
    nic.post(20)
    port.give([(NONE, payload(1515)), (NONE, payload(1514))])
    device.poll()
    assert [len(frame) for _, frame in nic.receive()] == [1514]
    assert not device.frontend_mtu(9001) and not device.frontend_mtu(67)
