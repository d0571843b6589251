"""Our requests to the frontend: the channel that it gave for them."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from virtio.core.logs import limited
from virtio.errors import Disconnected, VhostUserError
from virtio.vhost_user.connection import Channel
from virtio.vhost_user.descriptors import make_write_only
from virtio.vhost_user.message import BackendRequest, Message, ProtocolFeature
from virtio.vhost_user.session import Session

if TYPE_CHECKING:
    from virtio.vhost_user.backend import Backend

log = limited("virtio.vhost_user")


class Requests:
    """What a backend asks, on the channel of SET_BACKEND_REQ_FD. No answer is asked for, and nothing waits."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.channel: Channel | None = None

    def tell(self, request: BackendRequest, payload: bytes = b"", fds: Sequence[int] = ()) -> bool:
        """Send a request: see :meth:`virtio.vhost_user.Backend.tell`. From any thread."""
        if fds and not self.session.protocol & ProtocolFeature.BACKEND_SEND_FD:
            raise VhostUserError(f"{request.name} with {len(fds)} file descriptors: BACKEND_SEND_FD is not negotiated")
        channel = self.channel
        if channel is None:
            return False
        try:
            channel.send(request, payload, fds)
        except Disconnected as error:  # part of it may have gone: what came next would be out of step
            log.info("%s: %s: %s; no more requests", self.session.name, request.name, str(error))
            if self.channel is channel:
                self.channel = None
            channel.close()
            return False
        return True

    def config_changed(self) -> None:
        """Say that the configuration changed, to a frontend that has agreed to be told."""
        if self.session.protocol & ProtocolFeature.CONFIG:
            self.tell(BackendRequest.CONFIG_CHANGE_MSG)

    def close(self) -> None:
        """End the channel, if there is one."""
        if self.channel is not None:
            self.channel.close()

    def use(self, connection: socket.socket) -> None:
        """Send on this socket from now on, instead of the last one."""
        self.close()
        self.channel = Channel(connection, patience=0)  # a data thread may be who sends


def set_backend_req_fd(backend: Backend, message: Message) -> None:
    """SET_BACKEND_REQ_FD: the socket of the channel."""
    make_write_only(message.fds[0], message.name)  # no answer is asked for
    backend.requests.use(socket.socket(fileno=message.take()))
