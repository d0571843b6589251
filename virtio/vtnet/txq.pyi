"""vtnet's transmit queue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from typing_extensions import Buffer

from virtio.event.notifier import Bell
from virtio.offload.counters import TransmitReason
from virtio.offload.net_hdr import NetHeader
from virtio.offload.toeplitz import Toeplitz
from virtio.virtqueue.driver_queue import DriverQueue
from virtio.vtnet.pool import Pool

def transmit_by_flow(
    queues: Iterable[VtnetTransmit],
    toeplitz: Toeplitz,
    frames: Sequence[Buffer] | Buffer,
    *,
    checksum: bool = False,
    mss: int = 0,
    layer: Literal["inner", "outer"] | None = None,
    headers: NetHeader | Iterable[NetHeader | None] | None = None,
    offsets: Sequence[int] | Buffer | None = None,
) -> int: ...

class VtnetTransmit:
    queue: DriverQueue
    small: Pool
    large: Pool | None
    kick: Bell
    interrupt: Bell | None
    def __init__(
        self, queue: DriverQueue, kick: Bell, interrupt: Bell | None, small: Pool, large: Pool | None, *, features: int
    ) -> None: ...
    def transmit(
        self,
        frames: Sequence[Buffer] | Buffer,
        *,
        checksum: bool = False,
        mss: int = 0,
        layer: Literal["inner", "outer"] | None = None,
        headers: NetHeader | Iterable[NetHeader | None] | None = None,
        offsets: Sequence[int] | Buffer | None = None,
    ) -> int: ...
    def buffers(self, n: int, length: int = 0) -> list[memoryview]: ...
    def reclaim(self) -> int: ...
    def limit(self, mtu: int | None) -> None: ...
    def retire(self) -> None: ...
    def forget(self) -> None: ...
    @property
    def offloads(self) -> int: ...
    @property
    def header_size(self) -> int: ...
    @property
    def frame_max(self) -> int: ...
    def statistics(self) -> dict[str, int]: ...
    def reasons(self) -> dict[TransmitReason, int]: ...
