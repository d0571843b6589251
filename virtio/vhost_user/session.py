"""What was agreed on with a frontend: features, protocol features, owner, status; and the messages about these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from virtio import features
from virtio.constants import DeviceType, Feature, Status
from virtio.core.logs import limited
from virtio.device import Device
from virtio.errors import NegotiationError, VhostUserError
from virtio.vhost_user.message import U64, Message, ProtocolFeature
from virtio.vhost_user.net_operations import frontend_features

if TYPE_CHECKING:
    from virtio.vhost_user.backend import Backend

log = limited("virtio.vhost_user")

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


@dataclass
class Session:
    """The agreement of one connection. ``offered`` are feature bits of ours, ``features`` those that are in use.

    ``owned``: SET_OWNER came. ``status``: of SET_STATUS.
    """

    device: Device
    name: str
    offered: int
    protocol_offered: ProtocolFeature
    features: int = 0
    protocol: ProtocolFeature = NONE
    owned: bool = False
    status: int = 0

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

    @property
    def logs(self) -> bool:
        """Whether LOG_ALL is in use."""
        return bool(self.features & LOG_ALL)

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


# ---- handlers: rows of the table in dispatch.py ----


def get_features(backend: Backend, message: Message) -> bytes:
    """GET_FEATURES: those offered."""
    return U64.pack(backend.session.offered)


def set_features(backend: Backend, message: Message) -> None:
    """SET_FEATURES: other bits than before stop all rings, and reset the device."""
    session, bits = backend.session, message.number()
    if beyond := bits & ~session.offered:
        names = ", ".join(backend.device.names(beyond))
        raise VhostUserError(f"{message.name}: {names} not offered")
    changed = (bits ^ session.features) & ~(LOG_ALL | PROTOCOL_FEATURES)
    if changed:  # of another driver, if rings run: user-mode Linux stops none when it unbinds one
        backend.rings.stop_all()
        backend.device.reset()
    session.features = bits
    if session.starts_enabled:
        backend.rings.enable_all()
    backend.memory.set_log(session.logs)


def get_protocol_features(backend: Backend, message: Message) -> bytes:
    """GET_PROTOCOL_FEATURES: those offered."""
    return U64.pack(backend.session.protocol_shown())


def set_protocol_features(backend: Backend, message: Message) -> None:
    """SET_PROTOCOL_FEATURES: a bit that was not offered is refused."""
    bits = message.number()
    if beyond := bits & ~int(backend.session.protocol_offered):
        raise VhostUserError(f"{message.name}: bits {beyond:#x} were not offered")
    backend.session.protocol = ProtocolFeature(bits)


def set_owner(backend: Backend, message: Message) -> None:
    """SET_OWNER: see Session.protocol_shown."""
    backend.session.owned = True


def reset_owner(backend: Backend, message: Message) -> None:
    """RESET_OWNER: as RESET_DEVICE."""
    reset_device(backend, message)


def reset_device(backend: Backend, message: Message) -> None:
    """RESET_DEVICE: all rings stop, undrained; the device is reset."""
    backend.rings.reset()
    backend.device.reset()


def set_status(backend: Backend, message: Message) -> None:
    """SET_STATUS: 0 resets; features that cannot be in use clear FEATURES_OK."""
    session, value = backend.session, message.number() & 0xFF
    if value == 0:
        # it may be no driver that begins anew: QEMU 7.2 says it, before GET_VRING_BASE, of a guest that is stopped to
        # go on later, or elsewhere
        backend.rings.reset(drain=True)
        backend.device.reset()
    session.status = value
    if value & Status.FEATURES_OK:
        try:
            if session.features & Feature.VERSION_1:
                backend.device.check_features(session.driver_features())
        except NegotiationError as error:
            log.warning("%s: %s", session.name, str(error))
            session.status &= ~int(Status.FEATURES_OK)


def get_status(backend: Backend, message: Message) -> bytes:
    """GET_STATUS: that of SET_STATUS, and DEVICE_NEEDS_RESET."""
    return U64.pack(backend.session.status | backend.device.status & Status.DEVICE_NEEDS_RESET)
