"""The receive queue of a network device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from virtio.event.notifier import Bell
from virtio.event.worker import Task
from virtio.ports.port import Port
from virtio.virtqueue.device_queue import DeviceQueue

def guest_offloads(features: int) -> int: ...

class NetReceive(Task):
    connected: bool
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
        frame_max: int = 65589,
        by_hand: bool = False,
    ) -> None: ...
    def accept(self, features: int) -> None: ...
    @property
    def offloads(self) -> int: ...  # VIRTIO_OFFLOAD_* bits
    def set_call(self, bell: Bell) -> None: ...
    def close(self, closed: bool, *, idle: bool = False) -> None: ...
    def limit(self, mtu: int | None) -> None: ...
    def drain(self) -> bool: ...  # True: a frame waits that was read and finds no room
    def abandon(self) -> None: ...
    def filter(
        self,
        *,
        modes: int,
        mac: bytes,
        unicast: Sequence[bytes] = (),
        multicast: Sequence[bytes] = (),
        vlans: bytes | None = None,
    ) -> None: ...
    def connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def statistics(self) -> dict[str, Any]: ...
