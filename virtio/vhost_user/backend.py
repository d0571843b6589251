"""A device served to one vhost-user frontend: from messages to the device's verbs."""

from __future__ import annotations

import logging
import os
import selectors
import socket
from collections.abc import Callable, Sequence
from functools import partial

from virtio import features
from virtio._bell import Bell
from virtio._region import Region
from virtio.constants import DeviceType, Feature, Status
from virtio.device import Device
from virtio.errors import Disconnected, NegotiationError, VhostUserError, VirtioError
from virtio.vhost_user.channel import Channel
from virtio.vhost_user.inflight import InflightFile
from virtio.vhost_user.memory import SLOTS_MAX, MemoryTable
from virtio.vhost_user.messages import (
    ADDRESS,
    CONFIG,
    CONFIG_MAX,
    INDEX_MASK,
    LOG,
    NO_FD,
    STATE,
    U64,
    BackendRequest,
    Message,
    ProtocolFeature,
    Request,
)
from virtio.vhost_user.rings import Ring, base_of

log = logging.getLogger("virtio.vhost_user")

LOG_ALL = 1 << 26
PROTOCOL_FEATURES = 1 << 30
U64_BITS = (1 << 64) - 1
POLL = 0.001  # seconds between two looks at rings that come without a kick
EVENTFD = "anon_inode:[eventfd]"

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


class Backend:
    """One connection of a frontend to ``device``.

    ``mask`` has the features that are offered, if the device has them; ``protocol`` the protocol's own. :meth:`run`
    serves until the frontend goes, or says what cannot be, or cuts a file short that we map: then it raises
    VhostUserError; the device is reset in any case. :meth:`stop` ends it from another thread.

    Rings run from SET_VRING_KICK to GET_VRING_BASE. The device is activated when the first of them starts, with the
    features of that moment, and reset when other ones are set while none runs.
    """

    def __init__(
        self,
        device: Device,
        connection: socket.socket,
        *,
        mask: int = U64_BITS,
        protocol: ProtocolFeature = PROTOCOL,
        name: str = "vhost-user",
    ) -> None:
        self.device = device
        self.name = name
        self.channel = Channel(connection)
        self.protocol_offered = protocol & PROTOCOL if mask & PROTOCOL_FEATURES else ProtocolFeature(0)
        if device.device_type != DeviceType.NET:
            self.protocol_offered &= ~(ProtocolFeature.RARP | ProtocolFeature.MTU)
        device.legacy = False
        self.offered = device.device_features & mask & U64_BITS
        if self.protocol_offered & ProtocolFeature.LOG_SHMFD:
            self.offered |= LOG_ALL & mask
        if self.protocol_offered:
            self.offered |= PROTOCOL_FEATURES
        self.features = 0
        self.protocol = ProtocolFeature(0)
        self.status = 0
        self._lost = Bell()
        self.table = MemoryTable(self._lost)
        self.rings = [Ring(index) for index in range(len(device.queues))]
        self.log: Region | None = None
        self.inflight: InflightFile | None = None
        self.requests: Channel | None = None  # to the frontend
        self.silent = Bell()
        self._end = Bell()
        self._stopped = False
        self._wait = selectors.DefaultSelector()
        self._wait.register(self.channel, selectors.EVENT_READ, self._message)
        self._wait.register(self._end.fileno(), selectors.EVENT_READ, self._stop)
        self._wait.register(self._lost.fileno(), selectors.EVENT_READ, self._look)

    # ---- what the device has of it ----

    def queue(self, index: int) -> Bell:
        """Return the bell that interrupts the driver for a queue."""
        return self.rings[index].call or self.silent

    def config(self) -> None:
        """Tell the frontend that the configuration changed, if it has a channel for that."""
        if self.device.status & Status.DEVICE_NEEDS_RESET:
            self._lost.ring()  # a device in Python may have got EFAULT from the kernel: look why
        if self.protocol & ProtocolFeature.CONFIG:
            self.tell(BackendRequest.CONFIG_CHANGE_MSG)

    def tell(self, request: BackendRequest, payload: bytes = b"", fds: Sequence[int] = ()) -> bool:
        """Send the frontend a request on the channel that it gave for that; return whether it went out.

        For a device whose class has such requests (the ``interrupt`` that it is bound to is this object). The protocol
        features that a request belongs to are the caller's business; descriptors, which stay the caller's, want
        BACKEND_SEND_FD: without it VhostUserError is raised. No answer is asked for, and nothing waits: a frontend that
        lets the channel fill loses it. From any thread.
        """
        if fds and not self.protocol & ProtocolFeature.BACKEND_SEND_FD:
            raise VhostUserError(f"{request.name} with {len(fds)} file descriptors: BACKEND_SEND_FD is not negotiated")
        requests = self.requests
        if requests is None:
            return False
        try:
            requests.send(request, payload, fds)
        except Disconnected as error:  # part of it may have gone: what came next would be out of step
            log.info("%s: %s: %s; no more requests", self.name, request.name, error)
            if self.requests is requests:
                self.requests = None
            requests.close()
            return False
        return True

    # ---- life ----

    def run(self) -> None:
        """Serve. Returns when the frontend has gone; raises VhostUserError for what cannot be."""
        self.device.bind(self.table.memory, self)
        try:
            while not self._stopped:
                polled = [ring for ring in self.rings if ring.running and ring.polled]
                for key, _ in self._wait.select(POLL if polled else None):
                    key.data()
                    if self._stopped:
                        break
                for ring in polled:
                    self.device.kick(ring.index)
        except Disconnected as error:
            log.info("%s: %s", self.name, error)
        except Exception:
            self._look()  # memory that turned to zeroes has many effects: name the cause
            raise
        finally:
            self._close()

    def stop(self) -> None:
        """End :meth:`run`, from any thread, whatever the frontend has begun."""
        self._end.ring()
        self.channel.shut()

    def _stop(self) -> None:
        self._stopped = True

    def _look(self) -> None:
        """Raise VhostUserError if the frontend cut a file shorter that is in use."""
        self._lost.answer()
        what = None
        if slot := self.table.lost():
            what = f"the memory region of {slot.size:#x} bytes at {slot.gpa:#x}"
        elif self.log is not None and self.log.lost:
            what = f"the dirty log of {self.log.size:#x} bytes"
        elif self.inflight is not None and self.inflight.region.lost:
            what = f"the inflight region of {self.inflight.region.size:#x} bytes"
        if what:
            raise VhostUserError(f"frontend truncated {what}, or its file system is full")

    def _close(self) -> None:
        try:
            self.device.reset()
        finally:
            for ring in self.rings:
                self._watch(ring, False)
                self.device.set_call(ring.index, self.silent)
                if not self.device.handles(ring.index):
                    self.device.set_kick(ring.index, Bell())
            self.rings.clear()
            self.table.memory.stop_log()
            self.table.clear()
            if self.requests is not None:
                self.requests.close()
            self._wait.close()
            self.channel.close()

    def _message(self) -> None:
        message = self.channel.receive()
        try:
            answer = self._obey(message)
        except VirtioError as error:
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

    def _obey(self, message: Message) -> bytes | Message | None:
        obey = OBEY.get(message.request)
        if obey is None:
            raise VhostUserError(f"{message.name} ({len(message.payload)} bytes) is not served here")
        return obey(self, message)

    def _acknowledge(self, message: Message, code: int) -> None:
        if message.needs_reply and self.protocol & ProtocolFeature.REPLY_ACK:
            self.channel.reply(message.request, U64.pack(code))

    # ---- features ----

    def _get_features(self, message: Message) -> bytes:
        return U64.pack(self.offered)

    def _set_features(self, message: Message) -> None:
        bits = number(message)
        if beyond := bits & ~self.offered:
            names = ", ".join(self.device.names(beyond))
            raise VhostUserError(f"{message.name}: {names} not offered")
        changed = (bits ^ self.features) & ~(LOG_ALL | PROTOCOL_FEATURES)
        if changed and any(ring.running for ring in self.rings):
            names = ", ".join(self.device.names(changed))
            raise VhostUserError(f"{message.name}: {names} changed while rings run")
        self.features = bits
        if changed:
            self.device.reset()
        if not bits & PROTOCOL_FEATURES:  # a frontend that knows no SET_VRING_ENABLE
            for ring in self.rings:
                ring.enabled = True
        self._set_log()

    def _get_protocol_features(self, message: Message) -> bytes:
        return U64.pack(self.protocol_offered)

    def _set_protocol_features(self, message: Message) -> None:
        bits = number(message)
        if beyond := bits & ~int(self.protocol_offered):
            raise VhostUserError(f"{message.name}: bits {beyond:#x} were not offered")
        self.protocol = ProtocolFeature(bits)

    def _get_queue_num(self, message: Message) -> bytes:
        return U64.pack(self.device.queue_count())

    def _nothing(self, message: Message) -> None:
        """What needs no answer and changes nothing here."""

    def _reset_device(self, message: Message) -> None:
        for ring in self.rings:
            self._stop_ring(ring)
            ring.enabled = not self.features & PROTOCOL_FEATURES
        self.inflight = None  # a frontend gives it again before it starts rings again
        self.device.reset()

    def _set_status(self, message: Message) -> None:
        value = number(message) & 0xFF
        if value == 0:
            self._reset_device(message)
        self.status = value
        if value & Status.FEATURES_OK:
            try:
                if self.features & Feature.VERSION_1:
                    self.device.check_features(self._driver_features())
            except NegotiationError as error:
                log.warning("%s: %s", self.name, error)
                self.status &= ~int(Status.FEATURES_OK)

    def _get_status(self, message: Message) -> bytes:
        return U64.pack(self.status | self.device.status & Status.DEVICE_NEEDS_RESET)

    # ---- memory ----

    def _set_mem_table(self, message: Message) -> None:
        self.table.set(message)
        self._replace_rings()

    def _add_mem_reg(self, message: Message) -> None:
        self.table.add(message)

    def _rem_mem_reg(self, message: Message) -> None:
        self.table.remove(message)

    def _get_max_mem_slots(self, message: Message) -> bytes:
        return U64.pack(SLOTS_MAX)

    def _replace_rings(self) -> None:
        """Rings are given by the frontend's addresses: another table may have them elsewhere in the guest's."""
        for ring in self.rings:
            if ring.running:
                queue = self.device.queues[ring.index].queue
                if queue is None or queue.layout != ring.layout(self.table.memory, self._packed):
                    self._stop_ring(ring)
                    self._start_ring(ring)

    def _set_log_base(self, message: Message) -> bytes | None:
        size, offset = unpack(message, LOG)
        if len(message.fds) != 1:
            raise VhostUserError(f"{message.name} has {len(message.fds)} file descriptors (1)")
        try:
            self.log = Region.from_fd(0, message.fds[0], size, offset, bell=self._lost)
        except (ValueError, OverflowError, OSError) as error:
            raise VhostUserError(f"{message.name}: log of {size:#x} bytes: {error}") from None
        self._set_log()
        return U64.pack(0) if self.protocol & ProtocolFeature.LOG_SHMFD else None

    def _set_log(self) -> None:
        if self.features & LOG_ALL and self.log is not None:
            try:
                self.table.memory.start_log(self.log)
            except ValueError as error:
                raise VhostUserError(f"dirty log: {error}") from None
        else:
            self.table.memory.stop_log()

    def _get_inflight_fd(self, message: Message) -> Message:
        return InflightFile.answer(message, len(self.rings), self._packed)

    def _set_inflight_fd(self, message: Message) -> None:
        if any(ring.running for ring in self.rings):
            raise VhostUserError(f"{message.name}: rings run")
        self.inflight = InflightFile.take(message, len(self.rings), self._packed, self._lost)

    # ---- rings ----

    def _ring(self, index: int) -> Ring:
        if index >= len(self.rings):
            raise VhostUserError(f"ring {index} out of range ({len(self.rings)} rings)")
        return self.rings[index]

    def _stopped_ring(self, message: Message, index: int) -> Ring:
        ring = self._ring(index)
        if ring.running:
            raise VhostUserError(f"{message.name}: ring {index} runs")
        return ring

    def _set_vring_num(self, message: Message) -> None:
        index, size = unpack(message, STATE)
        ring = self._stopped_ring(message, index)
        limit = self.device.queues[index].size_max
        if not 1 <= size <= limit:
            raise VhostUserError(f"{message.name}: size {size} of ring {index} out of range (1 to {limit})")
        ring.size = size

    def _set_vring_addr(self, message: Message) -> None:
        index, _, desc, used, avail, _ = unpack(message, ADDRESS)
        ring = self._ring(index)
        before = (ring.desc, ring.used, ring.avail)
        ring.desc, ring.used, ring.avail, ring.placed = desc, used, avail, True
        if ring.running and (desc, used, avail) != before:
            self._stop_ring(ring)
            self._start_ring(ring)

    def _set_vring_base(self, message: Message) -> None:
        index, base = unpack(message, STATE)
        self._stopped_ring(message, index).base = base

    def _get_vring_base(self, message: Message) -> bytes:
        index, _ = unpack(message, STATE)
        ring = self._ring(index)
        self._stop_ring(ring)
        ring.kick, ring.polled = None, False
        return STATE.pack(index, ring.base)

    def _bell(self, message: Message) -> tuple[Ring, Bell | None]:
        """Return the ring of SET_VRING_KICK, _CALL or _ERR, and a bell over its eventfd; None: there is none."""
        value = number(message)
        ring = self._ring(value & INDEX_MASK)
        if value & NO_FD:
            return ring, None
        if len(message.fds) != 1:
            raise VhostUserError(f"{message.name} of ring {ring.index} has {len(message.fds)} file descriptors (1)")
        what = os.readlink(f"/proc/self/fd/{message.fds[0]}")
        # user-mode Linux is called by a socket
        if what != EVENTFD and (message.request == Request.SET_VRING_KICK or not what.startswith(("socket:", "pipe:"))):
            raise VhostUserError(f"{message.name} of ring {ring.index} has {what}, which is no eventfd")
        os.set_blocking(message.fds[0], False)  # neither side may keep the other waiting
        return ring, Bell(message.take(), own=True)

    def _set_vring_kick(self, message: Message) -> None:
        ring, bell = self._bell(message)
        self._stop_ring(ring)
        ring.kick, ring.polled = bell, bell is None
        self._start_ring(ring)

    def _set_vring_call(self, message: Message) -> None:
        ring, bell = self._bell(message)
        ring.call = bell
        self.device.set_call(ring.index, bell or self.silent)
        if ring.running:  # whoever has the new one may have missed what the last one was rung for
            self.device.interrupt(ring.index)

    def _set_vring_err(self, message: Message) -> None:
        ring, bell = self._bell(message)
        ring.error = bell

    def _set_vring_enable(self, message: Message) -> None:
        index, enabled = unpack(message, STATE)
        if enabled > 1:
            raise VhostUserError(f"{message.name}: {enabled} is neither 0 nor 1")
        ring = self._ring(index)
        ring.enabled = bool(enabled)
        self.device.mute_queue(index, not enabled)

    @property
    def _packed(self) -> bool:
        return bool(self.features & Feature.RING_PACKED)

    def _driver_features(self) -> int:
        """Return what device and driver agreed on."""
        bits = self.features & ~(LOG_ALL | PROTOCOL_FEATURES)
        if features.missing(bits, self.device.device_type):
            bits |= self.device.frontend_features & self.device.offered
        return bits

    def _start_ring(self, ring: Ring) -> None:
        if not ring.complete:
            raise VhostUserError(f"ring {ring.index} is kicked before its size and addresses are set")
        self._go_live()
        queue = ring.queue(self.table.memory, self._driver_features(), self._packed, self.inflight)
        if not self.device.handles(ring.index):
            self.device.set_kick(ring.index, ring.kick or Bell())
        muted = None if not self.features & PROTOCOL_FEATURES else not ring.enabled
        self.device.start_queue(ring.index, queue, muted=muted)
        ring.running = True
        self._watch(ring, True)

    def _stop_ring(self, ring: Ring) -> None:
        if not ring.running:
            return
        self._watch(ring, False)
        ring.running = False
        queue = self.device.stop_queue(ring.index)
        if queue is not None:
            ring.base = base_of(queue)

    def _go_live(self) -> None:
        device = self.device
        if device.live:
            return
        bits = self._driver_features()
        device.write_status(0)
        device.legacy = not bits & Feature.VERSION_1
        device.write_status(Status.ACKNOWLEDGE | Status.DRIVER)
        device.driver_features(bits)
        if not device.legacy:
            device.write_status(device.status | Status.FEATURES_OK)
            if not device.status & Status.FEATURES_OK:
                raise VhostUserError(str(device.refused[-1]))
        device.write_status(device.status | Status.DRIVER_OK)

    def _watch(self, ring: Ring, on: bool) -> None:
        """Read kicks on this thread, of queues whose kicks the device is told of; the others go to its tasks."""
        if ring.kick is None or not self.device.handles(ring.index):
            return
        if on:
            self._wait.register(ring.kick, selectors.EVENT_READ, partial(self._kicked, ring.kick, ring.index))
        elif ring.running:
            self._wait.unregister(ring.kick)

    def _kicked(self, bell: Bell, index: int) -> None:
        bell.answer()
        self.device.kick(index)

    # ---- configuration ----

    def _net_set_mtu(self, message: Message) -> None:
        mtu = number(message)
        if not self.device.frontend_says("mtu", mtu):
            raise VhostUserError(f"{message.name}: MTU {mtu} cannot be")

    def _send_rarp(self, message: Message) -> None:
        if not self.device.frontend_says("rarp", number(message)):
            log.info("%s: no RARP was sent", self.name)

    def _get_config(self, message: Message) -> bytes:
        offset, size, flags = unpack(message, CONFIG)
        if size > CONFIG_MAX or offset > CONFIG_MAX:
            return CONFIG.pack(offset, 0, flags)  # an answer without bytes is a refusal
        return CONFIG.pack(offset, size, flags) + self.device.read_config(offset, size)

    def _set_config(self, message: Message) -> None:
        offset, size, _ = unpack(message, CONFIG)
        data = message.payload[CONFIG.size :]
        if size > CONFIG_MAX or len(data) < size:
            raise VhostUserError(f"{message.name}: {size} bytes, of which {len(data)} came (limit {CONFIG_MAX})")
        self.device.write_config(offset, data[:size])

    def _set_backend_req_fd(self, message: Message) -> None:
        if len(message.fds) != 1:
            raise VhostUserError(f"{message.name} has {len(message.fds)} file descriptors (1)")
        try:
            connection = socket.socket(fileno=message.fds[0])
        except OSError as error:
            raise VhostUserError(f"{message.name}: {error}") from None
        message.take()
        if self.requests is not None:
            self.requests.close()
        self.requests = Channel(connection, patience=0)  # a data thread may be who sends


def number(message: Message) -> int:
    """Return the payload of a message that is one u64."""
    if len(message.payload) != U64.size:
        raise VhostUserError(f"{message.name} has {len(message.payload)} bytes ({U64.size})")
    return int(U64.unpack(message.payload)[0])


def unpack(message: Message, layout: object) -> tuple[int, ...]:
    """Return the numbers at the start of a payload."""
    size = layout.size  # type: ignore[attr-defined]
    if len(message.payload) < size:
        raise VhostUserError(f"{message.name} has {len(message.payload)} bytes (at least {size})")
    return layout.unpack_from(message.payload)  # type: ignore[attr-defined,no-any-return]


OBEY: dict[int, Callable[[Backend, Message], bytes | Message | None]] = {
    Request.GET_FEATURES: Backend._get_features,
    Request.SET_FEATURES: Backend._set_features,
    Request.SET_OWNER: Backend._nothing,
    Request.RESET_OWNER: Backend._reset_device,
    Request.SET_MEM_TABLE: Backend._set_mem_table,
    Request.SET_LOG_BASE: Backend._set_log_base,
    Request.SET_LOG_FD: Backend._nothing,
    Request.SET_VRING_NUM: Backend._set_vring_num,
    Request.SET_VRING_ADDR: Backend._set_vring_addr,
    Request.SET_VRING_BASE: Backend._set_vring_base,
    Request.GET_VRING_BASE: Backend._get_vring_base,
    Request.SET_VRING_KICK: Backend._set_vring_kick,
    Request.SET_VRING_CALL: Backend._set_vring_call,
    Request.SET_VRING_ERR: Backend._set_vring_err,
    Request.GET_PROTOCOL_FEATURES: Backend._get_protocol_features,
    Request.SET_PROTOCOL_FEATURES: Backend._set_protocol_features,
    Request.GET_QUEUE_NUM: Backend._get_queue_num,
    Request.SET_VRING_ENABLE: Backend._set_vring_enable,
    Request.SEND_RARP: Backend._send_rarp,
    Request.NET_SET_MTU: Backend._net_set_mtu,
    Request.SET_BACKEND_REQ_FD: Backend._set_backend_req_fd,
    Request.GET_CONFIG: Backend._get_config,
    Request.SET_CONFIG: Backend._set_config,
    Request.GET_INFLIGHT_FD: Backend._get_inflight_fd,
    Request.SET_INFLIGHT_FD: Backend._set_inflight_fd,
    Request.RESET_DEVICE: Backend._reset_device,
    Request.GET_MAX_MEM_SLOTS: Backend._get_max_mem_slots,
    Request.ADD_MEM_REG: Backend._add_mem_reg,
    Request.REM_MEM_REG: Backend._rem_mem_reg,
    Request.SET_STATUS: Backend._set_status,
    Request.GET_STATUS: Backend._get_status,
}
