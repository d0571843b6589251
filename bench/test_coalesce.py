"""Coalescing (LRO), beside DPDK's GRO on the same segments in the same order:

- one flow, 44 segments in order, and a few and 1,000 flows, a segment of each in turn;
- beside both of DPDK's ways: rte_gro_reassemble_burst, which knows only the packets of one call, and rte_gro_reassemble
  with rte_gro_timeout_flush, which keeps a table over calls;
- the Python class, beside the kernel that it calls.

Only the calls are timed: not the making of frames and mbufs, nor the freeing of mbufs. DPDK never verifies checksums; a
row says so where ours does.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

import pytest

from bench import peers
from bench.kernels.coalescebench import coalesce
from virtio import offload

SEGMENTS = 44  # of 1448 bytes: one more does not fit into an IP packet
PAYLOAD = 1448


def build(flows: int) -> list[bytes]:
    """SEGMENTS segments of each flow, a segment of each in turn: what peers/dpdk_gro.c makes, with checksums."""
    frames = []
    for i in range(SEGMENTS):
        for flow in range(flows):
            frame = bytearray(54 + PAYLOAD)
            frame[0] = frame[6] = 2
            struct.pack_into("!H", frame, 12, 0x0800)
            addresses = struct.pack("!II", 0x0A000001 + (flow >> 8), 0x0A000063)
            struct.pack_into("!BBHHHBBH8s", frame, 14, 0x45, 0, 40 + PAYLOAD, i, 0, 64, 6, 0, addresses)
            struct.pack_into("!HHIIBBH", frame, 34, 1024 + (flow & 0xFF), 80, 1 + i * PAYLOAD, 1, 5 << 4, 0x10, 1000)
            offload.fill_checksums(frame)
            frames.append(bytes(frame))
    return frames


def ours(frames: list[bytes], flows: int, burst: int, *, hold: bool, results: int, verify: bool = False) -> float:
    rounds = max(1, 1_000_000 // len(frames))
    ns, got = coalesce(frames, flows=flows, burst=burst, rounds=rounds, hold=hold, verify=verify)
    assert got == results
    return ns


def dpdk(mode: str, flows: int, burst: int, cpu: int, *, results: int) -> float:
    rounds = max(3, 100_000 // (flows * SEGMENTS))
    done = peers.dpdk("dpdk_gro", mode, flows, SEGMENTS, PAYLOAD, burst, rounds, cpu=cpu)
    assert done["results"] == results
    return float(done["ns"])


PEERS = {"burst": "rte_gro_reassemble_burst", "flush": "rte_gro_reassemble + timeout_flush"}


@pytest.mark.parametrize("verify", [False, True], ids=["trusted", "verified"])
@pytest.mark.parametrize("mode", PEERS)
def test_one_flow(mode: str, verify: bool, one_core: int, versus: Callable[..., None]) -> None:
    frames = build(1)
    versus(
        f"LRO, 1 flow, 44 segments{', checksums verified' if verify else ''}",
        lambda: ours(frames, 64, SEGMENTS, hold=False, results=1, verify=verify),
        lambda: dpdk(mode, 1, SEGMENTS, one_core, results=1),
        PEERS[mode],
        bar=None if verify or mode != "burst" else 1 / 2.5,
    )


@pytest.mark.parametrize("mode", PEERS)
@pytest.mark.parametrize("flows", [8, 1000])
def test_interleaved_flows(flows: int, mode: str, one_core: int, versus: Callable[..., None]) -> None:
    """Bursts of 128, the most that rte_gro_reassemble_burst has a table for. In 128 packets of 1,000 flows there are no
    two of one flow, so it merges nothing; its figure is then what it takes to find that out.
    """
    frames = build(flows)
    merged = flows if mode == "flush" else len(frames) if flows > 128 else flows * -(-SEGMENTS * flows // 128)
    versus(
        f"LRO, {flows:,} flows interleaved",
        lambda: ours(frames, flows, 128, hold=True, results=flows),
        lambda: dpdk(mode, flows, 128, one_core, results=merged),
        PEERS[mode],
        bar=1 / 1.5 if flows == 1000 else None,
    )


def test_many_flows_nothing_held(one_core: int, versus: Callable[..., None]) -> None:
    """Everything flushed after each burst, as rte_gro_reassemble_burst does."""
    frames = build(1000)
    versus(
        "LRO, 1,000 flows interleaved, no table over calls",
        lambda: ours(frames, 1000, 128, hold=False, results=len(frames)),
        lambda: dpdk("burst", 1000, 128, one_core, results=len(frames)),
        PEERS["burst"],
        bar=1 / 1.5,
    )


@pytest.mark.parametrize("flows", [1, 1000])
def test_python(flows: int, one_core: int, versus: Callable[..., None]) -> None:
    """Coalescer.receive(), of one merged frame in 44, or of none in 256."""
    frames = build(flows)[: SEGMENTS if flows == 1 else 256]
    coalescer = offload.Coalescer(flows=flows, verify=False, max_age_ns=0)
    results = min(flows, len(frames))
    assert len(coalescer.receive(frames)) == results

    def python() -> float:
        start, rounds = time.thread_time_ns(), 200_000 // len(frames)
        for _ in range(rounds):
            coalescer.receive(frames)
        return (time.thread_time_ns() - start) / (rounds * len(frames))

    versus(
        f"Python, Coalescer.receive, {len(frames)} frames, {results} results",
        python,
        lambda: ours(frames, flows, len(frames), hold=False, results=results),
        "its kernel",
    )
