"""Segments, byte for byte as scapy builds them."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from frames import Made, frames
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from offloads import each_simd, naive_sum
from scapy.layers.inet import IP, TCP, UDP, IPOption_LSRR, IPOption_NOP, IPOption_RR
from scapy.layers.inet6 import MIP6MH_BRR, IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting, PadN
from scapy.layers.ipsec import AH
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from bench.kernels.segmentbench import segment_gather_lists
from virtio.offload import SegmentError, Segments, segment, segment_into, verify

TCPV4, UFO, TCPV6, USO, TUNNEL4, TUNNEL6, ECN = 1, 3, 4, 5, 0x20, 0x40, 0x80
SLOW = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def ip_layers(packet: Packet) -> list[Packet]:
    found, layer = [], packet
    while layer:
        if isinstance(layer, IP):
            found.append(layer)
        layer = layer.payload
    return found


def transport(packet: Packet) -> Packet:
    """The innermost TCP or UDP header."""
    found, layer = None, packet
    while layer:
        if isinstance(layer, (TCP, UDP)):
            found = layer
        layer = layer.payload
    assert found is not None
    return found


def expected(
    packet: Packet, payload: bytes, mss: int, *, fixed: bool = False, fixed_outer: bool = False
) -> list[bytes]:
    """Cut with nothing but scapy: a copy of the packet for each piece of the payload, whose lengths and checksums it
    computes."""
    segments = []
    starts = range(0, len(payload), mss)
    for i, start in enumerate(starts):
        copy = packet.copy()
        header = transport(copy)
        header.remove_payload()
        header.add_payload(Raw(payload[start : start + mss]))
        if isinstance(header, TCP):
            header.seq = (header.seq + start) % 2**32
            flags = int(header.flags)
            if i:
                flags &= ~0x80
            if i < len(starts) - 1:
                flags &= ~0x09
            header.flags = flags
        layers = ip_layers(copy)
        tunnel = len([layer for layer in layers_of(copy) if isinstance(layer, (IP, IPv6))]) == 2
        for layer in layers:
            outer = tunnel and layer is first_network(copy)
            if not (fixed_outer if outer else fixed):
                layer.id = (layer.id + i) % 2**16
        segments.append(bytes(copy))
    return segments


def layers_of(packet: Packet) -> list[Packet]:
    found, layer = [], packet
    while layer:
        found.append(layer)
        layer = layer.payload
    return found


def first_network(packet: Packet) -> Packet:
    return next(layer for layer in layers_of(packet) if isinstance(layer, (IP, IPv6)))


def with_checksums(made: Made, data: bytes) -> bytes:
    """The same packet, transport checksums computed here."""
    result = bytearray(data)
    for layer in filter(None, (made.inner, made.outer)):  # the outer one covers the inner one
        field = layer.l4 + (16 if layer.l4_kind == "tcp" else 6)
        if layer is made.outer and made.inner and result[field : field + 2] == b"\0\0":
            continue
        size = 4 if layer.l3_kind == "ipv4" else 16
        result[field : field + 2] = b"\0\0"
        behind = bytes(result[layer.l4 :])
        pseudo = data[layer.src :][:size] + data[layer.dst :][:size] + bytes([0, layer.protocol])
        value = naive_sum(pseudo + len(behind).to_bytes(4, "big") + behind) ^ 0xFFFF
        if value == 0 and layer.l4_kind == "udp":
            value = 0xFFFF
        result[field : field + 2] = value.to_bytes(2, "big")
    return bytes(result)


def other_addresses(made: Made) -> bool:
    """Whether scapy takes other addresses for the pseudo header: a source route's that is done, the first of two home
    address options."""
    return with_checksums(made, made.data[: made.outer.end]) != made.data[: made.outer.end]


def partial(made: Made, full: bytes, header: int) -> bytes:
    """The segment with the pseudo header's sum in place of its transport checksum."""
    layer = made.inner or made.outer
    field = layer.l4 + (16 if layer.l4_kind == "tcp" else 6)
    assert header == layer.payload
    checksum = full[field] << 8 | full[field + 1]
    rest = naive_sum(full[layer.l4 : field] + b"\0\0" + full[field + 2 :])
    pseudo = ((0xFFFF - checksum) - rest) % 0xFFFF or 0xFFFF
    return full[:field] + pseudo.to_bytes(2, "big") + full[field + 2 :]


def refused(made: Made) -> bool:
    """Whether headers are there that cannot be repeated."""
    return any(isinstance(layer, (AH, IPv6ExtHdrFragment, MIP6MH_BRR)) for layer in layers_of(made.packet))


def cut_of(made: Made) -> tuple[bytes, int]:
    layer = made.inner or made.outer
    return made.data[layer.payload : layer.end], layer.payload


def split(data: bytes, cuts: list[int]) -> list[memoryview]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [memoryview(data)[a:b] for a, b in itertools.pairwise(places)]


SIZES = st.one_of(st.integers(20, 700), st.sampled_from([64, 100, 200, 599, 600, 601, 0xFFFF]))
FRAMES = frames(l4=("tcp", "udp"), max_payload=600)


@st.composite
def sized(draw: st.DrawFn) -> tuple[Made, int]:
    """A frame and a segment size: often a divisor of the payload, or next to one."""
    made = draw(FRAMES)
    payload, _ = cut_of(made)
    assume(payload)
    if draw(st.booleans()):
        return made, draw(SIZES)
    part = max(1, len(payload) // draw(st.integers(1, 9)))
    return made, max(1, part + draw(st.integers(-1, 1)))


@SLOW
@given(sized(), st.booleans(), st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_as_scapy_builds_them(
    drawn: tuple[Made, int], fixed: bool, fixed_outer: bool, bare: bool, garbage: random.Random
) -> None:
    made, mss = drawn
    payload, header = cut_of(made)
    if made.inner and bare:  # no checksum around the tunnel
        made.packet[UDP].chksum = 0
        made.data = bytes(made.packet) + made.data[made.outer.end :]
    data = bytearray(made.data)
    layer = made.inner or made.outer
    field = layer.l4 + (16 if layer.l4_kind == "tcp" else 6)
    data[field : field + 2] = garbage.randbytes(2)  # it is computed anew
    if refused(made):
        with pytest.raises(SegmentError, match="cannot be repeated") as caught:
            segment(data, mss)
        assert caught.value.reason == "extension"
        return
    want = expected(made.packet, payload, mss, fixed=fixed, fixed_outer=fixed_outer)
    if other_addresses(made):
        want = [with_checksums(made, packet) for packet in want]
    for _ in each_simd():
        got = segment(data, mss, fixed_id=fixed, fixed_outer_id=fixed_outer)
        assert got.packets() == want
        assert [b"".join(views) for views in got] == want
        assert len(got) == len(want)
        buffers = [bytearray(len(packet)) for packet in want]
        lengths = segment_into(data, mss, buffers, fixed_id=fixed, fixed_outer_id=fixed_outer)
        assert lengths == [len(packet) for packet in want]
        assert [bytes(buffer) for buffer in buffers] == want
    some = segment(data, mss, fixed_id=fixed, fixed_outer_id=fixed_outer, checksum="partial")
    assert some.packets() == [partial(made, packet, header) for packet in want]
    assert [b"".join(views) for views in some] == some.packets()


@SLOW
@given(sized(), st.lists(st.integers(0, 2**16), max_size=12), st.lists(st.integers(0, 2**16), max_size=8))
def test_pieces_split_anywhere(drawn: tuple[Made, int], cuts: list[int], out_cuts: list[int]) -> None:
    made, mss = drawn
    assume(not refused(made))
    whole = segment(made.data, mss)
    pieces = split(made.data, cuts)
    got = segment(pieces, mss)
    assert got.headers == whole.headers
    for views, packet in zip(got, whole.packets(), strict=True):
        assert b"".join(views) == packet
        assert all(view.nbytes for view in views)
    assert got.packets() == whole.packets()
    buffers = [bytearray(len(packet) + 3) for packet in whole.packets()]
    lists = [split(buffer, out_cuts) for buffer in buffers]  # type: ignore[arg-type]
    for source in (made.data, pieces):
        for buffer in buffers:
            buffer[:] = b"\xee" * len(buffer)
        assert segment_into(source, mss, lists) == [len(packet) for packet in whole.packets()]
        assert [bytes(buffer) for buffer in buffers] == [packet + b"\xee" * 3 for packet in whole.packets()]


@SLOW
@given(sized(), st.lists(st.integers(0, 2**16), max_size=6), st.integers(0, 12), st.integers(0, 12), st.integers(0, 30))
def test_gather_lists(drawn: tuple[Made, int], cuts: list[int], first: int, n: int, room: int) -> None:
    made, mss = drawn
    assume(not refused(made))
    for pieces in (split(made.data, cuts), [memoryview(made.data)]):
        want = [[bytes(view) for view in views[1:]] for views in segment(pieces, mss)][first : first + n]
        fits = next((i for i in range(len(want)) if sum(map(len, want[: i + 1])) > room), len(want))
        assert segment_gather_lists(pieces, mss, 0x100, first, n, room) == want[:fits]


MACS = {"src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:02"}  # scapy would ask the network for them


def ether(*layers: Packet) -> Packet:
    packet: Packet = Ether(**MACS)
    for layer in layers:
        packet /= layer
    return packet


def chaos(size: int) -> bytes:
    return random.Random(size).randbytes(size)


V4 = {"src": "10.0.0.1", "dst": "10.0.0.2"}
V6 = {"src": "fd00::1", "dst": "fd00::2"}
STAMPS = [("NOP", None), ("NOP", None), ("Timestamp", (123456, 654321))]


@pytest.mark.parametrize("mss", [1460, 1447, 9000, 65000, 0xFFFF])
@pytest.mark.parametrize(
    ("network", "header", "most"),
    [
        ((IP(**V4, id=65500, flags="DF"),), TCP(seq=2**32 - 5000, flags="CEUAPF", urgptr=77), 65495),
        ((IP(**V4, id=7),), TCP(flags="PA", options=STAMPS), 65483),
        ((IPv6(**V6),), TCP(flags="PA", options=STAMPS), 65503),
        ((IPv6(**V6), IPv6ExtHdrHopByHop(options=[PadN(optdata=b"abcd")])), TCP(flags="A"), 65507),
        ((IP(**V4),), UDP(sport=1, dport=2), 65507),
        ((IPv6(**V6),), UDP(sport=1, dport=2), 65527),
        ((IP(**V4), UDP(dport=4789), VXLAN(vni=5), Ether(**MACS), IP(**V4)), TCP(flags="PA", options=STAMPS), 65433),
        ((IPv6(**V6), UDP(dport=4789), VXLAN(vni=5), Ether(**MACS), Dot1Q(vlan=3), IPv6(**V6)), UDP(dport=1), 65000),
    ],
    ids=["tcp4", "tcp4-stamps", "tcp6-stamps", "tcp6-extension", "udp4", "udp6", "vxlan4-tcp4", "vxlan6-udp6"],
)
def test_64_kib(network: tuple[Packet, ...], header: Packet, most: int, mss: int, simd: str) -> None:
    payload = chaos(most)
    packet = ether(*(layer.copy() for layer in network), header.copy())
    want = expected(packet, payload, mss)
    whole = bytes(packet / Raw(payload))
    assert segment(whole, mss).packets() == want
    assert [b"".join(views) for views in segment(whole, mss)] == want
    for packet_bytes in want:
        assert 2 not in verify(packet_bytes)  # BAD


@pytest.mark.parametrize("flags", range(512))
def test_flags(flags: int) -> None:
    packet = ether(IP(**V4, id=9), TCP(seq=5, flags=flags, urgptr=3))
    for size in (10, 20, 25, 40):
        assert segment(bytes(packet / Raw(b"x" * size)), 10).packets() == expected(packet, b"x" * size, 10)


@pytest.mark.parametrize("size", [1, 2, 7, 100, 999])
def test_mss_of_one(size: int) -> None:
    packet = ether(IP(**V4, id=0xFFF0), TCP(seq=1, flags="PA"))
    payload = chaos(size)
    assert segment(bytes(packet / Raw(payload)), 1).packets() == expected(packet, payload, 1)


@pytest.mark.parametrize("mss", [1000, 1001, 0xFFFF, 0xFFFFFFFF])
def test_what_fits_is_one_segment(mss: int) -> None:
    packet = ether(IP(**V4), TCP(flags="CPAF", seq=3)) / Raw(chaos(1000))
    whole = bytes(packet)
    assert segment(whole, mss).packets() == [whole]
    assert segment(whole + b"padding", mss).packets() == [whole]


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 66, 95, 96, 97, 127, 128, 129, 500])
def test_headers_of_every_length(size: int) -> None:
    """Each of the ways to copy a header, which differ by its length."""
    payload = chaos(90)
    for tags in range(size // 4 % 30 + 3):
        packet = ether(*[Dot1Q(vlan=i) for i in range(tags)], IP(**V4, options=[IPOption_NOP()] * (size % 41)))
        packet /= TCP(options=[("NOP", None)] * (size % 40))
        got = segment(bytes(packet / Raw(payload)), 20)
        assert got.packets() == expected(packet, payload, 20)
        assert len(got.headers) == len(got) * got.stride


def test_datagram_whose_checksum_is_0() -> None:
    """It is sent as 0xffff (RFC 768)."""
    packet = ether(IP(**V4), UDP(sport=1, dport=2))
    first = bytes(packet / Raw(bytes(16)))
    word = int.from_bytes(first[40:42], "big")  # a payload of this word makes the checksum 0
    payload = bytes(14) + word.to_bytes(2, "big")
    assert bytes(packet / Raw(payload))[40:42] == b"\xff\xff"
    got = segment(bytes(packet / Raw(payload * 3)), 16)
    assert [p[40:42] for p in got.packets()] == [b"\xff\xff"] * 3
    headers = bytes(got.headers)
    assert [headers[i * got.stride :][40:42] for i in range(3)] == [b"\xff\xff"] * 3


def test_outer_checksum_that_comes_out_as_0() -> None:
    """One of all source ports makes it so, in a segment of full size and in the last."""
    frame = bytearray(bytes(tunnel_frame(IP(**V4, id=1), IP(**V4), TCP()) / Raw(chaos(60))))
    frame[40:42] = b"\0\1"
    zeros = [0, 0]
    for port in range(0x10000):
        frame[34:36] = port.to_bytes(2, "big")
        for i, packet in enumerate(segment(frame, 40).packets()):
            assert packet[40:42] != b"\0\0"
            if packet[40:42] == b"\xff\xff":
                zeros[i] += 1
                assert verify(packet).l4.name == "GOOD"
    assert all(zeros)


# ---- IPv4 fragments ----


def without_options(options: bytes) -> bytes:
    """RFC 791, 3.1: a later fragment's options; no-operations in place of those that are not copied."""
    kept = b""
    while options and options[0] != 0:
        size = 1 if options[0] == 1 else options[1]
        kept += options[:size] if options[0] & 0x80 else b"\x01" * size
        options = options[size:]
    return kept + options


def expected_fragments(data: bytes, at: int, l4: int, end: int, size: int) -> list[bytes]:
    datagram = data[l4:end]
    if len(datagram) <= size:
        return [data[:end]]
    size -= size % 8
    fragments = []
    for start in range(0, len(datagram), size):
        header = bytearray(data[at:l4])
        part = datagram[start : start + size]
        header[2:4] = (len(header) + len(part)).to_bytes(2, "big")
        more = start + size < len(datagram)
        header[6:8] = (start // 8 | more << 13).to_bytes(2, "big")
        if start:
            header[20:] = without_options(bytes(header[20:]))
        header[10:12] = b"\0\0"
        header[10:12] = (naive_sum(bytes(header)) ^ 0xFFFF).to_bytes(2, "big")
        fragments.append(data[:at] + bytes(header) + part)
    return fragments


@SLOW
@given(
    frames(l3=("ipv4",), l4=("udp",), tunnels=("none", "none", "vxlan"), max_payload=600),
    st.integers(8, 700),
    st.binary(min_size=2, max_size=2),
    st.lists(st.integers(0, 2**16), max_size=8),
)
def test_ipv4_fragments(made: Made, size: int, garbage: bytes, cuts: list[int]) -> None:
    """Of any UDP datagram, a tunnel's too: it is the outer one that is cut."""
    outer = made.outer
    assume(outer.end > outer.payload)
    # a length equal to a segment's does not bound the datagram: the bytes behind it count as payload, not as padding
    assume(not outer.padded or outer.end - outer.l4 not in (size, size & ~7))
    whole = with_checksums(made, made.data[: outer.end]) + made.data[outer.end :]  # also behind a finished route
    want = expected_fragments(whole, outer.l3, outer.l4, outer.end, size)
    data = bytearray(whole)
    data[outer.l4 + 6 : outer.l4 + 8] = garbage
    for _ in each_simd():
        got = segment(data, size, UFO)
        assert got.packets() == want
        assert [b"".join(views) for views in got] == want
    assert segment(data, size, UFO, checksum="partial").packets() == want
    pieces = split(bytes(data), cuts)
    got = segment(pieces, size, UFO)
    assert got.packets() == want
    assert [b"".join(views) for views in got] == want
    buffers = [bytearray(len(packet)) for packet in want]
    lists = [split(buffer, cuts) for buffer in buffers]  # type: ignore[arg-type]
    assert segment_into(pieces, size, lists, UFO) == [len(packet) for packet in want]
    assert [bytes(buffer) for buffer in buffers] == want


def test_fragments_as_scapy_reassembles_them() -> None:
    from scapy.layers.inet import defragment

    options = [IPOption_RR(routers=["1.2.3.4"] * 3), IPOption_LSRR(routers=["10.0.0.9"], pointer=4), IPOption_NOP()]
    packet = ether(IP(**V4, id=77, flags="DF", options=options), UDP(sport=5, dport=6)) / Raw(chaos(60000))
    got = [Ether(p) for p in segment(bytes(packet), 1480, UFO).packets()]
    assert [p[IP].flags for p in got] == ["MF"] * (len(got) - 1) + [0]
    assert {p[IP].id for p in got} == {77}
    assert [type(option) for option in got[0][IP].options][:2] == [IPOption_RR, IPOption_LSRR]
    assert [type(o) for o in got[1][IP].options[:16]] == [IPOption_NOP] * 15 + [IPOption_LSRR]
    whole = defragment(got)
    assert len(whole) == 1
    assert bytes(whole[0][IP].payload) == bytes(packet[IP].payload)
    assert all(Ether(bytes(p))[IP].chksum == checksum_of(p) for p in got)


def checksum_of(packet: Packet) -> Any:
    copy = packet.copy()
    del copy[IP].chksum
    return Ether(bytes(copy))[IP].chksum


# ---- which layer is cut ----


def tunnel_frame(outer: Packet, inner: Packet, header: Packet) -> Packet:
    return ether(outer, UDP(sport=9, dport=4789), VXLAN(vni=1), Ether(**MACS), inner, header)


@pytest.mark.parametrize("outer", [IP(**V4, id=1), IPv6(**V6)], ids=["outer4", "outer6"])
@pytest.mark.parametrize("inner", [IP(**V4, id=2), IPv6(**V6)], ids=["inner4", "inner6"])
@pytest.mark.parametrize("header", [TCP(flags="PA"), UDP(sport=3, dport=4)], ids=["tcp", "udp"])
def test_gso_types_of_tunnels(outer: Packet, inner: Packet, header: Packet) -> None:
    packet = tunnel_frame(outer, inner, header)
    whole = bytes(packet / Raw(chaos(900)))
    versions = {TUNNEL4 if isinstance(ip, IP) else TUNNEL6 for ip in (outer, inner)}  # Linux' and the text's
    right = USO if isinstance(header, UDP) else TCPV4 if isinstance(inner, IP) else TCPV6
    want = expected(packet, chaos(900), 128)
    assert segment(whole, 128).packets() == want
    for kind in (TCPV4, TCPV6, USO):
        for tunnel in (TUNNEL4, TUNNEL6):
            if kind == right and tunnel in versions:
                assert segment(whole, 128, kind | tunnel).packets() == want
                if kind != USO:  # of UDP it is refused
                    assert segment(whole, 128, kind | tunnel | ECN).packets() == want
            else:
                with pytest.raises(SegmentError) as caught:
                    segment(whole, 128, kind | tunnel)
                assert caught.value.reason in ("tunnel", "network", "protocol")


def test_the_outer_datagram_of_a_tunnel() -> None:
    """Without a tunnel's bit it is just a datagram."""
    packet = tunnel_frame(IP(**V4, id=1), IP(**V4), TCP())
    whole = bytes(packet / Raw(chaos(500)))
    plain = ether(IP(**V4, id=1), UDP(sport=9, dport=4789))
    assert segment(whole, 200, USO).packets() == expected(plain, whole[42:], 200)


def test_views_are_of_the_frame() -> None:
    data = bytearray(bytes(ether(IP(**V4), TCP()) / Raw(b"a" * 100)))
    segments = segment(data, 60)
    assert isinstance(segments, Segments)
    assert [len(views) for views in segments] == [2, 2]
    data[54:56] = b"zz"
    assert bytes(segments[0][1][:3]) == b"zza"
    assert segments[-1][1].nbytes == 40
    assert segments[0][0].readonly
    assert bytes(segments[1][0]) == segments.headers[segments.stride :]
    with pytest.raises(IndexError, match=r"segment 2 out of range \(0 to 1\)"):
        segments[2]
    with pytest.raises(BufferError):
        data.append(1)


def test_routing_header_changes_the_pseudo_header() -> None:
    route = IPv6ExtHdrRouting(type=0, addresses=["fd00::9", "fd00::8"], segleft=2)
    packet = ether(IPv6(**V6), route, TCP(flags="A"))
    assert segment(bytes(packet / Raw(chaos(300))), 100).packets() == expected(packet, chaos(300), 100)
