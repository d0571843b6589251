"""The pump: joins a vtnet driver to a port."""

from __future__ import annotations

from virtio._port import Port
from virtio._vtnet_receive import VtnetReceive
from virtio._vtnet_transmit import VtnetTransmit
from virtio._worker import Task

class PumpTransmit(Task):
    transmit: VtnetTransmit
    port: Port
    def __init__(self, transmit: VtnetTransmit, port: Port, queue: int = 0) -> None: ...
    def retarget(self, transmit: VtnetTransmit) -> None: ...
    def statistics(self) -> dict[str, int]: ...

class PumpReceive(Task):
    receive: VtnetReceive
    port: Port
    def __init__(self, receive: VtnetReceive, port: Port, queue: int = 0) -> None: ...
    def retarget(self, receive: VtnetReceive) -> None: ...
    def statistics(self) -> dict[str, int]: ...
