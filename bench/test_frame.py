"""The frame parse and the Toeplitz hash, each beside its peer; of each traffic 64 different frames over 256 KiB:

- a burst in C, beside DPDK's rte_net_get_ptype(), which finds less: no ends, no addresses, no inner headers behind UDP;
- a batch call from Python, beside the burst alone, and beside scapy and dpkt, one frame at a time;
- the hash of parsed frames, beside rte_softrss_be().
"""

from __future__ import annotations

import logging
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import peers
from bench.conftest import ROUNDS as REPEATS
from bench.kernels.framebench import hash_frames, parse_frames
from bench.kernels.offloadbench import kernel_ns
from bench.test_package import note
from virtio import offload
from virtio.constants import NetFeature

logging.getLogger("scapy").setLevel(logging.CRITICAL)
inet = pytest.importorskip("scapy.layers.inet", reason="needs scapy: pip install scapy")
dpkt = pytest.importorskip("dpkt", reason="needs dpkt: pip install dpkt")

from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop  # noqa: E402
from scapy.layers.l2 import Dot1Q, Ether  # noqa: E402
from scapy.layers.vxlan import VXLAN  # noqa: E402
from scapy.packet import Packet, Raw  # noqa: E402

FRAMES, SPAN, ROUNDS = 64, 256 << 10, 20_000
PARSE_BAR_NS, BATCH_BAR_NS = 10, 40  # a frame
KEY = bytes((i * 37 + 1) & 255 for i in range(40))


def traffic(kind: str, seed: int = 0) -> tuple[bytearray, list[int], list[memoryview]]:
    """64 frames of different addresses, ports and lengths, at random places of 256 KiB; also where they are."""
    rand = random.Random(f"frames of {kind}, {seed}")
    word = lambda: rand.randrange(0x10000)  # noqa: E731
    ipv4 = lambda: inet.IP(src=f"10.{word() >> 8}.1.{word() >> 8}", dst=f"10.2.{word() >> 8}.9", tos=word() & 0xFC)  # noqa: E731
    ipv6 = lambda: IPv6(src=f"2001:db8::{word():x}", dst=f"fd00::{word():x}")  # noqa: E731
    stamp = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]

    def tcp() -> Packet:
        options = rand.choice([[], stamp])
        return inet.TCP(sport=word(), dport=word(), seq=word(), options=options) / Raw(rand.randbytes(word() % 1400))

    def udp(payload: Packet, port: int) -> Packet:
        return inet.UDP(sport=word(), dport=port) / payload

    make: dict[str, Callable[[], Packet]] = {
        "TCPv4": lambda: Ether() / ipv4() / tcp(),
        "UDPv4": lambda: Ether() / ipv4() / udp(Raw(rand.randbytes(word() % 1400)), 0x8000 | word()),
        "TCPv6": lambda: Ether() / ipv6() / tcp(),
        "VLAN, TCPv4": lambda: Ether() / Dot1Q(vlan=word() & 0xFFF) / ipv4() / tcp(),
        "VXLAN, TCPv4": lambda: Ether() / ipv4() / udp(VXLAN(flags=8, vni=word()) / Ether() / ipv4() / tcp(), 4789),
        "TCPv6, 2 extension headers": lambda: Ether() / ipv6() / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / tcp(),
    }
    kinds = list(make.values())
    make["all of these"] = lambda: rand.choice(kinds)()
    memory, bounds, slot = bytearray(SPAN), [], SPAN // FRAMES
    for i in range(FRAMES):
        data = bytes(make[kind]())
        at = i * slot + rand.randrange(slot - len(data))
        memory[at : at + len(data)] = data
        bounds += [at, at + len(data)]
    view = memoryview(memory)
    return memory, bounds, [view[a:b] for a, b in zip(bounds[::2], bounds[1::2], strict=True)]


def peer_file(folder: Path, memory: bytearray, bounds: list[int]) -> Path:
    """The frames for the C program, which takes pairs of bounds."""
    path = folder / "frames"
    path.write_bytes(struct.pack(f"<I{len(bounds)}I", len(bounds) // 2, *bounds) + memory)
    return path


def timed(call: Callable[[], object], frames: int, rounds: int) -> float:
    start = time.thread_time_ns()
    for _ in range(rounds):
        call()
    return (time.thread_time_ns() - start) / (frames * rounds)


KINDS = ["TCPv4", "UDPv4", "TCPv6", "VLAN, TCPv4", "VXLAN, TCPv4", "TCPv6, 2 extension headers", "all of these"]


@pytest.mark.parametrize("kind", KINDS)
def test_burst(kind: str, one_core: int, tmp_path: Path, versus: Callable[..., None]) -> None:
    memory, bounds, frames = traffic(kind)
    path = peer_file(tmp_path, memory, bounds)
    versus(
        f"parse in a burst, {kind}",
        lambda: parse_frames(frames, rounds=ROUNDS),
        lambda: float(peers.dpdk("dpdk_frame", "ptype", path, ROUNDS, cpu=one_core)["ns"]),
        "rte_net_get_ptype, as packaged",
    )


@pytest.mark.parametrize("peer", ["burst in C", "dpkt", "scapy"])
def test_python_batch(peer: str, one_core: int, versus: Callable[..., None]) -> None:
    frames = [bytes(frame) for frame in traffic("TCPv4")[2]] * 4
    others: dict[str, Callable[[], float]] = {
        "burst in C": lambda: parse_frames(frames, rounds=ROUNDS // 4),
        "dpkt": lambda: timed(lambda: [dpkt.ethernet.Ethernet(frame) for frame in frames], len(frames), 10),
        "scapy": lambda: timed(lambda: [Ether(frame) for frame in frames], len(frames), 1),
    }
    versus(
        "parse_burst() from Python, 256 frames, TCPv4",
        lambda: timed(lambda: offload.parse_burst(frames), len(frames), 1000),
        others[peer],
        peer,
    )


def test_parse_bar(one_core: int, benchmark: Any) -> None:
    frames = traffic("TCPv4")[2]
    ours: list[float] = []
    benchmark.pedantic(lambda: ours.append(parse_frames(frames, rounds=ROUNDS)), rounds=REPEATS, warmup_rounds=1)
    note(benchmark, "TCPv4 parse", "ns", ours, "", [], PARSE_BAR_NS)


@pytest.mark.parametrize("name", ["parse", "checksum", "verify", "hash", "prepare_transmit", "classify_receive"])
def test_batch_bar(name: str, one_core: int, benchmark: Any) -> None:
    """What a call from Python adds to its kernel; where the kernel has no exerciser, all that the call takes."""
    frames = [bytes(frame) for memory in range(4) for frame in traffic("TCPv4", memory)[2]]
    writable = [bytearray(frame) for frame in frames]
    received = [bytes(12) + frame for frame in frames]
    toeplitz = offload.Toeplitz(KEY)
    features = int(NetFeature.CSUM | NetFeature.GUEST_CSUM | NetFeature.MRG_RXBUF)
    calls: dict[str, Callable[[], object]] = {
        "parse": lambda: offload.parse_burst(frames),
        "checksum": lambda: offload.checksum_burst(frames),
        "verify": lambda: offload.verify_burst(frames),
        "hash": lambda: toeplitz.hash_burst(frames),
        "prepare_transmit": lambda: offload.prepare_transmit_burst(writable, features),
        "classify_receive": lambda: offload.classify_receive_burst(received, features),
    }
    size = sum(map(len, frames)) // len(frames)
    kernels: dict[str, Callable[[], float]] = {
        "parse": lambda: parse_frames(frames, rounds=1000),
        "checksum": lambda: kernel_ns("sum", size, 384 << 10, 200_000),
        "verify": lambda: parse_frames(frames, rounds=1000) + kernel_ns("sum", size, 384 << 10, 200_000),
        "hash": lambda: parse_frames(frames, rounds=1000) + hash_frames(toeplitz, frames, rounds=1000),
    }
    ours: list[float] = []

    def measure() -> None:
        ours.append(timed(calls[name], len(frames), 1000) - (kernels[name]() if name in kernels else 0))

    benchmark.pedantic(measure, rounds=REPEATS, warmup_rounds=1)
    what = "over its kernels" if name in kernels else "in all"
    note(benchmark, f"Python, {name}_burst, 256 frames, {what}", "ns", ours, "", [], BATCH_BAR_NS)


@pytest.mark.parametrize("kind", ["TCPv4", "TCPv6"])
def test_hash(kind: str, one_core: int, tmp_path: Path, versus: Callable[..., None]) -> None:
    memory, bounds, frames = traffic(kind)
    path = peer_file(tmp_path, memory, bounds)
    toeplitz = offload.Toeplitz(KEY)
    versus(
        f"Toeplitz hash of parsed frames, {kind}",
        lambda: hash_frames(toeplitz, frames, rounds=ROUNDS),
        lambda: float(peers.dpdk("dpdk_frame", "softrss", path, ROUNDS // 20, cpu=one_core)["ns"]),
        "rte_softrss_be, as packaged",
        native=lambda: float(peers.dpdk("dpdk_frame", "softrss", path, ROUNDS // 20, cpu=one_core, native=True)["ns"]),
    )
