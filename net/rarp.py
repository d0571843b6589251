"""The frame by which a guest makes itself known on a network that it came to."""

from __future__ import annotations

import struct


def reverse_arp(mac: bytes) -> bytes:
    """Return a broadcast that asks for one's own address, by which switches learn where one is (RFC 903)."""
    request = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 3, mac, bytes(4), mac, bytes(4))
    return (b"\xff" * 6 + mac + b"\x80\x35" + request).ljust(60, b"\0")
