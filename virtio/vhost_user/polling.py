"""Looking at rings that come without kicks."""

from __future__ import annotations

from collections.abc import Iterable

from virtio.device import Device
from virtio.device.queue_state import QueueSlot

SHORT, LONG = 0.001, 0.016  # seconds between two looks: while there is something, and when there was none for long


class Polling:
    """Kicks the queues of ``device`` in which something has changed since the last look.

    ``pause``: seconds until the next look is due. It doubles with each look that found nothing, so that an idle guest
    costs next to nothing, and is short again when something is found.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.pause = SHORT
        self._seen: dict[int, tuple[int, int, bool]] = {}

    def forget(self, index: int) -> None:
        """Take note that a queue starts anew: its counters do, too. It is looked at soon."""
        self._seen.pop(index, None)
        self.pause = SHORT

    def look(self, indices: Iterable[int]) -> None:
        """Look at some queues."""
        found = False
        for index in indices:
            now = appearance(self.device.queues[index])
            if now is not None and now != self._seen.get(index):
                self._seen[index] = now
                self.device.kick(index)
                found = True
        self.pause = SHORT if found else min(2 * self.pause, LONG)


def appearance(slot: QueueSlot) -> tuple[int, int, bool] | None:
    """Return what changes when a driver adds chains, and when they are taken.

    That some wait says nothing: a receive queue always has some.
    """
    queue = slot.queue
    if queue is None:
        return None
    return queue.available, queue.counters()["chains"], queue.broken is None
