"""A splice: two ports joined to each other, with no device between them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Self

from virtio.core.process import Origin
from virtio.device.operations import DRAIN
from virtio.errors import ConfigError
from virtio.event.worker import Worker
from virtio.ports.cable import CableEnd
from virtio.ports.loopback import Loopback
from virtio.ports.port import Port
from virtio.ports.splice import PortSplice

HEADER_SIZE = 24  # bytes: of the longest virtio_net_hdr, so that nothing need be left out
LOOK = 0.001
OFFLOADS = 0x1FF  # VIRTIO_OFFLOAD_*: what either may give undone, for what the other cannot do is done on the way


class Splice:
    """What ``a`` receives, ``b`` is sent, and the other way round; queue pair i to pair i, of those that both have.

    ``workers`` run pair i on worker i, modulo their number; without any, :meth:`poll` does. Raises RuntimeError if a
    port has a user already, ConfigError for one port as both ends, and for a cable's end joined to another or to a
    loopback: either delivers of itself, into the other. A context manager; :meth:`close` lets go of the ports, which
    remain the caller's to close. What was read from one and finds no room in the other within half a second is dropped,
    and counted.
    """

    def __init__(self, a: Port, b: Port, workers: Sequence[Worker] = ()) -> None:
        if a is b:
            raise ConfigError(f"{a!r} at both ends")
        self.ports = (a, b)
        if any(isinstance(port, CableEnd) for port in self.ports) and all(
            isinstance(port, CableEnd | Loopback) for port in self.ports
        ):
            # the far device's interrupt would be rung under the locks of the near one's queue
            raise ConfigError(f"{a!r} and {b!r} both deliver of themselves")
        self.workers = tuple(workers)
        self.pairs = min(a.queues, b.queues)
        self._origin = Origin("splice")
        self._attached: list[Port] = []
        # for each pair: from a to b, and back
        self.tasks = [(PortSplice(a, b, i), PortSplice(b, a, i)) for i in range(self.pairs)]
        try:
            for port in self.ports:
                port.attach(self)
                self._attached.append(port)
                port.receive_offloads(OFFLOADS, HEADER_SIZE)
                port.set_queues(self.pairs)
            for i, both in enumerate(self.tasks):
                for task in both:
                    task.connect()
                    task.resume()
                    if self.workers:
                        self.workers[i % len(self.workers)].add(task, guest=self)
        except BaseException:
            self.close()
            raise

    def poll(self) -> int:
        """Run each task once, on this thread; return how much was done. For a splice without workers."""
        return sum(task.poll() for both in self.tasks for task in both)

    def statistics(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what was counted at either end: "tx0" is what came from its queue 0, "rx0" what went there.

        That is how devices count, whose place the ports have here. "port": the port's own figures.
        """
        ends: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        for i, (there, back) in enumerate(self.tasks):
            for giver, taker, task in ((0, 1, there), (1, 0, back)):
                figures = task.statistics()
                # drops on the way are the taker's: it is what it cannot do that made the way do it
                ends[giver][f"tx{i}"] = {name: figures[name] for name in ("frames", "bytes", "stalls")}
                ends[taker][f"rx{i}"] = figures
        for end, port in zip(ends, self.ports, strict=True):
            end["port"] = port.statistics()
        return ends

    def drain(self, seconds: float = DRAIN) -> bool:
        """Ask the ports for no more, and wait until what they gave was taken; return whether it was, in ``seconds``."""
        end = time.monotonic() + seconds
        while [task for both in self.tasks for task in both if task.drain()]:
            if time.monotonic() >= end:
                return False
            if not self.poll():
                time.sleep(LOOK)
        return True

    def close(self) -> None:
        """Drain, and stop: no frame passes when this returns. It may be called again.

        In a child of fork() a splice with workers lets go of the ports, and nothing else: the parent's threads go on.
        """
        if self._origin.here or not self.workers:
            self._stop()
        for port in self._attached:
            port.detach()
        self._attached.clear()

    def _stop(self) -> None:
        if self._attached:
            self.drain()
        for i, both in enumerate(self.tasks):
            for task in both:
                if self.workers and task in (worker := self.workers[i % len(self.workers)]).tasks:
                    worker.remove(task)
                task.pause()
        for both in self.tasks:  # when nothing is sent any more: one's giver may be the other's taker
            for task in both:
                task.disconnect()
                task.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
