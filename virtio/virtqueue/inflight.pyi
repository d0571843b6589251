"""The chains in flight of a device queue, in memory that outlives the process."""

from __future__ import annotations

from virtio.memory.region import Region

class Inflight:
    def __init__(self, region: Region, offset: int, entries: int) -> None: ...
    @property
    def region(self) -> Region: ...
    @property
    def entries(self) -> int: ...
    @property
    def waiting(self) -> int: ...  # chains that are to be popped again
    @staticmethod
    def size(entries: int, packed: bool) -> int: ...  # bytes
