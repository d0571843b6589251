"""PCI functions made of bytes, for probes: they can lie in every bit."""

from __future__ import annotations

from collections.abc import Callable

from virtio.pci.probe import Window, scan

IO, MEMORY = Window(0xC000, 0x10000), Window(0xFEB00000, 0xFEC00000)


class FakeFunction:
    """256 bytes of configuration space. ``bars`` maps an index to (size, flags): flags are the low bits, as hardwired.

    A 64-bit BAR (flags 4) takes the next register too. ``hooks`` maps an offset to a function of the byte there.
    """

    def __init__(self, vendor=0x1AF4, device=0x1000, *, revision=0, header=0, subsystem=1, pin=1, bars=None):
        self.data = bytearray(256)
        self.set(0x00, 2, vendor)
        self.set(0x02, 2, device)
        self.set(0x08, 1, revision)
        self.set(0x09, 3, 0x020000)
        self.set(0x0E, 1, header)
        if header & 0x7F == 0:
            self.set(0x2C, 2, vendor)
            self.set(0x2E, 2, subsystem)
        self.set(0x3D, 1, pin)
        self.masks = {}  # of each BAR register: bits that can be written
        self.decoding_writes = []  # BAR registers that were written while it decoded
        self.hooks: dict[int, Callable[[int], int]] = {}
        for index, (size, flags) in ({0: (0x40, 1)} if bars is None else bars).items():
            self.set(0x10 + 4 * index, 4, flags)
            mask = (1 << 64) - size
            self.masks[index] = mask & 0xFFFFFFFF & ~flags
            if flags & 7 == 4:
                self.masks[index + 1] = mask >> 32

    def set(self, offset, size, value):
        self.data[offset : offset + size] = value.to_bytes(size, "little")

    def get(self, offset, size):
        return int.from_bytes(self.data[offset : offset + size], "little")

    def capabilities(self, *items):
        """Lay out capabilities: (offset, bytes from the id on, without the link)."""
        self.data[6] |= 0x10
        link = 0x34
        for offset, body in items:
            self.data[link] = offset
            self.data[offset] = body[0]
            self.data[offset + 2 : offset + 1 + len(body)] = body[1:]
            link = offset + 1
        return self

    def msix(self, vectors=3, table=(1, 0), pba=(1, 0x800), offset=0x40):
        body = b"\x11" + (vectors - 1).to_bytes(2, "little")
        body += (table[1] | table[0]).to_bytes(4, "little") + (pba[1] | pba[0]).to_bytes(4, "little")
        return self.capabilities((offset, body))

    def read(self, offset, size):
        data = bytes(
            self.hooks[at](self.data[at]) if at in self.hooks else self.data[at] for at in range(offset, offset + size)
        )
        return int.from_bytes(data, "little")

    def write(self, offset, size, value):
        if 0x10 <= offset < 0x28:
            index = (offset - 0x10) // 4
            assert size == 4 and offset % 4 == 0
            if self.data[4] & 3:
                self.decoding_writes.append(index)
            mask = self.masks.get(index, 0)
            self.set(offset, 4, value & mask | self.get(offset, 4) & ~mask)
        elif offset == 4:
            self.set(4, size, value & 0x0407)
        elif offset != 6:
            self.set(offset, size, value)


class FakePci:
    """Functions at (bus, device, function). Everything else reads as ones."""

    def __init__(self, functions=()):
        self.functions = dict(functions)
        self.reads = 0

    def config_read(self, bus, device, function, offset, size):
        assert size in (1, 2, 4) and offset % size == 0
        self.reads += 1
        found = self.functions.get((bus, device, function))
        return (1 << 8 * size) - 1 if found is None else found.read(offset, size)

    def config_write(self, bus, device, function, offset, size, value):
        assert size in (1, 2, 4) and offset % size == 0 and 0 <= value < 1 << 8 * size
        found = self.functions.get((bus, device, function))
        if found is not None:
            found.write(offset, size, value)


def bridge(secondary):
    function = FakeFunction(0x8086, 0x2448, header=1, bars={}, pin=0)
    function.set(0x19, 1, secondary)
    return function


def one(function, **windows):
    (found,) = scan(FakePci({(0, 3, 0): function}), **windows)
    return found
