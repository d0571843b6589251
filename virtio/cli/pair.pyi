"""A driver end and a device end that work each other."""

from virtio.virtqueue.device_queue import DeviceQueue
from virtio.virtqueue.driver_queue import DriverQueue

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
