"""Loops over the rings, for benchmarks and tests."""

from virtio.virtqueue.device_queue import DeviceQueue
from virtio.virtqueue.driver_queue import DriverQueue

def cycle(
    driver: DriverQueue,
    device: DeviceQueue,
    batch: int,
    count: int,
    *,
    buffers: int,
    length: int = 1500,
    pieces: int = 1,
) -> float: ...
def device_only(device: DeviceQueue, batch: int, count: int, *, length: int = 1500) -> float: ...
