"""Columns of vhost-user's table of messages (virtio/vhost_user/dispatch.py), by message."""

from __future__ import annotations

from virtio.vhost_user.dispatch import RULES
from virtio.vhost_user.message import ProtocolFeature, Request

OFFERED: dict[Request, ProtocolFeature] = {Request(n): rule.offered for n, rule in RULES.items() if rule.offered}
NEGOTIATED: dict[Request, ProtocolFeature] = {
    Request(n): rule.negotiated for n, rule in RULES.items() if rule.negotiated
}
