"""Exerciser of coalescing: a loop without the GIL, for benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import Buffer

def coalesce(
    frames: Sequence[Buffer],
    *,
    flows: int,
    segments: int = 64,
    burst: int = 128,
    rounds: int,
    verify: bool = False,
    hold: bool = False,
) -> tuple[float, float]: ...  # nanoseconds a frame, results a round
