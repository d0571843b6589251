"""Offloads of vtnet: whatever the device can do, the same packets leave; judged by a device written from the text."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from frames import Made, frames
from hypothesis import event, given, settings
from hypothesis import strategies as st
from naive_device import all_right, transmit
from netdev import HandDevice, attached
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

from virtio.constants import NetFeature as N
from virtio.net.vtnet import Vtnet
from virtio.offload import GsoType, NetHeader, TransmitOutcome, TransmitReason, prepare_transmit, segment

TUNNEL = int(N.HOST_UDP_TUNNEL_GSO | N.HOST_UDP_TUNNEL_GSO_CSUM)
HOST = int(N.CSUM | N.HOST_TSO4 | N.HOST_TSO6 | N.HOST_ECN | N.HOST_UFO | N.HOST_USO)
# sets of features that a device offers of those
SETS = {
    "all": HOST | TUNNEL,
    "no tunnels": HOST,
    "checksums": int(N.CSUM),
    "nothing": 0,
    "IPv4 only": int(N.CSUM | N.HOST_TSO4),
    "IPv6 and ECN": int(N.CSUM | N.HOST_TSO6 | N.HOST_ECN),
    "USO": int(N.CSUM | N.HOST_USO),
    "no ECN": HOST & ~int(N.HOST_ECN),
}


class Tunnels(HandDevice):
    features = HandDevice.features | TUNNEL


@cache
def nic_with(name: str) -> tuple[HandDevice, Vtnet]:
    device = Tunnels(mtu=9100, queue_size=512, withhold=(HOST | TUNNEL) & ~SETS[name] | N.MRG_RXBUF | N.GUEST_CSUM)
    return device, attached(device, want=TUNNEL)


def on_the_wire(device: HandDevice) -> list[bytes]:
    """What leaves a device that does what its headers say."""
    return [packet for header, frame in device.sent_headers() for packet in transmit(header, frame)]


def leaving(name: str, frame: bytes, **how: Any) -> list[bytes]:
    device, nic = nic_with(name)
    assert nic.transmit([frame], **how) == 1
    return on_the_wire(device)


@settings(deadline=None)
@given(made=frames(fragments=True, max_payload=400), mss=st.sampled_from([0, 0, 1, 36, 100, 399]), data=st.data())
def test_every_device_sends_the_same(made: Made, mss: int, data: st.DataObject) -> None:
    frame = bytearray(made.data)
    target = made.inner or made.outer
    at = target.l4 + {"tcp": 16, "udp": 6, "sctp": 8, "icmp": 2, "icmpv6": 2}.get(target.l4_kind, 0)
    if at + 2 <= len(frame) and target.l4_kind != "later":
        frame[at : at + 2] = data.draw(st.binary(min_size=2, max_size=2))
    wanted = leaving("nothing", bytes(frame), mss=mss, checksum=True, layer="inner")
    prepared = prepare_transmit(bytearray(frame), 0, mss, layer="inner")
    event(prepared.reason.counter)
    if prepared.outcome is TransmitOutcome.REFUSED:
        assert wanted == []
    else:
        assert b"".join(packet[target.payload :] for packet in wanted).startswith(
            made.data[target.payload : target.end]
        )
        for packet in wanted:
            if len(wanted) > 1 or not made.outer.padded:
                assert all_right(packet, made, len(packet))
    for name in SETS:
        assert leaving(name, bytes(frame), mss=mss, checksum=True, layer="inner") == wanted, name


@settings(deadline=None)
@given(made=frames(padding=0, l4=("tcp", "udp"), extensions=0, max_payload=300), mss=st.sampled_from([0, 50]))
def test_every_device_sends_the_same_of_what_a_header_says(made: Made, mss: int) -> None:
    """Frames that come with a header, as from a TAP: executed here as far as the device does not."""
    frame = bytearray(made.data)
    prepared = prepare_transmit(frame, HOST | TUNNEL, mss, layer="inner")
    if prepared.outcome is not TransmitOutcome.SENT_AS:
        return
    wanted = transmit(prepared.header, frame)
    for name in SETS:
        assert leaving(name, bytes(frame), headers=prepared.header) == wanted, name


def test_unasked_a_frame_is_sent_as_it_is() -> None:
    frame = bytes(Ether() / IP(src="1.2.3.4", dst="1.2.3.5") / UDP() / (b"x" * 100))
    damaged = frame[:40] + b"\xff\xff" + frame[42:]
    for name in SETS:
        assert leaving(name, damaged) == [damaged]


V4, V6 = IP(src="10.0.0.1", dst="10.0.0.2", id=7), IPv6(src="fd00::1", dst="fd00::2")
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
LARGE = bytes(range(256)) * 250


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("network", [V4, V6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("tags", [0, 1, 2])
@pytest.mark.parametrize(("transport", "mss"), [(TCP(flags="PA"), 1440), (TCP(flags="AC"), 9000), (UDP(), 1400)],
                         ids=["TCP", "CWR", "UDP"])  # fmt: skip
def test_large_frames(name: str, network: Any, tags: int, transport: Any, mss: int) -> None:
    """64000 bytes are segments of the mss, by the device or by us, and the counters say by whom."""
    ether = ETHER
    for vid in range(tags):
        ether = ether / Dot1Q(vlan=vid + 1)
    frame = bytes(ether / network / transport / LARGE)
    device, nic = nic_with(name)
    before = nic.pairs[0].transmit.statistics()
    assert nic.transmit([frame], mss=mss) == 1
    after = nic.pairs[0].transmit.statistics()
    packets = on_the_wire(device)
    assert packets == [b"".join(pieces) for pieces in segment(frame, mss)]
    tcp, v4 = isinstance(transport, TCP), isinstance(network, IP)
    needs = N.CSUM | ((N.HOST_TSO4 if v4 else N.HOST_TSO6) if tcp else N.HOST_USO)
    if tcp and "C" in str(transport.flags):
        needs |= N.HOST_ECN
    by_device = SETS[name] & needs == needs
    count = -(-len(LARGE) // mss)
    assert after["tso"] - before["tso"] == by_device
    assert after["segments"] - before["segments"] == (0 if by_device else count)
    assert after["opackets"] - before["opackets"] == (1 if by_device else count)


@pytest.mark.parametrize("name", ["all", "nothing"])
def test_frames_that_are_in_buffers_already(name: str) -> None:
    device, nic = nic_with(name)
    frame = bytes(ETHER / V4 / TCP() / LARGE[:1400])
    views = nic.buffers(2, len(frame))
    for view in views:
        view[:] = frame
    nic.transmit(views[:1], checksum=True)
    nic.transmit(views[1:], mss=500)
    assert on_the_wire(device) == [frame, *(b"".join(pieces) for pieces in segment(frame, 500))]


@pytest.mark.parametrize("separate", [False, True])
def test_segments_are_all_sent_or_none(separate: bool) -> None:
    """A frame of which half is in the queue could not be given back to whoever sends it."""
    withhold = [*(bit.name for bit in N if bit & HOST), "GSO", *(["ANY_LAYOUT", "INDIRECT_DESC"] if separate else [])]
    device = HandDevice(withhold=withhold, queue_size=128 if separate else 64)
    nic = attached(device, legacy=separate)
    frame = bytes(ETHER / V4 / TCP() / LARGE[:30000])
    assert nic.transmit([frame] * 5, mss=1000) == 2  # 30 segments each
    assert nic.pairs[0].transmit.reclaim() == 60
    assert device.sent() == [b"".join(pieces) for pieces in segment(frame, 1000)] * 2
    assert nic.transmit([frame] * 3, mss=1000) == 2
    device.sent()


def test_more_segments_than_the_queue_has_descriptors() -> None:
    device = HandDevice(withhold=HOST, queue_size=64)
    nic = attached(device)
    frames_ = [bytes(ETHER / V4 / TCP() / LARGE[:6400]), bytes(ETHER / V4 / TCP() / LARGE[:6401])]
    assert nic.transmit(frames_[:1], mss=100) == 1
    assert len(device.sent()) == 64
    assert nic.transmit(frames_[1:], mss=100) == 1
    assert device.sent() == []
    counts = nic.pairs[0].transmit.statistics()
    assert counts["refused"] == 1 and counts["segments"] == 64


def test_segments_larger_than_a_buffer() -> None:
    device = HandDevice(withhold=HOST)
    nic = attached(device, refuse="MTU")
    assert nic.transmit([bytes(ETHER / V4 / TCP() / LARGE)], mss=3000) == 1
    assert device.sent() == [] and nic.pairs[0].transmit.statistics()["refused"] == 1


def test_fragments_of_udp() -> None:
    """UFO, which only a header can ask for: frames from a TAP of an old kernel."""
    frame = bytearray(bytes(ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / UDP() / LARGE[:5000]))
    header = NetHeader(flags=1, gso_type=GsoType.UDP, gso_size=1480, hdr_len=42, csum_start=34, csum_offset=6)
    prepare_transmit(frame, int(N.CSUM))
    wanted = [b"".join(pieces) for pieces in segment(bytes(frame), 1480, GsoType.UDP)]
    assert leaving("nothing", bytes(frame), headers=header) == wanted
    device, nic = nic_with("all")
    nic.transmit([bytes(frame)], headers=header)
    assert device.sent_headers() == [(header, bytes(frame))]


def test_reasons_are_counted_once_a_frame() -> None:
    device = HandDevice(withhold=int(N.HOST_TSO4))
    nic = attached(device, refuse="MTU")
    tcp = bytes(ETHER / V4 / TCP() / LARGE[:3000])
    arp = bytes(Ether(type=0x88B5) / (b"x" * 60))
    assert nic.transmit([tcp, arp], checksum=True) == 2
    assert nic.transmit([tcp, arp], mss=1000) == 2
    reasons = {reason: count for reason, count in nic.pairs[0].transmit.reasons().items() if count}
    assert reasons == {
        TransmitReason.CSUM_OFFLOADED: 1,
        TransmitReason.CSUM_UNKNOWN_ETHTYPE: 2,
        TransmitReason.TSO_SOFTWARE: 1,
    }
    counts = nic.statistics()
    assert counts["tx_csum_unknown_ethtype"] == 2 and counts["tx_tso_software"] == 1
    assert counts["tx_csum_offloaded"] == 1 and counts["txq0.refused"] == 2
