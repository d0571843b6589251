"""Exercisers of the network driver."""

from __future__ import annotations

from collections.abc import Iterable

from virtio.event.worker import Task
from virtio.vtnet.rxq import VtnetReceive
from virtio.vtnet.txq import VtnetTransmit

def through(
    transmit: VtnetTransmit | None,
    receive: VtnetReceive | None,
    tasks: Iterable[Task],
    length: int,
    count: int,
    *,
    burst: int = 32,
) -> tuple[float, int, int]: ...
