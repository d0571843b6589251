"""The splice: joins two ports, without any device between them."""

from __future__ import annotations

from typing import Any

from virtio.event.worker import Task
from virtio.ports.port import Port

class PortSplice(Task):
    giver: Port
    taker: Port
    def __init__(self, giver: Port, taker: Port, queue: int = 0) -> None: ...
    def connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def drain(self) -> bool: ...  # True: frames wait that were read, or a burst is under way
    def abandon(self) -> None: ...
    def statistics(self) -> dict[str, Any]: ...
