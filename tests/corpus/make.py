"""Writes the seeds beside it: a line with a virtio_net_hdr (24 bytes), then a frame, in hexadecimal. Made by scapy.

``python tests/corpus/make.py`` from the root; seeds that are not of its making, such as inputs that once failed, stay.
"""

from __future__ import annotations

import struct
from pathlib import Path

from scapy.contrib.geneve import GENEVE, GeneveOptions
from scapy.layers.inet import GRE, ICMP, IP, TCP, UDP, IPOption_LSRR, IPOption_NOP
from scapy.layers.inet6 import (
    HAO,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
    RouterAlert,
)
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
V4, V6 = IP(src="10.0.0.1", dst="10.0.0.2", id=7), IPv6(src="2001:db8::1", dst="2001:db8::2")
TCP_, UDP_ = TCP(sport=0x9000, dport=0x9001, seq=2**32 - 5, flags="PA"), UDP(sport=0x9000, dport=0x9001)
DATA = bytes(range(256)) * 2
OPTIONS = TCP(sport=0x9000, dport=0x9001, flags="A", options=[("NOP", None), ("NOP", None), ("Timestamp", (1, 2))])
ROUTE = ["2001:db8::a", "2001:db8::b"]


def header(
    flags: int = 0,
    gso_type: int = 0,
    hdr_len: int = 0,
    gso_size: int = 0,
    start: int = 0,
    offset: int = 0,
    *,
    buffers: int = 1,
    outer_th: int = 0,
    inner_nh: int = 0,
) -> bytes:
    return struct.pack(
        "<BBHHHHHIHHHH", flags, gso_type, hdr_len, gso_size, start, offset, buffers, 0, 0, 0, outer_th, inner_nh
    )


def vxlan(inner: Packet, network: Packet = V4, checksum: int | None = 0) -> Packet:
    return network / UDP(sport=0x9000, dport=4789, chksum=checksum) / VXLAN(flags=8, vni=5) / ETHER / inner


def geneve(inner: Packet) -> Packet:
    options = [GeneveOptions(classid=1, type=2, data=b"data" * 3)]
    return V6 / UDP(sport=0x9000, dport=6081) / GENEVE(vni=9, proto=0x6558, options=options) / ETHER / inner


def all_ones() -> Packet:
    """TCP's checksum is 0xffff where every sender computes 0."""
    packet = V4 / TCP(sport=0x9000, dport=0x9001, flags="A") / Raw(bytes(2) + DATA[:40])
    sum_there = bytes(packet)[36:38]
    return V4 / TCP(sport=0x9000, dport=0x9001, flags="A", chksum=0xFFFF) / Raw(sum_there + DATA[:40])


SEEDS: dict[str, tuple[bytes, Packet]] = {
    "arp": (header(), ARP(psrc="10.0.0.1", pdst="10.0.0.2")),
    "ethertype": (header(1, 0, 0, 0, 14, 16), Ether(src=ETHER.src, dst=ETHER.dst, type=0x88B5) / Raw(DATA[:50])),
    "llc": (header(2), Ether(src=ETHER.src, dst=ETHER.dst, type=40) / Raw(DATA[:60])),
    "v4-icmp": (header(2), V4 / ICMP() / Raw(DATA[:33])),
    "v4-tcp": (header(1, 0, 54, 0, 34, 16), V4 / TCP_ / Raw(DATA)),
    "v4-tcp-valid": (header(2), V4 / OPTIONS / Raw(DATA[:101])),
    "v4-tcp-tso": (header(1, 1, 54, 100, 34, 16), V4 / TCP_ / Raw(DATA)),
    "v4-tcp-tso-ecn": (header(1, 0x81, 54, 99, 34, 16), V4 / TCP(flags="CEA", dport=0x9001) / Raw(DATA)),
    "v4-tcp-rsc": (header(6, 1, 66, 128, 4, 1), V4 / OPTIONS / Raw(DATA)),
    "v4-tcp-vlan": (header(1, 1, 58, 64, 38, 16), Dot1Q(vlan=5) / V4 / TCP_ / Raw(DATA)),
    "v4-tcp-qinq": (header(1, 0, 62, 0, 42, 16), Dot1AD(vlan=5) / Dot1Q(vlan=6) / V4 / TCP_ / Raw(DATA[:9])),
    "v4-tcp-options": (
        header(1, 1, 70, 50, 46, 16),
        IP(src="10.0.0.1", dst="10.0.0.2", options=[IPOption_NOP(), IPOption_LSRR(routers=["10.0.0.9"], pointer=4)])
        / TCP_
        / Raw(DATA),
    ),
    "v4-tcp-ack": (header(2), V4 / TCP(sport=0x9000, dport=0x9001, flags="A")),
    "v4-tcp-vlans": (header(), Dot1Q(vlan=5) / Dot1Q(vlan=6) / Dot1Q(vlan=7) / V4 / TCP_ / Raw(DATA[:9])),
    "v4-tcp-all-ones": (header(), all_ones()),
    "v4-udp": (header(1, 0, 42, 0, 34, 6), V4 / UDP_ / Raw(DATA[:77])),
    "v4-udp-uso": (header(1, 5, 42, 100, 34, 6), V4 / UDP_ / Raw(DATA)),
    "v4-udp-ufo": (header(1, 3, 42, 104, 34, 6), V4 / UDP_ / Raw(DATA)),
    "v4-udp-no-checksum": (header(), V4 / UDP(dport=0x9001, chksum=0) / Raw(DATA[:40])),
    "v4-sctp": (header(1, 0, 46, 0, 34, 8), V4 / SCTP(tag=1) / SCTPChunkData(data=DATA[:64])),
    "v4-fragment": (header(1, 0, 0, 0, 34, 16), IP(src="10.0.0.1", dst="10.0.0.2", flags="MF") / TCP_ / Raw(DATA[:64])),
    "v4-fragment-later": (header(2), IP(src="10.0.0.1", dst="10.0.0.2", frag=99, proto=17) / Raw(DATA[:64])),
    "v4-gre": (header(), IP(src="10.0.0.1", dst="10.0.0.2", proto=47) / Raw(DATA[:64])),
    "v4-gre-tcp": (header(1, 0, 78, 0, 58, 16), V4 / GRE() / V4 / TCP_ / Raw(DATA[:64])),
    "v4-tcp-lro": (header(2, 1, 54, 100), V4 / TCP_ / Raw(DATA)),
    "v4-tcp-no-length": (header(1, 1, 54, 100, 34, 16), IP(src="10.0.0.1", dst="10.0.0.2", len=0) / TCP_ / Raw(DATA)),
    "v4-tcp-empty": (header(1, 1, 54, 100, 34, 16), V4 / TCP_),
    "v6-icmp": (header(2), V6 / ICMPv6EchoRequest() / Raw(DATA[:33])),
    "v6-tcp": (header(1, 0, 74, 0, 54, 16), V6 / TCP_ / Raw(DATA)),
    "v6-tcp-tso": (header(1, 4, 74, 100, 54, 16), V6 / TCP_ / Raw(DATA)),
    "v6-udp-uso": (header(1, 5, 62, 60, 54, 6), V6 / UDP_ / Raw(DATA)),
    "v6-udp-ufo": (header(1, 3, 62, 104, 54, 6), V6 / UDP_ / Raw(DATA)),
    "v6-udp-segment": (
        header(1, 5, 62, 60, 54, 6),
        IPv6(src="2001:db8::1", dst="2001:db8::2", plen=68) / UDP(sport=0x9000, dport=0x9001, len=68) / Raw(DATA),
    ),
    "v6-sctp": (header(2), V6 / SCTP(tag=1) / SCTPChunkData(data=DATA[:64])),
    "v6-hop-by-hop": (
        header(1, 4, 82, 90, 62, 16),
        V6 / IPv6ExtHdrHopByHop(options=[RouterAlert()]) / TCP_ / Raw(DATA),
    ),
    "v6-home": (
        header(1, 0, 98, 0, 78, 16),
        V6 / IPv6ExtHdrDestOpt(options=[HAO(hoa="2001:db8::7")]) / TCP_ / Raw(DATA[:9]),
    ),
    "v6-routing": (
        header(1, 4, 114, 90, 94, 16),
        V6 / IPv6ExtHdrRouting(addresses=ROUTE, segleft=2) / TCP_ / Raw(DATA),
    ),
    "v6-segments": (
        header(2),
        V6 / IPv6ExtHdrSegmentRouting(addresses=ROUTE, segleft=1, lastentry=1) / UDP_ / Raw(DATA[:9]),
    ),
    "v6-ah": (header(1, 4, 86, 90, 66, 16), V6 / AH(nh=6, payloadlen=1) / TCP_ / Raw(DATA)),
    "v6-esp": (header(2), V6 / ESP(spi=1, seq=1, data=DATA[:64])),
    "v6-atomic": (header(1, 0, 70, 0, 62, 6), V6 / IPv6ExtHdrFragment() / UDP_ / Raw(DATA[:9])),
    "v6-fragment": (header(), V6 / IPv6ExtHdrFragment(m=1) / UDP_ / Raw(DATA[:64])),
    "v6-jumbogram": (
        header(1, 0, 0, 0, 62, 16),
        IPv6(src="2001:db8::1", dst="2001:db8::2", plen=0) / IPv6ExtHdrHopByHop(nh=6) / TCP_ / Raw(DATA),
    ),
    "vxlan-tcp": (header(1, 0x21, 104, 100, 84, 16, outer_th=34, inner_nh=64), vxlan(V4 / TCP_ / Raw(DATA))),
    "vxlan-tcp-checksum": (
        header(9, 0x21, 104, 100, 84, 16, outer_th=34, inner_nh=64),
        vxlan(V4 / TCP_ / Raw(DATA), V4, None),
    ),
    "vxlan-v6-in-v4": (header(1, 0x24, 124, 99, 104, 16, outer_th=34, inner_nh=64), vxlan(V6 / TCP_ / Raw(DATA))),
    "vxlan-arp": (header(2), vxlan(ARP(psrc="10.0.0.1", pdst="10.0.0.2"))),
    "vxlan-udp-vlan": (header(1, 0, 0, 0, 88, 6), vxlan(Dot1Q(vlan=9) / V4 / UDP_ / Raw(DATA[:70]))),
    "geneve-udp": (header(9, 0x45, 148, 80, 140, 6, outer_th=54, inner_nh=100), geneve(V6 / UDP_ / Raw(DATA))),
    "geneve-tcp": (header(10), geneve(V4 / OPTIONS / Raw(DATA[:64]))),
    "geneve-ip": (
        header(1, 0x21, 90, 80, 70, 16, outer_th=34, inner_nh=50),
        V4 / UDP(dport=6081) / GENEVE(vni=9, proto=0x0800) / V4 / TCP_ / Raw(DATA),
    ),
}


def main() -> None:
    for name, (about, packet) in SEEDS.items():
        frame = bytes(packet if isinstance(packet, Ether) else ETHER / packet)
        lines = [frame[i : i + 32].hex() for i in range(0, len(frame), 32)]
        Path(__file__).with_name(f"{name}.hex").write_text("\n".join([about.hex(), *lines]) + "\n")


if __name__ == "__main__":
    main()
