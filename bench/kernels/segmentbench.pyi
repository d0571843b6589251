"""Exercisers of segmentation."""

from __future__ import annotations

from typing import Literal

from typing_extensions import Buffer

def segment_ns(
    work: Literal["headers", "copy", "memcpy"],
    frame: Buffer,
    gso_size: int,
    count: int,
    *,
    gso_type: int = 0x100,  # what the frame has
    partial: bool = False,
) -> float: ...  # nanoseconds of thread CPU time a segment
def segment_gather_lists(
    frame: list[Buffer] | tuple[Buffer, ...], gso_size: int, gso_type: int, first: int, n: int, room: int
) -> list[list[bytes]]: ...
