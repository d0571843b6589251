"""The checksums of frames: verdicts, filling in, preparing for an offload; scapy and the slow way are the oracles."""

from __future__ import annotations

import pickle
import random
import struct
from collections.abc import Mapping, Sequence

import numpy
import pytest
from frames import Layer, Made, frames
from guardpages import Guarded
from hypothesis import given
from hypothesis import strategies as st
from offloads import each_simd, naive_checksum, naive_crc32c, naive_sum
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR, IPOption_NOP, IPOption_RR
from scapy.layers.inet6 import (
    HAO,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
    RouterAlert,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from virtio import offload
from virtio.offload import (
    Checks,
    Verdict,
    complete_checksum,
    fill_checksums,
    fill_checksums_burst,
    fill_partial_checksum,
    verify,
    verify_burst,
)

MAC = "02:00:00:00:00:01"
ETHER = Ether(src=MAC, dst=MAC)  # without addresses scapy would ask the network for them
NONE, GOOD, BAD, UNKNOWN = Verdict.NONE, Verdict.GOOD, Verdict.BAD, Verdict.UNKNOWN
FIELDS = {"tcp": 16, "udp": 6, "icmp": 2, "icmpv6": 2, "sctp": 8}
DATA = random.Random(2).randbytes(1461)
V4, V6 = IP(src="10.1.2.3", dst="192.0.2.77"), IPv6(src="2001:db8::1", dst="2001:db8::ffff:2")
ROUTE = ["2001:db8:1::1", "2001:db8:2::2", "2001:db8:3::3"]

PACKETS: dict[str, Packet] = {
    "v4 tcp": V4 / TCP(flags="PA") / Raw(DATA),
    "v4 tcp options": V4 / TCP(options=[("MSS", 1460), ("Timestamp", (7, 9))]) / Raw(DATA[:7]),
    "v4 tcp empty": V4 / TCP(flags="A"),
    "v4 udp": V4 / UDP(sport=1, dport=40000) / Raw(DATA[:100]),
    "v4 udp odd": V4 / UDP(sport=1, dport=40000) / Raw(DATA[:101]),
    "v4 udp empty": V4 / UDP(sport=1, dport=40000),
    "v4 icmp": V4 / ICMP(id=7, seq=8) / Raw(DATA[:57]),
    "v4 sctp": V4 / SCTP(tag=9) / SCTPChunkData(data=DATA[:333]),
    "v4 options": IP(src="10.0.0.1", dst="10.0.0.2", options=[IPOption_NOP(), IPOption_RR(routers=["1.2.3.4"] * 3)])
    / UDP(dport=40000)
    / Raw(DATA[:11]),
    "v4 source route": IP(src="10.0.0.1", dst="10.0.0.2", options=[IPOption_LSRR(routers=["1.2.3.4", "5.6.7.8"])])
    / TCP()
    / Raw(DATA[:12]),
    "v6 tcp": V6 / TCP() / Raw(DATA),
    "v6 udp": V6 / UDP(dport=40000) / Raw(DATA[:99]),
    "v6 icmp": V6 / ICMPv6EchoRequest(id=5) / Raw(DATA[:20]),
    "v6 neighbour": V6 / ICMPv6ND_NS(tgt="2001:db8::5"),
    "v6 sctp": V6 / SCTP(tag=9) / SCTPChunkData(data=DATA[:34]),
    "v6 hop-by-hop": V6 / IPv6ExtHdrHopByHop(options=[RouterAlert()]) / TCP() / Raw(DATA[:9]),
    "v6 routing 0": V6 / IPv6ExtHdrRouting(addresses=ROUTE, segleft=2) / UDP(dport=40000) / Raw(DATA[:9]),
    "v6 routing 0 done": V6 / IPv6ExtHdrRouting(addresses=ROUTE, segleft=0) / TCP() / Raw(DATA[:9]),
    "v6 segments": V6 / IPv6ExtHdrSegmentRouting(addresses=ROUTE, segleft=1, lastentry=2) / TCP() / Raw(DATA[:9]),
    "v6 home address": V6 / IPv6ExtHdrDestOpt(options=[HAO(hoa="2001:db8:9::9")]) / UDP(dport=40000) / Raw(DATA[:9]),
    "v6 atomic": V6 / IPv6ExtHdrFragment(id=4) / TCP() / Raw(DATA[:9]),
}
LINKS = {"": ETHER, "vlan": ETHER / Dot1Q(vlan=5), "qinq": ETHER / Dot1AD(vlan=5) / Dot1Q(vlan=6)}


def zeroed(packet: Packet) -> bytes:
    """The same packet with 0 in all checksums, the others being as they were."""
    built = packet.__class__(bytes(packet))
    layer: Packet = built
    while layer:
        if "chksum" in layer.fields:
            layer.chksum = 0
        if "cksum" in layer.fields:
            layer.cksum = 0
        layer = layer.payload
    return bytes(built)


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("name", PACKETS)
def test_scapys_packets(simd: str, name: str, link: str) -> None:
    packet = LINKS[link] / PACKETS[name]
    right = bytes(packet)
    l3 = GOOD if name.startswith("v4") else NONE
    assert verify(right) == Checks(l3, GOOD, NONE, NONE)
    assert verify(right + b"\xa5" * 21) == Checks(l3, GOOD, NONE, NONE)
    frame = bytearray(zeroed(packet))
    assert frame != right
    assert fill_checksums(frame) == Checks(l3, GOOD, NONE, NONE)
    assert frame == right


@pytest.mark.parametrize("name", PACKETS)
def test_each_byte_counts(simd: str, name: str) -> None:
    right = bytes(ETHER / PACKETS[name])
    covered = len(right) - len(bytes(PACKETS[name].lastlayer()))  # what scapy takes for data, or the last header
    for at in [*range(14, 14 + 20 * name.startswith("v4")), *range(covered, len(right))]:
        frame = bytearray(right)
        frame[at] ^= 0x10
        checks = verify(frame)
        if at < covered:
            assert checks.l3 is not GOOD
        else:  # in a header, what is then no header is not summed
            assert checks.l4 is BAD or ("empty" in name and checks.l4 is UNKNOWN)


def verdicts(data: bytes, layer: Layer, *, tunnel: bool) -> tuple[Verdict, Verdict]:
    """What a layer is worth, computed the slow way from where its builder put things."""
    if layer.l3_kind == "arp":
        return NONE, NONE
    l3 = NONE
    if layer.l3_kind == "ipv4":
        size = (data[layer.l3] & 15) * 4
        l3 = GOOD if naive_checksum(data[layer.l3 : layer.l3 + size]) == 0 else BAD
    if layer.fragmented:
        return l3, UNKNOWN
    packet = data[layer.l4 : layer.end]
    if layer.l4_kind == "sctp":
        crc = naive_crc32c(packet[:8] + b"\0\0\0\0" + packet[12:])
        return l3, GOOD if packet[8:12] == struct.pack("<I", crc) else BAD
    if layer.l4_kind == "udp" and packet[6:8] == b"\0\0":
        return l3, NONE if layer.l3_kind == "ipv4" or tunnel else BAD
    return l3, GOOD if naive_checksum(packet, pseudo(data, layer, len(packet))) == 0 else BAD


def pseudo(data: bytes, layer: Layer, length: int) -> int:
    if layer.l4_kind == "icmp":
        return 0
    size = 4 if layer.l3_kind == "ipv4" else 16
    addresses = data[layer.src : layer.src + size] + data[layer.dst : layer.dst + size]
    return naive_sum(addresses, layer.protocol + length)


def expected(data: bytes, made: Made) -> Checks:
    inner = (NONE, NONE) if made.inner is None else verdicts(data, made.inner, tunnel=False)
    return Checks(*verdicts(data, made.outer, tunnel=made.tunnel != "none"), *inner)


# scapy sums some of these over other addresses, or not at all (behind AH): what is right is computed here
ANY = frames(l3=("ipv4", "ipv4", "ipv6", "ipv6", "arp"), fragments=True)


@given(ANY)
def test_verdicts_of_any_frame(made: Made) -> None:
    for _ in each_simd():
        assert verify(made.data) == expected(made.data, made)


def fields(made: Made) -> set[int]:
    """The offsets of the bytes of all checksums that can be filled in."""
    found: set[int] = set()
    for layer in filter(None, (made.outer, made.inner)):
        if layer.l3_kind == "ipv4":
            found |= {layer.l3 + 10, layer.l3 + 11}
        if layer.l3_kind != "arp" and not layer.fragmented:
            field = layer.l4 + FIELDS[layer.l4_kind]
            found |= set(range(field, field + (4 if layer.l4_kind == "sctp" else 2)))
    return found


@given(ANY, st.binary(min_size=16, max_size=16))
def test_filling_any_frame(made: Made, noise: bytes) -> None:
    places = sorted(fields(made))
    for _ in each_simd():
        frame = bytearray(made.data)
        for at, value in zip(places, noise * 2, strict=False):
            frame[at] = value
        stored = fill_checksums(frame)
        worth = expected(bytes(frame), made)
        assert stored == worth
        assert BAD not in worth
        assert [at for at in range(len(frame)) if frame[at] != made.data[at] and at not in places] == []
        again = bytearray(frame)
        fill_checksums(again)
        assert again == frame


@given(frames(l4=("tcp", "udp"), max_payload=300))
def test_preparing_and_completing(made: Made) -> None:
    right = bytearray(made.data[: made.outer.end])
    fill_checksums(right)
    for inner, layer in ((False, made.outer), (True, made.inner)):
        if layer is None:
            continue
        frame = bytearray(right)
        start, offset = fill_partial_checksum(frame, inner=inner)
        assert (start, offset) == (layer.l4, FIELDS[layer.l4_kind])
        partial = struct.unpack_from("!H", frame, start + offset)[0]
        assert partial == pseudo(bytes(frame), layer, layer.end - layer.l4)
        complete_checksum(frame, start, offset)
        stored = struct.unpack_from("!H", frame, start + offset)[0]
        # 0xffff for 0, also in TCP
        assert frame == right or (stored, right[start + offset : start + offset + 2]) == (0xFFFF, b"\0\0")


@pytest.mark.parametrize("network", [V4, V6], ids="46")
def test_a_udp_checksum_that_comes_out_as_zero(simd: str, network: Packet) -> None:
    frame = bytearray(bytes(ETHER / network / UDP(sport=1, dport=40000) / Raw(b"\0\0")))
    at = frame.index(b"\x9c\x40") + 4  # behind the port: length, checksum, data
    checksum = struct.unpack_from("!H", frame, at)[0]
    struct.pack_into("!H", frame, at + 2, checksum)
    fill_checksums(frame)
    assert frame[at : at + 2] == b"\xff\xff"
    assert verify(frame).l4 is GOOD


def test_no_udp_checksum() -> None:
    inner = ETHER / V4 / TCP() / Raw(DATA[:50])
    assert verify(bytes(ETHER / V4 / UDP(dport=40000, chksum=0) / Raw(DATA[:9]))).l4 is NONE
    assert verify(bytes(ETHER / V6 / UDP(dport=40000, chksum=0) / Raw(DATA[:9]))).l4 is BAD
    assert verify(bytes(ETHER / V4 / UDP(dport=4789, chksum=0) / VXLAN(flags=8) / inner)) == (GOOD, NONE, GOOD, GOOD)
    assert verify(bytes(ETHER / V6 / UDP(dport=4789, chksum=0) / VXLAN(flags=8) / inner)) == (NONE, NONE, GOOD, GOOD)
    # within a tunnel the rule is as strict as ever
    zero = ETHER / V6 / UDP(dport=40000, chksum=0) / Raw(DATA[:9])
    assert verify(bytes(ETHER / V4 / UDP(dport=4789, chksum=0) / VXLAN(flags=8) / zero)).inner_l4 is BAD


def test_a_datagram_shorter_than_its_packet() -> None:
    """What follows the datagram within the IP packet is not covered."""
    packet = ETHER / V4 / UDP(sport=1, dport=40000) / Raw(DATA[:10])
    frame = bytearray(bytes(packet) + b"behind!")
    struct.pack_into("!H", frame, 16, 20 + 8 + 10 + 7)
    fill_checksums(frame)
    assert verify(frame) == (GOOD, GOOD, NONE, NONE)
    assert frame[40:42] == bytes(packet)[40:42]
    frame[-1] ^= 0xFF
    assert verify(frame).l4 is GOOD
    frame[50] ^= 0xFF
    assert verify(frame).l4 is BAD


def test_a_jumbogram(simd: str) -> None:
    """RFC 2675: both length fields are 0, the pseudo header has all 32 bits."""
    data = random.Random(3).randbytes(70001)
    size = 8 + 8 + len(data)
    header = bytes(ETHER)[:12] + b"\x86\xdd" + bytes(IPv6(src="::1", dst="::2", nh=0, plen=0))
    option = b"\x11\0\xc2\4" + struct.pack("!I", size)
    frame = bytearray(header + option + struct.pack("!HHHH", 1, 40000, 0, 0) + data)
    assert fill_checksums(frame) == (NONE, GOOD, NONE, NONE)
    addresses = bytes(frame[22:54])
    total = naive_sum(
        addresses + struct.pack("!I", 8 + len(data)) + b"\0\0\0\x11" + bytes(frame[62:68]) + b"\0\0" + data
    )
    assert struct.unpack_from("!H", frame, 68)[0] == total ^ 0xFFFF
    assert verify(frame).l4 is GOOD


def test_nothing_to_check() -> None:
    assert verify(bytes(ETHER / ARP())) == (NONE, NONE, NONE, NONE)
    assert verify(bytes(Ether(src=MAC, dst=MAC, type=0x88CC)) + b"lldp") == (NONE, NONE, NONE, NONE)
    assert verify(bytes(ETHER / IPv6(nh=59))) == (NONE, NONE, NONE, NONE)
    assert verify(bytes(ETHER / IP(proto=47) / Raw(b"gre!"))) == (GOOD, UNKNOWN, NONE, NONE)
    assert verify(b"") == verify(b"short") == (NONE, UNKNOWN, NONE, NONE)


@pytest.mark.parametrize("name", ["v4 tcp options", "v4 options", "v4 source route", "v6 routing 0", "v6 home address"])
def test_frames_cut_off(simd: str, name: str, guarded: Guarded) -> None:
    right = bytes(ETHER / PACKETS[name])
    for n in range(len(right)):
        view = guarded.last(right[:n])
        checks = verify(view)
        assert checks.l4 is UNKNOWN
        assert checks.l3 in (NONE, UNKNOWN) if n < 34 else checks.l3 in (NONE, GOOD, UNKNOWN)
        assert fill_checksums(view) == checks
        with pytest.raises(ValueError, match="no TCP or UDP packet that is whole"):
            fill_partial_checksum(view)


@given(ANY, st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6), st.integers(0, 40))
def test_noise_is_survived(made: Made, noise: list[tuple[int, int]], cut: int) -> None:
    """Whatever the bytes say, nothing outside of them is touched, and what was filled in is right."""
    frame = bytearray(made.data)
    for at, value in noise:
        frame[at % len(frame)] = value
    for _ in each_simd():
        view = GUARDED.last(bytes(frame[: max(len(frame) - cut, 0)]))
        verify(view)
        fill_checksums(view)
        assert BAD not in verify(view)


GUARDED = Guarded(4)  # larger than any frame; no fixture, for those of a function do not go with hypothesis


def test_bursts() -> None:
    made = [bytes(ETHER / packet) for packet in PACKETS.values()]
    bad = [frame[:-1] + bytes([frame[-1] ^ 1]) for frame in made]
    cut = [frame[: len(frame) // 2] for frame in made]
    every = made + bad + cut + [b""]
    one_by_one = [verify(frame) for frame in every]
    assert list(verify_burst(every)) == one_by_one
    assert numpy.asarray(verify_burst(every)).tolist() == one_by_one
    offsets = [0]
    for frame in every:
        offsets.append(offsets[-1] + len(frame))
    assert verify_burst(b"".join(every), offsets)[:] == one_by_one
    assert len(verify_burst([])) == 0
    buffers = [bytearray(frame) for frame in bad]
    assert list(fill_checksums_burst(buffers)) == [verify(frame) for frame in buffers]
    whole = bytearray(b"".join(bad))
    fill_checksums_burst(whole, offsets[: len(made) + 1])
    assert whole == b"".join(buffers)


def test_refused() -> None:
    right = bytes(ETHER / PACKETS["v4 tcp"])
    for call in (fill_checksums, fill_partial_checksum):
        with pytest.raises((TypeError, BufferError)):
            call(right)  # type: ignore[operator]
    with pytest.raises((TypeError, BufferError)):
        fill_checksums_burst([right])
    with pytest.raises(TypeError):
        verify("text")  # type: ignore[arg-type]
    fragment = bytearray(bytes(ETHER / IP(flags="MF") / UDP(dport=40000) / Raw(DATA[:8])))
    before = bytes(fragment)
    with pytest.raises(ValueError, match="no TCP or UDP packet that is whole"):
        fill_partial_checksum(fragment)
    with pytest.raises(ValueError, match="no inner TCP or UDP packet that is whole"):
        fill_partial_checksum(bytearray(right), inner=True)
    with pytest.raises(ValueError, match=r"protocol 1$"):
        fill_partial_checksum(bytearray(bytes(ETHER / PACKETS["v4 icmp"])))
    assert fragment == before


def test_results_are_sequences_and_pickle() -> None:
    frames = [bytes(14), b"short", bytes(60)]
    single = verify(frames[1])
    assert pickle.loads(pickle.dumps(single)) == single
    batches: list[Sequence[object]] = [verify_burst(frames), offload.parse_burst(frames)]
    for batch in [*batches, offload.Toeplitz(bytes(40)).hash_burst(frames)]:
        assert isinstance(batch, Sequence)
        assert len([*batch]) == len(batch) == len([*reversed(batch)])
    verdicts = verify_burst(frames)
    assert single in verdicts and verdicts.index(single) == [*verdicts].index(single)
    assert verdicts.count(single) == [*verdicts].count(single)


def test_counters_are_a_mapping() -> None:
    counters = offload.OffloadCounters()
    assert isinstance(counters, Mapping)
    assert dict(counters.items()) == dict(counters) == counters
    assert sum(counters.values()) == 0
    assert counters.get("no such") is None and "no such" not in counters
