"""The registers of the legacy interface as a table and plain bytes: what virtio.pci is compared with.

Written from the table of VIRTIO 1.4, 4.1.4.10; it shares nothing with virtio.pci but the numbers in the specification.
"""

from __future__ import annotations

from typing import ClassVar

from virtio.device import Device
from virtio.virtqueue.layout import QueueLayout

MEMORY = 1 << 24
SIZES = (256, 64, 8)
VECTORS = 3
CONFIG = bytes(range(0x40, 0x40 + 23))  # an odd number, and no byte is 0 or 0xff

# bits of a network device, some of which need others
CSUM, GUEST_CSUM, MAC, GUEST_TSO4, HOST_TSO4, MRG_RXBUF = (1 << bit for bit in (0, 1, 5, 7, 11, 15))
OWN = CSUM | GUEST_CSUM | MAC | GUEST_TSO4 | HOST_TSO4 | MRG_RXBUF
NEEDS = {HOST_TSO4: CSUM, GUEST_TSO4: GUEST_CSUM}
OFFERED = OWN | 1 << 24 | 1 << 27 | 1 << 28 | 1 << 29  # and 32, 34, 35, 40, of which the legacy interface says nothing

DRIVER_OK, NEEDS_RESET, FAILED = 4, 64, 128

# offset, bytes, name
TABLE = (
    (0x00, 4, "offered"),
    (0x04, 4, "driver_features"),
    (0x08, 4, "pfn"),
    (0x0C, 2, "size"),
    (0x0E, 2, "select"),
    (0x10, 2, "notify"),
    (0x12, 1, "status"),
    (0x13, 1, "isr"),
)
MSIX_TABLE = ((0x14, 2, "config_vector"), (0x16, 2, "queue_vector"))


class Recorder(Device):
    """A device of which only what the registers do to it is of interest. Its configuration can be written."""

    device_type = 1
    features = Device.features | OWN

    def __init__(self) -> None:
        self.config = bytearray(CONFIG)
        self.set_up: list[tuple[int, QueueLayout]] = []
        super().__init__()

    def queue_sizes(self) -> tuple[int, ...]:
        return SIZES

    def config_written(self, offset: int, data: bytes) -> bool:
        self.config[offset : offset + len(data)] = data
        return True

    def notified(self, index: int) -> None:
        pass


class Model:
    """State that the registers show, and what accesses make of it."""

    names: ClassVar[tuple[str, ...]] = tuple(name for _, _, name in TABLE + MSIX_TABLE)

    def __init__(self, vectors: int = VECTORS) -> None:
        self.vectors = vectors
        self.msix = False
        self.config = bytearray(CONFIG)
        self.kicks = [0] * len(SIZES)
        self.messages: list[int] = []  # vectors of the interrupts that were sent
        self.reset()

    def reset(self) -> None:
        self.raw_features = self.negotiated = self.select = self.status = self.isr = 0
        self.asserted = False
        self.pfns = [0] * len(SIZES)
        self.layouts: list[QueueLayout | None] = [None] * len(SIZES)
        self.raw_config_vector = 0xFFFF
        self.raw_queue_vectors = [0xFFFF] * len(SIZES)

    @property
    def there(self) -> bool:
        return self.select < len(SIZES)

    def vector(self, raw: int) -> int:
        return raw if raw < self.vectors else 0xFFFF

    def table(self) -> tuple[tuple[int, int, str], ...]:
        return TABLE + MSIX_TABLE if self.msix else TABLE

    def shown(self) -> dict[str, int]:
        """What each register reads as."""
        return {
            "offered": OFFERED,
            "driver_features": self.negotiated,
            "pfn": self.pfns[self.select] if self.there else 0,
            "size": SIZES[self.select] if self.there else 0,
            "select": self.select,
            "notify": 0xFFFF,
            "status": self.status,
            "isr": self.isr,
            "config_vector": self.vector(self.raw_config_vector),
            "queue_vector": self.vector(self.raw_queue_vectors[self.select]) if self.there else 0xFFFF,
        }

    def written(self) -> dict[str, int]:
        """What each register was written as, which a narrower write leaves in its other bytes."""
        return self.shown() | {
            "driver_features": self.raw_features,
            "notify": 0,
            "config_vector": self.raw_config_vector,
            "queue_vector": self.raw_queue_vectors[self.select] if self.there else 0xFFFF,
        }

    def image(self) -> bytes:
        """All bytes of the I/O space, as they read now."""
        shown = self.shown()
        header = b"".join(shown[name].to_bytes(size, "little") for _, size, name in self.table())
        return (header + bytes(self.config)).ljust(0x100, b"\xff")

    def read(self, offset: int, size: int) -> int:
        image = bytearray(self.image())
        if offset == 0x13:
            self.isr, self.asserted = 0, False
        else:
            image[0x13] = 0
        return int.from_bytes(image[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        data = dict(zip(range(offset, offset + size), value.to_bytes(8, "little"), strict=False))
        table = self.table()
        base = table[-1][0] + table[-1][1]
        for start, length, name in table:
            touched = [at for at in range(start, start + length) if at in data]
            if touched:
                raw = bytearray(self.written()[name].to_bytes(length, "little"))
                for at in touched:
                    raw[at - start] = data[at]
                self.apply(name, int.from_bytes(raw, "little"), {at - start for at in touched})
        for at, byte in data.items():
            if base <= at < base + len(self.config):
                self.config[at - base] = byte

    def apply(self, name: str, value: int, touched: set[int]) -> None:
        if name == "driver_features":
            self.raw_features = value
            lacking = sum(bit for bit, need in NEEDS.items() if not value & need)
            self.negotiated = value & OFFERED & ~lacking
        elif name == "pfn" and self.there:
            self.pfns[self.select] = value
            if 3 in touched:
                self.set_up(self.select, value)
        elif name == "select":
            self.select = value
        elif name == "notify" and 0 in touched and value < len(SIZES):
            self.kicks[value] += 1
        elif name == "status":
            self.write_status(value)
        elif name == "config_vector":
            self.raw_config_vector = value
        elif name == "queue_vector" and self.there:
            self.raw_queue_vectors[self.select] = value

    def set_up(self, queue: int, pfn: int) -> None:
        self.layouts[queue] = None
        if pfn == 0:
            self.reset()
        else:
            layout = QueueLayout.legacy(SIZES[queue], pfn << 12)
            if layout.end <= MEMORY:
                self.layouts[queue] = layout
            else:
                if not self.status & NEEDS_RESET:
                    self.status |= NEEDS_RESET
                    if self.status & DRIVER_OK:
                        self.interrupt(2, self.raw_config_vector)

    def write_status(self, value: int) -> None:
        if value == 0:
            self.reset()
            return
        self.status &= value | ~DRIVER_OK
        self.status |= value & (1 | 2 | FAILED)
        if not self.status & FAILED:
            self.status |= value & DRIVER_OK

    def interrupt(self, isr: int, raw_vector: int) -> None:
        there = self.vector(raw_vector) != 0xFFFF
        if self.status and (isr == 2 or there or not self.msix):  # a queue without a vector has no interrupt
            self.isr |= isr
            self.asserted |= not self.msix
        if self.msix and there:
            self.messages.append(raw_vector)
