"""Receiving: what a header says is held against the frame; what is forwarded has a right checksum."""

from __future__ import annotations

import random

import pytest
from frames import Made, frames
from hypothesis import event, given
from hypothesis import strategies as st
from naive_device import FIELDS, mend, put, word
from offloads import each_simd, naive_sum
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import ARP, Ether
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from virtio.constants import NetFeature as F
from virtio.offload import (
    NetHeader,
    NetHeaderFault,
    OffloadCounters,
    Receive,
    ReceiveReason,
    ReceiveVerdict,
    Verdict,
    classify_receive,
    classify_receive_burst,
    complete_receive,
    fill_partial_checksum,
    net_header_size,
    prepare_transmit,
    verify,
)

GUEST = (
    F.GUEST_CSUM | F.GUEST_TSO4 | F.GUEST_TSO6 | F.GUEST_ECN | F.GUEST_UFO | F.GUEST_USO4 | F.GUEST_USO6
    | F.GUEST_UDP_TUNNEL_GSO | F.GUEST_UDP_TUNNEL_GSO_CSUM | F.RSC_EXT
)  # fmt: skip
UNKNOWN, VERIFIED, NEEDS_CHECKSUM, BAD = ReceiveVerdict
NEEDS, VALID, RSC, TUNNEL_CSUM = 1, 2, 4, 8
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
V4, V6 = IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="2001:db8::1", dst="2001:db8::2")
DATA = random.Random(8).randbytes(3000)


def make(packet: Packet) -> bytearray:
    return bytearray(bytes(ETHER / packet))


def vxlan(inner: Packet, network: Packet = V4) -> Packet:
    return network / UDP(dport=4789) / VXLAN(vni=5, flags=8) / ETHER / inner


@given(made=frames(fragments=True), have=st.sampled_from([GUEST, F.GUEST_CSUM, F(0)]), mss=st.sampled_from([0, 0, 60]))
def test_what_our_device_sends_is_completed(made: Made, have: int, mss: int) -> None:
    """Through prepare_transmit and complete_receive every frame is as it was, but that all checksums are right."""
    wanted = bytearray(made.data)
    for layer in filter(None, (made.inner, made.outer)):
        if layer.l4_kind in FIELDS and not (made.inner or made.outer).fragmented:
            mend(wanted, layer)
    frame = bytearray(wanted)
    target = made.inner or made.outer
    sent = prepare_transmit(frame, have, mss, layer="inner", to_driver=True)
    if sent.outcome >= 2:
        assert frame == wanted
        return
    counters = OffloadCounters()
    got = complete_receive(sent.header, frame, have, counters=counters)
    event(got.reason.counter)
    assert frame == wanted
    assert dict(counters) == {name: int(name == got.reason.counter) for name in counters}
    if sent.header.flags & NEEDS:
        cut = bool(sent.header.gso_type)
        size = target.end - target.payload
        segments = -(-size // mss) if cut else 1
        field, levels = FIELDS[target.l4_kind], 2 if made.inner else 1
        assert got == Receive(NEEDS_CHECKSUM, ReceiveReason.CSUM_PARTIAL, target.l4, field, segments, levels)
    else:
        assert got == Receive(UNKNOWN, ReceiveReason.CSUM_NONE, 0, 0, 1, 0)


@given(
    made=frames(fragments=True, l3=("ipv4", "ipv6", "arp")),
    flags=st.sampled_from([NEEDS, VALID, NEEDS | VALID]),
    move=st.sampled_from([0, 0, 2, -1, 8]),
    offset=st.sampled_from([6, 16, 6, 16, 2, 8]),
    inner=st.booleans(),
)
def test_any_claim_of_a_checksum(made: Made, flags: int, move: int, offset: int, inner: bool) -> None:
    """The field is believed to be where it is only: behind a TCP or UDP header that scapy put there."""
    layer = made.inner if inner and made.inner else made.outer
    header = NetHeader(flags=flags, csum_start=layer.l4 + move, csum_offset=offset)
    frame = bytearray(made.data)
    got = complete_receive(header, frame, F.GUEST_CSUM)
    event(got.reason.counter)
    sound = layer.l4_kind in ("tcp", "udp") and not layer.fragmented
    if flags & NEEDS:
        if sound and move == 0 and offset == FIELDS[layer.l4_kind]:
            assert got[:4] == (NEEDS_CHECKSUM, ReceiveReason.CSUM_PARTIAL, layer.l4, offset)
            assert frame[: layer.l4 + offset] == made.data[: layer.l4 + offset]
            assert frame[layer.l4 + offset + 2 :] == made.data[layer.l4 + offset + 2 :]
            return
        if got.verdict is NEEDS_CHECKSUM:  # a header that is not parsed, behind all that are
            assert got.reason is ReceiveReason.CSUM_ELSEWHERE
            icmp = layer.l4_kind.startswith("icmp") and (move, offset) == (0, 2)
            assert icmp or layer.l4 + move >= layer.payload
            return
        assert got.verdict is BAD
    else:
        sound = made.outer.l4_kind in ("tcp", "udp") and not made.outer.fragmented
        assert got.verdict is (VERIFIED if sound else UNKNOWN) and got.levels == int(sound)
    assert frame == made.data and got[2:5] == (0, 0, 1)


# ---- the bug of 2011 ----


@pytest.mark.parametrize("network", [V4, V6, V6 / IPv6ExtHdrDestOpt()], ids=["v4", "v6", "extension"])
@pytest.mark.parametrize("transport", [TCP(dport=0x9000), UDP(dport=0x9000)], ids=["tcp", "udp"])
@pytest.mark.parametrize("padding", [0, 7])
def test_2011_needs_csum_that_is_forwarded(network: Packet, transport: Packet, padding: int, simd: str) -> None:
    """The driver called the frame valid and left the field at the pseudo header's sum: forwarded, it was corrupt."""
    wanted = make(network / transport / Raw(DATA))
    frame = bytearray(wanted)
    header = prepare_transmit(frame, F.CSUM).header
    frame += b"\xff" * padding  # of the link, behind the packet
    assert verify(frame).l4 is Verdict.BAD
    got = classify_receive(header, frame, F.GUEST_CSUM)
    assert got.verdict is NEEDS_CHECKSUM and verify(frame).l4 is Verdict.BAD
    assert complete_receive(header, frame, F.GUEST_CSUM) == got
    assert frame[: len(wanted)] == wanted and verify(frame).l4 is Verdict.GOOD


def test_a_udp_checksum_that_comes_out_as_zero() -> None:
    """RFC 768: it is sent as 0xffff; FreeBSD's fixup sent none."""
    frame = make(V4 / UDP(dport=0x9000, sport=0x9000) / Raw(bytes(2)))
    put(frame, 40, 0)
    put(frame, 42, 0xFFFF - naive_sum(bytes(frame[26:34]) + b"\0\x11\0\x0a" + bytes(frame[34:])))
    frame[40:42] = b"\xff\xff"
    assert verify(frame).l4 is Verdict.GOOD
    wanted = bytes(frame)
    header = prepare_transmit(frame, F.CSUM).header
    complete_receive(header, frame, F.GUEST_CSUM)
    assert frame == wanted


def test_a_datagram_shorter_than_its_packet() -> None:
    """Its checksum ends where it ends; what follows in the packet is not summed."""
    frame = make(V4 / UDP(dport=0x9000, len=500) / Raw(DATA))
    start, offset = fill_partial_checksum(frame)
    got = complete_receive(NetHeader(flags=NEEDS, csum_start=start, csum_offset=offset), frame, GUEST)
    assert got.verdict is NEEDS_CHECKSUM and verify(frame).l4 is Verdict.GOOD


def test_2011_sctp() -> None:
    """A 16-bit sum is never put into it, nor is its CRC32c believed to be verified."""
    frame = make(V4 / SCTP(tag=1) / SCTPChunkData(data=DATA[:333]))
    before = bytes(frame)
    for offset in (8, 6, 16):
        got = complete_receive(NetHeader(flags=NEEDS, csum_start=34, csum_offset=offset), frame, GUEST)
        assert (got.verdict, got.reason) == (BAD, ReceiveReason.CSUM_BAD_IPPROTO)
    got = complete_receive(NetHeader(flags=VALID), frame, GUEST)
    assert (got.verdict, got.reason) == (UNKNOWN, ReceiveReason.CSUM_BAD_IPPROTO)
    assert frame == before


# ---- each reason ----

TCP4, TCP6, UDP4, UDP6 = V4 / TCP(dport=0x9000), V6 / TCP(dport=0x9000), V4 / UDP(dport=0x9000), V6 / UDP(dport=0x9000)
SUM4 = {"flags": NEEDS, "csum_start": 34, "csum_offset": 16}
TSO4 = SUM4 | {"gso_type": 1, "hdr_len": 54, "gso_size": 1000}
TSO6 = TSO4 | {"gso_type": 4, "hdr_len": 74, "csum_start": 54}
USO4 = TSO4 | {"gso_type": 5, "hdr_len": 42, "csum_offset": 6}
USO6 = USO4 | {"hdr_len": 62, "csum_start": 54}
INNER = TSO4 | {"gso_type": 0x21, "hdr_len": 104, "csum_start": 84, "outer_th_offset": 34, "inner_nh_offset": 64}
RSC4 = TSO4 | {"flags": RSC | VALID, "csum_start": 3, "csum_offset": 0}
FRAGMENT = IP(src="10.0.0.1", dst="10.0.0.2", flags="MF")
LLC = ETHER.__class__(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=40) / Raw(DATA[:40])

REASONS: list[tuple[str, Packet | bytes, dict[str, int], ReceiveVerdict, str, int]] = [
    ("nothing said", TCP4, {}, UNKNOWN, "csum_none", 1),
    ("verified", TCP4 / Raw(DATA), {"flags": VALID}, VERIFIED, "csum_offloaded", 1),
    ("partial", TCP4, SUM4, NEEDS_CHECKSUM, "csum_partial", 1),
    ("both", TCP4, SUM4 | {"flags": NEEDS | VALID}, NEEDS_CHECKSUM, "csum_partial", 1),
    ("tso4", TCP4 / Raw(DATA), TSO4, NEEDS_CHECKSUM, "csum_partial", 3),
    ("tso4 and one byte", TCP4 / Raw(DATA + b"x"), TSO4, NEEDS_CHECKSUM, "csum_partial", 4),
    ("tso6", TCP6 / Raw(DATA), TSO6, NEEDS_CHECKSUM, "csum_partial", 3),
    ("tso4 of nothing", TCP4, TSO4, NEEDS_CHECKSUM, "csum_partial", 1),
    ("uso4", UDP4 / Raw(DATA), USO4, NEEDS_CHECKSUM, "csum_partial", 3),
    ("uso6", UDP6 / Raw(DATA), USO6, NEEDS_CHECKSUM, "csum_partial", 3),
    ("ufo: with the header 3008 bytes", UDP4 / Raw(DATA), USO4 | {"gso_type": 3}, NEEDS_CHECKSUM, "csum_partial", 4),
    ("tunnel", vxlan(TCP4 / Raw(DATA)), INNER, NEEDS_CHECKSUM, "csum_partial", 3),
    ("tunnel, no type, inner", vxlan(TCP4), SUM4 | {"csum_start": 84}, NEEDS_CHECKSUM, "csum_partial", 1),
    ("rsc", TCP4 / Raw(DATA), RSC4, VERIFIED, "csum_offloaded", 3),
    ("rsc as QEMU has it", TCP4 / Raw(DATA), RSC4 | {"flags": RSC, "gso_size": 0}, NEEDS_CHECKSUM, "gso_repaired", 3),
    (
        "rsc of a tunnel",
        vxlan(TCP4 / Raw(DATA)),
        INNER | {"flags": RSC | NEEDS, "csum_start": 3, "csum_offset": 0},
        NEEDS_CHECKSUM,
        "csum_partial",
        3,
    ),
    ("rsc, nothing said", TCP4 / Raw(DATA), RSC4 | {"flags": RSC}, NEEDS_CHECKSUM, "gso_repaired", 3),
    ("rsc, partial", TCP4 / Raw(DATA), RSC4 | {"flags": RSC | NEEDS}, NEEDS_CHECKSUM, "csum_partial", 3),
    ("arp", ARP(psrc="10.0.0.1", pdst="10.0.0.2"), SUM4 | {"csum_offset": 0}, BAD, "csum_bad_ethtype", 1),
    ("llc", bytes(LLC), {"flags": VALID}, UNKNOWN, "csum_bad_ethtype", 1),
    ("icmp", V4 / ICMP() / Raw(DATA), SUM4, BAD, "csum_bad_ipproto", 1),
    ("gre", IP(proto=47) / Raw(DATA), SUM4, NEEDS_CHECKSUM, "csum_elsewhere", 1),
    ("gre, verified", IP(proto=47) / Raw(DATA), {"flags": VALID}, UNKNOWN, "csum_bad_ipproto", 1),
    ("start", TCP4, SUM4 | {"csum_start": 36}, BAD, "csum_bad_offset", 1),
    ("field", TCP4, SUM4 | {"csum_offset": 6}, BAD, "csum_bad_offset", 1),
    ("beyond", TCP4, SUM4 | {"csum_start": 54}, BAD, "csum_bad_offset", 1),
    ("far beyond", TCP4, SUM4 | {"csum_start": 0xFFFF, "csum_offset": 0xFFFF}, BAD, "csum_bad_offset", 1),
    ("between the layers of a tunnel", vxlan(TCP4), SUM4 | {"csum_start": 50}, BAD, "csum_bad_offset", 1),
    ("outer start, inner field", vxlan(TCP4), SUM4, BAD, "csum_bad_offset", 1),
    ("cut off", bytes(make(TCP4 / Raw(DATA)))[:60], SUM4, BAD, "csum_inaccessible_ipproto", 1),
    ("cut off, verified", bytes(make(TCP4))[:30], {"flags": VALID}, UNKNOWN, "csum_inaccessible_ipproto", 1),
    ("fragment", FRAGMENT / TCP() / Raw(DATA), SUM4, BAD, "csum_fragment", 1),
    ("fragment, verified", FRAGMENT / TCP() / Raw(DATA), {"flags": VALID}, UNKNOWN, "csum_fragment", 1),
    ("tso4 of v6", TCP6 / Raw(DATA), TSO4 | {"csum_start": 54}, BAD, "gso_bad_type", 1),
    ("tso6 of v4", TCP4 / Raw(DATA), TSO4 | {"gso_type": 4}, BAD, "gso_bad_type", 1),
    ("rsc of udp", UDP4 / Raw(DATA), RSC4, BAD, "gso_bad_type", 1),
    ("rsc of nothing", TCP4 / Raw(DATA), RSC4 | {"csum_start": 0}, BAD, "gso_bad_segments", 1),
    ("rsc of too many", TCP4 / Raw(DATA), RSC4 | {"csum_start": 3001}, BAD, "gso_bad_segments", 1),
    ("no tunnel", TCP4 / Raw(DATA), INNER, BAD, "tunnel_bad_type", 1),
    ("tunnel of v4", vxlan(TCP4 / Raw(DATA)), INNER | {"gso_type": 0x41}, BAD, "tunnel_bad_type", 1),
    ("udp header", vxlan(TCP4 / Raw(DATA)), INNER | {"outer_th_offset": 30}, BAD, "tunnel_bad_offset", 1),
    ("network header", vxlan(TCP4 / Raw(DATA)), INNER | {"inner_nh_offset": 60}, BAD, "tunnel_bad_offset", 1),
]


@pytest.mark.parametrize(
    ("packet", "fields", "verdict", "name", "segments"), [r[1:] for r in REASONS], ids=[r[0] for r in REASONS]
)
def test_reason(
    packet: Packet | bytes, fields: dict[str, int], verdict: ReceiveVerdict, name: str, segments: int
) -> None:
    frame = bytearray(packet) if isinstance(packet, bytes) else make(packet)
    counters = OffloadCounters()
    got = classify_receive(NetHeader(**fields), frame, GUEST, counters=counters)
    assert (got.verdict, got.reason.counter, got.segments) == (verdict, f"rx_{name}", segments)
    assert counters[f"rx_{name}"] == 1


def test_uso_of_the_other_version() -> None:
    have = F.GUEST_CSUM | F.GUEST_USO4
    assert classify_receive(NetHeader(**USO4), make(UDP4 / Raw(DATA)), have).verdict is NEEDS_CHECKSUM
    got = classify_receive(NetHeader(**USO6), make(UDP6 / Raw(DATA)), have)
    assert (got.verdict, got.reason) == (BAD, ReceiveReason.GSO_NO_FEATURE)


def test_header_faults_are_reasons() -> None:
    """Whatever NetHeader.check() refuses is BAD, under a name of its own or FreeBSD's."""
    names = {reason.name for reason in ReceiveReason}
    for fault in NetHeaderFault:
        if fault.name not in ("OK", "CSUM_START", "CSUM_OFFSET"):
            assert f"HDR_{fault.name}" in names
    frame = make(TCP4 / Raw(DATA))
    for fields, have, name in (
        (SUM4, F(0), "hdr_csum_feature"),
        (TSO4 | {"gso_size": 0}, GUEST, "hdr_gso_size"),
        (TSO4 | {"gso_type": 2}, GUEST, "hdr_gso_type"),
        ({}, GUEST | F.MRG_RXBUF, "hdr_num_buffers"),
    ):
        counters = OffloadCounters()
        got = classify_receive(NetHeader(**fields), frame, have, counters=counters)
        assert got.verdict is BAD and counters[f"rx_{name}"] == 1


def test_levels_of_a_tunnel() -> None:
    frame = make(vxlan(TCP4 / Raw(DATA)))
    assert classify_receive(NetHeader(flags=VALID), frame, GUEST).levels == 1
    assert classify_receive(NetHeader(flags=VALID | TUNNEL_CSUM), frame, GUEST).levels == 2
    assert classify_receive(NetHeader(**INNER), frame, GUEST).levels == 2
    assert classify_receive(NetHeader(flags=NEEDS, csum_start=34, csum_offset=6), frame, GUEST).levels == 1
    assert classify_receive(NetHeader(flags=VALID | TUNNEL_CSUM), make(TCP4), GUEST).levels == 1


@pytest.mark.parametrize("bit", [0x20, 0x40])
def test_a_tunnel_of_two_versions_is_believed_either_way(bit: int) -> None:
    """The specification means the inner version, Linux the outer one."""
    frame = make(vxlan(TCP4 / Raw(DATA), V6))
    fields = INNER | {
        "gso_type": 1 | bit, "csum_start": 104, "outer_th_offset": 54, "inner_nh_offset": 84, "hdr_len": 124,
    }  # fmt: skip
    assert classify_receive(NetHeader(**fields), frame, GUEST).verdict is NEEDS_CHECKSUM


def test_from_the_driver() -> None:
    frame = make(TCP4 / Raw(DATA))
    assert classify_receive(NetHeader(**SUM4), frame, F.CSUM, to_driver=False).verdict is NEEDS_CHECKSUM
    assert classify_receive(NetHeader(**SUM4), frame, F.CSUM).verdict is BAD
    got = classify_receive(NetHeader(flags=VALID), frame, F.CSUM, to_driver=False)
    assert (got.verdict, got.reason) == (UNKNOWN, ReceiveReason.CSUM_NONE)


# ---- batches and arguments ----


@given(
    mades=st.lists(frames(fragments=True, l3=("ipv4", "ipv6", "arp")), max_size=5),
    extra=st.sampled_from([0, 1 << 32, int(F.HASH_REPORT)]),
    seed=st.integers(0, 2**32),
)
def test_burst_is_one_by_one(mades: list[Made], extra: int, seed: int) -> None:
    rng = random.Random(seed)
    have = (int(GUEST) & (1 << 62) - 1) | extra
    size = net_header_size(have)
    headers = [
        NetHeader(
            flags=rng.choice([0, 1, 2, 3, 7]),
            gso_type=rng.choice([0, 0, 1, 4, 5, 0x81]),
            gso_size=rng.randrange(3),
            csum_start=rng.choice([made.outer.l4, rng.randrange(100)]),
            csum_offset=rng.choice([6, 16]),
        )
        for made in mades
    ]
    wanted = [classify_receive(h, made.data, have) for h, made in zip(headers, mades, strict=True)]
    buffers = [h.to_bytes(size) + made.data for h, made in zip(headers, mades, strict=True)]
    counters = OffloadCounters()
    both = (bytes(g.verdict for g in wanted), bytes(g.reason for g in wanted))
    assert classify_receive_burst(buffers, have, counters=counters) == both
    assert sum(counters[name] for name in counters) == len(mades)
    offsets = [sum(map(len, buffers[:i])) for i in range(len(buffers) + 1)]
    assert classify_receive_burst(b"".join(buffers), have, offsets=offsets) == both


def test_shorter_than_a_header() -> None:
    counters = OffloadCounters()
    got = classify_receive_burst([b"", bytes(9), bytes(10)], 0, counters=counters)
    assert got == (bytes([BAD, BAD, UNKNOWN]), bytes([ReceiveReason.HDR_SHORT, ReceiveReason.HDR_SHORT, 0]))
    assert counters["rx_hdr_short"] == 2


def test_every_path() -> None:
    results = set()
    for _ in each_simd():
        frame = make(vxlan(TCP4 / Raw(DATA)))
        put(frame, 40, 7)
        complete_receive(NetHeader(**INNER | {"flags": NEEDS | TUNNEL_CSUM}), frame, GUEST)
        results.add(bytes(frame))
    assert len(results) == 1


def test_both_checksums_of_a_tunnel_are_completed() -> None:
    """UDP_TUNNEL_CSUM: the outer field has a pseudo header's sum, too."""
    frame = make(vxlan(TCP4 / Raw(DATA)))
    wanted = bytes(frame)
    have = GUEST | F.GUEST_UDP_TUNNEL_GSO_CSUM
    sent = prepare_transmit(frame, have, 1000, to_driver=True)
    assert sent.header.flags == NEEDS | TUNNEL_CSUM and word(frame, 40) != word(wanted, 40)
    assert complete_receive(sent.header, frame, have).verdict is NEEDS_CHECKSUM
    assert frame == wanted


def test_the_outer_checksum_ends_where_the_datagram_does() -> None:
    """Not where the inner packet ends: what lies between is summed."""
    inner = Raw(bytes(ETHER / TCP4 / Raw(DATA)) + b"behind the inner packet")
    frame = make(V4 / UDP(dport=4789) / VXLAN(vni=5, flags=8) / inner)
    wanted = bytes(frame)
    header = NetHeader(**INNER | {"flags": NEEDS | TUNNEL_CSUM})
    fill_partial_checksum(frame, inner=True)
    fill_partial_checksum(frame)
    assert complete_receive(header, frame, GUEST).verdict is NEEDS_CHECKSUM
    assert frame == wanted and verify(frame).l4 is Verdict.GOOD


def test_arguments() -> None:
    frame = bytes(make(TCP4))
    with pytest.raises(BufferError):
        complete_receive(NetHeader(), frame, 0)
    with pytest.raises(TypeError):
        classify_receive(None, frame, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative"):
        classify_receive(NetHeader(), frame, -1)
    assert classify_receive(NetHeader(), b"", 0).verdict is UNKNOWN
