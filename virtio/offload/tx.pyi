"""Sending: from what a network stack asks for to a frame and a header that say just that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from typing_extensions import Buffer

from virtio.offload.counters import OffloadCounters, TransmitOutcome, TransmitReason
from virtio.offload.net_hdr import NetHeader

class Transmit(NamedTuple):
    outcome: TransmitOutcome
    reason: TransmitReason
    header: NetHeader  # all 0 unless the outcome is SENT_AS (to the driver: but for num_buffers)

def prepare_transmit(
    frame: Buffer,
    features: int,
    mss: int = 0,
    checksum: bool = True,
    *,
    layer: Literal["inner", "outer"] | None = None,
    to_driver: bool = False,
    counters: OffloadCounters | None = None,
) -> Transmit: ...
def prepare_transmit_burst(
    frames: Sequence[Buffer] | Buffer,
    features: int,
    mss: int | Iterable[int] = 0,
    checksum: bool = True,
    *,
    layer: Literal["inner", "outer"] | None = None,
    to_driver: bool = False,
    offsets: Iterable[int] | None = None,
    counters: OffloadCounters | None = None,
) -> tuple[bytes, bytes]: ...
