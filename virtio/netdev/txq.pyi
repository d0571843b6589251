"""The transmit queue of a network device."""

from __future__ import annotations

from typing import Any

from virtio.event.notifier import Bell
from virtio.event.worker import Task
from virtio.ports.port import Port
from virtio.virtqueue.device_queue import DeviceQueue

class NetTransmit(Task):
    def __init__(
        self,
        queue: DeviceQueue,
        port: Port,
        pair: int,
        features: int,
        *,
        kick: Bell,
        call: Bell,
        trouble: Bell,
        by_hand: bool = False,
    ) -> None: ...
    def set_call(self, bell: Bell) -> None: ...
    def close(self, closed: bool) -> None: ...
    def inject(self, frame: bytes) -> bool: ...
    def statistics(self) -> dict[str, Any]: ...
