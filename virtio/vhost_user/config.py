"""The messages about a device's configuration space: handlers of the table in dispatch.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtio.errors import VhostUserError
from virtio.vhost_user.message import CONFIG, CONFIG_MAX, Message

if TYPE_CHECKING:
    from virtio.vhost_user.backend import Backend


def get_config(backend: Backend, message: Message) -> bytes:
    """GET_CONFIG: as long as the question, with zeroes behind the space's end; no payload is a refusal."""
    offset, size, flags = message.unpack(CONFIG)
    if size > CONFIG_MAX or offset > CONFIG_MAX or offset >= len(backend.device.config):
        return b""
    return CONFIG.pack(offset, size, flags) + backend.device.read_config(offset, size)


def set_config(backend: Backend, message: Message) -> None:
    """SET_CONFIG: bytes behind the header, as many as that has."""
    offset, size, _ = message.unpack(CONFIG)
    data = message.payload[CONFIG.size :]
    if size > CONFIG_MAX or len(data) < size:
        raise VhostUserError(f"{message.name}: {size} bytes, of which {len(data)} came (limit {CONFIG_MAX})")
    backend.device.write_config(offset, data[:size])
