"""Executing offloads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from typing_extensions import Buffer

from virtio.offload.net_hdr import NetHeader

class Executor:
    """Does what frames leave undone."""
    def execute(
        self,
        packets: Iterable[tuple[NetHeader, Buffer | Sequence[Buffer]]],  # pieces: a list or tuple
        offloads: int = 0,  # VIRTIO_OFFLOAD_* bits
    ) -> list[tuple[NetHeader, bytes]]: ...
    def statistics(self) -> dict[str, Any]: ...
