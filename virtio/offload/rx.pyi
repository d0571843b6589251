"""Receiving: what a frame's header says about its checksum, held against the frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from typing_extensions import Buffer

from virtio.offload.counters import OffloadCounters, ReceiveReason, ReceiveVerdict
from virtio.offload.net_hdr import NetHeader

class Receive(NamedTuple):
    verdict: ReceiveVerdict
    reason: ReceiveReason
    csum_start: int  # NEEDS_CHECKSUM: the transport header; 0 otherwise
    csum_offset: int  # and the checksum field behind it
    segments: int
    levels: int  # transport checksums vouched for, from outside: 0 to 2

def classify_receive(
    header: NetHeader,
    frame: Buffer,
    features: int,
    *,
    to_driver: bool = True,
    counters: OffloadCounters | None = None,
) -> Receive: ...
def complete_receive(
    header: NetHeader,
    frame: Buffer,
    features: int,
    *,
    to_driver: bool = True,
    counters: OffloadCounters | None = None,
) -> Receive: ...
def classify_receive_burst(
    buffers: Sequence[Buffer] | Buffer,
    features: int,
    *,
    to_driver: bool = True,
    offsets: Iterable[int] | None = None,
    counters: OffloadCounters | None = None,
) -> tuple[bytes, bytes]: ...
