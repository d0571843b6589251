"""Exercisers of the network driver."""

from __future__ import annotations

from collections.abc import Iterable

from virtio._vtnet_receive import VtnetReceive
from virtio._vtnet_transmit import VtnetTransmit
from virtio._worker import Task

def through(
    transmit: VtnetTransmit | None,
    receive: VtnetReceive | None,
    tasks: Iterable[Task],
    length: int,
    count: int,
    *,
    burst: int = 32,
) -> tuple[float, int, int]: ...
