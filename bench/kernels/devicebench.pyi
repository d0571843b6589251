"""A port that tests play, and loops that measure the device end of a network device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from virtio.offload.net_hdr import NetHeader
from virtio.ports.port import Port

class ScriptPort(Port):
    calls: list[tuple[Any, ...]]
    room: int
    def __init__(self, *, queues: int = 1, offloads: int = 0, in_place: bool = False, keep: bool = True) -> None: ...
    def give(
        self, frames: Iterable[tuple[NetHeader, bytes]], *, queue: int = 0, splits: Iterable[int] = ()
    ) -> None: ...
    def waiting(self, queue: int = 0) -> int: ...
    def take(self, queue: int = 0) -> list[tuple[NetHeader, bytes]]: ...
    def set_offloads(self, offloads: int) -> None: ...
    @property
    def refused(self) -> int: ...
