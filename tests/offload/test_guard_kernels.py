"""No kernel reads or writes a byte beyond what it is given: frames and buffers that end at, and begin on, a guard page.

On each SIMD path that the CPU has. Frames are of every kind, cut off at each byte, sound ones of each length, and in
two pieces that are parted at each byte.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from guardframes import EVERY, HEADER, HEADS, corpus, cut_off, kinds, sized, sound, undone
from guardpages import PAGE, SIMD, Children, Guarded, at

from bench.kernels.offloadbench import gather_sum, update_field
from bench.kernels.segmentbench import segment_gather_lists
from virtio.constants import NetFeature as F
from virtio.offload import (
    Coalescer,
    NetHeader,
    SegmentError,
    Toeplitz,
    checksum,
    checksum_burst,
    classify_receive,
    classify_receive_burst,
    complete_checksum,
    complete_receive,
    copy_checksum,
    crc32c,
    fill_checksums,
    fill_checksums_burst,
    fill_partial_checksum,
    parse,
    parse_burst,
    partial_sum,
    prepare_transmit,
    prepare_transmit_burst,
    pseudo_header_sum,
    segment,
    segment_into,
    update_checksum,
    verify,
    verify_burst,
)
from virtio.ports.software_offload import Executor

A, B = Guarded(18), Guarded(18)
LENGTHS = [*range(300), 511, 512, 513, 1460, 1514, PAGE - 1, PAGE, PAGE + 1, 9001, 65535]
TSO = int(F.CSUM | F.HOST_TSO4 | F.HOST_TSO6 | F.HOST_USO | F.HOST_ECN)
SIZES = (10, 12, 20, 24)
TOEPLITZ = Toeplitz(bytes(range(40)))
NEEDS, VALID = NetHeader(flags=1, csum_start=34, csum_offset=16), NetHeader(flags=2)
LOW = NetHeader(flags=1, csum_start=0, csum_offset=0)
TYPES = [NetHeader(gso_type=kind, gso_size=100, outer_th_offset=34, inner_nh_offset=64) for kind in (1, 3, 4, 5, 0x21)]


def halves(view: memoryview) -> list[int]:
    return [0, len(view) // 2, len(view)]


def apart(data: bytes, place: int) -> Iterator[list[memoryview]]:
    """Give the bytes in two pieces, each at either guard."""
    for first, second in itertools.product((A.last, A.first), (B.first, B.last)):
        yield [first(data[:place]), second(data[place:])]


def segments_of(view: memoryview, mode: str) -> None:
    for size in (8, 100):
        with suppress(SegmentError):
            segment(view, size, checksum=mode, max_segments=80).packets()  # type: ignore[arg-type]


def of_no_length(view: memoryview) -> None:
    """The lengths of a frame with a type, and of one without, are 0 where the frame has them."""
    found = parse(view)
    for layer in filter(None, (found.outer, found.inner)):
        for place in (layer.l3 + (2 if layer.l3_kind == 1 else 4), layer.l4 + 4 if layer.protocol == 17 else len(view)):
            view[place : place + 2] = bytes(len(view[place : place + 2]))
    saved = bytes(view)
    for header in (*TYPES, NEEDS, LOW):
        complete_receive(header, view, EVERY)
        view[:] = saved


# kernels that take a frame, which they may write to; what they find in it is other tests' concern
OF_A_FRAME: dict[str, Callable[[memoryview], object]] = {
    "parse": parse,
    "parse_burst": lambda view: parse_burst([view, view]),
    "parse_burst, offsets": lambda view: parse_burst(view, halves(view)),
    "verify": verify,
    "verify_burst": lambda view: verify_burst([view, view]),
    "verify_burst, offsets": lambda view: verify_burst(view, halves(view)),
    "fill_checksums": fill_checksums,
    "fill_checksums_burst": lambda view: fill_checksums_burst([view, view]),
    "fill_checksums_burst, offsets": lambda view: fill_checksums_burst(view, halves(view)),
    "fill_partial_checksum": fill_partial_checksum,
    "fill_partial_checksum, inner": lambda view: fill_partial_checksum(view, inner=True),
    "crc32c": crc32c,
    "hash_frame": lambda view: TOEPLITZ.hash_frame(view, tunnels=0x50),
    "hash_frame, outer": TOEPLITZ.hash_frame,
    "hash_burst": lambda view: TOEPLITZ.hash_burst([view, view], tunnels=0x50),
    "hash_burst, offsets": lambda view: TOEPLITZ.hash_burst(view, halves(view)),
    "prepare_transmit": lambda view: prepare_transmit(view, EVERY),
    "prepare_transmit, mss": lambda view: prepare_transmit(view, EVERY, 100),
    "prepare_transmit, outer": lambda view: prepare_transmit(view, EVERY, layer="outer"),
    "prepare_transmit, software": lambda view: prepare_transmit(view, 0),
    "prepare_transmit, to the driver": lambda view: prepare_transmit(view, EVERY, to_driver=True),
    "prepare_transmit_burst": lambda view: prepare_transmit_burst([view, view], TSO, 100),
    "prepare_transmit_burst, offsets": lambda view: prepare_transmit_burst(view, 0, offsets=halves(view)),
    "classify_receive": lambda view: [classify_receive(hdr, view, EVERY) for hdr in (NEEDS, VALID, LOW)],
    "complete_receive": lambda view: complete_receive(NEEDS, view, EVERY),
    "complete_receive, as sent": lambda view: complete_receive(prepare_transmit(view, EVERY, 100).header, view, EVERY),
    "complete_receive, lengths of 0": of_no_length,
    "classify_receive_burst": lambda view: classify_receive_burst([view, view], EVERY),
    "classify_receive_burst, offsets": lambda view: classify_receive_burst(view, EVERY, offsets=halves(view)),
    "segment": lambda view: segments_of(view, "full"),
    "segment, partial": lambda view: segments_of(view, "partial"),
    "coalesce": lambda view: Coalescer(flows=4).receive([view]),
}


def of_a_frame(name: str) -> None:
    kernel = OF_A_FRAME[name]
    for what, frame in itertools.chain(cut_off(), sound()):
        for place in (A.last, A.first):
            at(what, len(frame), place.__name__)
            with suppress(ValueError):
                kernel(place(frame))


@pytest.mark.parametrize("path", SIMD)
@pytest.mark.parametrize("name", list(OF_A_FRAME))
def test_kernels_of_a_frame(name: str, path: str, children: Callable[[str], Children]) -> None:
    children(path).run("of_a_frame", name)


# ---- kernels of plain bytes ----


def sums() -> None:
    for n in LENGTHS:
        data = random.randbytes(n)
        for view in A.both(data):
            at("sums", n)
            assert checksum(view) == partial_sum(view) ^ 0xFFFF == checksum(data)
            assert list(checksum_burst([view, view])) == [checksum(data)] * 2
            checksum_burst(view, halves(view))
            update_checksum(1, view, data)
            update_checksum(1, data, view)
            crc32c(view)


def copies() -> None:
    for n in LENGTHS:
        data = random.randbytes(n)
        for source, target in itertools.product((A.last, A.first), (B.last, B.first)):
            at("copy", n, source.__name__, target.__name__)
            to = target(bytes(n))
            assert copy_checksum(to, source(data)) == checksum(data) and bytes(to) == data


def pieces() -> None:
    for n in (0, 1, 2, 3, 63, 64, 65, 129, 200, 1514):
        data = random.randbytes(n)
        for place in range(min(n, 130) + 1):
            at("pieces", n, place)
            for parts in apart(data, place):
                assert checksum(parts) == checksum(data)
                for skip in range(0, n, 13):
                    gather_sum(parts, skip, n - skip)


def small_fields() -> None:
    """Addresses, checksum fields, hash keys and inputs, headers."""
    for size in (4, 16):
        for src, dst in itertools.product(A.both(bytes(size)), B.both(bytes(size))):
            pseudo_header_sum(src, dst, 6, 100)
    for n in range(2, 80):
        data = random.randbytes(n)
        for start, field in itertools.product(range(0, n - 1, 5), range(n - 1)):
            if start + field + 2 <= n:
                at("complete_checksum", n, start, field)
                for view in A.both(data):
                    complete_checksum(view, start, field)
    for bits in (16, 32):
        update_field(1, 2, 3, bits=bits)  # type: ignore[arg-type]
    for n in range(40, 256):
        for view in A.both(random.randbytes(n)):
            at("key", n)
            toeplitz = Toeplitz(view)
            for m in range(min(n - 4, 36) + 1):
                for value in B.both(bytes(m)):
                    toeplitz.hash(value)
    for size in SIZES:
        data = random.randbytes(size)
        for view in A.both(data):
            at("header", size)
            NetHeader.from_bytes(view, size).check(100, EVERY)
        for n in range(size):
            for view in A.both(data[:n]):
                with suppress(ValueError):
                    NetHeader.from_bytes(view, size)


def headers_and_frames() -> None:
    """A buffer as a device gives it: a header of each size and a frame, cut off at each byte."""
    for size, features in zip(SIZES, (int(F.GUEST_CSUM), EVERY & ~(F.HASH_REPORT | 3 << 65), EVERY & ~(3 << 65), EVERY),
                              strict=True):  # fmt: skip
        for name, (header, frame) in undone(100, 32).items():
            buffer = header.to_bytes(size) + frame
            for n in [*range(min(len(buffer), HEADS)), len(buffer)]:
                at(size, name, n)
                for view in A.both(buffer[:n]):
                    classify_receive_burst([view], features)


# ---- cutting, executing, merging ----


def cut_pieces() -> None:
    """Segmentation of a frame in two pieces, parted at each byte of the headers and some of the payload."""
    for name, (header, frame) in undone(100, 32).items():
        whole = segment(frame, 32, header.gso_type).packets()
        for place in [*range(min(HEADS, len(frame)))]:
            at(name, place)
            for parts in apart(frame, place):
                assert segment(parts, 32, header.gso_type).packets() == whole
                assert len(segment_gather_lists(parts, 32, header.gso_type, 0, len(whole), 64)) == len(whole)
    for name, frame in kinds().items():  # lengths that are no multiple of anything
        for n in range(1, 70):
            at(name, n)
            for view in A.both(sized(frame, n)):
                with suppress(SegmentError):
                    segment(view, 7).packets()


def segments_into_buffers() -> None:
    """Segments written into buffers, and into two pieces each, that just take them."""
    guards = [(Guarded(), Guarded()) for _ in range(8)]
    for name, (header, frame) in undone(99, 32).items():
        whole = segment(frame, 32, header.gso_type).packets()
        for source in A.both(frame):
            for end in ("last", "first"):
                at(name, end)
                buffers = [getattr(one, end)(bytes(len(cut))) for (one, _), cut in zip(guards, whole, strict=False)]
                segment_into(source, 32, buffers, header.gso_type)
                assert list(map(bytes, buffers)) == whole
        for place in range(min(HEADS, len(whole[-1]))):
            at(name, "pieces", place)
            parts = [
                [one.last(bytes(place)), other.first(bytes(len(cut) - place))]
                for (one, other), cut in zip(guards, whole, strict=False)
            ]
            segment_into(frame, 32, parts, header.gso_type)
            assert [b"".join(part) for part in parts] == whole


def segments_into_too_little() -> None:
    """The same with a byte less: refused, and nothing is written behind it."""
    for header, frame in undone(99, 32).values():
        whole = segment(frame, 32, header.gso_type).packets()
        for n in range(len(whole[0])):
            for view in B.both(bytes(n)):
                at(n)
                with pytest.raises((SegmentError, ValueError)):
                    segment_into(A.last(frame), 32, [view] * len(whole), header.gso_type)


def execute() -> None:
    """Offloads of a frame in one piece and in two, executed in every way: none left undone, and only a checksum."""
    executor = Executor()
    for payload, mss in ((0, 0), (1, 0), (100, 0), (100, 32), (300, 128)):
        for name, (header, frame) in undone(payload, mss).items():
            for offloads in (0, 1):
                whole = executor.execute([(header, frame)], offloads)
                for view in A.both(frame):
                    at(name, payload, mss)
                    assert executor.execute([(header, view)], offloads) == whole
                for place in range(min(HEADS, len(frame))):
                    at(name, payload, mss, place)
                    for parts in apart(frame, place):
                        assert executor.execute([(header, parts)], offloads) == whole


def merge() -> None:
    """Coalescing runs of segments, each of which lies at guards of its own; headers are compared under a mask."""
    guards = [Guarded() for _ in range(8)]
    for payload, size in ((99, 33), (8, 1), (60, 20), (200, 67)):
        for name, frame in kinds().items():
            packets = segment(sized(frame, payload), size).packets() if "tcp" in name else [frame] * 3
            for end in ("last", "first"):
                at(name, payload, end)
                views = [getattr(guard, end)(packet) for guard, packet in zip(guards, packets, strict=False)]
                coalescer = Coalescer(fixed_id=True)
                merged = coalescer.receive(views) + coalescer.flush()
                assert sum(one.segments for one in merged) == len(views)
                assert all(len(bytes(one)) == len(one) for one in merged)


BYTES = [
    "sums", "copies", "pieces", "small_fields", "headers_and_frames", "cut_pieces", "segments_into_buffers",
    "segments_into_too_little", "execute", "merge",
]  # fmt: skip


@pytest.mark.parametrize("path", SIMD)
@pytest.mark.parametrize("name", BYTES)
def test_kernels_of_bytes(name: str, path: str, children: Callable[[str], Children]) -> None:
    children(path).run(name)


# ---- the tests can fail ----


def touches(what: str, end: str) -> None:
    """Read or write a byte on the guard page."""
    import ctypes

    at(what, end)
    address = A.address + (len(A.view) if end == "behind" else -1)
    byte = ctypes.c_ubyte.from_address(address)
    if what == "reads":
        print(byte.value)
    else:
        byte.value = 1


@pytest.mark.parametrize("end", ["before", "behind"])
@pytest.mark.parametrize("what", ["reads", "writes"])
def test_an_access_beyond_is_one_failed_test_with_a_name(
    what: str, end: str, children: Callable[[str], Children]
) -> None:
    with pytest.raises(AssertionError, match=rf"(?s)touches.*killed by SIGSEGV at \('{what}', '{end}'\).*in touches"):
        children("scalar").run("touches", what, end)
    children("scalar").run("small_fields")  # and the next one runs


def test_every_kind_is_there() -> None:
    assert len(corpus()) > 40 and len(kinds()) > 20 and len(undone(100, 32)) > 10 and HEADER == 24
