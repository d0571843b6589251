"""The messages about a device's configuration space, and those that only a network device has."""

from __future__ import annotations

from typing import ClassVar

from virtio.core.logs import limited
from virtio.errors import VhostUserError
from virtio.vhost_user.message import CONFIG, CONFIG_MAX, Message, Obey, Request
from virtio.vhost_user.net_operations import NetOperations
from virtio.vhost_user.session import Session

log = limited("virtio.vhost_user")


class ConfigMessages:
    """From messages to the device's configuration."""

    def __init__(self, session: Session) -> None:
        self.device = session.device
        self.name = session.name

    def _get_config(self, message: Message) -> bytes:
        offset, size, flags = message.unpack(CONFIG)
        if size > CONFIG_MAX or offset > CONFIG_MAX or offset >= len(self.device.config):
            return b""  # a refusal: any other answer is as long as the question, with zeroes behind the space's end
        return CONFIG.pack(offset, size, flags) + self.device.read_config(offset, size)

    def _set_config(self, message: Message) -> None:
        offset, size, _ = message.unpack(CONFIG)
        data = message.payload[CONFIG.size :]
        if size > CONFIG_MAX or len(data) < size:
            raise VhostUserError(f"{message.name}: {size} bytes, of which {len(data)} came (limit {CONFIG_MAX})")
        self.device.write_config(offset, data[:size])

    def _net_set_mtu(self, message: Message) -> None:
        mtu = message.number()
        if not (isinstance(self.device, NetOperations) and self.device.frontend_mtu(mtu)):
            raise VhostUserError(f"{message.name}: MTU {mtu} cannot be")

    def _send_rarp(self, message: Message) -> None:
        mac = message.number().to_bytes(8, "little")[:6]
        if not (isinstance(self.device, NetOperations) and self.device.frontend_rarp(mac)):
            log.info("%s: no RARP was sent", self.name)

    OBEY: ClassVar[Obey] = {
        Request.GET_CONFIG: _get_config,
        Request.SET_CONFIG: _set_config,
        Request.NET_SET_MTU: _net_set_mtu,
        Request.SEND_RARP: _send_rarp,
    }
