"""What the tests of the offload kernels share: SIMD paths, memory with guards around it, checksums the slow way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from guardpages import Guarded

from virtio.offload import inet_checksum as _checksum


@pytest.fixture(params=("scalar", "avx2", "avx512"))
def simd(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test on each path that this CPU has; give the path's name."""
    name: str = request.param
    if name not in _checksum.simd_available():
        pytest.skip(f"this CPU has no {name}")
    before = _checksum.simd()
    _checksum.use(name)  # type: ignore[arg-type]
    yield name
    _checksum.use(before)  # type: ignore[arg-type]


def each_simd() -> Iterator[str]:
    """The same as a loop, for tests by hypothesis, which do not go with fixtures of a function."""
    before = _checksum.simd()
    try:
        for name in _checksum.simd_available():
            _checksum.use(name)  # type: ignore[arg-type]
            yield name
    finally:
        _checksum.use(before)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def guarded() -> Guarded:
    return Guarded(2)


def naive_sum(data: bytes, initial: int = 0) -> int:
    """RFC 1071 as it says: 16-bit words, big-endian, carries added back in."""
    data += b"\0" * (len(data) & 1)
    total = initial + sum(data[i] << 8 | data[i + 1] for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def naive_checksum(data: bytes, initial: int = 0) -> int:
    return naive_sum(data, initial) ^ 0xFFFF


def naive_crc32c(data: bytes) -> int:
    """CRC32c bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
