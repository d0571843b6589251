"""Numbers of the VIRTIO specification that users meet, by their names there (VIRTIO 1.4, chapter 6)."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class Feature(IntFlag):
    """Transport feature bits that a virtqueue knows. Values are masks: ``1 << bit``."""

    NOTIFY_ON_EMPTY = 1 << 24
    ANY_LAYOUT = 1 << 27
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    NOTIFICATION_DATA = 1 << 38
    RING_RESET = 1 << 40


class Postpone(IntEnum):
    """How long ``DriverQueue.postpone_intr`` waits, as a share of the chains outstanding (FreeBSD's vq_postpone_t)."""

    SHORT = 0
    LONG = 1
    EMPTIED = 2
