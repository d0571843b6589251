"""Both ends of virtio: guest memory, and the virtqueue as a driver and as a device work it.

What a NIC does to a frame is in virtio.offload.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from virtio.constants import Feature, NetFeature, Postpone
from virtio.errors import (
    BadDescriptor,
    BadIndex,
    ChainLoop,
    ChainTooLong,
    DoesNotFit,
    MemoryFault,
    QueueFull,
    RingError,
    VirtioError,
)
from virtio.virtqueue.layout import QueueLayout

try:
    from virtio.memory.guest_memory import GuestMemory
    from virtio.memory.region import Region
    from virtio.virtqueue.chain import Chain
    from virtio.virtqueue.device_queue import DeviceQueue
    from virtio.virtqueue.driver_queue import DriverQueue
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("virtio."):
        raise
    raise ImportError(
        f"{error.name}, a compiled part of virtio, is not built for Python "
        f"{sys.version_info[0]}.{sys.version_info[1]}; "
        f"run: pip install -e {os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}"
    ) from error

if TYPE_CHECKING:
    from virtio.device import Device as Device
    from virtio.direct import DirectTransport as DirectTransport
    from virtio.driver import Driver as Driver

__version__ = "0.1.0"

__all__ = [
    "GuestMemory",
    "Region",
    "QueueLayout",
    "DriverQueue",
    "DeviceQueue",
    "Chain",
    "Device",
    "Driver",
    "DirectTransport",
    "Feature",
    "NetFeature",
    "Postpone",
    "VirtioError",
    "RingError",
    "BadDescriptor",
    "BadIndex",
    "ChainLoop",
    "ChainTooLong",
    "QueueFull",
    "DoesNotFit",
    "MemoryFault",
    "get_include",
    "__version__",
]


_HOMES = {"Device": "virtio.device", "Driver": "virtio.driver", "DirectTransport": "virtio.direct"}


def __getattr__(name: str) -> Any:
    """Import what whole devices and drivers are made of when it is asked for (PEP 562): rings alone take none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def get_include() -> str:
    """Return the folder of the C headers (``virtio/capi.h`` and others), for a C compiler's ``-I``.

    Cython finds the .pxd files by itself, of a wheel and of an editable install.
    """
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "include")
