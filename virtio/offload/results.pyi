"""Arrays of C structs as sequences and buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, overload

_T = TypeVar("_T")

class Records(Sequence[_T]):
    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: int, /) -> _T: ...
    @overload
    def __getitem__(self, index: slice, /) -> list[_T]: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
