"""Network driver and device, beside the copies alone that they cannot do without:

- vtnet to the device, on one thread and on two, 64, 1500 and 64 K bytes, split and packed;
- a frame from guest to guest over a cable (one copy), beside the one copy, and beside a cable of two copies;
- Python's transmit and receive;
- `virtio iperf`: TCP of the kernel through driver and device, beside two TAPs joined by a loop in C.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from bench import nets
from bench.conftest import ROUNDS
from bench.kernels.cablebench import TwoCopies, copies, forward
from bench.kernels.netbench import through
from virtio.net import Cable, Loopback

COUNT = {64: 400_000, 1500: 200_000, 65000: 10_000}
FORMATS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
LENGTHS = pytest.mark.parametrize("length", COUNT)
needs_two = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")


def name(packed: bool) -> str:
    return "packed" if packed else "split"


def copy_alone(length: int) -> float:
    """One copy of a frame, from and to as many buffers as the queues have."""
    large = length > 2048
    senders, receivers = (64, 64) if large else (192, 256)
    return copies(length, COUNT[length], senders=senders, receivers=receivers, stride=length // 64 * 64 + 192)


def figure(
    benchmark: Any, facts: dict[str, Any], row: str, unit: str, ours: list[float], bar: float, met: bool
) -> None:
    """Note a row whose bar is a plain figure."""
    benchmark.extra_info.update(
        row=row, unit=unit, ours=ours, peer_name="", peer=[], native=[], ratio=None, bar=bar, met=met, machine=facts
    )


@LENGTHS
@FORMATS
def test_driver_to_device_on_one_thread(length: int, packed: bool, one_core: int, versus: Callable[..., None]) -> None:
    """The whole way of a frame that the device's port drops: the driver copies it into its buffer."""
    joined = nets.join(packed=packed)
    transmit = joined.nic.pairs[0].transmit
    versus(
        f"vtnet to device, one thread, {name(packed)}, {length} B",
        lambda: through(transmit, None, joined.worker.tasks, length, COUNT[length])[0],
        lambda: copy_alone(length),
        "the driver's copy alone",
    )


@needs_two
@LENGTHS
@FORMATS
def test_driver_to_device_on_two_threads(length: int, packed: bool, benchmark: Any, facts: dict[str, Any]) -> None:
    joined = nets.join(packed=packed, cpu=min(os.sched_getaffinity(0)))
    count = COUNT[length] * 5
    rates: list[float] = []
    nets.two_threads(joined, length, count)
    benchmark.pedantic(lambda: rates.append(1e3 / nets.two_threads(joined, length, count)), rounds=ROUNDS)
    bar = 8 if length == 64 else 0
    row = f"vtnet to device, two threads, {name(packed)}, {length} B"
    figure(benchmark, facts, row, "Mpps", rates, bar, statistics.median(rates) >= bar)
    if not bar:
        benchmark.extra_info.update(bar=None, met=None)


@needs_two
@FORMATS
def test_queue_pairs_scale(packed: bool, versus: Callable[..., None]) -> None:
    """Two queue pairs on a thread each share nothing: twice the packets in the time, or nearly."""
    joined = nets.join(packed=packed, pairs=2)
    count = COUNT[64] * 5
    versus(
        f"vtnet to device, two pairs on two threads, {name(packed)}, 64 B",
        lambda: nets.side_by_side(joined, 2, 64, count),
        lambda: nets.side_by_side(joined, 1, 64, count),
        "one pair on one thread",
    )


@LENGTHS
@FORMATS
@pytest.mark.parametrize("beside", ["one memcpy", "two copies"])
def test_cable(length: int, packed: bool, beside: str, one_core: int, versus: Callable[..., None]) -> None:
    """What the devices' side takes for a frame from one guest to another."""
    cable = Cable()
    near, far = nets.join(cable.a, packed=packed), nets.join(cable.b, packed=packed)
    a, b = TwoCopies(), TwoCopies()
    a.other, b.other = b, a
    near2, far2 = nets.join(a, packed=packed), nets.join(b, packed=packed)

    def run(one: nets.Joined, other: nets.Joined) -> float:
        burst = 64 if length < 2048 else 8
        return forward(
            one.nic.pairs[0].transmit, other.nic.pairs[0].receive, one.transmit_tasks, length, COUNT[length],
            burst=burst,
        )  # fmt: skip

    if beside == "one memcpy":
        bar = 1.5 if length == 1500 else None
        versus(
            f"cable, {name(packed)}, {length} B", lambda: run(near, far), lambda: copy_alone(length), beside, bar=bar
        )
    else:
        versus(
            f"cable, {name(packed)}, {length} B, beside two copies",
            lambda: run(near, far), lambda: run(near2, far2), "a cable of two copies",
        )  # fmt: skip


@pytest.mark.parametrize("side", ["transmit", "receive"])
@pytest.mark.parametrize("checksum", [False, True], ids=["plain", "checksum"])
def test_python_bursts(side: str, checksum: bool, one_core: int, benchmark: Any, facts: dict[str, Any]) -> None:
    """Bursts of 32 frames of 1500 bytes, as bytes objects."""
    joined = nets.join(Loopback())
    head = bytes.fromhex(
        "020000000002 020000000001 0800 4500 05ce 0007 0000 4006 0000 0a000001 0a000002"
        "1389 0050 00000064 00000000 5018 ffff 0000 0000"
    )
    frames = [head + bytes(1500 - len(head))] * 32
    figures: list[float] = []

    def ours() -> None:
        spent = dict.fromkeys(("transmit", "receive"), 0)
        for _ in range(300):
            start = time.thread_time_ns()
            sent = joined.nic.transmit(frames, checksum=checksum)
            spent["transmit"] += time.thread_time_ns() - start
            for task in joined.worker.tasks:
                task.poll()
            start = time.thread_time_ns()
            got = joined.nic.receive(32, complete=False)
            spent["receive"] += time.thread_time_ns() - start
            assert sent == len(got) == 32
        figures.append(spent[side] / (300 * 32))

    ours()
    figures.clear()
    benchmark.pedantic(ours, rounds=ROUNDS)
    row = f"Python {side}, bursts of 32, 1500 B, {'checksum left to the device' if checksum else 'plain'}"
    figure(benchmark, facts, row, "ns", figures, 250, statistics.median(figures) <= 250)


@needs_two
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and TAP interfaces")
def test_iperf(benchmark: Any, facts: dict[str, Any]) -> None:
    """The main job once; the command interleaves its runs of the paths itself."""
    command = [sys.executable, "-m", "virtio", "iperf", "--json"]
    found: list[Any] = []
    benchmark.pedantic(
        lambda: found.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout)), rounds=1
    )
    rows = found[0]["rows"]
    assert all(row["verified"] for row in rows)

    def of(direction: str, nic: str, offloads: bool = True) -> list[float]:
        (row,) = [r for r in rows if (r["direction"], r["nic"], r["offloads"]) == (direction, nic, offloads)]
        return list(row["mbit_s"])

    text = []
    met = True
    for direction in ("guest-to-host", "host-to-guest"):
        on, off, loop = of(direction, "vtnet"), of(direction, "vtnet", False), of(direction, "tap-loop")
        ratio, gain = statistics.median(on) / statistics.median(loop), statistics.median(on) / statistics.median(off)
        met = met and ratio >= 0.9 and gain >= 4
        text.append(f"{direction} {ratio:.2f} x tap-loop, {gain:.1f} x off")
    both = of("guest-to-host", "vtnet") + of("host-to-guest", "vtnet")
    loops = of("guest-to-host", "tap-loop") + of("host-to-guest", "tap-loop")
    benchmark.extra_info.update(
        row="virtio iperf: " + "; ".join(text), unit="Mbit/s", ours=both, peer_name="tap-loop", peer=loops, native=[],
        ratio=None, bar="0.9 x and 4 x", met=met, machine=facts,
    )  # fmt: skip
