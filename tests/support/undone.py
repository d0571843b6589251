"""Frames that leave something undone, with the header that says it, and what must become of them."""

from __future__ import annotations

import random

from offloads import naive_sum
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, PadN
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from virtio.constants import NetFeature as F
from virtio.offload import NetHeader, TransmitOutcome, prepare_transmit, verify

CSUM, TSO4, TSO6, ECN, UFO, USO4, USO6, TUNNEL, TUNNEL_CSUM = (1 << bit for bit in range(9))  # VIRTIO_OFFLOAD_*
EVERY = 0x1FF
NONE = NetHeader()  # of a frame with nothing undone
HOST = F.CSUM | F.HOST_TSO4 | F.HOST_TSO6 | F.HOST_ECN | F.HOST_USO | F.HOST_UDP_TUNNEL_GSO | F.HOST_UDP_TUNNEL_GSO_CSUM
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
V4, V6 = IP(src="10.0.0.1", dst="10.0.0.2", id=77), IPv6(src="2001:db8::1", dst="2001:db8::2")
ACK = TCP(sport=1000, dport=2000, seq=0xFFFFFF00, flags="PA", options=[("Timestamp", (1, 2))])
DATAGRAM = UDP(sport=1000, dport=2000)
KINDS: dict[str, tuple[Packet, int]] = {
    "tcp4": (V4 / ACK, TSO4),
    "tcp6": (V6 / ACK, TSO6),
    "tcp4-ecn": (V4 / TCP(sport=1, dport=2, flags="PAEC"), TSO4 | ECN),
    "tcp6-extension": (V6 / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"1234")]) / ACK, TSO6),
    "tcp4-vlan": (Dot1Q(vlan=5) / V4 / ACK, TSO4),
    "udp4": (V4 / DATAGRAM, USO4),
    "udp6": (V6 / DATAGRAM, USO6),
    "vxlan": (V4 / UDP(sport=9, dport=4789) / VXLAN(vni=3, flags=8) / ETHER / V4 / ACK, TSO4 | TUNNEL | TUNNEL_CSUM),
}


def payload(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def undone(kind: str, size: int, mss: int = 0) -> tuple[NetHeader, bytes]:
    """Return a frame of `size` bytes of payload with its checksum undone; with an mss, uncut."""
    frame = bytearray(bytes(ETHER / KINDS[kind][0] / payload(size)))
    made = prepare_transmit(frame, HOST, mss, layer="inner" if kind == "vxlan" else None)
    assert made.outcome == TransmitOutcome.SENT_AS, made
    return made.header, bytes(frame)


def ufo(size: int, mss: int) -> tuple[NetHeader, bytes]:
    """Return an IPv4 datagram that is to be sent as fragments."""
    header, frame = undone("udp4", size)
    header.gso_type, header.gso_size, header.hdr_len = 3, mss, 42
    return header, frame


def needs(header: NetHeader, kind: str) -> int:
    """VIRTIO_OFFLOAD_* that a frame needs of whoever takes it as it is."""
    found = CSUM
    if header.gso_type:
        found |= KINDS[kind][1]
        if kind.startswith("udp"):
            found |= USO4 | USO6
    return found


def sound(frame: bytes) -> bool:
    """Whether all checksums are right."""
    checks = verify(frame)
    return all(check.name in ("GOOD", "NONE") for check in checks)


def reassemble(fragments: list[bytes]) -> bytes:
    """Put IPv4 fragments together (RFC 791): the IP payload; each header must be right."""
    parts: dict[int, bytes] = {}
    end = None
    for frame in fragments:
        size = (frame[14] & 15) * 4
        assert naive_sum(frame[14 : 14 + size]) == 0xFFFF
        length = int.from_bytes(frame[16:18], "big")
        word = int.from_bytes(frame[20:22], "big")
        assert len(frame) == 14 + length
        offset = (word & 0x1FFF) * 8
        parts[offset] = frame[14 + size : 14 + length]
        if not word & 0x2000:
            end = offset + length - size
    whole = b"".join(parts[at] for at in sorted(parts))
    assert end == len(whole)
    return whole


def udp_right(frame: bytes, datagram: bytes) -> bool:
    pseudo = frame[26:34] + b"\0\x11" + len(datagram).to_bytes(2, "big")
    return naive_sum(pseudo + datagram) == 0xFFFF
