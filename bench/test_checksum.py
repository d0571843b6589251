"""The checksum kernels, each beside its peer, over frames that start 14 bytes into a cache line:

- sums, beside DPDK's rte_raw_cksum() as packaged and built for this machine;
- copying with a sum, beside memcpy;
- CRC32c, beside rte_hash_crc();
- the Python functions, beside those of scapy, dpkt and numpy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from bench import peers
from bench.kernels.offloadbench import kernel_ns
from virtio import offload

SPANS = {"L1": 16 << 10, "L2": 384 << 10}
BURST = 256  # frames a Python call


def count_of(size: int) -> int:
    """Calls a round: some 10 ms of them."""
    return 400_000_000 // (size + 1000)


def dpdk(mode: str, size: int, span: int, cpu: int, *, native: bool) -> float:
    done = peers.dpdk("dpdk_checksum", mode, size, span, count_of(size), cpu=cpu, native=native)
    return float(done["ns"])


@pytest.mark.parametrize("level", SPANS)
@pytest.mark.parametrize(
    ("size", "native_bar", "packaged_bar"),
    [
        (20, None, None),
        (64, 1 / 0.9, None),
        (128, None, None),
        (256, None, None),
        (1500, 1 / 1.3, 1 / 2.5),
        (9000, None, None),
        (65536, 1 / 1.3, 1 / 2.5),
    ],
)
@pytest.mark.parametrize("native", [True, False], ids=["native", "packaged"])
def test_sum(
    native: bool, size: int, native_bar: float | None, packaged_bar: float | None, level: str, one_core: int,
    versus: Callable[..., None],
) -> None:  # fmt: skip
    if size > SPANS[level]:
        pytest.skip(f"{size} bytes do not fit in {level}")
    versus(
        f"checksum, {size} B, {level}",
        lambda: kernel_ns("sum", size, SPANS[level], count_of(size)),
        lambda: dpdk("raw_cksum", size, SPANS[level], one_core, native=native),
        "rte_raw_cksum, " + ("native" if native else "as packaged"),
        bar=native_bar if native else packaged_bar,
    )


@pytest.mark.parametrize(
    ("size", "level", "bar"), [(64, "L2", None), (1500, "L1", None), (1500, "L2", 1.4), (65536, "L2", None)]
)
def test_copy_and_sum(size: int, level: str, bar: float | None, one_core: int, versus: Callable[..., None]) -> None:
    half = SPANS[level] // 2  # source and target together
    versus(
        f"copy + checksum, {size} B, {level}",
        lambda: kernel_ns("sum_copy", size, half, count_of(size)),
        lambda: kernel_ns("memcpy", size, half, count_of(size)),
        "memcpy",
        bar=bar,
    )


def test_crc32c(one_core: int, versus: Callable[..., None]) -> None:
    versus(
        "CRC32c, 1500 B, L1",
        lambda: kernel_ns("crc32c", 1500, SPANS["L1"], count_of(1500)),
        lambda: dpdk("hash_crc", 1500, SPANS["L1"], one_core, native=True),
        "rte_hash_crc, native",
    )


def _scapy() -> Callable[[bytes], int]:
    utils = pytest.importorskip("scapy.utils", reason="pip install scapy")
    return utils.checksum  # type: ignore[no-any-return]


def _dpkt() -> Callable[[bytes], int]:
    dpkt = pytest.importorskip("dpkt", reason="pip install dpkt")
    return dpkt.in_cksum  # type: ignore[no-any-return]


def _numpy() -> Callable[[bytes], int]:
    numpy = pytest.importorskip("numpy", reason="pip install numpy")

    def checksum(data: bytes) -> int:
        total = int(numpy.frombuffer(data, ">u2").sum(dtype=numpy.uint64))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        return total ^ 0xFFFF

    return checksum


@pytest.mark.parametrize("size", [64, 1500])
@pytest.mark.parametrize(("name", "find"), [("scapy", _scapy), ("dpkt", _dpkt), ("numpy", _numpy)])
@pytest.mark.parametrize("burst", [False, True], ids=["one", "burst"])
def test_python(
    burst: bool, name: str, find: Callable[[], Callable[[bytes], int]], size: int, one_core: int,
    versus: Callable[..., None],
) -> None:  # fmt: skip
    peer = find()
    frames = [os.urandom(size) for _ in range(BURST)]
    assert list(offload.checksum_burst(frames)) == [offload.checksum(frame) for frame in frames] == [*map(peer, frames)]

    def timed(work: Callable[[], object]) -> float:
        start, rounds = time.thread_time_ns(), 20
        for _ in range(rounds):
            work()
        return (time.thread_time_ns() - start) / (rounds * BURST)

    versus(
        f"Python, checksum{'_burst' if burst else ''}, {size} B",
        lambda: timed(lambda: offload.checksum_burst(frames) if burst else [offload.checksum(f) for f in frames]),
        lambda: timed(lambda: [peer(frame) for frame in frames]),
        name,
    )


@pytest.mark.parametrize("size", [64, 1500])
def test_python_verify(size: int, one_core: int, versus: Callable[..., None]) -> None:
    """A batch of TCP segments: the call, the parse and both checksums; beside the checksum of as many bytes alone."""
    frame = bytearray(14 + size)
    frame[12:14], frame[14], frame[16:18], frame[23], frame[46] = b"\x08\0", 0x45, size.to_bytes(2, "big"), 6, 0x50
    assert offload.fill_checksums(frame)[:2] == (offload.Verdict.GOOD, offload.Verdict.GOOD)
    frames = [bytes(frame)] * BURST
    assert set(offload.verify_burst(frames)) == {(1, 1, 0, 0)}

    def ours() -> float:
        start, rounds = time.thread_time_ns(), 50
        for _ in range(rounds):
            offload.verify_burst(frames)
        return (time.thread_time_ns() - start) / (rounds * BURST)

    versus(
        f"Python, verify_burst, TCP of {size} B",
        ours,
        lambda: kernel_ns("sum", size, SPANS["L1"], count_of(size)),
        "the sum alone, in C",
    )
