"""The driver end of a device: reset, negotiation, queues and interrupts over any transport.

It does what FreeBSD's virtio bus does for its drivers (sys/dev/virtio/virtio.c), and it does not
believe the device: every wait ends, every number is checked, and what goes wrong is one error that says it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from virtio.constants import Feature, Status
from virtio.driver.negotiation import Negotiation, agree
from virtio.errors import ConfigError, DeviceBroken, NegotiationError
from virtio.event.notifier import Bell
from virtio.features import Features, parse
from virtio.memory.dma import CACHE_LINE, DmaPool
from virtio.memory.guest_memory import GuestMemory
from virtio.virtqueue.driver_queue import DriverQueue
from virtio.virtqueue.layout import LEGACY_ALIGN, QUEUE_SIZE_MAX, QueueLayout

# what the rings here can do, and a driver does well to ask for
RING_FEATURES = Feature.INDIRECT_DESC | Feature.EVENT_IDX | Feature.ANY_LAYOUT | Feature.VERSION_1 | Feature.RING_RESET

QUEUES_MAX = 0x10000  # an index has 16 bits
CONFIG_READS = 64  # a field that changes during this many reads in a row never stands still


class Transport(Protocol):
    """What a driver needs of the way to its device; registers, messages or plain calls.

    The numbers are the device's: whoever calls checks them. Bells stay the same objects from the first time they are
    asked for until ``release()``, through any number of resets.
    """

    @property
    def device_type(self) -> int:
        """Type of the device (VIRTIO 1.4, chapter 5)."""

    @property
    def legacy(self) -> bool:
        """The legacy interface: 32 feature bits, no FEATURES_OK, a queue is one block, of the device's size."""

    @property
    def memory(self) -> GuestMemory:
        """The memory that the device sees."""

    @property
    def status(self) -> int:
        """Device status. Setting it adds bits to those that are set; ``reset()`` clears."""

    @status.setter
    def status(self, bits: int) -> None: ...

    @property
    def generation(self) -> int:
        """Number that changes when the configuration does; 0 for ever where there is none (legacy)."""

    def reset(self) -> None:
        """Write status 0. It is done when the status reads 0."""

    def read_features(self) -> int:
        """Return the bits that the device offers."""

    def write_features(self, bits: int) -> None:
        """Accept these bits."""

    def read_config(self, offset: int, size: int) -> bytes:
        """Read the device's configuration once, at any width."""

    def write_config(self, offset: int, data: bytes) -> None:
        """Write the device's configuration."""

    def queue_size(self, index: int) -> int:
        """Return the largest size of a queue; 0 if there is no such queue."""

    def setup_queue(self, index: int, layout: QueueLayout) -> None:
        """Tell the device where a queue lies, and enable it."""

    def reset_queue(self, index: int) -> None:
        """Make the device let go of one queue (RING_RESET). Raises DeviceBroken if it does not."""

    def kick_bell(self, index: int) -> Bell:
        """Return the bell that kicks a queue."""

    def interrupt_bells(self, queues: Sequence[int]) -> list[Bell]:
        """Route the queues' interrupts, as well as there are vectors; return a bell for each, that rings for it.

        Called after the queues are set up, and again after each reset.
        """

    @property
    def config_bell(self) -> Bell:
        """The bell that rings when the configuration changed."""

    def release(self) -> None:
        """Give back vectors; switch the device's interrupts and its access to memory off. May be used anew."""


@dataclass(frozen=True)
class QueuePlan:
    """A queue that a driver wants: its index, a name for messages, and how it is used.

    ``size`` limits the number of descriptors (0: as the device has it; the legacy interface cannot change it).
    ``segments`` is the longest chain: with INDIRECT_DESC each descriptor gets a table of so many entries (below 2:
    no tables). ``interrupt`` False: the driver polls it.
    """

    index: int
    name: str
    size: int = 0
    segments: int = 0
    interrupt: bool = True


@dataclass
class AttachedQueue:
    """A queue that was set up: ``kick`` is the bell that the driver rings, ``interrupt`` the device's (or None)."""

    plan: QueuePlan
    queue: DriverQueue
    layout: QueueLayout
    kick: Bell
    interrupt: Bell | None = None
    allocated: list[int] = field(default_factory=list)

    def notify(self) -> bool:
        """Kick the device if it wants to know of what was enqueued; return whether it did."""
        wanted = self.queue.notify()
        if wanted:
            self.kick.ring()
        return wanted


class Driver:
    """Base of drivers: brings a device to DRIVER_OK and back.

    Subclasses set ``device_type``, ``wanted`` and ``required`` (masks of any width; as arguments, names too), say in
    :meth:`plan_queues` which queues they work, and may override the hooks :meth:`adjust`, :meth:`ready`,
    :meth:`stopping`, :meth:`stopped` and :meth:`config_changed`. ``pool`` is the memory for rings; ``timeout`` how
    long, in seconds, a reset may take. ``clamp_used_len`` is passed to the queues.

    One thread at a time; the queues have their own locks. Source: VIRTIO 1.4, 3.1; names as in FreeBSD's virtio(4).
    """

    device_type: ClassVar[int] = 0
    wanted: int = RING_FEATURES
    required: int = 0

    def __init__(
        self,
        transport: Transport,
        pool: DmaPool,
        *,
        wanted: Features | None = None,
        required: Features | None = None,
        timeout: float = 1.0,
        clamp_used_len: bool = False,
    ) -> None:
        if transport.device_type != self.device_type:
            raise ConfigError(
                f"{type(self).__name__} drives devices of type {self.device_type}, not {transport.device_type}"
            )
        self.transport = transport
        self.memory = transport.memory
        self.pool = pool
        self.timeout = timeout
        self.clamp_used_len = clamp_used_len
        if wanted is not None:
            self.wanted = parse(wanted, self.device_type)
        if required is not None:
            self.required = parse(required, self.device_type)
        self.features = 0
        self.negotiation: Negotiation | None = None
        self.queues: dict[int, AttachedQueue] = {}
        self.attached = False

    # ---- hooks ----

    def adjust(self, features: int) -> int:
        """Return the features to accept, out of those that both ends have; the configuration may be read here."""
        return features

    def plan_queues(self) -> Sequence[QueuePlan]:
        """Return the queues to set up. ``self.features`` is negotiated; the configuration may be read here."""
        return ()

    def ready(self) -> None:
        """The device is live (DRIVER_OK): fill its queues."""

    def stopping(self) -> None:
        """The device is about to be reset: stop what works its queues."""

    def stopped(self) -> None:
        """The device was reset, and touches no memory any more: give back what it was given. The queues still exist.

        Called as often as that happens, also when the driver never came to :meth:`ready`.
        """

    def config_changed(self) -> None:
        """The configuration changed: called by :meth:`check`."""

    # ---- attach and detach ----

    def attach(self) -> None:
        """Bring the device up: negotiate, set up queues and interrupts, DRIVER_OK.

        Raises NegotiationError if a required feature is missing or the device refuses, ConfigError for queues that
        cannot be, DeviceBroken for a device that does not reset, PoolExhausted. The device is then reset and FAILED,
        and everything taken is given back.
        """
        if self.attached or self.queues:
            raise ConfigError("the driver is attached already")
        try:
            self._negotiate(None)
            for plan in self.plan_queues():
                self._add_queue(plan)
            self._go()
        except BaseException as error:
            self._give_up(error)
            raise

    def detach(self, *, force: bool = False) -> None:
        """Stop the device and give everything back; nothing happens if it is not attached.

        Raises DeviceBroken if the device does not reset: as it may still write to the rings, their memory stays
        taken, and detach may be called again. ``force`` gives it back all the same.
        """
        if not (self.attached or self.queues):
            return
        if self.attached:
            self.attached = False
            self.stopping()
        try:
            self._reset()
        except Exception:
            if not force:
                raise
        self._release()

    def stop(self) -> None:
        """Reset the device and keep the queues, for :meth:`reinit` (FreeBSD's virtio_stop).

        Afterwards the queues may be drained. Raises DeviceBroken if the device does not reset.
        """
        if self.attached:
            self.stopping()
        self.attached = False
        self._reset()
        self.stopped()

    def reinit(self) -> None:
        """Bring a stopped device up again, with the same features and queues (FreeBSD's virtio_reinit).

        What was outstanding is forgotten: drain before. Raises as :meth:`attach`; NegotiationError if the device no
        longer offers what was negotiated, ConfigError if a queue has another size.
        """
        if self.negotiation is None or not self.queues:
            raise ConfigError("the driver is not attached: there is nothing to bring up again")
        if self.attached:
            self.stop()
        try:
            self._negotiate(self.negotiation.got)
            for attached in self.queues.values():
                self._enable_queue(attached)
            self._go()
        except BaseException as error:
            self._give_up(error)
            raise

    def reset_queue(self, index: int) -> None:
        """Make the device let go of one queue (VIRTIO 1.4, 2.6.1); drain it, then :meth:`enable_queue`.

        Raises NegotiationError without RING_RESET.
        """
        if not self.features & Feature.RING_RESET:
            raise NegotiationError(
                f"queue {index} cannot be reset: RING_RESET was not negotiated",
                self.negotiation.offered if self.negotiation else 0,
                self.wanted,
                ("RING_RESET",),
            )
        self.transport.reset_queue(index)

    def enable_queue(self, index: int) -> None:
        """Set a queue up again, empty, where it was. Raises ConfigError if the device gave it another size."""
        self._enable_queue(self.queues[index])
        self._route_interrupts()

    # ---- configuration and status ----

    def read_config(self, offset: int, size: int) -> bytes:
        """Read a field of the configuration, whole: again while it changes (VIRTIO 1.4, 2.5).

        The legacy interface has no generation; there two reads must agree (5.1.5, 5.2.5). Raises DeviceBroken if it
        never stands still.
        """
        transport = self.transport
        before = transport.generation
        last = transport.read_config(offset, size)
        for _ in range(CONFIG_READS):
            if transport.legacy:
                data = transport.read_config(offset, size)
                if data == last:
                    return data
                last = data
            else:
                after = transport.generation
                if after == before:
                    return last
                before = after
                last = transport.read_config(offset, size)
        raise DeviceBroken(
            f"{size} bytes of configuration at {offset:#x} changed during each of {CONFIG_READS} reads"
            + ("" if transport.legacy else f" (generation {before})")
        )

    def config(self, offset: int, size: int) -> int:
        """Read a little-endian number of the configuration."""
        return int.from_bytes(self.read_config(offset, size), "little")

    def config_within(self, name: str, offset: int, size: int, low: int, high: int) -> int:
        """Read a number that must lie in [low, high]; ConfigError names it otherwise."""
        value = self.config(offset, size)
        if not low <= value <= high:
            raise ConfigError(f"the device's {name} is {value}, out of range ({low} to {high})")
        return value

    def write_config(self, offset: int, data: bytes) -> None:
        """Write to the configuration."""
        self.transport.write_config(offset, data)

    def check_status(self) -> int:
        """Return the device status. Raises DeviceBroken if the device needs a reset, lost its state or is gone."""
        status = self.transport.status
        if status == 0xFF:
            raise DeviceBroken("the device is gone: its status reads 0xff")
        if status & Status.DEVICE_NEEDS_RESET:
            raise DeviceBroken(f"the device asks to be reset (DEVICE_NEEDS_RESET, status {status:#04x})")
        if self.attached and not status & Status.DRIVER_OK:
            raise DeviceBroken(f"the device was reset behind the driver's back (status {status:#04x})")
        return status

    def check(self) -> bool:
        """Check the status, and answer the configuration interrupt by :meth:`config_changed`. False: there was none.

        The status is read in any case: an interrupt may be lost, or not be there (no vector was left for it).
        """
        rung = self.transport.config_bell.answer()
        self.check_status()
        if not rung:
            return False
        self.config_changed()
        return True

    # ---- how ----

    def _reset(self) -> None:
        self.transport.reset()
        wait_until(
            lambda: self.transport.status == 0,
            self.timeout,
            lambda: f"device status reads {self.transport.status:#04x}, not 0, {self.timeout:g} s after the reset",
        )

    def _negotiate(self, again: int | None) -> None:
        """Agree on features: on those of ``again``, all of them, or on what both ends have."""
        transport = self.transport
        self._reset()
        transport.status = Status.ACKNOWLEDGE
        transport.status = Status.DRIVER
        offered = transport.read_features()
        if again is None:
            wanted, required = self.wanted, self.required
            negotiation = agree(self.device_type, transport.legacy, offered, wanted, required, self.adjust)
        else:
            negotiation = agree(self.device_type, transport.legacy, offered, again, again)
        transport.write_features(negotiation.got)
        if not transport.legacy:
            transport.status = Status.FEATURES_OK
            if not transport.status & Status.FEATURES_OK:
                names = tuple(negotiation.names(negotiation.got))
                text = f"the device refuses the features {', '.join(names)}: FEATURES_OK stays clear"
                raise NegotiationError(text, offered, negotiation.got, names)
        now = transport.read_features()
        if now != offered:  # such a device would do anything
            names = tuple(negotiation.names(now ^ offered))
            text = f"offered features changed while negotiated: {', '.join(names)} ({offered:#x}, then {now:#x})"
            raise NegotiationError(text, now, negotiation.wanted, names)
        if again is None:
            self.negotiation = negotiation
            self.features = negotiation.got

    def _go(self) -> None:
        self._route_interrupts()
        self.transport.status = Status.DRIVER_OK
        status = self.check_status()
        if not status & Status.DRIVER_OK:
            raise DeviceBroken(f"the device does not start: DRIVER_OK was written, and status reads {status:#04x}")
        self.attached = True
        self.ready()

    def _queue_size(self, plan: QueuePlan) -> int:
        """Return the size to set a queue up with."""
        what = f"queue {plan.index} ({plan.name})"
        if not 0 <= plan.index < QUEUES_MAX:
            raise ConfigError(f"{what} does not exist: indices are 0 to {QUEUES_MAX - 1}")
        size = self.transport.queue_size(plan.index)
        if size == 0:
            raise ConfigError(f"{what} does not exist: its size reads 0")
        if size > QUEUE_SIZE_MAX:
            raise ConfigError(f"{what} has size {size}, out of range (1 to {QUEUE_SIZE_MAX})")
        if self.transport.legacy:
            if size & (size - 1):
                raise ConfigError(f"{what} has size {size}, which is not a power of two")
            return size
        if plan.size:
            size = min(size, plan.size)
        return size if self.features & Feature.RING_PACKED else 1 << size.bit_length() - 1

    def _add_queue(self, plan: QueuePlan) -> None:
        if plan.index in self.queues:
            raise ConfigError(f"queue {plan.index} is planned as {self.queues[plan.index].plan.name} and {plan.name}")
        size = self._queue_size(plan)
        kind: Callable[[int, int], QueueLayout]
        if self.transport.legacy:
            kind, align = QueueLayout.legacy, LEGACY_ALIGN
        else:
            kind = QueueLayout.packed if self.features & Feature.RING_PACKED else QueueLayout.split
            align = CACHE_LINE
        allocated: list[int] = []
        try:
            base = self.pool.allocate(kind(size, 0).end, align)
            allocated.append(base)
            layout = kind(size, base)
            indirect = None
            if self.features & Feature.INDIRECT_DESC and plan.segments > 1:
                indirect = self.pool.allocate(size * plan.segments * 16)
                allocated.append(indirect)
            queue = DriverQueue(
                self.memory,
                layout,
                features=self.features,
                index=plan.index,
                indirect=indirect,
                max_indirect=plan.segments if indirect is not None else 0,
                clamp_used_len=self.clamp_used_len,
            )
            kick = self.transport.kick_bell(plan.index)
        except BaseException:
            for gpa in allocated:
                self.pool.free(gpa)
            raise
        # from here on the device may know of it: what undoes it is a reset
        self.queues[plan.index] = AttachedQueue(plan, queue, layout, kick, None, allocated)
        self.transport.setup_queue(plan.index, layout)

    def _enable_queue(self, attached: AttachedQueue) -> None:
        index, had = attached.plan.index, attached.queue.size
        size = self._queue_size(attached.plan)
        if size != had:
            raise ConfigError(f"queue {index} ({attached.plan.name}) has size {size}, and had {had}")
        attached.queue.reset()
        self.transport.setup_queue(index, attached.layout)

    def _route_interrupts(self) -> None:
        wanting = [attached for attached in self.queues.values() if attached.plan.interrupt]
        bells = self.transport.interrupt_bells([attached.plan.index for attached in wanting])
        for attached, bell in zip(wanting, bells, strict=True):
            attached.interrupt = bell

    def _give_up(self, error: BaseException) -> None:
        """Leave the device reset and FAILED, and nothing taken. What else goes wrong becomes a note of ``error``."""
        try:
            if self.attached:
                self.attached = False
                self.stopping()
            self.transport.status = Status.FAILED
            self._reset()
            self._release()
        except Exception as second:
            if self.queues:
                error.add_note(f"the driver's memory stays taken until detach(force=True): {second}")
            else:
                with suppress(Exception):
                    self.transport.release()
        with suppress(Exception):
            self.transport.status = Status.FAILED

    def _release(self) -> None:
        self.stopped()
        for attached in self.queues.values():
            attached.queue.drain()
            for gpa in attached.allocated:
                self.pool.free(gpa)
        self.queues = {}
        self.transport.release()


def wait_until(done: Callable[[], bool], timeout: float, why: Callable[[], str]) -> None:
    """Poll until ``done()``, at growing intervals up to 10 ms; raise DeviceBroken(why()) after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    pause = 20e-6
    while not done():
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeviceBroken(why())
        time.sleep(min(pause, left))
        pause = min(2 * pause, 0.01)
