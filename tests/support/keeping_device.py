"""Devices that keep the chains that they pop, and texts in such chains."""

from __future__ import annotations

import threading
from typing import Any

from vhost_device import BUFFERS
from vhost_frontend import Frontend

from virtio import Chain, Device, DriverQueue


class Keeping(Device):
    """Keeps the chains that it pops, until it is told which to answer."""

    device_type = 42

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.kept: list[Chain] = []

    def notified(self, index: int) -> None:
        queue = self.device_queue(index)
        while chains := queue.pop_burst():
            self.kept += chains
        queue.enable_notification()

    def deactivate(self) -> None:
        self.kept.clear()

    def queue_reset(self, index: int) -> None:
        self.kept.clear()

    def answer(self, *numbers: int) -> None:
        with self._control():
            chains = [self.kept[number] for number in numbers]
            self.kept = [chain for chain in self.kept if chain not in chains]
            for chain in chains:
                chain.write(chain.read().upper())
            self.device_queue(0).add_used_burst(chains)

    @property
    def texts(self) -> list[bytes]:
        return [chain.read() for chain in self.kept]


def send(frontend: Frontend, driver: DriverQueue, numbers: range) -> None:
    """Make chains available, of two descriptors each."""
    for number in numbers:
        at = BUFFERS + 0x100 * number
        frontend.memory.write(at, b"text%d" % number)
        driver.enqueue([(at, 5)], [(at + 0x80, 16)], cookie=number)
    frontend.kick(0)


class Draining(Keeping):
    """Answers what it keeps when it is told to, on a thread of its own, the last first."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.threads: list[threading.Thread] = []

    def queue_drain(self, index: int) -> bool:
        self.threads.append(threading.Thread(target=self.answer_all))
        self.threads[-1].start()
        return True

    def answer_all(self) -> None:
        while self.kept:
            self.answer(len(self.kept) - 1)
