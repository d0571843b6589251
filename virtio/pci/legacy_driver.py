"""The legacy PCI interface as a driver works it: registers, configuration, MSI-X or INTx (VIRTIO 1.4, 4.1.4.10).

It follows FreeBSD's virtio_pci_legacy.c: BAR 0 as I/O ports or as memory, status bits added to those that are set,
configuration byte by byte, a vector for each queue, else one for all, else INTx.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from virtio.driver.registry import BUS_PROBE_LOW_PRIORITY
from virtio.errors import ConfigError, DeviceBroken
from virtio.event.notifier import Bell
from virtio.memory.guest_memory import GuestMemory
from virtio.pci.config import COMMAND, COMMAND_INTX_DISABLE, COMMAND_IO, COMMAND_MASTER, COMMAND_MEMORY
from virtio.pci.msix import CONTROL, CONTROL_ENABLE, CONTROL_FUNCTION_MASK, VECTOR_CONTROL, VECTOR_MASKED
from virtio.pci.probe import PINS, Address, Bar, ConfigAccess, Function
from virtio.virtqueue.layout import LEGACY_ALIGN, QueueLayout

HOST_FEATURES, GUEST_FEATURES = 0x00, 0x04
QUEUE_PFN, QUEUE_NUM, QUEUE_SELECT, QUEUE_NOTIFY = 0x08, 0x0C, 0x0E, 0x10
STATUS, ISR = 0x12, 0x13
CONFIG_VECTOR, QUEUE_VECTOR = 0x14, 0x16
CONFIG_PLAIN, CONFIG_MSIX = 0x14, 0x18  # where the device's configuration starts
ISR_QUEUE, ISR_CONFIG = 1, 2
NO_VECTOR = 0xFFFF
PFN_MAX = (1 << 32) - 1
MSIX_ENTRY = 16

Mode = Literal["msix", "msix-shared", "intx"]
MODES: tuple[Mode, ...] = ("msix", "msix-shared", "intx")


class PciAccess(ConfigAccess, Protocol):
    """Access to a machine's PCI functions. ``size`` is 1, 2 or 4.

    An object may also have ``doorbell(address, queue)``: the Bell that a kick of this queue comes down to, which spares
    the register; None where there is none.
    """

    def io_read(self, port: int, size: int) -> int: ...

    def io_write(self, port: int, size: int, value: int) -> object: ...

    def mem_read(self, address: int, size: int) -> int: ...

    def mem_write(self, address: int, size: int, value: int) -> object: ...


class Interrupts(Protocol):
    """The machine's interrupt controller, as a driver sees it."""

    def allocate_vector(self, bell: Bell | None = None) -> tuple[int, int, Bell]:
        """Return (address, data) of a message that rings ``bell`` (None: a new one), and the bell."""

    def free_vector(self, address: int, data: int) -> None:
        """Give a message back."""

    def connect_line(self, address: Address, pin: int, bell: Bell) -> None:
        """Ring ``bell`` when the function raises its interrupt line; pin 1 is INTA#."""

    def disconnect_line(self, address: Address, pin: int) -> None:
        """Undo :meth:`connect_line`."""


class LegacyTransport:
    """The driver's way to a device through its legacy PCI interface: a virtio.driver.Transport.

    ``function`` comes from virtio.pci.probe.scan. ``interrupts`` is the first way to try, of "msix" (a vector for each
    queue and one for the configuration), "msix-shared" (two vectors), "intx".

    Raises ConfigError if the function has no legacy interface, or one that cannot be used.
    """

    legacy = True
    generation = 0

    def __init__(
        self,
        access: PciAccess,
        function: Function,
        memory: GuestMemory,
        interrupts: Interrupts,
        *,
        mode: Mode = "msix",
    ) -> None:
        if function.fault is not None:
            raise function.fault
        if self.probe(function) is None:
            raise ConfigError(
                f"{function} revision {function.revision} has no legacy virtio interface: "
                "that is vendor 0x1af4, device 0x1000 to 0x103f, revision 0"
            )
        if mode not in MODES:
            raise ValueError(f"interrupts {mode!r} is none of {', '.join(MODES)}")
        bar = function.bars.get(0)
        if bar is None or not bar.address or bar.size <= CONFIG_MSIX:
            what = "no BAR 0" if bar is None else str(bar)
            raise ConfigError(f"{function} has {what}: the registers need more than {CONFIG_MSIX} bytes, at an address")
        self.access = access
        self.function = function
        self.memory = memory
        self.mode: Mode | None = None  # how interrupts come; None: they do not yet
        self._bar: Bar = bar
        self._interrupts = interrupts
        self._modes = MODES[MODES.index(mode) :]
        self._vectors: list[tuple[int, int]] = []
        self._line = False
        self._msix_on = False
        msix = function.msix
        # a table without an address is as good as none
        self._msix = msix if msix is not None and function.bars[msix.table_bar].address else None
        self._forget_bells()

    def _forget_bells(self) -> None:
        self._kicks: dict[int, Bell] = {}
        self._queue_bells: dict[int, Bell] = {}
        self._config_bell = Bell()

    @staticmethod
    def probe(function: Function) -> int | None:
        """Return BUS_PROBE_LOW_PRIORITY for a function with the legacy interface, None for any other."""
        return BUS_PROBE_LOW_PRIORITY if function.interface == "legacy" else None

    # ---- registers ----

    def read(self, offset: int, size: int) -> int:
        """Read a register."""
        read = self.access.io_read if self._bar.io else self.access.mem_read
        return read(self._bar.address + offset, size) & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register."""
        write = self.access.io_write if self._bar.io else self.access.mem_write
        write(self._bar.address + offset, size, value)

    @property
    def device_type(self) -> int:
        return self.function.device_type

    @property
    def status(self) -> int:
        return self.read(STATUS, 1)

    @status.setter
    def status(self, bits: int) -> None:
        self.write(STATUS, 1, bits | self.status)

    def reset(self) -> None:
        self._enable()
        self.write(STATUS, 1, 0)

    def read_features(self) -> int:
        return self.read(HOST_FEATURES, 4)

    def write_features(self, bits: int) -> None:
        self.write(GUEST_FEATURES, 4, bits)

    def _config_at(self, offset: int, size: int) -> int:
        start = CONFIG_MSIX if self._msix_on else CONFIG_PLAIN
        if offset < 0 or start + offset + size > self._bar.size:
            raise ConfigError(
                f"{size} bytes of configuration at {offset:#x} are outside of the {self._bar.size - start:#x} bytes "
                f"that BAR 0 of {self.function} has for it"
            )
        return start + offset

    def read_config(self, offset: int, size: int) -> bytes:
        at = self._config_at(offset, size)
        return bytes(self.read(at + i, 1) for i in range(size))

    def write_config(self, offset: int, data: bytes) -> None:
        at = self._config_at(offset, len(data))
        for i, byte in enumerate(data):
            self.write(at + i, 1, byte)

    def queue_size(self, index: int) -> int:
        self.write(QUEUE_SELECT, 2, index)
        return self.read(QUEUE_NUM, 2)

    def setup_queue(self, index: int, layout: QueueLayout) -> None:
        pfn = layout.desc // LEGACY_ALIGN
        if layout != QueueLayout.legacy(layout.size, layout.desc):
            raise ConfigError(f"queue {index} is not laid out as the legacy interface needs it: {layout}")
        if pfn > PFN_MAX:
            raise ConfigError(
                f"queue {index} at {layout.desc:#x} is above what the legacy interface reaches ({PFN_MAX:#x} pages)"
            )
        self.write(QUEUE_SELECT, 2, index)
        self.write(QUEUE_PFN, 4, pfn)
        got = self.read(QUEUE_PFN, 4)
        if got != pfn:
            raise DeviceBroken(f"queue {index} of {self.function} did not take page {pfn:#x}: it reads {got:#x}")

    def reset_queue(self, index: int) -> None:
        raise ConfigError(f"queue {index} cannot be reset alone: the legacy interface has no RING_RESET")

    def kick_bell(self, index: int) -> Bell:
        bell = self._kicks.get(index)
        if bell is None:
            doorbell = getattr(self.access, "doorbell", None)
            bell = doorbell(self.function.address, index) if doorbell is not None else None
            if bell is None:
                bell = Bell(lambda: self.write(QUEUE_NOTIFY, 2, index))
            self._kicks[index] = bell
        return bell

    # ---- interrupts ----

    @property
    def config_bell(self) -> Bell:
        return self._config_bell

    def interrupt_bells(self, queues: Sequence[int]) -> list[Bell]:
        bells = [self._queue_bells.setdefault(queue, Bell()) for queue in queues]
        if self.mode is None:
            self.mode = self._choose(queues, bells)
        if self.mode != "intx":  # a reset has cleared the registers
            self._program(CONFIG_VECTOR, 0, "the configuration")
            for i, queue in enumerate(queues):
                self.write(QUEUE_SELECT, 2, queue)
                self._program(QUEUE_VECTOR, 1 + (i if self.mode == "msix" else 0), f"queue {queue}")
        return bells

    def _choose(self, queues: Sequence[int], bells: Sequence[Bell]) -> Mode:
        """Set up the best way there is: the first of the modes for which there are vectors."""
        msix = self._msix
        have = msix.vectors if msix is not None else 0
        if "msix" in self._modes and have > len(queues):
            self._start_msix([self._config_bell, *bells])
            return "msix"
        if "msix-shared" in self._modes and have >= 2:
            self._start_msix([self._config_bell, Bell(ring_all(bells))])
            return "msix-shared"
        pin = self.function.interrupt_pin
        if pin not in PINS:
            raise ConfigError(
                f"{self.function} has interrupt pin {pin}, none of 1 to 4, and {have} MSI-X vectors (2 would do)"
            )
        self._line = True
        self._interrupts.connect_line(self.function.address, pin, Bell(self._intx))
        return "intx"

    def _start_msix(self, bells: Sequence[Bell]) -> None:
        msix = self._msix
        assert msix is not None
        table = self.function.bars[msix.table_bar].address + msix.table_offset
        control = self.function.read(msix.offset + CONTROL, 2) | CONTROL_ENABLE
        self.function.write(msix.offset + CONTROL, 2, control | CONTROL_FUNCTION_MASK)
        self._msix_on = True
        for vector, bell in enumerate(bells):
            address, data, _ = self._interrupts.allocate_vector(bell)
            self._vectors.append((address, data))
            at = table + MSIX_ENTRY * vector
            for offset, value in ((0, address & 0xFFFFFFFF), (4, address >> 32), (8, data)):
                self.access.mem_write(at + offset, 4, value)
            unmasked = self.access.mem_read(at + VECTOR_CONTROL, 4) & ~VECTOR_MASKED
            self.access.mem_write(at + VECTOR_CONTROL, 4, unmasked)
        self.function.write(msix.offset + CONTROL, 2, control & ~CONTROL_FUNCTION_MASK)

    def _program(self, register: int, vector: int, what: str) -> None:
        self.write(register, 2, vector)
        got = self.read(register, 2)
        if got != vector:
            none = " (NO_VECTOR)" if got == NO_VECTOR else ""
            raise DeviceBroken(f"{self.function} gave {what} no MSI-X vector: {vector} reads back as {got:#x}{none}")

    def _intx(self) -> None:
        """The line rose: ask the ISR what for, which lowers the line."""
        isr = self.read(ISR, 1)
        if isr & ISR_CONFIG:
            self._config_bell.ring()
        if isr & ISR_QUEUE:
            for bell in list(self._queue_bells.values()):
                bell.ring()

    # ---- the function ----

    def _enable(self) -> None:
        """Let the function answer and reach memory, with interrupts of no kind but those that are set up."""
        wanted = COMMAND_MASTER | (COMMAND_IO if self._bar.io else COMMAND_MEMORY)
        if self._msix is not None:
            wanted |= COMMAND_MEMORY
        command = (self.function.read(COMMAND, 2) | wanted) & ~COMMAND_INTX_DISABLE
        self.function.write(COMMAND, 2, command)
        got = self.function.read(COMMAND, 2)
        if got & wanted != wanted:
            raise DeviceBroken(f"command register of {self.function} reads {got:#06x} after {command:#06x} was written")
        if not self._msix_on:
            self._stop_msix()

    def _stop_msix(self) -> None:
        if self._msix is not None:
            at = self._msix.offset + CONTROL
            control = self.function.read(at, 2)
            if control & CONTROL_ENABLE:
                self.function.write(at, 2, control & ~(CONTROL_ENABLE | CONTROL_FUNCTION_MASK))
        self._msix_on = False

    def release(self) -> None:
        self._stop_msix()
        for address, data in self._vectors:
            self._interrupts.free_vector(address, data)
        self._vectors = []
        if self._line:
            self._interrupts.disconnect_line(self.function.address, self.function.interrupt_pin)
            self._line = False
        self.mode = None
        self.function.write(COMMAND, 2, self.function.read(COMMAND, 2) & ~COMMAND_MASTER)
        self._forget_bells()

    def __repr__(self) -> str:
        return f"<LegacyTransport: {self.function}, interrupts by {self.mode}>"


def ring_all(bells: Sequence[Bell]) -> Callable[[], None]:
    """Return a function that rings all bells."""

    def ring() -> None:
        for bell in bells:
            bell.ring()

    return ring
