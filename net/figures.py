"""Counters of the queues of a network device, since it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from virtio.device.queue_state import QueueSlot
from virtio.netdev.rxq import NetReceive
from virtio.netdev.txq import NetTransmit


class Figures:
    """The figures of each queue: of its task in ``tasks``, and of those that ended."""

    def __init__(self, tasks: dict[int, NetReceive | NetTransmit], queues: Sequence[QueueSlot]) -> None:
        self._tasks = tasks
        self._queues = queues
        self._kicks: dict[int, int] = {}  # of each queue, before its task was made
        # totals of the tasks that ended; and the queues whose task is in _tasks and among these already
        self._ended: tuple[dict[str, Any], frozenset[int]] = ({}, frozenset())

    def begin(self, index: int) -> None:
        """Count the kicks of a queue from now on."""
        self._kicks[index] = self._queues[index].kick.rings

    def end(self, index: int) -> None:
        """Remove the task of a queue from ``tasks``, and keep its figures."""
        totals: dict[str, Any] = {}
        add_up(totals, self._ended[0])
        add_up(totals, self._of(index, self._tasks[index]))
        # in this order, and each as a whole: report() reads without a lock
        self._ended = totals, frozenset({index})
        del self._tasks[index]
        self._ended = totals, frozenset()

    def report(self) -> dict[str, Any]:
        """Return the figures by name of queue: "rx0", "tx0", ... A queue of which nothing is counted is missing."""
        # no lock: a port in Python may ask, under a queue's lock, which a thread with the device's lock may wait for
        while True:
            before = self._ended
            tasks = self._tasks.copy()
            if self._ended is before:
                break
        totals, ended = before
        figures: dict[str, Any] = {}
        add_up(figures, totals)
        for index, task in sorted(tasks.items()):
            if index not in ended:
                add_up(figures, self._of(index, task))
        return figures

    def _of(self, index: int, task: NetReceive | NetTransmit) -> dict[str, Any]:
        slot = self._queues[index]
        figures = task.statistics() | (slot.queue.counters() if slot.queue is not None else {})
        figures["kicks"] = slot.kick.rings - self._kicks[index]
        return {f"{'tx' if index % 2 else 'rx'}{index // 2}": figures}


def add_up(to: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add the numbers of a dict of dicts to another's."""
    for name, value in more.items():
        if isinstance(value, Mapping):
            add_up(to.setdefault(name, {}), value)
        else:
            to[name] = to.get(name, 0) + value
