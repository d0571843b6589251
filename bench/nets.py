"""Drivers and devices joined in this process, for the benchmarks of the network."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass

from bench.kernels.netbench import through
from virtio import Feature, GuestMemory
from virtio.direct import DirectTransport
from virtio.event.worker import Task, Worker
from virtio.memory.dma import DmaPool
from virtio.net import NetDevice, Vtnet
from virtio.ports.port import Port

MEMORY = 96 << 20


@dataclass
class Joined:
    """A driver and the device that it drives; ``worker``, which is not started, has the device's tasks."""

    nic: Vtnet
    device: NetDevice
    worker: Worker

    @property
    def transmit_tasks(self) -> list[Task]:
        return [task for task in self.worker.tasks if type(task).__name__ == "NetTransmit"]


def join(port: Port | None = None, *, packed: bool = False, cpu: int | None = None, pairs: int = 1) -> Joined:
    """Make a device over ``port``, and vtnet over it; busy, so that neither end sleeps or is kicked."""
    memory = GuestMemory.allocate(MEMORY)
    worker = Worker(mode="busy", cpu=cpu)
    device = NetDevice(port, worker=worker, queue_pairs=pairs, offer=Feature.RING_PACKED if packed else 0)
    nic = Vtnet(
        DirectTransport(device, memory), DmaPool(memory, 1 << 20, MEMORY - (1 << 20)),
        want=Feature.RING_PACKED if packed else 0, pairs=pairs,
    )  # fmt: skip
    nic.attach()
    return Joined(nic, device, worker)


def side_by_side(joined: Joined, queues: int, length: int, count: int) -> float:
    """Send frames on so many queues, each driver and device on a thread of its own; return nanoseconds a packet."""
    tasks = joined.transmit_tasks

    def run(queue: int) -> None:
        through(joined.nic.pairs[queue].transmit, None, [tasks[queue]], length, count)

    threads = [threading.Thread(target=run, args=(queue,)) for queue in range(queues)]
    start = time.perf_counter_ns()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter_ns() - start) / (count * queues)


def two_threads(joined: Joined, length: int, count: int) -> float:
    """Send frames from this thread, pinned to the last core, to the device's thread; return nanoseconds a packet."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        with joined.worker:
            start = time.perf_counter_ns()
            through(joined.nic.pairs[0].transmit, None, [], length, count)
            return (time.perf_counter_ns() - start) / count
    finally:
        os.sched_setaffinity(0, allowed)
