"""vtnet's receive queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

from virtio._bell import Bell
from virtio._driver_queue import DriverQueue
from virtio._net_hdr import NetHeader
from virtio._offload_counters import ReceiveReason, ReceiveVerdict
from virtio._vtnet_pool import Pool

class ReceivedFrame(NamedTuple):
    verdict: ReceiveVerdict
    reason: ReceiveReason
    segments: int
    header: NetHeader

class Received(Sequence[ReceivedFrame]):
    @overload
    def __getitem__(self, index: int) -> ReceivedFrame: ...
    @overload
    def __getitem__(self, index: slice) -> list[ReceivedFrame]: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class VtnetReceive:
    queue: DriverQueue
    pool: Pool
    kick: Bell
    interrupt: Bell | None
    def __init__(
        self, queue: DriverQueue, kick: Bell, interrupt: Bell | None, pool: Pool, *, features: int, frame_max: int
    ) -> None: ...
    def fill(self) -> None: ...
    def set_lro(self, on: bool) -> None: ...
    @overload
    def receive(self, limit: int = 64, *, info: Literal[False] = False, complete: bool = True) -> list[bytes]: ...
    @overload
    def receive(
        self, limit: int = 64, *, info: Literal[True], complete: bool = True
    ) -> tuple[list[bytes], Received]: ...
    @overload
    def receive_views(
        self, limit: int = 64, *, info: Literal[False] = False, complete: bool = True
    ) -> list[tuple[memoryview, ...]]: ...
    @overload
    def receive_views(
        self, limit: int = 64, *, info: Literal[True], complete: bool = True
    ) -> tuple[list[tuple[memoryview, ...]], Received]: ...
    def forget(self) -> None: ...
    def arm(self) -> bool: ...
    def disarm(self) -> None: ...
    @property
    def offloads(self) -> int: ...
    @property
    def posted(self) -> int: ...
    def statistics(self) -> dict[str, int]: ...
    def reasons(self) -> dict[ReceiveReason, int]: ...
