"""Sending: what leaves has right checksums, by whatever features; a device that obeys the header literally judges."""

from __future__ import annotations

import random
from typing import Any, Literal

import pytest
from frames import Made, frames
from hypothesis import event, given
from hypothesis import strategies as st
from naive_device import FIELDS, all_right, mend, put, transmit, word
from offloads import each_simd, naive_checksum
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from virtio.constants import NetFeature as F
from virtio.offload import (
    NetHeader,
    NetHeaderFault,
    OffloadCounters,
    TransmitOutcome,
    TransmitReason,
    net_header_size,
    prepare_transmit,
    prepare_transmit_burst,
    segment,
    verify,
)

HOST = F.CSUM | F.HOST_TSO4 | F.HOST_TSO6 | F.HOST_ECN | F.HOST_USO | F.HOST_UDP_TUNNEL_GSO | F.HOST_UDP_TUNNEL_GSO_CSUM
SENT_AS, DONE, SEGMENT, REFUSED = TransmitOutcome
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
V4, V6 = IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="2001:db8::1", dst="2001:db8::2")
DATA = random.Random(7).randbytes(3000)

features = st.lists(st.sampled_from(list(HOST)), max_size=7).map(lambda bits: sum(set(bits), F(0)))


def scrambled(made: Made, outer_zero: bool) -> bytearray:
    """The frame as a stack hands it over: whatever in the checksum fields that it wants to have filled."""
    frame = bytearray(made.data)
    for layer in (made.outer, made.inner):
        if layer is not None and layer.l4_kind in FIELDS:
            at = layer.l4 + FIELDS[layer.l4_kind]
            frame[at] ^= 0x5A
            if frame[at : at + 2] == b"\0\0":
                frame[at] = 1
    if made.inner is not None and outer_zero:
        put(frame, made.outer.l4 + 6, 0)
    return frame


def make(packet: Packet) -> bytearray:
    """The frame with a wrong transport checksum."""
    frame = bytearray(bytes(ETHER / packet))
    layer = ETHER.__class__(bytes(frame))
    for kind, offset in ((TCP, 16), (UDP, 6), (ICMP, 2), (ICMPv6EchoRequest, 2), (SCTP, 8)):
        if kind in layer:
            at = len(frame) - len(bytes(layer[kind])) + offset
            frame[at] ^= 0xFF
            break
    return frame


def good(frame: bytes | bytearray) -> bool:
    """Whether scapy computes the transport checksum that the frame has."""
    packet = ETHER.__class__(bytes(frame))
    for kind in (TCP, UDP):
        if kind in packet:
            found = packet[kind].chksum
            del packet[kind].chksum
            wanted: int = ETHER.__class__(bytes(packet))[kind].chksum
            return bool(found == wanted)
    raise AssertionError("no transport header")


@given(
    made=frames(fragments=True), have=features, mss=st.sampled_from([0, 0, 1, 7, 60, 199, 65535]), zero=st.booleans()
)
def test_what_leaves_is_right(made: Made, have: int, mss: int, zero: bool) -> None:
    frame = scrambled(made, zero)
    before = bytes(frame)
    target = made.inner or made.outer
    size = target.end - target.payload
    counters = OffloadCounters()
    outcome, reason, header = prepare_transmit(frame, have, mss, layer="inner", counters=counters)
    event(reason.counter)
    assert dict(counters) == {name: int(name == reason.counter) for name in counters}
    cut = 0 < mss < size
    if outcome is REFUSED:
        assert bytes(frame) == before and header == NetHeader()
        assert (
            target.fragmented
            or (cut and target.l4_kind not in ("tcp", "udp"))
            or (cut and (target.extensions or made.outer.extensions) and reason is TransmitReason.TSO_EXTENSION)
        )
        return
    assert not target.fragmented
    if outcome is SEGMENT:
        assert cut and bytes(frame) == before and header == NetHeader()
        assert target.l4_kind in ("tcp", "udp")
        leaving = segment(frame, mss).packets()
    else:
        assert header.check(len(frame), have) is NetHeaderFault.OK
        leaving = transmit(header, frame)
        if outcome is DONE:
            assert header == NetHeader() and not cut
    if not cut:
        wanted = bytearray(made.data)
        mend(wanted, target)
        if made.inner is not None:
            put(wanted, made.outer.l4 + 6, 0)
            if not zero:
                mend(wanted, made.outer)
        assert leaving == [bytes(wanted)]
        return
    assert len(leaving) == -(-size // mss)
    assert b"".join(piece[target.payload :] for piece in leaving) == made.data[target.payload : target.end]
    for piece in leaving:
        assert all_right(piece, made, len(piece))


@given(made=frames(padding=0, l4=("tcp", "udp"), extensions=0), mss=st.sampled_from([0, 40, 150]), zero=st.booleans())
def test_with_all_features_the_device_does_it(made: Made, mss: int, zero: bool) -> None:
    mixed = made.inner is not None and made.inner.l3_kind != made.outer.l3_kind
    target = made.inner or made.outer
    cut = 0 < mss < target.end - target.payload
    outcome, reason, _ = prepare_transmit(scrambled(made, zero), HOST, mss, layer="inner")
    if cut and mixed:
        assert reason is TransmitReason.TUNNEL_FAMILY
    else:
        assert outcome is SENT_AS
        assert (reason in (TransmitReason.TSO_OFFLOADED, TransmitReason.USO_OFFLOADED)) == cut


@given(made=frames(fragments=True, l3=("ipv4", "ipv6", "arp")), have=features, guest=st.booleans())
def test_unasked_it_is_sent_as_it_is(made: Made, have: int, guest: bool) -> None:
    frame = scrambled(made, False)
    before = bytes(frame)
    found = prepare_transmit(frame, have, checksum=False, to_driver=guest)
    assert found == (SENT_AS, TransmitReason.NO_OFFLOAD, NetHeader(num_buffers=int(guest)))
    assert bytes(frame) == before


# ---- the bugs of 2011 ----


def test_2011_ipv6_extension_headers() -> None:
    """The driver took the transport header for 40 bytes behind the IPv6 header's start."""
    chain = IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting(addresses=["2001:db8::9"], segleft=0) / IPv6ExtHdrDestOpt()
    for have in (HOST, F(0)):
        frame = make(V6 / chain / TCP(dport=0x9000) / Raw(DATA))
        assert not good(frame)
        result = prepare_transmit(frame, have)
        assert result.header.csum_start == (14 + 40 + 8 + 24 + 8 if have else 0)
        (leaving,) = transmit(result.header, frame)
        assert good(leaving)
        for piece in transmit(prepare_transmit(frame, HOST, 1000).header, frame):
            assert good(piece)


def test_2011_unknown_ethertype() -> None:
    """The driver sent it on, with the pseudo header's sum and nobody to complete it."""
    for frame in (
        bytes(ETHER.__class__(type=0x88B5)) + DATA,
        bytes(ETHER / ARP(psrc="10.0.0.1", pdst="10.0.0.2")),
        ETHER.dst.encode()[:12] + b"\x00\x40" + DATA[:64],
    ):
        counters = OffloadCounters()
        data = bytearray(frame)
        for mss in (0, 100):
            result = prepare_transmit(data, HOST, mss, counters=counters)
            assert (result.outcome, result.header) == (REFUSED, NetHeader())
        assert counters["tx_csum_unknown_ethtype"] == 2 and data == frame


def test_2011_sctp() -> None:
    """Its CRC32c went to the 16-bit sum of the device."""
    for have in (HOST, F(0)):
        for network in (V4, V6):
            frame = make(network / SCTP(tag=1) / SCTPChunkData(data=DATA[:333]))
            assert verify(frame).l4.name == "BAD"
            outcome, reason, header = prepare_transmit(frame, have)
            assert (outcome, reason, header) == (DONE, TransmitReason.CSUM_SCTP, NetHeader())
            assert verify(frame).l4.name == "GOOD"


def test_2011_tso_of_what_is_not_tcp() -> None:
    for packet in (V4 / ICMP() / Raw(DATA), V4 / SCTP() / SCTPChunkData(data=DATA)):
        counters = OffloadCounters()
        assert prepare_transmit(make(packet), HOST, 1000, counters=counters).outcome is REFUSED
        assert counters["tx_tso_not_tcp"] == 1
    counters = OffloadCounters()
    assert prepare_transmit(make(V4 / TCP() / Raw(DATA)), HOST, 1000, False, counters=counters).outcome is REFUSED
    assert counters["tx_tso_without_csum"] == 1


# ---- each reason ----

NO_VERSION = make(V4 / TCP() / Raw(DATA))
NO_VERSION[14] = 0x65
SHORT = make(V4 / TCP() / Raw(DATA))[:50]
LYING_UDP = make(V4 / UDP(dport=40000, len=500) / Raw(DATA))


def vxlan(inner: Packet, checksum: int | None = 0, network: Packet = V4) -> Packet:
    return network / UDP(dport=4789, chksum=checksum) / VXLAN(vni=5, flags=8) / ETHER / inner


TSO = V4 / TCP(dport=0x9000) / Raw(DATA)
LYING_TUNNEL = bytearray(bytes(ETHER / vxlan(TSO / Raw(b"behind"))))
put(LYING_TUNNEL, 38, word(LYING_TUNNEL, 38) - 6)  # the UDP length, and what lies behind it in the packet
put(LYING_TUNNEL, 66, word(LYING_TUNNEL, 66) - 6)
LOOKALIKE = V4 / UDP(dport=4789) / Raw(b"\x08" + bytes(2000))
FRAGMENT = IP(flags="MF") / TCP() / Raw(DATA)
LONG = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(200))] * 5)
REASONS: list[tuple[str, Packet | bytearray, int, int, str]] = [
    ("csum", TSO, HOST, 0, "csum_offloaded"),
    ("csum of one segment", TSO, HOST, 3000, "csum_offloaded"),
    ("vlans", Dot1AD(vlan=5) / Dot1Q(vlan=7) / TSO, HOST, 0, "csum_offloaded"),
    ("tso4", TSO, HOST, 2999, "tso_offloaded"),
    ("tso6", V6 / TCP(dport=0x9000) / Raw(DATA), HOST, 1440, "tso_offloaded"),
    ("uso4", V4 / UDP(dport=0x9000) / Raw(DATA), HOST, 1472, "uso_offloaded"),
    ("uso6", V6 / UDP(dport=0x9000) / Raw(DATA), HOST, 1452, "uso_offloaded"),
    ("tunnel", vxlan(TSO), HOST, 1400, "tso_offloaded"),
    ("no csum", TSO, HOST & ~F.CSUM, 0, "csum_software"),
    ("padded", bytearray(bytes(ETHER / TSO) + b"\xff"), HOST, 0, "csum_padded"),
    ("udp shorter than its packet", LYING_UDP, HOST, 0, "csum_padded"),
    ("icmp", V4 / ICMP() / Raw(DATA), HOST, 0, "csum_icmp"),
    ("icmpv6", V6 / ICMPv6EchoRequest() / Raw(DATA), HOST, 0, "csum_icmp"),
    ("no tso", TSO, HOST & ~F.HOST_TSO4, 1460, "tso_software"),
    ("tso and no csum", TSO, HOST & ~F.CSUM, 1460, "tso_software"),
    ("cwr", V4 / TCP(flags="CA") / Raw(DATA), HOST & ~F.HOST_ECN, 1460, "tso_ecn"),
    ("no uso", V4 / UDP(dport=0x9000) / Raw(DATA), HOST & ~F.HOST_USO, 1472, "uso_software"),
    ("64 uso segments", V4 / UDP(dport=0x9000) / Raw(DATA[:640]), HOST, 10, "uso_offloaded"),
    ("65 uso segments", V4 / UDP(dport=0x9000) / Raw(DATA[:641]), HOST, 10, "uso_segments"),
    ("no tunnel", vxlan(TSO), HOST & ~F.HOST_UDP_TUNNEL_GSO, 1400, "tunnel_software"),
    ("tunnel checksum", vxlan(TSO, 1), HOST & ~F.HOST_UDP_TUNNEL_GSO_CSUM, 1400, "tunnel_csum_software"),
    ("v4 in v6", vxlan(TSO, 0, V6), HOST, 1400, "tunnel_family"),
    ("tso and padding", bytearray(bytes(ETHER / TSO) + b"\xff"), HOST, 1460, "gso_padded"),
    ("version", NO_VERSION, HOST, 0, "csum_proto_mismatch"),
    ("gre", IP(src="10.0.0.1", dst="10.0.0.2", proto=47) / Raw(DATA), HOST, 0, "csum_unknown_ipproto"),
    ("first fragment", IP(src="10.0.0.1", dst="10.0.0.2", flags="MF") / UDP() / Raw(DATA), HOST, 0, "csum_fragment"),
    ("later fragment", V6 / IPv6ExtHdrFragment(offset=9, nh=17) / Raw(DATA), HOST, 0, "csum_fragment"),
    ("fragment in a tunnel", vxlan(FRAGMENT), HOST, 3000, "csum_fragment"),
    ("fragment in a tunnel, forwarded", vxlan(FRAGMENT), HOST, 0, "csum_offloaded"),
    ("cut off", SHORT, HOST, 0, "csum_bad_frame"),
    ("ah", V6 / AH(nh=6, payloadlen=1) / TCP() / Raw(DATA), HOST, 1000, "tso_extension"),
    ("atomic fragment", V6 / IPv6ExtHdrFragment() / TCP() / Raw(DATA), HOST, 1000, "tso_extension"),
    ("lying udp", LYING_UDP, HOST, 1000, "gso_bad_length"),
    ("lying udp of a tunnel", LYING_TUNNEL, HOST, 1000, "gso_bad_length"),
    ("ah around a tunnel", vxlan(TSO, 0, V6 / AH(nh=17, payloadlen=1)), HOST, 1000, "tso_extension"),
    ("long headers", V6 / LONG / TCP() / Raw(DATA), HOST, 1000, "tso_offloaded"),
    ("long headers, no tso", V6 / LONG / TCP() / Raw(DATA), F.CSUM, 1000, "gso_headers"),
    ("legacy gso", TSO, F.CSUM | F.GSO, 1460, "tso_offloaded"),
    ("legacy gso of a modern device", TSO, F.CSUM | F.GSO | 1 << 32, 1460, "tso_software"),
    ("arp in a tunnel, forwarded", vxlan(ARP(psrc="10.0.0.1", pdst="10.0.0.2")), HOST, 0, "csum_offloaded"),
    ("arp in a tunnel", vxlan(ARP(psrc="10.0.0.1", pdst="10.0.0.2")), HOST, 3000, "csum_unknown_ethtype"),
    ("what looks like a tunnel, cut", LOOKALIKE, HOST, 1000, "csum_unknown_ethtype"),
    ("tunnel in a tunnel, cut", vxlan(vxlan(TSO)), HOST, 1000, "tso_not_tcp"),
    ("tunnel in a tunnel, cut by us", vxlan(vxlan(TSO)), F.CSUM, 1000, "tso_not_tcp"),
    ("tunnel in a tunnel", vxlan(vxlan(TSO)), HOST, 4000, "csum_offloaded"),
]


@pytest.mark.parametrize(("packet", "have", "mss", "name"), [r[1:] for r in REASONS], ids=[r[0] for r in REASONS])
def test_reason(packet: Packet | bytearray, have: int, mss: int, name: str) -> None:
    frame = bytearray(packet) if isinstance(packet, bytearray) else bytearray(bytes(ETHER / packet))
    counters = OffloadCounters()
    result = prepare_transmit(frame, have, mss, counters=counters)
    assert result.reason.counter == f"tx_{name}"
    assert counters[f"tx_{name}"] == 1 and result.outcome is result.reason.outcome


def test_jumbogram() -> None:
    """RFC 2675: its checksum can be left to the device, cutting it to nobody."""
    packet = (
        IPv6(src="::1", dst="::2", plen=0) / IPv6ExtHdrHopByHop(nh=6, len=0) / TCP(dport=0x9000) / Raw(bytes(70000))
    )
    frame = bytearray(bytes(ETHER / packet))
    frame[56:62] = b"\xc2\x04" + (8 + 20 + 70000).to_bytes(4, "big")
    assert prepare_transmit(frame, HOST, 1000).reason is TransmitReason.TSO_JUMBOGRAM
    result = prepare_transmit(frame, HOST)
    assert result.reason is TransmitReason.CSUM_OFFLOADED
    (leaving,) = transmit(result.header, frame)
    pseudo = leaving[22:54] + (70020).to_bytes(4, "big") + (6).to_bytes(4, "big")
    assert naive_checksum(pseudo + leaving[62:]) == 0


def test_all_reasons_are_tried() -> None:
    tried = {f"tx_{r[4]}" for r in REASONS} | {
        "tx_no_offload", "tx_csum_unknown_ethtype", "tx_csum_sctp", "tx_tso_not_tcp", "tx_tso_without_csum",
        "tx_tso_jumbogram",
    }  # fmt: skip
    assert tried == {reason.counter for reason in TransmitReason}


@pytest.mark.parametrize("checksum", [0, 1], ids=["no outer checksum", "outer checksum"])
@pytest.mark.parametrize("network", [V4, V6], ids=["v4", "v6"])
def test_tunnel_header(network: Packet, checksum: int) -> None:
    """The example of VIRTIO 1.4, 5.1.9.2, with VXLAN for GENEVE."""
    size = 20 if network is V4 else 40
    frame = bytearray(bytes(ETHER / vxlan(network / TCP(flags="CPA") / Raw(DATA), checksum, network)))
    header = prepare_transmit(frame, HOST, 1000).header
    tcp = 4 if network is V6 else 1
    assert header == NetHeader(
        flags=9 if checksum else 1, gso_type=tcp | (0x20 if network is V4 else 0x40) | 0x80, gso_size=1000,
        csum_start=14 + size + 30 + size, csum_offset=16, hdr_len=14 + size + 30 + size + 20,
        outer_th_offset=14 + size, inner_nh_offset=14 + size + 30,
    )  # fmt: skip


def test_outer_checksum_comes_without_the_payload() -> None:
    """Beside an inner NEEDS_CSUM the outer checksum is complete, and becomes true when the device is done."""
    frame = bytearray(bytes(ETHER / vxlan(V4 / UDP(dport=0x9000) / Raw(DATA), 1)))
    result = prepare_transmit(frame, F.CSUM, layer="inner")
    assert result.reason is TransmitReason.CSUM_OFFLOADED and word(frame, 40) != 1
    (leaving,) = transmit(result.header, frame)
    checks = verify(leaving)
    assert (checks.l4.name, checks.inner_l4.name) == ("GOOD", "GOOD")


@pytest.mark.parametrize("have", [HOST, F(0)], ids=["all", "none"])
@given(made=frames(fragments=True), zero=st.booleans(), damage=st.integers(0, 1 << 16))
def test_what_is_forwarded_is_payload(have: int, made: Made, zero: bool, damage: int) -> None:
    """Only the outermost checksum is filled in, if it was 0, too; what is within a tunnel may be wrong or anything."""
    if made.inner is None or made.outer.fragmented:
        return
    frame = scrambled(made, zero)
    at = made.outer.payload + damage % (made.outer.end - made.outer.payload)
    if at >= made.outer.payload + 8:  # the tunnel header makes it a tunnel
        frame[at] ^= 0x55
    wanted = bytearray(frame)
    mend(wanted, made.outer)
    outcome, reason, header = prepare_transmit(frame, have)
    event(reason.counter)
    assert outcome in (SENT_AS, DONE)
    assert transmit(header, frame) == [bytes(wanted)]


TCP4 = bytes(TCP(dport=0x9000) / Raw(DATA[:100]))
UNPARSED: dict[str, tuple[Packet, TransmitReason]] = {
    "routing header of an unknown type": (
        IPv6(src="::1", dst="::2", nh=43) / Raw(b"\x06\x02\x03\x01" + bytes(20) + TCP4),
        TransmitReason.CSUM_UNKNOWN_IPPROTO,
    ),
    "data offset": (
        IP(src="10.0.0.1", dst="10.0.0.2", proto=6) / Raw(TCP4[:12] + b"\x40" + TCP4[13:]),
        TransmitReason.CSUM_BAD_FRAME,
    ),
    "cut off": (IP(src="10.0.0.1", dst="10.0.0.2", proto=6, len=999) / Raw(TCP4), TransmitReason.CSUM_BAD_FRAME),
    "esp": (IP(src="10.0.0.1", dst="10.0.0.2", proto=50) / Raw(TCP4), TransmitReason.CSUM_UNKNOWN_IPPROTO),
    "arp": (ARP(psrc="10.0.0.1", pdst="10.0.0.2"), TransmitReason.CSUM_UNKNOWN_ETHTYPE),
    "later fragment": (IP(src="10.0.0.1", dst="10.0.0.2", frag=9) / Raw(TCP4), TransmitReason.CSUM_FRAGMENT),
}


@pytest.mark.parametrize(("packet", "reason"), UNPARSED.values(), ids=UNPARSED)
def test_an_inner_packet_that_is_not_parsed(packet: Packet, reason: TransmitReason) -> None:
    """Refused as it is without a tunnel, if the stack built it; sound payload, if it is forwarded."""
    plain, tunnel = bytearray(bytes(ETHER / packet)), bytearray(bytes(ETHER / vxlan(packet, 1)))
    before = bytes(tunnel)
    for mss in (0, 10, 9000):
        assert prepare_transmit(plain, HOST, mss).reason is reason
        assert prepare_transmit(tunnel, HOST, mss, layer="inner") == (REFUSED, reason, NetHeader())
    assert tunnel == before
    result = prepare_transmit(tunnel, HOST)
    assert result.reason is TransmitReason.CSUM_OFFLOADED and result.header.csum_start == 34
    (leaving,) = transmit(result.header, tunnel)
    assert verify(leaving).l4.name == "GOOD" and leaving[42:] == before[42:]


def test_which_layer() -> None:
    """Without mss the outermost, with mss the inner one, and what was said before all."""
    frame = bytes(ETHER / vxlan(TSO, 1))
    cases: list[tuple[int, Literal["inner", "outer"] | None, int]] = [
        (0, None, 34), (0, "outer", 34), (0, "inner", 84), (3000, None, 84), (4000, "outer", 34), (3000, "inner", 84),
    ]  # fmt: skip
    for mss, layer, start in cases:
        one, many = bytearray(frame), bytearray(frame)
        header = prepare_transmit(one, F.CSUM, mss, layer=layer).header
        assert header.csum_start == start and (one[42:] == frame[42:]) == (start == 34)
        assert prepare_transmit_burst([many], F.CSUM, [mss], layer=layer)[1] == header.to_bytes(10)
        assert many == one
    refused = prepare_transmit(bytearray(frame), HOST, 1000, layer="outer")
    assert refused.reason is TransmitReason.TSO_NOT_TCP
    for call in (prepare_transmit, prepare_transmit_burst):
        with pytest.raises(ValueError, match="layer 'both' is neither 'inner' nor 'outer'"):
            call(bytearray(frame), HOST, layer="both")  # type: ignore[arg-type]
    plain = bytearray(bytes(ETHER / TSO))
    for _, layer, _ in cases:
        assert prepare_transmit(plain, HOST, layer=layer).header.csum_start == 34


def test_outer_checksum_that_comes_out_as_zero() -> None:
    """RFC 768: 0xffff in its place; one of all source ports makes it so. Complete beside an inner partial one, too."""
    frame = bytearray(bytes(ETHER / vxlan(V4 / TCP(dport=0x9000) / Raw(DATA[:101]), 1)))
    cases: list[tuple[int, Literal["inner", "outer"]]] = [(F.CSUM, "inner"), (F(0), "inner"), (F(0), "outer")]
    for have, layer in cases:
        zeros = 0
        for port in range(0x10000):
            put(frame, 34, port)
            put(frame, 40, 1)
            prepare_transmit(frame, have, layer=layer)
            assert word(frame, 40) != 0
            zeros += word(frame, 40) == 0xFFFF
        assert zeros


def test_to_the_driver() -> None:
    """A device prepares a frame by the GUEST features; num_buffers is at least 1 there."""
    frame = bytearray(bytes(ETHER / TSO))
    have = F.GUEST_CSUM | F.GUEST_TSO4 | F.MRG_RXBUF
    result = prepare_transmit(frame, have, 1460, to_driver=True)
    assert (result.header.gso_type, result.header.num_buffers) == (1, 1)
    assert result.header.check(len(frame), have, to_driver=True) is NetHeaderFault.OK
    assert prepare_transmit(frame, HOST, 1460, to_driver=True).reason is TransmitReason.TSO_SOFTWARE
    assert prepare_transmit(frame, have, 1460).reason is TransmitReason.TSO_SOFTWARE
    uso = bytearray(bytes(ETHER / V6 / UDP() / Raw(DATA)))
    assert prepare_transmit(uso, F.GUEST_CSUM | F.GUEST_USO4, 1000, to_driver=True).outcome is SEGMENT
    assert prepare_transmit(uso, F.GUEST_CSUM | F.GUEST_USO6, 1000, to_driver=True).outcome is SENT_AS


# ---- batches and arguments ----


@given(
    mades=st.lists(frames(fragments=True, l3=("ipv4", "ipv6", "arp")), max_size=6),
    have=features,
    extra=st.sampled_from([0, 1 << 32, F.HASH_REPORT, F.MRG_RXBUF]),
    mss=st.lists(st.sampled_from([0, 1, 100, 65535]), min_size=6, max_size=6),
)
def test_burst_is_one_by_one(mades: list[Made], have: int, extra: int, mss: list[int]) -> None:
    have |= extra
    size = net_header_size(have)
    ones = [scrambled(made, False) for made in mades]
    results = [prepare_transmit(frame, have, m) for frame, m in zip(ones, mss, strict=False)]
    wanted = (bytes(r.reason for r in results), b"".join(r.header.to_bytes(size) for r in results))
    many = [scrambled(made, False) for made in mades]
    counters = OffloadCounters()
    assert prepare_transmit_burst(many, have, mss[: len(many)], counters=counters) == wanted
    assert many == ones and sum(counters[name] for name in counters) == len(many)
    joined = bytearray(b"".join(scrambled(made, False) for made in mades))
    offsets = [sum(map(len, ones[:i])) for i in range(len(ones) + 1)]
    assert prepare_transmit_burst(joined, have, mss[: len(many)], offsets=offsets) == wanted
    assert joined == b"".join(ones)
    same = [prepare_transmit(scrambled(made, False), have, 100).reason for made in mades]
    assert prepare_transmit_burst([scrambled(made, False) for made in mades], have, 100)[0] == bytes(same)


@given(made=frames(padding=0), mss=st.sampled_from([0, 50]))
def test_every_path(made: Made, mss: int) -> None:
    results: set[Any] = set()
    for _ in each_simd():
        frame = scrambled(made, False)
        result = prepare_transmit(frame, HOST, mss)
        results.add((result.reason, result.header.to_bytes(24), bytes(frame)))
    assert len(results) == 1


def test_arguments() -> None:
    frame = bytearray(bytes(ETHER / TSO))
    for mss in (-1, 65536, 1 << 70, -(1 << 70)):
        with pytest.raises(ValueError, match=rf"mss {mss} out of range \(0 to 65535\)"):
            prepare_transmit(frame, HOST, mss)
        with pytest.raises(ValueError, match=f"mss {mss} out of range"):
            prepare_transmit_burst([frame], HOST, [mss])
    with pytest.raises(ValueError, match="2 mss for 1 frames"):
        prepare_transmit_burst([frame], HOST, [1, 2])
    with pytest.raises(BufferError):
        prepare_transmit(bytes(frame), HOST)
    with pytest.raises(BufferError):
        prepare_transmit_burst([bytes(frame)], HOST)
    for negative in (-1, -(1 << 70)):
        with pytest.raises(ValueError, match=f"features {negative} are negative"):
            prepare_transmit(frame, negative)
    assert frame == bytes(ETHER / TSO)


def test_counters() -> None:
    counters = OffloadCounters()
    frames_ = [make(TSO), make(V4 / ICMP())]
    prepare_transmit_burst(frames_, HOST, 1460, counters=counters)
    prepare_transmit(frames_[0], F(0), counters=counters)
    assert repr(counters) == "OffloadCounters(tx_tso_offloaded=1, tx_csum_software=1, tx_csum_icmp=1)"
    assert len(counters) == len(list(counters)) == len(dict(counters))
    counters.reset()
    assert not any(dict(counters).values())
    with pytest.raises(KeyError):
        counters["tx_nothing"]


def test_the_judge_judges() -> None:
    """The device and the oracle of these tests see a wrong checksum."""
    frame = make(TSO)
    header = prepare_transmit(frame, HOST).header
    assert good(transmit(header, frame)[0])
    header.csum_start += 2
    assert not good(transmit(header, frame)[0])
    frame[50] ^= 1
    header.csum_start -= 2
    assert not good(transmit(header, frame)[0])
