"""What cannot be cut, what does not fit, and frames that lie."""

from __future__ import annotations

import itertools
import struct
import threading
from typing import Any

import pytest
from frames import Made, frames
from guardpages import Guarded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, PadN
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from virtio import VirtioError
from virtio.offload import SegmentError, segment, segment_into

TCPV4, UFO, TCPV6, USO, TUNNEL4, TUNNEL6, ECN = 1, 3, 4, 5, 0x20, 0x40, 0x80
V4 = {"src": "10.0.0.1", "dst": "10.0.0.2"}
V6 = {"src": "fd00::1", "dst": "fd00::2"}
MACS = {"src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:02"}
DATA = Raw(b"payload!" * 20)


def ether(*layers: Packet) -> bytes:
    packet: Packet = Ether(**MACS)
    for layer in layers:
        packet /= layer
    return bytes(packet)


def put(frame: bytes, at: int, *words: int) -> bytes:
    return frame[:at] + struct.pack(f">{len(words)}H", *words) + frame[at + 2 * len(words) :]


TCP4 = ether(IP(**V4), TCP(), DATA)
TCP6 = ether(IPv6(**V6), TCP(), DATA)
UDP4 = ether(IP(**V4), UDP(sport=1, dport=2), DATA)
UDP6 = ether(IPv6(**V6), UDP(sport=1, dport=2), DATA)
VXLAN4 = ether(IP(**V4), UDP(dport=4789), VXLAN(), Ether(**MACS), IP(**V4), TCP(), DATA)
VXLAN_UDP = ether(IP(**V4), UDP(dport=4789), VXLAN(), Ether(**MACS), IP(**V4), UDP(dport=9), DATA)
NESTED = ether(IP(**V4), UDP(dport=4789), VXLAN(), Ether(bytes(VXLAN4)))
LONG = [IPv6ExtHdrDestOpt(options=[PadN(optdata=b"x" * 250)]) for _ in range(4)]


def jumbogram() -> bytes:
    option = b"\x06\x00\xc2\x04" + struct.pack(">I", 8 + 20 + 70000)
    header = bytes(IPv6(**V6, plen=0, nh=0))
    return ether(Raw(b""))[:12] + b"\x86\xdd" + header + option + bytes(TCP()) + bytes(70000)


@pytest.mark.parametrize(
    ("frame", "mss", "gso_type", "reason", "value", "limit"),
    [
        (TCP4, 0, None, "size", 0, 1),
        (UDP4, 7, UFO, "size", 7, 8),
        (UDP4, 0, UFO, "size", 0, 8),
        (TCP4, 10, 0, "type", 0, None),
        (TCP4, 10, 2, "type", 2, None),
        (TCP4, 10, 0xFF, "type", 0xFF, None),
        (TCP4, 10, TCPV4 | TUNNEL4 | TUNNEL6, "type", 0x61, None),
        (b"", 10, None, "frame", 6, None),
        (TCP4[:13], 10, TCPV4, "frame", None, None),
        (TCP4[:53], 10, None, "frame", None, None),
        (TCP4[:-1], 10, None, "frame", None, None),
        (put(TCP4, 46, 0x4010), 10, TCPV4, "frame", None, None),
        (put(TCP4, 46, 0xF010)[:70], 10, TCPV4, "frame", None, None),
        (put(UDP4, 38, 7), 10, USO, "frame", None, None),
        (put(UDP4, 38, 169), 10, USO, "frame", None, None),
        (put(UDP4, 38, 167), 10, USO, "udp-length", 167, 168),
        (put(UDP4, 38, 9), 10, UFO, "udp-length", 9, 168),
        (put(VXLAN4, 38, 200), 10, None, "frame", None, None),
        (put(VXLAN4 + b"x", 16, 251), 10, None, "udp-length", 230, 231),
        (put(VXLAN_UDP, 88, 100), 10, None, "udp-length", 100, 168),
        (TCP4, 10, TCPV6, "network", 1, 2),
        (TCP6, 10, TCPV4, "network", 2, 1),
        (put(TCP4, 16, 61), 10, TCPV4, "ip-length", 61, 200),
        (put(TCP6, 18, 25), 10, TCPV6, "ip-length", 25, 180),
        (put(TCP4, 16, 39), 10, TCPV4, "frame", None, None),
        (put(TCP4, 16, 201), 10, TCPV4, "frame", None, None),
        (put(UDP6, 18, 0), 10, None, "frame", None, None),
        (ether(ARP(pdst="10.0.0.1")), 10, None, "network", 3, 1),
        (UDP4, 10, TCPV4, "protocol", 17, 6),
        (TCP4, 10, USO, "protocol", 6, 17),
        (TCP4, 16, UFO, "protocol", 6, 17),
        (ether(IP(**V4), ICMP(), DATA), 10, None, "protocol", 1, 17),
        (ether(IP(**V4, flags="MF"), TCP(), DATA), 10, None, "fragment", 0, None),
        (ether(IP(**V4, frag=3, proto=6), DATA), 10, TCPV4, "fragment", 24, None),
        (ether(IPv6(**V6), IPv6ExtHdrFragment(offset=2), TCP(), DATA), 10, TCPV6, "fragment", 16, None),
        (TCP4, 10, TCPV4 | TUNNEL4, "tunnel", 0, None),
        (VXLAN4, 10, TCPV4 | TUNNEL6, "tunnel", 1, None),
        (VXLAN_UDP, 16, UFO | TUNNEL4, "ufo-tunnel", 0x23, None),
        (UDP4, 50, USO | ECN, "type", 0x85, None),
        (UDP4, 50, UFO | ECN, "type", 0x83, None),
        (VXLAN_UDP, 50, USO | TUNNEL4 | ECN, "type", 0xA5, None),
        (NESTED, 50, None, "tunnel", 1, None),
        (NESTED, 50, USO | TUNNEL4, "tunnel", 1, None),
        (ether(IPv6(**V6, nh=51), AH(nh=6, icv=b"i" * 12, payloadlen=4), TCP(), DATA), 10, None, "extension", 51, None),
        (ether(IPv6(**V6), IPv6ExtHdrFragment(), TCP(), DATA), 10, None, "extension", 44, None),
        (jumbogram(), 1460, None, "jumbo", 70028, 0xFFFF),
        (ether(IPv6(**V6), *LONG, TCP(), DATA), 10, None, "headers", None, 1024),
        (TCP4[:12] + b"\x81\0\0\1" * 300 + TCP4[12:], 10, None, "headers", None, 1024),
        (ether(IP(**V4), TCP()), 0, None, "size", 0, 1),
    ],
)  # fmt: skip
def test_refused(
    frame: bytes, mss: int, gso_type: int | None, reason: str, value: int | None, limit: int | None
) -> None:
    for form in (frame, [frame[:9], frame[9:50], frame[50:]], [b"", frame]):
        with pytest.raises(SegmentError) as caught:
            segment(form, mss, gso_type)
        error = caught.value
        assert isinstance(error, VirtioError)
        assert error.reason == reason
        if value is not None:
            assert error.value == value
            assert str(value) in str(error) or f"{value:#x}" in str(error) or reason in ("network", "tunnel") \
                or reason == "frame"  # fmt: skip
        if reason != "frame":
            assert error.limit == limit
        with pytest.raises(SegmentError):
            segment_into(form, mss, [bytearray(2000)], gso_type)


def test_headers_at_the_limit() -> None:
    def vlans(n: int) -> bytes:
        plain = ether(IP(**V4), TCP(options=[("NOP", None)] * 4), DATA)
        return plain[:12] + b"\x81\0\0\1" * n + plain[12:]  # headers of 58 + 4 n bytes

    for pieces in (False, True):
        fits, beyond = vlans(241), vlans(242)
        assert len(segment([fits[:700], fits[700:]] if pieces else fits, 100).headers) == 2 * 1022
        with pytest.raises(SegmentError, match="headers of at least 1026 bytes"):
            segment([beyond[:700], beyond[700:]] if pieces else beyond, 100)


def test_too_many_segments() -> None:
    assert len(segment(TCP4, 10, max_segments=16)) == 16
    with pytest.raises(SegmentError, match=r"16 segments \(limit 15\)") as caught:
        segment(TCP4, 10, max_segments=15)
    assert (caught.value.reason, caught.value.value, caught.value.limit) == ("count", 16, 15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gso_size": -1}, "gso_size -1 out of range"),
        ({"gso_size": 2**32}, "gso_size 4294967296 out of range"),
        ({"gso_size": 1, "gso_type": 256}, "gso_type 256 out of range"),
        ({"gso_size": 1, "max_segments": 0}, "max_segments 0 out of range"),
        ({"gso_size": 1, "checksum": "none"}, "checksum 'none' is neither"),
    ],
)
def test_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segment(TCP4, **arguments)


def test_buffers_too_small_or_too_few(simd: str, guarded: Guarded) -> None:
    want = segment(TCP4, 70).packets()
    sizes = [len(packet) for packet in want]
    assert sizes == [124, 124, 74]
    for short in range(3):
        buffers = [bytearray(b"\xee" * (size - (i == short))) for i, size in enumerate(sizes)]
        message = rf"segment {short} of {sizes[short]} bytes does not fit into its buffer of {sizes[short] - 1}"
        with pytest.raises(SegmentError, match=message) as caught:
            segment_into(TCP4, 70, buffers)
        assert (caught.value.reason, caught.value.limit) == ("room", sizes[short] - 1)
        assert all(set(buffer) == {0xEE} for buffer in buffers)
    with pytest.raises(SegmentError, match="3 segments do not fit into 2 buffers"):
        segment_into(TCP4, 70, [bytearray(200)] * 2)
    with pytest.raises(SegmentError, match="does not fit into its buffer of 0"):
        segment_into(TCP4, 70, [[], [], []])
    with pytest.raises(BufferError):
        segment_into(TCP4, 70, [bytes(200)] * 3)
    assert segment_into(TCP4, 70, [bytearray(200)] * 9) == sizes
    for i, size in enumerate(sizes):  # exactly enough, where a byte more kills
        for place in (guarded.first, guarded.last):
            last = place(bytes(size))
            buffers = [bytearray(size) for size in sizes]
            assert segment_into(TCP4, 70, [*buffers[:i], last, *buffers[i + 1 :]]) == sizes
            assert bytes(last) == want[i]
            halves = [last[: size // 2], last[size // 2 :]]
            assert segment_into(TCP4, 70, [*buffers[:i], halves, *buffers[i + 1 :]]) == sizes
            assert bytes(last) == want[i]


SLOW = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
TYPES = [None, TCPV4, UFO, TCPV6, USO, TCPV4 | TUNNEL4, TCPV6 | TUNNEL6, USO | TUNNEL4, TCPV4 | ECN]


@SLOW
@given(
    frames(l3=("ipv4", "ipv6", "arp"), fragments=True, max_payload=120),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=4),
    st.integers(0, 2**16),
    st.integers(0, 80),
    st.sampled_from(TYPES),
    st.lists(st.integers(0, 2**16), max_size=4),
)
def test_lies(
    made: Made, changes: list[tuple[int, int]], cut: int, mss: int, gso_type: int | None, cuts: list[int]
) -> None:
    """Bytes changed anywhere, frames cut off anywhere: no byte beyond the frame is read, and what is cut is sound."""
    data = bytearray(made.data)
    for place, value in changes:
        data[place % min(len(data), 120)] = value
    if cut % 3 == 0:
        del data[cut % len(data) :]
    guard = Guarded((len(data) >> 12) + 1)
    for place_it in (guard.first, guard.last):
        view = place_it(bytes(data))
        try:
            got = segment(view, mss, gso_type)
        except SegmentError as error:
            reason = error.reason
            with pytest.raises(SegmentError) as again:
                segment([view[:20], view[20:]], mss, gso_type)
            assert again.value.reason == reason
            continue
        packets = got.packets()
        assert sum(len(views[1]) for views in got) <= len(data)
        assert all(len(packet) <= len(data) for packet in packets)
        places = [0, *sorted(at % (len(data) + 1) for at in cuts), len(data)]
        pieces = [view[a:b] for a, b in itertools.pairwise(places)]
        assert segment(pieces, mss, gso_type).packets() == packets


@pytest.mark.threads
def test_threads_share_segments() -> None:
    frame = ether(IP(**V4), TCP(), Raw(bytes(range(256)) * 40))
    segments = segment([frame[i : i + 37] for i in range(0, len(frame), 37)], 100)
    want = segments.packets()
    wrong: list[int] = []

    def work() -> None:
        for _ in range(50):
            if segments.packets() != want or [b"".join(views) for views in segments] != want:
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_many_pieces() -> None:
    """A frame of pieces of one byte, some empty, is read once, not once for each segment."""
    frame = ether(IP(**V4), TCP(), Raw(bytes(60000)))
    pieces = [frame[i : i + 1] for i in range(len(frame))] + [b""]
    assert segment(pieces, 1).packets() == segment(frame, 1).packets()


def test_not_made_by_hand() -> None:
    from virtio.offload import Segments

    with pytest.raises(TypeError, match=r"come from segment\(\)"):
        Segments()
    with pytest.raises(TypeError):
        segment("text", 5)  # type: ignore[arg-type]


def test_hop_by_hop_is_repeated() -> None:
    frame = ether(IPv6(**V6), IPv6ExtHdrHopByHop(options=[PadN(optdata=b"abcd")]), TCP(), DATA)
    assert all(packet[54:62] == frame[54:62] for packet in segment(frame, 50).packets())
