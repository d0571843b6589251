"""Devices of no use but to test, a transport without registers, and a driver that sets queues up by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from virtio import Chain, DriverQueue, Feature, GuestMemory, QueueLayout
from virtio.constants import DeviceType
from virtio.device import Device
from virtio.event.notifier import Bell

ACK, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8
NEEDS_RESET, FAILED = 64, 128
READY = ACK | DRIVER | FEATURES_OK | DRIVER_OK
MODERN = Feature.VERSION_1 | Feature.EVENT_IDX | Feature.INDIRECT_DESC | Feature.RING_RESET
RING = 0x10000  # of queue 0; each queue has 64 KiB
DATA = 0x80000


class Calls:
    """What a transport gives a device: bells that count, and notes of configuration interrupts."""

    def __init__(self) -> None:
        self.bells: dict[int, Bell] = {}
        self.configs = 0

    def queue(self, index: int) -> Bell:
        return self.bells.setdefault(index, Bell())

    def config(self) -> None:
        self.configs += 1

    def rings(self, index: int = 0) -> int:
        return self.bells[index].rings


class Echo(Device):
    """Writes what it reads, in capital letters, into each chain's writable part. Notes what its hooks are told."""

    device_type = DeviceType.CONSOLE

    def __init__(self, *, queues: int = 2, config: bytes = b"", **options: Any) -> None:
        self.count = queues
        self.told: list[Any] = []
        self.config = bytearray(config)
        super().__init__(**options)

    def queue_sizes(self) -> tuple[int, ...]:
        return (self.queue_size,) * self.count

    def activate(self, memory: GuestMemory, interrupt: object) -> None:
        self.told.append("activate")

    def deactivate(self) -> None:
        self.told.append("deactivate")

    def queue_enable(self, index: int) -> None:
        self.told.append(("enable", index))

    def queue_reset(self, index: int) -> None:
        self.told.append(("reset", index))

    def call_changed(self, index: int) -> None:
        self.told.append(("call", index))

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")

    def notified(self, index: int) -> None:
        for chain in self.chains(index):
            self.answer(index, chain)

    def answer(self, index: int, chain: Chain) -> None:
        chain.write(chain.read().upper()[: chain.writable_length])


class Later(Echo):
    """Answers when :meth:`finish` is called."""

    def activate(self, memory: GuestMemory, interrupt: object) -> None:
        super().activate(memory, interrupt)
        self.held = [
            chain for slot in self.queues if slot.enabled for chain in self.device_queue(slot.index).outstanding
        ]

    def notified(self, index: int) -> None:
        queue = self.device_queue(index)
        while queue.enable_notification():
            self.held += queue.pop_burst()

    def finish(self) -> None:
        for chain in self.held:
            chain.write(chain.read().upper())
            self.device_queue(0).add_used(chain)
        self.held = []
        if self.device_queue(0).needs_notification():
            self.interrupt(0)

    def save(self) -> dict[str, Any]:
        return {"held": len(self.held)}

    def load(self, state: Mapping[str, Any]) -> None:
        self.told.append(("load", state["held"]))


class Silent(Device):
    """Has no notified(): somebody else answers its kicks."""

    device_type = DeviceType.CONSOLE


class Guest:
    """Memory, a bound device, and the driver's side of it."""

    def __init__(self, device: Device, *, legacy: bool = False, memory: GuestMemory | None = None) -> None:
        self.memory = memory or GuestMemory.allocate(1 << 20)
        self.device = device
        self.calls = Calls()
        self.queues: dict[int, DriverQueue] = {}
        device.legacy = legacy
        device.bind(self.memory, self.calls)
        getattr(device, "told", []).clear()

    def negotiate(self, features: int = MODERN) -> Guest:
        self.device.write_status(ACK)
        self.device.write_status(ACK | DRIVER)
        self.device.driver_features(features)
        if not self.device.legacy:
            self.device.write_status(ACK | DRIVER | FEATURES_OK)
            assert self.device.status & FEATURES_OK
        return self

    def setup(self, *indices: int, size: int = 8) -> Guest:
        for index in indices:
            layout = self.layout(index, size)
            assert self.device.setup_queue(index, layout)
            self.queues[index] = DriverQueue(self.memory, layout, features=self.device.negotiated, index=index)
        return self

    def layout(self, index: int, size: int = 8) -> QueueLayout:
        packed = self.device.negotiated & Feature.RING_PACKED
        return (QueueLayout.packed if packed else QueueLayout.split)(size, RING + 0x10000 * index)

    def go(self) -> Guest:
        self.device.write_status(self.device.status | DRIVER_OK)
        return self

    def up(self, features: int = MODERN, queues: tuple[int, ...] = (0, 1)) -> Guest:
        return self.negotiate(features).setup(*queues).go()

    def send(self, text: bytes, index: int = 0, kick: bool = True) -> None:
        at = DATA + 0x1000 * (index * 16 + self.queues[index].outstanding)
        self.memory.write(at, text)
        self.queues[index].enqueue([(at, len(text))], [(at + 0x800, len(text))], at + 0x800)
        if kick and self.queues[index].notify():
            self.device.kick(index)

    def received(self, index: int = 0) -> list[bytes]:
        return [self.memory.read(at, length) for at, length in self.queues[index].dequeue_burst()]

    def ask(self, text: bytes, index: int = 0) -> bytes | None:
        """Return the answer to one request, or None if there is none."""
        self.send(text, index)
        got = self.received(index)
        assert len(got) <= 1
        return got[0] if got else None
