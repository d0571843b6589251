"""The packet generator: frames that a Sink can verify."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from virtio.ports.checker import Sink

class Generator(Sink):
    kind: str
    def __init__(
        self,
        size: int | Sequence[int] = 60,
        *,
        kind: Literal["raw", "tcp"] = "raw",
        count: int | None = None,
        rate: float | None = None,
        partial: bool = False,
        gso_size: int = 0,
        flow: int = 0,
        source: str = "02:00:00:00:00:01",
        destination: str = "ff:ff:ff:ff:ff:ff",
        queues: int = 1,
        offloads: int = 0,
        verify: bool = True,
    ) -> None: ...
    def stop(self) -> None: ...
    @property
    def done(self) -> bool: ...
