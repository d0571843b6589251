"""Cutting frames into segments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, final, overload

from typing_extensions import Buffer

@final
class Segments(Sequence[tuple[memoryview, ...]]):
    """The segments of a frame: a sequence of views, headers first."""
    @property
    def headers(self) -> bytes: ...
    @property
    def stride(self) -> int: ...  # bytes of headers for each segment
    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: int, /) -> tuple[memoryview, ...]: ...  # headers, then payload
    @overload
    def __getitem__(self, index: slice, /) -> list[tuple[memoryview, ...]]: ...
    def packets(self) -> list[bytes]: ...

def segment(
    frame: Buffer | Sequence[Buffer],  # pieces: a list or tuple
    gso_size: int,
    gso_type: int | None = None,  # default: what the frame has
    *,
    checksum: Literal["full", "partial"] = "full",
    fixed_id: bool = False,
    fixed_outer_id: bool = False,
    max_segments: int = 0xFFFF,
) -> Segments: ...
def segment_into(
    frame: Buffer | Sequence[Buffer],  # pieces: a list or tuple
    gso_size: int,
    buffers: Iterable[Buffer | Sequence[Buffer]],  # of pieces: lists or tuples
    gso_type: int | None = None,
    *,
    checksum: Literal["full", "partial"] = "full",
    fixed_id: bool = False,
    fixed_outer_id: bool = False,
    max_segments: int = 0xFFFF,
) -> list[int]: ...  # bytes of each segment
