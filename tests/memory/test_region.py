"""Regions: what may back them, how long it lives, and what is refused."""

from __future__ import annotations

import array
import contextlib
import copy
import ctypes
import gc
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from virtio import GuestMemory, Region

PAGE = mmap.PAGESIZE
TOP = 1 << 64


@contextlib.contextmanager
def memfd(size: int, name: str = "virtio-test") -> Iterator[int]:
    fd = os.memfd_create(name)
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


def numpy_array(size: int) -> Any:
    return pytest.importorskip("numpy").zeros((2, size // 2), dtype="uint8")


def memfd_mapping(size: int) -> mmap.mmap:
    with memfd(size) as fd:
        return mmap.mmap(fd, size)


BUFFERS: dict[str, Callable[[int], Any]] = {
    "bytearray": bytearray,
    "mmap": lambda size: mmap.mmap(-1, size),
    "memfd": memfd_mapping,
    "numpy": numpy_array,
    "array": lambda size: array.array("I", bytes(size)),
    "ctypes": ctypes.create_string_buffer,
    "memoryview": lambda size: memoryview(bytearray(size + 3))[3:],
    "region": lambda size: Region(0x5000, bytearray(size)),
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_any_writable_buffer_backs_a_region(kind: str) -> None:
    buffer = BUFFERS[kind](4096)
    region = Region(0x1_0000_0000, buffer)
    assert (region.gpa, region.size, region.uaddr) == (0x1_0000_0000, 4096, 0x1_0000_0000)
    memory = GuestMemory([region])
    memory.write(0x1_0000_0010, b"guest")
    assert memoryview(buffer).tobytes()[16:21] == b"guest"
    assert ctypes.string_at(region.address + 16, 5) == b"guest"


@pytest.mark.parametrize(
    "buffer", [b"constant", memoryview(bytearray(8)).toreadonly(), mmap.mmap(-1, 8, access=mmap.ACCESS_READ)]
)
def test_read_only_buffers_are_refused(buffer: Any) -> None:
    with pytest.raises(BufferError, match=f"{type(buffer).__name__} buffer is read-only"):
        Region(0, buffer)


def test_buffers_with_gaps_are_refused() -> None:
    with pytest.raises(BufferError, match="memoryview buffer is not C-contiguous"):
        Region(0, memoryview(bytearray(8))[::2])


def test_what_is_no_buffer_is_refused() -> None:
    with pytest.raises(TypeError, match="int"):
        Region(0, 4096)  # type: ignore[arg-type]


def test_a_refused_buffer_is_let_go() -> None:
    buffer = bytearray(8)
    with pytest.raises(ValueError, match="not within"):
        Region(TOP, buffer)
    buffer.append(1)


def test_the_buffer_is_held_until_region_and_views_are_gone() -> None:
    buffer = bytearray(64)
    region = Region(0, buffer)
    view = memoryview(region)[8:16]
    del region
    gc.collect()
    with pytest.raises(BufferError):
        buffer.append(1)
    view[:] = b"12345678"
    assert buffer[8:16] == b"12345678"
    view.release()
    gc.collect()
    buffer.append(1)
    assert len(buffer) == 65


def test_raw_address() -> None:
    storage = ctypes.create_string_buffer(64)
    address = ctypes.addressof(storage)
    region = Region.from_address(0x8000, address + 8, 32, uaddr=0x7F00_0000_0000)
    assert (region.gpa, region.size, region.address, region.uaddr) == (0x8000, 32, address + 8, 0x7F00_0000_0000)
    memoryview(region)[:3] = b"abc"
    assert storage.raw[8:11] == b"abc"


@pytest.mark.parametrize(("address", "size"), [(0, 16), (-8, 16), (TOP - 8, 16), (TOP, 1)])
def test_impossible_raw_addresses_are_refused(address: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes at host address {address:#x}"):
        Region.from_address(0, address, size)


@pytest.mark.parametrize("offset", [0, PAGE, 1, 100, PAGE + 24, 3 * PAGE - 7])
def test_file_regions_share_the_file_at_any_offset(offset: int) -> None:
    size = PAGE + 100
    with memfd(offset + size) as fd:
        region = Region.from_fd(0x4000, fd, size, offset)
        os.pwrite(fd, b"from the file", offset + PAGE - 5)
        view = memoryview(region)
        assert len(view) == size
        assert view.tobytes()[PAGE - 5 : PAGE + 8] == b"from the file"
        view[0] = 0xAA
        view[-1] = 0xBB
        assert os.pread(fd, 1, offset) == b"\xaa"
        assert os.pread(fd, 1, offset + size - 1) == b"\xbb"
        assert os.fstat(fd).st_size == offset + size


def test_file_regions_outlive_their_descriptor_and_are_unmapped_last() -> None:
    name = "virtio-test-unmap"
    with memfd(PAGE, name) as fd:
        view = GuestMemory([Region.from_fd(0, fd, PAGE - 8, 8)]).view(0, 16)
    view[:] = bytes(range(16))
    assert view[15] == 15
    assert name in Path("/proc/self/maps").read_text()
    view.release()
    gc.collect()
    assert name not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(("offset", "size"), [(0, PAGE + 1), (PAGE, 1), (1, PAGE), (1 << 62, 1)])
def test_regions_past_the_end_of_a_file_are_refused(offset: int, size: int) -> None:
    message = rf"{size} bytes at file offset {offset} ends after the file \({PAGE} bytes\)"
    with memfd(PAGE) as fd, pytest.raises(ValueError, match=message):
        Region.from_fd(0, fd, size, offset)


def test_unmappable_files_are_refused() -> None:
    with memfd(PAGE) as fd, pytest.raises(ValueError, match="file offset -1 is negative"):
        Region.from_fd(0, fd, 1, -1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        Region.from_fd(0, -1, PAGE)
    with memfd(PAGE) as fd:
        read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        try:
            with pytest.raises(PermissionError):
                Region.from_fd(0, read_only, PAGE)
        finally:
            os.close(read_only)


def test_allocated_regions_are_zeroed() -> None:
    region = Region.allocate(0x1000, 3 * PAGE + 1, uaddr=5)
    assert (region.gpa, region.size, region.uaddr) == (0x1000, 3 * PAGE + 1, 5)
    assert bytes(region) == bytes(3 * PAGE + 1)


def test_a_region_may_end_at_the_last_address() -> None:
    region = Region(TOP - 16, bytearray(16))
    assert region.gpa + region.size == TOP


@pytest.mark.parametrize(
    ("gpa", "uaddr", "message"),
    [
        (TOP - 15, None, r"16 bytes at guest address 0xfffffffffffffff1"),
        (TOP, None, r"16 bytes at guest address 0x10000000000000000"),
        (-1, None, r"16 bytes at guest address -0x1"),
        (0, TOP - 15, r"16 bytes at uaddr 0xfffffffffffffff1"),
        (0, -1, r"16 bytes at uaddr -0x1"),
    ],
)
def test_regions_outside_of_64_bits_are_refused(gpa: int, uaddr: int | None, message: str) -> None:
    storage = ctypes.create_string_buffer(16)
    with memfd(16) as fd:
        makers: list[Callable[[], Region]] = [
            lambda: Region(gpa, bytearray(16), uaddr=uaddr),
            lambda: Region.from_address(gpa, ctypes.addressof(storage), 16, uaddr=uaddr),
            lambda: Region.from_fd(gpa, fd, 16, uaddr=uaddr),
            lambda: Region.allocate(gpa, 16, uaddr=uaddr),
        ]
        for make in makers:
            with pytest.raises(ValueError, match=f"{message} is not within"):
                make()


@pytest.mark.parametrize("size", [0, -1])
def test_empty_regions_are_refused(size: int) -> None:
    message = f"region at 0x2000 is empty \\(size {size}\\)"
    with memfd(PAGE) as fd:
        makers: list[Callable[[], Region]] = [
            lambda: Region.from_address(0x2000, 0x1000, size),
            lambda: Region.from_fd(0x2000, fd, size),
            lambda: Region.allocate(0x2000, size),
        ]
        for make in makers:
            with pytest.raises(ValueError, match=message):
                make()
    with pytest.raises(ValueError, match="region at 0x2000 is empty"):
        Region(0x2000, bytearray())


def test_regions_larger_than_an_address_space_are_refused() -> None:
    with pytest.raises(ValueError, match="larger than an address space"):
        Region.from_address(0, 1, 1 << 63)
    with pytest.raises(OSError, match="memory"):
        Region.allocate(0, (1 << 63) - PAGE)


@pytest.mark.parametrize("gpa", [1.0, "0", None])
def test_addresses_are_integers(gpa: Any) -> None:
    with pytest.raises(TypeError):
        Region(gpa, bytearray(1))


def test_regions_are_equal_only_to_themselves() -> None:
    buffer = bytearray(8)
    one, other = Region(0, buffer), Region(0, buffer)
    assert one != other
    assert [one, other].index(other) == 1
    assert len({one, other, one}) == 2


def test_a_region_is_initialised_once() -> None:
    region = Region(0, bytearray(8))
    with pytest.raises(TypeError, match="initialised already"):
        region.__init__(0, bytearray(8))  # type: ignore[misc]
    empty = Region.__new__(Region)
    with pytest.raises(BufferError, match="not initialised"):
        memoryview(empty)
    with pytest.raises(ValueError, match="not initialised"):
        GuestMemory([empty])


def test_regions_cannot_be_copied() -> None:
    with pytest.raises(TypeError):
        copy.copy(Region(0, bytearray(8)))


def test_repr_says_where_it_is() -> None:
    assert repr(Region(0x1000, bytearray(8))) == "<Region 0x1000: 8 bytes>"
