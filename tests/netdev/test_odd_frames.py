"""Frames and headers that peers get wrong, or that the text leaves open: done as they are meant.

Who does what: Windows writes lengths of 0 or of a segment before frames that are to be cut; Linux (BIG TCP) an IPv4
length of 0; FreeBSD sets DATA_VALID on what it forwards; vhost passes on what a NIC's LRO merged, without NEEDS_CSUM;
Linux means the outer IP version by a tunnel's type, the text the inner one.
"""

from __future__ import annotations

import struct
from itertools import product

import netns
import pytest
from formats import FORMATS
from naive_device import transmit
from net_machine import GUEST, got, machine
from odd_lengths import MSS, lengths, lie, payload_at, put, split, ufo6
from offloads import naive_checksum, naive_sum
from scapy.contrib.mpls import MPLS
from scapy.layers.inet import GRE, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop, PadN, defragment6
from scapy.layers.l2 import Ether
from scapy.layers.ppp import PPP, PPPoE
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet
from undone import CSUM, ETHER, EVERY, KINDS, NONE, V4, V6, payload, reassemble, sound, udp_right, undone

from virtio.constants import NetFeature as F
from virtio.offload import (
    GsoType,
    NetHeader,
    ReceiveReason,
    ReceiveVerdict,
    SegmentError,
    classify_receive,
    complete_receive,
    parse,
    segment,
    verify,
)
from virtio.ports.software_offload import Executor

ALL_GUEST = sum(feature for feature in F if feature.name.startswith("GUEST_") or feature is F.RSC_EXT)


# ---- lengths before the cut ----


@pytest.mark.parametrize("ends", [(), (9, 13, 17, 40, 60, 700)], ids=["one", "pieces"])
@pytest.mark.parametrize("said", ["zero", "segment"])
@pytest.mark.parametrize("which", ["network", "transport", "all"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_lengths_that_the_device_computes(kind: str, which: str, said: str, ends: tuple[int, ...]) -> None:
    """5.1.9.2: a segment's lengths are the device's matter. No byte of payload is lost, whatever a taker could do."""
    header, frame = undone(kind, 2100, MSS)
    fields = lengths(frame)
    fields = fields[:1] if which == "network" else fields[1:2] if which == "transport" else fields
    odd = lie(frame, fields, said)
    want = transmit(header, frame)
    for offloads in (0, CSUM, EVERY):
        executor = Executor()
        made = executor.execute([(header, split(odd, *ends))], offloads)
        if fields:
            assert all(each.gso_type == 0 for each, _ in made)
        assert [data for each, one in made for data in transmit(each, one)] == want
        assert executor.statistics()["dropped"] == {}
    assert segment(odd, MSS, header.gso_type & ~0x80).packets() == want


@pytest.mark.parametrize("said", ["zero", "segment"])
@pytest.mark.parametrize("kind", ["tcp4", "udp4", "tcp6", "udp6"])
def test_lengths_by_way_of_a_guest(kind: str, said: str) -> None:
    header, frame = undone(kind, 2100, MSS)
    device, nic, port = machine()
    nic.send([(header, lie(frame, lengths(frame), said))])
    device.poll()
    assert [data for each, one in port.take() for data in transmit(each, one)] == transmit(header, frame)
    assert device.statistics()["tx0"]["dropped"] == {}


@pytest.mark.parametrize("pieces", [[20, 30, 4000], [300], [70000]], ids=["short pieces", "buffers", "whole"])
@pytest.mark.parametrize("in_place", [False, True], ids=["deliver", "reserve"])
@pytest.mark.parametrize("said", ["zero", "segment"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "vxlan"])
@FORMATS
def test_lengths_by_way_of_a_port(packed: bool, kind: str, said: str, in_place: bool, pieces: list[int]) -> None:
    """A TAP gives what another guest of its bridge sent, with its type: cut for a guest that takes types, too."""
    header, frame = undone(kind, 2100, MSS)
    device, nic, port = machine(packed=packed, in_place=in_place)
    nic.post(40, pieces=pieces)
    port.give([(header, lie(frame, lengths(frame), said)), (header, frame)])
    device.poll()
    found = got(nic)
    *cut, whole = found
    assert whole == (header, frame)
    assert all(one.gso_type == 0 for one, _ in cut)
    assert [data for one, each in cut for data in transmit(one, each)] == transmit(header, frame)
    assert device.statistics()["rx0"]["dropped"] == {}


@pytest.mark.parametrize("network", [V4, V6], ids=["v4", "v6"])
def test_a_hop_by_hop_header_and_no_length(network: Packet) -> None:
    """Behind an IPv6 length of 0 it makes no jumbogram without the option."""
    layers = network if network is V4 else network / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"1234")])
    frame = bytes(ETHER / layers / TCP(sport=1, dport=2) / payload(1000))
    kind = GsoType.TCPV4 if network is V4 else GsoType.TCPV6
    want = segment(frame, 400).packets()
    assert segment(lie(frame, lengths(frame), "zero"), 400, kind).packets() == want


@pytest.mark.parametrize("length", [41, 60, 1000])
def test_a_length_that_cannot_be_meant(length: int) -> None:
    """It is refused, and counted by name: else one short frame leaves, and the rest is lost without a count."""
    header, frame = undone("tcp4", 2100, MSS)
    executor = Executor()
    assert executor.execute([(header, put(frame, 16, length + 12))], EVERY) == []
    assert executor.statistics()["dropped"] == {"ip-length": 1}
    for bad in (put(frame, 16, 30), put(frame, 16, 2153)):
        assert executor.execute([(header, bad)], EVERY) == []
    assert executor.statistics()["dropped"] == {"ip-length": 1, "frame": 2}


@pytest.mark.parametrize("said", ["zero", "segment"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_short_frame_loses_nothing(kind: str, said: str) -> None:
    """None but one of 60 bytes, and 4 more for each tag, can be padded."""
    executor = Executor()
    padded = {60, 64} if kind == "tcp4-vlan" else {60}
    for size, mss in product(range(2, 25), range(1, 12)):
        header, frame = undone(kind, size, mss)
        if len(frame) in padded or size <= mss:
            continue
        made = executor.execute([(header, lie(frame, lengths(frame), said, mss))], 0)
        assert [data for _, data in made] == transmit(header, frame), (len(frame), mss)
    assert executor.statistics()["dropped"] == {}


@pytest.mark.parametrize("kind", ["tcp4", "udp4"])
def test_ethernet_padding_is_never_payload(kind: str) -> None:
    tcp = kind == "tcp4"
    frame = bytes(ETHER / V4 / (TCP(sport=1, dport=2) if tcp else UDP(sport=1, dport=2)) / b"abcd")
    padded = frame + b"padding!"[: 60 - len(frame)].ljust(60 - len(frame), b"!")
    size = (GsoType.TCPV4 if tcp else GsoType.UDP_L4, 42 if not tcp else 54)
    want = segment(frame, 4).packets()
    assert segment(padded, 4, size[0]).packets() == want  # a segment's length is this frame's
    if tcp:  # nothing says what of it is padding
        with pytest.raises(SegmentError) as caught:
            segment(put(padded, 16, 0), 4, size[0])
        assert caught.value.reason == "frame"
    else:
        for odd in (put(padded, 38, 0), put(padded, 16, 0)):  # the other length says it
            assert segment(odd, 4, size[0]).packets() == want
    assert segment(padded, 2, size[0]).packets() == segment(frame, 2).packets()


@pytest.mark.parametrize(("kind", "at"), [("tcp4", 16), ("udp4", 16), ("udp4", 38), ("tcp6", 18), ("udp6", 58)])
@pytest.mark.parametrize("offloads", [0, EVERY])
def test_without_a_type_a_length_of_0_passes(kind: str, at: int, offloads: int) -> None:
    header, frame = undone(kind, 300)
    odd = put(frame, at, 0)
    assert Executor().execute([(NONE, odd)], offloads) == [(NONE, odd)]
    made = Executor().execute([(header, odd)], offloads)
    assert [data for each, one in made for data in transmit(each, one)] == transmit(header, odd)
    device, nic, port = machine()
    nic.send([(NONE, odd)])
    device.poll()
    assert port.take() == [(NONE, odd)]


# ---- nothing to cut ----


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_frame_without_payload(kind: str) -> None:
    """One frame, its checksum completed, and no type any more: it has nothing that could be cut."""
    header = undone(kind, 2000, MSS)[0]
    frame = undone(kind, 2000, MSS)[1]
    short = frame[: payload_at(frame)]
    for at, start in lengths(frame):
        short = put(short, at, len(short) - start)
    parsed = parse(short)
    for layer in filter(None, (parsed.outer, parsed.inner)):
        if layer.l3_kind == 1:
            short = put(short, layer.l3 + 10, 0)
            short = put(short, layer.l3 + 10, naive_checksum(short[layer.l3 : layer.l3 + 20]))
    made = Executor().execute([(header, short)])
    assert len(made) == 1 and made[0][0] == NONE and len(made[0][1]) == len(short) and sound(made[0][1])
    for offloads in (CSUM, EVERY):
        [(left, data)] = Executor().execute([(header, short)], offloads)
        assert left == NetHeader(flags=1, csum_start=header.csum_start, csum_offset=header.csum_offset)
        assert transmit(left, data) == [made[0][1]]
    assert segment(short, 100).packets() == [made[0][1]]


# ---- IPv6 fragments ----


def number(fragment: bytes, at: int) -> int:
    return int.from_bytes(fragment[at + 4 : at + 8], "big")


@pytest.mark.parametrize("ends", [(), (14, 60, 61, 700, 1801)], ids=["one", "pieces"])
@pytest.mark.parametrize(
    "extensions", [(), (IPv6ExtHdrHopByHop(options=[PadN(optdata=b"1234")]), IPv6ExtHdrDestOpt())], ids=["plain", "ext"]
)
@pytest.mark.parametrize(("size", "mss"), [(3000, 1000), (1992, 1000), (1993, 1001), (65000, 1440), (900, 8)])
@pytest.mark.parametrize("offloads", [0, CSUM])
def test_fragments_of_ipv6(size: int, mss: int, extensions: tuple[Packet, ...], offloads: int,
                           ends: tuple[int, ...]) -> None:  # fmt: skip
    """RFC 8200, 4.5; put together by scapy. The checksum is the whole datagram's."""
    header, frame = ufo6(size, mss, *extensions)
    made = Executor().execute([(header, split(frame, *ends))], offloads)
    assert all(each == NONE for each, _ in made)
    at = header.csum_start
    assert {number(data, at) for _, data in made} == {number(made[0][1], at)}
    for i, (_, data) in enumerate(made):
        last = i == len(made) - 1
        assert data[at : at + 2] == b"\x11\0" and len(data) == 54 + int.from_bytes(data[18:20], "big")
        assert int.from_bytes(data[at + 2 : at + 4], "big") == i * (mss & ~7) | (not last)
        assert last or len(data) == at + 8 + (mss & ~7)
        assert data[22:54] == frame[22:54] and data[:18] == frame[:18]
    whole = bytes(defragment6([IPv6(data[14:]) for _, data in made]))
    right = transmit(NetHeader(flags=1, csum_start=at, csum_offset=6), frame)[0]
    assert whole == right[14:] and verify(right).l4.name == "GOOD"


def test_a_datagram_of_ipv6_that_fits_is_none() -> None:
    header, frame = ufo6(900, 1000)
    assert Executor().execute([(header, frame)]) == [(NONE, transmit(NetHeader(flags=1, csum_start=54, csum_offset=6),
                                                                     frame)[0])]  # fmt: skip


def test_identifications() -> None:
    """Each datagram has its own, in pieces or not: a cut that waited for room goes on with it."""
    seen = set()
    for seed in range(300):
        frame = ufo6(1200, 600, seed=seed)[1]
        made = [number(packet, 54) for packet in segment(frame, 600, 3).packets()]
        assert len(set(made)) == 1
        assert {number(packet, 54) for packet in segment(split(frame, 30, 400), 600, 3).packets()} == set(made)
        seen |= set(made)
        other = bytearray(frame)
        other[-1] ^= 1
        assert number(segment(other, 600, 3).packets()[0], 54) not in seen
    assert len(seen) == 300
    assert len({value >> 24 for value in seen}) > 100  # all bits are used


@FORMATS
def test_fragments_of_ipv6_go_on_where_they_stopped(packed: bool) -> None:
    device, nic, port = machine(packed=packed, offloads=0)
    header, frame = ufo6(20000, 1000)
    nic.send([(header, frame), (header, frame)])
    found = []
    for room in (3, 7, 1, -1):
        port.room = room
        device.poll()
        found += [data for _, data in port.take()]
    half = len(found) // 2
    assert found[:half] == found[half:] == [data for _, data in Executor().execute([(header, frame)])]
    guest, card, giver = machine(packed=packed, without=GUEST | F.MRG_RXBUF, queue_size=8)
    giver.give([(header, frame)])
    received: list[bytes] = []
    for _ in range(30):
        card.post(3, 1600)
        guest.poll()
        received += [data for _, data in card.receive()]
    assert received == found[:half]


def test_fragments_of_ipv6_have_room_for_their_header() -> None:
    options = [PadN(optdata=b"x" * 250)]
    frame = bytes(ETHER / V6 / IPv6ExtHdrDestOpt(options=options) / IPv6ExtHdrDestOpt(options=options)
                  / IPv6ExtHdrDestOpt(options=options) / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"x" * 188)])
                  / UDP() / payload(2000))  # fmt: skip
    assert 1016 < parse(frame).outer.payload <= 1024
    with pytest.raises(SegmentError) as caught:
        segment(frame, 1000, 3)
    assert caught.value.reason == "headers"
    assert len(segment(frame, 2008, 3)) == 1


@pytest.mark.root
def test_a_kernel_puts_fragments_of_ipv6_together() -> None:
    """Each datagram once and whole, of frames cut by us and of one that the kernel takes with its type."""
    with netns.link() as link:
        space = link.namespaces[1]
        sink = space.socket(netns.socket.AF_INET6, netns.socket.SOCK_DGRAM)
        sink.bind(("fd77::2", 2000))
        sink.settimeout(10)
        sent = []
        executor = Executor()
        for i, (size, mss) in enumerate([(3000, 1448), (1441, 1448), (60000, 1400), (100, 64), (100, 64)]):
            data = payload(size, i)
            frame = bytes(Ether(src=link.macs[0], dst=link.macs[1]) / IPv6(src="fd77::1", dst="fd77::2")
                          / UDP(sport=1000, dport=2000) / data)  # fmt: skip
            pseudo = naive_sum(frame[22:54] + struct.pack(">II", size + 8, 17))
            header = NetHeader(flags=1, gso_type=3, gso_size=mss, hdr_len=62, csum_start=54, csum_offset=6)
            sent.append((header, put(frame, 60, pseudo), data))
        for header, frame, data in sent:
            for _, one in executor.execute([(header, frame)]):
                link.taps[1].write(one)
            assert sink.recv(1 << 16) == data
            link.taps[1].write(frame, header=header.to_bytes(12))  # what a TAP's port does
            assert sink.recv(1 << 16) == data
        sink.close()
        assert executor.statistics()["dropped"] == {}


# ---- headers ----


@pytest.mark.parametrize("offloads", [0, EVERY])
@pytest.mark.parametrize("flags", [2, 4, 0x10, 0x80, 0xFE])
@FORMATS
def test_flags_beside_needs_csum_are_ignored(flags: int, packed: bool, offloads: int) -> None:
    """5.1.9.2. FreeBSD sets DATA_VALID on frames that it forwards; no taker behind the device hears of it."""
    device, nic, port = machine(packed=packed, offloads=offloads)
    kinds = [(NONE, payload(60)), undone("tcp4", 300), undone("udp6", 2000, MSS)]
    odd = []
    for header, frame in kinds:
        noisy = NetHeader.from_bytes(header.to_bytes(24), 24)
        noisy.flags |= flags
        odd.append((noisy, frame))
    nic.send(odd)
    device.poll()
    taken = port.take()
    assert all(each.flags in (0, 1) for each, _ in taken)
    want = [data for header, frame in kinds for data in transmit(header, frame)]
    assert [data for each, one in taken for data in transmit(each, one)] == want
    assert device.statistics()["tx0"]["dropped"] == {}


@pytest.mark.parametrize("hdr_len", [0, 1, 53, 55, 2053, 2067, 60000, 65535])
@pytest.mark.parametrize("offloads", [0, EVERY])
def test_hdr_len_is_a_hint(hdr_len: int, offloads: int) -> None:
    """Linux' TAP refuses a frame for one beyond it (EINVAL), so it is not passed on."""
    header, frame = undone("tcp6", 2000, MSS)
    odd = NetHeader.from_bytes(header.to_bytes(24), 24)
    odd.hdr_len = hdr_len
    device, nic, port = machine(offloads=offloads)
    nic.send([(odd, frame)])
    device.poll()
    taken = port.take()
    assert all(each.hdr_len <= len(one) for each, one in taken)
    for each, _ in taken:
        each.hdr_len = header.hdr_len if each.gso_type else 0
    assert [data for each, one in taken for data in transmit(each, one)] == transmit(header, frame)


def test_the_ecn_bit_is_a_hint() -> None:
    """Without HOST_ECN the segments are right all the same; of a type that is not TCP it says nothing."""
    device, nic, port = machine(without=F.HOST_ECN)
    header, frame = undone("tcp4-ecn", 2000, MSS)
    udp, datagrams = undone("udp4", 2000, MSS)
    noisy = NetHeader.from_bytes(udp.to_bytes(24), 24)
    noisy.gso_type |= 0x80
    nic.send([(header, frame), (noisy, datagrams), (NetHeader(gso_type=0x80), payload(60))])
    device.poll()
    assert port.take() == [(header, frame), (udp, datagrams), (NONE, payload(60))]


@pytest.mark.parametrize("offloads", [0, CSUM, EVERY])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_type_without_needs_csum_is_cut(kind: str, offloads: int) -> None:
    """From a NIC's LRO or a careless driver: the field may hold anything, and nothing of it is passed on."""
    header, frame = undone(kind, 2100, MSS)
    odd = put(frame, header.csum_start + header.csum_offset, 0x1234)
    for flags in (0, 2):
        bare = NetHeader.from_bytes(header.to_bytes(24), 24)
        bare.flags = header.flags & 8 | flags
        bare.csum_start = bare.csum_offset = 0
        made = Executor().execute([(bare, odd)], offloads)
        assert [data for each, one in made for data in transmit(each, one)] == transmit(header, frame)


def test_a_type_without_needs_csum_from_a_port() -> None:
    """What a TAP does not say a guest is not told."""
    header, frame = undone("tcp4", 2100, MSS)
    bare = NetHeader(flags=2, gso_type=1, gso_size=MSS)
    device, nic, port = machine()
    nic.post(20)
    port.give([(bare, frame)])
    device.poll()
    assert [transmit(each, one)[0] for each, one in got(nic)] == transmit(header, frame)


@pytest.mark.parametrize("gso_type", [GsoType.UDP_L4, GsoType.UDP])
def test_a_checksum_that_was_not_meant_stays_away(gso_type: GsoType) -> None:
    """RFC 768: 0 over IPv4 says that there is none. With NEEDS_CSUM, and over IPv6, there is one."""
    frame = put(undone("udp4", 2000)[1], 40, 0)
    bare = NetHeader(gso_type=int(gso_type), gso_size=MSS)
    made = Executor().execute([(bare, frame)], CSUM)
    assert [each for each, _ in made] == [NONE] * len(made) and made[0][1][40:42] == b"\0\0"
    for _, one in made:
        assert naive_sum(one[14:34]) == 0xFFFF
        assert gso_type is GsoType.UDP or one[40:42] == b"\0\0"
    asked = NetHeader(flags=1, gso_type=int(gso_type), gso_size=MSS, csum_start=34, csum_offset=6)
    made = Executor().execute([(asked, frame)])
    if gso_type is GsoType.UDP:
        assert udp_right(frame, reassemble([one for _, one in made]))
    else:
        assert all(verify(one).l4.name == "GOOD" for _, one in made)
    six = put(undone("udp6", 2000, MSS)[1], 60, 0)
    if gso_type is GsoType.UDP_L4:
        assert all(verify(one).l4.name == "GOOD" for _, one in Executor().execute([(bare, six)]))
    got = complete_receive(bare, bytearray(frame), GUEST)
    assert got.verdict is ReceiveVerdict.UNKNOWN


@pytest.mark.parametrize("bit", [0x20, 0x40])
@pytest.mark.parametrize("outer", [V4, V6], ids=["outer4", "outer6"])
@pytest.mark.parametrize("flags", [1, 9], ids=["", "checksum"])
def test_either_version_of_a_tunnel(bit: int, outer: Packet, flags: int) -> None:
    """The text means the inner version, Linux the outer one. No taker is asked which it means: such a frame is cut."""
    inner, kind = (V6, 4) if outer is V4 else (V4, 1)
    frame = bytes(ETHER / outer / UDP(sport=9, dport=4789) / VXLAN(vni=3, flags=8) / ETHER / inner
                  / TCP(sport=1, dport=2) / payload(2000))  # fmt: skip
    parsed = parse(frame)
    assert parsed.inner is not None
    header = NetHeader(flags=flags, gso_type=kind | bit, gso_size=MSS, csum_start=parsed.inner.l4, csum_offset=16,
                       outer_th_offset=parsed.outer.l4, inner_nh_offset=parsed.inner.l3)  # fmt: skip
    want = segment(frame, MSS).packets()
    assert [data for _, data in Executor().execute([(header, frame)])] == want
    made = Executor().execute([(header, frame)], EVERY)
    assert all(each.gso_type == 0 for each, _ in made) and len(made) == len(want)


def test_the_checksum_around_a_tunnel() -> None:
    """The flag asks for one where the field is 0; a segment's is replaced; 0 without the flag stays."""
    header, frame = undone("vxlan", 2000, MSS)
    assert header.flags == 9
    for field in (0, 0x1234):
        made = Executor().execute([(header, put(frame, 40, field))])
        assert all(verify(one).l4.name == "GOOD" for _, one in made)
    plain = NetHeader.from_bytes(header.to_bytes(24), 24)
    plain.flags = 1
    assert all(one[40:42] == b"\0\0" and sound(one) for _, one in Executor().execute([(plain, put(frame, 40, 0))]))
    assert all(verify(one).l4.name == "GOOD" for _, one in Executor().execute([(plain, frame)]))


# ---- the driver's end ----

TCP_IN = V4 / TCP(sport=1, dport=2) / payload(301)
ICMP6 = V6 / ICMPv6EchoRequest(data=payload(99))
ELSEWHERE: dict[str, tuple[Packet, int]] = {
    "gre": (ETHER / V4 / GRE() / TCP_IN, 16),
    "ip in ip": (ETHER / V4 / TCP_IN, 16),
    "ipv4 in ipv6": (ETHER / V6 / TCP_IN, 16),
    "mpls": (ETHER / MPLS(label=3, s=1, ttl=9) / TCP_IN, 16),
    "pppoe": (ETHER / PPPoE(sessionid=1) / PPP(proto=0x21) / TCP_IN, 16),
    "vxlan at another port": (ETHER / V4 / UDP(sport=9, dport=4790) / VXLAN(vni=3, flags=8) / ETHER / TCP_IN, 16),
    "tunnel in a tunnel": (ETHER / V4 / UDP(sport=9, dport=4789) / VXLAN(vni=3, flags=8) / ETHER / V4
                           / UDP(sport=9, dport=4789) / VXLAN(vni=3, flags=8) / ETHER / TCP_IN, 16),
    "icmpv6": (ETHER / ICMP6, 2),
    "udp-lite": (ETHER / IP(src="10.0.0.1", proto=136) / (b"\x10\0\x20\0\0\0\x12\x34" + payload(64)), 6),
}  # fmt: skip


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("what", list(ELSEWHERE))
def test_a_checksum_at_a_header_that_is_not_parsed(what: str, padding: int) -> None:
    """5.1.9.4: the sum from csum_start to the end, as our device does it; Linux does. Padding is not summed."""
    packet, offset = ELSEWHERE[what]
    plain = bytes(packet)
    start = len(plain) - {"icmpv6": len(bytes(ICMP6)) - 40, "udp-lite": 72}.get(what, len(bytes(TCP_IN)) - 20)
    frame = put(plain, start + offset, 0x4242)  # some pseudo header's sum
    want = put(frame, start + offset, naive_checksum(frame[start:]) or 0xFFFF)
    header = NetHeader(flags=1, csum_start=start, csum_offset=offset)
    assert transmit(header, frame) == [want]
    known = parse(plain).outer.l3_kind <= 2  # else no length says where it ends
    data = bytearray(frame + b"\xff" * (padding if known else 0))
    got = complete_receive(header, data, F.GUEST_CSUM)
    assert (got.verdict, got.reason) == (ReceiveVerdict.NEEDS_CHECKSUM, ReceiveReason.CSUM_ELSEWHERE)
    assert got.levels == (what == "icmpv6") and got[2:4] == (start, offset)
    assert data[: len(want)] == want
    for at in (8, 20) if known else (8,):  # within headers that are parsed
        bad = NetHeader(flags=1, csum_start=at, csum_offset=2)
        assert classify_receive(bad, frame, F.GUEST_CSUM).verdict is ReceiveVerdict.BAD
    if padding and known:  # a field in the padding is none
        bad = NetHeader(flags=1, csum_start=start, csum_offset=len(frame) - start)
        assert classify_receive(bad, data, F.GUEST_CSUM).reason in (
            ReceiveReason.CSUM_BAD_OFFSET, ReceiveReason.CSUM_BAD_IPPROTO,
        )  # fmt: skip


def test_a_udp_length_of_0_and_a_checksum_to_be_completed() -> None:
    header, frame = undone("udp4", 100)
    data = bytearray(put(frame, 38, 0))
    assert complete_receive(header, data, F.GUEST_CSUM).verdict is ReceiveVerdict.NEEDS_CHECKSUM
    assert [bytes(data)] == transmit(header, put(frame, 38, 0))


def test_data_valid_that_was_not_negotiated() -> None:
    """It is as if it were not there: the checksum is to be verified."""
    frame = bytes(ETHER / TCP_IN)
    got = classify_receive(NetHeader(flags=2), frame, 0)
    assert (got.verdict, got.reason) == (ReceiveVerdict.UNKNOWN, ReceiveReason.CSUM_NONE)
    got = classify_receive(NetHeader(flags=3, csum_start=34, csum_offset=16), frame, 0)
    assert got.reason is ReceiveReason.HDR_CSUM_FEATURE


@pytest.mark.parametrize("flags", [0, 2])
@pytest.mark.parametrize("kind", ["tcp4", "tcp6", "tcp6-extension", "tcp4-vlan", "udp4", "udp6"])
def test_a_merged_frame_is_repaired(kind: str, flags: int) -> None:
    """LRO of a NIC behind vhost: a type, and a checksum field that is the first segment's or nothing's."""
    header, frame = undone(kind, 2100, MSS)
    want = transmit(NetHeader(flags=1, csum_start=header.csum_start, csum_offset=header.csum_offset), frame)[0]
    data = bytearray(put(frame, header.csum_start + header.csum_offset, 0x1234))
    bare = NetHeader(flags=flags, gso_type=header.gso_type, gso_size=MSS)
    have = F.GUEST_CSUM | F.GUEST_TSO4 | F.GUEST_TSO6 | F.GUEST_USO4 | F.GUEST_USO6
    got = complete_receive(bare, data, have)
    assert (got.verdict, got.reason, got.segments, got.levels) == (
        ReceiveVerdict.NEEDS_CHECKSUM, ReceiveReason.GSO_REPAIRED, 5, 1,
    )  # fmt: skip
    assert data == want and verify(data).l4.name == "GOOD"
    assert classify_receive(bare, data, F.GUEST_CSUM).reason is ReceiveReason.HDR_GSO_FEATURE


@pytest.mark.parametrize("inner", [0, 0x1234])
@pytest.mark.parametrize("flags", [0, 2, 8])
def test_a_merged_frame_in_a_tunnel_is_repaired(flags: int, inner: int) -> None:
    header, frame = undone("vxlan", 2100, MSS)
    assert complete_receive(header, right := bytearray(frame), ALL_GUEST).segments == 5 and sound(right)
    bare = NetHeader.from_bytes(header.to_bytes(24), 24)
    bare.flags = flags
    data = bytearray(put(frame, header.csum_start + header.csum_offset, inner))
    got = complete_receive(bare, data, ALL_GUEST)
    assert (got.reason, got.segments, got.levels) == (ReceiveReason.GSO_REPAIRED, 5, 2)
    assert data == right


@pytest.mark.parametrize("kind", ["tcp4", "tcp6"])
def test_a_frame_that_qemu_merged_is_repaired(kind: str) -> None:
    """RSC_INFO, a type, and nothing of the checksum (hw/net/virtio-net.c, virtio_net_rsc_drain_seg)."""
    header, frame = undone(kind, 2100, MSS)
    want = transmit(NetHeader(flags=1, csum_start=header.csum_start, csum_offset=header.csum_offset), frame)[0]
    data = bytearray(put(frame, header.csum_start + header.csum_offset, 0x1234))
    got = complete_receive(NetHeader(flags=4, gso_type=header.gso_type, csum_start=5), data, ALL_GUEST)
    assert (got.verdict, got.reason, got.segments) == (ReceiveVerdict.NEEDS_CHECKSUM, ReceiveReason.GSO_REPAIRED, 5)
    assert data == want
