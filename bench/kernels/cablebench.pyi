"""Exercisers of the path from one guest to another."""

from __future__ import annotations

from collections.abc import Iterable

from virtio.event.worker import Task
from virtio.ports.port import Port
from virtio.vtnet.rxq import VtnetReceive
from virtio.vtnet.txq import VtnetTransmit

class TwoCopies(Port):
    other: TwoCopies | None
    def __init__(self) -> None: ...

def forward(
    transmit: VtnetTransmit,
    receive: VtnetReceive,
    tasks: Iterable[Task],
    length: int,
    count: int,
    *,
    burst: int = 32,
) -> float: ...
def copies(
    length: int, count: int, *, burst: int = 32, senders: int = 192, receivers: int = 256, stride: int = 2240
) -> float: ...
