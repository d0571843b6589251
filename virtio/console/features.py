"""Features of a console device (VIRTIO 1.4, 5.3.3)."""

from __future__ import annotations

from enum import IntFlag

from virtio.features import Table


class ConsoleFeature(IntFlag):
    """Feature bits of the console device (VIRTIO 1.4, 5.3.3). Values are masks: ``1 << bit``."""

    SIZE = 1 << 0
    MULTIPORT = 1 << 1
    EMERG_WRITE = 1 << 2

    def __invert__(self) -> int:  # type: ignore[override]
        return ~int(self)  # see virtio.constants.Feature


TABLE = Table(ConsoleFeature, {})
