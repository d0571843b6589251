"""Both ends of one ring, in memory of their own."""

from __future__ import annotations

from typing import Any

from virtio import DeviceQueue, DriverQueue, Feature, GuestMemory, QueueLayout

BASE, TABLES, DATA = 0x10000, 0x140000, 0x180000


def ends(packed: bool, size: int = 8, features: int = 0, **options: Any) -> tuple[DriverQueue, DeviceQueue]:
    memory = GuestMemory.allocate(4 << 20, BASE)
    layout = QueueLayout.packed(size, BASE) if packed else QueueLayout.split(size, BASE)
    features |= Feature.RING_PACKED if packed else 0
    return DriverQueue(memory, layout, features=features, **options), DeviceQueue(memory, layout, features=features)
