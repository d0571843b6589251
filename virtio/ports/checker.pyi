"""The verifying sink: takes the frames of generators, and says what is wrong with them."""

from __future__ import annotations

from virtio.ports.port import Port

class Sink(Port):
    verify: bool
    def __init__(self, *, queues: int = 1, offloads: int = 0, verify: bool = True) -> None: ...
    def faults(self) -> dict[str, int]: ...
    def clear(self) -> None: ...
