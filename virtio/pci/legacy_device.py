"""The legacy interface of a virtio device on PCI (VIRTIO 1.4, 4.1.4.10): the device as a guest sees it, in
configuration space, an I/O BAR and MSI-X, for whoever emulates the bus.

What the specification leaves open is decided as in QEMU's hw/virtio/virtio-pci.c, where a driver may depend on it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from virtio.constants import DeviceType, Status
from virtio.core.process import ForkAwareLock
from virtio.core.weak import weakly
from virtio.device import Device
from virtio.device.queue_state import nobody
from virtio.errors import ConfigError, SnapshotError
from virtio.event.notifier import Bell
from virtio.memory.guest_memory import GuestMemory
from virtio.pci.config import COMMAND, COMMAND_INTX_DISABLE, COMMAND_MASTER, ConfigSpace, ones
from virtio.pci.intx import Line
from virtio.pci.legacy_registers import (
    CONFIG,
    CONFIG_MSIX,
    DEVICE_STATUS,
    ISR,
    ISR_CONFIG,
    ISR_QUEUE,
    NO_VECTOR,
    QUEUE_NOTIFY,
    LegacyRegisters,
)
from virtio.pci.msix import Message, Msix, Resolve
from virtio.virtqueue import saved

if TYPE_CHECKING:
    from _typeshed import HasFileno

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
ACCESS_MAX = 8

ACKNOWLEDGED = Status.ACKNOWLEDGE | Status.DRIVER


class LegacyFunction:
    """A device as a PCI function with the legacy interface; ``read`` and ``write`` are its I/O BAR.

    - ``intx(level)`` is called when the level of the interrupt line changes; a Bell or an eventfd in its place is rung
      when it rises.
    - ``message(address, data)`` is called to send an MSI-X message; ``resolve(address, data)`` may return a Bell to
      ring instead, or None. It is asked when a vector is unmasked (see :meth:`route`).
    - ``vectors`` is their number: by default one for the configuration and one for each queue; 0: no MSI-X.
    - ``device_id``, ``class_code``: others than the usual ones of the device's type.

    The device must not be live; it is bound to ``memory``.

    Who dispatches accesses asks ``config.io`` and ``config.memory`` which BARs answer where; a Bus does. Without bus
    mastering (COMMAND) the device stays away from memory, and messages are pending.

    Accesses have 1 to 8 bytes, at any offset; values are little-endian ints. One that covers several registers is the
    accesses to each, in the order of their offsets, and one that covers a part of a register changes that part: what
    was written before completes it. So byte by byte gives the same as at once, but that

    - a queue's address takes effect when its last byte is written;
    - a notification is a write to the low byte at 0x10 (the high byte is 0 unless written with it);
    - the ISR status is read, and cleared, by a read that begins with it; in a wider one it is 0.

    Where the specification leaves a choice, or drivers came to rely on something else, it is QEMU's way
    (tests/pci/test_legacy_corners.py has a row for each):

    - the ISR status is set with MSI-X, too (virtio-win of 2015 polls it when it hibernates), but for vectors that ring
      a bell and queues without a vector; the line rises only for interrupts of a time without MSI-X;
    - a status without DRIVER_OK stops the device, and DRIVER_OK makes it go on (the Windows drivers of virtio-win and
      SUSE clear it before a reset); other bits stay until a reset, which is not QEMU's way: it takes any status;
    - ACKNOWLEDGE and DRIVER alone switch bus mastering on, for Linux before 2.6.34;
    - address 0 for any queue resets the device; features may be written at any time;
    - the configuration begins at 0x14, or at 0x18 while MSI-X is on; past its end are ones;
    - QUEUE_NOTIFY reads as ones;
    - a queue that does not exist has size 0, address 0 and no vector; its notification is counted, and ignored;
    - a vector that does not exist reads back as 0xffff.

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
        resolve: Resolve | None = None,
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
        self.msix = Msix(self.config, vectors, MSIX_BAR, message, resolve) if vectors else None
        self._registers = LegacyRegisters(device, vectors)
        self._lock = ForkAwareLock("PCI function")
        self._line = Line(weakly(self._level), listener(intx))
        self._silent = Bell()  # for queues whose interrupts go nowhere: nobody sleeps on it, a ring costs nothing
        self._slow = [Bell(partial(weakly(self._interrupt_queue), slot.index)) for slot in device.queues]
        self._calls = list(self._slow)
        device.bind(memory, _Interrupt(self))
        device.legacy = True
        self._master = False
        device.set_dma(False)

    # ---- interrupts ----

    @property
    def intx(self) -> Callable[[bool], object] | None:
        """Who hears of the interrupt line; a bus connects itself here if there is nobody."""
        return self._line.listener

    @intx.setter
    def intx(self, target: Callable[[bool], object] | None) -> None:
        self._line.listener = target

    @property
    def msix_enabled(self) -> bool:
        """Whether the driver has switched MSI-X on."""
        return self.msix is not None and self.msix.enabled

    def _pending(self) -> bool:
        return self._registers.asserted and not self.msix_enabled

    def _level(self) -> bool:
        return self._pending() and not self.config.command & COMMAND_INTX_DISABLE

    def _interrupt_queue(self, index: int) -> None:
        self._interrupt(ISR_QUEUE, self._registers.queue_vectors[index])

    def interrupt_config(self) -> None:
        """Raise the configuration change interrupt."""
        self._interrupt(ISR_CONFIG, self._registers.config_vector)

    def _interrupt(self, bit: int, vector: int) -> None:
        messages = self.msix is not None and self.msix.enabled
        self._registers.raise_isr(bit, line=not messages)
        if not messages:
            self._line.update()
        elif self.msix is not None and self._registers.vector(vector) != NO_VECTOR:
            self.msix.notify(vector)

    def route(self, vector: int, target: Bell | HasFileno | int | None) -> None:
        """Let an MSI-X vector ring a Bell or an eventfd, whatever its message is; None undoes it.

        While a vector with a bell (by this or by ``resolve``) is unmasked, the queues that use it ring the bell
        themselves, and no Python runs: what KVM's irqfd is to QEMU. ConfigError if there is no such vector.
        """
        if self.msix is None:
            raise ConfigError(f"MSI-X vector {vector}: the function has none")
        with self._lock:
            self.msix.route(vector, target if target is None or isinstance(target, Bell) else Bell(target))
            self._settle()

    def doorbell(self, queue: int) -> Bell:
        """Return the bell that kicks a queue: what an ioeventfd on QUEUE_NOTIFY is to QEMU.

        Before DRIVER_OK only a ring starts the device, not what others write to the bell's descriptor.
        """
        return self.device.queues[queue].kick

    def _settle(self) -> None:
        """After anything that may redirect interrupts: tell the queues whom to ring, send what waited."""
        msix, registers = self.msix, self._registers
        if msix is not None:
            msix.use(registers.used_vectors())
        for index, slow in enumerate(self._slow):
            call = slow
            if msix is not None and msix.enabled:
                vector = registers.vector(registers.queue_vectors[index])
                call = self._silent if vector == NO_VECTOR else msix.bell(vector) or slow
            if call is not self._calls[index]:
                self._calls[index] = call
                self.device.set_call(index, call)
        master = self.config.command & COMMAND_MASTER != 0
        if master != self._master:
            self._master = master
            self.device.set_dma(master)
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
        # the layout is the same for the whole access, whatever happens meanwhile
        value = self._registers.read(offset, size, CONFIG_MSIX if self.msix_enabled else CONFIG)
        if offset <= ISR < offset + size:
            self._line.update()
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the I/O BAR."""
        check(offset, size)
        if offset == QUEUE_NOTIFY and size == 2:
            self.device.kick(value & 0xFFFF)
            return
        with self._lock:
            # as in QEMU: Linux before 2.6.34 drives the device without enabling bus mastering
            if offset <= DEVICE_STATUS < offset + size and value >> 8 * (DEVICE_STATUS - offset) & 0xFF == ACKNOWLEDGED:
                self.config.write(COMMAND, 1, self.config.command | COMMAND_MASTER)
            try:
                self._registers.write(offset, size, value, CONFIG_MSIX if self.msix_enabled else CONFIG)
            finally:
                self._settle()

    # ---- reset and snapshot ----

    def reset(self) -> None:
        """Reset the function as RST# does: the device, its registers, MSI-X and the configuration space."""
        with self._lock:
            self._registers.write(DEVICE_STATUS, 1, 0, CONFIG)
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
            return {
                "config": self.config.snapshot(),
                "msix": None if self.msix is None else self.msix.snapshot(),
                "registers": self._registers.snapshot(),
                "device": device,
            }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken. Raises what Device.restore does.

        After an error the function is reset.
        """
        with self._lock:
            self.reset()
            try:
                part = saved.optional(saved.mapping) if self.msix is None else saved.mapping
                saved.fields(
                    {"config": saved.mapping, "msix": part, "registers": saved.mapping, "device": saved.mapping}
                )(state)
                if self.msix is None and state["msix"] is not None:
                    raise SnapshotError("msix", "is there: this function has no MSI-X")
                with saved.within("config"):
                    self.config.restore(state["config"])
                if self.msix is not None:
                    with saved.within("msix"):
                        self.msix.restore(state["msix"])
                with saved.within("registers"):
                    self._registers.restore(state["registers"])
                self._settle()
                with saved.within("device"):
                    self.device.restore(state["device"], self.memory)
            except BaseException:
                self.reset()
                raise

    def __repr__(self) -> str:
        return f"<LegacyFunction of {self.device!r}, MSI-X {'on' if self.msix_enabled else 'off'}>"


class _Interrupt:
    """What the device has of its function, which it does not keep alive."""

    def __init__(self, function: LegacyFunction) -> None:
        self._function = weakref.ref(function)

    def queue(self, index: int) -> Bell:
        function = self._function()
        return Bell(nobody) if function is None else function.queue_call(index)

    def config(self) -> None:
        function = self._function()
        if function is not None:
            function.interrupt_config()


def listener(target: Callable[[bool], object] | Bell | HasFileno | int | None) -> Callable[[bool], object] | None:
    """Return what is called with the level of a line; bells and eventfds are rung when it rises."""
    if target is None or callable(target):
        return target
    bell = target if isinstance(target, Bell) else Bell(target)
    return lambda level: bell.ring() if level else None


def check(offset: int, size: int) -> None:
    """Raise ValueError for an access that no bus makes."""
    if offset < 0 or not 1 <= size <= ACCESS_MAX:
        raise ValueError(f"access of {size} bytes at {offset} (1 to {ACCESS_MAX} bytes, from 0)")
