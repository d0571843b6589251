"""What is on a PCI bus: the driver's side of configuration space (PCI Local Bus 3.0, chapter 6).

It works over any access to configuration space: the embedded bus, or a foreign machine's. What a function shows is not
believed: lists end, sizes and places are checked, and what is wrong with one function is its ``fault``, which does not
keep the others from being found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from virtio.driver.negotiation import type_name
from virtio.errors import ConfigError
from virtio.pci.config import (
    BAR0,
    BAR_IO,
    BARS,
    CAPABILITIES,
    CLASS_CODE,
    COMMAND,
    COMMAND_IO,
    COMMAND_MEMORY,
    DEVICE_ID,
    FIRST_CAPABILITY,
    HEADER_TYPE,
    INTERRUPT_LINE,
    INTERRUPT_PIN,
    REVISION,
    STATUS,
    STATUS_CAPABILITIES,
    SUBSYSTEM_ID,
    SUBSYSTEM_VENDOR_ID,
    VENDOR_ID,
)

DEVICES, FUNCTIONS, BUSES = 32, 8, 256
NO_VENDOR = 0xFFFF
MULTIFUNCTION = 0x80
TYPE_DEVICE, TYPE_BRIDGE = 0, 1
BRIDGE_BARS = 2
SECONDARY_BUS = 0x19
BAR_TYPE, BAR_64, BAR_PREFETCHABLE = 0x06, 0x04, 0x08
CAPABILITIES_MAX = (256 - FIRST_CAPABILITY) // 4
CAPABILITY_VENDOR, CAPABILITY_MSIX = 0x09, 0x11
MSIX_VECTORS = 0x7FF
MSIX_BIR = 0x07

VIRTIO_VENDOR = 0x1AF4
TRANSITIONAL_FIRST, TRANSITIONAL_LAST = 0x1000, 0x103F
MODERN_FIRST, MODERN_LAST = 0x1040, 0x107F
LEGACY_REVISION = 0

PINS = {1: "A", 2: "B", 3: "C", 4: "D"}
CAPABILITY_NAMES = {0x01: "PM", 0x05: "MSI", CAPABILITY_VENDOR: "vendor", 0x10: "PCIe", CAPABILITY_MSIX: "MSI-X"}


class ConfigAccess(Protocol):
    """Access to configuration space. ``size`` is 1, 2 or 4; a function that is not there reads as ones."""

    def config_read(self, bus: int, device: int, function: int, offset: int, size: int) -> int: ...

    def config_write(self, bus: int, device: int, function: int, offset: int, size: int, value: int) -> object: ...


@dataclass(frozen=True, order=True)
class Address:
    """Where a function is."""

    bus: int
    device: int
    function: int

    def __str__(self) -> str:
        return f"{self.bus:02x}:{self.device:02x}.{self.function}"


@dataclass
class Bar:
    """A base address register: ``size`` bytes of I/O ports or memory; ``address`` 0: none was assigned."""

    index: int
    io: bool
    size: int
    address: int
    is_64: bool = False
    prefetchable: bool = False

    @property
    def end(self) -> int:
        """First address after it."""
        return self.address + self.size

    def __str__(self) -> str:
        kind = "I/O" if self.io else "memory, 64 bits" if self.is_64 else "memory"
        where = f"at {self.address:#x}" if self.address else "not assigned"
        return f"BAR {self.index}: {self.size:#x} bytes of {kind} {where}"


@dataclass(frozen=True)
class MsixTable:
    """The MSI-X capability at ``offset``: number of vectors, and where their table and pending bits lie."""

    offset: int
    vectors: int
    table_bar: int
    table_offset: int
    pba_bar: int
    pba_offset: int


@dataclass
class Function:
    """One function of the bus, as it shows itself. ``fault`` is what makes it unfit for use, None if nothing does."""

    access: ConfigAccess
    address: Address
    vendor: int
    device: int
    revision: int = 0
    class_code: int = 0
    header_type: int = TYPE_DEVICE
    subsystem_vendor: int = 0
    subsystem: int = 0
    interrupt_line: int = 0
    interrupt_pin: int = 0
    secondary_bus: int = 0
    bars: dict[int, Bar] = field(default_factory=dict)
    capabilities: list[tuple[int, int]] = field(default_factory=list)  # (id, offset)
    msix: MsixTable | None = None
    fault: ConfigError | None = None

    def read(self, offset: int, size: int) -> int:
        """Read the function's configuration space; an access object that gives more bits than asked for is cut."""
        a = self.address
        return self.access.config_read(a.bus, a.device, a.function, offset, size) & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the function's configuration space."""
        a = self.address
        self.access.config_write(a.bus, a.device, a.function, offset, size, value)

    @property
    def interface(self) -> str | None:
        """Which virtio interface it has: "legacy" (transitional devices too), "modern", or None if it is none.

        A device of the legacy range with another revision than 0 offers no legacy interface: "unknown".
        """
        if self.vendor != VIRTIO_VENDOR or self.header_type != TYPE_DEVICE:
            return None
        if MODERN_FIRST <= self.device <= MODERN_LAST:
            return "modern"
        if TRANSITIONAL_FIRST <= self.device <= TRANSITIONAL_LAST:
            return "legacy" if self.revision == LEGACY_REVISION else "unknown"
        return None

    @property
    def device_type(self) -> int:
        """The virtio device type; 0 if it is no virtio device."""
        if self.interface == "modern":
            return self.device - MODERN_FIRST
        return self.subsystem if self.interface else 0

    def __str__(self) -> str:
        return f"{self.address} {self.vendor:04x}:{self.device:04x}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return {
            "address": str(self.address),
            "vendor": self.vendor,
            "device": self.device,
            "revision": self.revision,
            "class": self.class_code,
            "header_type": self.header_type,
            "subsystem_vendor": self.subsystem_vendor,
            "subsystem": self.subsystem,
            "interrupt_pin": self.interrupt_pin,
            "interrupt_line": self.interrupt_line,
            "bars": [
                {
                    "index": bar.index,
                    "kind": "io" if bar.io else "memory",
                    "bits": 64 if bar.is_64 else 32,
                    "size": bar.size,
                    "address": bar.address,
                }
                for bar in self.bars.values()
            ],
            "capabilities": [{"id": kind, "offset": offset} for kind, offset in self.capabilities],
            "msix_vectors": self.msix.vectors if self.msix else 0,
            "virtio": self.interface,
            "device_type": self.device_type,
            "fault": str(self.fault) if self.fault else None,
        }


@dataclass(frozen=True)
class Window:
    """Addresses from ``start`` to before ``end`` that BARs may be given."""

    start: int
    end: int


# ---- finding ----


def scan(
    access: ConfigAccess,
    *,
    io: Window | None = None,
    memory: Window | None = None,
    bus: int = 0,
) -> list[Function]:
    """Find every function from ``bus`` on, behind bridges too; return them in the order of the walk.

    BARs that have no address get one from the windows ``io`` and ``memory``, where these are given; not so behind
    bridges, whose own windows are the firmware's. A function is sized with its decoding off, which is as it was
    afterwards: do not scan while another thread uses the registers.
    """
    functions = list(_walk(access, bus, {bus}))
    for function in functions:
        try:
            _inspect(function)
        except ConfigError as error:
            function.fault = error
    _refuse_overlaps(functions)
    for kind, window in ((True, io), (False, memory)):
        if window is not None:
            _assign(functions, bus, kind, window)
    return functions


def virtio_functions(functions: Iterable[Function]) -> list[Function]:
    """Return the virtio devices among functions."""
    return [function for function in functions if function.interface]


def _walk(access: ConfigAccess, bus: int, seen: set[int]) -> Iterator[Function]:
    for device in range(DEVICES):
        for number in range(FUNCTIONS):
            function = _header(access, Address(bus, device, number))
            if function is not None:
                yield function
                if function.secondary_bus and function.secondary_bus not in seen:  # each bus is walked once
                    seen.add(function.secondary_bus)
                    yield from _walk(access, function.secondary_bus, seen)
            if number == 0 and (function is None or not function.read(HEADER_TYPE, 1) & MULTIFUNCTION):
                break


def _header(access: ConfigAccess, address: Address) -> Function | None:
    function = Function(access, address, 0, 0)
    function.vendor = function.read(VENDOR_ID, 2)
    if function.vendor in (NO_VENDOR, 0):
        return None
    function.device = function.read(DEVICE_ID, 2)
    function.revision = function.read(REVISION, 1)
    function.class_code = function.read(CLASS_CODE, 1) | function.read(CLASS_CODE + 1, 2) << 8
    function.header_type = function.read(HEADER_TYPE, 1) & ~MULTIFUNCTION
    function.interrupt_line = function.read(INTERRUPT_LINE, 1)
    function.interrupt_pin = function.read(INTERRUPT_PIN, 1)
    if function.header_type == TYPE_DEVICE:
        function.subsystem_vendor = function.read(SUBSYSTEM_VENDOR_ID, 2)
        function.subsystem = function.read(SUBSYSTEM_ID, 2)
    elif function.header_type == TYPE_BRIDGE:
        function.secondary_bus = function.read(SECONDARY_BUS, 1)
    return function


def _inspect(function: Function) -> None:
    """Read the rest of a header; raise ConfigError for what cannot be."""
    bars = {TYPE_DEVICE: BARS, TYPE_BRIDGE: BRIDGE_BARS}.get(function.header_type)
    if bars is None:
        raise ConfigError(f"{function} has header type {function.header_type}, which is neither 0 nor 1")
    _size_bars(function, bars)
    _walk_capabilities(function)
    for kind, offset in function.capabilities:
        if kind == CAPABILITY_MSIX:
            function.msix = _msix(function, offset)
            break


def _size_bars(function: Function, count: int) -> None:
    command = function.read(COMMAND, 2)
    function.write(COMMAND, 2, command & ~(COMMAND_IO | COMMAND_MEMORY))
    try:
        index = 0
        while index < count:
            bar = _size_bar(function, index, count)
            if bar is not None:
                function.bars[index] = bar
            index += 2 if bar is not None and bar.is_64 else 1
    finally:
        function.write(COMMAND, 2, command)


def _size_bar(function: Function, index: int, count: int) -> Bar | None:
    low, low_mask = _probe_register(function, index)
    if low_mask == 0:
        return None
    if low & BAR_IO:
        # a device may leave the upper half of an I/O BAR out
        mask, width, flags = low_mask & ~3, 32 if low_mask >> 16 else 16, 3
        address, is_64 = low & ~3, False
    else:
        mask, width, flags = low_mask & ~0xF, 32, 0xF
        address, is_64 = low & ~0xF, low & BAR_TYPE == BAR_64
    if is_64:
        if index + 1 == count:
            raise ConfigError(f"BAR {index} of {function} has 64 bits, but is the last of {count}")
        high, high_mask = _probe_register(function, index + 1)
        address |= high << 32
        mask |= high_mask << 32
        width = 64
    size = mask & -mask
    # all address bits from the size upwards can be set, and none below
    if size == 0 or mask != (1 << width) - size or size <= flags:
        raise ConfigError(f"BAR {index} of {function} decodes the address bits {mask:#x}, which are no size")
    return Bar(index, bool(low & BAR_IO), size, address, is_64, not low & BAR_IO and bool(low & BAR_PREFETCHABLE))


def _probe_register(function: Function, index: int) -> tuple[int, int]:
    """Return a BAR's value, and its bits that can be written (type bits included)."""
    offset = BAR0 + 4 * index
    before = function.read(offset, 4)
    function.write(offset, 4, 0xFFFFFFFF)
    mask = function.read(offset, 4)
    function.write(offset, 4, before)
    return before, mask


def _walk_capabilities(function: Function) -> None:
    if not function.read(STATUS, 2) & STATUS_CAPABILITIES:
        return
    seen: set[int] = set()
    offset = function.read(CAPABILITIES, 1) & ~3
    while offset:
        if offset < FIRST_CAPABILITY:
            raise ConfigError(f"a capability of {function} lies at {offset:#x}, below {FIRST_CAPABILITY:#x}")
        if offset in seen:
            raise ConfigError(
                f"the capabilities of {function} come back to {offset:#x} after {len(seen)} (limit {CAPABILITIES_MAX})"
            )
        seen.add(offset)
        function.capabilities.append((function.read(offset, 1), offset))
        offset = function.read(offset + 1, 1) & ~3


def _msix(function: Function, offset: int) -> MsixTable:
    if offset + 12 > 256:
        raise ConfigError(f"the MSI-X capability of {function} at {offset:#x} does not fit into 256 bytes")
    table, pba = function.read(offset + 4, 4), function.read(offset + 8, 4)
    msix = MsixTable(
        offset,
        (function.read(offset + 2, 2) & MSIX_VECTORS) + 1,
        table & MSIX_BIR,
        table & ~MSIX_BIR,
        pba & MSIX_BIR,
        pba & ~MSIX_BIR,
    )
    places = []
    for what, index, start, size in (
        ("table", msix.table_bar, msix.table_offset, 16 * msix.vectors),
        ("pending bits", msix.pba_bar, msix.pba_offset, (msix.vectors + 63) // 64 * 8),
    ):
        bar = function.bars.get(index)
        if bar is None or bar.io:
            raise ConfigError(f"the MSI-X {what} of {function} is in BAR {index}, which is no memory")
        if start + size > bar.size:
            raise ConfigError(
                f"the MSI-X {what} of {function} ends at {start + size:#x} of BAR {index}, whose size is {bar.size:#x}"
            )
        places.append((index, start, start + size))
    (bar_a, start_a, end_a), (bar_b, start_b, end_b) = places
    if bar_a == bar_b and start_a < end_b and start_b < end_a:
        raise ConfigError(
            f"the MSI-X table of {function} ({start_a:#x} to {end_a:#x} of BAR {bar_a}) and its pending bits "
            f"({start_b:#x} to {end_b:#x}) overlap"
        )
    return msix


# ---- places ----


def _refuse_overlaps(functions: Sequence[Function]) -> None:
    """Fault each function with a BAR that covers an earlier one, in whatever order they lie."""
    placed: dict[bool, list[tuple[Bar, Function]]] = {True: [], False: []}
    for function in functions:
        for bar in function.bars.values():
            if not bar.address:
                continue
            for other, owner in placed[bar.io]:
                if bar.address < other.end and other.address < bar.end and function.fault is None:
                    function.fault = ConfigError(f"{bar} of {function} overlaps {other} of {owner}")
            placed[bar.io].append((bar, function))


def _assign(functions: Sequence[Function], bus: int, io: bool, window: Window) -> None:
    """Give each BAR that has no address the lowest in the window that is free, largest BARs first."""
    taken = [bar for function in functions for bar in function.bars.values() if bar.io == io and bar.address]
    wanting = [
        (bar, function)
        for function in functions
        if function.fault is None and function.address.bus == bus
        for bar in function.bars.values()
        if bar.io == io and not bar.address
    ]
    for bar, function in sorted(wanting, key=lambda item: -item[0].size):
        place = _lowest(bar.size, window, taken)
        if place is None:
            function.fault = ConfigError(
                f"{bar} of {function} does not fit into what is left of {window.start:#x} to {window.end:#x}"
            )
            continue
        try:
            _move(function, bar, place)
        except ConfigError as error:
            function.fault = error
        else:
            taken.append(bar)


def _lowest(size: int, window: Window, taken: Iterable[Bar]) -> int | None:
    # address 0 says that there is none
    place = (max(window.start, 1) + size - 1) & -size
    for bar in sorted(taken, key=lambda bar: bar.address):
        if place + size <= bar.address:
            break
        if bar.end > place:
            place = (bar.end + size - 1) & -size
    return place if place + size <= window.end else None


def _move(function: Function, bar: Bar, address: int) -> None:
    """Write a BAR, with decoding off, and look whether it took the address."""
    command = function.read(COMMAND, 2)
    function.write(COMMAND, 2, command & ~(COMMAND_IO | COMMAND_MEMORY))
    try:
        offset = BAR0 + 4 * bar.index
        function.write(offset, 4, address & 0xFFFFFFFF)
        got = function.read(offset, 4) & ~(3 if bar.io else 0xF)
        if bar.is_64:
            function.write(offset + 4, 4, address >> 32)
            got |= function.read(offset + 4, 4) << 32
    finally:
        function.write(COMMAND, 2, command)
    if got != address:
        raise ConfigError(f"BAR {bar.index} of {function} reads {got:#x} after {address:#x} was written")
    bar.address = address


# ---- report ----


def pci_report(functions: Iterable[Function]) -> str:
    """Return a readable list of functions, with BARs, capabilities and what is wrong with them."""
    lines = []
    for function in functions:
        kind = function.interface
        what = f"virtio {type_name(function.device_type)}, {kind}" if kind else f"class {function.class_code:06x}"
        if function.header_type == TYPE_BRIDGE:
            what += f", bridge to bus {function.secondary_bus}"
        lines.append(f"{function} revision {function.revision}: {what}")
        lines += [f"    {bar}" for bar in function.bars.values()]
        if function.msix is not None:
            msix = function.msix
            lines.append(
                f"    MSI-X: {msix.vectors} vectors, table at {msix.table_offset:#x} of BAR {msix.table_bar}, "
                f"pending bits at {msix.pba_offset:#x} of BAR {msix.pba_bar}"
            )
        others = [CAPABILITY_NAMES.get(kind, f"{kind:#04x}") for kind, _ in function.capabilities if kind != 0x11]
        if others:
            lines.append(f"    capabilities: {', '.join(others)}")
        if function.interrupt_pin:
            lines.append(f"    INT{PINS.get(function.interrupt_pin, '?')}, line {function.interrupt_line}")
        if function.fault is not None:
            lines.append(f"    not usable: {function.fault}")
        elif kind and kind != "legacy":
            lines.append(f"    not driven: nothing here drives the interface {kind}")
    return "\n".join(lines)
