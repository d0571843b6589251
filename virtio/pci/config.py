"""Configuration space of a PCI function: type 0 header, BARs, capabilities (PCI Local Bus 3.0, chapter 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from virtio.errors import ConfigError, SnapshotError
from virtio.virtqueue import saved

SIZE = 256

VENDOR_ID, DEVICE_ID, COMMAND, STATUS = 0x00, 0x02, 0x04, 0x06
REVISION, CLASS_CODE, CACHE_LINE_SIZE, HEADER_TYPE = 0x08, 0x09, 0x0C, 0x0E
BAR0, SUBSYSTEM_VENDOR_ID, SUBSYSTEM_ID = 0x10, 0x2C, 0x2E
CAPABILITIES, INTERRUPT_LINE, INTERRUPT_PIN = 0x34, 0x3C, 0x3D

COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER, COMMAND_INTX_DISABLE = 1 << 0, 1 << 1, 1 << 2, 1 << 10
STATUS_INTERRUPT, STATUS_CAPABILITIES = 1 << 3, 1 << 4

BARS = 6
BAR_IO = 1
FIRST_CAPABILITY = 0x40
IO_END = 1 << 16
MEMORY_END = 1 << 32


def ones(size: int) -> int:
    """Return what ``size`` bytes read as where nothing answers."""
    return (1 << 8 * size) - 1


@dataclass(frozen=True)
class Bar:
    """A base address register: ``size`` bytes (a power of two) of I/O ports, or of 32-bit memory."""

    index: int
    size: int
    io: bool


@dataclass(frozen=True)
class Window:
    """Where a BAR answers now: addresses from ``base`` up to, not including, ``end``."""

    base: int
    end: int
    bar: int


class ConfigSpace:
    """The 256 bytes of one function. Accesses have any width and alignment; read-only bits ignore what is written.

    ``class_code`` is 24 bits (base class, subclass, interface), ``interrupt_pin`` 1 for INTA# to 4, 0 for none. What
    lies past the end reads as ones. ``bytes`` is all that is read but the Interrupt Status bit, which is ``interrupt``,
    for its owner to set.

    One thread writes at a time; any may read. Raises ConfigError when BARs or capabilities do not fit.
    """

    def __init__(
        self,
        vendor: int,
        device: int,
        *,
        class_code: int,
        revision: int = 0,
        subsystem_vendor: int = 0,
        subsystem: int = 0,
        interrupt_pin: int = 1,
    ) -> None:
        self.bytes = bytearray(SIZE)
        self._writable = bytearray(SIZE)
        self._bars: dict[int, Bar] = {}
        self._next = FIRST_CAPABILITY
        self._last_link = CAPABILITIES
        self._io: tuple[Window, ...] = ()
        self._memory: tuple[Window, ...] = ()
        self.interrupt = False
        for offset, size, value in (
            (VENDOR_ID, 2, vendor),
            (DEVICE_ID, 2, device),
            (REVISION, 1, revision),
            (CLASS_CODE, 3, class_code),
            (SUBSYSTEM_VENDOR_ID, 2, subsystem_vendor),
            (SUBSYSTEM_ID, 2, subsystem),
            (INTERRUPT_PIN, 1, interrupt_pin),
        ):
            if not 0 <= value < 1 << 8 * size:
                raise ConfigError(
                    f"{value:#x} at {offset:#x} of the configuration space does not fit into {size} bytes"
                )
            self.bytes[offset : offset + size] = value.to_bytes(size, "little")
        self._allow(CACHE_LINE_SIZE, b"\xff")
        self._allow(INTERRUPT_LINE, b"\xff")
        self._allow(COMMAND, (COMMAND_MASTER | COMMAND_INTX_DISABLE).to_bytes(2, "little"))

    def add_bar(self, index: int, size: int, *, io: bool = False) -> Bar:
        """Add a base address register of ``size`` bytes (a power of two; at least 4 of I/O, 16 of memory)."""
        if not 0 <= index < BARS or index in self._bars:
            raise ConfigError(f"BAR {index} is taken, or none of 0 to {BARS - 1}")
        least, most = (4, IO_END) if io else (16, MEMORY_END // 2)
        if size & (size - 1) or not least <= size <= most:
            raise ConfigError(f"BAR {index} of {size} bytes: not a power of two from {least} to {most}")
        bar = self._bars[index] = Bar(index, size, io)
        offset = BAR0 + 4 * index
        self.bytes[offset] = BAR_IO if io else 0
        self._allow(offset, (MEMORY_END - size).to_bytes(4, "little"))
        self._allow(COMMAND, bytes([COMMAND_IO if io else COMMAND_MEMORY]))
        return bar

    def add_capability(self, kind: int, body: bytes, writable: bytes) -> int:
        """Append a capability, its ``body`` after id and link; return its offset. ``writable`` masks body's bits."""
        offset, end = self._next, self._next + 2 + len(body)
        if len(writable) != len(body) or end > SIZE:
            raise ConfigError(f"capability {kind:#x} of {end - offset} bytes does not fit at {offset:#x}")
        self.bytes[offset:end] = bytes([kind, 0]) + body
        self.bytes[self._last_link] = offset
        self.bytes[STATUS] |= STATUS_CAPABILITIES
        self._allow(offset + 2, writable)
        self._last_link, self._next = offset + 1, (end + 3) & ~3
        return offset

    def _allow(self, offset: int, mask: bytes) -> None:
        for i, bits in enumerate(mask):
            self._writable[offset + i] |= bits

    def read(self, offset: int, size: int) -> int:
        """Return ``size`` bytes at ``offset``, little-endian."""
        value = int.from_bytes(self.bytes[offset : offset + size].ljust(size, b"\xff"), "little")
        if self.interrupt and 0 <= STATUS - offset < size:
            value |= STATUS_INTERRUPT << 8 * (STATUS - offset)
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the writable bits among ``size`` bytes at ``offset``."""
        for i in range(offset, min(offset + size, SIZE)):
            mask = self._writable[i]
            self.bytes[i] = self.bytes[i] & ~mask | value & mask
            value >>= 8
        if offset < BAR0 + 4 * BARS and offset + size > COMMAND:
            self._map()

    def _map(self) -> None:
        """Work out which BARs answer where. As in QEMU, none does at address 0, nor past the end of its space."""
        io, memory = [], []
        command = self.command
        for bar in self._bars.values():
            base = self.read(BAR0 + 4 * bar.index, 4) & -bar.size
            window = Window(base, base + bar.size, bar.index)
            if base == 0:
                continue
            if bar.io:
                if command & COMMAND_IO and window.end <= IO_END:
                    io.append(window)
            elif command & COMMAND_MEMORY and window.end < MEMORY_END:
                memory.append(window)
        self._io, self._memory = tuple(io), tuple(memory)

    @property
    def command(self) -> int:
        """The command register."""
        return self.bytes[COMMAND] | self.bytes[COMMAND + 1] << 8

    @property
    def interrupt_pin(self) -> int:
        """1 for INTA# to 4 for INTD#, 0 for none."""
        return self.bytes[INTERRUPT_PIN]

    @property
    def bars(self) -> tuple[Bar, ...]:
        """The base address registers there are."""
        return tuple(self._bars.values())

    @property
    def io(self) -> tuple[Window, ...]:
        """The I/O BARs that answer now."""
        return self._io

    @property
    def memory(self) -> tuple[Window, ...]:
        """The memory BARs that answer now."""
        return self._memory

    def reset(self) -> None:
        """Clear what can be written: decoding, bus mastering, addresses, the interrupt line, capabilities' bits."""
        for i, mask in enumerate(self._writable):
            self.bytes[i] &= ~mask
        self._map()

    def snapshot(self) -> dict[str, Any]:
        """Return all bytes, as JSON can hold them."""
        return {"bytes": self.bytes.hex()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`snapshot` gave. SnapshotError, and no change, if read-only bits differ."""
        saved.fields({"bytes": saved.hexadecimal(SIZE)})(state)
        data = bytes.fromhex(state["bytes"])
        for i, (old, new, mask) in enumerate(zip(self.bytes, data, self._writable, strict=True)):
            if (old ^ new) & ~mask:
                raise SnapshotError("bytes", f"is of another function: byte {i:#x} is {new:#04x}, not {old:#04x}")
        self.bytes[:] = data
        self._map()
