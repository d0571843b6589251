"""The messages about rings: where they lie, where they stand, when they run, and what of them is in flight."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import ClassVar

from virtio.constants import Feature, Status
from virtio.core.logs import limited
from virtio.device.queue_state import nobody, nothing
from virtio.errors import MemoryFault, VhostUserError, VirtioError
from virtio.event.notifier import Bell
from virtio.memory.guest_memory import GuestMemory
from virtio.vhost_user.descriptors import make_write_only
from virtio.vhost_user.inflight import InflightFile
from virtio.vhost_user.memory import MemoryTable, Slot, overlap
from virtio.vhost_user.message import ADDRESS, INDEX_MASK, NO_FD, STATE, Message, Obey, Request
from virtio.vhost_user.polling import SHORT, Polling
from virtio.vhost_user.session import Session
from virtio.vhost_user.vring import Ring
from virtio.virtqueue.device_queue import DeviceQueue
from virtio.virtqueue.layout import QUEUE_SIZE_MAX

log = limited("virtio.vhost_user")

EVENTFD = "anon_inode:[eventfd]"
CHECK = 0.02  # seconds between two looks at whether a device has given back what it had


class RingMessages:
    """From messages to the queues of the session's device, whose rings are in the memory of ``table``.

    Kicks that the device wants to be told of are read by ``wait``. ``drain``: seconds that the device may take to give
    back the chains of a ring that is stopped; no longer once ``ended`` says so. ``bell`` is rung when the
    frontend cut the inflight file shorter (see Region.from_fd).
    """

    def __init__(
        self,
        session: Session,
        table: MemoryTable,
        wait: selectors.BaseSelector,
        drain: float,
        ended: Callable[[], bool],
        bell: Bell,
    ) -> None:
        self.session = session
        self.device = session.device
        self.table = table
        self.memory = table.memory
        self.drain = drain
        self.rings = [Ring(index, session.name) for index in range(len(self.device.queues))]
        self.inflight: InflightFile | None = None
        self.silent = Bell()
        self._spare = Bell()
        self.polling = Polling(self.device)
        self._wait = wait
        self._ended = ended
        self._bell_of_files = bell

    def attach(self) -> None:
        """Be told when a queue breaks, and asked whether it does."""
        for ring in self.rings:
            slot = self.device.queues[ring.index]
            slot.trouble, slot.awaits = Bell(partial(self._broke, ring)), partial(self._awaits, ring)

    def close(self) -> None:
        """Let go of all bells. The device was reset. That takes no file descriptor: there may be none."""
        for ring in self.rings:
            self._watch(ring, None)
            slot = self.device.queues[ring.index]
            slot.trouble, slot.awaits = Bell(nobody), nothing
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
    def pause(self) -> float | None:
        """Seconds until :meth:`look` is to be called; None: kicks come for all rings."""
        return self.polling.pause if any(ring.running and ring.polled for ring in self.rings) else None

    def look(self) -> None:
        """Look at the rings for which no kicks come."""
        self.polling.look(ring.index for ring in self.rings if ring.running and ring.polled)

    def enable_all(self) -> None:
        """Enable all rings, for a frontend that knows no SET_VRING_ENABLE."""
        for ring in self.rings:
            if not ring.enabled:  # the others stay as the driver has them: it may use fewer queue pairs
                self._enable(ring, True)

    def stop_all(self) -> None:
        """Stop all rings, drained. Each starts at its next SET_VRING_KICK: until then it is the old driver's."""
        for ring in self.rings:
            if ring.running or ring.waiting:
                self.inflight = None  # what is in there is the old driver's
        for ring in self.rings:
            self._stop(ring, self.drain)
            self._watch(ring, None)

    def reset(self, *, drain: bool = False) -> None:
        """Stop all rings; without ``drain`` whatever is in flight, since the driver starts again.

        The last one first: of a network device the queue that sends before the one that it may send to.
        """
        for ring in reversed(self.rings):
            self._stop(ring, self.drain if drain else 0)
            self._watch(ring, None)
            ring.enabled = self.session.starts_enabled
        self.inflight = None  # a frontend gives it again before it starts rings again

    @contextmanager
    def moving(self, slots: list[Slot]) -> Iterator[None]:
        """Let the body replace the memory by these regions, and have the rings find theirs again.

        Rings are given by the frontend's addresses, which stay. A ring that will be elsewhere in guest memory, or
        nowhere, is stopped before, drained, and started when its memory is there. So is one with chains out whose
        buffers leave, and one that came upon a chain whose memory was away.
        """
        leaving, planned = self.table.leaving(slots), None
        for ring in self.rings:
            if ring.running:
                planned = planned or self.table.plan(slots)
                if not self._stays(ring, planned) or (leaving and self._is_in_use(ring, leaving)):
                    self._stop(ring, self.drain)
                    ring.waiting = True
        yield
        for ring in self.rings:
            if ring.waiting:
                self._start(ring)
            elif ring.running and self._is_back(ring):
                self._restart(ring)

    def _stays(self, ring: Ring, planned: GuestMemory) -> bool:
        """Say whether a ring that runs is at the same place in another memory."""
        queue = self.device.queues[ring.index].queue
        try:
            layout = ring.layout(planned, self.session.packed)
            DeviceQueue(planned, layout)  # raises if an area is not there as a whole, or not aligned there
        except (MemoryFault, ValueError, VhostUserError):
            return False
        return queue is not None and queue.layout == layout

    def _is_in_use(self, ring: Ring, ranges: list[tuple[int, int]]) -> bool:
        """Say whether the device has chains with buffers in one of these ranges."""
        queue = self.device.queues[ring.index].queue
        if queue is None or not queue.outstanding:
            return False
        chains = queue.state()["outstanding"]
        pieces = (piece for chain in chains for piece in (*chain["readable"], *chain["writable"]))
        return any(overlap(ranges, gpa, length) for gpa, length in pieces)

    def _is_back(self, ring: Ring) -> bool:
        """Say whether a chain's memory is there that was away."""
        slot = self.device.queues[ring.index]
        fault = None if slot.queue is None else slot.queue.broken
        if slot.broken is not None or not isinstance(fault, MemoryFault):
            return False
        try:
            self.memory.gather(fault.gpa, fault.length)
        except MemoryFault:
            return False
        return True

    def _awaits(self, ring: Ring, fault: VirtioError) -> bool:
        """Say whether a queue came upon memory that was there and may be again: it stands still then; on any thread.

        QEMU removes a region and adds its parts, while its guest goes on.
        """
        away = isinstance(fault, MemoryFault) and overlap(self.table.gone, fault.gpa, fault.length)
        if away and not ring.stalled:
            ring.stalled = True
            log.info("%s: ring %d stands still: %s", self.session.name, ring.index, str(fault))
        return away

    def lost(self) -> str | None:
        """Say what the frontend cut short, if it did."""
        if self.inflight is not None and self.inflight.region.lost:
            return f"inflight region of {self.inflight.region.size:#x} bytes"
        return None

    # ---- starting and stopping ----

    def _start(self, ring: Ring) -> None:
        """Start a ring, or have it wait for its memory: see :meth:`moving`."""
        if not ring.complete:
            raise VhostUserError(f"ring {ring.index} is kicked before its size and addresses are set")
        self._watch(ring, None)
        ring.waiting = ring.is_away(self.memory)
        if ring.waiting:
            log.info("%s: ring %d stands still: its memory is not there", self.session.name, ring.index)
            return
        self._go_live()
        queue = ring.queue(self.memory, self.session.driver_features(), self.session.packed, self.inflight)
        if not self.device.handles(ring.index):
            self.device.set_kick(ring.index, ring.kick or Bell())
        self.device.start_queue(ring.index, queue, muted=None if self.session.starts_enabled else not ring.enabled)
        ring.running, ring.stalled = True, False
        self.polling.forget(ring.index)
        if self.device.handles(ring.index):  # tasks read the kicks of other queues
            self._watch(ring, partial(self._kicked, ring))

    def _stop(self, ring: Ring, drain: float) -> bool:
        """Stop a ring, if it runs; return whether it did, and has nothing in flight."""
        ring.waiting = False
        if not ring.running:
            return False
        self._watch(ring, None)
        ring.running = False
        queue = self.device.halt_queue(ring.index)
        if self.device.queues[ring.index].broken is not None:
            drain = 0  # whoever failed at a chain does not give it back
        held = self._await(queue, drain) if queue is not None else 0
        state = self.device.stop_queue(ring.index)
        if state is None:
            return False
        ring.stopped_at(state, self.session.packed)
        tracked = self.inflight is not None and ring.index < self.inflight.queues
        if held and drain and not tracked:
            lost = len(state["outstanding"])
            log.warning(
                "%s: ring %d is stopped, and the device gave back all but %d chains within %.0f s: %d are done again "
                "when the ring goes on, %d are lost",
                self.session.name, ring.index, held, drain, held - lost, lost,
            )  # fmt: skip
        return not state["outstanding"]

    def _await(self, queue: DeviceQueue, seconds: float) -> int:
        """Wait until a device has given back what it popped; return how many chains it did not.

        Without the device's lock, which it may need for that; on the thread of this connection, so that no other waits.
        """
        end, pause = time.monotonic() + seconds, SHORT
        while (held := len(queue.outstanding)) and time.monotonic() < end and not self._ended():
            time.sleep(pause)
            pause = min(2 * pause, CHECK)
        return held

    def _halt(self, ring: Ring) -> None:
        """Stop a ring that is set up again while it runs. It starts at its next kick, of the same descriptor too."""
        if not (ring.running or ring.waiting):
            return
        if self._stop(ring, self.drain) and self.inflight is not None:
            self.inflight.clear(ring.index)  # it would say where the next driver's ring stands
        if ring.kick is not None:
            ring.kick.answer()  # that one was for what is stopped
            self._watch(ring, partial(self._kicked_again, ring))

    def _restart(self, ring: Ring) -> None:
        self._stop(ring, self.drain)
        self._start(ring)

    def _go_live(self) -> None:
        device = self.device
        if device.status & Status.DEVICE_NEEDS_RESET and not any(ring.running for ring in self.rings):
            device.reset()  # a driver starts again, and its frontend may have no other message for that
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

    def _watch(self, ring: Ring, kicked: Callable[[], None] | None) -> None:
        """Have kicks of a ring read on this thread; None: no more."""
        if ring.watched is not None:
            self._wait.unregister(ring.watched)
        ring.watched = ring.kick if kicked is not None else None
        if ring.watched is not None:
            self._wait.register(ring.watched, selectors.EVENT_READ, kicked)

    def _kicked(self, ring: Ring) -> None:
        if ring.watched is not None and ring.running:
            ring.watched.answer()
            self.device.kick(ring.index)

    def _kicked_again(self, ring: Ring) -> None:
        if ring.watched is not None and not ring.running:
            self._start(ring)

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

    # User-mode Linux says the next three of rings that run, when its driver is bound again: it never stops any. QEMU
    # says the same addresses again, and nothing else, to have a ring logged.

    def _set_num(self, message: Message) -> None:
        index, size = message.unpack(STATE)
        ring = self._ring(index)
        if not 1 <= size <= QUEUE_SIZE_MAX:  # the frontend's choice: it is not told the device's queue_size
            raise VhostUserError(f"{message.name}: size {size} of ring {index} out of range (1 to {QUEUE_SIZE_MAX})")
        self._halt(ring)
        ring.size = size

    def _set_addr(self, message: Message) -> None:
        index, _, desc, used, avail, _ = message.unpack(ADDRESS)
        ring = self._ring(index)
        if ring.placed and (ring.desc, ring.used, ring.avail) == (desc, used, avail):
            return
        self._halt(ring)
        ring.desc, ring.used, ring.avail, ring.placed, ring.stood = desc, used, avail, True, None

    def _set_base(self, message: Message) -> None:
        index, base = message.unpack(STATE)
        ring = self._ring(index)
        self._halt(ring)
        ring.base = base

    def _get_base(self, message: Message) -> bytes:
        index, _ = message.unpack(STATE)
        ring = self._ring(index)
        self._stop(ring, self.drain)
        self._watch(ring, None)
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
            make_write_only(message.fds[0], f"{message.name} of ring {ring.index}")
        os.set_blocking(message.fds[0], False)  # neither side may keep the other waiting
        return ring, Bell(message.take(), own=True)

    def _set_kick(self, message: Message) -> None:
        ring, bell = self._bell(message)
        self._stop(ring, self.drain)
        self._watch(ring, None)
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
        self._enable(self._ring(index), bool(enabled))

    def _enable(self, ring: Ring, enabled: bool) -> None:
        ring.enabled = enabled
        self.device.mute_queue(ring.index, not enabled)

    def _get_inflight(self, message: Message) -> Message:
        return InflightFile.answer(message, len(self.rings), self.session.packed)

    def _set_inflight(self, message: Message) -> None:
        given = InflightFile.take(message, len(self.rings), self.session.packed, self._bell_of_files)
        running = [ring for ring in self.rings if ring.running]
        for ring in running:
            self._stop(ring, self.drain)
        self.inflight = given
        for ring in running:
            self._start(ring)

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
