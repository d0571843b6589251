"""The network device and driver of virtio. Installed as ``virtio.net``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if __name__ != "virtio.net":
    raise ImportError(f"{__name__} is virtio's source folder: import virtio.net")

if TYPE_CHECKING:
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
    from virtio.net.splice import Splice
    from virtio.net.vtnet import Vtnet
    from virtio.vtnet.received import Received, ReceivedFrame

__all__ = [
    "NetDevice",
    "Vtnet",
    "Received",
    "ReceivedFrame",
    "Pump",
    "Splice",
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

_HOMES = {
    "NetDevice": "virtio.net.device",
    "Vtnet": "virtio.net.vtnet",
    "Received": "virtio.vtnet.received",
    "ReceivedFrame": "virtio.vtnet.received",
    "Pump": "virtio.net.pump",
    "Splice": "virtio.net.splice",
    "Machine": "virtio.net.machine",
    "Namespace": "virtio.net.netns",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is (PEP 562): a port takes no driver, and `virtio --version` neither."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES.get(name, "virtio.net.ports")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
