"""A hostile peer's pen: writes descriptors, indices and used entries into a ring as raw bytes, right or wrong."""

from __future__ import annotations

import struct
from typing import Any

from virtio import DeviceQueue, DriverQueue, Feature, GuestMemory, QueueLayout

BASE, OTHER, TABLE, DATA = 0x10000, 0x18000, 0x20000, 0x30000
SIZE = 8
TOP = 0x10000 + (1 << 20)  # first address after memory
NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 1 << 7, 1 << 15


class RawRing:
    """Memory with two queues: the one under attack, and an honest neighbour."""

    def __init__(self, packed: bool, features: int = Feature.INDIRECT_DESC | Feature.EVENT_IDX, **options: Any) -> None:
        self.packed = packed
        self.memory = GuestMemory.allocate(1 << 20, BASE)
        self.layout = QueueLayout.packed(SIZE, BASE) if packed else QueueLayout.split(SIZE, BASE)
        other = QueueLayout.packed(SIZE, OTHER) if packed else QueueLayout.split(SIZE, OTHER)
        self.features = features | (Feature.RING_PACKED if packed else 0)
        self.options = options
        self.neighbour = (
            DriverQueue(self.memory, other, features=self.features, index=1),
            DeviceQueue(self.memory, other, features=self.features, index=1),
        )
        self.published = 0

    def device(self) -> DeviceQueue:
        return DeviceQueue(self.memory, self.layout, features=self.features, **self.options)

    def driver(self) -> DriverQueue:
        return DriverQueue(self.memory, self.layout, features=self.features, **self.options)

    def desc(self, i: int, addr: int, length: int, flags: int = 0, link: int = 0) -> None:
        """Write descriptor i. ``link`` is next (split) or the buffer id (packed); packed ones are marked available."""
        if self.packed:
            self.memory.write(self.layout.desc + 16 * i, struct.pack("<QIHH", addr, length, link, flags | AVAIL))
        else:
            self.memory.write(self.layout.desc + 16 * i, struct.pack("<QIHH", addr, length, flags, link))

    def entry(self, i: int, addr: int, length: int, flags: int = 0, next_: int = 0) -> None:
        """Write entry i of the indirect table at TABLE."""
        fields = (addr, length, 0, flags) if self.packed else (addr, length, flags, next_)
        self.memory.write(TABLE + 16 * i, struct.pack("<QIHH", *fields))

    def publish(self, *heads: int) -> None:
        """Make heads available (packed: they are so by their flags)."""
        if self.packed:
            return
        for head in heads:
            self.memory.write_u16(self.layout.driver + 4 + 2 * (self.published % SIZE), head)
            self.published += 1
        self.memory.write_u16(self.layout.driver + 2, self.published & 0xFFFF)

    def use(self, ident: int, length: int, at: int = 0, idx: int | None = None) -> None:
        """Mark id used at ring position ``at``, as a device does in its first lap."""
        if self.packed:
            flags = AVAIL | USED | WRITE
            self.memory.write(self.layout.desc + 16 * at + 8, struct.pack("<IHH", length, ident & 0xFFFF, flags))
            return
        self.memory.write(self.layout.device + 4 + 8 * at, struct.pack("<II", ident, length))
        self.memory.write_u16(self.layout.device + 2, at + 1 if idx is None else idx)

    def neighbour_works(self) -> bool:
        """Move a chain through the honest queue of the same memory."""
        driver, device = self.neighbour
        driver.enqueue([(DATA, 4)], [(DATA + 64, 4)], "honest")
        chain = device.pop()
        assert chain is not None
        chain.write(b"well")
        device.add_used(chain)
        return driver.dequeue() == ("honest", 4) and self.memory.read(DATA + 64, 4) == b"well"
