"""What a NIC does to a frame, as functions on plain bytes: parsing, checksums, segmentation, coalescing, hashing.

One frame at a time, or a batch: a sequence of buffers, or one buffer and offsets. Nothing here knows a ring.
"""

from __future__ import annotations

from virtio._checksum import (
    checksum,
    checksum_burst,
    complete_checksum,
    copy_checksum,
    partial_sum,
    pseudo_header_sum,
    update_checksum,
)
from virtio._coalescer import Coalescer, Merged
from virtio._crc32c import crc32c
from virtio._frame_checksum import (
    Checks,
    Verdict,
    fill_checksums,
    fill_checksums_burst,
    fill_partial_checksum,
    verify,
    verify_burst,
)
from virtio._segments import Segments, segment, segment_into
from virtio.errors import SegmentError

__all__ = [
    "Checks",
    "Coalescer",
    "Merged",
    "SegmentError",
    "Segments",
    "Verdict",
    "checksum",
    "checksum_burst",
    "complete_checksum",
    "copy_checksum",
    "crc32c",
    "fill_checksums",
    "fill_checksums_burst",
    "fill_partial_checksum",
    "partial_sum",
    "pseudo_header_sum",
    "segment",
    "segment_into",
    "update_checksum",
    "verify",
    "verify_burst",
]
