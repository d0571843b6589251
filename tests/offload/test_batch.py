"""How a batch of frames is handed in: sequences of buffers, one buffer with offsets, and what is refused."""

from __future__ import annotations

import array
import itertools
import mmap
import sys
from typing import Any

import numpy
import pytest

from virtio import offload

DATA = bytes(range(256)) * 4
BOUNDS = [0, 3, 3, 64, 1000, 1024]
PIECES = [DATA[a:b] for a, b in itertools.pairwise(BOUNDS)]
WANTED = [offload.checksum(piece) for piece in PIECES]


def sums(frames: Any, offsets: Any = None) -> list[int]:
    return list(offload.checksum_burst(frames, offsets))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda b: numpy.frombuffer(b, numpy.uint8)],
                         ids=["bytes", "bytearray", "memoryview", "numpy"])  # fmt: skip
@pytest.mark.parametrize("row", [list, tuple, iter], ids=["list", "tuple", "iterator"])
def test_sequence_of_buffers(kind: Any, row: Any) -> None:
    assert sums(row([kind(piece) for piece in PIECES])) == WANTED


@pytest.mark.parametrize("code", ["i", "I", "l", "L", "q", "Q"])
def test_offsets_as_arrays(code: str) -> None:
    assert sums(DATA, array.array(code, BOUNDS)) == WANTED


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64"])
def test_offsets_as_numpy(dtype: str) -> None:
    assert sums(bytearray(DATA), numpy.array(BOUNDS, dtype)) == WANTED


def test_offsets_as_any_numbers() -> None:
    assert sums(DATA, BOUNDS) == sums(DATA, tuple(BOUNDS)) == sums(DATA, iter(BOUNDS)) == WANTED


def test_offsets_need_not_start_at_0_nor_reach_the_end() -> None:
    assert sums(DATA, [3, 64, 1000]) == [offload.checksum(DATA[3:64]), offload.checksum(DATA[64:1000])]


def test_empty_batches() -> None:
    assert sums([]) == sums(b"", [0]) == sums(DATA, [5]) == []


@pytest.mark.parametrize("offsets", [[0, 4, 3], [0, 1025], [-1, 4], [5, 2000, 1024]])
@pytest.mark.parametrize("kind", [list, lambda o: array.array("q", o), lambda o: array.array("i", o)])
def test_offsets_out_of_range(offsets: list[int], kind: Any) -> None:
    with pytest.raises(ValueError, match=r"offsets -?\d+ to \d+ out of range \(rising, 0 to 1024\)"):
        sums(DATA, kind(offsets))


def test_an_unsigned_offset_is_not_taken_as_negative() -> None:
    with pytest.raises(ValueError, match="4294967295"):
        sums(DATA, array.array("I", [0, 0xFFFFFFFF]))


@pytest.mark.parametrize(
    ("frames", "offsets", "error", "says"),
    [
        (DATA, None, TypeError, "not one bytes"),
        ("text", None, TypeError, "not one str"),
        (7, None, TypeError, "iterable"),
        ([b"x", 7], None, TypeError, "bytes-like"),
        ([b"x", "y"], None, TypeError, "bytes-like"),
        (DATA, [], ValueError, "at least 1, not 0"),
        (DATA, array.array("d", [0, 1]), TypeError, "format 'd'"),
        (DATA, array.array("h", [0, 1]), TypeError, "format 'h'"),
        (DATA, numpy.zeros((2, 2), numpy.int64), TypeError, "2 dimensions"),
        (DATA, [0, "1x"], ValueError, "invalid literal"),
        ([b"x"], [0, 1], TypeError, "bytes-like"),
        ([numpy.arange(8)[::2]], None, (ValueError, BufferError), "contiguous"),
    ],
)
def test_what_is_no_batch(frames: Any, offsets: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        sums(frames, offsets)


def test_buffers_are_released_whether_it_works_or_not() -> None:
    good, area = bytearray(b"abcd"), mmap.mmap(-1, 4096)
    sums([good, area])
    with pytest.raises(TypeError):
        sums([good, area, 7])
    with pytest.raises(ValueError, match="out of range"):
        sums(good, [0, 9])
    good.append(1)  # BufferError while anybody holds it
    area.close()


def test_references_are_given_back() -> None:
    piece, offsets = bytes(range(99)), array.array("q", [0, 5, 9])
    before = sys.getrefcount(piece), sys.getrefcount(offsets)
    for _ in range(100):
        sums([piece, piece])
        sums(piece, offsets)
    assert (sys.getrefcount(piece), sys.getrefcount(offsets)) == before
