"""The TAP port: frames to and from the Linux kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from virtio.ports.port import Port

class Tap(Port):
    name: str
    header_size: int
    known_offloads: int
    granted_offloads: int
    def __init__(
        self,
        name: str | None = None,
        *,
        fd: int | None = None,
        fds: Iterable[int] | None = None,
        queues: int = 1,
        header_size: int | None = None,
        vnet_header: bool = True,
        mtu: int | None = None,
    ) -> None: ...
    @property
    def fds(self) -> tuple[int, ...]: ...
    def fileno(self) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
