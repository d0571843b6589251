"""Random frames for the tests: scapy builds them, hypothesis chooses, and each header's place is known beforehand."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

logging.getLogger("scapy").setLevel(logging.CRITICAL)

from scapy.contrib.geneve import GENEVE, GeneveOptions  # noqa: E402
from scapy.layers.inet import (  # noqa: E402
    ICMP,
    IP,
    TCP,
    UDP,
    IPOption_LSRR,
    IPOption_NOP,
    IPOption_RR,
    IPOption_SSRR,
)
from scapy.layers.inet6 import (  # noqa: E402
    HAO,
    MIP6MH_BRR,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
    PadN,
    RouterAlert,
)
from scapy.layers.ipsec import AH  # noqa: E402
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether  # noqa: E402
from scapy.layers.sctp import SCTP  # noqa: E402
from scapy.layers.vxlan import VXLAN  # noqa: E402
from scapy.packet import Packet, Raw  # noqa: E402

PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132, "arp": 0}


@dataclass
class Layer:
    """Where a layer's headers are, in bytes from the frame's start; names as in virtio/frame.h."""

    l3: int
    l4: int
    payload: int
    end: int
    src: int
    dst: int
    l3_kind: str  # ipv4, ipv6, arp
    protocol: int
    l4_kind: str  # tcp, udp, sctp, icmp, icmpv6, arp, later (a later fragment)
    vlans: list[int] = field(default_factory=list)  # tag control information, outermost first
    fragment: int = 0  # offset in bytes
    fragmented: bool = False
    routed: bool = False
    options: bool = False  # IPv4 options
    extensions: bool = False
    l4_options: bool = False
    padded: bool = False


@dataclass
class Made:
    """A frame that scapy built (checksums are right), and what a parse of it must find."""

    packet: Packet
    data: bytes
    outer: Layer
    tunnel: str = "none"  # none, vxlan, geneve
    inner_l2: int = 0
    inner: Layer | None = None


MACS = st.integers(0, 2**48 - 1).map(lambda n: ":".join(f"{n >> s & 255:02x}" for s in range(40, -8, -8)))
IPV4S = st.integers(0, 2**32 - 1).map(lambda n: ".".join(str(n >> s & 255) for s in (24, 16, 8, 0)))
IPV6S = st.binary(min_size=16, max_size=16).map(
    lambda b: ":".join(f"{b[i] << 8 | b[i + 1]:x}" for i in range(0, 16, 2))
)
WORDS = st.integers(0, 0xFFFF)
# neither a tunnel's port nor one that scapy dissects
PORTS = st.integers(0x8000, 0xFFFF)
TCP_OPTIONS: list[list[tuple[str, Any]]] = [
    [],
    [("MSS", 1460)],
    [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))],
    [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (7, 0)), ("NOP", None), ("WScale", 7)],
    [("NOP", None)] * 40,
]


def _payloads(most: int) -> st.SearchStrategy[bytes]:
    return st.integers(0, most).flatmap(lambda n: st.binary(min_size=min(n, 64), max_size=min(n, 64)).map(
        lambda b: (b * (n // max(len(b), 1) + 1))[:n]
    ))  # fmt: skip


def _transport(draw: st.DrawFn, kind: str, options: bool) -> Packet:
    if kind == "tcp":
        chosen = draw(st.sampled_from(TCP_OPTIONS)) if options else []
        flags = draw(st.integers(0, 255))
        seq, ack = draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 2**32 - 1))
        return TCP(
            sport=draw(PORTS), dport=draw(PORTS), seq=seq, ack=ack, flags=flags, window=draw(WORDS), options=chosen
        )
    if kind == "udp":
        return UDP(sport=draw(PORTS), dport=draw(PORTS))
    if kind == "sctp":
        return SCTP(sport=draw(PORTS), dport=draw(PORTS), tag=draw(st.integers(0, 2**32 - 1)))
    if kind == "icmp":
        return ICMP(id=draw(WORDS), seq=draw(WORDS))
    return ICMPv6EchoRequest(id=draw(WORDS), seq=draw(WORDS))


def _ipv4(draw: st.DrawFn, options: bool) -> tuple[Packet, int, int | None]:
    """Return an IPv4 header, its length, and where in it the final destination is (None: where it always is)."""
    ip = IP(src=draw(IPV4S), dst=draw(IPV4S), ttl=draw(st.integers(1, 255)), tos=draw(st.integers(0, 255)))
    ip.id = draw(WORDS)
    ip.flags = draw(st.sampled_from(["", "DF"]))
    choice = draw(st.sampled_from(["", "nop", "record", "loose", "strict", "done"])) if options else ""
    if choice == "nop":
        ip.options = [IPOption_NOP()] * draw(st.integers(1, 40))
    elif choice == "record":
        ip.options = [IPOption_RR(routers=["0.0.0.0"] * draw(st.integers(1, 9)))]
    elif choice:
        hops = draw(st.lists(IPV4S, min_size=1, max_size=8))
        route = IPOption_SSRR if choice == "strict" else IPOption_LSRR
        pointer = 4 + 4 * len(hops) if choice == "done" else 4 + 4 * draw(st.integers(0, len(hops) - 1))
        ip.options = [IPOption_NOP(), route(routers=hops, pointer=pointer)]
        if choice != "done":
            return ip, 20 + (4 + 4 * len(hops)), 20 + 4 + 4 * (len(hops) - 1)
    return ip, len(bytes(ip)), None


def _extension(draw: st.DrawFn, kind: str) -> tuple[Packet, int | None, int | None]:
    """Return an extension header, and where in it the true source and destination are, if they are in it."""
    if kind == "hop-by-hop":
        return (
            IPv6ExtHdrHopByHop(options=draw(st.sampled_from([[], [RouterAlert()], [PadN(optdata=b"x" * 200)]]))),
            None,
            None,
        )
    if kind == "destination":
        return IPv6ExtHdrDestOpt(options=draw(st.sampled_from([[], [PadN(optdata=b"x" * 17)]]))), None, None
    if kind == "home":
        header = IPv6ExtHdrDestOpt(options=[HAO(hoa=draw(IPV6S))])
        return header, bytes(header).index(b"\xc9\x10") + 2, None
    if kind == "mobility":
        return MIP6MH_BRR(len=0), None, None
    if kind == "ah":
        words = 3 + draw(st.sampled_from([0, 3, 5, 61]))
        return AH(spi=1, seq=2, icv=b"i" * 4 * (words - 3), payloadlen=words - 2), None, None
    hops = draw(st.lists(IPV6S, min_size=1, max_size=5))
    left = draw(st.integers(0, len(hops)))
    if kind == "segments":
        header = IPv6ExtHdrSegmentRouting(addresses=hops, segleft=left, lastentry=len(hops) - 1)
        return header, None, 8 if left else None
    if kind == "routing-2":
        return IPv6ExtHdrRouting(type=2, addresses=hops[:1], segleft=min(left, 1)), None, 8 if left else None
    header = IPv6ExtHdrRouting(type=0, addresses=hops, segleft=left)
    return header, None, 8 + 16 * (len(hops) - 1) if left else None


EXTENSIONS = ["hop-by-hop", "destination", "home", "mobility", "ah", "segments", "routing-0", "routing-2", "atomic"]


@st.composite
def layers(
    draw: st.DrawFn,
    at: int,
    *,
    l3: Sequence[str],
    l4: Sequence[str],
    options: bool,
    extensions: int,
    fragments: bool,
    max_payload: int,
) -> tuple[Packet, Layer]:
    """A network packet that starts `at` bytes into a frame."""
    kind = draw(st.sampled_from(list(l3)))
    if kind == "arp":
        packet = ARP(psrc=draw(IPV4S), pdst=draw(IPV4S))
        return packet, Layer(at, at + 28, at + 28, at + 28, 0, 0, "arp", 0, "arp")
    l4_kind = draw(st.sampled_from([name for name in l4 if name != ("icmpv6" if kind == "ipv4" else "icmp")]))
    transport = _transport(draw, l4_kind, options)
    payload = draw(_payloads(max_payload))
    found = Layer(at, 0, 0, 0, 0, 0, kind, PROTOCOLS[l4_kind], l4_kind)
    place = draw(st.sampled_from(["", "", "first", "later"])) if fragments else ""
    offset = draw(st.integers(1, 0x1FFF)) if place == "later" else 0
    if kind == "ipv4":
        packet, size, destination = _ipv4(draw, options)
        packet.proto = found.protocol
        if place:
            packet.frag = offset
            packet.flags = "MF" if place == "first" or draw(st.booleans()) else ""
        found.l4 = at + size
        found.src = at + 12
        found.dst = at + 16 if destination is None else at + destination
        found.routed = destination is not None
        found.options = size > 20
    else:
        packet = IPv6(src=draw(IPV6S), dst=draw(IPV6S), tc=draw(st.integers(0, 255)), fl=draw(st.integers(0, 0xFFFFF)))
        found.src, found.dst, found.l4 = at + 8, at + 24, at + 40
        chain = draw(st.lists(st.sampled_from(EXTENSIONS), max_size=extensions)) if extensions else []
        if place:
            chain.append("fragment")
        headers: list[Packet] = []
        for name in chain:
            if name in ("atomic", "fragment"):
                more = name == "fragment" and (place == "first" or draw(st.booleans()))
                header = IPv6ExtHdrFragment(offset=offset if name == "fragment" else 0, m=int(more), id=draw(WORDS))
                source = destination = None
            else:
                header, source, destination = _extension(draw, name)
            if source is not None:
                found.src, found.routed = found.l4 + source, True
            if destination is not None:
                found.dst, found.routed = found.l4 + destination, True
            found.l4 += len(bytes(header))
            headers.append(header)
        numbers = [_NEXT[name] for name in chain] + [found.protocol]
        packet.nh = numbers[0]
        for header, number in zip(headers, numbers[1:], strict=True):
            header.nh = number
            packet /= header
        found.extensions = bool(chain)
    found.fragmented, found.fragment = bool(place), 8 * offset
    if place == "later":
        found.l4_kind, found.payload = "later", found.l4
        packet /= Raw(payload)
        found.end = found.l4 + len(payload)
    else:
        size = len(bytes(transport))
        found.payload, found.l4_options = found.l4 + size, size > 20 and l4_kind == "tcp"
        packet = packet / transport / Raw(payload)
        found.end = found.payload + len(payload)
    return packet, found


_NEXT = {
    "hop-by-hop": 0, "destination": 60, "home": 60, "mobility": 135, "ah": 51, "segments": 43, "routing-0": 43,
    "routing-2": 43, "atomic": 44, "fragment": 44,
}  # fmt: skip


@st.composite
def frames(
    draw: st.DrawFn,
    *,
    l3: Sequence[str] = ("ipv4", "ipv6"),
    l4: Sequence[str] = ("tcp", "udp", "sctp", "icmp", "icmpv6"),
    vlans: int = 3,
    options: bool = True,
    extensions: int = 4,
    fragments: bool = False,
    tunnels: Sequence[str] = ("none", "none", "vxlan", "geneve"),
    padding: int = 20,
    max_payload: int = 200,
) -> Made:
    """Draw a sound Ethernet frame: up to `vlans` tags, IP or ARP with options and up to `extensions` extension headers,
    a transport header, maybe a tunnel and the same again, `max_payload` bytes at most, up to `padding` bytes behind it.
    ARP only with "arp" in l3. With fragments some are first or later fragments, of which only the headers are right.
    """
    kinds: dict[str, Any] = {
        "l3": l3,
        "l4": l4,
        "options": options,
        "extensions": extensions,
        "max_payload": max_payload,
    }
    tags = draw(st.lists(WORDS, max_size=vlans))
    packet: Packet = Ether(src=draw(MACS), dst=draw(MACS))
    for tci in tags:
        tag = draw(st.sampled_from([Dot1Q, Dot1AD]))
        packet /= tag(prio=tci >> 13, dei=tci >> 12 & 1, vlan=tci & 0xFFF)
    at = 14 + 4 * len(tags)
    tunnel = draw(st.sampled_from(list(tunnels)))
    if tunnel == "none":
        network, outer = draw(layers(at, fragments=fragments, **kinds))
        made = Made(packet, b"", outer)
        packet = packet / network
    else:
        ip = [name for name in l3 if name != "arp"]
        network, outer = draw(layers(at, fragments=False, **kinds | {"l3": ip, "l4": ["udp"], "max_payload": 0}))
        made = Made(packet, b"", outer, tunnel)
        udp = network[UDP]
        udp.remove_payload()
        direct = tunnel == "geneve" and draw(st.booleans())
        if tunnel == "vxlan":
            udp.dport = draw(st.sampled_from([4789, 8472]))
            header: Packet = VXLAN(flags=8, vni=draw(st.integers(0, 2**24 - 1)))
        else:
            udp.dport = 6081
            count = draw(st.integers(0, 3)) if options else 0
            header = GENEVE(vni=draw(st.integers(0, 2**24 - 1)), proto=0x6558)
            header.options = [
                GeneveOptions(classid=1, type=2, data=b"data" * draw(st.integers(0, 5))) for _ in range(count)
            ]
        made.inner_l2 = outer.payload + len(bytes(header))
        inner_tags = [] if direct else draw(st.lists(WORDS, max_size=vlans))
        inner_at = made.inner_l2 + (0 if direct else 14 + 4 * len(inner_tags))
        inner_packet, made.inner = draw(layers(inner_at, fragments=fragments, **kinds))
        made.inner.vlans = inner_tags
        outer.end = made.inner.end
        if direct:
            header.proto = {"ipv4": 0x0800, "ipv6": 0x86DD, "arp": 0x0806}[made.inner.l3_kind]
        else:
            header /= Ether(src=draw(MACS), dst=draw(MACS))
            for tci in inner_tags:
                header /= Dot1Q(prio=tci >> 13, dei=tci >> 12 & 1, vlan=tci & 0xFFF)
        packet = packet / network / header / inner_packet
    outer.vlans = tags
    behind = draw(st.integers(0, padding))
    outer.padded = behind > 0
    made.packet = packet
    made.data = bytes(packet) + b"\xa5" * behind
    return made
