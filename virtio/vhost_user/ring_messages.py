"""The messages about rings: where they lie, where they stand, when they run, and what of them is in flight."""

from __future__ import annotations

import logging
import os
import selectors
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import ClassVar

from virtio._bell import Bell
from virtio._device_queue import DeviceQueue
from virtio._memory import GuestMemory
from virtio.constants import Feature, Status
from virtio.errors import VhostUserError
from virtio.slot import nobody
from virtio.vhost_user.inflight import InflightFile
from virtio.vhost_user.messages import ADDRESS, INDEX_MASK, NO_FD, STATE, Message, Obey, Request, require_local
from virtio.vhost_user.polling import SHORT, Polling
from virtio.vhost_user.rings import Ring
from virtio.vhost_user.session import Session

log = logging.getLogger("virtio.vhost_user")

EVENTFD = "anon_inode:[eventfd]"
CHECK = 0.02  # seconds between two looks at whether a device has given back what it had


class RingMessages:
    """From messages to the queues of the session's device, whose rings are in ``memory``.

    Kicks that the device wants to be told of are read by ``wait``. ``drain``: seconds that the device may take to give
    back the chains of a ring that is stopped; no longer once ``ended`` says so. ``bell`` is rung when the
    frontend cut the inflight file shorter (see Region.from_fd).
    """

    def __init__(
        self,
        session: Session,
        memory: GuestMemory,
        wait: selectors.BaseSelector,
        drain: float,
        ended: Callable[[], bool],
        bell: Bell,
    ) -> None:
        self.session = session
        self.device = session.device
        self.memory = memory
        self.drain = drain
        self.rings = [Ring(index) for index in range(len(self.device.queues))]
        self.inflight: InflightFile | None = None
        self.silent = Bell()
        self._spare = Bell()
        self.polling = Polling(self.device)
        self._wait = wait
        self._ended = ended
        self._bell_of_files = bell

    def attach(self) -> None:
        """Be told when a queue breaks."""
        for ring in self.rings:
            self.device.queues[ring.index].trouble = Bell(partial(self._broke, ring))

    def close(self) -> None:
        """Let go of all bells. The device was reset. That takes no file descriptor: there may be none."""
        for ring in self.rings:
            self._watch(ring, False)
            self.device.queues[ring.index].trouble = Bell(nobody)
            self.device.set_call(ring.index, self.silent)
            if not self.device.handles(ring.index):
                self.device.set_kick(ring.index, self._spare)
        indices = [ring.index for ring in self.rings]
        self.rings.clear()
        for index in indices:  # now that the frontend's are closed; the spare one does until a ring starts again
            if not self.device.handles(index):
                with suppress(OSError):
                    self.device.set_kick(index, Bell())

    @property
    def running(self) -> bool:
        """Whether any runs."""
        return any(ring.running for ring in self.rings)

    @property
    def pause(self) -> float | None:
        """Seconds until :meth:`look` is to be called; None: kicks come for all rings."""
        return self.polling.pause if any(ring.running and ring.polled for ring in self.rings) else None

    def look(self) -> None:
        """Look at the rings for which no kicks come."""
        self.polling.look(ring.index for ring in self.rings if ring.running and ring.polled)

    def enable_all(self) -> None:
        """Enable all rings, for a frontend that knows no SET_VRING_ENABLE."""
        for ring in self.rings:
            ring.enabled = True

    def reset(self, *, drain: bool = False) -> None:
        """Stop all rings; without ``drain`` whatever is in flight, since the driver begins anew.

        The last one first: of a network device the queue that sends before the one that it may send to.
        """
        for ring in reversed(self.rings):
            self._stop(ring, self.drain if drain else 0)
            ring.enabled = self.session.starts_enabled
        self.inflight = None  # a frontend gives it again before it starts rings again

    def replace(self) -> None:
        """Rings are given by the frontend's addresses: another table may have them elsewhere in the guest's."""
        for ring in self.rings:
            if ring.running:
                queue = self.device.queues[ring.index].queue
                if queue is None or queue.layout != ring.layout(self.memory, self.session.packed):
                    self._restart(ring)

    def lost(self) -> str | None:
        """Say what the frontend cut short, if it did."""
        if self.inflight is not None and self.inflight.region.lost:
            return f"inflight region of {self.inflight.region.size:#x} bytes"
        return None

    # ---- starting and stopping ----

    def _start(self, ring: Ring) -> None:
        if not ring.complete:
            raise VhostUserError(f"ring {ring.index} is kicked before its size and addresses are set")
        self._go_live()
        queue = ring.queue(self.memory, self.session.driver_features(), self.session.packed, self.inflight)
        if not self.device.handles(ring.index):
            self.device.set_kick(ring.index, ring.kick or Bell())
        self.device.start_queue(ring.index, queue, muted=None if self.session.starts_enabled else not ring.enabled)
        ring.running = True
        self.polling.forget(ring.index)
        self._watch(ring, True)

    def _stop(self, ring: Ring, drain: float) -> None:
        if not ring.running:
            return
        self._watch(ring, False)
        ring.running = False
        queue = self.device.halt_queue(ring.index)
        if self.device.queues[ring.index].broken is not None:
            drain = 0  # whoever failed at a chain does not give it back
        held = self._await(queue, drain) if queue is not None else 0
        state = self.device.stop_queue(ring.index)
        if state is None:
            return
        ring.stopped_at(state, self.session.packed)
        tracked = self.inflight is not None and ring.index < self.inflight.queues
        if held and drain and not tracked:
            lost = len(state["outstanding"])
            log.warning(
                "%s: ring %d is stopped, and the device gave back all but %d chains within %.0f s: %d are done again "
                "when the ring goes on, %d are lost",
                self.session.name, ring.index, held, drain, held - lost, lost,
            )  # fmt: skip

    def _await(self, queue: DeviceQueue, seconds: float) -> int:
        """Wait until a device has given back what it popped; return how many chains it did not.

        Without the device's lock, which it may need for that; on the thread of this connection, so that no other waits.
        """
        end, pause = time.monotonic() + seconds, SHORT
        while (held := len(queue.outstanding)) and time.monotonic() < end and not self._ended():
            time.sleep(pause)
            pause = min(2 * pause, CHECK)
        return held

    def _restart(self, ring: Ring) -> None:
        self._stop(ring, self.drain)
        self._start(ring)

    def _go_live(self) -> None:
        device = self.device
        if device.live:
            return
        bits = self.session.driver_features()
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

    def _broke(self, ring: Ring) -> None:
        """Tell the frontend that the device can work a ring no more; on any thread."""
        log.error("%s: ring %d is broken: %s", self.session.name, ring.index, self.device.queues[ring.index].broken)
        if ring.error is not None:
            ring.error.ring()

    # ---- messages ----

    def _ring(self, index: int) -> Ring:
        if index >= len(self.rings):
            raise VhostUserError(f"ring {index} out of range ({len(self.rings)} rings)")
        return self.rings[index]

    def _stopped_ring(self, message: Message, index: int) -> Ring:
        ring = self._ring(index)
        if ring.running:
            raise VhostUserError(f"{message.name}: ring {index} runs")
        return ring

    def _set_num(self, message: Message) -> None:
        index, size = message.unpack(STATE)
        ring = self._stopped_ring(message, index)
        limit = self.device.queues[index].size_max
        if not 1 <= size <= limit:
            raise VhostUserError(f"{message.name}: size {size} of ring {index} out of range (1 to {limit})")
        ring.size = size

    def _set_addr(self, message: Message) -> None:
        index, _, desc, used, avail, _ = message.unpack(ADDRESS)
        ring = self._ring(index)
        before = (ring.desc, ring.used, ring.avail)
        ring.desc, ring.used, ring.avail, ring.placed = desc, used, avail, True
        if ring.running and (desc, used, avail) != before:
            self._restart(ring)

    def _set_base(self, message: Message) -> None:
        index, base = message.unpack(STATE)
        self._stopped_ring(message, index).base = base

    def _get_base(self, message: Message) -> bytes:
        index, _ = message.unpack(STATE)
        ring = self._ring(index)
        self._stop(ring, self.drain)
        ring.kick, ring.polled = None, False
        return STATE.pack(index, ring.base)

    def _bell(self, message: Message) -> tuple[Ring, Bell | None]:
        """Return the ring of SET_VRING_KICK, _CALL or _ERR, and a bell over its eventfd; None: there is none."""
        value = message.number()
        ring = self._ring(value & INDEX_MASK)
        if value & NO_FD:
            return ring, None
        if len(message.fds) != 1:
            raise VhostUserError(f"{message.name} of ring {ring.index} has {len(message.fds)} file descriptors (1)")
        what = os.readlink(f"/proc/self/fd/{message.fds[0]}")
        # user-mode Linux is called by a socket
        if what != EVENTFD and (message.request == Request.SET_VRING_KICK or not what.startswith(("socket:", "pipe:"))):
            raise VhostUserError(f"{message.name} of ring {ring.index} has {what}, which is no eventfd")
        if what.startswith("socket:"):
            require_local(message.fds[0], f"{message.name} of ring {ring.index}")
        os.set_blocking(message.fds[0], False)  # neither side may keep the other waiting
        return ring, Bell(message.take(), own=True)

    def _set_kick(self, message: Message) -> None:
        ring, bell = self._bell(message)
        self._stop(ring, self.drain)
        ring.kick, ring.polled = bell, bell is None
        self._start(ring)

    def _set_call(self, message: Message) -> None:
        ring, bell = self._bell(message)
        ring.call = bell
        self.device.set_call(ring.index, bell or self.silent)
        if ring.running:  # whoever has the new one may have missed what the last one was rung for
            self.device.interrupt(ring.index)

    def _set_err(self, message: Message) -> None:
        ring, bell = self._bell(message)
        ring.error = bell
        if bell is not None and self.device.queues[ring.index].broken is not None:
            bell.ring()

    def _set_enable(self, message: Message) -> None:
        index, enabled = message.unpack(STATE)
        if enabled > 1:
            raise VhostUserError(f"{message.name}: {enabled} is neither 0 nor 1")
        ring = self._ring(index)
        ring.enabled = bool(enabled)
        self.device.mute_queue(index, not enabled)

    def _get_inflight(self, message: Message) -> Message:
        return InflightFile.answer(message, len(self.rings), self.session.packed)

    def _set_inflight(self, message: Message) -> None:
        if self.running:
            raise VhostUserError(f"{message.name}: rings run")
        self.inflight = InflightFile.take(message, len(self.rings), self.session.packed, self._bell_of_files)

    OBEY: ClassVar[Obey] = {
        Request.SET_VRING_NUM: _set_num,
        Request.SET_VRING_ADDR: _set_addr,
        Request.SET_VRING_BASE: _set_base,
        Request.GET_VRING_BASE: _get_base,
        Request.SET_VRING_KICK: _set_kick,
        Request.SET_VRING_CALL: _set_call,
        Request.SET_VRING_ERR: _set_err,
        Request.SET_VRING_ENABLE: _set_enable,
        Request.GET_INFLIGHT_FD: _get_inflight,
        Request.SET_INFLIGHT_FD: _set_inflight,
    }
