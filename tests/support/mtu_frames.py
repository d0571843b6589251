"""Frames for tests of the MTU: of a size, with tags, to be cut."""

from __future__ import annotations

import struct

from virtio.offload import NetHeader

TPID, SERVICE = b"\x81\x00", b"\x88\xa8"


def tcp4(length: int) -> bytes:
    """A TCP segment of ``length`` bytes of payload behind headers of 14, 20 and 32 bytes; its checksum is partial."""
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 52 + length, 1, 0, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    total = sum(struct.unpack(">10H", ip))
    total = (total & 0xFFFF) + (total >> 16)
    ip = ip[:10] + struct.pack(">H", ~total & 0xFFFF) + ip[12:]
    header = struct.pack(">HHIIBBHHH", 1, 2, 3, 4, 8 << 4, 16, 5, 0, 0) + bytes(12)
    return b"\xff" * 12 + b"\x08\0" + ip + header + bytes(length)


def gso(size: int) -> NetHeader:
    return NetHeader(flags=1, gso_type=1, gso_size=size, hdr_len=66, csum_start=34, csum_offset=16)
