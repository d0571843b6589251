"""Segmentation: a TCP frame of 64 KiB cut with its plan, beside DPDK's librte_gso, which frees what it made, too.

"headers only" leaves partial checksums and gives gather lists of the payload, as rte_gso_segment gives chains of mbufs;
"full checksums" adds those of IPv4 and TCP in software on either side. Copies are beside memcpy of the payload alone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from bench import peers
from bench.kernels.segmentbench import segment_ns

PAYLOAD = 65160  # as in bench/peers/dpdk_gso.c
COUNT = 1000  # frames a round
MACS = bytes(range(12))


def tcp(sequence: int = 0xFFFFF000) -> bytes:
    return struct.pack(">HHIIBBHHH", 4000, 5001, sequence, 0, 5 << 4, 0x18, 512, 0, 0)


def ipv4(length: int, protocol: int = 6) -> bytes:
    return struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, 0xFFF0, 0, 64, protocol, 0) + bytes(
        [10, 0, 0, 1, 10, 0, 0, 2]
    )


def ipv6(length: int, protocol: int = 6) -> bytes:
    return struct.pack(">IHBB", 6 << 28, length, protocol, 64) + bytes(range(32))


def ether(ethertype: int) -> bytes:
    return MACS + ethertype.to_bytes(2, "big")


def frame(kind: str, size: int = PAYLOAD) -> bytes:
    payload = bytes(i * 131 >> 3 & 255 for i in range(size))
    if kind == "tcp4":
        return ether(0x0800) + ipv4(20 + size) + tcp() + payload
    if kind == "tcp6":
        return ether(0x86DD) + ipv6(20 + size) + tcp() + payload
    if kind == "udp4":
        return ether(0x0800) + ipv4(8 + size, 17) + struct.pack(">HHHH", 9, 9, 8 + size, 0) + payload
    inner = frame("tcp4", size)
    tunnel = struct.pack(">HHHHII", 9, 4789, 16 + len(inner), 1, 8 << 24, 5 << 8)
    return ether(0x0800) + ipv4(len(tunnel) + len(inner), 17) + tunnel + inner


@pytest.mark.parametrize("mss", [1460, 1448, 8948])
@pytest.mark.parametrize("mode", ["headers", "full"])
def test_beside_dpdk(mode: str, mss: int, one_core: int, versus: Callable[..., None]) -> None:
    data = frame("tcp4")
    work = "gso" if mode == "headers" else "csum"
    versus(
        f"TSO 64 KiB, MSS {mss}, {'headers only' if mode == 'headers' else 'full checksums, no copy'}, a segment",
        lambda: segment_ns("headers", data, mss, COUNT, partial=mode == "headers"),
        lambda: float(peers.dpdk("dpdk_gso", work, mss, 400, cpu=one_core)["ns"]),
        "rte_gso_segment, free" if mode == "headers" else "rte_gso_segment, checksums, free",
        bar={("headers", 1460): 1 / 6, ("full", 1460): 1 / 3.5}.get((mode, mss)),
    )


@pytest.mark.parametrize("kind", ["tcp4", "tcp6", "udp4", "vxlan"])
def test_copy_and_checksum(kind: str, one_core: int, versus: Callable[..., None]) -> None:
    data = frame(kind, 64000)
    versus(
        f"{kind} 64 KiB, MSS 1448, copy and full checksums, a segment",
        lambda: segment_ns("copy", data, 1448, COUNT),
        lambda: segment_ns("memcpy", data, 1448, COUNT),
        "memcpy of the payload",
    )


@pytest.mark.parametrize("kind", ["tcp6", "udp4", "vxlan"])
def test_headers_beside_ipv4(kind: str, one_core: int, versus: Callable[..., None]) -> None:
    data, plain = frame(kind, 64000), frame("tcp4", 64000)
    versus(
        f"{kind} 64 KiB, MSS 1448, headers only, a segment",
        lambda: segment_ns("headers", data, 1448, COUNT, partial=True),
        lambda: segment_ns("headers", plain, 1448, COUNT, partial=True),
        "our own TCPv4",
    )
