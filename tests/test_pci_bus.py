"""The PCI bus: mechanism #1, dispatch by programmed address, interrupt lines; and a whole device on it."""

from __future__ import annotations

import sys
from pathlib import Path

from virtio import GuestMemory
from virtio.pci import Bus, LegacyFunction

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from entropy import Entropy

MEMORY = 1 << 20
PORT = 0xC000


def test_an_entropy_device_driven_by_registers_alone():
    """A driver of port accesses: PFN, kick, ISR."""
    memory = GuestMemory.allocate(MEMORY)
    levels: list[tuple[int, bool]] = []
    bus = Bus(intx=lambda line, level: levels.append((line, level)))
    slot = bus.add(LegacyFunction(Entropy(), memory), 3)
    line = bus.line(slot)

    def select(offset: int) -> None:
        bus.io_write(0xCF8, 4, 1 << 31 | slot << 11 | offset & 0xFC)

    select(0)
    assert bus.io_read(0xCFC, 4) == 0x10051AF4
    select(0x10)
    bus.io_write(0xCFC, 4, PORT)
    select(4)
    bus.io_write(0xCFC, 2, 5)
    bus.io_write(PORT + 0x12, 1, 1)
    bus.io_write(PORT + 0x12, 1, 3)
    bus.io_write(PORT + 4, 4, 0)
    bus.io_write(PORT + 0xE, 2, 0)
    size = bus.io_read(PORT + 0xC, 2)
    assert size == 256
    bus.io_write(PORT + 8, 4, 0x10)
    bus.io_write(PORT + 0x12, 1, 7)
    desc, avail, used = 0x10000, 0x10000 + 16 * size, 0x12000
    buffer = 0x40000
    memory.write(desc, buffer.to_bytes(8, "little") + (64).to_bytes(4, "little") + b"\2\0\0\0")
    memory.write_u16(avail + 4, 0)
    memory.write_u16(avail + 2, 1)
    bus.io_write(PORT + 0x10, 2, 0)
    assert memory.read_u16(used + 2) == 1 and memory.read_u32(used + 8) == 64
    assert memory.read(buffer, 64) != bytes(64)
    assert levels == [(line, True)]
    assert bus.io_read(PORT + 0x13, 1) == 1
    assert levels == [(line, True), (line, False)]
    assert bus.io_read(PORT + 0x13, 1) == 0
