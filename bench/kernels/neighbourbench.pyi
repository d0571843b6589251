"""Guests that share a worker, as loops without the GIL."""

from __future__ import annotations

from collections.abc import Sequence

from virtio.event.notifier import Bell
from virtio.virtqueue.driver_queue import DriverQueue

class Flood:
    """Keeps a queue full of the same chains."""
    def __init__(
        self,
        queue: DriverQueue,
        kick: Bell,
        chains: Sequence[Sequence[tuple[int, int]]],
        *,
        writable: bool = False,
        pause: int = 20,
        storm: bool = False,
        depth: int = 32768,
    ) -> None: ...
    @property
    def done(self) -> int: ...
    def stop(self) -> None: ...
    def run(self) -> None: ...

class Ping:
    """Sends one frame and waits for it to come back, again and again."""
    def __init__(
        self,
        transmit: DriverQueue,
        receive: DriverQueue,
        kick: Bell,
        more: Bell,
        frame: tuple[int, int],
        buffers: Sequence[tuple[int, int]],
    ) -> None: ...
    def run(self, count: int, pause: int) -> list[int]: ...
