"""The rings of a connection: when each starts and stops, and how it goes on when guest memory moves."""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from virtio.constants import Feature, Status
from virtio.core.logs import limited
from virtio.device.queue_state import nobody, nothing
from virtio.errors import MemoryFault, VhostUserError, VirtioError
from virtio.event.notifier import Bell
from virtio.memory.guest_memory import GuestMemory
from virtio.vhost_user.inflight import InflightFile
from virtio.vhost_user.memory import MemoryTable, Slot, overlap
from virtio.vhost_user.polling import SHORT, Polling
from virtio.vhost_user.session import Session
from virtio.vhost_user.vring import Ring
from virtio.virtqueue.device_queue import DeviceQueue

log = limited("virtio.vhost_user")

CHECK = 0.02  # seconds between two looks at whether a device has given back what it had


class Rings:
    """The queues of the session's device, whose rings are in the guest memory of ``table``.

    Kicks that the device wants to be told of are read by ``wait``. ``drain``: seconds that the device may take to give
    back the chains of a ring that is stopped; no longer once ``ended`` returns True.
    """

    def __init__(
        self,
        session: Session,
        table: MemoryTable,
        wait: selectors.BaseSelector,
        drain: float,
        ended: Callable[[], bool],
    ) -> None:
        self.session = session
        self.device = session.device
        self.table = table
        self.memory = table.guest
        self.drain = drain
        self.rings = [Ring(index, session.name) for index in range(len(self.device.queues))]
        self.inflight: InflightFile | None = None
        self.silent = Bell()
        self._spare = Bell()
        self.polling = Polling(self.device)
        self._wait = wait
        self._ended = ended

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
                self.enable(ring, True)

    def enable(self, ring: Ring, enabled: bool) -> None:
        """Have a ring's queue used, or muted."""
        ring.enabled = enabled
        self.device.mute_queue(ring.index, not enabled)

    def stop_all(self) -> None:
        """Stop all rings, drained. Each starts at its next SET_VRING_KICK: until then it is the old driver's."""
        for ring in self.rings:
            if ring.running or ring.waiting:
                self.inflight = None  # what is in there is the old driver's
        for ring in self.rings:
            self.end(ring)

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
                self.start(ring)
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

    def start(self, ring: Ring) -> None:
        """Start a complete ring, or have it wait for its memory: see :meth:`moving`."""
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

    def halt(self, ring: Ring) -> None:
        """Stop a ring that is set up again while it runs. It starts at its next kick, of the same descriptor too."""
        if not (ring.running or ring.waiting):
            return
        if self._stop(ring, self.drain) and self.inflight is not None:
            self.inflight.clear(ring.index)  # it would say where the next driver's ring stands
        if ring.kick is not None:
            ring.kick.answer()  # that one was for what is stopped
            self._watch(ring, partial(self._kicked_again, ring))

    def end(self, ring: Ring) -> None:
        """Stop a ring, drained, and read its kicks no more."""
        self._stop(ring, self.drain)
        self._watch(ring, None)

    def track(self, file: InflightFile) -> None:
        """Have the rings that run go on with another inflight file."""
        running = [ring for ring in self.rings if ring.running]
        for ring in running:
            self._stop(ring, self.drain)
        self.inflight = file
        for ring in running:
            self.start(ring)

    def _restart(self, ring: Ring) -> None:
        self._stop(ring, self.drain)
        self.start(ring)

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
            self.start(ring)

    def _broke(self, ring: Ring) -> None:
        """Tell the frontend that the device can work a ring no more; on any thread."""
        log.error("%s: ring %d is broken: %s", self.session.name, ring.index, self.device.queues[ring.index].broken)
        if ring.error is not None:
            ring.error.ring()
