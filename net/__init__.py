"""The network device and driver of virtio. Installed as ``virtio.net``."""

if __name__ != "virtio.net":
    raise ImportError(f"{__name__} is virtio's source folder: import virtio.net")

from virtio._vtnet_receive import Received, ReceivedFrame
from virtio.net.device import NetDevice
from virtio.net.machine import Machine
from virtio.net.netns import Namespace
from virtio.net.ports import (
    Cable,
    CableEnd,
    CallPort,
    Generator,
    Loopback,
    PcapReader,
    PcapWriter,
    Port,
    Sink,
    Tap,
    TapLoop,
)
from virtio.net.pump import Pump
from virtio.net.vtnet import Vtnet

__all__ = [
    "NetDevice",
    "Vtnet",
    "Received",
    "ReceivedFrame",
    "Pump",
    "Machine",
    "Namespace",
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
