"""The driver end of a virtqueue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from typing_extensions import Buffer

from virtio._ring import Queue
from virtio.constants import Postpone
from virtio.memory.guest_memory import GuestMemory
from virtio.virtqueue.layout import QueueLayout

# a piece of a buffer: (guest address, length), or a buffer object that lies in guest memory (GuestMemory.view)
Piece = tuple[int, int] | Buffer

class DriverQueue(Queue):
    def __init__(
        self,
        memory: GuestMemory,
        layout: QueueLayout,
        *,
        features: int = 0,
        index: int = 0,
        indirect: int | None = None,  # guest address of the indirect tables: size * max_indirect * 16 bytes
        max_indirect: int = 0,  # entries per table
        clamp_used_len: bool = False,
    ) -> None: ...
    @property
    def nfree(self) -> int: ...
    @property
    def nused(self) -> int: ...
    @property
    def outstanding(self) -> int: ...
    @property
    def full(self) -> bool: ...
    @property
    def empty(self) -> bool: ...
    def enqueue(self, readable: Sequence[Piece] = (), writable: Sequence[Piece] = (), cookie: Any = None) -> int: ...
    def enqueue_burst(self, chains: Iterable[tuple[Sequence[Piece], Sequence[Piece], Any]]) -> int: ...
    def dequeue(self) -> tuple[Any, int] | None: ...
    def dequeue_burst(self, limit: int = 256) -> list[tuple[Any, int]]: ...
    def notify(self) -> bool: ...
    def notification_data(self) -> int: ...
    def enable_intr(self) -> bool: ...  # True: completions already wait, process them now
    def postpone_intr(self, hint: Postpone) -> bool: ...
    def disable_intr(self) -> None: ...
    def drain(
        self,
    ) -> list[Any]: ...  # cookies of all outstanding chains; only for a queue that the device no longer works
    @classmethod
    def restore(
        cls, memory: GuestMemory, state: Mapping[str, Any], cookies: Mapping[int, Any] | None = None
    ) -> Self: ...
