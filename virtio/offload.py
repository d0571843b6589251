"""What a NIC does to a frame, as functions on plain bytes: parsing, checksums, segmentation, coalescing, hashing.

One frame at a time, or a batch: a sequence of buffers, or one buffer and offsets. Nothing here knows a ring.
"""

from __future__ import annotations
