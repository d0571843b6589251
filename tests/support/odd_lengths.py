"""Frames whose IP and UDP lengths are not the frame's: 0, or a segment's."""

from __future__ import annotations

import struct
from itertools import pairwise

from offloads import naive_sum
from scapy.layers.inet import UDP
from scapy.packet import Packet
from undone import ETHER, V6, payload

from virtio.offload import NetHeader, parse

MSS = 500


def put(frame: bytes, at: int, value: int) -> bytes:
    return frame[:at] + value.to_bytes(2, "big") + frame[at + 2 :]


def split(frame: bytes, *ends: int) -> list[bytes]:
    return [frame[a:b] for a, b in pairwise([0, *(end for end in ends if end < len(frame)), len(frame)])]


def lengths(frame: bytes) -> list[tuple[int, int]]:
    """Where the IP and UDP lengths are, and where what they measure begins; the outermost first."""
    found = []
    parsed = parse(frame)
    for layer in filter(None, (parsed.outer, parsed.inner)):
        v4 = layer.l3_kind == 1
        found.append((layer.l3 + (2 if v4 else 4), layer.l3 + (0 if v4 else 40)))
        if layer.protocol == 17:
            found.append((layer.l4 + 4, layer.l4))
    return found


def payload_at(frame: bytes) -> int:
    parsed = parse(frame)
    return (parsed.inner or parsed.outer).payload


def lie(frame: bytes, which: list[tuple[int, int]], said: str, mss: int = MSS) -> bytes:
    """Write 0, or a segment's, into these lengths."""
    end = payload_at(frame) + mss
    for at, start in which:
        frame = put(frame, at, 0 if said == "zero" else end - start)
    return frame


def ufo6(size: int, mss: int, *extensions: Packet, seed: int = 1) -> tuple[NetHeader, bytes]:
    """Return an IPv6 datagram that is to be sent as fragments."""
    layers: Packet = V6
    for one in extensions:
        layers = layers / one
    frame = bytes(ETHER / layers / UDP(sport=1000, dport=2000) / payload(size, seed))
    at = parse(frame).outer.l4
    header = NetHeader(flags=1, gso_type=3, gso_size=mss, hdr_len=at + 8, csum_start=at, csum_offset=6)
    pseudo = naive_sum(frame[22:54] + struct.pack(">II", size + 8, 17))
    return header, put(frame, at + 6, pseudo)
