"""What is known of frames that were received."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

from virtio.offload.counters import ReceiveReason, ReceiveVerdict
from virtio.offload.net_hdr import NetHeader

class ReceivedFrame(NamedTuple):
    verdict: ReceiveVerdict
    reason: ReceiveReason
    segments: int
    header: NetHeader

class Received(Sequence[ReceivedFrame]):
    @overload
    def __getitem__(self, index: int, /) -> ReceivedFrame: ...
    @overload
    def __getitem__(self, index: slice, /) -> list[ReceivedFrame]: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
