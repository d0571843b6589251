"""The console device of virtio (VIRTIO 1.4, 5.3): terminals and byte streams between a guest and Python."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virtio.console.control import ConsoleError
    from virtio.console.device import ConsoleDevice
    from virtio.console.features import ConsoleFeature
    from virtio.console.files import FileBridge
    from virtio.console.ports import ConsolePort

__all__ = ["ConsoleDevice", "ConsolePort", "FileBridge", "ConsoleFeature", "ConsoleError"]

_HOMES = {
    "ConsoleDevice": "virtio.console.device",
    "ConsolePort": "virtio.console.ports",
    "FileBridge": "virtio.console.files",
    "ConsoleFeature": "virtio.console.features",
    "ConsoleError": "virtio.console.control",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is (PEP 562): the table of features takes no device."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
