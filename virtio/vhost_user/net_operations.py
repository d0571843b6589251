"""What vhost-user's messages about network devices need of a device. The base of devices has none of it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from virtio.device import Device


@runtime_checkable
class NetOperations(Protocol):
    """A device to which a frontend may say NET_SET_MTU and SEND_RARP, and whose queues it counts in pairs."""

    # features of a queue that the frontend may serve itself: it then passes on what depends on them, but not these
    frontend_features: int

    def queue_count(self) -> int:
        """Return how many queue pairs the device has."""

    def frontend_mtu(self, mtu: int) -> bool:
        """Note the MTU that the frontend tells its driver of; return False if the device cannot have it."""

    def frontend_rarp(self, mac: bytes) -> bool:
        """Announce a guest that moved here; return whether that was done."""


def queue_count(device: Device) -> int:
    """Return the number of queues as GET_QUEUE_NUM counts them: of a network device, pairs."""
    return device.queue_count() if isinstance(device, NetOperations) else len(device.queues)


def frontend_features(device: Device) -> int:
    """Return the features that a frontend may negotiate for a queue that it serves itself."""
    return device.frontend_features if isinstance(device, NetOperations) else 0
