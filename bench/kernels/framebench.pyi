"""Exercisers of the frame parse and of the hash: loops without the GIL, for benchmarks."""

from __future__ import annotations

from collections.abc import Iterable

from typing_extensions import Buffer

from virtio.offload.toeplitz import Toeplitz

def parse_frames(
    frames: Iterable[Buffer] | Buffer, offsets: Iterable[int] | None = None, *, rounds: int = 1000
) -> float: ...
def hash_frames(
    toeplitz: Toeplitz, frames: Iterable[Buffer] | Buffer, offsets: Iterable[int] | None = None, *, rounds: int = 1000
) -> float: ...
