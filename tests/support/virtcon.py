"""A console driver, as small as one can be: it polls, and shows what came and what was said."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from virtio import Feature, GuestMemory
from virtio.console import ConsoleDevice, ConsoleFeature
from virtio.console.control import Event
from virtio.console.device import queues_of
from virtio.constants import DeviceType
from virtio.direct import DirectTransport
from virtio.driver import RING_FEATURES, Driver, QueuePlan, Transport
from virtio.memory.dma import DmaPool
from virtio.net.machine import Machine
from virtio.pci.legacy_driver import LegacyTransport

MEMORY = 4 << 20
BUFFERS = 1 << 20
CONTROL = struct.Struct("<IHH")
ALL = RING_FEATURES | ConsoleFeature.SIZE | ConsoleFeature.MULTIPORT


class Virtcon(Driver):
    """Drives all queues that there are. ``post`` gives buffers; ``received`` and ``messages`` look at what came."""

    device_type = DeviceType.CONSOLE

    def __init__(self, transport: Transport, pool: DmaPool, **options: Any) -> None:
        super().__init__(transport, pool, **options)
        self.next = BUFFERS

    def plan_queues(self) -> Sequence[QueuePlan]:
        many = self.features & ConsoleFeature.MULTIPORT
        ports = struct.unpack("<I", self.transport.read_config(4, 4))[0] if many else 1
        return [QueuePlan(i, f"queue {i}", segments=8) for i in range(2 * ports + 2 if many else 2)]

    def place(self, length: int) -> int:
        """Return where a buffer lies: anywhere, for the tests are short."""
        if self.next + length > MEMORY:
            self.next = BUFFERS
        at, self.next = self.next, self.next + length
        return at

    def post(self, index: int, *lengths: int, kick: bool = True) -> None:
        """Give buffers to a receive queue."""
        for length in lengths:
            at = self.place(length)
            self.queues[index].queue.enqueue([], [(at, length)], (at, length))
        if kick:
            self.queues[index].notify()

    def came(self, index: int) -> list[bytes]:
        """Return what is in the buffers that were used."""
        attached = self.queues[index]
        found = [self.memory.read(at, used) for (at, _), used in attached.queue.dequeue_burst()]
        attached.queue.enable_intr()
        return found

    def received(self, port: int = 0) -> bytes:
        return b"".join(self.came(queues_of(port)[0]))

    def send(self, index: int, *pieces: bytes) -> None:
        """Put a chain in a transmit queue, and kick."""
        where = []
        for piece in pieces:
            at = self.place(len(piece))
            self.memory.write(at, piece)
            where.append((at, len(piece)))
        self.queues[index].queue.enqueue(where, [], None)
        self.queues[index].notify()

    def transmit(self, data: bytes, port: int = 0) -> None:
        self.send(queues_of(port)[1], data)

    def sent(self, index: int) -> int:
        """Return how many transmitted chains came back."""
        found = self.queues[index].queue.dequeue_burst()
        self.queues[index].queue.enable_intr()
        return len(found)

    # ---- control ----

    def say(self, number: int, event: int, value: int = 1) -> None:
        self.send(3, CONTROL.pack(number, event, value))
        self.sent(3)

    def heard(self, buffers: int = 8) -> list[tuple[int, Event, int, bytes]]:
        """Return the control messages that came, and give as many buffers anew."""
        found = []
        for message in self.came(2):
            if message:
                number, event, value = CONTROL.unpack_from(message)
                found.append((number, Event(event), value, message[CONTROL.size :]))
        self.post(2, *[128] * min(buffers, self.queues[2].queue.nfree))
        return found

    def greet(self) -> list[tuple[int, Event, int, bytes]]:
        """Say that device and ports are ready, and open them; return all that was heard."""
        self.heard(32)
        self.say(0, Event.DEVICE_READY)
        found = self.heard(32)
        for number, *_ in tuple(found):
            self.say(number, Event.PORT_READY)
        found += self.heard(32)
        for number, event, *_ in tuple(found):
            if event == Event.DEVICE_ADD:
                self.say(number, Event.PORT_OPEN)
        return found


def attach(
    device: ConsoleDevice, wanted: int = int(ALL), *, how: str = "direct", memory: GuestMemory | None = None
) -> Virtcon:
    """Return a driver that is attached to a device, ``how``: "direct", "direct legacy" or "pci"."""
    memory = memory or GuestMemory.allocate(MEMORY)
    transport: Transport
    if how == "pci":
        machine = Machine(MEMORY, memory=memory)
        machine.plug(device)
        (function,) = machine.probe()
        transport = LegacyTransport(machine, function, memory, machine.interrupts)
    else:
        transport = DirectTransport(device, memory, legacy=how != "direct")
    driver = Virtcon(transport, DmaPool(memory, 0x1000, BUFFERS - 0x1000), wanted=wanted)
    driver.attach()
    return driver


PACKED = int(ALL | Feature.RING_PACKED)
WAYS = {
    "split": ("direct", int(ALL)),
    "packed": ("direct", PACKED),
    "in order": ("direct", int(PACKED | Feature.IN_ORDER)),
}
WAYS |= {"legacy": ("direct legacy", int(ALL)), "PCI": ("pci", int(ALL))}
