"""The queues of a device as its transport sees them, and the way back to the driver."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from virtio.errors import MemoryFault, VirtioError
from virtio.event.notifier import Bell
from virtio.virtqueue.device_queue import DeviceQueue
from virtio.virtqueue.layout import QueueLayout


class Interrupt(Protocol):
    """What a transport gives a device to reach its driver by."""

    def queue(self, index: int) -> Bell:
        """Return the bell that interrupts the driver for queue ``index``."""

    def config(self) -> None:
        """Raise the configuration change interrupt."""


class QueueSlot:
    """One queue of a device.

    ``size`` is what the driver chose, ``size_max`` what it may choose. ``layout`` is None until the driver set it.
    ``kick`` is rung by the driver, ``call`` by the device. ``queue`` is the DeviceQueue that ``Device.device_queue``
    made. ``muted``: the transport wants no effect of it. ``broken`` is why the device works it no more, or None;
    ``trouble`` is rung when that is found. ``awaits(fault)`` says whether the transport took away the memory at
    which the queue failed: it starts the queue again when the memory is back.
    """

    kick: Bell

    def __init__(self, index: int, size_max: int, call: Bell, begin: Callable[[], object]) -> None:
        self.index = index
        self.size_max = size_max
        self.call = call
        self._begin = begin
        self.trouble = Bell(nobody)
        self.awaits: Callable[[VirtioError], bool] = nothing
        self.queue: DeviceQueue | None = None
        self._forget()

    def clear(self) -> None:
        """Forget what the driver said. What was popped from the queue cannot be given back any more."""
        if self.queue is not None and self.queue.outstanding:
            with suppress(MemoryFault, ValueError):  # its ring is not in memory any more: nothing is written there
                self.queue.reset()
        self._forget()
        self.kick.answer()

    def _forget(self) -> None:
        self.size = self.size_max
        self.layout: QueueLayout | None = None
        self.enabled = False
        self.queue = None
        self.broken: str | None = None
        self.muted = False  # the transport wants no effect of it
        self.halted = False  # it is about to be stopped: nothing new is taken from it
        self.kicked = False  # the driver rang, and notified() was not called for it yet
        self.owed = False  # the driver is to be interrupted as soon as no lock is held
        self.stood: int | None = None  # rings of `kick` at setup_queue(); None: kicks before DRIVER_OK start nothing

    def await_kick(self) -> None:
        """Tell kicks from those before now, and call ``begin`` at each until the kick bell's watcher is taken away."""
        self.kick.watch(self._begin)  # first, or a kick between the two would count and begin nothing
        self.stood = self.kick.rings

    @property
    def early(self) -> bool:
        """Whether the driver kicked it since it set it up."""
        return self.enabled and self.stood is not None and self.kick.rings != self.stood

    def leave(self, queue: DeviceQueue) -> dict[str, Any]:
        """Return where a queue that nothing works any more stands.

        Chains that are out are put back, the last one first, up to one after which others were used already: those are
        "outstanding" in the state. An inflight region has all of them; then none is put back.
        """
        if queue.inflight is None:
            for chain in reversed(queue.outstanding):
                try:
                    queue.unpop(chain)
                except ValueError:
                    break
        return queue.state()

    def stands_still(self) -> bool:
        """Say whether its queue can go on by itself no more, and need not: see ``awaits``."""
        fault = None if self.queue is None else self.queue.broken
        return fault is not None and self.awaits(fault)

    def fail(self, reason: str) -> None:
        """Take note that the device works it no more."""
        self.broken = reason
        self.trouble.ring()

    def __repr__(self) -> str:
        state = self.broken or ("enabled" if self.enabled else "not enabled")
        return f"<QueueSlot {self.index}: size {self.size} of {self.size_max}, {state}>"


def nobody() -> None:
    """Answer the interrupts of a device that no transport shows to a driver."""


def nothing(fault: VirtioError) -> bool:
    """Say that a fault is one: the transport takes no memory away."""
    return False
