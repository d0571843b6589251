"""The device end of a virtqueue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from typing_extensions import Buffer

from virtio._memory import GuestMemory
from virtio._ring import Queue
from virtio.layout import QueueLayout

class Chain:
    """One chain of buffers, popped: a view of guest memory."""
    @property
    def head(self) -> int: ...
    @property
    def readable(self) -> list[memoryview]: ...
    @property
    def writable(self) -> list[memoryview]: ...
    @property
    def readable_length(self) -> int: ...
    @property
    def writable_length(self) -> int: ...
    written: int                            # what add_used reports unless told otherwise; write() moves it
    def read(self, offset: int = 0, length: int | None = None) -> bytes: ...
    def write(self, data: Buffer, offset: int | None = None) -> int: ...   # default offset: written

class DeviceQueue(Queue):
    def __init__(
        self,
        memory: GuestMemory,
        layout: QueueLayout,
        *,
        features: int = 0,
        index: int = 0,
        max_chain: int | None = None,       # default: the queue size (2.7.5.3.1)
    ) -> None: ...
    @property
    def available(self) -> int: ...         # split: chains waiting; packed: 1 if one waits, else 0
    @property
    def outstanding(self) -> list[Chain]: ...
    def pop(self) -> Chain | None: ...
    def pop_burst(self, limit: int = 256) -> list[Chain]: ...
    def add_used(self, chain: Chain, written: int | None = None) -> None: ...
    def add_used_burst(self, chains: Sequence[Chain]) -> None: ...
    def needs_notification(self) -> bool: ...
    def enable_notification(self) -> bool: ...   # True: chains already wait, process them now
    def disable_notification(self) -> None: ...
    @classmethod
    def restore(cls, memory: GuestMemory, state: Mapping[str, Any]) -> Self: ...  # its outstanding chains are to be finished
