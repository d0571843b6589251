"""Guest memory: the map and its replacement, translation, access."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from virtio import DeviceQueue, DriverQueue, Feature, GuestMemory, MemoryFault, QueueLayout, Region

TOP = 1 << 64
GIB = 1 << 30


def blocks(*starts: int, size: int = 0x1000) -> GuestMemory:
    return GuestMemory([(start, bytearray(size)) for start in starts])


# ---- the map ----


def test_regions_are_sorted_whatever_their_order() -> None:
    memory = blocks(5 * GIB, 0, 0x8000)
    assert [region.gpa for region in memory.regions] == [0, 0x8000, 5 * GIB]
    assert repr(memory) == "<GuestMemory: 3 regions, 12288 bytes>"


def test_memory_may_be_empty() -> None:
    memory = GuestMemory()
    assert memory.regions == ()
    assert memory.read(0, 0) == b""
    for gpa in (0, TOP - 1):
        with pytest.raises(MemoryFault):
            memory.read_u8(gpa)


def test_allocate_makes_one_zeroed_region() -> None:
    memory = GuestMemory.allocate(0x10000, 4 * GIB)
    assert [(region.gpa, region.size) for region in memory.regions] == [(4 * GIB, 0x10000)]
    assert memory.read(4 * GIB, 0x10000) == bytes(0x10000)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 64, 509])
def test_every_region_is_found_at_both_ends_and_no_hole_is(count: int) -> None:
    step = 0x3000_0000_0001
    memory = GuestMemory([(step * i, bytearray(16)) for i in range(count)])
    for i, region in enumerate(memory.regions):
        assert memory.translate(step * i) == region.address
        assert memory.translate(step * i + 15) == region.address + 15
        assert memory.translate(step * i, 16) == region.address
        for gpa, length in ((step * i + 16, 1), (step * i + 15, 2), (step * (i + 1) - 1, 1), (step * i - 1, 2)):
            with pytest.raises(MemoryFault) as caught:
                memory.translate(gpa, length)
            assert (caught.value.gpa, caught.value.length) == (gpa, length)


def test_510_regions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"510 regions are too many \(limit 509\)"):
        GuestMemory([(16 * i, bytearray(16)) for i in range(510)])


@pytest.mark.parametrize(("gpa", "size"), [(0x1000, 1), (0x1FFF, 1), (0xFFF, 2), (0, 0x8000), (0x1000, 0x1000)])
def test_overlapping_regions_are_refused(gpa: int, size: int) -> None:
    memory = blocks(0x1000)
    with pytest.raises(ValueError, match=r"region of \d+ bytes at 0x[0-9a-f]+ overlaps the one of \d+ bytes at 0x"):
        memory.add((gpa, bytearray(size)))
    assert len(memory.regions) == 1


@pytest.mark.parametrize("count", [1, 8, 9])
def test_a_region_may_end_at_the_last_address(count: int) -> None:
    memory = blocks(TOP - 0x1000, *(0x2000 * i for i in range(count - 1)))
    memory.write(TOP - 4, b"last")
    assert memory.read(TOP - 4, 4) == b"last"
    assert memory.read_u8(TOP - 1) == ord("t")
    assert bytes(memory.view(TOP - 2, 2)) == b"st"
    assert [bytes(part) for part in memory.gather(TOP - 1, 1)] == [b"t"]
    top = memory.regions[-1]
    assert memory.translate(TOP - 1) == top.address + 0xFFF
    assert memory.address_to_gpa(top.address + 0xFFF) == TOP - 1
    for gpa, length in ((TOP - 1, 2), (TOP - 4, 8), (TOP - 0x1000, TOP - 1)):
        with pytest.raises(MemoryFault):
            memory.read(gpa, length)


def test_the_last_address_is_not_next_to_the_first() -> None:
    memory = blocks(0, TOP - 0x1000)
    with pytest.raises(MemoryFault):
        memory.gather(TOP - 8, 16)


@pytest.mark.parametrize("regions", [[bytearray(8)], [(0, bytearray(8), 0)], [0], [None]])
def test_what_is_no_region_is_refused(regions: Any) -> None:
    with pytest.raises(TypeError, match="a region is a Region or a tuple"):
        GuestMemory(regions)


def test_add_and_remove() -> None:
    memory = blocks(0x1000)
    region = Region(0x8000, bytearray(0x1000))
    memory.add(region)
    memory.write_u8(0x8000, 7)
    memory.remove(region)
    with pytest.raises(MemoryFault):
        memory.read_u8(0x8000)
    for other in (region, Region(0x1000, bytearray(0x1000))):
        with pytest.raises(ValueError, match="is not in this memory"):
            memory.remove(other)
    memory.remove(memory.regions[0])
    assert memory.regions == ()


def test_a_refused_map_changes_nothing() -> None:
    memory = blocks(0x1000, 0x8000)
    before = memory.regions
    for bad in ([(0, bytearray(0))], [(0, bytearray(8)), (4, bytearray(8))], [(0, b"constant")], [(TOP, bytearray(1))]):
        with pytest.raises((ValueError, BufferError)):
            memory.replace(bad)
    assert memory.regions == before
    memory.write_u8(0x8000, 1)


def test_views_outlive_the_map_and_then_let_the_buffer_go() -> None:
    buffer = bytearray(0x1000)
    memory = GuestMemory([(0, buffer)])
    views = [memory.view(16, 4), *memory.gather(32, 4)]
    memory.replace([(0, bytearray(0x1000))])
    gc.collect()
    for view in views:
        view[:] = b"kept"
    assert buffer[16:20] == buffer[32:36] == b"kept"
    assert memory.read(16, 4) == bytes(4)
    with pytest.raises(BufferError):
        buffer.append(0)
    views.clear()
    del view
    gc.collect()
    buffer.append(0)


def test_a_replaced_map_lets_its_buffers_go_at_once() -> None:
    buffer = bytearray(0x1000)
    memory = GuestMemory([(0, buffer)])
    memory.replace([])
    buffer.append(0)


def test_reads_and_writes_go_on_while_the_map_is_replaced() -> None:
    maps = [[(gpa, bytearray(bytes([gpa & 0xFF or 1]) * 256)) for gpa in range(0, 256 * n, 256)] for n in (1, 4, 20)]
    memory = GuestMemory(maps[0])
    done = threading.Event()
    bad: list[bytes] = []

    def reader() -> None:
        while not done.is_set():
            data = memory.read(0, 200)
            memory.write(200, data[:16])
            if data.count(data[0]) != 200:
                bad.append(data)

    threads = [threading.Thread(target=reader) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(300):
        memory.replace(maps[i % 3])
    done.set()
    for thread in threads:
        thread.join()
    assert not bad


@pytest.mark.parametrize("layout", [QueueLayout.split(16, 0x1000), QueueLayout.packed(16, 0x1000)])
def test_queues_find_their_rings_again_when_the_map_is_replaced(layout: QueueLayout) -> None:
    memory = GuestMemory.allocate(0x4000)
    features = Feature.VERSION_1 | (Feature.RING_PACKED if layout.is_packed else 0)
    driver = DriverQueue(memory, layout, features=features)
    device = DeviceQueue(memory, layout, features=features)
    for cookie in range(40):
        driver.enqueue([(0x3000, 8)], [(0x3100, 8)], cookie)
        memory.replace([(0, bytearray(memory.read(0, 0x4000)))])
        chain = device.pop()
        assert chain is not None
        chain.write(cookie.to_bytes(8, "little"))
        device.add_used(chain)
        memory.replace([(0, bytearray(memory.read(0, 0x4000))), (0x10_0000, bytearray(16))])
        assert driver.dequeue() == (cookie, 8)
        assert memory.read_u64(0x3100) == cookie
    memory.replace([(0, bytearray(0x1000)), (0x3000, bytearray(0x1000))])
    for queue in (driver, device):
        assert isinstance(queue.broken, MemoryFault)
        assert queue.broken.gpa in {area for area, _ in layout.areas}


# ---- access ----


def test_numbers_are_little_endian() -> None:
    memory = blocks(0)
    memory.write_u8(0, 0xF1)
    memory.write_u16(2, 0xF2E1)
    memory.write_u32(4, 0xF4E3D2C1)
    memory.write_u64(8, 0xF8E7D6C5B4A39281)
    assert memory.read(0, 16) == bytes.fromhex("f100e1f2c1d2e3f48192a3b4c5d6e7f8")
    assert memory.read_u8(0) == 0xF1
    assert memory.read_u16(2) == 0xF2E1
    assert memory.read_u32(4) == 0xF4E3D2C1
    assert memory.read_u64(8) == 0xF8E7D6C5B4A39281
    assert memory.read_u64(5) == 0xC5B4A39281F4E3D2
    memory.write_u64(0, 0x0BAD0BAD0BAD0BAD)
    assert memory.read_u64(0) == 0x0BAD0BAD0BAD0BAD


def test_numbers_may_lie_anywhere_and_over_seams() -> None:
    memory = blocks(0, 3, 6, 9, 12, size=3)
    for gpa in range(8):
        memory.write(0, bytes(15))
        memory.write_u64(gpa, 0x0807060504030201)
        assert memory.read(gpa, 8) == bytes(range(1, 9))
        assert memory.read_u64(gpa) == 0x0807060504030201
        assert memory.read_u32(gpa) == 0x04030201
        assert memory.read_u16(gpa) == 0x0201
        memory.write_u32(gpa, 0xFFFFFFFF)
        memory.write_u16(gpa + 4, 0xFFFF)
        assert memory.read(0, 15).count(b"\xff") == 6


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("negative", [False, True])
def test_numbers_that_do_not_fit_are_refused(bits: int, negative: bool) -> None:
    memory = blocks(0)
    with pytest.raises(OverflowError):
        getattr(memory, f"write_u{bits}")(0, -1 if negative else 1 << bits)
    assert memory.read(0, 16) == bytes(16)


def test_read_write_and_gather_cross_adjacent_regions() -> None:
    memory = blocks(0, 0x1000, 0x2000, 0x4000)
    data = bytes(range(1, 251)) * 40
    memory.write(0x800, data[:0x1800])
    assert memory.read(0x800, 0x1800) == data[:0x1800]
    parts = memory.gather(0x800, 0x1800)
    assert [len(part) for part in parts] == [0x800, 0x1000]
    assert b"".join(parts) == data[:0x1800]
    parts[1][0] = 0
    assert memory.read_u8(0x1000) == 0


def test_nothing_is_written_when_part_is_outside() -> None:
    memory = blocks(0, 0x1000, 0x4000)
    with pytest.raises(MemoryFault):
        memory.write(0x1000 - 4, b"x" * 0x1005)
    with pytest.raises(MemoryFault):
        memory.write_u32(0x2000 - 2, 0xFFFFFFFF)
    assert memory.read(0, 0x2000) == bytes(0x2000)


def test_a_view_is_the_memory_itself() -> None:
    memory = blocks(0x1000)
    view = memory.view(0x1100, 16)
    assert (len(view), view.readonly, view.format) == (16, False, "B")
    view[0:5] = b"hello"
    assert memory.read(0x1100, 5) == b"hello"
    memory.write(0x1105, b" you")
    assert bytes(view[:9]) == b"hello you"
    assert len(memory.view(0x1100, 0)) == 0


def test_a_view_over_a_seam_says_that_it_is_not_contiguous() -> None:
    memory = blocks(0, 0x1000)
    for call in (memory.view, memory.translate):
        with pytest.raises(MemoryFault, match="not contiguous: use gather"):
            call(0xFFF, 2)
        with pytest.raises(MemoryFault, match="outside of guest memory"):
            call(0xFFF, 0x1002)


def test_a_write_may_take_its_bytes_from_the_memory_itself() -> None:
    memory = blocks(0)
    memory.write(0, bytes(range(64)))
    memory.write(8, memory.view(0, 32))
    assert memory.read(8, 32) == bytes(range(32))


def test_writes_take_any_contiguous_buffer_and_no_other() -> None:
    memory = blocks(0)
    memory.write(0, (ctypes.c_uint16 * 2)(0x0201, 0x0403))
    assert memory.read(0, 4) == bytes((1, 2, 3, 4))
    with pytest.raises(BufferError):
        memory.write(0, memoryview(bytes(8))[::2])
    with pytest.raises(TypeError):
        memory.write(0, 5)  # type: ignore[arg-type]


CALLS: dict[str, Callable[[GuestMemory, int, int], object]] = {
    "translate": lambda memory, gpa, length: memory.translate(gpa, length),
    "read": lambda memory, gpa, length: memory.read(gpa, length),
    "view": lambda memory, gpa, length: memory.view(gpa, length),
    "gather": lambda memory, gpa, length: memory.gather(gpa, length),
    "log_dirty": lambda memory, gpa, length: memory.log_dirty(gpa, length),
    "uaddr_to_gpa": lambda memory, gpa, length: memory.uaddr_to_gpa(gpa, length),
    "address_to_gpa": lambda memory, gpa, length: memory.address_to_gpa(memory.regions[0].address + gpa, length),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (0x10, TOP - 1),
        (0x10, TOP - 0x10),
        (0x10, TOP - 8),
        (0, TOP),
        (0, 1 << 70),
        (1 << 70, 1),
        (TOP, 1),
        (TOP, 0x10),
        (TOP - 8, 0x10),
        (TOP - 1, 2),
        (-1, 2),
        (0, -1),
        (0xFFF, 2),
    ],
)
def test_ranges_that_wrap_or_are_no_64_bit_addresses_fault(call: str, gpa: int, length: int) -> None:
    memory = blocks(0)
    memory.start_log()
    with pytest.raises(MemoryFault) as caught:
        CALLS[call](memory, gpa, length)
    assert caught.value.length == length
    assert memory.dirty_pages() == []


@pytest.mark.parametrize("gpa", [0x1000, 0xFFFF_FFFF, TOP - 1, TOP, TOP + 1, -1])
def test_numbers_and_writes_outside_fault(gpa: int) -> None:
    memory = blocks(0)
    for bits in (8, 16, 32, 64):
        with pytest.raises(MemoryFault) as caught:
            getattr(memory, f"read_u{bits}")(gpa)
        assert (caught.value.gpa, caught.value.length) == (gpa, bits // 8)
        with pytest.raises(MemoryFault):
            getattr(memory, f"write_u{bits}")(gpa, 1)
    with pytest.raises(MemoryFault):
        memory.write(gpa, b"x")


@pytest.mark.parametrize("gpa", [1.0, "0", None])
def test_addresses_are_integers(gpa: Any) -> None:
    memory = blocks(0)
    for call in (memory.read_u8, memory.translate, memory.uaddr_to_gpa):
        with pytest.raises(TypeError):
            call(gpa)


# ---- other address spaces ----


def test_frontend_addresses_are_translated() -> None:
    memory = GuestMemory(
        [
            Region(0, bytearray(0x1000), uaddr=0x7F00_0000_0000),
            Region(4 * GIB, bytearray(0x1000), uaddr=0x7F00_0000_1000),
            (8 * GIB, bytearray(0x1000)),
        ]
    )
    assert memory.uaddr_to_gpa(0x7F00_0000_0010) == 0x10
    assert memory.uaddr_to_gpa(0x7F00_0000_1000, 0x1000) == 4 * GIB
    assert memory.uaddr_to_gpa(8 * GIB + 5) == 8 * GIB + 5
    for uaddr, length in ((0, 1), (0x7F00_0000_2000, 1), (0x7F00_0000_0FFF, 2), (0x7EFF_FFFF_FFFF, 2)):
        with pytest.raises(MemoryFault, match="uaddr"):
            memory.uaddr_to_gpa(uaddr, length)


def test_host_addresses_and_buffers_are_translated() -> None:
    memory = blocks(0, 4 * GIB)
    assert memory.address_to_gpa(memory.regions[1].address + 5, 8) == 4 * GIB + 5
    assert memory.buffer_to_gpa(memory.view(4 * GIB + 16, 32)) == (4 * GIB + 16, 32)
    assert memory.buffer_to_gpa(memory.view(0, 32)[8:12]) == (8, 4)
    assert memory.buffer_to_gpa(memory.regions[0]) == (0, 0x1000)
    with pytest.raises(MemoryFault, match="host memory"):
        memory.buffer_to_gpa(bytearray(8))
    with pytest.raises(BufferError):
        memory.buffer_to_gpa(memory.view(0, 32)[::2])
