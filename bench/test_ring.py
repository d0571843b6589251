"""The rings, each beside its peer:

- a full cycle on one thread (enqueue, pop, add_used, dequeue) by format and batch, beside the same cycle in C;
- the device end alone, buffers in 1 and in 4 memory regions, beside the same in C;
- driver and device on two cores, polling and sleeping, beside Linux's tools/virtio/ringtest;
- the burst calls of the Python classes, beside the C cycle.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from bench import peers, rings
from bench.kernels.ringbench import cycle, device_only
from virtio import DeviceQueue, Feature, GuestMemory, QueueLayout
from virtio.cli.pair import Pair

COUNT = 1_000_000  # chains a round on one thread
BARS = {("split", 32): 1.3, ("split", 1): 1.5, ("packed-in-order", 32): 1.5}


@pytest.mark.parametrize("batch", [1, 4, 32, 128])
@pytest.mark.parametrize("mode", ["split", "split-in-order", "packed", "packed-in-order", "indirect"])
def test_cycle(mode: str, batch: int, one_core: int, versus: Callable[..., None]) -> None:
    driver, device = rings.ends(mode)
    pieces = 2 if mode == "indirect" else 1
    peer_mode = "indirect2" if mode == "indirect" else mode
    versus(
        f"cycle, {mode}, batch {batch}",
        lambda: cycle(driver, device, batch, COUNT, buffers=rings.BUFFERS, pieces=pieces),
        lambda: peers.ringcycle(peer_mode, batch, COUNT, cpu=one_core),
        "C, same flags",
        bar=BARS.get((mode, batch)),
        native=lambda: peers.ringcycle(peer_mode, batch, COUNT, cpu=one_core, flags=peers.NATIVE),
    )


@pytest.mark.parametrize("regions", [1, 4])
def test_device_end(regions: int, one_core: int, versus: Callable[..., None]) -> None:
    memory = GuestMemory((0x10000 + i * 0x10000000, bytearray(2 << 20)) for i in range(regions))
    device = DeviceQueue(memory, QueueLayout.legacy(256, 0x10000))
    versus(
        f"device end, batch 32, {regions} region(s)",
        lambda: device_only(device, 32, COUNT),
        lambda: peers.ringcycle(f"device{regions}", 32, COUNT, cpu=one_core),
        "C, same flags",
        bar=3 if regions == 4 else None,
        native=lambda: peers.ringcycle(f"device{regions}", 32, COUNT, cpu=one_core, flags=peers.NATIVE),
    )


needs_two = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")


@needs_two
@pytest.mark.parametrize(
    ("mode", "program", "bar"),
    [
        ("split", "virtio_ring_0_9", 1 / 1.5),
        ("split-in-order", "virtio_ring_inorder", None),
        ("packed", "ring", 1 / 0.8),
        ("packed-in-order", "ring", None),
    ],
)
def test_two_cores_polling(mode: str, program: str, bar: float | None, versus: Callable[..., None]) -> None:
    driver, device = rings.ends(mode)
    versus(
        f"two cores, polling, {mode}",
        lambda: rings.two_cores(Pair(driver, device, count=10_000_000, batch=32, buffers=rings.BUFFERS)),
        lambda: peers.ringtest(program, 5_000_000),
        f"ringtest {program}",
        bar=bar,
    )


@needs_two
@pytest.mark.parametrize(("mode", "program"), [("split", "virtio_ring_0_9"), ("packed", "ring")])
def test_two_cores_sleeping(mode: str, program: str, versus: Callable[..., None]) -> None:
    driver, device = rings.ends(mode, features=Feature.EVENT_IDX)
    kick, call = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    try:
        versus(
            f"two cores, sleeping, {mode}",
            lambda: rings.two_cores(
                Pair(driver, device, count=1_000_000, batch=32, buffers=rings.BUFFERS, kick=kick, call=call)
            ),
            lambda: peers.ringtest(program, 1_000_000, "--sleep", "--batch", "32"),
            f"ringtest {program} --sleep",
        )
    finally:
        os.close(kick)
        os.close(call)


@pytest.mark.parametrize("mode", ["split", "packed"])
def test_python_bursts(mode: str, one_core: int, versus: Callable[..., None]) -> None:
    driver, device = rings.ends(mode)
    chains = [([(rings.BUFFERS + 2048 * i, 1500)], (), i) for i in range(32)]
    rounds = 2000

    def ours() -> float:
        start = time.thread_time_ns()
        for _ in range(rounds):
            driver.enqueue_burst(chains)
            device.add_used_burst(device.pop_burst())
            driver.dequeue_burst()
        return (time.thread_time_ns() - start) / (rounds * 32)

    versus(
        f"Python burst calls, {mode}, 32 chains",
        ours,
        lambda: peers.ringcycle(mode, 32, COUNT, cpu=one_core),
        "C, same flags",
    )
