"""TCP segments in Ethernet frames for the coalescing tests, a naive segmentation that is their oracle, and runs."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import pytest
from scapy.utils import checksum

from virtio import offload
from virtio.offload import Coalescer, Merged

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << i for i in range(8))
DF = 0x4000
TIMESTAMP = b"\x01\x01\x08\x0a"
BOTH = pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
NEEDS_CSUM, DATA_VALID, RSC_INFO = 1, 2, 4
TCPV4, TCPV6, ECN = 1, 4, 0x80


def folded(data: bytes) -> int:
    """The ones' complement sum that a checksum field holds before it is complemented."""
    return ~checksum(data) & 0xFFFF


@dataclass(frozen=True)
class Segment:
    """One TCP segment; bytes(segment) is its frame, with right checksums unless told otherwise."""

    payload: bytes = b"x" * 100
    seq: int = 1000
    ack: int = 77
    flags: int = ACK
    window: int = 500
    urgent: int = 0
    options: bytes = b""
    sport: int = 1025
    dport: int = 80
    ipv6: bool = False
    host: int = 1  # last byte of the source address
    id: int = 100
    fragment: int = DF  # flags and fragment offset
    tos: int = 0
    ttl: int = 64
    label: int = 0
    ip_options: bytes = b""
    extensions: bytes = b""  # IPv6: whole headers, the first hop-by-hop
    tags: tuple[tuple[int, int], ...] = ()  # VLAN: (type, tag control information)
    padding: bytes = b""
    ip_checksum: int | None = None
    tcp_checksum: int | None = None

    def but(self, **changes: Any) -> Segment:
        return replace(self, **changes)

    def after(self, n: int = 1, **changes: Any) -> Segment:
        """The n-th segment after this one, by sequence number and id, otherwise alike."""
        step = n * len(self.payload)
        return replace(
            self, **{"seq": (self.seq + step) % (1 << 32), "id": (self.id + n) % (1 << 16), **changes}
        )  # fmt: skip

    def __bytes__(self) -> bytes:
        tcp = bytearray(
            struct.pack(
                "!HHIIBBHHH", self.sport, self.dport, self.seq, self.ack, (20 + len(self.options)) // 4 << 4,
                self.flags, self.window, 0, self.urgent,
            ) + self.options + self.payload
        )  # fmt: skip
        if self.ipv6:
            addresses = bytes([0xFD] + [0] * 14 + [self.host]) + bytes([0xFD] + [0] * 14 + [99])
            first = 0 if self.extensions else 6
            vtcfl = 6 << 28 | self.tos << 20 | self.label
            ip = struct.pack("!IHBB", vtcfl, len(self.extensions) + len(tcp), first, self.ttl) + addresses
            ip += self.extensions
        else:
            addresses = bytes([10, 0, 0, self.host, 10, 0, 0, 99])
            size = 20 + len(self.ip_options)
            header = struct.pack(
                "!BBHHHBBH", 4 << 4 | size // 4, self.tos, size + len(tcp), self.id, self.fragment, self.ttl, 6, 0
            )
            ip = header + addresses + self.ip_options
            right = checksum(ip) if self.ip_checksum is None else self.ip_checksum
            ip = ip[:10] + right.to_bytes(2, "big") + ip[12:]
        pseudo = addresses + (struct.pack("!II", len(tcp), 6) if self.ipv6 else struct.pack("!HH", 6, len(tcp)))
        right = checksum(pseudo + bytes(tcp)) if self.tcp_checksum is None else self.tcp_checksum
        tcp[16:18] = right.to_bytes(2, "big")
        ether = b"\x02\x00\x00\x00\x00\x63\x02\x00\x00\x00\x00" + bytes([self.host])
        for kind, tci in self.tags:
            ether += struct.pack("!HH", kind, tci)
        return ether + (b"\x86\xdd" if self.ipv6 else b"\x08\x00") + ip + bytes(tcp) + self.padding


def stream(n: int, first: Segment | None = None, **changes: Any) -> list[Segment]:
    """n segments in order, each with its own payload."""
    first = (Segment() if first is None else first).but(**changes)
    return [first.after(i, payload=bytes([(i * 37 + k) & 0xFF for k in range(len(first.payload))])) for i in range(n)]


def flat(groups: Iterable[list[bytes]]) -> list[bytes]:
    return list(chain.from_iterable(groups))


def segment(header: bytes, payload: bytes, size: int, *, l4: int, fixed_id: bool) -> list[bytes]:
    """Cut a TCP packet into segments as RFC 9293 and 3168 have it; every checksum is computed from nothing."""
    frames = []
    l3 = 14
    while header[l3 - 2 : l3] in (b"\x81\x00", b"\x88\xa8", b"\x91\x00"):
        l3 += 4
    ipv6 = header[l3 - 2 : l3] == b"\x86\xdd"
    for i, start in enumerate(range(0, len(payload), size)):
        part = payload[start : start + size]
        h = bytearray(header)
        if ipv6:
            h[l3 + 4 : l3 + 6] = struct.pack("!H", len(h) - l3 - 40 + len(part))
            pseudo = bytes(h[l3 + 8 : l3 + 40]) + struct.pack("!II", len(h) - l4 + len(part), 6)
        else:
            (ident,) = struct.unpack_from("!H", h, l3 + 4)
            struct.pack_into("!HH", h, l3 + 2, len(h) - l3 + len(part), (ident + (0 if fixed_id else i)) & 0xFFFF)
            struct.pack_into("!H", h, l3 + 10, 0)
            struct.pack_into("!H", h, l3 + 10, checksum(bytes(h[l3:l4])))
            pseudo = bytes(h[l3 + 12 : l3 + 20]) + struct.pack("!HH", 6, len(h) - l4 + len(part))
        (seq,) = struct.unpack_from("!I", h, l4 + 4)
        struct.pack_into("!I", h, l4 + 4, (seq + start) & 0xFFFFFFFF)
        if start + size < len(payload):
            h[l4 + 13] &= ~(FIN | PSH)
        if i:
            h[l4 + 13] &= ~CWR & 0xFF
        struct.pack_into("!H", h, l4 + 16, 0)
        struct.pack_into("!H", h, l4 + 16, checksum(pseudo + bytes(h[l4:]) + part))
        frames.append(bytes(h) + part)
    return frames


def again(merged: Merged) -> list[bytes]:
    """The input frames that a result is of, by the oracle's segmentation and by our own."""
    if merged.passed is not None:
        assert (merged.header, merged.segments, len(merged.pieces)) == (b"", 1, 1)
        return [bytes(merged)]
    payload = b"".join(merged.pieces)
    assert bytes(merged) == merged.header + payload
    l4 = 14 + 4 * vlans(merged.header) + (40 if merged.gso_type & 7 == TCPV6 else 20)
    frames = segment(merged.header, payload, merged.gso_size, l4=l4, fixed_id=merged.fixed_id)
    assert len(frames) == merged.segments
    ours = offload.segment(bytes(merged), merged.gso_size, merged.gso_type, fixed_id=merged.fixed_id)
    assert ours.packets() == frames
    return frames


def vlans(header: bytes) -> int:
    n = 0
    while header[12 + 4 * n : 14 + 4 * n] in (b"\x81\x00", b"\x88\xa8", b"\x91\x00"):
        n += 1
    return n


def run(
    segments: Sequence[Segment | bytes], coalescer: Coalescer | None = None, **options: Any
) -> tuple[list[list[int]], list[Merged], dict[str, dict[str, int]]]:
    """Take all in at once and flush; return which inputs each result is of, the results, and what was counted.

    Checks that nothing is lost, whatever it is.
    """
    frames = [bytes(one) for one in segments]
    coalescer = coalescer or Coalescer(**options)  # type: ignore[arg-type]
    results = coalescer.receive(frames) + coalescer.flush()
    out = [again(merged) for merged in results]
    assert sorted(flat(out)) == sorted(frames)
    numbers: dict[bytes, list[int]] = {}
    for number, frame in enumerate(frames):
        numbers.setdefault(frame, []).append(number)
    counted = coalescer.statistics()
    assert counted["held"] == counted["held_flows"] == 0
    assert counted["frames"] == counted["segments"] + sum(counted["passed"].values())
    nonzero = {kind: {k: v for k, v in counted[kind].items() if v} for kind in ("passed", "flushed")}
    return [[numbers[frame].pop(0) for frame in group] for group in out], results, nonzero


def groups(segments: Sequence[Segment | bytes], **options: Any) -> list[list[int]]:
    return run(segments, **options)[0]


def map_bytes(segments: Sequence[Segment]) -> list[bytes]:
    return [bytes(one) for one in segments]
