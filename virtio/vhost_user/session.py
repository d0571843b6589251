"""What a frontend and we have agreed on, and which messages that allows."""

from __future__ import annotations

from dataclasses import dataclass

from virtio import features
from virtio.constants import DeviceType, Feature
from virtio.device import Device
from virtio.errors import VhostUserError
from virtio.vhost_user.message import Message, ProtocolFeature, Request
from virtio.vhost_user.net_operations import frontend_features

LOG_ALL = 1 << 26
PROTOCOL_FEATURES = 1 << 30
U64_BITS = (1 << 64) - 1

NONE = ProtocolFeature(0)
PROTOCOL = (
    ProtocolFeature.MQ
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.RARP
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.MTU
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.BACKEND_SEND_FD
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)

# Of these messages the document says that the bit must be in GET_PROTOCOL_FEATURES: to be offered is enough.
OFFERED: dict[int, ProtocolFeature] = {
    Request.SET_LOG_BASE: ProtocolFeature.LOG_SHMFD,
    Request.GET_QUEUE_NUM: ProtocolFeature.MQ,
    Request.SEND_RARP: ProtocolFeature.RARP,
    Request.NET_SET_MTU: ProtocolFeature.MTU,
    Request.SET_BACKEND_REQ_FD: ProtocolFeature.BACKEND_REQ,
    Request.RESET_DEVICE: ProtocolFeature.RESET_DEVICE,
}
# Of these, that it must have been negotiated: by SET_PROTOCOL_FEATURES, too.
NEGOTIATED: dict[int, ProtocolFeature] = {
    Request.GET_CONFIG: ProtocolFeature.CONFIG,
    Request.SET_CONFIG: ProtocolFeature.CONFIG,
    Request.GET_INFLIGHT_FD: ProtocolFeature.INFLIGHT_SHMFD,
    Request.SET_INFLIGHT_FD: ProtocolFeature.INFLIGHT_SHMFD,
    Request.GET_MAX_MEM_SLOTS: ProtocolFeature.CONFIGURE_MEM_SLOTS,
    Request.ADD_MEM_REG: ProtocolFeature.CONFIGURE_MEM_SLOTS,
    Request.REM_MEM_REG: ProtocolFeature.CONFIGURE_MEM_SLOTS,
    Request.SET_STATUS: ProtocolFeature.STATUS,
    Request.GET_STATUS: ProtocolFeature.STATUS,
}


@dataclass
class Session:
    """The agreement of one connection. ``offered`` are feature bits of ours, ``features`` those that are in use.

    ``owned``: SET_OWNER came.
    """

    device: Device
    name: str
    offered: int
    protocol_offered: ProtocolFeature
    features: int = 0
    protocol: ProtocolFeature = NONE
    owned: bool = False

    @classmethod
    def begin(cls, device: Device, name: str, mask: int, protocol: ProtocolFeature) -> Session:
        """Offer what the device has, as far as ``mask`` and ``protocol`` let it."""
        protocol = protocol & PROTOCOL if mask & PROTOCOL_FEATURES else NONE
        if device.device_type != DeviceType.NET:
            protocol &= ~(ProtocolFeature.RARP | ProtocolFeature.MTU)
        device.legacy = False
        offered = device.device_features & mask & U64_BITS
        if protocol & ProtocolFeature.LOG_SHMFD:
            offered |= LOG_ALL & mask
        if protocol:
            offered |= PROTOCOL_FEATURES
        return cls(device, name, offered, protocol)

    def protocol_shown(self) -> ProtocolFeature:
        """Return the protocol features as a frontend is shown them now.

        QEMU keeps a network device's configuration itself: it warns of each backend that offers CONFIG, and does not
        use it. It asks before SET_OWNER. User-mode Linux, whose guest reads MAC address, MTU, queue pairs and link
        here, asks after it, as do DPDK and rust-vmm's frontends.
        """
        if self.device.device_type == DeviceType.NET and not self.owned:
            return self.protocol_offered & ~ProtocolFeature.CONFIG
        return self.protocol_offered

    def check(self, message: Message) -> None:
        """Raise VhostUserError for a message of a protocol feature that was not offered, or not negotiated."""
        offered, negotiated = OFFERED.get(message.request), NEGOTIATED.get(message.request)
        feature = offered or negotiated
        if feature and not feature & self.protocol_offered:
            raise VhostUserError(f"{message.name}: {feature.name} was not offered")
        if negotiated and not negotiated & self.protocol:
            raise VhostUserError(f"{message.name}: {negotiated.name} is not negotiated")

    @property
    def packed(self) -> bool:
        """Whether rings are packed ones."""
        return bool(self.features & Feature.RING_PACKED)

    @property
    def starts_enabled(self) -> bool:
        """Whether the frontend knows no SET_VRING_ENABLE."""
        return not self.features & PROTOCOL_FEATURES

    def driver_features(self) -> int:
        """Return what device and driver agreed on."""
        bits = self.features & ~(LOG_ALL | PROTOCOL_FEATURES)
        if features.missing(bits, self.device.device_type):
            bits |= frontend_features(self.device) & self.device.offered
        return bits
