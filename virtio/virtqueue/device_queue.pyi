"""The device end of a virtqueue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from virtio._ring import Queue
from virtio.memory.guest_memory import GuestMemory
from virtio.virtqueue.chain import Chain as Chain
from virtio.virtqueue.inflight import Inflight
from virtio.virtqueue.layout import QueueLayout

class DeviceQueue(Queue):
    def __init__(
        self,
        memory: GuestMemory,
        layout: QueueLayout,
        *,
        features: int = 0,
        index: int = 0,
        max_chain: int | None = None,  # default: the queue size (2.7.5.3.1)
    ) -> None: ...
    @property
    def available(self) -> int: ...  # split: chains waiting; packed: 1 if one waits, else 0
    far: bool
    @property
    def outstanding(self) -> list[Chain]: ...
    @property
    def inflight(self) -> Inflight | None: ...  # what track() was given
    def pop(self) -> Chain | None: ...
    def pop_burst(self, limit: int = 256) -> list[Chain]: ...
    def unpop(self, chain: Chain) -> None: ...  # the one popped last
    def add_used(self, chain: Chain, written: int | None = None) -> None: ...
    def add_used_burst(self, chains: Sequence[Chain]) -> None: ...
    def needs_notification(self) -> bool: ...
    def enable_notification(self) -> bool: ...  # True: chains already wait, process them now
    def disable_notification(self) -> None: ...
    def track(self, inflight: Inflight) -> None: ...  # its chains are popped again, first
    def counters(self) -> dict[str, int]: ...
    def dump(self) -> str: ...
    def state(self) -> dict[str, Any]: ...
    def reset(self, layout: QueueLayout | None = None) -> None: ...
    @classmethod
    def restore(
        cls, memory: GuestMemory, state: Mapping[str, Any]
    ) -> Self: ...  # its outstanding chains are to be finished
