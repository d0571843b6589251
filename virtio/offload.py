"""What a NIC does to a frame, as functions on plain bytes: parsing, checksums, segmentation, coalescing, hashing.

One frame at a time; most also take a batch: a sequence of buffers, or one buffer and offsets.
"""

from __future__ import annotations

from virtio._checksum import (
    checksum,
    checksum_burst,
    complete_checksum,
    copy_checksum,
    partial_sum,
    pseudo_header_sum,
    simd,
    update_checksum,
)
from virtio._coalescer import Coalescer, Merged
from virtio._crc32c import crc32c
from virtio._frame_checksum import (
    Checks,
    Verdict,
    Verdicts,
    fill_checksums,
    fill_checksums_burst,
    fill_partial_checksum,
    verify,
    verify_burst,
)
from virtio._frame_view import Frame, Frames, L3Kind, Layer, LayerFlag, Stop, Tunnel, parse, parse_burst
from virtio._net_hdr import NetHeader, NetHeaderFault, net_header_size
from virtio._offload_counters import (
    OffloadCounters,
    ReceiveReason,
    ReceiveVerdict,
    TransmitOutcome,
    TransmitReason,
)
from virtio._offload_rx import Receive, classify_receive, classify_receive_burst, complete_receive
from virtio._offload_tx import Transmit, prepare_transmit, prepare_transmit_burst
from virtio._segments import Segments, segment, segment_into
from virtio._toeplitz import Hashes, HashReport, HashTunnel, HashType, Toeplitz
from virtio.constants import GsoType, NetHeaderFlag
from virtio.errors import SegmentError

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
