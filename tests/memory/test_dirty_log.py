"""The dirty log: which pages were written, in the format of vhost."""

from __future__ import annotations

import threading

import pytest

from virtio import GuestMemory

TOP = 1 << 64
GIB = 1 << 30


def blocks(*starts: int, size: int = 0x1000) -> GuestMemory:
    return GuestMemory([(start, bytearray(size)) for start in starts])


def test_writes_mark_their_pages() -> None:
    memory = blocks(0, 0x1000, 0x2000, 0x10_0000)
    log = bytearray(0x100000 // 4096 // 8 + 1)
    memory.start_log(log)
    memory.write(0xFFE, b"1234")
    memory.write_u8(0x10_0000, 1)
    memory.write_u64(0x1FFC, 1)
    assert memory.dirty_pages() == [0, 1, 2, 0x100]
    assert log[0] == 0b111
    assert log[0x20] == 1
    memory.write(0, b"")
    memory.read(0, 16)
    assert memory.dirty_pages(clear=True) == [0, 1, 2, 0x100]
    assert memory.dirty_pages() == []
    assert not any(log)


@pytest.mark.parametrize(
    ("page", "count"), [(0, 1), (0, 8), (1, 7), (1, 8), (7, 1), (7, 2), (3, 3), (8, 16), (5, 40), (0, 64), (63, 1)]
)
def test_log_dirty_marks_every_page_it_touches_and_no_other(page: int, count: int) -> None:
    memory = GuestMemory.allocate(64 * 4096)
    memory.start_log()
    first, last = page * 4096, (page + count - 1) * 4096
    for start, end in ((first, last + 4096), (first + 4095, last + (4096 if count == 1 else 1))):
        memory.log_dirty(start, end - start)
        assert memory.dirty_pages(clear=True) == list(range(page, page + count))


def test_the_log_reaches_the_last_page_there_is() -> None:
    memory = blocks(TOP - 0x1000)
    memory.log_dirty(TOP - 1, 1)
    with pytest.raises(ValueError, match=f"dirty log of {1 << 49} bytes is too large"):
        memory.start_log()


def test_a_log_that_is_too_small_is_refused() -> None:
    memory = blocks(0, 4 * GIB)
    needed = 4 * GIB // 4096 // 8 + 1
    with pytest.raises(ValueError, match=f"{needed - 1} bytes is too small: this memory needs {needed}"):
        memory.start_log(bytearray(needed - 1))
    with pytest.raises(BufferError, match="read-only"):
        memory.start_log(bytes(needed))
    memory.start_log(bytearray(needed))


def test_what_others_marked_stays_and_is_told() -> None:
    memory = blocks(0)
    memory.start_log(bytearray(b"\x00\x80"))
    memory.write_u8(0, 1)
    assert memory.dirty_pages() == [0, 15]


def test_the_log_is_let_go_when_it_stops() -> None:
    memory = blocks(0)
    log = bytearray(1)
    memory.start_log(log)
    with pytest.raises(BufferError):
        log.append(0)
    memory.stop_log()
    log.append(0)
    memory.write_u8(0, 1)
    memory.log_dirty(0, 1)
    assert not any(log)
    with pytest.raises(ValueError, match="the dirty log is off"):
        memory.dirty_pages()
    memory.stop_log()


def test_a_log_of_our_own_grows_with_the_map_and_keeps_its_marks() -> None:
    memory = blocks(0)
    memory.start_log()
    memory.write_u8(0, 1)
    memory.add((4 * GIB, bytearray(16)))
    memory.write_u8(4 * GIB + 1, 1)
    assert memory.dirty_pages() == [0, 4 * GIB // 4096]
    memory.start_log()
    assert memory.dirty_pages() == []


def test_a_map_that_the_given_log_does_not_cover_is_refused() -> None:
    memory = blocks(0)
    memory.start_log(bytearray(1))
    with pytest.raises(ValueError, match="needs a dirty log of 131073 bytes, the one in use has 1"):
        memory.add((4 * GIB, bytearray(16)))
    assert len(memory.regions) == 1
    memory.add((7 * 4096, bytearray(4096)))


def test_no_mark_is_lost_while_another_thread_clears() -> None:
    memory = GuestMemory.allocate(8 * 4096)
    memory.start_log()
    count = 2000

    def writer() -> None:
        for i in range(count):
            memory.write_u64(4096 * (i % 8), i)

    thread = threading.Thread(target=writer)
    thread.start()
    last = [0] * 8
    while thread.is_alive():
        for page in memory.dirty_pages(clear=True):
            last[page] = memory.read_u64(4096 * page)
    thread.join()
    for page in memory.dirty_pages(clear=True):
        last[page] = memory.read_u64(4096 * page)
    assert last == [count - 8 + page for page in range(8)]
