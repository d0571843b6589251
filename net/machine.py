"""A machine small enough to embed: guest memory, a PCI bus and an interrupt controller, with both ends in one process.

Devices are plugged into its bus, and their drivers find them there as they would in any machine. What a hypervisor does
with ioeventfds and irqfds is done here with bells: a kick and an MSI-X message are one ring each, without Python.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from virtio.device import Device
from virtio.driver import Driver
from virtio.errors import ConfigError
from virtio.event.notifier import Bell
from virtio.memory.dma import PAGE, DmaPool
from virtio.memory.guest_memory import GuestMemory
from virtio.pci.attach import Attached, attach, attach_all
from virtio.pci.bus import Bus
from virtio.pci.legacy_device import LegacyFunction
from virtio.pci.legacy_driver import Mode
from virtio.pci.probe import Address, Function, Window, scan

IO_WINDOW = Window(0xC000, 0x10000)
MEMORY_WINDOW = Window(0xFEB00000, 0xFEC00000)
MESSAGE_BASE = 0xFEE00000  # where a PC's CPUs take messages
MESSAGE_DATA_MAX = 0xFFFF
RESERVED = 0x100000  # a guest's firmware and kernel lie here; drivers leave it alone


class InterruptController:
    """Messages and lines to bells: the machine's side of virtio.pci.legacy_driver.Interrupts.

    Each function has an interrupt line of its own, so that none waits for another's to fall.
    """

    def __init__(self) -> None:
        self._messages: dict[tuple[int, int], Bell] = {}
        self._lines: dict[Address, Bell] = {}
        self._high: set[Address] = set()

    def allocate_vector(self, bell: Bell | None = None) -> tuple[int, int, Bell]:
        """Return (address, data) of a message that rings ``bell`` (None: a new one), and the bell."""
        for data in range(MESSAGE_DATA_MAX + 1):
            if (MESSAGE_BASE, data) not in self._messages:
                bell = Bell() if bell is None else bell
                self._messages[MESSAGE_BASE, data] = bell
                return MESSAGE_BASE, data, bell
        raise ConfigError(f"no interrupt vector is left of {MESSAGE_DATA_MAX + 1}")

    def free_vector(self, address: int, data: int) -> None:
        """Give a message back."""
        del self._messages[address, data]

    def connect_line(self, address: Address, pin: int, bell: Bell) -> None:
        """Ring ``bell`` while the function raises its line: at once if it does, and each time that it begins to."""
        self._lines[address] = bell
        if address in self._high:
            bell.ring()

    def disconnect_line(self, address: Address, pin: int) -> None:
        """Undo :meth:`connect_line`."""
        self._lines.pop(address, None)

    def bell(self, address: int, data: int) -> Bell | None:
        """Return the bell of a message; None if nobody has it."""
        return self._messages.get((address, data))

    def message(self, address: int, data: int) -> None:
        """Take a message that a device sends. One that nobody has is lost, as on a real bus."""
        bell = self.bell(address, data)
        if bell is not None:
            bell.ring()

    def set_line(self, address: Address, level: bool) -> None:
        """Take the level of a function's interrupt line."""
        if not level:
            self._high.discard(address)
            return
        self._high.add(address)
        bell = self._lines.get(address)
        if bell is not None:
            bell.ring()

    @property
    def vectors(self) -> int:
        """Messages that are allocated."""
        return len(self._messages)

    @property
    def connected(self) -> int:
        """Functions that have a line."""
        return len(self._lines)


class Machine:
    """Guest memory of ``memory_size`` bytes from 0, a bus, interrupts, and a pool for drivers above the first MiB.

    It is the drivers' access to PCI (virtio.pci.legacy_driver.PciAccess). ``fast`` False sends kicks and messages
    through the registers and callables that a foreign machine would use. Threads: as the bus.
    """

    def __init__(self, memory_size: int = 256 << 20, *, memory: GuestMemory | None = None, fast: bool = True) -> None:
        self.memory = GuestMemory.allocate(memory_size) if memory is None else memory
        start = RESERVED if memory_size > 2 * RESERVED else PAGE
        self.pool = DmaPool(self.memory, start, memory_size - start)
        self.interrupts = InterruptController()
        self.bus = Bus()
        self.fast = fast
        self._legacy: dict[int, LegacyFunction] = {}

    def plug(self, device: Device, slot: int | None = None, *, vectors: int | None = None) -> LegacyFunction:
        """Put a device into a slot of the bus (the first that is free), as a function with the legacy interface."""
        resolve = self.interrupts.bell if self.fast else None
        function = LegacyFunction(
            device, self.memory, message=self.interrupts.message, resolve=resolve, vectors=vectors
        )
        slot = self.bus.add(function, slot)
        function.intx = partial(self.interrupts.set_line, Address(0, slot, 0))
        self._legacy[slot] = function
        return function

    def unplug(self, slot: int) -> LegacyFunction:
        """Take a device out again; ConfigError if the slot is empty. Drivers find out the hard way."""
        self.bus.remove(slot)
        function = self._legacy.pop(slot)
        function.intx = None
        self.interrupts.set_line(Address(0, slot, 0), False)
        return function

    def probe(self) -> list[Function]:
        """Find what is on the bus, and place what has no address yet."""
        return scan(self, io=IO_WINDOW, memory=MEMORY_WINDOW)

    def attach(self, function: Function, *, mode: Mode = "msix", **options: Any) -> Driver:
        """Give a function its registered driver and bring it up."""
        return attach(self, function, self.memory, self.pool, self.interrupts, mode=mode, **options)

    def attach_all(self, *, mode: Mode = "msix") -> list[Attached]:
        """Probe the bus and bring up all of it."""
        return attach_all(self, self.probe(), self.memory, self.pool, self.interrupts, mode=mode)

    # ---- virtio.pci.legacy_driver.PciAccess ----

    def config_read(self, bus: int, device: int, function: int, offset: int, size: int) -> int:
        """Read configuration space."""
        return self.bus.config_read(bus, device, function, offset, size)

    def config_write(self, bus: int, device: int, function: int, offset: int, size: int, value: int) -> None:
        """Write configuration space."""
        self.bus.config_write(bus, device, function, offset, size, value)

    def io_read(self, port: int, size: int) -> int:
        """Read I/O ports."""
        return self.bus.io_read(port, size)

    def io_write(self, port: int, size: int, value: int) -> None:
        """Write I/O ports."""
        self.bus.io_write(port, size, value)

    def mem_read(self, address: int, size: int) -> int:
        """Read memory behind BARs."""
        return self.bus.mem_read(address, size)

    def mem_write(self, address: int, size: int, value: int) -> None:
        """Write memory behind BARs."""
        self.bus.mem_write(address, size, value)

    def doorbell(self, address: Address, queue: int) -> Bell | None:
        """Return the bell of a queue's kicks; None: write the register."""
        function = self._legacy.get(address.device) if self.fast and address.bus == 0 else None
        return None if function is None else function.doorbell(queue)
