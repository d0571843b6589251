"""Coalescing of TCP segments (LRO, GRO) from Python: frames in, merged frames out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self, final

from typing_extensions import Buffer

from virtio.offload.net_hdr import NetHeader

@final
class Merged:
    @property
    def header(self) -> bytes: ...  # empty: the frame is untouched
    @property
    def pieces(self) -> list[memoryview]: ...
    @property
    def segments(self) -> int: ...
    @property
    def net_header(self) -> NetHeader: ...
    @property
    def gso_type(self) -> int: ...
    @property
    def gso_size(self) -> int: ...
    @property
    def fixed_id(self) -> bool: ...
    @property
    def passed(self) -> str | None: ...  # why the frame is untouched
    def __len__(self) -> int: ...
    def __bytes__(self) -> bytes: ...

@final
class Coalescer:
    def __new__(
        cls,
        *,
        flows: int = 64,
        segments: int = 64,
        max_bytes: int = 65535,
        max_age_ns: int | None = None,
        verify: bool = True,
        fixed_id: bool = False,
        rsc_info: bool = False,
    ) -> Self: ...
    def receive(
        self,
        frames: Buffer | Sequence[Buffer],
        *,
        offsets: Iterable[int] | Buffer | None = None,
        now: int | None = None,
        trusted: bool | Iterable[bool] = False,
    ) -> list[Merged]: ...
    def flush(self, frame: Buffer | None = None) -> list[Merged]: ...
    def statistics(self) -> dict[str, Any]: ...
