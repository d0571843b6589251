"""What a NIC does to a frame, as functions on plain bytes: parsing, checksums, segmentation, coalescing, hashing.

One frame at a time; most also take a batch: a sequence of buffers, or one buffer and offsets.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virtio.constants import GsoType, NetHeaderFlag
    from virtio.errors import SegmentError
    from virtio.offload.coalescer import Coalescer, Merged
    from virtio.offload.counters import (
        OffloadCounters,
        ReceiveReason,
        ReceiveVerdict,
        TransmitOutcome,
        TransmitReason,
    )
    from virtio.offload.crc import crc32c
    from virtio.offload.frame_checksum import (
        Checks,
        Verdict,
        Verdicts,
        fill_checksums,
        fill_checksums_burst,
        fill_partial_checksum,
        verify,
        verify_burst,
    )
    from virtio.offload.frames import Frame, Frames, L3Kind, Layer, LayerFlag, Stop, Tunnel, parse, parse_burst
    from virtio.offload.inet_checksum import (
        checksum,
        checksum_burst,
        complete_checksum,
        copy_checksum,
        partial_sum,
        pseudo_header_sum,
        simd,
        update_checksum,
    )
    from virtio.offload.net_hdr import NetHeader, NetHeaderFault, net_header_size
    from virtio.offload.rx import Receive, classify_receive, classify_receive_burst, complete_receive
    from virtio.offload.segments import Segments, segment, segment_into
    from virtio.offload.toeplitz import Hashes, HashReport, HashTunnel, HashType, Toeplitz
    from virtio.offload.tx import Transmit, prepare_transmit, prepare_transmit_burst

__all__ = [
    "Checks",
    "Coalescer",
    "Frame",
    "Frames",
    "GsoType",
    "HashReport",
    "HashTunnel",
    "HashType",
    "Hashes",
    "L3Kind",
    "Layer",
    "LayerFlag",
    "Merged",
    "NetHeader",
    "NetHeaderFault",
    "NetHeaderFlag",
    "OffloadCounters",
    "Receive",
    "ReceiveReason",
    "ReceiveVerdict",
    "SegmentError",
    "Segments",
    "Stop",
    "Toeplitz",
    "Transmit",
    "TransmitOutcome",
    "TransmitReason",
    "Tunnel",
    "Verdict",
    "Verdicts",
    "checksum",
    "checksum_burst",
    "classify_receive",
    "classify_receive_burst",
    "complete_checksum",
    "complete_receive",
    "copy_checksum",
    "crc32c",
    "fill_checksums",
    "fill_checksums_burst",
    "fill_partial_checksum",
    "net_header_size",
    "parse",
    "parse_burst",
    "partial_sum",
    "prepare_transmit",
    "prepare_transmit_burst",
    "pseudo_header_sum",
    "segment",
    "segment_into",
    "simd",
    "update_checksum",
    "verify",
    "verify_burst",
]

_NAMES = {
    "virtio.offload.inet_checksum": (
        "checksum checksum_burst complete_checksum copy_checksum partial_sum pseudo_header_sum simd update_checksum"
    ),
    "virtio.offload.coalescer": "Coalescer Merged",
    "virtio.offload.crc": "crc32c",
    "virtio.offload.frame_checksum": (
        "Checks Verdict Verdicts fill_checksums fill_checksums_burst fill_partial_checksum verify verify_burst"
    ),
    "virtio.offload.frames": "Frame Frames L3Kind Layer LayerFlag Stop Tunnel parse parse_burst",
    "virtio.offload.net_hdr": "NetHeader NetHeaderFault net_header_size",
    "virtio.offload.counters": "OffloadCounters ReceiveReason ReceiveVerdict TransmitOutcome TransmitReason",
    "virtio.offload.rx": "Receive classify_receive classify_receive_burst complete_receive",
    "virtio.offload.tx": "Transmit prepare_transmit prepare_transmit_burst",
    "virtio.offload.segments": "Segments segment segment_into",
    "virtio.offload.toeplitz": "Hashes HashReport HashTunnel HashType Toeplitz",
    "virtio.constants": "GsoType NetHeaderFlag",
    "virtio.errors": "SegmentError",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import the kernels when the first one is asked for (PEP 562): ports and queues need none of their names."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # all at once, and no __getattr__ from then on: in a module that has one, each name takes Python 15 ns longer
    found = {each: getattr(importlib.import_module(home), each) for each, home in _HOMES.items()}
    globals().update(found)
    globals().pop("__getattr__", None)
    return found[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
