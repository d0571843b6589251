"""The Linux kernel as an oracle: its stack takes what we cut and sum, and we cut and sum what its stack leaves to us.

Two namespaces, each behind a TAP with virtio_net_hdr. From A to B go the GSO frames and partial checksums that A's
kernel leaves to a NIC, done by our kernels; B's kernel verifies each segment. From B to A go B's plain frames,
coalesced; A's kernel takes the large frames. Real TCP and UDP sockets at both ends, every byte compared by hash.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import netns
import pytest
from netns import CSUM, ECN, TSO4, TSO6, TUNNEL, TUNNEL_CSUM, USO4, USO6, Link, Pump

from virtio import offload

A, B = 0, 1
ALL = CSUM | TSO4 | TSO6 | ECN | USO4 | USO6
FAMILIES = {4: (socket.AF_INET, "10.77.0.1", "10.77.0.2"), 6: (socket.AF_INET6, "fd77::1", "fd77::2")}
UDP_SEGMENT = 103
STREAM = 12 << 20  # bytes each way


class Nic:
    """What a NIC does between two TAPs, by our kernels."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.seen: Counter[str] = Counter()
        self.coalescer = offload.Coalescer()

    def leaves(self, header: bytes, frame: bytes) -> list[tuple[Any, ...]]:
        """The plain frames, each in pieces, that a frame with this virtio_net_hdr becomes."""
        about = offload.NetHeader.from_bytes(header)
        if about.gso_type:
            self.seen[f"gso {about.gso_type:#x}"] += 1
            cut = list(offload.segment(frame, about.gso_size, about.gso_type))
            self.seen["segments"] += len(cut)
            return cut
        if about.flags & 1:
            self.seen["needs checksum"] += 1
            whole = bytearray(frame)
            offload.complete_checksum(whole, about.csum_start, about.csum_offset)
            return [(whole,)]
        return [(frame,)]

    def a_to_b(self, group: list[tuple[bytes, bytes]]) -> None:
        for header, frame in group:
            for pieces in self.leaves(header, frame):
                self.link.taps[B].write(*pieces)

    def b_to_a(self, group: list[tuple[bytes, bytes]]) -> None:
        merged = self.coalescer.receive([frame for _, frame in group]) + self.coalescer.flush()
        for one in merged:
            if one.segments > 1:
                self.seen["merged"] += 1
            self.link.taps[A].write(*one.pieces, header=one.net_header.to_bytes(self.link.taps[A].header))


class Traffic:
    """Both pumps of a link, and the streams that are sent over it."""

    def __init__(self, link: Link, nic: Nic) -> None:
        self.link, self.nic = link, nic
        self.pumps = [Pump(link.taps[A], nic.a_to_b), Pump(link.taps[B], nic.b_to_a)]

    def stop(self) -> None:
        for pump in self.pumps:
            pump.stop()
