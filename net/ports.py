"""What may lie behind a network device, or beside a network driver."""

from __future__ import annotations

from virtio._cable import Cable, CableEnd
from virtio._callport import CallPort
from virtio._generator import Generator
from virtio._loopback import Loopback
from virtio._pcap import PcapReader, PcapWriter
from virtio._port import Port
from virtio._sink import Sink
from virtio._tap import Tap
from virtio._taploop import TapLoop

__all__ = [
    "Port",
    "Tap",
    "TapLoop",
    "Cable",
    "CableEnd",
    "Loopback",
    "Generator",
    "Sink",
    "PcapReader",
    "PcapWriter",
    "CallPort",
]
