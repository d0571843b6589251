"""A cable between two network devices: one copy, from the guest that sends into the guest that receives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from virtio.ports.port import Port

class CableEnd(Port):
    name: str

class Cable:
    a: CableEnd
    b: CableEnd
    full: str
    up: bool
    def __init__(self, *, queues: int = 1, full: Literal["wait", "drop"] = "wait") -> None: ...
    def __iter__(self) -> Iterator[CableEnd]: ...
