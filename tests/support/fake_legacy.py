"""A legacy virtio function made of registers alone: no device behind it, and every register can lie."""

from __future__ import annotations

from fake_pci import FakeFunction, FakePci

from virtio import GuestMemory
from virtio.event.notifier import Bell
from virtio.memory.dma import DmaPool
from virtio.pci.probe import Window, scan

NO_VECTOR = 0xFFFF
NAMES = {
    **{0x00: "host features", 0x04: "guest features", 0x08: "pfn", 0x0C: "size", 0x0E: "select", 0x10: "notify"},
    **{0x12: "status", 0x13: "isr"},
}
SIZES = {0x00: 4, 0x04: 4, 0x08: 4, 0x0C: 2, 0x0E: 2, 0x10: 2, 0x12: 1, 0x13: 1, 0x14: 2, 0x16: 2}


class FakeInterrupts:
    """Hands out vectors, and knows who has the lines."""

    def __init__(self):
        self.vectors = {}
        self.lines = {}

    def allocate_vector(self, bell=None):
        data = next(n for n in range(0x40, 0x1000) if (0xFEE00000, n) not in self.vectors)
        self.vectors[0xFEE00000, data] = bell = bell or Bell()
        return 0xFEE00000, data, bell

    def free_vector(self, address, data):
        del self.vectors[address, data]

    def connect_line(self, address, pin, bell):
        self.lines[address, pin] = bell

    def disconnect_line(self, address, pin):
        del self.lines[address, pin]


class FakeLegacy(FakePci):
    """One function, at 00:03.0. ``lies`` maps a register's offset to a function of its true value.

    ``log`` has what was done to the registers: ("read" or "write", name, size, value). Accesses of another width than
    the register's fail, as does everything that the driver does while decoding or bus mastering is off.
    """

    def __init__(self, *, memory_bar=False, vectors=4, pin=1, sizes=(64, 64, 64), features=0, config=b"", bar=0x40):
        bars = {0: (bar, 0 if memory_bar else 1), 1: (0x1000, 0)}
        self.function = FakeFunction(bars=bars, pin=pin)
        if vectors:
            self.function.msix(vectors)
        super().__init__({(0, 3, 0): self.function})
        self.memory_bar = memory_bar
        self.table = bytearray(b"\0" * 12 + b"\1\0\0\0") * max(vectors, 1)
        self.sizes = list(sizes)
        self.features = int(features)
        self.config = bytearray(config)
        self.lies = {}
        self.log = []
        self.controls = []  # MSI-X control word at each write to the table
        self.clear()
        self.guest_features = 0
        self.memory = GuestMemory.allocate(1 << 20)
        self.pool = DmaPool(self.memory, 0x1000, (1 << 20) - 0x1000)
        self.interrupts = FakeInterrupts()

    def clear(self):
        self.status = self.isr = self.select = 0
        self.pfns = [0] * len(self.sizes)
        self.config_vector = NO_VECTOR
        self.queue_vectors = [NO_VECTOR] * len(self.sizes)

    def find(self):
        """Probe, and return the function."""
        (found,) = scan(self, io=Window(0xC000, 0x10000), memory=Window(0xFEB00000, 0xFEC00000))
        return found

    @property
    def msix(self):
        return self.function.data[0x40] == 0x11 and bool(self.function.data[0x43] & 0x80)

    # ---- accesses ----

    def io_read(self, port, size):
        assert not self.memory_bar and self.function.data[4] & 1
        return self.read(port - (self.function.get(0x10, 4) & ~3), size)

    def io_write(self, port, size, value):
        assert not self.memory_bar and self.function.data[4] & 1
        self.write(port - (self.function.get(0x10, 4) & ~3), size, value)

    def _mem(self, address):
        assert self.function.data[4] & 2
        base = self.function.get(0x10, 4) & ~0xF
        if self.memory_bar and base <= address < base + 0x40:
            return None, address - base
        return self.table, address - (self.function.get(0x14, 4) & ~0xF)

    def mem_read(self, address, size):
        table, at = self._mem(address)
        return self.read(at, size) if table is None else int.from_bytes(table[at : at + size], "little")

    def mem_write(self, address, size, value):
        table, at = self._mem(address)
        if table is None:
            self.write(at, size, value)
        else:
            assert at + size <= len(table) and size == 4
            self.controls.append(self.function.get(0x42, 2))
            table[at : at + size] = value.to_bytes(size, "little")

    # ---- registers ----

    def read(self, offset, size):
        start = 0x18 if self.msix else 0x14
        if offset >= start:
            assert size == 1
            at = offset - start
            true = self.config[at] if at < len(self.config) else 0xFF
            value = self.lies["config"](at, true) if "config" in self.lies else true
            self.log.append(("read", "config", at, value))
            return value
        assert size == SIZES[offset], f"{size} bytes read at {offset:#x}"
        exists = self.select < len(self.sizes)
        true = {
            0x00: self.features,
            0x04: self.guest_features,
            0x08: self.pfns[self.select] if exists else 0,
            0x0C: self.sizes[self.select] if exists else 0,
            0x0E: self.select,
            0x10: 0,
            0x12: self.status,
            0x13: self.isr,
            0x14: self.config_vector,
            0x16: self.queue_vectors[self.select] if exists else NO_VECTOR,
        }[offset]
        if offset == 0x13:
            self.isr = 0
        value = self.lies[offset](true) if offset in self.lies else true
        self.log.append(("read", NAMES.get(offset, "vector"), size, value))
        return value

    def write(self, offset, size, value):
        assert 0 <= value < 1 << 8 * size
        start = 0x18 if self.msix else 0x14
        if offset >= start:
            assert size == 1
            self.config[offset - start] = value
            self.log.append(("write", "config", offset - start, value))
            return
        assert size == SIZES[offset], f"{size} bytes written at {offset:#x}"
        self.log.append(("write", NAMES.get(offset, "vector"), size, value))
        if offset == 0x04:
            self.guest_features = value
        elif offset == 0x08:
            self.pfns[self.select] = value
        elif offset == 0x0E:
            self.select = value
        elif offset == 0x12:
            if value == 0:
                self.clear()
            else:
                self.status = value
        elif offset == 0x14:
            self.config_vector = value
        elif offset == 0x16:
            self.queue_vectors[self.select] = value

    def writes(self, name):
        """Values that were written to a register."""
        return [entry[3] for entry in self.log if entry[:2] == ("write", name)]
