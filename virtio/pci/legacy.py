"""The legacy interface of a virtio device on PCI (VIRTIO 1.4, 4.1.4.10): the device as a guest sees it, in
configuration space, an I/O BAR and MSI-X, for whoever emulates the bus.

What the specification leaves open is decided as in QEMU's hw/virtio/virtio-pci.c, where a driver may depend on it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

from virtio._bell import Bell
from virtio._memory import GuestMemory
from virtio.constants import DeviceType, Status
from virtio.device import Device
from virtio.errors import ConfigError
from virtio.features import LEGACY_BITS
from virtio.layout import LEGACY_ALIGN, QueueLayout
from virtio.pci.config import COMMAND, COMMAND_INTX_DISABLE, COMMAND_MASTER, ConfigSpace
from virtio.pci.line import Line
from virtio.pci.msix import Message, Msix

VENDOR = 0x1AF4
# VIRTIO 1.4, 4.1.2.1. Legacy drivers take 0x1000 to 0x103f and tell the type by the subsystem id (FreeBSD, Linux), so
# types without a transitional id of their own can have the last one
DEVICE_IDS: Mapping[int, int] = {
    DeviceType.NET: 0x1000,
    DeviceType.BLOCK: 0x1001,
    DeviceType.BALLOON: 0x1002,
    DeviceType.CONSOLE: 0x1003,
    DeviceType.SCSI: 0x1004,
    DeviceType.ENTROPY: 0x1005,
    DeviceType.P9: 0x1009,
}
OTHER_DEVICE_ID = 0x103F
# as QEMU has them
CLASS_CODES: Mapping[int, int] = {
    DeviceType.NET: 0x020000,
    DeviceType.BLOCK: 0x010000,
    DeviceType.CONSOLE: 0x078000,
    DeviceType.SCSI: 0x010000,
}
OTHER_CLASS_CODE = 0x00FF00

IO_BAR, MSIX_BAR = 0, 1

DEVICE_FEATURES, DRIVER_FEATURES, QUEUE_PFN, QUEUE_SIZE, QUEUE_SELECT = 0x00, 0x04, 0x08, 0x0C, 0x0E
QUEUE_NOTIFY, DEVICE_STATUS, ISR, CONFIG_VECTOR, QUEUE_VECTOR = 0x10, 0x12, 0x13, 0x14, 0x16
CONFIG, CONFIG_MSIX = 0x14, 0x18  # where the device's own configuration begins: MSI-X off, and on

ISR_QUEUE, ISR_CONFIG = 1, 2
NO_VECTOR = 0xFFFF
NO_QUEUE = 0xFFFF

ACCESS_MAX = 8


class HasFileno(Protocol):
    """What has an eventfd."""

    def fileno(self) -> int:
        """Return it."""


class LegacyFunction:
    """A device as a PCI function with the legacy interface; ``read`` and ``write`` are its I/O BAR.

    ``intx`` is called with the level of the interrupt line when that changes; an eventfd or a Bell in its place is rung
    when it rises. ``message(address, data)`` is called to send an MSI-X message. ``vectors`` is their number (default:
    one for the configuration and one for each queue; 0: no MSI-X). ``device_id``, ``class_code``: other ids than the
    usual ones of the device's type. The device must not be live; it is bound to ``memory``.

    Accesses have 1 to 8 bytes, at any offset; values are little-endian ints. One that covers several registers is the
    accesses to each, in the order of their offsets, and one that covers a part of a register changes that part: what
    was written before completes it. So byte by byte gives the same as at once, but that

    - a queue's address takes effect when its last byte is written;
    - a notification is a write to the low byte at 0x10 (the high byte is 0 unless written with it);
    - reading the ISR status clears it, once, whatever else is read with it.

    Registers that do not exist read as ones, and ignore writes. No access raises anything because of what a guest does;
    ValueError is for sizes that no bus has. What a listener raises comes out of the access that caused the interrupt.

    Threads: any may call anything, accesses that write (but notifications) wait for each other. Listeners and bells run
    on the thread that interrupts, which may be one that writes a register: they must not wait for a thread that is
    about to. They may read and write registers themselves. Raises ConfigError for a device that has no legacy
    interface, because a queue's size is not a power of two.
    """

    def __init__(
        self,
        device: Device,
        memory: GuestMemory,
        *,
        intx: Callable[[bool], object] | Bell | HasFileno | int | None = None,
        message: Message | None = None,
        vectors: int | None = None,
        device_id: int | None = None,
        class_code: int | None = None,
    ) -> None:
        kind = int(device.device_type)
        for slot in device.queues:
            if slot.size_max & (slot.size_max - 1):
                text = f"queue {slot.index} has size {slot.size_max}: the legacy interface needs powers of two"
                raise ConfigError(text)
        self.device = device
        self.memory = memory
        self.config = ConfigSpace(
            VENDOR,
            DEVICE_IDS.get(kind, OTHER_DEVICE_ID) if device_id is None else device_id,
            class_code=CLASS_CODES.get(kind, OTHER_CLASS_CODE) if class_code is None else class_code,
            subsystem_vendor=VENDOR,
            subsystem=kind,
        )
        registers = CONFIG_MSIX + len(device.config)
        self.config.add_bar(IO_BAR, 1 << (registers - 1).bit_length(), io=True)
        vectors = len(device.queues) + 1 if vectors is None else vectors
        self.msix = Msix(self.config, vectors, MSIX_BAR, message) if vectors else None
        self._lock = threading.RLock()
        self._isr_lock = threading.Lock()
        self._line = Line(self._level, listener(intx))
        self._silent = Bell()  # for queues whose interrupts go nowhere: nobody sleeps on it, a ring costs nothing
        self._slow = [Bell(partial(self._interrupt_queue, slot.index)) for slot in device.queues]
        self._calls = list(self._slow)
        self._clear()
        device.legacy = True
        device.bind(memory, _Interrupt(self))

    def _clear(self) -> None:
        """Registers as they are after a reset; vectors and features as written, not as accepted."""
        self._driver_features = 0
        self._select = 0
        self._pfns = [0] * len(self._slow)
        self._config_vector = NO_VECTOR
        self._queue_vectors = [NO_VECTOR] * len(self._slow)
        with self._isr_lock:
            self._isr = 0

    # ---- interrupts ----

    @property
    def intx(self) -> Callable[[bool], object] | None:
        """Who hears of the interrupt line; a bus connects itself here if there is nobody."""
        return self._line.listener

    @intx.setter
    def intx(self, target: Callable[[bool], object] | Bell | HasFileno | int | None) -> None:
        self._line.listener = listener(target)

    @property
    def msix_enabled(self) -> bool:
        """Whether the driver has switched MSI-X on."""
        return self.msix is not None and self.msix.enabled

    def _pending(self) -> bool:
        return self._isr != 0 and not self.msix_enabled

    def _level(self) -> bool:
        return self._pending() and not self.config.command & COMMAND_INTX_DISABLE

    def _vector(self, written: int) -> int:
        """Return what a vector register reads as: one that does not exist is refused (VIRTIO 1.4, 4.1.5.1.2)."""
        return written if self.msix is not None and written < self.msix.vectors else NO_VECTOR

    def _interrupt_queue(self, index: int) -> None:
        self._interrupt(ISR_QUEUE, self._queue_vectors[index])

    def interrupt_config(self) -> None:
        """Raise the configuration change interrupt."""
        self._interrupt(ISR_CONFIG, self._config_vector)

    def _interrupt(self, bit: int, vector: int) -> None:
        if self.msix is not None and self.msix.enabled:
            if self._vector(vector) != NO_VECTOR:
                self.msix.notify(vector)
            return
        with self._isr_lock:
            # a bell rung by a task before it was stopped must not leave the line high after a reset
            if self.device.status:
                self._isr |= bit
        self._line.update()

    def route(self, vector: int, target: Bell | HasFileno | int | None) -> None:
        """Let an MSI-X vector ring a Bell or an eventfd, as KVM's irqfd does, in place of sending a message.

        While the vector is unmasked, the queues that use it ring the bell themselves, and no Python runs. None undoes
        it. ConfigError if there is no such vector.
        """
        if self.msix is None:
            raise ConfigError(f"MSI-X vector {vector}: the function has none")
        with self._lock:
            self.msix.route(vector, target if target is None or isinstance(target, Bell) else Bell(target))
            self._settle()

    def doorbell(self, queue: int) -> Bell:
        """Return the bell that kicks a queue: what an ioeventfd on QUEUE_NOTIFY is to QEMU."""
        return self.device.queues[queue].kick

    def _settle(self) -> None:
        """After anything that may redirect interrupts: tell the queues whom to ring, send what waited."""
        msix = self.msix
        on = msix is not None and msix.enabled
        for index, slow in enumerate(self._slow):
            call = slow
            if msix is not None and on:
                vector = self._vector(self._queue_vectors[index])
                call = self._silent if vector == NO_VECTOR else msix.bell(vector) or slow
            if call is not self._calls[index]:
                self._calls[index] = call
                self.device.set_call(index, call)
        if msix is not None:
            msix.flush()
        self._line.update()

    def queue_call(self, index: int) -> Bell:
        """Return the bell that interrupts for a queue now."""
        return self._calls[index]

    # ---- configuration space and BARs ----

    def config_read(self, offset: int, size: int) -> int:
        """Read the configuration space."""
        check(offset, size)
        self.config.interrupt = self._pending()
        return self.config.read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write the configuration space."""
        check(offset, size)
        with self._lock:
            self.config.write(offset, size, value)
            self._settle()

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        """Read a BAR: 0 is the registers, 1 MSI-X."""
        return self.read(offset, size) if bar == IO_BAR else self.memory_read(offset, size)

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write a BAR."""
        if bar == IO_BAR:
            self.write(offset, size, value)
        else:
            self.memory_write(offset, size, value)

    def memory_read(self, offset: int, size: int) -> int:
        """Read the memory BAR: MSI-X table and pending bits."""
        check(offset, size)
        return ones(size) if self.msix is None else self.msix.read(offset, size)

    def memory_write(self, offset: int, size: int, value: int) -> None:
        """Write the memory BAR."""
        check(offset, size)
        if self.msix is not None:
            with self._lock:
                self.msix.write(offset, size, value)
                self._settle()

    # ---- the I/O BAR ----

    def read(self, offset: int, size: int) -> int:
        """Read the I/O BAR."""
        check(offset, size)
        header = CONFIG_MSIX if self.msix_enabled else CONFIG  # once: the layout is the same for the whole access
        value, at, end = 0, offset, offset + size
        while at < end:
            if at >= header:
                return value | self._read_config(at - header, end - at) << 8 * (at - offset)
            register = REGISTERS[at]
            stop = min(end, register.offset + register.size)
            part = register.read(self) >> 8 * (at - register.offset) & ones(stop - at)
            value |= part << 8 * (at - offset)
            at = stop
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the I/O BAR."""
        check(offset, size)
        if offset == QUEUE_NOTIFY and size == 2:
            self.device.kick(value & ones(2))
            return
        with self._lock:
            header = CONFIG_MSIX if self.msix_enabled else CONFIG
            at, end = offset, offset + size
            while at < end:
                if at >= header:
                    self._write_config(at - header, end - at, value >> 8 * (at - offset))
                    break
                register = REGISTERS[at]
                stop = min(end, register.offset + register.size)
                if register.write is not None and (register.written is not None or at == register.offset):
                    shift = 8 * (at - register.offset)
                    mask = ones(stop - at)
                    part = (value >> 8 * (at - offset) & mask) << shift
                    kept = register.written(self) if register.written is not None else 0
                    register.write(self, kept & ~(mask << shift) | part, stop == register.offset + register.size)
                at = stop
            self._settle()

    def _read_config(self, offset: int, size: int) -> int:
        """Read the device's own configuration; as in QEMU, ones are past its end."""
        inside = max(0, min(size, len(self.device.config) - offset))
        data = self.device.read_config(offset, inside) if inside else b""
        return int.from_bytes(data.ljust(size, b"\xff"), "little")

    def _write_config(self, offset: int, size: int, value: int) -> None:
        inside = min(size, len(self.device.config) - offset)
        if inside > 0:
            self.device.write_config(offset, (value & ones(inside)).to_bytes(inside, "little"))

    def _exists(self) -> bool:
        return self._select < len(self._slow)

    def _read_size(self) -> int:
        return self.device.queues[self._select].size_max if self._exists() else 0

    def _read_pfn(self) -> int:
        return self._pfns[self._select] if self._exists() else 0

    def _read_isr(self) -> int:
        with self._isr_lock:
            isr, self._isr = self._isr, 0
        if isr:
            self._line.update()
        return isr

    def _read_queue_vector(self) -> int:
        return self._queue_vectors[self._select] if self._exists() else NO_VECTOR

    def _write_features(self, value: int, last: bool) -> None:
        self._driver_features = value
        self.device.driver_features(value)

    def _write_pfn(self, value: int, last: bool) -> None:
        if not self._exists():
            return
        index = self._select
        self._pfns[index] = value
        if last:
            # PFN 0 stops the queue (VIRTIO 1.4, 4.1.4.10); in QEMU it resets the device, which no driver relies on
            self.device.reset_queue(index)
            if value:
                size = self.device.queues[index].size_max
                self.device.setup_queue(index, QueueLayout.legacy(size, value * LEGACY_ALIGN))

    def _write_select(self, value: int, last: bool) -> None:
        self._select = value

    def _write_notify(self, value: int, last: bool) -> None:
        self.device.kick(value)

    def _write_status(self, value: int, last: bool) -> None:
        self.device.write_status(value)
        if value == 0:
            self._clear()
            if self.msix is not None:
                self.msix.forget()
        elif value == Status.ACKNOWLEDGE | Status.DRIVER:
            # as in QEMU: Linux before 2.6.34 drives the device without enabling bus mastering
            self.config.write(COMMAND, 1, self.config.command | COMMAND_MASTER)

    def _write_config_vector(self, value: int, last: bool) -> None:
        self._config_vector = value
        self._forget_unused()

    def _write_queue_vector(self, value: int, last: bool) -> None:
        if self._exists():
            self._queue_vectors[self._select] = value
            self._forget_unused()

    def _forget_unused(self) -> None:
        """Drop pending bits of vectors that nothing uses any more."""
        if self.msix is not None and self.msix.pending:
            used = {self._vector(vector) for vector in (self._config_vector, *self._queue_vectors)} - {NO_VECTOR}
            self.msix.forget(~sum(1 << vector for vector in used))

    # ---- reset and snapshot ----

    def reset(self) -> None:
        """Reset the function as RST# does: the device, its registers, MSI-X and the configuration space."""
        with self._lock:
            self._write_status(0, True)
            self.config.reset()
            if self.msix is not None:
                self.msix.reset()
            self._settle()

    def snapshot(self) -> dict[str, Any]:
        """Return function and device as plain data (JSON-able), for :meth:`restore` with the same memory contents.

        Routes and listeners are the embedder's: a restored function has those that it has.
        """
        with self._lock:
            device = self.device.snapshot()
            with self._isr_lock:
                isr = self._isr
            return {
                "config": self.config.snapshot(),
                "msix": None if self.msix is None else self.msix.snapshot(),
                "isr": isr,
                "driver_features": self._driver_features,
                "select": self._select,
                "pfns": list(self._pfns),
                "config_vector": self._config_vector,
                "queue_vectors": list(self._queue_vectors),
                "device": device,
            }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken. Raises what Device.restore does, and ConfigError for another function's.

        After an error the function is reset.
        """
        if (state["msix"] is None) != (self.msix is None):
            raise ConfigError("a snapshot of a function with MSI-X is of another function than one without")
        with self._lock:
            self.reset()
            try:
                self.config.restore(state["config"])
                if self.msix is not None:
                    self.msix.restore(state["msix"])
                self._driver_features, self._select = state["driver_features"], state["select"]
                self._pfns = list(state["pfns"])
                self._config_vector, self._queue_vectors = state["config_vector"], list(state["queue_vectors"])
                if not len(self._pfns) == len(self._queue_vectors) == len(self._slow):
                    raise ConfigError(f"a snapshot of {len(self._pfns)} queues, not {len(self._slow)}")
                self.device.restore(state["device"], self.memory)
                with self._isr_lock:
                    self._isr |= state["isr"]
            except BaseException:
                self.reset()
                raise
            self._settle()

    def __repr__(self) -> str:
        return f"<LegacyFunction of {self.device!r}, MSI-X {'on' if self.msix_enabled else 'off'}>"


class _Interrupt:
    """What the device has of its function."""

    def __init__(self, function: LegacyFunction) -> None:
        self.function = function

    def queue(self, index: int) -> Bell:
        return self.function.queue_call(index)

    def config(self) -> None:
        self.function.interrupt_config()


def listener(target: Callable[[bool], object] | Bell | HasFileno | int | None) -> Callable[[bool], object] | None:
    """Return what is called with the level of a line; bells and eventfds are rung when it rises."""
    if target is None or callable(target):
        return target
    bell = target if isinstance(target, Bell) else Bell(target)
    return lambda level: bell.ring() if level else None


def ones(size: int) -> int:
    """Return what ``size`` bytes read as where nothing answers."""
    return (1 << 8 * size) - 1


def check(offset: int, size: int) -> None:
    """Raise ValueError for an access that no bus makes."""
    if offset < 0 or not 1 <= size <= ACCESS_MAX:
        raise ValueError(f"access of {size} bytes at {offset} (1 to {ACCESS_MAX} bytes, from 0)")


class Register(NamedTuple):
    """A register of the I/O BAR: where it is, what it reads as, and what a write does (None: read-only).

    ``write`` gets the whole value, and whether the last byte of it was written just now. ``written`` returns what was
    written before, which completes a narrower write; without it, a write that does not cover the first byte is none.
    """

    offset: int
    size: int
    read: Callable[[LegacyFunction], int]
    write: Callable[[LegacyFunction, int, bool], None] | None = None
    written: Callable[[LegacyFunction], int] | None = None


F = LegacyFunction
# by offset: each byte has its register
REGISTERS = [
    register
    for register in (
        Register(DEVICE_FEATURES, 4, lambda f: f.device.device_features & LEGACY_BITS),
        Register(
            DRIVER_FEATURES,
            4,
            lambda f: f.device.negotiated & LEGACY_BITS,
            F._write_features,
            lambda f: f._driver_features,
        ),
        Register(QUEUE_PFN, 4, F._read_pfn, F._write_pfn, F._read_pfn),
        Register(QUEUE_SIZE, 2, F._read_size),
        Register(QUEUE_SELECT, 2, lambda f: f._select, F._write_select, lambda f: f._select),
        # ones, as in QEMU: what is read back and written again notifies nobody
        Register(QUEUE_NOTIFY, 2, lambda f: NO_QUEUE, F._write_notify),
        Register(DEVICE_STATUS, 1, lambda f: f.device.status & 0xFF, F._write_status),
        Register(ISR, 1, F._read_isr),
        Register(
            CONFIG_VECTOR,
            2,
            lambda f: f._vector(f._config_vector),
            F._write_config_vector,
            lambda f: f._config_vector,
        ),
        Register(
            QUEUE_VECTOR,
            2,
            lambda f: f._vector(f._read_queue_vector()),
            F._write_queue_vector,
            F._read_queue_vector,
        ),
    )
    for _ in range(register.size)
]
