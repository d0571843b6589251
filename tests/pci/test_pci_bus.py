"""The PCI bus: mechanism #1, dispatch by programmed address, interrupt lines; and a whole device on it."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from legacy_model import Recorder

from virtio import GuestMemory
from virtio.device import Device
from virtio.errors import ConfigError
from virtio.pci import Bus, LegacyFunction

ADDRESS, DATA = 0xCF8, 0xCFC
COMMAND, BAR0, BAR1 = 4, 0x10, 0x14
MEMORY = GuestMemory.allocate(1 << 16)


class Entropy(Device):
    """A whole device type."""

    device_type = 4

    def notified(self, index: int) -> None:
        for chain in self.chains(index):
            chain.write(os.urandom(chain.writable_length))


def recorder(vectors: int | None = None) -> LegacyFunction:
    return LegacyFunction(Recorder(), MEMORY, vectors=vectors)


def place(function: LegacyFunction, io: int, memory: int, command: int = 7) -> None:
    function.config_write(BAR0, 4, io)
    function.config_write(BAR1, 4, memory)
    function.config_write(COMMAND, 2, command)


def selection(slot: int, offset: int, *, bus: int = 0, function: int = 0, enable: bool = True) -> int:
    return enable << 31 | bus << 16 | slot << 11 | function << 8 | offset & 0xFC


# ---- configuration space ----


def test_config_access():
    bus = Bus()
    slot = bus.add(recorder())
    assert bus.config_read(0, slot, 0, 0, 4) == 0x10001AF4
    for where in ((1, slot, 0), (0, slot + 1, 0), (0, slot, 1), (255, 31, 7)):
        for size in (1, 2, 4):
            assert bus.config_read(*where, 0, size) == (1 << 8 * size) - 1
        bus.config_write(*where, 0x3C, 1, 9)
    assert bus.config_read(0, slot, 0, 0x3C, 1) == 0
    bus.config_write(0, slot, 0, 0x3C, 1, 9)
    assert bus.config_read(0, slot, 0, 0x3C, 1) == 9


@pytest.mark.parametrize("width", [1, 2, 4])
def test_mechanism_1_reads_all_of_all(width):
    """Each offset, at each width, through the window of four ports, is what the function shows."""
    bus = Bus()
    functions = {slot: recorder(vectors=slot + 1) for slot in (0, 3, 31)}
    for slot, function in functions.items():
        bus.add(function, slot)
    for slot, function in functions.items():
        for offset in range(256):
            lane = offset & 3
            if lane + width <= 4:
                bus.io_write(ADDRESS, 4, selection(slot, offset))
                assert bus.io_read(DATA + lane, width) == function.config_read(offset, width)
    for wrong in ({"bus": 1}, {"function": 1}, {"enable": False}, {"slot": 5}):
        bus.io_write(ADDRESS, 4, selection(**{"slot": 3, "offset": 0} | wrong))
        assert bus.io_read(DATA, width) == (1 << 8 * width) - 1


@pytest.mark.parametrize("width", [1, 2, 4])
def test_mechanism_1_writes(width):
    bus, function = Bus(), recorder()
    bus.add(function, 7)
    for offset in range(256):
        lane = offset & 3
        if lane + width <= 4:
            before = [function.config_read(i, 1) for i in range(256)]
            bus.io_write(ADDRESS, 4, selection(7, offset))
            bus.io_write(DATA + lane, width, 0xA5A5A5A5)
            after = [function.config_read(i, 1) for i in range(256)]
            function.reset()
            function.config_write(offset, width, 0xA5A5A5A5)
            assert [function.config_read(i, 1) for i in range(256)] == after
            function.reset()
            assert before == [function.config_read(i, 1) for i in range(256)]
    bus.io_write(ADDRESS, 4, selection(7, 0x3C, enable=False))
    bus.io_write(DATA, width, 0x5A)
    assert function.config_read(0x3C, 1) == 0


def test_the_address_register_takes_32_bits_at_once():
    bus = Bus()
    bus.add(recorder(), 1)
    bus.io_write(ADDRESS, 4, 0xFFFFFFFF)
    assert bus.io_read(ADDRESS, 4) == 0x80FFFFFC
    bus.io_write(ADDRESS, 4, selection(1, 0))
    for port, size in ((0xCF8, 1), (0xCF9, 1), (0xCFA, 2), (0xCF8, 2), (0xCF7, 4), (0xCF9, 4), (0xCF6, 4)):
        bus.io_write(port, size, 0)
        assert bus.io_read(ADDRESS, 4) == selection(1, 0)
        assert bus.io_read(0xCF8, 2) == 0xFFFF and bus.io_read(0xCF9, 1) == 0xFF
    # an access that ends in the data window reads that part of it: it is four accesses
    assert bus.io_read(0xCFA, 4) == 0x1AF4FFFF
    assert bus.io_read(0xCFE, 4) == 0xFFFF1000


# ---- BARs ----


def test_ports_and_memory_are_where_the_bars_say():
    bus = Bus()
    first, second = recorder(), recorder()
    bus.add(first), bus.add(second)
    place(first, 0xC000, 0xFEB00000)
    place(second, 0xC040, 0xFEB01000)
    second.write(0x0E, 2, 2)
    for offset in range(0x60 - 0x20):
        for size in (1, 2, 4):
            if offset + size <= 0x40:
                assert bus.io_read(0xC000 + offset, size) == first.read(offset, size)
                assert bus.io_read(0xC040 + offset, size) == second.read(offset, size)
    bus.io_write(0xC00E, 2, 1)
    assert (first.read(0x0E, 2), second.read(0x0E, 2)) == (1, 2)
    bus.mem_write(0xFEB01010, 8, 0x123456789ABCDEF0)
    assert second.memory_read(0x10, 8) == 0x123456789ABCDEF0 == bus.mem_read(0xFEB01010, 8)
    assert first.memory_read(0x10, 8) == 0 == bus.mem_read(0xFEB00010, 8)
    # moved, and decoded no more
    first.config_write(BAR0, 4, 0xD000)
    assert bus.io_read(0xC00E, 2) == 0xFFFF and bus.io_read(0xD00E, 2) == 1
    first.config_write(COMMAND, 2, 2)
    assert bus.io_read(0xD00E, 2) == 0xFFFF and bus.mem_read(0xFEB0000C, 4) == 1
    first.config_write(COMMAND, 2, 1)
    assert bus.io_read(0xD00E, 2) == 1 and bus.mem_read(0xFEB0000C, 4) == 0xFFFFFFFF
    bus.io_write(0xC00E, 2, 5)
    bus.mem_write(0xFEB0000C, 4, 0)
    assert first.read(0x0E, 2) == 1 and first.memory_read(0x0C, 4) == 1


def test_nothing_is_anywhere_else():
    bus = Bus()
    bus.add(recorder())
    for size in (1, 2, 4, 8):
        for address in (0, 0x80, 0xFFFF, 0xFFFFFFFF, 1 << 40):
            bus.io_write(address, size, 0)
            bus.mem_write(address, size, 0)
            assert bus.io_read(address, size) == bus.mem_read(address, size) == (1 << 8 * size) - 1


def test_an_access_over_the_edge_of_a_bar_is_one_of_each_byte():
    bus = Bus()
    first, second = recorder(), recorder()
    bus.add(second), bus.add(first)
    place(first, 0xC000, 0xFEB00000)
    place(second, 0xC040, 0xFEB01000)
    assert bus.io_read(0xBFFE, 4) == first.read(0, 2) << 16 | 0xFFFF
    assert bus.io_read(0xC03E, 4) == 0xFFFF | second.read(0, 2) << 16
    assert bus.mem_read(0xFEB00FFC, 8) == 0
    bus.mem_write(0xFEB00FFC, 8, 0xAABBCCDD_11223344)
    assert second.memory_read(0, 4) == 0xAABBCCDC and first.memory_read(0xFFC, 4) == 0
    assert bus.mem_read(0xFEB00FFE, 4) == 0xCCDC0000


def test_a_write_over_the_edge_of_a_bar_is_one_of_each_byte():
    device = Recorder()
    device.config = bytearray(40)  # up to the last of 64 ports, with MSI-X
    bus, function = Bus(), LegacyFunction(device, MEMORY)
    bus.add(function)
    place(function, 0xC000, 0)
    function.config_write(0x42, 2, 0x8000)
    bus.io_write(0xC03C, 8, 0x88776655_44332211)
    bus.io_write(0xC03D, 4, 0xDDCCBBAA)
    assert device.config == bytes(36) + b"\x11\xaa\xbb\xcc"
    bus.io_write(0xC03F, 2, 0x55EE)
    assert device.config[-1] == 0xEE
    function.config_write(BAR1, 4, 0xFEB00000)
    bus.mem_write(0xFEAFFFFF, 2, 0xF055)
    assert function.memory_read(0, 1) == 0xF0
    bus.io_write(0xBFF9, 8, 0x01020304_05060708)  # the offered features: read-only
    assert bus.io_read(0xC000, 4) == device.device_features & 0xFFFFFFFF


def test_the_lowest_slot_answers_where_bars_overlap():
    bus = Bus()
    low, high = recorder(), recorder()
    bus.add(high, 9), bus.add(low, 2)
    for function in (low, high):
        place(function, 0xC000, 0xFEB00000)
    bus.io_write(0xC00E, 2, 3)
    assert (low.read(0x0E, 2), high.read(0x0E, 2)) == (3, 0)


def test_the_configuration_ports_go_before_bars():
    bus, function = Bus(), recorder()
    bus.add(function)
    place(function, 0xCC0, 0)
    bus.io_write(ADDRESS, 4, selection(0, 0))
    assert bus.io_read(DATA, 4) == 0x10001AF4
    assert bus.io_read(0xCC0 + 0x0C, 2) == 256
    place(function, 0xD00, 0)
    bus.io_write(0xD0E, 2, 1)
    for size in (1, 2, 4):
        assert bus.io_read(0xD00, size) == function.read(0, size)
    bus.io_write(0xD04, 1, 1 << 5)
    assert function.read(4, 4) == 1 << 5 and function.read(0x0E, 2) == 1
    device = Recorder()
    device.config = bytearray(0x700)
    wide = LegacyFunction(device, MEMORY)  # 2048 ports from 0x800: the one at 0xd00 is past the configuration ports
    bus, place_at = Bus(), 0x800
    bus.add(wide)
    place(wide, place_at, 0)
    offset = 0xD00 - place_at - 0x14
    bus.io_write(0xD00, 1, 0x5A)
    assert device.config[offset] == 0x5A and bus.io_read(0xD00, 1) == 0x5A
    bus.io_write(0xCFF, 1, 0x5A)
    assert device.config[offset - 1] == 0 and bus.io_read(0xCFF, 1) == 0xFF


# ---- slots, lines, state ----


def test_slots():
    bus = Bus()
    assert [bus.add(recorder()), bus.add(recorder(), 5), bus.add(recorder())] == [0, 5, 1]
    for slot in (5, -1, 32):
        with pytest.raises(ConfigError, match=f"slot {slot} "):
            bus.add(recorder(), slot)
    assert list(bus.functions) == [0, 1, 5]
    for _ in range(29):
        bus.add(recorder())
    with pytest.raises(ConfigError, match="slot 32"):
        bus.add(recorder())


def test_each_slot_has_a_line_which_it_shares():
    told: list[tuple[int, bool]] = []
    bus = Bus(intx=lambda line, level: told.append((line, level)))
    functions = {slot: recorder() for slot in (0, 1, 5, 30)}
    for slot, function in functions.items():
        bus.add(function, slot)
        function.write(0x12, 1, 7)
    assert [bus.line(slot) for slot in functions] == [0, 1, 1, 2]
    functions[1].device.interrupt(0)
    functions[5].device.interrupt(0)
    functions[30].device.interrupt(0)
    assert told == [(1, True), (2, True)]
    functions[1].read(0x13, 1)
    assert told == [(1, True), (2, True)]
    functions[5].read(0x13, 1)
    assert told == [(1, True), (2, True), (1, False)]


def test_a_function_with_a_listener_of_its_own_keeps_it():
    levels: list[bool] = []
    told: list[tuple[int, bool]] = []
    bus = Bus(intx=lambda line, level: told.append((line, level)))
    function = LegacyFunction(Recorder(), MEMORY, intx=levels.append)
    bus.add(function)
    function.write(0x12, 1, 7)
    function.device.interrupt(0)
    assert levels == [True] and told == []


def test_reset_and_snapshot():
    def machine() -> tuple[Bus, list[LegacyFunction]]:
        bus, functions = Bus(), [recorder(), recorder()]
        for slot, function in zip((4, 2), functions, strict=True):
            bus.add(function, slot)
        return bus, functions

    bus, functions = machine()
    place(functions[0], 0xC000, 0xFEB00000)
    functions[1].write(0x0E, 2, 1)
    bus.io_write(ADDRESS, 4, selection(4, 0x10))
    state = json.loads(json.dumps(bus.snapshot()))
    other, others = machine()
    other.restore(state)
    assert other.snapshot() == bus.snapshot()
    assert other.io_read(DATA, 4) == 0xC001 and other.io_read(0xC00C, 2) == 256 and others[1].read(0x0E, 2) == 1
    other.reset()
    assert other.snapshot() == machine()[0].snapshot()
    other.add(recorder())
    with pytest.raises(ConfigError, match=r"functions\.0 is missing"):
        other.restore(state)


# ---- a device, driven by register accesses alone ----


class PortDriver:
    """A guest's entropy driver, written in port accesses: it knows a slot and nothing else."""

    def __init__(self, bus: Bus, memory: GuestMemory, slot: int, port: int, page: int) -> None:
        self.bus, self.memory, self.slot, self.port = bus, memory, slot, port
        self.config(BAR0, 4, port)
        self.config(COMMAND, 2, 5)
        self.ring = page << 12
        for status in (0, 1, 3):
            bus.io_write(port + 0x12, 1, status)
        bus.io_write(port + 4, 4, 0)
        bus.io_write(port + 0xE, 2, 0)
        self.size = bus.io_read(port + 0xC, 2)
        memory.write(self.ring, bytes(3 << 12))
        bus.io_write(port + 8, 4, page)
        bus.io_write(port + 0x12, 1, 7)
        self.avail = self.ring + 16 * self.size
        self.used = (self.avail + 6 + 2 * self.size + 4095) & ~4095
        self.buffer = self.used + 4096
        self.count = 0

    def config(self, offset: int, size: int, value: int) -> None:
        self.bus.io_write(ADDRESS, 4, selection(self.slot, offset))
        self.bus.io_write(DATA + (offset & 3), size, value)

    def ask(self, length: int) -> bytes:
        """Put a buffer of ``length`` bytes into the ring, kick, and return what the device wrote."""
        memory = self.memory
        memory.write(self.buffer, bytes(length))
        descriptor = self.buffer.to_bytes(8, "little") + length.to_bytes(4, "little") + b"\2\0\0\0"
        memory.write(self.ring, descriptor)
        memory.write_u16(self.avail + 4 + 2 * (self.count % self.size), 0)
        self.count += 1
        memory.write_u16(self.avail + 2, self.count & 0xFFFF)
        self.bus.io_write(self.port + 0x10, 2, 0)
        assert memory.read_u16(self.used + 2) == self.count & 0xFFFF
        assert memory.read_u32(self.used + 8 + 8 * ((self.count - 1) % self.size)) == length
        return memory.read(self.buffer, length)


def test_an_entropy_device_driven_by_registers_alone():
    memory = GuestMemory.allocate(1 << 20)
    levels: list[tuple[int, bool]] = []
    bus = Bus(intx=lambda line, level: levels.append((line, level)))
    slot = bus.add(LegacyFunction(Entropy(), memory), 3)
    bus.io_write(ADDRESS, 4, selection(slot, 0))
    assert bus.io_read(DATA, 4) == 0x10051AF4
    driver = PortDriver(bus, memory, slot, 0xC000, 16)
    assert driver.size == 256
    seen = set()
    for n in range(300):  # around the ring
        seen.add(driver.ask(32))
        assert levels == [(3, True)]
        assert bus.io_read(0xC013, 1) == 1
        assert levels == [(3, True), (3, False)]
        levels.clear()
        assert len(seen) == n + 1
    assert bus.io_read(0xC013, 1) == 0


class Greedy(Device):
    """Reads and writes whatever its ring says."""

    device_type = 2
    features = Device.features

    def __init__(self) -> None:
        self.config = bytearray(30)
        super().__init__()

    def queue_sizes(self) -> tuple[int, ...]:
        return 8, 16

    def config_written(self, offset: int, data: bytes) -> bool:
        self.config[offset : offset + len(data)] = data
        return True

    def notified(self, index: int) -> None:
        for chain in self.chains(index):
            chain.write(chain.read(64)[: chain.writable_length])


class HostileGuest(RuleBasedStateMachine):
    """Garbage to one function, by all ways there are: nothing raises, and another function of the bus goes on.

    The guest's memory is garbage too, but for the honest driver's pages, which are memory of its own.
    """

    any_size = st.integers(1, 8)
    any_value = st.integers(0, (1 << 64) - 1) | st.sampled_from([0, 1, 2, 3, 4, 7, 0x10, 0xFFFFFFFF])

    @initialize(seed=st.binary(min_size=1, max_size=64))
    def begin(self, seed: bytes) -> None:
        self.memory, honest_memory = GuestMemory.allocate(1 << 20), GuestMemory.allocate(1 << 16)
        self.memory.write(0, (seed * ((1 << 20) // len(seed) + 1))[: 1 << 20])
        self.bus = Bus(intx=lambda line, level: None)
        honest = LegacyFunction(Entropy(), honest_memory)
        self.bus.add(honest, 0)
        self.hostile = LegacyFunction(Greedy(), self.memory, message=lambda address, data: None)
        self.bus.add(self.hostile, 1)
        self.driver = PortDriver(self.bus, honest_memory, 0, 0xC100, 2)
        place(self.hostile, 0xC000, 0xFEB00000)

    @rule(offset=st.integers(0, 300), size=any_size, value=any_value)
    def config(self, offset: int, size: int, value: int) -> None:
        self.hostile.config_write(offset, size, value)
        self.hostile.config_read(offset, size)

    @rule(offset=st.integers(0, 0x50), size=any_size, value=any_value)
    def register(self, offset: int, size: int, value: int) -> None:
        self.hostile.write(offset, size, value)
        self.hostile.read(offset, size)

    @rule(offset=st.integers(0, 64) | st.integers(0, 5000), size=any_size, value=any_value)
    def table(self, offset: int, size: int, value: int) -> None:
        self.hostile.memory_write(offset, size, value)
        self.hostile.memory_read(offset, size)

    @rule(port=st.integers(0xBFF8, 0xC0F0), size=any_size, value=any_value)
    def ports(self, port: int, size: int, value: int) -> None:
        self.bus.io_write(port, size, value)
        self.bus.io_read(port, size)

    @rule(address=st.integers(0xFEAFFFF8, 0xFEB01008), size=any_size, value=any_value)
    def window(self, address: int, size: int, value: int) -> None:
        self.bus.mem_write(address, size, value)
        self.bus.mem_read(address, size)

    @rule(offset=st.integers(0, 255), port=st.integers(0xCF0, 0xCFF), size=any_size, value=any_value)
    def mechanism(self, offset: int, port: int, size: int, value: int) -> None:
        self.bus.io_write(ADDRESS, 4, selection(1, offset))
        if port + size <= ADDRESS or port >= DATA:
            self.bus.io_write(port, size, value)
        self.bus.io_read(port, size)

    @rule(queue=st.integers(0, 2), pfn=st.integers(0, 300))
    def set_up(self, queue: int, pfn: int) -> None:
        """Get so far that the garbage in memory is a ring."""
        for offset, size, value in ((0x12, 1, 3), (0x0E, 2, queue), (0x08, 4, pfn), (0x12, 1, 7), (0x10, 2, queue)):
            self.hostile.write(offset, size, value)

    @rule(gpa=st.integers(0, (1 << 20) - 64), data=st.binary(min_size=1, max_size=64))
    def scribble(self, gpa: int, data: bytes) -> None:
        self.memory.write(gpa, data)

    @rule()
    def reset(self) -> None:
        self.hostile.write(0x12, 1, 0)

    @rule()
    def snapshot(self) -> None:
        self.hostile.restore(json.loads(json.dumps(self.hostile.snapshot())))

    @rule(length=st.integers(16, 2048))
    def honest(self, length: int) -> None:
        assert self.driver.ask(length) != bytes(length)
        assert self.bus.io_read(0xC113, 1) == 1


TestHostileGuest = HostileGuest.TestCase
TestHostileGuest.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize("size", [0, 9, 1 << 31, -1])
def test_sizes_that_no_bus_has(size: int) -> None:
    bus = Bus()
    for access in (bus.io_read, bus.mem_read):
        with pytest.raises(ValueError, match=f"access of {size} bytes"):
            access(0xC000, size)
    for write in (bus.io_write, bus.mem_write):
        with pytest.raises(ValueError, match=f"access of {size} bytes"):
            write(0xC000, size, 0)


def test_a_function_leaves_its_slot() -> None:
    levels: list[tuple[int, bool]] = []
    bus = Bus(lambda line, level: levels.append((line, level)))
    function = LegacyFunction(Recorder(), MEMORY)
    bus.add(function, 3)
    function.intx(True)
    assert bus.remove(3) is function
    assert levels == [(3, True), (3, False)]
    assert function.intx is None
    assert bus.config_read(0, 3, 0, 0, 4) == 0xFFFFFFFF
    with pytest.raises(ConfigError, match="slot 3 is empty"):
        bus.remove(3)
    assert bus.add(function, 3) == 3
