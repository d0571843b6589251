"""Exercisers of the checksum kernels: for benchmarks and tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from typing_extensions import Buffer

def kernel_ns(
    work: Literal["sum", "sum_copy", "memcpy", "crc32c"],
    size: int,
    span: int,
    count: int,
    *,
    offset: int = 14,
    to_offset: int = 14,
) -> float: ...  # nanoseconds of thread CPU time a call
def gather_sum(pieces: Sequence[Buffer], skip: int, length: int) -> int: ...
def update_field(checksum: int, old: int, new: int, *, bits: Literal[16, 32]) -> int: ...
