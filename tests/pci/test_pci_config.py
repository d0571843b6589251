"""Configuration space: each byte of a virtio function against a table; sizing, decoding, capabilities, snapshots."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from legacy_model import CONFIG, Recorder

from virtio import GuestMemory
from virtio.device import Device
from virtio.errors import ConfigError
from virtio.pci import ConfigSpace, LegacyFunction
from virtio.pci.config import Window

MEMORY = GuestMemory.allocate(1 << 16)
ALL = 0xFFFFFFFF

# (offset, size, value after reset, bits that can be written) of a virtio-net function with 4 MSI-X vectors and 23 bytes
# of configuration: BAR 0 has 64 ports, BAR 1 4096 bytes. What is not named is 0 and cannot be written
HEADER = (
    (0x00, 2, 0x1AF4, 0),
    (0x02, 2, 0x1000, 0),
    (0x04, 2, 0, 0x0407),  # I/O, memory, bus master, INTx disable
    (0x06, 2, 0x0010, 0),  # capability list
    (0x08, 1, 0, 0),
    (0x09, 3, 0x020000, 0),  # Ethernet
    (0x0C, 1, 0, 0xFF),
    (0x10, 4, 0x00000001, 0xFFFFFFC0),
    (0x14, 4, 0x00000000, 0xFFFFF000),
    (0x2C, 2, 0x1AF4, 0),
    (0x2E, 2, 1, 0),
    (0x34, 1, 0x40, 0),
    (0x3C, 1, 0, 0xFF),
    (0x3D, 1, 1, 0),
    (0x40, 1, 0x11, 0),
    (0x41, 1, 0, 0),
    (0x42, 2, 3, 0xC000),
    (0x44, 4, 0x00000001, 0),
    (0x48, 4, 0x00000801, 0),
)


class Image:
    """The table as bytes."""

    def __init__(self) -> None:
        self.bytes, self.writable = bytearray(256), bytearray(256)
        for offset, size, value, writable in HEADER:
            self.bytes[offset : offset + size] = value.to_bytes(size, "little")
            self.writable[offset : offset + size] = writable.to_bytes(size, "little")

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes((bytes(self.bytes) + b"\xff" * 8)[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        for i, byte in enumerate(value.to_bytes(size, "little"), offset):
            if i < 256:
                self.bytes[i] = self.bytes[i] & ~self.writable[i] | byte & self.writable[i]


def net(**options) -> LegacyFunction:
    return LegacyFunction(Recorder(), MEMORY, **options)


ACCESSES = [(offset, width) for offset, width in itertools.product(range(256), (1, 2, 4))]


def test_read_everywhere():
    function, image = net(), Image()
    for offset, width in ACCESSES:
        assert function.config_read(offset, width) == image.read(offset, width), f"{width} bytes at {offset:#x}"
    for width in (1, 2, 4, 8):
        assert function.config_read(256, width) == function.config_read(1 << 20, width) == (1 << 8 * width) - 1


@pytest.mark.parametrize("pattern", [0, ALL, 0xA5A5A5A5, 0x5A5A5A5A, 0x01020408], ids=hex)
def test_write_everywhere(pattern):
    """What can be written is; nothing else changes, wherever and however wide the access is."""
    function, image = net(), Image()
    for offset, width in ACCESSES:
        value = pattern & (1 << 8 * width) - 1
        function.config_write(offset, width, value)
        image.write(offset, width, value)
        got = bytes(function.config_read(i, 1) for i in range(256))
        assert got == bytes(image.bytes), f"{value:#x} to {width} bytes at {offset:#x}"
    function.config_write(256, 4, 0)
    function.config_write(254, 4, 0xFFFFFFFF)
    assert bytes(function.config_read(i, 1) for i in range(256)) == bytes(image.bytes)


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(1, 8), st.integers(0, (1 << 64) - 1)), max_size=20))
def test_any_writes(writes):
    function, image = net(), Image()
    for offset, width, value in writes:
        value &= (1 << 8 * width) - 1
        function.config_write(offset, width, value)
        image.write(offset, width, value)
    assert bytes(function.config_read(i, 1) for i in range(256)) == bytes(image.bytes)


def test_reset_clears_what_was_written():
    function = net()
    for offset in range(0, 256, 4):
        function.config_write(offset, 4, ALL)
    function.config_write(0x10, 8, 0xFEB00000_0000C000)
    assert function.config.io and function.config.memory
    function.reset()
    assert [function.config_read(i, 1) for i in range(256)] == list(Image().bytes)
    assert function.config.io == function.config.memory == ()


@pytest.mark.parametrize(
    ("device_type", "device_id", "class_code"),
    [
        (1, 0x1000, 0x020000),
        (2, 0x1001, 0x010000),
        (3, 0x1003, 0x078000),
        (4, 0x1005, 0x00FF00),
        (5, 0x1002, 0x00FF00),
        (8, 0x1004, 0x010000),
        (9, 0x1009, 0x00FF00),
        (16, 0x103F, 0x00FF00),
    ],
)
def test_ids_by_device_type(device_type, device_id, class_code):
    """VIRTIO 1.4, 4.1.2: transitional ids; others get one of the range that legacy drivers take."""
    device = type("Typed", (Device,), {"device_type": device_type})()
    function = LegacyFunction(device, MEMORY)
    assert function.config_read(0, 4) == device_id << 16 | 0x1AF4
    assert function.config_read(8, 4) == class_code << 8
    assert function.config_read(0x2C, 4) == device_type << 16 | 0x1AF4
    other = LegacyFunction(device, MEMORY, device_id=0x1234, class_code=0x123456)
    assert other.config_read(2, 2) == 0x1234 and other.config_read(9, 2) == 0x3456


@pytest.mark.parametrize(("config", "ports"), [(0, 32), (8, 32), (9, 64), (40, 64), (41, 128), (232, 256)])
def test_the_io_bar_holds_the_registers_with_msix(config, ports):
    device = Recorder()
    device.config = bytearray(config)
    function = LegacyFunction(device, MEMORY)
    function.config_write(0x10, 4, ALL)
    assert function.config_read(0x10, 4) == ALL - ports + 2


@pytest.mark.parametrize(
    ("vectors", "size", "pending"), [(1, 4096, 2048), (128, 4096, 2048), (129, 4096, 2064), (2048, 65536, 32768)]
)
def test_the_msix_bar_holds_table_and_pending_bits(vectors, size, pending):
    function = net(vectors=vectors)
    function.config_write(0x14, 4, ALL)
    assert function.config_read(0x14, 4) == ALL - size + 1
    assert function.config_read(0x42, 2) == vectors - 1
    assert function.config_read(0x44, 4) == 1 and function.config_read(0x48, 4) == pending | 1
    assert pending >= 16 * vectors and pending + vectors / 8 <= size


def test_without_msix():
    function = net(vectors=0)
    assert function.msix is None and function.config_read(0x34, 1) == 0 and function.config_read(6, 2) == 0
    function.config_write(0x14, 4, ALL)
    assert function.config_read(0x14, 4) == 0
    function.config_write(4, 2, 7)
    assert function.config_read(4, 2) == 5
    assert function.memory_read(0, 4) == ALL
    function.memory_write(0, 4, 0)
    with pytest.raises(ConfigError, match="MSI-X vector 0"):
        function.route(0, None)
    with pytest.raises(ConfigError, match="2049"):
        net(vectors=2049)


def windows(function: LegacyFunction) -> tuple[tuple[Window, ...], tuple[Window, ...]]:
    return function.config.io, function.config.memory


def test_bars_answer_where_they_are_put_while_they_may():
    function = net()
    function.config_write(0x10, 4, 0xC05F)
    function.config_write(0x14, 4, 0xFEB00FFF)
    assert windows(function) == ((), ())
    io, memory = Window(0xC040, 0xC080, 0), Window(0xFEB00000, 0xFEB01000, 1)
    function.config_write(4, 2, 1)
    assert windows(function) == ((io,), ())
    function.config_write(4, 1, 3)
    assert windows(function) == ((io,), (memory,))
    function.config_write(5, 1, 0xFF)
    assert windows(function) == ((io,), (memory,))
    function.config_write(4, 4, 2)
    assert windows(function) == ((), (memory,))
    function.config_write(0x15, 1, 0x10)  # a byte of an address
    assert windows(function) == ((), (Window(0xFEB01000, 0xFEB02000, 1),))


@pytest.mark.parametrize("bar", [0, 1])
def test_sizing_a_bar_that_decodes_puts_it_nowhere(bar):
    """All ones is past the end of either space, and 0 is no place: as in QEMU."""
    function = net()
    function.config_write(4, 2, 3)
    offset = 0x10 + 4 * bar
    for value in (ALL, 0):
        function.config_write(offset, 4, 0xC000)
        assert windows(function)[bar]
        function.config_write(offset, 4, value)
        assert not windows(function)[bar]
    function.config_write(0x10, 4, 0xFFC0)
    assert function.config.io == (Window(0xFFC0, 0x10000, 0),)
    function.config_write(0x10, 4, 0x10000)
    assert function.config.io == ()


def test_interrupt_status_follows_the_isr_even_if_intx_is_disabled():
    function = net()
    function.write(0x12, 1, 7)
    assert not function.config_read(6, 2) & 8
    function.device.interrupt(0)
    for offset, size, bit in ((6, 2, 8), (6, 1, 8), (4, 4, 8 << 16), (5, 2, 8 << 8), (3, 4, 8 << 24)):
        assert function.config_read(offset, size) & bit
    assert not function.config_read(7, 1) and not function.config_read(4, 2)
    function.config_write(4, 2, 0x400)
    assert function.config_read(6, 2) & 8
    function.config_write(0x42, 2, 0x8000)
    assert not function.config_read(6, 2) & 8
    function.config_write(0x42, 2, 0)
    function.read(0x13, 1)
    assert not function.config_read(6, 2) & 8


def test_capabilities_are_a_list():
    config = ConfigSpace(0x1234, 1, class_code=0)
    assert config.read(0x34, 1) == 0
    first = config.add_capability(0x09, b"\1\2\3\4\5", bytes(5))
    second = config.add_capability(0x05, b"\xaa" * 4, b"\x0f" * 4)
    assert (first, second) == (0x40, 0x48)
    assert config.read(0x34, 1) == 0x40 and config.read(6, 1) == 0x10
    assert config.read(0x40, 4) == 0x02014809 and config.read(0x48, 4) == 0xAAAA0005
    config.write(0x48, 8, 0)
    assert config.read(0x48, 4) == 0xA0A00005
    with pytest.raises(ConfigError, match="does not fit"):
        config.add_capability(0x09, bytes(0xB0), bytes(0xB0))
    with pytest.raises(ConfigError, match="does not fit"):
        config.add_capability(0x09, bytes(4), bytes(3))


@pytest.mark.parametrize(
    ("index", "size", "io"),
    [(6, 4096, False), (-1, 4096, False), (0, 24, True), (0, 2, True), (0, 8, False), (2, 64, True)],
)
def test_bars_that_cannot_be(index, size, io):
    config = ConfigSpace(0x1234, 1, class_code=0)
    config.add_bar(2, 64, io=True)
    with pytest.raises(ConfigError, match=f"BAR {index}"):
        config.add_bar(index, size, io=io)
    assert [bar.index for bar in config.bars] == [2]


@pytest.mark.parametrize("what", [{"class_code": 1 << 24}, {"class_code": -1}, {"class_code": 0, "subsystem": 0x10000}])
def test_ids_that_do_not_fit(what):
    with pytest.raises(ConfigError, match="does not fit"):
        ConfigSpace(0x1234, 1, **what)


def test_snapshot():
    function = net()
    function.config_write(0x10, 4, 0xC000)
    function.config_write(4, 2, 7)
    function.config_write(0x3C, 1, 11)
    state = json.loads(json.dumps(function.config.snapshot()))
    other = net()
    other.config.restore(state)
    assert windows(other) == windows(function) != ((), ())
    assert [other.config_read(i, 1) for i in range(256)] == [function.config_read(i, 1) for i in range(256)]


def test_a_snapshot_of_another_function_is_refused():
    state = net(vectors=5).config.snapshot()
    other = net()
    with pytest.raises(ConfigError, match="byte 0x42 is 0x04, not 0x03"):
        other.config.restore(state)
    with pytest.raises(ConfigError, match="255 bytes"):
        other.config.restore({"bytes": state["bytes"][2:]})
    assert [other.config_read(i, 1) for i in range(256)] == list(Image().bytes)


def test_the_model_is_of_the_device_that_is_tested():
    assert len(CONFIG) == 23 and len(Recorder().queues) == 3
