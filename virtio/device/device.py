"""The device end above the rings: status, feature negotiation, config space, queues, reset, snapshot.

A device type is a subclass of :class:`Device`; examples/entropy.py is a whole one. A transport shows a
device to a driver. Source: VIRTIO 1.4, chapter 2 and section 3.1.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

from virtio.constants import Feature, Status
from virtio.core.logs import limited
from virtio.core.weak import weakly
from virtio.device import snapshot
from virtio.device.dispatch import Serving
from virtio.device.operations import Hooks
from virtio.device.queue_state import Interrupt, QueueSlot, nobody
from virtio.errors import ConfigError, MemoryFault, NegotiationError, RingError, VirtioError, bare, in_full
from virtio.event.notifier import Bell
from virtio.features import LEGACY_BITS, Features, choose, closed, legacy_only, names_of, refusals
from virtio.memory.guest_memory import GuestMemory
from virtio.virtqueue.chain import Chain
from virtio.virtqueue.device_queue import DeviceQueue
from virtio.virtqueue.layout import QUEUE_SIZE_MAX, QueueLayout

log = limited("virtio.device")

QUEUES_MAX = 0x10000
CHAINS_MAX = 4096  # that one call of notified() serves
REFUSED_KEPT = 64  # errors that `refused` holds: a driver must not be able to fill our memory


class Device(Hooks):
    """A virtio device; base of all of them.

    A subclass says ``device_type`` and the ``features`` that it offers, gives :meth:`queue_sizes`, sets ``config`` (a
    bytearray: the config space of its type), and overrides :class:`~virtio.device.operations.Hooks`. What
    queue_sizes() needs is to be there before ``super().__init__()`` is called.

    ``offer`` and ``withhold`` are features (bits or names) to offer besides the type's own, and not to offer; what
    needs a withheld bit is not offered either. ``queue_size`` is the largest size of each queue, where the
    transport transfers it. Raises ConfigError for what cannot be.

    The driver is not believed. What it may not do changes nothing, is counted in ``counters``, and the last such errors
    are in ``refused``; none is raised. What breaks a queue, a handler's exception included, ends in
    :meth:`needs_reset`.

    Threads: a transport calls from one thread at a time. Bells, :meth:`interrupt`, :meth:`needs_reset`,
    :meth:`config_changed` and :meth:`soon` are for any thread that holds no queue's lock, and never wait: where another
    thread has the device's lock, it does what they say when it is done. Hooks run under that lock, one at a time;
    interrupts that they raise go out when it is free. A subclass takes it by ``with self._control():``.
    """

    device_type: ClassVar[int]
    features: ClassVar[int] = (
        Feature.NOTIFY_ON_EMPTY
        | Feature.ANY_LAYOUT
        | Feature.INDIRECT_DESC
        | Feature.EVENT_IDX
        | Feature.VERSION_1
        | Feature.RING_PACKED
        | Feature.IN_ORDER
        | Feature.RING_RESET
    )

    def __init__(self, *, offer: Features = 0, withhold: Features = 0, queue_size: int = 256) -> None:
        self.offered = choose(self.features, offer, withhold, self.device_type)
        self.queue_size = queue_size
        self.config = getattr(self, "config", bytearray())
        self.legacy = False
        self.memory: GuestMemory | None = None
        self.negotiated = 0
        self.status = 0
        self.generation = 0
        self.live = False  # between activate() and deactivate()
        self.dma = True  # the transport lets it at its memory
        self.reason: str | None = None  # of NEEDS_RESET
        self.refused: deque[VirtioError] = deque(maxlen=REFUSED_KEPT)
        self.counters: Counter[str] = Counter()
        self._interrupt: Interrupt | None = None
        self.acked = 0  # features that the driver wants, checked or not
        self._epoch = 0  # counts resets
        self._complaint: tuple[str, int] | None = None  # of needs_reset, and when
        self._serving = Serving(self._servable, self._serve, self._raise_config)
        self._control = self._serving.control
        begin = partial(weakly(self.soon), weakly(self.begin_early))
        sizes = self.queue_sizes()
        if not len(sizes) <= QUEUES_MAX:
            raise ConfigError(f"{len(sizes)} queues (at most {QUEUES_MAX})")
        self.queues: list[QueueSlot] = self._serving.slots
        for index, size in enumerate(sizes):
            if not 1 <= size <= QUEUE_SIZE_MAX:
                raise ConfigError(f"size {size} of queue {index} out of range (1 to {QUEUE_SIZE_MAX})")
            slot = QueueSlot(index, size, Bell(nobody), begin)
            slot.kick = Bell(self._serving.kick_function(index)) if self.handles(index) else Bell()
            self.queues.append(slot)

    def names(self, features: int) -> list[str]:
        """Return the names of bits, as this device type has them."""
        return names_of(features, self.device_type)

    def __repr__(self) -> str:
        state = self.reason or ("live" if self.live else Status(self.status).name or "reset")
        return f"<{type(self).__name__}: {len(self.queues)} queues, {state}>"

    # ---- for subclasses ----

    def device_queue(self, index: int) -> DeviceQueue:
        """Return the device end of a queue that the driver set up; the same object until queue or device are reset.

        Raises ConfigError if it is not set up, MemoryFault when it lies outside of memory.
        """
        slot = self.queues[index]
        if slot.queue is None:
            if slot.layout is None or self.memory is None:
                raise ConfigError(f"queue {index} is not set up")
            slot.queue = DeviceQueue(self.memory, slot.layout, features=self.negotiated, index=index)
        return slot.queue

    def chains(self, index: int) -> Iterator[Chain]:
        """Yield each chain that waits in a queue. The loop's body reads and writes it; then it goes back to the driver.

        At the end the driver is interrupted if it wants to be, and kicks are on again. After CHAINS_MAX chains it ends
        too, and :meth:`notified` is called anew, so that a driver that never ends keeps nobody else out.
        """
        left = CHAINS_MAX
        slot, queue = self.queues[index], self.device_queue(index)
        try:
            while True:
                queue.disable_notification()
                while chain := queue.pop():
                    yield chain
                    if slot.queue is not queue:  # reset meanwhile: the chain is void
                        return
                    queue.add_used(chain)
                    left -= 1
                    if not left:
                        slot.kick.ring()
                        return
                if not queue.enable_notification():
                    return
        finally:
            if slot.queue is queue and queue.needs_notification():
                self.interrupt(index)

    def soon(self, work: Callable[[], object]) -> None:
        """Do something under the device's lock: now if it is free or ours, else whoever has it does. Never waits."""
        self._serving.soon(work)

    def interrupt(self, index: int) -> None:
        """Interrupt the driver for a queue: at once, or as soon as the device's lock is free."""
        self._serving.interrupt(self.queues[index])

    def config_changed(self) -> None:
        """Tell the driver that ``config`` was changed: a new generation, and an interrupt once it is ready."""
        self.soon(self._config_changed)

    def _config_changed(self) -> None:
        self.generation += 1
        self._owe_config()

    def needs_reset(self, reason: str) -> None:
        """Say that the device cannot go on until it is reset: DEVICE_NEEDS_RESET, and an interrupt (2.1.2).

        Queues that are not concerned may go on. The first reason is kept.
        """
        if self._complaint is None or self._complaint[1] != self._epoch:
            self._complaint = reason, self._epoch
        self.soon(self._needs_reset)

    def _needs_reset(self) -> None:
        complaint, self._complaint = self._complaint, None
        if complaint is None or complaint[1] != self._epoch:  # it was reset meanwhile
            return
        reason, _ = complaint
        self.counters["needs_reset"] += 1
        self.reason = self.reason or reason
        if not self.status & Status.DEVICE_NEEDS_RESET:
            self.status |= Status.DEVICE_NEEDS_RESET
            self._owe_config()

    def _owe_config(self) -> None:
        self._serving.config_owed = bool(self.status & Status.DRIVER_OK)

    # ---- for transports ----

    def bind(self, memory: GuestMemory, interrupt: Interrupt) -> None:
        """Give the device its memory and its way to the driver. RuntimeError while it is live."""
        if self.live:
            raise RuntimeError(f"{self!r} is bound and live: reset it first")
        with self._control():
            self.memory, self._interrupt, self.dma = memory, interrupt, True
            for slot in self.queues:
                self.set_call(slot.index, interrupt.queue(slot.index))

    def unbind(self) -> None:
        """Let go of memory and of the way to the driver; RuntimeError while it is live."""
        if self.live:
            raise RuntimeError(f"{self!r} is bound and live: reset it first")
        with self._control():
            self.memory = self._interrupt = None
            for slot in self.queues:
                self.set_call(slot.index, Bell(nobody))

    def set_call(self, index: int, bell: Bell) -> None:
        """Ring another bell for a queue from now on."""
        with self._control():
            self.queues[index].call = bell
            self.call_changed(index)

    def set_dma(self, allowed: bool) -> None:
        """Keep the device away from its memory, or let it at it again: a bus may forbid DMA.

        What it missed is made up for then: DRIVER_OK, kicks. It may from :meth:`bind` on; a reset does not change it.
        """
        with self._control():
            if allowed == self.dma:
                return
            self.dma = allowed
            if self.live:
                (self.resume if allowed else self.pause)()
            elif allowed and self.status & (Status.DRIVER_OK | Status.FAILED) == Status.DRIVER_OK:
                self.go_live()
            else:
                self.begin_early()
            for slot in self.queues:
                if allowed and self.live and slot.enabled:
                    slot.kick.ring()

    @property
    def device_features(self) -> int:
        """What the driver is offered: ``offered``, less what its interface, legacy or not, does not have."""
        if self.legacy:
            return self.offered & LEGACY_BITS
        return self.offered & ~legacy_only(self.device_type)

    def check_features(self, bits: int) -> None:
        """Raise NegotiationError, with the names of the bits, unless a driver may ask for these features."""
        faults = refusals(bits, self.device_features, self.device_type)
        if faults:
            text = ", ".join(f"{name} ({why})" for name, why in faults.items())
            raise NegotiationError(f"features refused: {text}", self.device_features, bits, tuple(faults))

    def driver_features(self, bits: int) -> None:
        """Take the features that the driver wants: checked when it says FEATURES_OK; at once by the legacy interface.

        There what it may have of them is negotiated, as it cannot be told of a refusal; and it may write them at any
        time: Linux before 2.6.30 does so after it has used its queues, and after DRIVER_OK.
        """
        with self._control():
            if self.legacy:
                before, self.acked = self.negotiated, bits
                self._negotiate()
                if self.negotiated != before:
                    self._renew()
            elif self.status & (Status.FEATURES_OK | Status.DRIVER_OK):
                self._refuse("features", NegotiationError("features are negotiated already", self.negotiated, bits))
            else:
                self.acked = bits

    def _negotiate(self) -> bool:
        try:
            self.check_features(self.acked)
        except NegotiationError as error:
            self._refuse("features", error)
            if not self.legacy:
                return False
        self.negotiated = closed(self.acked & self.device_features, self.device_type)
        return True

    def write_status(self, value: int) -> None:
        """Take the device status that the driver writes; 0 resets. What it may not set stays clear (2.1, 3.1.1).

        A legacy driver may clear DRIVER_OK: the device then leaves all queues alone, as in QEMU. The drivers of
        virtio-win and SUSE's do so before they reset it. DRIVER_OK makes it go on from where the queues stand.
        """
        if value == 0:
            self.reset()
            return
        with self._control():
            # NEEDS_RESET is ours: a driver writes it back because it read it
            new = value & ~self.status & ~Status.DEVICE_NEEDS_RESET
            cleared = self.status & ~value & ~Status.DEVICE_NEEDS_RESET
            if self.legacy and cleared & Status.DRIVER_OK:
                self._not_ok()
                cleared &= ~Status.DRIVER_OK
            if cleared:
                self._refuse("status", VirtioError(f"status {value:#x} would clear bits of {self.status:#x}"))
            self.status |= new & (Status.ACKNOWLEDGE | Status.DRIVER)
            if new & Status.FAILED:
                self.status |= Status.FAILED
                self._stop()
            if new & Status.FEATURES_OK:
                self._features_ok()
            if new & Status.DRIVER_OK:
                self._driver_ok()
            known = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK | Status.FAILED
            if new & ~known:
                self._refuse("status", VirtioError(f"status bits {new & ~known:#x} are not the driver's to set"))

    def _features_ok(self) -> None:
        if self.legacy:
            self._refuse("status", VirtioError("FEATURES_OK is not part of the legacy interface"))
        elif not self.status & Status.DRIVER:
            self._refuse("status", VirtioError(f"FEATURES_OK before DRIVER (status {self.status:#x})"))
        elif self._negotiate():
            self.status |= Status.FEATURES_OK

    def _driver_ok(self) -> None:
        if not (self.legacy or self.status & Status.FEATURES_OK):
            self._refuse("status", VirtioError(f"DRIVER_OK before FEATURES_OK (status {self.status:#x})"))
        elif self.status & Status.FAILED:
            self._refuse("status", VirtioError("DRIVER_OK after FAILED"))
        else:
            self.status |= Status.DRIVER_OK
            if self.dma and not self.live:
                self.go_live()

    def _not_ok(self) -> None:
        """Stop where the queues stand: the driver cleared DRIVER_OK, and a kick alone does not start the device."""
        self._hold()
        self.status &= ~Status.DRIVER_OK
        for slot in self.queues:
            slot.stood = None

    def _may_begin(self, slot: QueueSlot) -> bool:
        """Say whether a kick of the queue starts the device before DRIVER_OK: legacy drivers wait for it (3.1.2)."""
        stopped = self.status & (Status.FAILED | Status.DEVICE_NEEDS_RESET)
        return self.legacy and slot.early and self.dma and not stopped

    def begin_early(self) -> None:
        """Start if a legacy driver kicked a queue before DRIVER_OK."""
        if not self.live and any(map(self._may_begin, self.queues)):
            self.go_live()

    def _renew(self) -> None:
        """Go on with the features that a legacy driver has just written: each queue from where it stands."""
        live = self.live
        if self._hold() and live:
            self.go_live()

    def _hold(self) -> bool:
        """Stop, with each queue where it stands: chains that are out come again. False: the device needs a reset."""
        self._stop()
        try:
            for slot in self.queues:
                if slot.queue is not None:
                    state = slot.leave(slot.queue) | {"features": self.negotiated}
                    slot.queue = DeviceQueue.restore(self._memory(), state)
                    slot.kicked = slot.kicked or (slot.enabled and self.handles(slot.index))
        except (MemoryFault, RingError, ValueError) as error:
            self._fault(f"queues: {error}", error)
            return False
        return True

    def go_live(self) -> None:
        """Start: :meth:`activate`."""
        if self.memory is None or self._interrupt is None:
            raise RuntimeError(f"{self!r} is not bound to memory")
        self.live = True
        for slot in self.queues:
            slot.kick.watch(None)
        try:
            self.activate(self.memory, self._interrupt)
        except Exception as error:
            self._fault(f"activate: {type(error).__name__}: {error}", error)
            self._stop()

    def _stop(self) -> None:
        if self.live:
            self.live = False
            self.deactivate()

    def reset(self) -> None:
        """Go back to where the device was before a driver came (2.4). Memory and interrupts stay bound."""
        with self._control():
            self._epoch += 1
            try:
                self._stop()
            finally:
                self.status = self.negotiated = self.acked = 0
                self.reason = None
                self._serving.config_owed = False
                for slot in self.queues:
                    slot.clear()

    def read_config(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes of the config space; beyond its end they are 0."""
        if offset < 0 or size < 0 or size > 0x10000:
            self._refuse("config", ConfigError(f"config read of {size} bytes at {offset}"))
            return b""
        return bytes(self.config[offset : offset + size]).ljust(size, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        """Take what the driver writes to the config space: :meth:`config_written` decides."""
        with self._control():
            size = len(self.config)
            if offset < 0 or offset + len(data) > size:
                self._refuse("config", ConfigError(f"config write of {len(data)} bytes at {offset} (size {size})"))
            elif not self.config_written(offset, bytes(data)):
                self._refuse("config", ConfigError(f"config write of {len(data)} bytes at {offset}: read-only"))

    def kick(self, index: int) -> None:
        """Take a notification of the driver. Before DRIVER_OK it is remembered; a legacy driver's starts the device.

        The bells of queues that :meth:`handles` does not name count from the start on, as QEMU's ioeventfds do.
        """
        if self._has(index):
            self.queues[index].kick.ring()

    def setup_queue(self, index: int, layout: QueueLayout) -> bool:
        """Enable a queue at ``layout``; return whether the driver may. While live: after :meth:`reset_queue`."""
        with self._control():
            if not self._has(index):
                return False
            slot = self.queues[index]
            fault = self._cannot_set_up(slot, layout)
            if fault:
                self._refuse("queue", VirtioError(f"queue {index} cannot be set up: {fault}"))
                return False
            try:
                for gpa, length in layout.areas:
                    self._memory().translate(gpa, length)
            except MemoryFault as error:
                self._refuse("queue", error)
                self.needs_reset(f"queue {index}: {error}")
                return False
            slot.layout, slot.size, slot.enabled = layout, layout.size, True
            slot.await_kick()
            if self.live:
                self.queue_enable(index)
                if not self.dma:
                    self.pause()
            return True

    def _cannot_set_up(self, slot: QueueSlot, layout: QueueLayout) -> str | None:
        if slot.enabled:
            return "it is enabled"
        if layout.size > slot.size_max:
            return f"size {layout.size} (at most {slot.size_max})"
        if self.legacy:
            return "the legacy interface has no packed rings" if layout.is_packed else None
        if not self.status & Status.FEATURES_OK:
            return f"features are not negotiated (status {self.status:#x})"
        if layout.is_packed != bool(self.negotiated & Feature.RING_PACKED):
            return f"RING_PACKED is {'not ' if layout.is_packed else ''}negotiated"
        if self.live and not self.negotiated & Feature.RING_RESET:
            return "the device is live, and RING_RESET is not negotiated"
        return None

    def reset_queue(self, index: int) -> bool:
        """Stop one queue and forget its layout (2.6.1; address 0 in the legacy interface); return whether it was."""
        with self._control():
            if not self._has(index):
                return False
            slot = self.queues[index]
            if not (self.legacy or self.negotiated & Feature.RING_RESET):
                self._refuse("queue", VirtioError(f"reset of queue {index}: RING_RESET is not negotiated"))
                return False
            if slot.enabled and self.live:
                self.queue_reset(index)
            slot.clear()
            return True

    def _has(self, index: int) -> bool:
        if 0 <= index < len(self.queues):
            return True
        self._refuse("queue", VirtioError(f"queue {index} out of range ({len(self.queues)} queues)"))
        return False

    def _memory(self) -> GuestMemory:
        if self.memory is None:
            raise RuntimeError(f"{self!r} is not bound to memory")
        return self.memory

    def _refuse(self, what: str, error: VirtioError) -> None:
        self.counters[what] += 1
        self.refused.append(bare(error))

    def _fault(self, reason: str, error: Exception) -> None:
        """Report what a hook raised: a driver's doing needs no traceback, a bug in a subclass does."""
        if isinstance(error, VirtioError):
            self._refuse("fault", error)
        else:
            self.counters["fault"] += 1
            log.error("%r: %s\n%s", self, reason, in_full(error))
        self.needs_reset(reason)

    # ---- serving ----

    def _servable(self, slot: QueueSlot) -> bool:
        wanted = slot.kicked and slot.enabled and not (slot.muted or slot.halted)
        return wanted and slot.broken is None and (self.dma if self.live else self._may_begin(slot))

    def _serve(self, slot: QueueSlot) -> None:
        self.begin_early()
        if not self.live:
            return
        epoch = self._epoch
        try:
            self.notified(slot.index)
        except Exception as error:
            reason = f"queue {slot.index}: {type(error).__name__}: {error}"
            if epoch != self._epoch:  # the hook reset the device: what it failed at is gone
                log.error("%r: %s, after a reset\n%s", self, reason, in_full(error))
            elif not slot.stands_still():
                slot.fail(reason)
                self._fault(reason, error)

    def _raise_config(self) -> None:
        if self._interrupt is not None:
            self._interrupt.config()

    # ---- queues one by one: for a transport without a device status ----

    def set_kick(self, index: int, bell: Bell) -> None:
        """Have a queue that :meth:`handles` does not name kicked by another bell, from when it is started next."""
        self.queues[index].kick = bell

    def start_queue(self, index: int, queue: DeviceQueue, *, muted: bool | None = None) -> None:
        """Go on with a queue, from where ``queue`` stands; nothing is checked that negotiation is to have settled.

        It is kicked and its driver interrupted once: either may have been lost with whoever worked it before.
        ``muted``: as :meth:`mute_queue`; None: of a driver that never mutes any.
        """
        with self._control():
            slot = self.queues[index]
            slot.queue, slot.layout, slot.size = queue, queue.layout, queue.layout.size
            slot.enabled, slot.muted = True, bool(muted)
            if self.live:
                self.queue_enable(index)
                slot.owed = True
                if muted is not None:
                    self.queue_muted(index)
            slot.kick.ring()

    def halt_queue(self, index: int) -> DeviceQueue | None:
        """Take nothing more from a queue; return it if it is worth while to wait for what is out of it, else None."""
        with self._control():
            slot = self.queues[index]
            if not slot.enabled:
                return None
            slot.halted = True
            return self.device_queue(index) if self.live and self.queue_drain(index) else None

    def stop_queue(self, index: int) -> dict[str, Any] | None:
        """Let go of a queue; return the state in which it is left, or None if it was not enabled.

        Chains that are out are void. They are put back, the last one first, up to one after which others were used
        already: those are "outstanding" in the state. An inflight region has all of them; then none is put back.
        An interrupt that the driver is still owed goes out: whoever goes on with the queue may know only where it is.
        """
        with self._control():
            slot = self.queues[index]
            if not slot.enabled:
                return None
            queue, call = self.device_queue(index), slot.call
            if self.live:
                self.queue_reset(index)
            owed = queue.needs_notification() or slot.owed
            state = slot.leave(queue)
            slot.clear()
        if owed:
            call.ring()
        return state

    def mute_queue(self, index: int, muted: bool) -> None:
        """Keep a queue from having any effect, or let it have some again."""
        with self._control():
            slot = self.queues[index]
            slot.muted = muted
            if self.live and slot.enabled:
                self.queue_muted(index)
                if not muted:
                    slot.kick.ring()

    # ---- snapshot ----

    def snapshot(self) -> dict[str, Any]:
        """Return the whole device as plain data (JSON-able), for :meth:`restore` with the same memory contents.

        The transport's own state (vectors, registers) is not part of it; nor is what the device has taken from outside
        and not yet given to the driver, if its type keeps any. The device goes on. A device that drains its queues
        when it is closed does not do so after its snapshot.
        """
        with self._control():
            return snapshot.take(self)

    def restore(self, state: Mapping[str, Any], memory: GuestMemory) -> None:
        """Go on where ``state`` was taken, on ``memory`` with the contents of that moment. Restore the transport first.

        Each queue is kicked and its driver interrupted once: either may have been lost with the old process. Raises
        SnapshotError (a ValueError) that names the field; it is a NegotiationError too if that has features which this
        device does not offer, and a MemoryFault too if it lies outside of memory. The device is then reset.
        """
        with self._control():
            snapshot.put(self, state, memory)
