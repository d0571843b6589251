"""The registers of the legacy interface: each offset, each width, MSI-X on and off, against a model of the table."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from legacy_model import CONFIG, MEMORY, NEEDS_RESET, OFFERED, OWN, SIZES, VECTORS, Model, Recorder

from virtio import GuestMemory, QueueLayout
from virtio.errors import ConfigError
from virtio.pci import LegacyFunction

COMMAND, MSIX_CONTROL = 4, 0x42
ENABLE = 1 << 15
MEMORY_OF_ALL = GuestMemory.allocate(MEMORY)
WIDTHS = (1, 2, 4)
OFFSETS = range(0x61)
ACCESSES = list(itertools.product(OFFSETS, WIDTHS))


class Twins:
    """A function, and the model of it; both get the same accesses."""

    def __init__(self, *, msix: bool = False, vectors: int = VECTORS) -> None:
        self.device = Recorder()
        self.model = Model(vectors)
        self.levels: list[bool] = []
        self.messages: list[int] = []
        self.function = LegacyFunction(
            self.device,
            MEMORY_OF_ALL,
            intx=self.levels.append,
            message=lambda address, data: self.messages.append(data),
            vectors=vectors,
        )
        self.function.config_write(COMMAND, 2, 7)
        for vector in range(vectors):
            self.function.memory_write(16 * vector + 8, 4, vector)
            self.function.memory_write(16 * vector + 12, 4, 0)
        self.set_msix(msix)

    def set_msix(self, on: bool) -> None:
        assert self.function.config_read(0x40, 1) == 0x11
        self.function.config_write(MSIX_CONTROL, 2, ENABLE if on else 0)
        self.model.msix = on

    def write(self, offset: int, size: int, value: int) -> None:
        self.function.write(offset, size, value)
        self.model.write(offset, size, value)

    def read(self, offset: int, size: int) -> int:
        value, expected = self.function.read(offset, size), self.model.read(offset, size)
        assert value == expected, f"{size} bytes at {offset:#x} read {value:#x}, not {expected:#x}"
        return value

    def interrupt(self, queue: int) -> None:
        self.device.interrupt(queue)
        self.model.interrupt(1, self.model.raw_queue_vectors[queue])

    def interrupt_config(self) -> None:
        self.device.config_changed()
        if self.model.status & 4:
            self.model.interrupt(2, self.model.raw_config_vector)

    def compare(self) -> None:
        """Compare all that can be told of either without changing it (but the ISR, which is compared last)."""
        model, device, function = self.model, self.device, self.function
        assert device.status == model.status
        assert device.negotiated == model.negotiated
        assert [slot.layout for slot in device.queues] == model.layouts
        assert [slot.kick.rings for slot in device.queues] == model.kicks
        assert bytes(device.config) == bytes(model.config)
        assert self.messages == model.messages
        assert (self.levels[-1:] == [True]) == (model.asserted and not model.msix)
        image = model.image()
        for offset in (*range(0x13), *range(0x14, 0x64)):
            assert function.read(offset, 1) == image[offset], f"{offset:#x}"
        selected = model.select
        for queue in (*range(len(SIZES)), len(SIZES), 0xFFFF):
            self.write(0x0E, 2, queue)
            for offset, size in ((0x08, 4), (0x0C, 2), (0x14, 2), (0x16, 2)):
                self.read(offset, size)
        self.write(0x0E, 2, selected)
        self.read(0x13, 1)
        self.read(0x13, 1)

    def bring_up(self, status: int = 7) -> None:
        """Put something of its own into each register."""
        self.write(0x12, 1, 1)
        self.write(0x12, 1, 3)
        self.write(0x04, 4, OWN | 1 << 29)
        for queue in range(len(SIZES)):
            self.write(0x0E, 2, queue)
            self.write(0x08, 4, 0x123 + 16 * queue)
        on = self.model.msix
        self.set_msix(True)
        for queue in range(len(SIZES)):
            self.write(0x0E, 2, queue)
            self.write(0x16, 2, queue % VECTORS)
        self.write(0x14, 2, 2)
        self.set_msix(False)  # with INTx, so that the ISR has something to show
        self.write(0x0E, 2, 1)
        self.write(0x12, 1, status)
        self.interrupt(0)
        self.interrupt_config()
        self.set_msix(on)


@pytest.fixture(params=[False, True], ids=["intx", "msix"])
def msix(request) -> bool:
    return request.param


# ---- one access each ----


def test_the_registers_after_reset(msix):
    twins = Twins(msix=msix)
    assert twins.read(0, 4) == OFFERED
    assert twins.read(4, 4) == 0 and twins.read(8, 4) == 0
    assert twins.read(0xC, 2) == SIZES[0] and twins.read(0xE, 2) == 0
    assert twins.read(0x12, 1) == 0 and twins.read(0x13, 1) == 0
    if msix:
        assert twins.read(0x14, 4) == 0xFFFFFFFF
    assert twins.read(0x18 if msix else 0x14, 1) == CONFIG[0]
    twins.compare()


@pytest.mark.parametrize("width", WIDTHS)
def test_read(msix, width):
    """Each offset: the bytes are the model's, and nothing but the ISR changes."""
    for offset in OFFSETS:
        twins = Twins(msix=msix)
        twins.bring_up()
        value = twins.read(offset, width)
        if not offset <= 0x13 < offset + width:
            assert value == int.from_bytes(twins.model.image()[offset : offset + width], "little")
        twins.compare()


PATTERNS = (0, 0xFFFFFFFF, 0x00000001, 0x01020304, 0x80402010, 0x00010000)


@pytest.mark.parametrize("pattern", PATTERNS, ids=hex)
@pytest.mark.parametrize("state", ["reset", "up"])
def test_write(msix, state, pattern):
    """Each offset, each width: all that a write does is what it does to the model."""
    for offset, width in ACCESSES:
        twins = Twins(msix=msix)
        if state == "up":
            twins.bring_up()
        twins.write(offset, width, pattern & (1 << 8 * width) - 1)
        twins.compare()


def test_every_width_reads_the_same_bytes(msix):
    """4, 2 and 1 bytes at a time, aligned and not, and 8, give the same bytes; the ISR (read first) is 0."""
    twins = Twins(msix=msix)
    twins.bring_up()
    twins.read(0x13, 1)
    read = twins.function.read
    image = bytes(read(offset, 1) for offset in range(0x60))
    for width in (2, 3, 4, 8):
        for offset in range(0x60 - width):
            assert read(offset, width).to_bytes(width, "little") == image[offset : offset + width]


@pytest.mark.parametrize("order", ["up", "down"])
@pytest.mark.parametrize(("offset", "size"), [(0x04, 4), (0x0E, 2), (0x14, 2), (0x16, 2), (0x18, 4)])
@pytest.mark.parametrize("value", [OWN & ~1, 0x00000102, 0x00020001, 2])
def test_a_register_written_byte_by_byte_is_one_written_at_once(offset, size, value, order):
    """In any order: vectors pass through refused values (0xff02), features through sets that lack what they need."""
    at_once, by_bytes = Twins(msix=True), Twins(msix=True)
    at_once.write(offset, size, value & (1 << 8 * size) - 1)
    for i in range(size) if order == "up" else reversed(range(size)):
        by_bytes.write(offset + i, 1, value >> 8 * i & 0xFF)
    assert by_bytes.model.image() == at_once.model.image()
    by_bytes.compare()


# ---- what each register means ----


def test_only_32_feature_bits_and_only_offered_ones():
    twins = Twins()
    twins.write(0x04, 4, 0xFFFFFFFF)
    assert twins.read(4, 4) == OFFERED == twins.device.negotiated
    assert twins.device.offered >> 32 and twins.device.refused


def test_a_feature_without_what_it_needs_is_not_negotiated():
    twins = Twins()
    twins.write(0x04, 4, 1 << 11 | 1 << 5)  # HOST_TSO4 and MAC, without CSUM
    assert twins.read(4, 4) == 1 << 5
    assert "HOST_TSO4" in str(twins.device.refused[-1])


def test_queue_address():
    twins = Twins()
    twins.write(0x0E, 2, 1)
    twins.write(0x08, 4, 0x321)
    assert twins.device.queues[1].layout == QueueLayout.legacy(SIZES[1], 0x321000)
    assert twins.read(0x08, 4) == 0x321
    twins.write(0x08, 4, 0x322)  # moved, without having been stopped
    assert twins.device.queues[1].layout == QueueLayout.legacy(SIZES[1], 0x322000)
    twins.write(0x08, 4, 0)
    assert twins.device.queues[1].layout is None and not twins.device.queues[1].enabled
    assert twins.device.status == 0
    twins.compare()


def test_queue_address_takes_effect_with_its_last_byte():
    twins = Twins()
    twins.write(0x08, 2, 0x321)
    assert twins.device.queues[0].layout is None and twins.read(0x08, 4) == 0x321
    twins.write(0x0A, 2, 0)
    assert twins.device.queues[0].layout == QueueLayout.legacy(SIZES[0], 0x321000)
    twins.compare()


@pytest.mark.parametrize("pfn", [MEMORY >> 12, (MEMORY >> 12) - 1, 0xFFFFFFFF])
def test_a_queue_outside_of_memory(pfn):
    twins = Twins()
    twins.write(0x12, 1, 7)
    twins.write(0x08, 4, pfn)
    assert twins.read(0x12, 1) == 7 | NEEDS_RESET
    assert twins.read(0x13, 1) == 2
    twins.write(0x12, 1, 0)
    twins.compare()


def test_queues_that_are_not_there():
    twins = Twins(msix=True)
    for queue in (len(SIZES), 0x100, 0xFFFF):
        twins.write(0x0E, 2, queue)
        assert twins.read(0x0C, 2) == 0 and twins.read(0x0E, 2) == queue
        twins.write(0x08, 4, 0x100)
        twins.write(0x16, 2, 1)
        assert twins.read(0x08, 4) == 0 and twins.read(0x16, 2) == 0xFFFF
        twins.write(0x10, 2, queue)
    twins.compare()
    assert twins.device.counters["queue"] == 3  # each kick, and nothing else


def test_notify_once_for_each_write():
    twins = Twins()
    twins.write(0x10, 2, 1)
    assert [slot.kick.rings for slot in twins.device.queues] == [0, 1, 0]
    twins.write(0x10, 1, 2)
    assert [slot.kick.rings for slot in twins.device.queues] == [0, 1, 1]
    twins.write(0x11, 1, 0)  # the high byte alone names no queue
    assert [slot.kick.rings for slot in twins.device.queues] == [0, 1, 1]
    twins.write(0x0E, 4, 0x00020001)  # select queue 1, and kick queue 2
    assert twins.read(0x0E, 2) == 1
    assert [slot.kick.rings for slot in twins.device.queues] == [0, 1, 2]
    twins.write(0x10, 4, 0x00010000)  # kick queue 0, and status 1
    assert [slot.kick.rings for slot in twins.device.queues] == [1, 1, 2]
    assert twins.device.status == 1


def test_status_bits_add_up_and_0_resets():
    twins = Twins(msix=True)
    twins.bring_up()
    twins.write(0x12, 1, 6)
    assert twins.read(0x12, 1) == 7
    twins.write(0x12, 1, 0)
    assert twins.read(0x12, 1) == 0 and twins.read(0x04, 4) == 0
    for queue in range(len(SIZES)):
        twins.write(0x0E, 2, queue)
        assert twins.read(0x08, 4) == 0 and twins.read(0x16, 2) == 0xFFFF
    assert twins.read(0x14, 2) == 0xFFFF and twins.read(0x13, 1) == 0
    assert twins.function.msix_enabled  # that is not the device's to reset
    twins.compare()


def test_reset_and_what_follows_in_one_access():
    twins = Twins(msix=True)
    twins.bring_up()
    twins.write(0x12, 4, 0x00010000)  # status 0, ISR, vector 1 for the configuration
    assert twins.device.status == 0
    assert twins.read(0x14, 2) == 1
    twins.compare()


@pytest.mark.parametrize(("offset", "width"), [(0x13, 1), (0x13, 2), (0x13, 4)])
def test_isr_is_cleared_by_a_read_that_begins_with_it(offset, width):
    twins = Twins()
    twins.bring_up()
    assert twins.levels == [True]
    assert twins.read(offset, width) & 0xFF == 3
    assert twins.levels == [True, False]
    assert twins.read(0x13, 1) == 0
    assert twins.levels == [True, False]


@pytest.mark.parametrize(("offset", "width"), [(0x12, 1), (0x12, 2), (0x10, 4), (0x11, 4), (0x0E, 8)])
def test_isr_is_not_cleared_by_a_read_of_what_is_before_it(offset, width):
    """As in QEMU: a driver that reads the status by 16 bits loses no interrupt by it."""
    twins = Twins()
    twins.bring_up()
    assert twins.read(offset, width) >> 8 * (0x13 - offset) & 0xFF == 0
    assert twins.levels == [True]
    assert twins.read(0x13, 1) == 3


def test_isr_is_set_with_msix_too():
    """As in QEMU: virtio-win of 2015 polls it in MSI mode when it hibernates. The line is another matter."""
    twins = Twins(msix=True)
    twins.bring_up()
    twins.read(0x13, 1)
    twins.interrupt(1)
    assert twins.messages == [1] and twins.read(0x13, 1) == 1
    twins.interrupt_config()
    assert twins.messages == [1, 2]
    twins.set_msix(False)
    assert twins.levels[-1:] != [True] and twins.read(0x13, 1) == 2


@pytest.mark.parametrize("up", [False, True])
def test_address_0_resets_the_device(up):
    """As in QEMU. Linux and FreeBSD write it to each queue when they let go of it, after a reset."""
    twins = Twins()
    if up:
        twins.bring_up()
        twins.write(0x0E, 2, 1)
    twins.write(0x08, 4, 0)
    assert twins.device.status == 0 and twins.device.negotiated == 0
    assert all(slot.layout is None for slot in twins.device.queues)
    twins.compare()


@pytest.mark.parametrize("vectors", [1, 3, 200])
def test_vectors_that_do_not_exist_are_refused(vectors):
    twins = Twins(msix=True, vectors=vectors)
    for register in (0x14, 0x16):
        for vector in (vectors - 1, vectors, vectors - 1, 0xFFFF, 0x100):
            twins.write(register, 2, vector)
            assert twins.read(register, 2) == (vector if vector < vectors else 0xFFFF)
    twins.compare()


# ---- the device's own configuration ----


def test_the_configuration_moves_when_msix_is_switched():
    twins = Twins()
    assert [twins.read(0x14 + i, 1) for i in range(23)] == list(CONFIG)
    twins.set_msix(True)
    assert [twins.read(0x18 + i, 1) for i in range(23)] == list(CONFIG)
    twins.write(0x18, 1, 0xAA)
    twins.set_msix(False)
    assert twins.read(0x14, 1) == 0xAA
    twins.compare()


def test_the_configuration_moves_between_two_halves_of_a_field():
    """A driver reads a field in bytes, MSI-X is switched meanwhile: each access is of its own moment."""
    twins = Twins()
    low = twins.read(0x14, 2)
    twins.set_msix(True)
    high = twins.read(0x16, 2)
    assert low == 0x4140 and high == 0xFFFF  # a vector now
    assert twins.read(0x18, 4) == 0x43424140
    twins.compare()


def test_the_configuration_moves_within_an_access():
    """A device that makes the bus switch MSI-X from its hook: the access ends as it began."""

    class Switcher(Recorder):
        def config_written(self, offset: int, data: bytes) -> bool:
            function.config_write(MSIX_CONTROL, 2, ENABLE)
            return super().config_written(offset, data)

        def read_config(self, offset: int, size: int) -> bytes:
            function.config_write(MSIX_CONTROL, 2, ENABLE)
            return super().read_config(offset, size)

    device = Switcher()
    function = LegacyFunction(device, MEMORY_OF_ALL)
    function.write(0x12, 4, 0xBBAA0001)  # status, ISR, two bytes of the configuration
    assert function.msix_enabled and bytes(device.config[:3]) == b"\xaa\xbb\x42" and device.status == 1
    function.config_write(MSIX_CONTROL, 2, 0)
    assert function.read(0x13, 4) == 0x42BBAA00 and function.msix_enabled


def test_a_change_of_the_configuration():
    twins = Twins()
    twins.bring_up()
    twins.read(0x13, 1)
    generation = twins.device.generation
    twins.device.config[3] = twins.model.config[3] = 0x99
    twins.interrupt_config()
    assert twins.device.generation == generation + 1
    assert twins.read(0x13, 1) == 2 and twins.read(0x17, 1) == 0x99


def test_past_the_configuration_are_ones():
    twins = Twins()
    assert twins.read(0x14 + 22, 4) == 0xFFFFFF00 | CONFIG[22]
    twins.write(0x14 + 22, 4, 0x12345678)
    assert twins.device.config[22] == 0x78 and len(twins.device.config) == 23
    for size in (1, 2, 4, 8):
        assert twins.function.read(0x10000, size) == (1 << 8 * size) - 1
        twins.function.write(0x10000, size, 0)
    twins.compare()


def test_a_read_only_configuration_is_left_alone():
    class ReadOnly(Recorder):
        def config_written(self, offset: int, data: bytes) -> bool:
            return False

    device = ReadOnly()
    function = LegacyFunction(device, MEMORY_OF_ALL)
    function.write(0x14, 4, 0)
    assert bytes(device.config) == CONFIG and device.counters["config"] == 1


# ---- shapes that are refused ----


@pytest.mark.parametrize(("offset", "size"), [(0, 0), (0, 9), (-1, 1), (4, -4)])
def test_accesses_that_no_bus_makes(offset, size):
    function = LegacyFunction(Recorder(), MEMORY_OF_ALL)
    for read in (function.read, function.config_read, function.memory_read):
        with pytest.raises(ValueError, match="1 to 8 bytes"):
            read(offset, size)
    for write in (function.write, function.config_write, function.memory_write):
        with pytest.raises(ValueError, match="1 to 8 bytes"):
            write(offset, size, 0)


def test_values_are_cut_to_the_width():
    twins = Twins()
    twins.function.write(0x0E, 2, 0x12340001)
    assert twins.function.read(0x0E, 4) == 0xFFFF0001
    twins.function.write(0x10, 2, 0x10001)
    assert twins.device.queues[1].kick.rings == 1
    twins.function.write(0x0E, 2, -1)
    assert twins.function.read(0x0E, 2) == 0xFFFF


@pytest.mark.parametrize("size", [3, 6, 100, 32767])
def test_queue_sizes_that_the_legacy_interface_cannot_have(size):
    class Odd(Recorder):
        def queue_sizes(self) -> tuple[int, ...]:
            return 256, size

    with pytest.raises(ConfigError, match=f"queue 1 has size {size}"):
        LegacyFunction(Odd(), MEMORY_OF_ALL)


def test_queue_sizes_that_it_can_have():
    class Powers(Recorder):
        def queue_sizes(self) -> tuple[int, ...]:
            return tuple(1 << n for n in range(16))

    function = LegacyFunction(Powers(), MEMORY_OF_ALL)
    for n in range(16):
        function.write(0x0E, 2, n)
        assert function.read(0x0C, 2) == 1 << n


# ---- any sequence ----


class Registers(RuleBasedStateMachine):
    """Any accesses in any order, interrupts and switches of MSI-X among them: function and model stay the same."""

    @initialize(msix=st.booleans(), up=st.booleans())
    def begin(self, msix: bool, up: bool) -> None:
        self.twins = Twins(msix=msix)
        if up:
            self.twins.bring_up()

    @rule(offset=st.integers(0, 0x32), size=st.integers(1, 8))
    def read(self, offset: int, size: int) -> None:
        self.twins.read(offset, size)

    @rule(
        offset=st.integers(0, 0x32),
        size=st.integers(1, 8),
        value=st.integers(0, (1 << 64) - 1) | st.integers(0, 7) | st.integers(0x100, 0x200),
    )
    def write(self, offset: int, size: int, value: int) -> None:
        self.twins.write(offset, size, value & (1 << 8 * size) - 1)

    @rule(on=st.booleans())
    def set_msix(self, on: bool) -> None:
        self.twins.set_msix(on)

    @rule(queue=st.integers(0, len(SIZES) - 1))
    def interrupt(self, queue: int) -> None:
        self.twins.interrupt(queue)

    @rule()
    def interrupt_config(self) -> None:
        self.twins.interrupt_config()

    @rule()
    def compare(self) -> None:
        self.twins.compare()

    @invariant()
    def line(self) -> None:
        if hasattr(self, "twins"):
            model = self.twins.model
            assert (self.twins.levels[-1:] == [True]) == (model.asserted and not model.msix)


TestRegisters = Registers.TestCase
TestRegisters.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
