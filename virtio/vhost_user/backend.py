"""A device served to one vhost-user frontend: the life of its connection. Its messages: dispatch.py."""

from __future__ import annotations

import errno
import selectors
import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack

from virtio.constants import Status
from virtio.core.logs import limited
from virtio.device import Device
from virtio.errors import Disconnected, VhostUserError, VirtioError
from virtio.event.notifier import Bell
from virtio.vhost_user import dispatch
from virtio.vhost_user.backend_req import Requests
from virtio.vhost_user.connection import Channel
from virtio.vhost_user.memory import MemoryTable
from virtio.vhost_user.message import U64, BackendRequest, Message, ProtocolFeature
from virtio.vhost_user.session import PROTOCOL, U64_BITS, Session
from virtio.vhost_user.vring_start import Rings

log = limited("virtio.vhost_user")

DRAIN = 10.0  # seconds
LOOK = 5.0  # seconds between two looks at whether an idle frontend reads
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC)  # no fault of the code


class Backend:
    """One connection of a frontend to ``device``.

    ``mask`` has the features that are offered, if the device has them; ``protocol`` the protocol's own. ``drain``:
    seconds that the device may take to give back the chains of a ring that the frontend stops. :meth:`run` serves until
    the frontend goes, or says what cannot be, or cuts a file short that we map: then it raises VhostUserError; the
    device is reset in any case. :meth:`stop` ends it from another thread.

    Rings run from SET_VRING_KICK to GET_VRING_BASE, or to a message that sets them up again. The device is activated
    when the first of them starts, with the features of that moment, and reset when other ones are set.
    """

    def __init__(
        self,
        device: Device,
        connection: socket.socket,
        *,
        mask: int = U64_BITS,
        protocol: ProtocolFeature = PROTOCOL,
        name: str = "vhost-user",
        drain: float = DRAIN,
    ) -> None:
        self.device = device
        self.name = name
        self.channel = Channel(connection)
        self.session = Session.begin(device, name, mask, protocol)
        self._ended = ended = threading.Event()
        self._end = Bell()
        self.lost = Bell()  # rung when the frontend cut a file short (see Region.from_fd)
        self._wait = selectors.DefaultSelector()
        self.memory = MemoryTable(self.lost)
        channel = self.channel  # the function below must not hold what holds it

        def over() -> bool:
            return ended.is_set() or channel.gone() or channel.deaf()

        try:
            self.rings = Rings(self.session, self.memory, self._wait, drain, over)
        except BaseException:
            self._wait.close()
            raise
        self.requests = Requests(self.session)

    # ---- what the device has of it ----

    def queue(self, index: int) -> Bell:
        """Return the bell that interrupts the driver for a queue."""
        return self.rings.rings[index].call or self.rings.silent

    def config(self) -> None:
        """Tell the frontend that the configuration changed, if it has a channel for that."""
        if self.device.status & Status.DEVICE_NEEDS_RESET:
            self.lost.ring()  # a device in Python may have got EFAULT from the kernel: look why
        self.requests.config_changed()

    def tell(self, request: BackendRequest, payload: bytes = b"", fds: Sequence[int] = ()) -> bool:
        """Send the frontend a request on the channel that it gave for that; return whether it went out.

        For a device whose class has such requests (the ``interrupt`` that it is bound to is this object). The protocol
        features that a request belongs to are the caller's business; descriptors, which stay the caller's, want
        BACKEND_SEND_FD: without it VhostUserError is raised. No answer is asked for, and nothing waits: a frontend that
        lets the channel fill loses it. From any thread.
        """
        return self.requests.tell(request, payload, fds)

    # ---- life ----

    def run(self) -> None:
        """Serve. Returns when the frontend has gone; raises VhostUserError for what cannot be."""
        try:
            self._wait.register(self.channel, selectors.EVENT_READ, self._message)
            self._wait.register(self._end.fileno(), selectors.EVENT_READ, self._end.answer)
            self._wait.register(self.lost.fileno(), selectors.EVENT_READ, self._look)
            self.device.bind(self.memory.guest, self)
            self.rings.attach()
            while not self._ended.is_set():
                self._turn()
        except Disconnected as error:
            log.info("%s: %s", self.name, str(error))
        except Exception:
            self._look()  # memory that turned to zeroes has many effects: name the cause
            raise
        finally:
            self._close()

    def _turn(self) -> None:
        pause = self.rings.pause
        events = self._wait.select(LOOK if pause is None else pause)
        for key, _ in events:
            key.data()
            if self._ended.is_set():
                return
        if pause is not None:
            self.rings.look()
        if not events and self.channel.deaf():
            raise Disconnected("the other side reads no more")

    def stop(self) -> None:
        """End :meth:`run`, from any thread, whatever the frontend has begun."""
        self._ended.set()
        self._end.ring()
        self.channel.shut()

    def _look(self) -> None:
        """Raise VhostUserError if the frontend cut a file shorter that is in use."""
        self.lost.answer()
        if what := self.memory.lost() or self.rings.lost():
            raise VhostUserError(f"frontend truncated the {what}, or its file system is full")

    def _close(self) -> None:
        with ExitStack() as steps:  # the last one is done first; each, whatever the others raise
            steps.callback(self.channel.close)
            steps.callback(self._wait.close)
            steps.callback(self.requests.close)
            steps.callback(self.memory.clear)
            steps.callback(self.device.unbind)  # it is not ours any more
            steps.callback(self.rings.close)
            steps.callback(self.device.reset)

    def _message(self) -> None:
        message = self.channel.receive()
        brought = bool(message.fds)
        try:
            answer = dispatch.handle(self, message)
            if brought and self.channel.deaf():
                raise VhostUserError(f"{message.name} has an end of a vhost-user connection")
        except (VirtioError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in SCARCE:
                raise
            self._acknowledge(message, 1)
            if isinstance(error, VhostUserError):
                raise
            raise VhostUserError(f"{message.name}: {error}") from error
        finally:
            message.close()
        if isinstance(answer, Message):
            try:
                self.channel.reply(message.request, answer.payload, answer.fds)
            finally:
                answer.close()
        elif answer is not None:
            self.channel.reply(message.request, answer)
        else:
            self._acknowledge(message, 0)

    def _acknowledge(self, message: Message, code: int) -> None:
        if message.needs_reply and self.session.protocol & ProtocolFeature.REPLY_ACK:
            self.channel.reply(message.request, U64.pack(code))
