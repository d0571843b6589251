"""The table of messages: what each demands, and what handles it. One row a message.

:func:`handle` finds the row; :meth:`Rule.check` checks it, in the order of its columns; then its handler runs. The row
names the handler's file: SET_VRING_ADDR is handled by ``vring.set_vring_addr``, in vring.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from struct import Struct
from types import MappingProxyType
from typing import TYPE_CHECKING

from virtio.errors import VhostUserError
from virtio.vhost_user import backend_req, config, inflight, memory, net_operations, session, vring
from virtio.vhost_user.message import (
    ADDRESS,
    CONFIG,
    INFLIGHT,
    LOG,
    SINGLE,
    STATE,
    TABLE,
    U64,
    Answer,
    Message,
    ProtocolFeature,
    Request,
)

if TYPE_CHECKING:
    from virtio.vhost_user.backend import Backend

NONE = ProtocolFeature(0)


@dataclass(frozen=True)
class Payload:
    """A payload that begins with ``layout``. ``most``: bytes that it may have; None: no limit but the channel's."""

    layout: Struct
    most: int | None = None

    def check(self, message: Message) -> None:
        """Raise VhostUserError for another size."""
        size, least, most = len(message.payload), self.layout.size, self.most
        if size < least or (most is not None and size > most):
            sizes = f"at least {least}" if most is None else f"{least}" if most == least else f"{least} to {most}"
            raise VhostUserError(f"{message.name} has {size} bytes ({sizes})")


@dataclass(frozen=True)
class Rule:
    """A row: what a message demands. The default demands nothing.

    ``offered``, ``negotiated``: the protocol feature that must be so; the document has one or the other. ``fds``: how
    many descriptors must come, or what checks them; by default any number, which are closed. ``state``: what checks
    the ring's state. ``answered``: whether a reply goes out whatever NEED_REPLY says, or with which protocol feature.
    """

    handler: Callable[[Backend, Message], Answer]
    offered: ProtocolFeature = NONE
    negotiated: ProtocolFeature = NONE
    payload: Payload | None = None
    fds: int | Callable[[Backend, Message], None] | None = None
    state: Callable[[Backend, Message], None] | None = None
    answered: bool | ProtocolFeature = False

    def check(self, backend: Backend, message: Message) -> None:
        """Raise VhostUserError for what the row does not allow."""
        feature = self.offered or self.negotiated
        if feature and not feature & backend.session.protocol_offered:
            raise VhostUserError(f"{message.name}: {feature.name} was not offered")
        if self.negotiated and not self.negotiated & backend.session.protocol:
            raise VhostUserError(f"{message.name}: {self.negotiated.name} is not negotiated")
        if self.payload is not None:
            self.payload.check(message)
        if isinstance(self.fds, int):
            if len(message.fds) != self.fds:
                raise VhostUserError(f"{message.name} has {len(message.fds)} file descriptors ({self.fds})")
        elif self.fds is not None:
            self.fds(backend, message)
        if self.state is not None:
            self.state(backend, message)

    def is_answered(self, backend: Backend) -> bool:
        """Whether a reply goes out."""
        if isinstance(self.answered, ProtocolFeature):
            return bool(self.answered & backend.session.protocol)
        return self.answered


def handle(backend: Backend, message: Message) -> Answer:
    """Check a message by its row, and have it handled; return the reply. Raises VhostUserError."""
    rule = RULES.get(message.request)
    if rule is None:
        raise VhostUserError(f"{message.name} ({len(message.payload)} bytes) is not served here")
    rule.check(backend, message)
    answer = rule.handler(backend, message)
    return answer if rule.is_answered(backend) else None


P, R = ProtocolFeature, Request
NUMBER = Payload(U64, most=U64.size)
QUEUES = Payload(INFLIGHT, most=INFLIGHT.size + 4)  # QEMU's has 4 bytes of padding

# fmt: off
RULES: Mapping[int, Rule] = MappingProxyType({
    # what is agreed on
    R.GET_FEATURES: Rule(session.get_features, answered=True),
    R.SET_FEATURES: Rule(session.set_features, payload=NUMBER),
    R.GET_PROTOCOL_FEATURES: Rule(session.get_protocol_features, answered=True),
    R.SET_PROTOCOL_FEATURES: Rule(session.set_protocol_features, payload=NUMBER),
    R.SET_OWNER: Rule(session.set_owner),
    R.RESET_OWNER: Rule(session.reset_owner),
    R.RESET_DEVICE: Rule(session.reset_device, offered=P.RESET_DEVICE),
    R.SET_STATUS: Rule(session.set_status, negotiated=P.STATUS, payload=NUMBER),
    R.GET_STATUS: Rule(session.get_status, negotiated=P.STATUS, answered=True),
    # guest memory
    R.SET_MEM_TABLE: Rule(memory.set_mem_table, payload=Payload(TABLE), fds=memory.files_of_regions),
    R.GET_MAX_MEM_SLOTS: Rule(memory.get_max_mem_slots, negotiated=P.CONFIGURE_MEM_SLOTS, answered=True),
    R.ADD_MEM_REG: Rule(memory.add_mem_reg, negotiated=P.CONFIGURE_MEM_SLOTS, payload=Payload(SINGLE), fds=1),
    R.REM_MEM_REG: Rule(memory.rem_mem_reg, negotiated=P.CONFIGURE_MEM_SLOTS, payload=Payload(SINGLE)),
    R.SET_LOG_BASE: Rule(
        memory.set_log_base, offered=P.LOG_SHMFD, payload=Payload(LOG), fds=1, answered=P.LOG_SHMFD),
    R.SET_LOG_FD: Rule(memory.set_log_fd),
    # rings
    R.GET_QUEUE_NUM: Rule(net_operations.get_queue_num, offered=P.MQ, answered=True),
    R.SET_VRING_NUM: Rule(vring.set_vring_num, payload=Payload(STATE)),
    R.SET_VRING_ADDR: Rule(vring.set_vring_addr, payload=Payload(ADDRESS)),
    R.SET_VRING_BASE: Rule(vring.set_vring_base, payload=Payload(STATE)),
    R.GET_VRING_BASE: Rule(vring.get_vring_base, payload=Payload(STATE), answered=True),
    R.SET_VRING_KICK: Rule(vring.set_vring_kick, payload=NUMBER, fds=vring.eventfd, state=vring.sized_and_placed),
    R.SET_VRING_CALL: Rule(vring.set_vring_call, payload=NUMBER, fds=vring.eventfd_or_socket),
    R.SET_VRING_ERR: Rule(vring.set_vring_err, payload=NUMBER, fds=vring.eventfd_or_socket),
    R.SET_VRING_ENABLE: Rule(vring.set_vring_enable, payload=Payload(STATE)),
    R.GET_INFLIGHT_FD: Rule(inflight.get_inflight_fd, negotiated=P.INFLIGHT_SHMFD, payload=QUEUES, answered=True),
    R.SET_INFLIGHT_FD: Rule(
        inflight.set_inflight_fd, negotiated=P.INFLIGHT_SHMFD, payload=QUEUES, fds=inflight.file_of_queues),
    # configuration, network devices
    R.GET_CONFIG: Rule(config.get_config, negotiated=P.CONFIG, payload=Payload(CONFIG), answered=True),
    R.SET_CONFIG: Rule(config.set_config, negotiated=P.CONFIG, payload=Payload(CONFIG)),
    R.NET_SET_MTU: Rule(net_operations.net_set_mtu, offered=P.MTU, payload=NUMBER),
    R.SEND_RARP: Rule(net_operations.send_rarp, offered=P.RARP, payload=NUMBER),
    # requests the other way
    R.SET_BACKEND_REQ_FD: Rule(backend_req.set_backend_req_fd, offered=P.BACKEND_REQ, fds=1),
})
# fmt: on
