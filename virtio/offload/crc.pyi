"""CRC32c."""

from __future__ import annotations

from typing_extensions import Buffer

def crc32c(data: Buffer, initial: int = 0) -> int: ...
