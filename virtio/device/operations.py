"""What a class of device may override."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from virtio.device.queue_state import Interrupt, QueueSlot
from virtio.memory.guest_memory import GuestMemory

DRAIN = 0.5  # seconds that what was taken may wait for room, when all is to end


class Hooks:
    """The hooks of :class:`~virtio.device.Device`, as they are unless overridden.

    All but :meth:`drain`, :meth:`queue_sizes` and :meth:`handles` run under the device's lock, one at a time;
    interrupts that they raise go out when it is free.
    """

    queue_size: int
    queues: list[QueueSlot]

    def queue_sizes(self) -> tuple[int, ...]:
        """Return the largest size of each queue. One queue unless overridden."""
        return (self.queue_size,)

    def handles(self, index: int) -> bool:
        """Say whether :meth:`notified` is called for kicks of a queue; if not, a task answers its ``kick`` bell."""
        return type(self).notified is not Hooks.notified

    def activate(self, memory: GuestMemory, interrupt: Interrupt) -> None:
        """Begin: the driver is ready. What this raises ends in needs_reset."""

    def deactivate(self) -> None:
        """End: memory, queues and bells are not to be touched when this returns. Called after a failed activate too."""

    def notified(self, index: int) -> None:
        """Work a queue: it was kicked. What this raises breaks the queue."""

    def queue_enable(self, index: int) -> None:
        """Begin with a queue that the driver set up while the device was live."""

    def queue_drain(self, index: int) -> bool:
        """Take no more chains from a queue, and give back soon those that you have: it is about to be stopped.

        :meth:`notified` is not called for it any more. Returns at once: True (the default), and whoever stops the queue
        waits for a while, without the lock; False: nothing comes back soon. Then comes :meth:`queue_reset`, and chains
        that are still out are void: they come again when the queue goes on, but for those that later ones overtook.
        """
        return True

    def queue_reset(self, index: int) -> None:
        """End with one queue: it is not to be touched when this returns."""

    def queue_muted(self, index: int) -> None:
        """Take note that ``queues[index].muted`` was set: while it is, :meth:`notified` is not called for it."""

    def call_changed(self, index: int) -> None:
        """Take note that ``queues[index].call`` is another bell."""

    def config_written(self, offset: int, data: bytes) -> bool:
        """Take what the driver wrote to the config space (within its bounds); False, the default: it may not."""
        return False

    def pause(self) -> None:
        """Let no task touch a queue until :meth:`resume`: for a snapshot, or because the transport forbids it."""

    def resume(self) -> None:
        """Undo :meth:`pause`."""

    def drain(self, seconds: float = DRAIN) -> bool:
        """Take nothing more in, and finish what was taken, within ``seconds``; return whether that was done.

        Called without the device's lock, before the device is stopped. It lasts until a reset.
        """
        return True

    def save(self) -> dict[str, Any]:
        """Return what a snapshot needs of the subclass, JSON-able."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`save` gave; called before :meth:`activate`. Raise ValueError for another state."""
