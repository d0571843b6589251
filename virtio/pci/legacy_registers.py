"""The registers of the legacy interface, as the I/O BAR has them (VIRTIO 1.4, 4.1.4.10)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from virtio.core.process import ForkAwareLock
from virtio.device import Device
from virtio.features import LEGACY_BITS
from virtio.pci.config import ones
from virtio.virtqueue import saved
from virtio.virtqueue.layout import LEGACY_ALIGN, QueueLayout

DEVICE_FEATURES, DRIVER_FEATURES, QUEUE_PFN, QUEUE_SIZE, QUEUE_SELECT = 0x00, 0x04, 0x08, 0x0C, 0x0E
QUEUE_NOTIFY, DEVICE_STATUS, ISR, CONFIG_VECTOR, QUEUE_VECTOR = 0x10, 0x12, 0x13, 0x14, 0x16
CONFIG, CONFIG_MSIX = 0x14, 0x18  # where the device's own configuration begins: MSI-X off, and on

ISR_QUEUE, ISR_CONFIG = 1, 2
NO_VECTOR = 0xFFFF
NO_QUEUE = 0xFFFF


class LegacyRegisters:
    """What a driver has written, and the ISR status; the rest is the device's. ``vectors`` is the number of MSI-X's.

    What is written to a register is kept as it came, also where the device does not accept it (features, vectors), as
    a narrower write is completed by it: written byte by byte, a register ends as if written at once.

    Threads: one at a time writes; reads and the ISR are for any.
    """

    def __init__(self, device: Device, vectors: int) -> None:
        self.device = device
        self.vectors = vectors
        self._isr_lock = ForkAwareLock("ISR status")
        self.clear()

    def clear(self) -> None:
        """Go back to what they are after a reset."""
        self.driver_features = 0
        self.select = 0
        self.pfns = [0] * len(self.device.queues)
        self.config_vector = NO_VECTOR
        self.queue_vectors = [NO_VECTOR] * len(self.device.queues)
        with self._isr_lock:
            self.isr = 0
            self.asserted = False  # the interrupt line, as far as the ISR status has it

    def vector(self, written: int) -> int:
        """Return what a vector register reads as; a vector that does not exist is refused (VIRTIO 1.4, 4.1.5.1.2)."""
        return written if written < self.vectors else NO_VECTOR

    def used_vectors(self) -> int:
        """Return the vectors that registers name, as a mask."""
        mask = 0
        for written in (self.config_vector, *self.queue_vectors):
            if written < self.vectors:
                mask |= 1 << written
        return mask

    def raise_isr(self, bits: int, *, line: bool) -> None:
        """Set bits of the ISR status; ``line``: and the interrupt line.

        A bell that a task rings as it is stopped must not leave the line high after the reset. A device that a kick
        started before the driver wrote any status interrupts, too.
        """
        with self._isr_lock:
            if self.device.status or self.device.live:
                self.isr |= bits
                self.asserted |= line

    def take_isr(self) -> int:
        """Return the ISR status, and clear it."""
        with self._isr_lock:
            isr, self.isr = self.isr, 0
            self.asserted = False
        return isr

    def read(self, offset: int, size: int, config: int) -> int:
        """Read ``size`` bytes at ``offset``. The device's configuration is at ``config``."""
        value, at, end = 0, offset, offset + size
        while at < end:
            if at >= config:
                return value | self._read_config(at - config, end - at) << 8 * (at - offset)
            register = REGISTERS[at]
            stop = min(end, register.offset + register.size)
            if at == ISR != offset:  # as in QEMU, where a wider read of the status takes no interrupt from the driver
                at = stop
                continue
            part = register.read(self) >> 8 * (at - register.offset) & ones(stop - at)
            value |= part << 8 * (at - offset)
            at = stop
        return value

    def write(self, offset: int, size: int, value: int, config: int) -> None:
        """Write ``size`` bytes at ``offset``. The device's configuration is at ``config``."""
        at, end = offset, offset + size
        while at < end:
            if at >= config:
                self._write_config(at - config, end - at, value >> 8 * (at - offset))
                return
            register = REGISTERS[at]
            stop = min(end, register.offset + register.size)
            if register.write is not None:
                shift, mask = 8 * (at - register.offset), ones(stop - at)
                part = value >> 8 * (at - offset) & mask
                kept = register.written(self) & ~(mask << shift)
                register.write(self, kept | part << shift, range(at - register.offset, stop - register.offset))
            at = stop

    def _read_config(self, offset: int, size: int) -> int:
        """Read the device's own configuration; as in QEMU, ones are past its end."""
        inside = max(0, min(size, len(self.device.config) - offset))
        data = self.device.read_config(offset, inside) if inside else b""
        return int.from_bytes(data.ljust(size, b"\xff"), "little")

    def _write_config(self, offset: int, size: int, value: int) -> None:
        inside = min(size, len(self.device.config) - offset)
        if inside > 0:
            self.device.write_config(offset, (value & ones(inside)).to_bytes(inside, "little"))

    # ---- one register each: writes get the whole value, and which of its bytes were written just now ----

    @property
    def _selected(self) -> int | None:
        return self.select if self.select < len(self.pfns) else None

    def _read_pfn(self) -> int:
        return 0 if self._selected is None else self.pfns[self._selected]

    def _read_size(self) -> int:
        return 0 if self._selected is None else self.device.queues[self._selected].size_max

    def _read_queue_vector(self) -> int:
        return NO_VECTOR if self._selected is None else self.queue_vectors[self._selected]

    def _write_features(self, value: int, written: range) -> None:
        self.driver_features = value
        self.device.driver_features(value)

    def _write_pfn(self, value: int, written: range) -> None:
        index = self._selected
        if index is None:
            return
        self.pfns[index] = value
        if 3 not in written:  # until its last byte it may be an address that was never meant
            return
        if value == 0:  # as in QEMU: a driver that stops one queue so may give all of its memory to others
            self._write_status(0, written)
            return
        self.device.reset_queue(index)
        layout = QueueLayout.legacy(self.device.queues[index].size_max, value * LEGACY_ALIGN)
        self.device.setup_queue(index, layout)

    def _write_select(self, value: int, written: range) -> None:
        self.select = value

    def _write_notify(self, value: int, written: range) -> None:
        if 0 in written:  # the high byte alone names no queue
            self.device.kick(value)

    def _write_status(self, value: int, written: range) -> None:
        self.device.write_status(value)
        if value == 0:
            self.clear()

    def _write_config_vector(self, value: int, written: range) -> None:
        self.config_vector = value

    def _write_queue_vector(self, value: int, written: range) -> None:
        if self._selected is not None:
            self.queue_vectors[self._selected] = value

    # ---- snapshot ----

    def snapshot(self) -> dict[str, Any]:
        """Return them as JSON can hold them."""
        return {
            "driver_features": self.driver_features,
            "select": self.select,
            "pfns": list(self.pfns),
            "config_vector": self.config_vector,
            "queue_vectors": list(self.queue_vectors),
            "isr": self.isr,
            "asserted": self.asserted,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`snapshot` gave. SnapshotError, and no change, for what no driver can have written."""
        queues, word = len(self.device.queues), saved.number(0, saved.U16)
        saved.fields(
            {
                "driver_features": saved.number(0, saved.U32),
                "select": word,
                "pfns": saved.entries(saved.number(0, saved.U32), queues),
                "config_vector": word,
                "queue_vectors": saved.entries(word, queues),
                "isr": saved.number(0, ISR_QUEUE | ISR_CONFIG),
                "asserted": saved.flag,
            }
        )(state)
        self.driver_features, self.select = state["driver_features"], state["select"]
        self.pfns, self.queue_vectors = list(state["pfns"]), list(state["queue_vectors"])
        self.config_vector = state["config_vector"]
        with self._isr_lock:
            self.isr, self.asserted = state["isr"], bool(state["asserted"])


class Register(NamedTuple):
    """Where a register is, what it reads as, what a write does (None: read-only), and what was written before."""

    offset: int
    size: int
    read: Callable[[LegacyRegisters], int]
    write: Callable[[LegacyRegisters, int, range], None] | None = None
    written: Callable[[LegacyRegisters], int] = lambda registers: 0


R = LegacyRegisters
# each byte has its register
REGISTERS = [
    register
    for register in (
        Register(DEVICE_FEATURES, 4, lambda r: r.device.device_features & LEGACY_BITS),
        Register(
            DRIVER_FEATURES,
            4,
            lambda r: r.device.negotiated & LEGACY_BITS,
            R._write_features,
            lambda r: r.driver_features,
        ),
        Register(QUEUE_PFN, 4, R._read_pfn, R._write_pfn, R._read_pfn),
        Register(QUEUE_SIZE, 2, R._read_size),
        Register(QUEUE_SELECT, 2, lambda r: r.select, R._write_select, lambda r: r.select),
        # ones, as in QEMU: what is read back and written again notifies nobody
        Register(QUEUE_NOTIFY, 2, lambda r: NO_QUEUE, R._write_notify),
        Register(DEVICE_STATUS, 1, lambda r: r.device.status & 0xFF, R._write_status),
        Register(ISR, 1, R.take_isr),
        Register(
            CONFIG_VECTOR, 2, lambda r: r.vector(r.config_vector), R._write_config_vector, lambda r: r.config_vector
        ),
        Register(
            QUEUE_VECTOR, 2, lambda r: r.vector(r._read_queue_vector()), R._write_queue_vector, R._read_queue_vector
        ),
    )
    for _ in range(register.size)
]
