"""Coalescing: which segments merge, each rule by itself, and what the result says."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from guardpages import Guarded
from scapy.layers.inet import IP, TCP, UDP, fragment
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw
from tcpstream import (
    ACK,
    BOTH,
    CWR,
    DATA_VALID,
    DF,
    ECE,
    ECN,
    FIN,
    NEEDS_CSUM,
    PSH,
    RSC_INFO,
    RST,
    SYN,
    TCPV4,
    TCPV6,
    TIMESTAMP,
    URG,
    Segment,
    again,
    folded,
    groups,
    run,
    stream,
)

from virtio import offload
from virtio.constants import NetFeature
from virtio.offload import Coalescer, NetHeader, NetHeaderFault

GUEST = NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6 | NetFeature.GUEST_ECN


# ---- what merges ----


@BOTH
@pytest.mark.parametrize("options", [b"", TIMESTAMP + bytes(8), b"\x01\x01\x05\x0a" + bytes(8), bytes(range(40))])
@pytest.mark.parametrize("tags", [(), ((0x8100, 0x2005),), ((0x88A8, 7), (0x8100, 9))])
def test_in_order(ipv6: bool, options: bytes, tags: tuple[tuple[int, int], ...]) -> None:
    segments = stream(7, ipv6=ipv6, options=options, tags=tags, label=5 if ipv6 else 0, tos=2)
    got, (merged,), counted = run(segments)
    assert got == [list(range(7))]
    l4 = 14 + 4 * len(tags) + (40 if ipv6 else 20)
    assert merged.passed is None
    header = merged.net_header
    assert (merged.segments, header.gso_size, header.hdr_len) == (7, 100, l4 + 20 + len(options))
    assert (header.flags, header.csum_start, header.csum_offset, header.num_buffers) == (NEEDS_CSUM, l4, 16, 1)
    assert header.gso_type == (TCPV6 if ipv6 else TCPV4)
    assert (merged.gso_type, merged.gso_size, len(merged.header)) == (header.gso_type, header.gso_size, header.hdr_len)
    assert header.check(len(merged), GUEST, to_driver=True) is NetHeaderFault.OK
    assert [bytes(piece) for piece in merged.pieces] == [one.payload for one in segments]
    assert len(merged) == len(merged.header) + 700
    assert not merged.fixed_id
    assert counted == {"passed": {}, "flushed": {"asked": 1}}


@BOTH
def test_the_header_that_all_share(ipv6: bool) -> None:
    """It is right for the whole packet; TCP's checksum is the pseudo header's sum, and completes to the right one."""
    segments = stream(3, ipv6=ipv6, seq=0xFFFFFFF0, id=0xFFFE)  # both wrap
    segments[-1] = segments[-1].but(flags=ACK | PSH)
    merged = run(segments)[1][0]
    whole = bytearray(bytes(merged))
    total = bytes(whole[merged.net_header.csum_start :])
    packet = Ether(bytes(whole))
    assert packet[TCP].seq == 0xFFFFFFF0
    assert packet[TCP].flags == "PA"
    if ipv6:
        assert packet[IPv6].plen == 20 + 300
        pseudo = bytes(whole[22:54]) + struct.pack("!II", len(total), 6)
    else:
        assert (packet[IP].len, packet[IP].id) == (40 + 300, 0xFFFE)
        assert folded(bytes(whole[14:34])) == 0xFFFF
        pseudo = bytes(whole[26:34]) + struct.pack("!HH", 6, len(total))
    assert struct.unpack_from("!H", total, 16)[0] == folded(pseudo)
    del packet[TCP].chksum
    assert bytes(packet) == bytes(segments[0].but(payload=b"".join(s.payload for s in segments), flags=ACK | PSH))


def test_rsc_info() -> None:
    """VIRTIO_NET_F_RSC_EXT: the number of segments, and of duplicate ACKs, in place of csum_start and csum_offset.

    The checksum is still to be completed (VIRTIO 1.4, 5.1.9.4): a driver finds it by a look into the frame.
    """
    features = GUEST | NetFeature.RSC_EXT
    for verify in (True, False):
        merged = run(stream(5), rsc_info=True, verify=verify)[1][0]
        header = merged.net_header
        assert header.flags == RSC_INFO | NEEDS_CSUM
        assert (header.csum_start, header.csum_offset, header.gso_type) == (5, 0, TCPV4)
        assert header.check(len(merged), features, to_driver=True) is NetHeaderFault.OK
        frame = bytearray(bytes(merged))
        told = offload.complete_receive(header, frame, features)
        assert (told.verdict, told.segments) == (offload.ReceiveVerdict.NEEDS_CHECKSUM, 5)
        assert offload.verify(frame).l4 is offload.Verdict.GOOD


@BOTH
def test_a_shorter_segment_ends_the_run(ipv6: bool) -> None:
    a, b, c, d = stream(4, ipv6=ipv6)
    c = c.but(payload=b"short")
    d = d.but(seq=c.seq + 5)
    coalescer = Coalescer()
    assert coalescer.receive(bytes(a)) == coalescer.receive(bytes(b)) == []
    (merged,) = coalescer.receive(bytes(c))
    assert (merged.segments, merged.gso_size, len(merged) - len(merged.header)) == (3, 100, 205)
    assert coalescer.receive(bytes(d)) == []
    assert run([a, b, c, d])[::2] == ([[0, 1, 2], [3]], {"passed": {"alone": 1}, "flushed": {"ended": 1, "asked": 1}})


def test_a_longer_segment_starts_another() -> None:
    a = Segment(payload=b"short")
    b, c = stream(2, a.after(payload=b"y" * 100))
    assert run([a, b, c])[::2] == ([[0], [1, 2]], {"passed": {"alone": 1}, "flushed": {"size": 1, "asked": 1}})


@pytest.mark.parametrize("flag", [PSH, FIN, PSH | FIN])
def test_psh_and_fin_end_the_run(flag: int) -> None:
    a, b, c, d = stream(4)
    got, results, counted = run([a, b.but(flags=ACK | flag), c, d.but(flags=ACK | flag)])
    assert got == [[0, 1], [2, 3]]
    assert all(merged.header[47] == ACK | flag for merged in results)
    assert counted == {"passed": {}, "flushed": {"ended": 2}}


def test_psh_alone_is_not_held() -> None:
    coalescer = Coalescer()
    (merged,) = coalescer.receive(bytes(Segment(flags=ACK | PSH)))
    assert (merged.passed, merged.net_header.flags, merged.gso_type) == ("pushed", DATA_VALID, 0)


def test_cwr_only_in_the_first() -> None:
    """RFC 3168, 6.1.2: CWR is in one segment. GSO_ECN says that only the first is to have it."""
    a, b, c, d = stream(4, tos=2)
    got, (first, second), counted = run([a, b, c.but(flags=ACK | CWR), d])
    assert got == [[0, 1], [2, 3]]
    assert (first.gso_type, second.gso_type) == (TCPV4, TCPV4 | ECN)
    assert second.header[47] == ACK | CWR
    assert counted["flushed"] == {"cwr": 1, "asked": 1}


def test_ece_equal() -> None:
    a, b, c, d = (one.but(flags=ACK | ECE) for one in stream(4))
    assert groups([a, b, c, d]) == [[0, 1, 2, 3]]
    assert groups([a, b, c.but(flags=ACK), d.but(flags=ACK)]) == [[0, 1], [2, 3]]


@BOTH
@pytest.mark.parametrize("field", ["ack", "window", "tos", "ttl", "options", "urgent", "label", "fragment", "reserved"])
def test_header_changes(ipv6: bool, field: str) -> None:
    """Each field that all segments of a run share: if it changes, another run starts."""
    a, b, c, d = stream(4, ipv6=ipv6, options=TIMESTAMP + bytes(8))
    change = {
        "ack": {"ack": 78}, "window": {"window": 501}, "tos": {"tos": 1}, "ttl": {"ttl": 63}, "urgent": {"urgent": 1},
        "options": {"options": TIMESTAMP + bytes(7) + b"\x01"}, "label": {"label": 9}, "fragment": {"fragment": 0},
        "reserved": {"flags": ACK},
    }[field]  # fmt: skip
    frames = [bytes(a), bytes(b), bytes(c.but(**change)), bytes(d.but(**change))]
    if field == "reserved":  # the bits beside the data offset
        frames = [*frames[:2], *(bits(frame, 0x0E00) for frame in frames[2:])]
    same = field == ("fragment" if ipv6 else "label")
    got, _, counted = run(frames)
    assert got == ([[0, 1, 2, 3]] if same else [[0, 1], [2, 3]])
    assert counted["flushed"] == ({"asked": 1} if same else {"header": 1, "asked": 1})


def bits(frame: bytes, value: int) -> bytes:
    """Set bits beside the TCP data offset, and correct the checksum (RFC 1624, 3)."""
    at = 14 + (40 if frame[12:14] == b"\x86\xdd" else 20) + 12
    changed = bytearray(frame)
    (old,) = struct.unpack_from("!H", frame, at)
    (check,) = struct.unpack_from("!H", frame, at + 4)
    total = (~check & 0xFFFF) + (~old & 0xFFFF) + (old | value)
    total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into("!H", changed, at, old | value)
    struct.pack_into("!H", changed, at + 4, ~(total + (total >> 16)) & 0xFFFF)
    return bytes(changed)


@pytest.mark.parametrize(
    "change",
    [{"sport": 1026}, {"dport": 81}, {"host": 2}, {"tags": ((0x8100, 1),)}, {"ipv6": True}],
    ids=["source port", "destination port", "address", "vlan", "version"],
)
def test_flows_are_apart(change: dict[str, object]) -> None:
    """Two flows, interleaved: each merges, and the one that began first comes first."""
    one = stream(3)
    other = [segment.but(**change) for segment in one]
    mixed = [frame for pair in zip(one, other, strict=True) for frame in pair]
    assert groups(mixed) == [[0, 2, 4], [1, 3, 5]]


def test_mac_addresses_make_flows() -> None:
    one = [bytes(s) for s in stream(2)]
    other = [b"\x02\x00\x00\x00\x00\x64" + frame[6:] for frame in one]
    assert groups([one[0], other[0], one[1], other[1]]) == [[0, 2], [1, 3]]


# ---- IPv4 ids ----


@pytest.mark.parametrize("df", [DF, 0])
def test_ids_grow_by_one(df: int) -> None:
    a, b, c, d = stream(4, fragment=df, id=0xFFFE)
    assert groups([a, b, c, d]) == [[0, 1, 2, 3]]
    got, _, counted = run([a, b, c.but(id=5), d.but(id=6)])
    assert (got, counted["flushed"]) == ([[0, 1], [2, 3]], {"id": 1, "asked": 1})


@pytest.mark.parametrize("df", [DF, 0])
@pytest.mark.parametrize("fixed_id", [False, True])
def test_fixed_ids(df: int, fixed_id: bool) -> None:
    """Only where asked for, and only with DF, where the id says nothing (RFC 6864)."""
    same = [one.but(id=0) for one in stream(3, fragment=df)]
    got, results, _ = run(same, fixed_id=fixed_id)
    assert got == ([[0, 1, 2]] if df and fixed_id else [[0], [1], [2]])
    assert [merged.fixed_id for merged in results] == ([True] if df and fixed_id else [False] * 3)
    rising, (merged,), _ = run(stream(3, fragment=df), fixed_id=fixed_id)
    assert (rising, merged.fixed_id) == ([[0, 1, 2]], False)
    if df and fixed_id:
        a, b, c, d = stream(4)
        assert groups([a, b.but(id=a.id), c.but(id=a.id + 1), d], fixed_id=True) == [[0, 1], [2], [3]]
        assert groups([c.but(id=0), a.but(id=0), b.but(id=0), d.but(id=0)], fixed_id=True) == [[1, 2, 0, 3]]


# ---- what passes ----

PASSES: list[tuple[str, Callable[[Segment], Segment | bytes]]] = [
    ("no_payload", lambda s: s.but(payload=b"")),
    ("no_payload", lambda s: s.but(payload=b"", options=TIMESTAMP + bytes(8))),
    ("tcp_flags", lambda s: s.but(flags=ACK | SYN)),
    ("tcp_flags", lambda s: s.but(flags=ACK | RST)),
    ("tcp_flags", lambda s: s.but(flags=ACK | URG, urgent=3)),
    ("tcp_flags", lambda s: s.but(flags=0)),
    ("fragment", lambda s: s.but(fragment=0x2000)),
    ("fragment", lambda s: s.but(fragment=0x8000)),
    ("ip_options", lambda s: s.but(ip_options=b"\x01" * 4)),
    ("padded", lambda s: s.but(padding=b"\x00")),
    ("padded", lambda s: s.but(payload=b"12", padding=bytes(4))),
    ("checksum", lambda s: s.but(tcp_checksum=0x1234)),
    ("checksum", lambda s: s.but(ip_checksum=0x1234)),
    ("malformed", lambda s: bytes(s)[:-1]),
    ("malformed", lambda s: bytes(s)[: 46 + 4 * len(s.tags)] + b"\xf0" + bytes(s)[47 + 4 * len(s.tags) : 90]),
    ("malformed", lambda s: bytes(s)[:50]),
]


@pytest.mark.parametrize(("why", "make"), PASSES)
@pytest.mark.parametrize("tags", [(), ((0x8100, 5),)], ids=["plain", "vlan"])
def test_passes(why: str, make: Callable[[Segment], Segment | bytes], tags: tuple[tuple[int, int], ...]) -> None:
    """It comes back as it came, behind what is held of its flow and before what comes later."""
    a, b, c, d, e = stream(5, tags=tags)
    got, results, counted = run([a, b, make(c), d, e])
    if why == "malformed":  # what it says of its flow is not believed; the others have a gap where it was
        assert got == [[2], [0, 1], [3, 4]]
    else:
        assert got == [[0, 1], [2], [3, 4]]
        assert counted["flushed"]["passed"] == 1
    passed = next(merged for merged in results if merged.segments == 1)
    assert (passed.passed, passed.net_header) == (why, NetHeader(num_buffers=1))
    assert counted["passed"][why] == 1


def test_ipv6_extensions_pass() -> None:
    a, b, c = stream(3, ipv6=True)
    got, _, counted = run([a, b.but(extensions=b"\x06\x00\x01\x04" + bytes(4)), c])
    assert (got, counted["passed"]) == ([[0], [1], [2]], {"alone": 2, "extensions": 1})


def test_many_vlans_pass() -> None:
    tags = ((0x88A8, 1), (0x8100, 2), (0x8100, 3))
    assert run(stream(2, tags=tags))[::2] == ([[0], [1]], {"passed": {"vlans": 2}, "flushed": {}})


def test_a_vlan_type_off_the_fast_path() -> None:
    assert groups(stream(3, tags=((0x9100, 1),))) == [[0, 1, 2]]


def test_checksum_of_all_ones() -> None:
    """0xffff verifies where 0 is right, but segmentation computes 0: it could not give the frame back."""

    def zero(s: Segment) -> Segment:
        """Make the right TCP checksum 0."""
        check = struct.unpack_from("!H", bytes(s.but(payload=b"\x00\x00" + s.payload[2:])), 50)[0]
        return s.but(payload=struct.pack("!H", check) + s.payload[2:])

    a, b, c = (zero(one) for one in stream(3))
    assert bytes(b)[50:52] == b"\x00\x00"
    assert groups([a, b, c]) == [[0, 1, 2]]
    for trusted in (False, True):
        coalescer = Coalescer()
        frames = [bytes(a), bytes(b.but(tcp_checksum=0xFFFF)), bytes(c)]
        results = coalescer.receive(frames, trusted=trusted) + coalescer.flush()
        assert [bytes(merged) for merged in results] == frames
        assert coalescer.statistics()["passed"]["checksum_form"] == 1
    for ident in range(1 << 16):  # an IPv4 header whose right checksum is 0
        if bytes(Segment(id=ident))[24:26] == b"\x00\x00":
            break
    a, b = stream(2, id=ident)
    assert groups([a, b]) == [[0, 1]]
    assert run([a.but(ip_checksum=0xFFFF), b])[2]["passed"] == {"checksum_form": 1, "alone": 1}


def test_trust() -> None:
    """A trusted TCP checksum is not computed; the IPv4 header's is, whatever DATA_VALID says of TCP."""
    wrong = [bytes(one.but(tcp_checksum=0x1234)) for one in stream(4)]
    coalescer = Coalescer()
    assert [merged.passed for merged in coalescer.receive(wrong)] == ["checksum"] * 4
    assert coalescer.receive(wrong, trusted=True) == []
    (merged,) = coalescer.flush()
    assert merged.segments == 4
    results = coalescer.receive(wrong, trusted=[True, True, False, True]) + coalescer.flush()
    assert [(merged.segments, merged.passed) for merged in results] == [(2, None), (1, "checksum"), (1, "alone")]
    assert results[-1].net_header.flags == DATA_VALID
    header = [bytes(one.but(ip_checksum=0x1234)) for one in stream(2)]
    assert [merged.passed for merged in coalescer.receive(header, trusted=True)] == ["checksum"] * 2
    with pytest.raises(ValueError, match="3 values of trusted for 4 frames"):
        coalescer.receive(wrong, trusted=[True] * 3)


def test_without_verification() -> None:
    """What was wrong comes out right: that is what not verifying means."""
    coalescer = Coalescer(verify=False)
    wrong = [bytes(one.but(tcp_checksum=0x1234, ip_checksum=0x4321)) for one in stream(3)]
    (merged,) = coalescer.receive(wrong) + coalescer.flush()
    assert again(merged) == [bytes(one) for one in stream(3)]
    assert merged.net_header.flags == NEEDS_CSUM
    (alone,) = coalescer.receive(wrong[0]) + coalescer.flush()
    assert (bytes(alone), alone.net_header.flags) == (wrong[0], 0)


def test_foreign_frames_pass() -> None:
    """Frames that scapy builds, cut off at every length."""
    whole = [
        bytes(packet)
        for packet in (
            Ether() / ARP(),
            Ether() / IP(dst="10.0.0.1") / UDP(sport=1, dport=4789) / Raw(b"\x08" + bytes(80)),
            Ether() / Dot1Q(vlan=3) / IPv6(dst="fd00::1") / TCP(flags="S") / Raw(b"abc"),
            Ether() / IP(dst="10.0.0.1") / TCP(flags="A", options=[("MSS", 1460)]) / Raw(b"abcdef"),
            *fragment(Ether() / IP(dst="10.0.0.1") / TCP(flags="A") / Raw(bytes(3000)), fragsize=1000),
            Ether(type=0x88CC) / Raw(bytes(50)),
        )
    ]
    frames = [frame[:n] for frame in whole for n in range(min(len(frame), 120) + 1)]
    coalescer = Coalescer()
    results = coalescer.receive(frames) + coalescer.flush()
    assert sorted(map(bytes, results)) == sorted(frames)
    assert all(merged.passed is not None for merged in results)


def test_nothing_is_read_beyond_a_frame(guarded: Guarded) -> None:
    """Frames that end where memory does, with a flow held whose header is longer, or the same."""
    for options, ipv6, tags in ((b"", False, ()), (TIMESTAMP + bytes(8), True, ((0x8100, 1),)), (bytes(40), True, ())):
        first = bytes(Segment(options=options, ipv6=ipv6, tags=tags))
        for n in range(len(first)):
            coalescer = Coalescer(verify=False)
            coalescer.receive(first)
            frame = guarded.last(first[:n])
            assert again(coalescer.receive(frame)[-1]) == [first[:n]]
        second = bytes(Segment(options=options, ipv6=ipv6, tags=tags, payload=b"x").but(seq=1100, id=101))
        (merged,) = coalescer.receive(guarded.last(second))
        assert merged.segments == 2


# ---- order ----


@BOTH
@pytest.mark.parametrize("order", [[1, 0], [2, 1, 0], [0, 2, 1], [3, 0, 2, 1], [0, 2, 4, 3, 1], [4, 2, 0, 1, 3]])
def test_out_of_order(ipv6: bool, order: list[int]) -> None:
    """When the gaps are closed, all is one frame in sequence order, whichever came first."""
    segments = stream(len(order), ipv6=ipv6, seq=0xFFFFFF80, id=0xFFFE)
    got, (merged,), _ = run([segments[i] for i in order])
    assert [order[i] for i in got[0]] == sorted(order)
    assert merged.header[38 + 20 * ipv6 : 42 + 20 * ipv6] == b"\xff\xff\xff\x80"


def test_a_gap_stays() -> None:
    a, b, _, d, e, f = stream(6)
    assert groups([f, a, e, b, d]) == [[1, 3], [4, 2, 0]]


@BOTH
def test_out_of_order_behind_a_long_run(ipv6: bool) -> None:
    """A run that arrived in order goes on when its gap is closed."""
    segments = stream(12, ipv6=ipv6)
    assert groups([*segments[:8], segments[10], segments[8], segments[9], segments[11]]) == [[*range(8), 9, 10, 8, 11]]


def test_a_gap_closes_and_a_push_ends_it() -> None:
    a, b, c = stream(3)
    coalescer = Coalescer()
    assert coalescer.receive([bytes(a), bytes(c.but(flags=ACK | PSH))]) == []
    (merged,) = coalescer.receive(bytes(b))
    assert merged.segments == 3
    assert coalescer.statistics()["flushed"]["ended"] == 1


def test_rules_hold_out_of_order() -> None:
    """What is held in sequence order is cut where a rule says so."""
    a, b, c, d, e, f = stream(6)
    assert groups([a, f, e, c, d.but(flags=ACK | CWR), b]) == [[0, 5, 3], [4, 2, 1]]
    assert groups([f, b.but(flags=ACK | PSH), a, e, d, c]) == [[2, 1], [5, 4, 3, 0]]
    assert groups([f, a, b, c, d.but(id=1), e]) == [[1, 2, 3], [4], [5, 0]]
    short = c.but(payload=b"tiny")
    rest = stream(2, d.but(seq=short.seq + 4))
    assert groups([rest[1], a, rest[0], b, short]) == [[1, 3, 4], [2, 0]]


@pytest.mark.parametrize("shift", [0, 1, 50, 99, -1, -50, -99])
def test_overlaps_pass(shift: int) -> None:
    a, b, c = stream(3)
    again_b = b.but(seq=b.seq + shift, payload=b"z" * 100)
    got, _, counted = run([a, b, again_b, c])
    assert (got, counted["passed"]) == ([[0, 1], [2], [3]], {"overlap": 1, "alone": 1})
    got, _, counted = run([a, c.after(5), again_b.but(seq=a.seq + shift), c])  # before and between held ones
    assert counted["passed"]["overlap"] == 1


def test_far_sequence_numbers() -> None:
    """Numbers half the space apart have no order: the one that is there leaves first."""
    a = Segment()
    for far in (1 << 30, 1 << 31, (1 << 31) + 5, (1 << 32) - (1 << 30)):
        got, _, counted = run([a, a.but(seq=(a.seq + far) % (1 << 32))])
        assert (got, counted["flushed"]) == ([[0], [1]], {"far": 1, "asked": 1})
    assert groups([a.but(seq=a.seq + (1 << 30) - 1), a]) == [[1], [0]]
