"""A small PCI bus: functions in slots, configuration mechanism #1, and which of them answers at an address."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, Protocol

from virtio.core.process import ForkAwareLock
from virtio.core.weak import weakly
from virtio.errors import ConfigError, SnapshotError
from virtio.pci.config import ConfigSpace, ones
from virtio.pci.intx import Line
from virtio.virtqueue import saved

ACCESS_MAX = 8
CONFIG_ADDRESS, CONFIG_DATA, CONFIG_PORTS_END = 0xCF8, 0xCFC, 0xD00
ADDRESS_ENABLE = 1 << 31
ADDRESS_WRITABLE = 0x80FFFFFC

SLOTS = 32
LINES = 4


def check_size(size: int) -> None:
    """Raise ValueError for an access that no bus has."""
    if not 1 <= size <= ACCESS_MAX:
        raise ValueError(f"access of {size} bytes (1 to {ACCESS_MAX})")


class Function(Protocol):
    """What the bus needs of a function: configuration space, BARs, and an INTx output that it may connect."""

    config: ConfigSpace
    intx: Callable[[bool], object] | None

    def config_read(self, offset: int, size: int) -> int:
        """Read the configuration space."""

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write the configuration space."""

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        """Read what is behind a BAR."""

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write what is behind a BAR."""

    def reset(self) -> None:
        """Do what RST# does."""

    def snapshot(self) -> dict[str, Any]:
        """Return the state, as JSON can hold it."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the state over."""


class Bus:
    """PCI bus 0, whose functions are each function 0 of a slot (0 to 31).

    ``intx(line, level)`` hears of the four interrupt lines 0 to 3 (PIRQA to PIRQD), each the wired OR of the pins that
    are routed to it: pin ``p`` of slot ``s`` goes to line ``(s + p) % 4``, pins counted from 0, as on the boards that
    PCs and QEMU have. It is called in the order of the changes, without a lock held. A function that was given an
    ``intx`` of its own keeps it.

    An access (of 1 to 8 bytes, or it is a ValueError) lies in one BAR, or each of its bytes is an access of its own.
    Where nothing answers, reads give ones and writes go nowhere. If BARs overlap, the lowest slot answers. Threads: as
    the functions' own; adding one, and the configuration address, belong to one thread at a time.
    """

    def __init__(self, intx: Callable[[int, bool], object] | None = None) -> None:
        self.functions: dict[int, Function] = {}
        self._address = 0
        self._routed: set[int] = set()  # slots whose functions raise our lines
        self._asserted = [0] * LINES  # bit s: slot s asserts the line
        self._lock = ForkAwareLock("PCI bus")  # guards _asserted
        self._lines = [
            Line(partial(weakly(self._level), line), None if intx is None else partial(intx, line))
            for line in range(LINES)
        ]

    def add(self, function: Function, slot: int | None = None) -> int:
        """Put a function into ``slot``, or the first that is free; return the slot. ConfigError if there is none."""
        if slot is None:
            slot = next((free for free in range(SLOTS) if free not in self.functions), SLOTS)
        if not 0 <= slot < SLOTS or slot in self.functions:
            raise ConfigError(f"slot {slot} is taken, or none of 0 to {SLOTS - 1}")
        self.functions = dict(sorted({**self.functions, slot: function}.items()))
        if function.config.interrupt_pin and function.intx is None:
            self._routed.add(slot)
            function.intx = partial(weakly(self._raise), slot, self.line(slot))
        return slot

    def remove(self, slot: int) -> Function:
        """Take the function out of a slot, and return it; its line falls. ConfigError if the slot is empty."""
        if slot not in self.functions:
            raise ConfigError(f"slot {slot} is empty (taken: {sorted(self.functions)})")
        line = self.line(slot)
        function = self.functions[slot]
        self.functions = {taken: other for taken, other in self.functions.items() if taken != slot}
        if slot in self._routed:
            self._routed.remove(slot)
            function.intx = None
            self._raise(slot, line, False)
        return function

    def line(self, slot: int) -> int:
        """Return the interrupt line that the function in ``slot`` is routed to."""
        return (slot + self.functions[slot].config.interrupt_pin - 1) % LINES

    def _raise(self, slot: int, line: int, level: bool) -> None:
        with self._lock:
            self._asserted[line] = self._asserted[line] & ~(1 << slot) | level << slot
        self._lines[line].update()

    def _level(self, line: int) -> bool:
        return self._asserted[line] != 0

    def config_read(self, bus: int, device: int, function: int, offset: int, size: int) -> int:
        """Read a configuration space: ``bus``, ``device`` (the slot) and ``function`` say whose."""
        target = self.functions.get(device) if bus == 0 and function == 0 else None
        return ones(size) if target is None else target.config_read(offset, size)

    def config_write(self, bus: int, device: int, function: int, offset: int, size: int, value: int) -> None:
        """Write a configuration space."""
        target = self.functions.get(device) if bus == 0 and function == 0 else None
        if target is not None:
            target.config_write(offset, size, value)

    def io_read(self, port: int, size: int) -> int:
        """Read I/O ports: 0xcf8 to 0xcff, and the I/O BARs that answer."""
        check_size(size)
        if CONFIG_ADDRESS - size < port < CONFIG_PORTS_END:
            if port == CONFIG_ADDRESS and size == 4:
                return self._address
            if CONFIG_DATA <= port <= CONFIG_PORTS_END - size:
                return self.config_read(*self._selected(port), size) if self._address & ADDRESS_ENABLE else ones(size)
        elif (found := self._find("io", port, size)) is not None:
            function, bar, offset = found
            return function.bar_read(bar, offset, size)
        return ones(1) if size == 1 else self._bytes(self.io_read, port, size)

    def io_write(self, port: int, size: int, value: int) -> None:
        """Write I/O ports."""
        check_size(size)
        if CONFIG_ADDRESS - size < port < CONFIG_PORTS_END:
            # the address register takes 32 bits at once only: narrower writes are of other registers (0xcf9: reset)
            if port == CONFIG_ADDRESS and size == 4:
                self._address = value & ADDRESS_WRITABLE
                return
            if CONFIG_DATA <= port <= CONFIG_PORTS_END - size:
                if self._address & ADDRESS_ENABLE:
                    self.config_write(*self._selected(port), size, value)
                return
        elif (found := self._find("io", port, size)) is not None:
            function, bar, offset = found
            function.bar_write(bar, offset, size, value)
            return
        if size > 1:
            for i in range(size):
                self.io_write(port + i, 1, value >> 8 * i & 0xFF)

    def mem_read(self, address: int, size: int) -> int:
        """Read memory behind BARs."""
        check_size(size)
        found = self._find("memory", address, size)
        if found is not None:
            function, bar, offset = found
            return function.bar_read(bar, offset, size)
        return ones(1) if size == 1 else self._bytes(self.mem_read, address, size)

    def mem_write(self, address: int, size: int, value: int) -> None:
        """Write memory behind BARs."""
        check_size(size)
        found = self._find("memory", address, size)
        if found is not None:
            function, bar, offset = found
            function.bar_write(bar, offset, size, value)
        elif size > 1:
            for i in range(size):
                self.mem_write(address + i, 1, value >> 8 * i & 0xFF)

    def _selected(self, port: int) -> tuple[int, int, int, int]:
        """Return (bus, device, function, offset) that the address register selects, at a data port."""
        address = self._address
        return address >> 16 & 0xFF, address >> 11 & 31, address >> 8 & 7, (address & 0xFC) + port - CONFIG_DATA

    def _find(self, space: Literal["io", "memory"], address: int, size: int) -> tuple[Function, int, int] | None:
        """Return (function, BAR, offset) where the whole access lies; None if in no BAR, or not in one alone."""
        end = address + size
        for function in self.functions.values():
            for window in function.config.io if space == "io" else function.config.memory:
                if address < window.end and end > window.base:
                    if window.base <= address and end <= window.end:
                        return function, window.bar, address - window.base
                    return None
        return None

    @staticmethod
    def _bytes(read: Callable[[int, int], int], address: int, size: int) -> int:
        return int.from_bytes(bytes(read(address + i, 1) for i in range(size)), "little")

    def reset(self) -> None:
        """Reset all functions, as RST# does, and the address register."""
        self._address = 0
        for function in self.functions.values():
            function.reset()

    def snapshot(self) -> dict[str, Any]:
        """Return the state of the bus and of its functions, as JSON can hold it."""
        functions = {str(slot): function.snapshot() for slot, function in self.functions.items()}
        return {"address": self._address, "functions": functions}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`snapshot` gave. Raises what the functions do, SnapshotError if other slots are taken.

        After an error the bus and all functions are reset.
        """
        functions = {str(slot): function for slot, function in self.functions.items()}
        try:
            parts = saved.fields(dict.fromkeys(functions, saved.mapping))
            saved.fields({"address": saved.number(0, saved.U32), "functions": parts})(state)
            if state["address"] & ~ADDRESS_WRITABLE:
                raise SnapshotError("address", f"is {state['address']:#x}: read-only bits are set")
            self._address = state["address"]
            for slot, function in functions.items():
                with saved.within(f"functions.{slot}"):
                    function.restore(state["functions"][slot])
        except BaseException:
            self.reset()
            raise
