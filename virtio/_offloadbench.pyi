"""Exercisers of the checksum kernels."""

from __future__ import annotations

from typing import Literal

def kernel_ns(
    work: Literal["sum", "sum_copy", "memcpy", "crc32c"],
    size: int,
    span: int,
    count: int,
    *,
    offset: int = 14,
    to_offset: int = 14,
) -> float: ...  # nanoseconds of thread CPU time a call
