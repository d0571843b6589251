"""examples/entropy.py: a whole device type in a few lines, driven through each transport there is."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from virtio import Feature, GuestMemory
from virtio.constants import DeviceType, Status
from virtio.device import Device
from virtio.direct import DirectTransport
from virtio.driver import Driver, QueuePlan, Transport
from virtio.memory.dma import DmaPool
from virtio.net.machine import Machine
from virtio.pci.legacy_driver import LegacyTransport, Mode

EXAMPLE = Path(__file__).parent.parent / "examples" / "entropy.py"
BUFFERS = 0x40000
RINGS = Feature.VERSION_1 | Feature.EVENT_IDX | Feature.INDIRECT_DESC


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("entropy_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["entropy_example"] = module
    spec.loader.exec_module(module)
    return module


Entropy: type[Device] = load().Entropy


class Rng(Driver):
    """The driver: asks for bytes, and waits for no interrupt."""

    device_type = DeviceType.ENTROPY

    def plan_queues(self) -> Sequence[QueuePlan]:
        return [QueuePlan(0, "requests", segments=8)]

    def read(self, *pieces: int) -> bytes:
        attached = self.queues[0]
        where = [(BUFFERS + 0x10000 * i, length) for i, length in enumerate(pieces)]
        for at, length in where:
            self.memory.write(at, bytes(length))
        attached.queue.enqueue([], where)
        attached.notify()
        got = attached.queue.dequeue()
        assert got is not None
        attached.queue.enable_intr()
        return b"".join(self.memory.read(at, length) for at, length in where)[: got[1]]


def direct(device: Device, memory: GuestMemory) -> Transport:
    return DirectTransport(device, memory)


def direct_legacy(device: Device, memory: GuestMemory) -> Transport:
    return DirectTransport(device, memory, legacy=True)


def pci(mode: Mode, fast: bool) -> Callable[[Device, GuestMemory], Transport]:
    """Legacy PCI on a whole machine: found by a probe of its bus."""

    def plug(device: Device, memory: GuestMemory) -> Transport:
        machine = Machine(1 << 20, memory=memory, fast=fast)
        machine.plug(device)
        (function,) = machine.probe()
        assert function.device_type == DeviceType.ENTROPY
        return LegacyTransport(machine, function, memory, machine.interrupts, mode=mode)

    return plug


TRANSPORTS: dict[str, Callable[[Device, GuestMemory], Transport]] = {
    "direct": direct,
    "direct legacy": direct_legacy,
    **{
        f"PCI {mode} {'bells' if fast else 'registers'}": pci(mode, fast)
        for mode in ("msix", "msix-shared", "intx")
        for fast in (True, False)
    },
}


@pytest.fixture(params=TRANSPORTS)
def rng(request: pytest.FixtureRequest) -> Rng:
    memory = GuestMemory.allocate(1 << 20)
    driver = Rng(TRANSPORTS[request.param](Entropy(), memory), DmaPool(memory, 0x1000, 0x3F000), wanted=RINGS)
    driver.attach()
    return driver


def test_it_is_short() -> None:
    source = textwrap.dedent(inspect.getsource(Entropy))
    assert len([line for line in source.splitlines() if line.strip()]) < 30


def test_buffers_are_filled(rng: Rng) -> None:
    first, second = rng.read(4096), rng.read(4096)
    assert len(first) == len(second) == 4096
    assert first != second
    # of 4096 random bytes each value occurs about 16 times; none at all is a chance of 1e-7 for each
    assert len(set(first)) > 250


@pytest.mark.parametrize("lengths", [(1,), (1, 2, 3), (65536,), (1000, 65000)])
def test_all_pieces_of_a_request_up_to_its_limit(rng: Rng, lengths: tuple[int, ...]) -> None:
    assert len(rng.read(*lengths)) == min(sum(lengths), 65536)


def test_many_requests_and_their_interrupts(rng: Rng) -> None:
    seen = set()
    for _ in range(600):  # the ring is of 256
        seen.add(rng.read(16))
        assert rng.queues[0].interrupt.answer()
    assert len(seen) == 600


@pytest.mark.parametrize("extra", [Feature.RING_PACKED, Feature.IN_ORDER, Feature.RING_PACKED | Feature.IN_ORDER])
def test_modern_rings(extra: int) -> None:
    memory = GuestMemory.allocate(1 << 20)
    driver = Rng(DirectTransport(Entropy(), memory), DmaPool(memory, 0x1000, 0x3F000), wanted=RINGS | extra)
    driver.attach()
    assert driver.features & extra == extra
    assert len({driver.read(16) for _ in range(600)}) == 600


def test_the_bytes_are_the_systems(monkeypatch: pytest.MonkeyPatch, rng: Rng) -> None:
    monkeypatch.setattr(os, "urandom", lambda length: b"r" * length)
    assert rng.read(10, 10) == b"r" * 20


def test_a_request_with_nothing_to_fill(rng: Rng) -> None:
    attached = rng.queues[0]
    attached.queue.enqueue([(BUFFERS, 16)], [], "useless")
    attached.notify()
    assert attached.queue.dequeue() == ("useless", 0)
    assert rng.transport.status & Status.DEVICE_NEEDS_RESET == 0


def test_a_request_that_names_the_same_memory_often_does_not_cost_as_much(rng: Rng) -> None:
    attached = rng.queues[0]
    attached.queue.enqueue([], [(0x80000, 1 << 19)] * 8, "large")
    asked: list[int] = []

    def counted(length: int) -> bytes:
        asked.append(length)
        return bytes(length)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "urandom", counted)
        attached.kick.ring()
    assert asked == [65536]
    assert attached.queue.dequeue() == ("large", 65536)


def test_it_survives_a_snapshot() -> None:
    memory = GuestMemory.allocate(1 << 20)
    transport = DirectTransport(Entropy(), memory)
    driver = Rng(transport, DmaPool(memory, 0x1000, 0x3F000), wanted=RINGS)
    driver.attach()
    before = driver.read(64)
    state: dict[str, Any] = transport.device.snapshot()
    transport.device.restore(state, memory)
    assert driver.queues[0].interrupt.answer()
    assert driver.read(64) != before
