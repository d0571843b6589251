"""What DPDK's driver leaves undone: testpmd's csum engine, whose checksums and segments are made by us.

A port gives frames to testpmd, which sends them on and says "checksum this, cut that" in their headers. What comes out
behind the device is looked at with scapy: by a port that takes nothing undone, and by one that takes all of it.
"""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest
from frames import IP, TCP, UDP, Ether, IPv6, Packet, Raw
from testpmd import LARGE, MODES, TWO_CPUS, Testpmd
from waiting import wait_for

from virtio import offload
from virtio.constants import NetHeaderFlag
from virtio.net import NetDevice
from virtio.net.ports import CallPort
from virtio.offload import NetHeader
from virtio.vhost_user import Server

pytestmark = TWO_CPUS
ALL = 0x1FF  # every VIRTIO_OFFLOAD_*: the port takes frames as they are
SEGMENT = 1000  # bytes of payload
COUNT = 60  # frames of a kind


class Echo:
    """A port's two functions: frames of these packets go to testpmd once it forwards; what it sends is kept."""

    def __init__(self, packets: list[Packet], offloads: int) -> None:
        self.waiting = [bytes(packet) for packet in packets]
        self.open = threading.Event()
        self.got: list[tuple[NetHeader, bytes]] = []
        self.port = CallPort(self.got.extend, self.give, offloads=offloads)

    def give(self, limit: int) -> list[bytes]:
        if not self.open.is_set():
            return []
        now, self.waiting = self.waiting[:limit], self.waiting[limit:]
        return now


def packets(size: int) -> list[Packet]:
    """TCP and UDP over IPv4 and IPv6 in turn, up to size bytes of payload; numbered by port, with checksums wrong."""
    chance = random.Random(size)
    made = []
    for i in range(4 * COUNT):
        low = IP(src="10.1.2.3", dst="10.1.2.4") if i & 1 else IPv6(src="fd00::1", dst="fd00::2")
        high = TCP(sport=i, dport=9, seq=i << 16, flags="PA", chksum=1) if i & 2 else UDP(sport=i, dport=9, chksum=1)
        data = Raw(chance.randbytes(chance.randint(size // 3, size)))
        made.append(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / low / high / data)
    return made


def through_testpmd(path: Path, mode: str, sent: list[Packet], offloads: int, cut: bool) -> Any:
    """Send the packets round; return what came back, and the transmit queue's figures."""
    echo = Echo(sent, offloads)
    sock = str(path / "s")
    with (
        NetDevice(echo.port, worker="own") as device,
        Server(device, sock) as server,
        Testpmd(sock, MODES[mode], more=LARGE) as testpmd,
    ):
        testpmd.ask("port stop 0", "Done")
        for protocol in ("tcp", "udp"):
            testpmd.ask(f"csum set {protocol} hw 0", f"{protocol.upper()} checksum offload is hw")
        if cut:  # DPDK 22.11 says "TSO segment", 24.11 "segment"
            testpmd.ask(f"tso set {SEGMENT} 0", f"egment size for non-tunneled packets is {SEGMENT}")
        testpmd.ask("port start 0", "Done")
        testpmd.forward("csum")
        echo.open.set()
        wait_for(lambda: device.statistics()["tx0"]["frames"] >= len(sent) or device.reason, 30)
        testpmd.stop()
        assert (device.reason, list(device.refused), server.error) == (None, [], None)
        figures = device.statistics()["tx0"]
        assert figures["dropped"] == {}
        return echo.got, figures


def payload(packet: Packet) -> bytes:
    return bytes(packet[TCP if TCP in packet else UDP].payload)


def check_checksums(frame: bytes) -> Packet:
    """The frame's checksums are right, as scapy counts; 0 and 0xffff are one number. Return the packet."""
    packet = Ether(frame)
    again = packet.copy()
    layers = [layer for layer in (IP, TCP, UDP) if layer in packet]
    for layer in layers:
        del again[layer].chksum
    again = Ether(bytes(again))
    assert [again[layer].chksum % 0xFFFF for layer in layers] == [packet[layer].chksum % 0xFFFF for layer in layers]
    return packet


@pytest.mark.parametrize("mode", ["split", "packed", "packed-in-order"])
def test_checksums_are_made(mode: str, tmp_path: Path) -> None:
    sent = packets(1400)
    got, figures = through_testpmd(tmp_path, mode, sent, 0, False)
    assert figures["csum"] == len(sent)
    assert len(got) == len(sent)
    for before, (header, frame) in zip(sent, got, strict=True):
        assert header.flags == 0
        after = check_checksums(frame)
        assert payload(after) == payload(before)


@pytest.mark.parametrize("mode", ["split", "packed", "packed-in-order"])
def test_segments_are_made(mode: str, tmp_path: Path) -> None:
    """Up to 8000 bytes; of what TCP sends come segments of 1000, each with a checksum, in order; UDP is not cut."""
    sent = packets(8000)
    got, figures = through_testpmd(tmp_path, mode, sent, 0, True)
    assert figures["gso"] == 2 * COUNT
    left = iter(got)
    for before in sent:
        data, whole = b"", payload(before)
        while len(data) < len(whole):
            header, frame = next(left)
            assert (header.flags, header.gso_type) == (0, 0)
            after = check_checksums(frame)
            if TCP in before:
                assert after[TCP].seq == before[TCP].seq + len(data)
                assert len(payload(after)) == min(SEGMENT, len(whole) - len(data))
            data += payload(after)
        assert data == whole
    assert next(left, None) is None


@pytest.mark.parametrize("mode", ["split", "packed"])
def test_a_port_that_takes_them_has_frames_as_they_are(mode: str, tmp_path: Path) -> None:
    sent = packets(8000)
    got, _ = through_testpmd(tmp_path, mode, sent, ALL, True)
    assert len(got) == len(sent)
    for before, (header, frame) in zip(sent, got, strict=True):
        assert header.flags & NetHeaderFlag.NEEDS_CSUM
        assert (header.gso_type != 0) == (TCP in before)
        assert header.gso_size == (SEGMENT if TCP in before else 0)
        whole = bytearray(frame)
        offload.complete_checksum(whole, header.csum_start, header.csum_offset)
        if TCP not in before:
            check_checksums(bytes(whole))
        assert payload(Ether(bytes(whole))) == payload(before)
