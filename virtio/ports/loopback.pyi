"""The loopback port: every frame comes back to its sender."""

from __future__ import annotations

from typing import Literal

from virtio.ports.port import Port

class Loopback(Port):
    full: str
    def __init__(self, *, queues: int = 1, full: Literal["wait", "drop"] = "wait") -> None: ...
