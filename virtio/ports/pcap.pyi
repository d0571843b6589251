"""Ports onto capture files, in the format of libpcap: one plays frames back, one writes them."""

from __future__ import annotations

from os import PathLike
from typing import Self

from virtio.ports.port import Port

class PcapReader(Port):
    path: str
    def __init__(
        self, path: str | bytes | PathLike[str], *, speed: float | None = None, loops: int | None = 1, queues: int = 1
    ) -> None: ...
    @property
    def done(self) -> bool: ...
    @property
    def fault(self) -> str | None: ...

class PcapWriter(Port):
    path: str
    def __init__(
        self, path: str | bytes | PathLike[str], *, snaplen: int = 262144, offloads: int = 0, queues: int = 1
    ) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
