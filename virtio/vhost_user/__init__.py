"""vhost-user, the backend's side: a device of ours for a guest of another process (QEMU, DPDK, user-mode Linux)."""

from __future__ import annotations

from virtio.vhost_user.backend import Backend
from virtio.vhost_user.message import ProtocolFeature
from virtio.vhost_user.server import Server
from virtio.vhost_user.session import PROTOCOL
from virtio.virtqueue.inflight import Inflight

__all__ = ["Backend", "Server", "Inflight", "ProtocolFeature", "PROTOCOL"]
