"""A device served to one vhost-user frontend: from messages to the device's verbs."""

from __future__ import annotations

import errno
import selectors
import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import ClassVar, Protocol

from virtio.constants import Feature, Status
from virtio.core.logs import limited
from virtio.device import Device
from virtio.errors import Disconnected, NegotiationError, VhostUserError, VirtioError
from virtio.event.notifier import Bell
from virtio.vhost_user.backend_req import Requests
from virtio.vhost_user.config import ConfigMessages
from virtio.vhost_user.connection import Channel
from virtio.vhost_user.memory import Slot
from virtio.vhost_user.memory_messages import MemoryMessages
from virtio.vhost_user.message import U64, Answer, BackendRequest, Message, Obey, ProtocolFeature, Request
from virtio.vhost_user.net_operations import queue_count
from virtio.vhost_user.session import LOG_ALL, PROTOCOL, PROTOCOL_FEATURES, U64_BITS, Session
from virtio.vhost_user.vring_start import RingMessages

log = limited("virtio.vhost_user")

DRAIN = 10.0  # seconds
LOOK = 5.0  # seconds between two looks at whether an idle frontend reads
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC)  # no fault of the code


class Part(Protocol):
    """What obeys some of the messages."""

    OBEY: ClassVar[Obey]


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
        self.status = 0
        self._ended = ended = threading.Event()
        self._end = Bell()
        self._lost = Bell()
        self._wait = selectors.DefaultSelector()
        self.memory = MemoryMessages(self.session, self._lost)
        channel = self.channel  # the function below must not hold what holds it

        def over() -> bool:
            return ended.is_set() or channel.gone() or channel.deaf()

        try:
            self.rings = RingMessages(self.session, self.memory.table, self._wait, drain, over, self._lost)
        except BaseException:
            self._wait.close()
            raise
        self.configuration = ConfigMessages(self.session)
        self.requests = Requests(self.session)

    # ---- what the device has of it ----

    def queue(self, index: int) -> Bell:
        """Return the bell that interrupts the driver for a queue."""
        return self.rings.rings[index].call or self.rings.silent

    def config(self) -> None:
        """Tell the frontend that the configuration changed, if it has a channel for that."""
        if self.device.status & Status.DEVICE_NEEDS_RESET:
            self._lost.ring()  # a device in Python may have got EFAULT from the kernel: look why
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
            self._wait.register(self._lost.fileno(), selectors.EVENT_READ, self._look)
            self.device.bind(self.memory.table.memory, self)
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
        self._lost.answer()
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
            answer = self._obey(message)
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

    def _obey(self, message: Message) -> Answer:
        self.session.check(message)
        parts: tuple[Part, ...] = (self, self.rings, self.memory, self.configuration, self.requests)
        for part in parts:
            if message.request in part.OBEY:
                return part.OBEY[message.request](part, message)
        raise VhostUserError(f"{message.name} ({len(message.payload)} bytes) is not served here")

    def _acknowledge(self, message: Message, code: int) -> None:
        if message.needs_reply and self.session.protocol & ProtocolFeature.REPLY_ACK:
            self.channel.reply(message.request, U64.pack(code))

    # ---- messages: features, status, and what concerns more than one part ----

    def _get_features(self, message: Message) -> bytes:
        return U64.pack(self.session.offered)

    def _set_features(self, message: Message) -> None:
        bits = message.number()
        if beyond := bits & ~self.session.offered:
            names = ", ".join(self.device.names(beyond))
            raise VhostUserError(f"{message.name}: {names} not offered")
        changed = (bits ^ self.session.features) & ~(LOG_ALL | PROTOCOL_FEATURES)
        if changed:  # of another driver, if rings run: user-mode Linux stops none when it unbinds one
            self.rings.stop_all()
            self.device.reset()
        self.session.features = bits
        if self.session.starts_enabled:
            self.rings.enable_all()
        self.memory.set_log()

    def _get_protocol_features(self, message: Message) -> bytes:
        return U64.pack(self.session.protocol_shown())

    def _set_owner(self, message: Message) -> None:
        self.session.owned = True

    def _set_protocol_features(self, message: Message) -> None:
        bits = message.number()
        if beyond := bits & ~int(self.session.protocol_offered):
            raise VhostUserError(f"{message.name}: bits {beyond:#x} were not offered")
        self.session.protocol = ProtocolFeature(bits)

    def _get_queue_num(self, message: Message) -> bytes:
        return U64.pack(queue_count(self.device))

    def _nothing(self, message: Message) -> None:
        """What needs no answer and changes nothing here."""

    def _reset_device(self, message: Message) -> None:
        # a status of 0 may be no driver that begins anew: QEMU 7.2 says it, before GET_VRING_BASE, of a guest that is
        # stopped to go on later, or elsewhere
        self.rings.reset(drain=message.request == Request.SET_STATUS)
        self.device.reset()

    def _set_status(self, message: Message) -> None:
        value = message.number() & 0xFF
        if value == 0:
            self._reset_device(message)
        self.status = value
        if value & Status.FEATURES_OK:
            try:
                if self.session.features & Feature.VERSION_1:
                    self.device.check_features(self.session.driver_features())
            except NegotiationError as error:
                log.warning("%s: %s", self.name, str(error))
                self.status &= ~int(Status.FEATURES_OK)

    def _get_status(self, message: Message) -> bytes:
        return U64.pack(self.status | self.device.status & Status.DEVICE_NEEDS_RESET)

    def _set_mem_table(self, message: Message) -> None:
        self._install(self.memory.table.whole(message))

    def _add_mem_reg(self, message: Message) -> None:
        self._install(self.memory.table.added(message))

    def _rem_mem_reg(self, message: Message) -> None:
        self._install(self.memory.table.removed(message))

    def _install(self, slots: list[Slot] | None) -> None:
        if slots is not None:
            with self.rings.moving(slots):
                self.memory.table.install(slots)

    OBEY: ClassVar[Obey] = {
        Request.GET_FEATURES: _get_features,
        Request.SET_FEATURES: _set_features,
        Request.SET_OWNER: _set_owner,
        Request.RESET_OWNER: _reset_device,
        Request.SET_LOG_FD: _nothing,
        Request.GET_PROTOCOL_FEATURES: _get_protocol_features,
        Request.SET_PROTOCOL_FEATURES: _set_protocol_features,
        Request.GET_QUEUE_NUM: _get_queue_num,
        Request.RESET_DEVICE: _reset_device,
        Request.SET_STATUS: _set_status,
        Request.GET_STATUS: _get_status,
        Request.SET_MEM_TABLE: _set_mem_table,
        Request.ADD_MEM_REG: _add_mem_reg,
        Request.REM_MEM_REG: _rem_mem_reg,
    }
