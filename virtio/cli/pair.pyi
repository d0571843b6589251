"""Exercisers of the rings, for benchmarks, stress tests and demonstrations."""

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

class Pair:
    count: int
    @property
    def returned(self) -> int: ...
    def __init__(
        self,
        driver: DriverQueue,
        device: DeviceQueue,
        *,
        count: int,
        batch: int,
        buffers: int,
        length: int = 64,
        verify: bool = False,
        kick: int = -1,
        call: int = -1,
    ) -> None: ...
    def stop(self) -> None: ...
    def drive(self) -> float: ...
    def serve(self) -> None: ...
