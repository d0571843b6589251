"""The frame parse: scapy knows where each header is; each cut, lie and random byte gets a reason, no overrun."""

from __future__ import annotations

import ctypes
import mmap
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import frames
import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import virtio
from virtio.offload import Frame, L3Kind, Layer, LayerFlag, Stop, Tunnel, parse, parse_burst

ANY = frames.frames(l3=("ipv4", "ipv6", "arp"), fragments=True)
FIELDS = ("end", "l3", "l4", "payload", "src", "dst", "fragment", "protocol")


def examples(count: int) -> settings:
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


class Guard:
    """Puts frames so that the byte behind them is no memory."""

    SIZE = 1 << 18

    def __init__(self) -> None:
        page = mmap.PAGESIZE
        self.memory = mmap.mmap(-1, self.SIZE + page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(address + self.SIZE), page, 0) == 0

    def cuts(self, data: bytes) -> list[Frame]:
        """Parse each beginning of data, from none of it to all, with no memory behind."""
        found: list[Frame] = []
        end = memoryview(self.memory)[: self.SIZE]
        for n in range(len(data) + 1):
            if n:
                end[-n:] = data[:n]
            found.append(parse(end[self.SIZE - n :]))
        assert len(parse_burst([end[self.SIZE - len(data) :]])) == 1
        return found


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard()


def check_layer(layer: Layer, length: int) -> None:
    """What holds of any layer of any frame."""
    header = {L3Kind.IPV4: 20, L3Kind.IPV6: 40}.get(layer.l3_kind)
    assert layer.l3 <= layer.l4 <= layer.payload <= length
    assert layer.end <= length
    assert bool(layer.src) == bool(layer.dst)
    if layer.src:
        assert header
        size = 4 if header == 20 else 16
        assert max(layer.src, layer.dst) + size <= length
        assert layer.l3 + header <= layer.end
    if layer.flags & LayerFlag.L4:
        assert layer.stop is Stop.OK
        assert layer.l4 + 8 <= layer.payload <= layer.end
        assert header and layer.src and layer.l4 >= layer.l3 + header
    elif layer.stop is Stop.OK:
        assert layer.l3_kind is L3Kind.ARP
    if not layer.stop.is_fault:
        assert layer.payload <= layer.end
    assert bool(layer.flags & LayerFlag.LATER) == bool(layer.fragment)
    assert not layer.fragment or layer.flags & LayerFlag.FRAGMENT
    assert layer.explain()


def check(frame: Frame, length: int) -> None:
    assert frame.length == length
    check_layer(frame.outer, length)
    assert (frame.inner is None) == (frame.tunnel is Tunnel.NONE)
    assert frame.stop is (frame.inner or frame.outer).stop
    if frame.inner is not None:
        assert frame.outer.stop is Stop.OK
        assert not frame.outer.flags & LayerFlag.FRAGMENT
        check_layer(frame.inner, frame.outer.end)
        if frame.stop is Stop.SHORT_TUNNEL:
            assert frame.inner_l2 == 0
        else:
            assert frame.outer.payload + 8 <= frame.inner_l2 <= frame.inner.l3
    assert frame.explain().startswith(f"{length} bytes: ")


def check_made(layer: Layer, made: frames.Layer) -> None:
    assert {name: getattr(layer, name) for name in FIELDS} == {name: getattr(made, name) for name in FIELDS}
    assert layer.vlans == len(made.vlans)
    assert layer.tci == (made.vlans[0] if made.vlans else 0)
    assert layer.l3_kind is L3Kind[made.l3_kind.upper()]
    assert layer.stop is (Stop.FRAGMENT if made.l4_kind == "later" else Stop.OK)
    flags = layer.flags & ~(LayerFlag.HOME | LayerFlag.ROUTING_2)
    assert flags == (
        (LayerFlag.L4 if made.l4_kind not in ("later", "arp") else 0)
        | (LayerFlag.FRAGMENT if made.fragmented else 0)
        | (LayerFlag.LATER if made.l4_kind == "later" else 0)
        | (LayerFlag.OPTIONS if made.options else 0)
        | (LayerFlag.EXTENSIONS if made.extensions else 0)
        | (LayerFlag.L4_OPTIONS if made.l4_options else 0)
        | (LayerFlag.PADDED if made.padded else 0)
        | (LayerFlag.ROUTED if made.routed else 0)
    )


# ---- sound frames ----


@examples(300)
@given(ANY)
def test_headers_are_where_scapy_put_them(made: frames.Made) -> None:
    frame = parse(made.data)
    check(frame, len(made.data))
    assert frame.tunnel is Tunnel[made.tunnel.upper()]
    assert frame.inner_l2 == made.inner_l2
    check_made(frame.outer, made.outer)
    if made.inner is not None:
        assert frame.inner is not None
        check_made(frame.inner, made.inner)


@examples(20)
@given(st.lists(ANY, max_size=8))
def test_batch_is_the_same_as_one_at_a_time(many: list[frames.Made]) -> None:
    one = [parse(made.data).explain() for made in many]
    assert [frame.explain() for frame in parse_burst([made.data for made in many])] == one
    assert [frame.explain() for frame in parse_burst([memoryview(bytearray(made.data)) for made in many])] == one
    offsets = [0]
    for made in many:
        offsets.append(offsets[-1] + len(made.data))
    assert [frame.explain() for frame in parse_burst(b"".join(made.data for made in many), offsets)] == one


# ---- hostile frames ----


@examples(60)
@given(made=ANY)
def test_every_cut(guard: Guard, made: frames.Made) -> None:
    for n, frame in enumerate(guard.cuts(made.data)):
        check(frame, n)
        if n < made.outer.end and made.outer.l3_kind != "arp":
            assert frame.stop.is_fault
            assert frame.tunnel is Tunnel.NONE  # the outer length already lies


@examples(300)
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes(guard: Guard, data: bytes) -> None:
    check(guard.cuts(data)[-1], len(data))


@examples(300)
@given(made=ANY, changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes(guard: Guard, made: frames.Made, changes: list[tuple[int, int]]) -> None:
    data = bytearray(made.data)
    for at, value in changes:
        data[at % len(data)] = value
    check(guard.cuts(bytes(data))[-1], len(data))
    # a tag more goes another way through the code, to the same result
    plain, tagged = parse(data), parse(data[:12] + b"\x81\x00\x00\x01" + data[12:])
    assert (tagged.stop, tagged.tunnel, tagged.outer.flags) == (plain.stop, plain.tunnel, plain.outer.flags)
    for name in ("end", "l3", "l4", "payload"):
        assert getattr(tagged.outer, name) == getattr(plain.outer, name) + 4
        if plain.inner is not None:
            assert getattr(tagged.inner, name) == getattr(plain.inner, name) + 4


ETHER = bytes(12)
SRC6, DST6 = bytes(range(16)), bytes(range(16, 32))


def ipv4(
    payload: bytes, *, proto: int = 6, total: int | None = None, ihl: int = 5, frag: int = 0, options: bytes = b""
) -> bytes:
    ihl += len(options) // 4
    total = 20 + len(options) + len(payload) if total is None else total
    head = struct.pack("!BBHHHBBH4s4s", 0x40 | ihl, 0, total, 0, frag, 64, proto, 0, b"\1\2\3\4", b"\5\6\7\10")
    return ETHER + b"\x08\x00" + head + options + payload


def ipv6(payload: bytes, *, next: int = 6, length: int | None = None, version: int = 6) -> bytes:
    length = len(payload) if length is None else length
    return ETHER + b"\x86\xdd" + struct.pack("!IHBB", version << 28, length, next, 64) + SRC6 + DST6 + payload


def tcp(words: int = 5) -> bytes:
    return struct.pack("!HHIIBBHHH", 0x8000, 0x8001, 0, 0, words << 4, 0x10, 0, 0, 0)


def udp(payload: bytes, *, port: int = 0x8000, length: int | None = None) -> bytes:
    return struct.pack("!HHHH", 0x8000, port, 8 + len(payload) if length is None else length, 0) + payload


def extension(next: int, body: bytes = b"\1\4\0\0\0\0", *, size: int | None = None) -> bytes:
    return bytes([next, (len(body) + 2) // 8 - 1 if size is None else size]) + body


def routing(next: int, kind: int, left: int, body: bytes, *, last: int = 0) -> bytes:
    return extension(next, bytes([kind, left, last, 0, 0, 0]) + body)


ADDRESS = bytes(16)
JUMBO = extension(6, b"\xc2\4" + struct.pack("!I", 70000))

LIES = {
    "no Ethernet header": (ETHER + b"\x08", Stop.SHORT_ETHERNET),
    "half a tag": (ETHER + b"\x81\x00\x00\x01\x08", Stop.SHORT_VLAN),
    "half a second tag": (ETHER + b"\x88\xa8\x00\x01\x91\x00\x00", Stop.SHORT_VLAN),
    "802.3 length": (ETHER + b"\x00\x09" + bytes(8), Stop.LLC_LENGTH),
    "half an IPv4 header": (ipv4(b"")[:-1], Stop.SHORT_L3),
    "half an IPv6 header": (ipv6(b"")[:-1], Stop.SHORT_L3),
    "IPv4 options cut": (ipv4(b"", ihl=6), Stop.SHORT_L3),
    "half an ARP packet": (ETHER + b"\x08\x06" + b"\0\1\x08\0\6\4\0\1" + bytes(19), Stop.SHORT_L3),
    "ARP with long addresses": (ETHER + b"\x08\x06" + b"\0\1\x08\0\xff\xff\0\1" + bytes(20), Stop.SHORT_L3),
    "IPv6 as IPv4": (ETHER + b"\x08\x00" + ipv6(tcp())[14:], Stop.IP_VERSION),
    "IPv4 as IPv6": (ETHER + b"\x86\xdd" + ipv4(tcp())[14:], Stop.IP_VERSION),
    "IPv4 header length": (ipv4(tcp(), ihl=4), Stop.IPV4_IHL),
    "total length beyond the frame": (ipv4(tcp(), total=41), Stop.IP_LENGTH),
    "total length below the header": (ipv4(tcp(), total=19), Stop.IP_LENGTH),
    "total length below the options": (ipv4(tcp(), options=b"\1" * 8, total=27), Stop.IP_LENGTH),
    "payload length beyond the frame": (ipv6(tcp(), length=21), Stop.IP_LENGTH),
    "jumbo option without need": (ipv6(extension(6, b"\xc2\4\0\1\0\0") + tcp(), next=0), Stop.IP_LENGTH),
    "jumbo option under 64 KiB": (ipv6(extension(6, b"\xc2\4\0\0\0\x1c") + tcp(), next=0, length=0), Stop.IP_LENGTH),
    "jumbo option beyond the frame": (ipv6(JUMBO + tcp(), next=0, length=0), Stop.IP_LENGTH),
    "length 0 without a jumbo option": (ipv6(extension(6) + tcp(), next=0, length=0), Stop.IP_LENGTH),
    "fragment of a jumbogram": (
        ipv6(extension(44, JUMBO[2:]) + bytes([6, 0, 0, 1]) + bytes(4) + bytes(69984), next=0, length=0),
        Stop.IP_LENGTH,
    ),
    "extension header cut": (ipv6(extension(6)[:-1], next=60), Stop.SHORT_EXTENSION),
    "extension header too long": (ipv6(extension(6, size=4) + tcp(), next=60), Stop.SHORT_EXTENSION),
    "fragment header cut": (ipv6(bytes(7), next=44), Stop.SHORT_EXTENSION),
    "AH under 12 bytes": (ipv6(bytes([6, 0]) + bytes(30), next=51), Stop.SHORT_EXTENSION),
    "AH beyond the packet": (ipv6(bytes([6, 9]) + bytes(30), next=51), Stop.SHORT_EXTENSION),
    "IPv6 option beyond its header": (ipv6(extension(6, b"\1\5\0\0\0\0") + tcp(), next=60), Stop.OPTION),
    "IPv6 option without a length": (ipv6(extension(6, b"\0\0\0\0\0\1") + tcp(), next=60), Stop.OPTION),
    "home address of 4 bytes": (ipv6(extension(6, b"\xc9\4\0\0\0\0") + tcp(), next=60), Stop.OPTION),
    "IPv4 option of 1 byte": (ipv4(tcp(), options=b"\7\1\0\0"), Stop.OPTION),
    "IPv4 option beyond the header": (ipv4(tcp(), options=b"\7\5\0\0"), Stop.OPTION),
    "IPv4 option without a length": (ipv4(tcp(), options=b"\1\1\1\7"), Stop.OPTION),
    "source route without a pointer": (ipv4(tcp(), options=b"\x83\2\0\0"), Stop.OPTION),
    "source route pointer": (ipv4(tcp(), options=b"\x83\7\3" + bytes(5)), Stop.ROUTING),
    "source route of half an address": (ipv4(tcp(), options=b"\x83\5\4" + bytes(1)), Stop.OPTION),
    "source route pointer within an address": (ipv4(tcp(), options=b"\x89\7\6" + bytes(5)), Stop.ROUTING),
    "routing header without its address": (ipv6(routing(6, 0, 1, b"") + tcp(), next=43), Stop.ROUTING),
    "more segments than addresses": (ipv6(routing(6, 0, 3, ADDRESS * 2) + tcp(), next=43), Stop.ROUTING),
    "routing header of half an address": (ipv6(routing(6, 0, 1, ADDRESS + bytes(8)) + tcp(), next=43), Stop.ROUTING),
    "routing header type 2, two addresses": (ipv6(routing(6, 2, 1, ADDRESS * 2) + tcp(), next=43), Stop.ROUTING),
    "segment list beyond its header": (ipv6(routing(6, 4, 1, ADDRESS, last=1) + tcp(), next=43), Stop.ROUTING),
    "more segments than listed": (ipv6(routing(6, 4, 3, ADDRESS * 2, last=1) + tcp(), next=43), Stop.ROUTING),
    "half a TCP header": (ipv4(tcp()[:-1]), Stop.SHORT_L4),
    "half a UDP header": (ipv4(bytes(7), proto=17), Stop.SHORT_L4),
    "half an SCTP header": (ipv4(bytes(11), proto=132), Stop.SHORT_L4),
    "half an ICMP header": (ipv4(bytes(7), proto=1), Stop.SHORT_L4),
    "half an ICMPv6 header": (ipv6(bytes(7), next=58), Stop.SHORT_L4),
    "half a TCP header in a first fragment": (ipv4(tcp()[:-1], frag=0x2000), Stop.SHORT_L4),
    "payload length 0": (ipv6(tcp(), length=0), Stop.SHORT_L4),
    "TCP offset under 5": (ipv4(tcp(4)), Stop.TCP_OFFSET),
    "TCP offset beyond the packet": (ipv4(tcp(6)), Stop.TCP_OFFSET),
    "TCP offset beyond the packet, within the frame": (ipv4(tcp(6)) + bytes(8), Stop.TCP_OFFSET),
    "UDP length under 8": (ipv4(udp(b"", length=7), proto=17), Stop.UDP_LENGTH),
    "UDP length 0": (ipv6(udp(b"", length=0), next=17), Stop.UDP_LENGTH),
    "UDP length beyond the packet": (ipv4(udp(b"abc", length=12), proto=17) + bytes(8), Stop.UDP_LENGTH),
    "VXLAN header cut": (ipv4(udp(b"\x08" + bytes(6), port=4789), proto=17), Stop.SHORT_TUNNEL),
    "no VXLAN header at all": (ipv4(udp(b"", port=4789), proto=17), Stop.SHORT_TUNNEL),
    "VXLAN header beyond the UDP length": (
        ipv4(udp(b"\x08" + bytes(40), port=8472, length=15), proto=17),
        Stop.SHORT_TUNNEL,
    ),
    "GENEVE header cut": (ipv4(udp(bytes(7), port=6081), proto=17), Stop.SHORT_TUNNEL),
    "GENEVE options cut": (ipv4(udp(b"\2\0\x65\x58" + bytes(11), port=6081), proto=17), Stop.SHORT_TUNNEL),
    "VXLAN with half an Ethernet header": (
        ipv4(udp(b"\x08" + bytes(20), port=4789), proto=17),
        Stop.SHORT_ETHERNET,
    ),
    "inner packet beyond the UDP length": (
        ipv4(udp(b"\0\0\x08\0" + bytes(4) + ipv4(tcp())[14:], port=6081, length=8 + 8 + 39), proto=17) + bytes(50),
        Stop.IP_LENGTH,
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_has_its_reason(guard: Guard, name: str) -> None:
    data, stop = LIES[name]
    frame = guard.cuts(data)[-1] if len(data) < 1000 else parse(data)
    check(frame, len(data))
    assert frame.stop is stop
    assert frame.stop.is_fault
    assert "fault" in frame.explain()


def test_each_fault_is_tried() -> None:
    tried = {stop for _, stop in LIES.values()} | {Stop.OFFSETS, Stop.EXTENSIONS}
    assert tried == {stop for stop in Stop if stop.is_fault}


SOUND = {
    "LLDP": (ETHER + b"\x88\xcc" + bytes(10), Stop.NOT_IP),
    "MPLS": (ETHER + b"\x88\x47" + bytes(10), Stop.NOT_IP),
    "802.3": (ETHER + b"\x00\x03\x42\x42\x03" + bytes(43), Stop.NOT_IP),
    "GRE": (ipv4(bytes(8), proto=47), Stop.PROTOCOL),
    "ICMPv6 on IPv4": (ipv4(bytes(8), proto=58), Stop.PROTOCOL),
    "ICMP on IPv6": (ipv6(bytes(8), next=1), Stop.PROTOCOL),
    "next header 59 on IPv4": (ipv4(bytes(8), proto=59), Stop.PROTOCOL),
    "routing header of an unknown type": (ipv6(routing(6, 3, 1, ADDRESS) + tcp(), next=43), Stop.PROTOCOL),
    "routing header of an unknown type, done": (ipv6(routing(6, 3, 0, ADDRESS) + tcp(), next=43), Stop.OK),
    "reduced segment list": (ipv6(routing(6, 4, 1, ADDRESS, last=0) + tcp(), next=43), Stop.OK),
    "ESP on IPv4": (ipv4(bytes(8), proto=50), Stop.ENCRYPTED),
    "ESP behind an extension header": (ipv6(extension(50) + bytes(8), next=60), Stop.ENCRYPTED),
    "no next header": (ipv6(b"", next=59), Stop.NO_NEXT),
    "no next header behind a mobility header": (ipv6(extension(59), next=135), Stop.NO_NEXT),
    "later fragment": (ipv4(b"", frag=1, proto=17), Stop.FRAGMENT),
    "UDP length beyond a first fragment": (ipv4(udp(b"abc", length=3000), proto=17, frag=0x2000), Stop.OK),
    "UDP length below the packet": (ipv4(udp(b"abc", length=9), proto=17), Stop.OK),
    "VXLAN without the I flag": (ipv4(udp(b"\xf7" + bytes(30), port=4789), proto=17), Stop.OK),
    "GENEVE version 1": (ipv4(udp(b"\x40" + bytes(30), port=6081), proto=17), Stop.OK),
    "VXLAN in a first fragment": (ipv4(udp(b"\x08" + bytes(30), port=4789), proto=17, frag=0x2000), Stop.OK),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_sound_but_no_more_is_known(guard: Guard, name: str) -> None:
    data, stop = SOUND[name]
    frame = guard.cuts(data)[-1]
    check(frame, len(data))
    assert frame.stop is stop
    assert not frame.stop.is_fault
    assert frame.tunnel is Tunnel.NONE


@pytest.mark.parametrize("reserved", [0, 2, 4, 6])
def test_atomic_fragments(reserved: int) -> None:
    """RFC 6946: whole packets, whatever is in the reserved bits (RFC 8200, 4.5), which a receiver ignores."""
    layer = parse(ipv6(bytes([6, 0xFF, 0, reserved, 1, 2, 3, 4]) + tcp(), next=44)).outer
    assert layer.stop is Stop.OK and layer.fragment == 0
    assert not layer.flags & LayerFlag.FRAGMENT
    layer = parse(ipv6(bytes([6, 0xFF, 0, reserved | 1, 1, 2, 3, 4]) + tcp(), next=44)).outer
    assert layer.stop is Stop.OK and layer.flags & LayerFlag.FRAGMENT


NESTS = 0x400  # VIRTIO_LAYER_TUNNEL


@pytest.mark.parametrize(
    ("port", "header", "nests"),
    [
        (4789, b"\x08" + bytes(30), True),
        (8472, b"\x08" + bytes(30), True),
        (6081, bytes(31), True),
        (4789, b"", True),
        (4789, b"\xf7" + bytes(30), False),
        (6081, b"\x40" + bytes(30), False),
        (4790, b"\x08" + bytes(30), False),
    ],
)
@pytest.mark.parametrize("outer", [4789, 6081])
def test_a_tunnel_within_a_tunnel(outer: int, port: int, header: bytes, nests: bool) -> None:
    """It is marked, and not looked into."""
    tunnel = bytes([8, 0, 0, 0]) if outer == 4789 else b"\0\0\x65\x58"
    inner = ipv4(udp(header, port=port), proto=17)
    frame = parse(ipv4(udp(tunnel + bytes(4) + inner, port=outer), proto=17))
    assert frame.inner is not None and frame.stop is Stop.OK
    assert bool(int(frame.inner.flags) & NESTS) is nests
    assert not int(frame.outer.flags) & NESTS
    first = parse(
        ipv4(udp(tunnel + bytes(4) + ipv4(udp(header, port=port), proto=17, frag=0x2000), port=outer), proto=17)
    )
    assert first.inner is not None and not int(first.inner.flags) & NESTS


def test_geneve_of_something_else() -> None:
    frame = parse(ipv4(udp(b"\0\0\x88\x47" + bytes(20), port=6081), proto=17))
    assert frame.tunnel is Tunnel.GENEVE
    assert frame.stop is Stop.NOT_IP
    assert frame.inner is not None
    assert (frame.inner.ethertype, frame.inner.l3) == (0x8847, frame.inner_l2)


def test_padding_is_not_the_packet() -> None:
    frame = parse(ipv4(tcp()) + bytes(6))
    assert frame.outer.end == 54
    assert frame.outer.flags & LayerFlag.PADDED


def test_udp_surplus_pads_the_inner_packet() -> None:
    inner = ipv4(tcp())[14:]
    frame = parse(ipv4(udp(b"\0\0\x08\0" + bytes(4) + inner + b"pad", port=6081), proto=17))
    assert frame.inner is not None
    assert frame.inner.flags & LayerFlag.PADDED
    assert frame.inner.end == frame.length - 3


def test_addresses_of_mobile_nodes() -> None:
    home = extension(43, b"\1\2\0\0" + b"\xc9\x10" + ADDRESS)
    layer = parse(ipv6(home + routing(6, 2, 1, ADDRESS) + tcp(), next=60)).outer
    assert layer.flags & (LayerFlag.HOME | LayerFlag.ROUTING_2) == LayerFlag.HOME | LayerFlag.ROUTING_2
    assert (layer.src, layer.dst) == (54 + 8, 54 + 24 + 8)
    layer = parse(ipv6(routing(43, 2, 1, ADDRESS) + routing(6, 0, 1, ADDRESS) + tcp(), next=43)).outer
    assert layer.flags & (LayerFlag.ROUTED | LayerFlag.ROUTING_2) == LayerFlag.ROUTED
    assert layer.dst == 54 + 24 + 8


def test_jumbograms() -> None:
    body = tcp() + bytes(70000 - 8 - 20)
    frame = parse(ipv6(JUMBO + body, next=0, length=0) + b"pad")
    check(frame, 54 + 70000 + 3)
    assert frame.stop is Stop.OK
    assert (frame.outer.end, frame.outer.payload) == (54 + 70000, 54 + 8 + 20)
    assert frame.outer.flags & LayerFlag.PADDED
    datagram = udp(bytes(70000 - 16), length=0)
    frame = parse(ipv6(extension(17, JUMBO[2:]) + datagram, next=0, length=0))
    assert frame.stop is Stop.OK
    assert frame.outer.end == frame.length


# ---- limits ----


@pytest.mark.parametrize("tpid", [b"\x81\x00", b"\x88\xa8", b"\x91\x00"])
def test_ten_thousand_tags(tpid: bytes) -> None:
    data = ETHER + (tpid + b"\x20\x05") * 10000 + ipv4(tcp())[12:]
    frame = parse(data)
    check(frame, len(data))
    assert frame.stop is Stop.OK
    assert (frame.outer.vlans, frame.outer.tci, frame.outer.l3) == (10000, 0x2005, 40014)


def test_headers_beyond_64_kib() -> None:
    data = ETHER + b"\x81\x00\x00\x05" * 20000 + ipv4(tcp())[12:]
    frame = parse(data)
    check(frame, len(data))
    assert frame.stop is Stop.OFFSETS
    # the last tags that fit, and then no header that fits
    for tags in range(16366, 16382):
        frame = parse(ETHER + b"\x81\x00\x00\x05" * tags + ipv4(tcp())[12:])
        assert (frame.stop is Stop.OFFSETS) == (14 + 4 * tags + 40 > 65535)


def test_extension_headers_are_counted(guard: Guard) -> None:
    for count in (64, 65, 200):
        data = ipv6(extension(60) * (count - 1) + extension(6) + tcp(), next=60)
        frame = guard.cuts(data)[-1] if count == 65 else parse(data)
        check(frame, len(data))
        assert frame.stop is (Stop.OK if count == 64 else Stop.EXTENSIONS)


def test_largest_extension_headers() -> None:
    data = ipv6(
        extension(60, b"\1\xff" + bytes(255) + b"\1\xff" + bytes(255) * 7 + bytes(2046 - 7 * 255 - 259)) + b"", next=60
    )
    check(parse(data), len(data))


# ---- the Python face ----


def test_numbers_are_those_of_the_header() -> None:
    text = (Path(virtio.__file__).parent / "include/virtio/frame.h").read_text()

    def members(name: str, prefix: str) -> Iterator[str]:
        body = re.search(rf"enum {name} \{{(.*?)\}}", text, re.S)
        assert body
        yield from re.findall(rf"\b{prefix}_(\w+)\b", re.sub(r"/\*.*?\*/|= VIRTIO\w+", "", body[1], flags=re.S))

    stops = [name for name in members("virtio_stop", "VIRTIO_STOP") if name != "FAULTS"]
    assert stops == [stop.name for stop in Stop]
    assert list(members("virtio_l3_kind", "VIRTIO_L3")) == [kind.name for kind in L3Kind]
    assert list(members("virtio_tunnel", "VIRTIO_TUNNEL")) == [tunnel.name for tunnel in Tunnel]
    flags = {name: int(value, 16) for name, value in re.findall(r"VIRTIO_LAYER_(\w+) (0x\w+)u", text)}
    assert flags == {flag.name: flag.value for flag in LayerFlag} | {"TUNNEL": NESTS}


def test_frames_are_a_record_array() -> None:
    many = parse_burst(
        [ipv4(tcp()), ipv6(extension(6) + tcp(), next=60), b"", ipv4(udp(b"\x08" + bytes(20), port=4789), proto=17)]
    )
    array = numpy.asarray(many)
    assert array.itemsize == 64
    assert not array.flags.writeable
    assert array["length"].tolist() == [54, 82, 0, 63]
    assert array["inner_l2"].tolist() == [0, 0, 0, 50]
    assert array["tunnel"].tolist() == [0, 0, 0, Tunnel.VXLAN]
    assert array["inner"]["stop"].tolist() == [0, 0, 0, Stop.SHORT_ETHERNET]
    for name in (*FIELDS, "ethertype", "tci", "vlans", "flags", "l3_kind", "stop"):
        assert array["outer"][name].tolist() == [getattr(frame.outer, name) for frame in many]
    assert numpy.shares_memory(array, numpy.asarray(many))
    del many
    assert array["length"][0] == 54


def test_frames_are_a_sequence() -> None:
    many = parse_burst([ipv4(tcp())[:n] for n in range(60)])
    assert len(many) == 60
    assert many[-1].length == 54
    assert [frame.length for frame in many[10:30:10]] == [10, 20]
    assert [frame.length for frame in many] == [min(n, 54) for n in range(60)]
    with pytest.raises(IndexError, match="index 60 out of range"):
        many[60]
    with pytest.raises(IndexError):
        many[-61]
    with pytest.raises(TypeError, match="not writable"):
        (ctypes.c_char * 1).from_buffer(many)
    assert memoryview(many).nbytes == 60 * 64
    assert len(parse_burst([])) == 0
    assert numpy.asarray(parse_burst([])).shape == (0,)


def test_what_is_no_buffer() -> None:
    with pytest.raises(TypeError):
        parse("text")
    with pytest.raises(TypeError):
        parse_burst([b"", None])
    with pytest.raises(ValueError, match="0 to 4 out of range"):
        parse_burst(b"abc", [0, 4])


def test_frames_of_other_buffers() -> None:
    data = ipv4(tcp())
    assert (
        parse(bytearray(data)).explain()
        == parse(numpy.frombuffer(data, numpy.uint8)).explain()
        == parse(data).explain()
    )
    with pytest.raises((BufferError, ValueError)):
        parse(memoryview(data * 2)[::2])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (ipv4(tcp() + b"abc"), "57 bytes: IPv4 at 14, TCP at 34, 3 bytes at 54"),
        (ETHER + b"\x81\x00\x0f\xff" + ipv6(tcp())[12:], "78 bytes: VLAN 4095, IPv6 at 18, TCP at 58, 0 bytes at 78"),
        (
            ipv4(udp(b"abc", length=12), proto=17),
            "45 bytes: IPv4 at 14, UDP at 34, fault at 34: the UDP length is under 8 bytes or beyond the packet",
        ),
        (ETHER + b"\x88\xcc", "14 bytes: EtherType 0x88cc, stopped at 14: neither IP nor ARP"),
        (
            ipv6(bytes([6, 0, 0, 8]) + bytes(12), next=44),
            "70 bytes: IPv6 at 14, extension headers, fragment at 8, TCP at 62, "
            "stopped at 62: no transport header in a later fragment",
        ),
    ],
)
def test_explain(data: bytes, text: str) -> None:
    assert parse(data).explain() == text
    assert text in repr(parse(data))
