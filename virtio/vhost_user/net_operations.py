"""The messages about network devices, and what they need of a device. The base of devices has none of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from virtio.core.logs import limited
from virtio.device import Device
from virtio.errors import VhostUserError
from virtio.vhost_user.message import U64, Message

if TYPE_CHECKING:
    from virtio.vhost_user.backend import Backend

log = limited("virtio.vhost_user")


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


# ---- handlers: rows of the table in dispatch.py ----


def get_queue_num(backend: Backend, message: Message) -> bytes:
    """GET_QUEUE_NUM: queues; of a network device, pairs."""
    return U64.pack(queue_count(backend.device))


def net_set_mtu(backend: Backend, message: Message) -> None:
    """NET_SET_MTU: one that the device cannot have is refused."""
    mtu, device = message.number(), backend.device
    if not (isinstance(device, NetOperations) and device.frontend_mtu(mtu)):
        raise VhostUserError(f"{message.name}: MTU {mtu} cannot be")


def send_rarp(backend: Backend, message: Message) -> None:
    """SEND_RARP: the log has it if none was sent."""
    mac, device = message.number().to_bytes(8, "little")[:6], backend.device
    if not (isinstance(device, NetOperations) and device.frontend_rarp(mac)):
        log.info("%s: no RARP was sent", backend.name)
