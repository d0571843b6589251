"""Capture files, read without our reader."""

from __future__ import annotations

import struct
from pathlib import Path


def frames_in(path: Path) -> list[bytes]:
    """The frames of a capture file."""
    data, at, found = path.read_bytes(), 24, []
    while at < len(data):
        (length,) = struct.unpack_from("=I", data, at + 8)
        found.append(data[at + 16 : at + 16 + length])
        at += 16 + length
    return found
