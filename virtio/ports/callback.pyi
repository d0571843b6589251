"""A port made of Python functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from typing_extensions import Buffer

from virtio.offload.net_hdr import NetHeader
from virtio.ports.port import Port

class CallPort(Port):
    def __init__(
        self,
        send: Callable[[list[tuple[NetHeader, bytes]]], object] | None = None,
        receive: Callable[[int], Iterable[Buffer | tuple[NetHeader, Buffer]] | None] | None = None,
        *,
        offloads: int = 0,
        interval_us: int = 10000,
    ) -> None: ...
    def wake(self) -> None: ...
