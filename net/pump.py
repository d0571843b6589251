"""The pump: joins a driver to a port, so that a TAP makes it a network interface of the kernel."""

from __future__ import annotations

from typing import Literal

from virtio.core.process import Origin
from virtio.errors import ConfigError
from virtio.event.worker import Task, Worker
from virtio.net.tick import Ticker
from virtio.net.vtnet import Vtnet
from virtio.ports.port import Port
from virtio.vtnet.pump import PumpReceive, PumpTransmit


class Pump:
    """What ``port`` receives goes out through ``nic``, and what the nic receives goes to the port. Nothing is copied.

    There are two tasks for each queue pair that both have. ``worker`` runs them: one Worker for all ("one"), one for
    each pair ("pair"), for each direction ("direction", the default), or none (None), for whoever calls :meth:`poll`
    or adds the ``tasks`` to workers of his own. ``mode`` and ``spin_us`` are the workers'. With workers there is a
    thread besides that calls ``nic.tick()`` every ``tick`` seconds (None: there is not).

    The pump goes on over resets of the nic, down and up, detach and attach, until :meth:`close`. Raises ConfigError if
    the nic is not attached, RuntimeError if the port has a user already.
    """

    def __init__(
        self,
        nic: Vtnet,
        port: Port,
        *,
        worker: Literal["one", "pair", "direction"] | None = "direction",
        mode: Literal["adaptive", "busy"] = "adaptive",
        spin_us: int = 50,
        tick: float | None = 1.0,
    ) -> None:
        if not nic.pairs:
            raise ConfigError("the nic is not attached")
        self.nic = nic
        self.port = port
        self._origin = Origin("pump")
        port.attach(self)
        pairs = nic.pairs[: port.queues]
        self.tasks: list[tuple[PumpTransmit, PumpReceive]] = [
            (PumpTransmit(pair.transmit, port, i), PumpReceive(pair.receive, port, i)) for i, pair in enumerate(pairs)
        ]
        groups: list[list[Task]] = []
        if worker == "direction":
            groups = [[task] for pair in self.tasks for task in pair]
        elif worker == "pair":
            groups = [list(pair) for pair in self.tasks]
        elif worker == "one":
            groups = [[task for pair in self.tasks for task in pair]]
        self.workers = [Worker(group, mode=mode, spin_us=spin_us) for group in groups]
        nic.pumps.append(self)
        if nic.attached:
            self.resume()
        for each in self.workers:
            each.start()
        self._ticker = Ticker(nic, tick) if self.workers and tick is not None else None

    def poll(self) -> int:
        """Run each task once, on this thread; return how many packets went through."""
        return sum(task.poll() for pair in self.tasks for task in pair)

    def resume(self) -> None:
        """Let it run: with the queues that the nic has now."""
        pairs = self.nic.pairs[: len(self.tasks)]
        if not pairs:
            return
        first = pairs[0].transmit
        self.port.receive_offloads(first.offloads, first.header_size)
        self.port.set_queues(len(pairs))
        for (transmit, receive), pair in zip(self.tasks, pairs, strict=False):
            transmit.retarget(pair.transmit)
            receive.retarget(pair.receive)
            transmit.resume()
            receive.resume()
            transmit.connect()

    def pause(self) -> None:
        """Stop it, until :meth:`resume`: no burst is under way when this returns."""
        for _, receive in self.tasks:  # first: what they send may come back here, by a loopback
            receive.pause()
        for transmit, _ in self.tasks:
            transmit.disconnect()
            transmit.pause()

    def close(self) -> None:
        """End the threads, and let go of the port.

        In a child of fork() threads and queues are the parent's: there a pump with workers lets go, and nothing else.
        """
        if self._origin.here or not self.workers:
            if self._ticker is not None:
                self._ticker.stop()
                self._ticker = None
            for worker in self.workers:
                worker.stop()
            self.pause()
        if self in self.nic.pumps:
            self.nic.pumps.remove(self)
            self.port.detach()

    def statistics(self) -> dict[str, int]:
        """Return the sums of what the tasks counted, by direction and name, and how often workers slept."""
        counts: dict[str, int] = {"sleeps": sum(worker.sleeps for worker in self.workers)}
        for transmit, receive in self.tasks:
            for prefix, figures in (("transmit", transmit.statistics()), ("receive", receive.statistics())):
                for name, value in figures.items():
                    counts[f"{prefix}_{name}"] = counts.get(f"{prefix}_{name}", 0) + value
        return counts

    def __enter__(self) -> Pump:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
