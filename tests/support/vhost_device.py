"""A device in Python over vhost-user: served, its ring running, texts exchanged through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vhost_frontend import GPA, Frontend, layout_of
from waiting import wait_for

from virtio import Device, DriverQueue, Feature
from virtio.vhost_user import ProtocolFeature, Server

BUFFERS = GPA + 0x100000


class Upper(Device):
    """Answers each chain in upper case: a device that somebody wrote in Python, of no special kind."""

    device_type = 42

    def __init__(self, **options: Any) -> None:
        self.config = bytearray(b"upper\0\0\0")
        super().__init__(**options)

    def queue_sizes(self) -> tuple[int, ...]:
        return (256, 256)

    def config_written(self, offset: int, data: bytes) -> bool:
        self.config[offset : offset + len(data)] = data
        return True

    def notified(self, index: int) -> None:
        for chain in self.chains(index):
            chain.write(chain.read().upper())


@contextmanager
def served(device: Device, path: Path, **options: Any) -> Iterator[tuple[Server, Frontend]]:
    with Server(device, path, **options) as server, Frontend(str(path)) as frontend:
        yield server, frontend


def running(frontend: Frontend, packed: bool, index: int = 0, features: int = 0, protocol: int = 0) -> DriverQueue:
    """Negotiate, share memory, start one ring; return the driver's end."""
    want = Feature.VERSION_1 | (Feature.RING_PACKED if packed else 0) | features
    use = frontend.negotiate(want, ProtocolFeature.REPLY_ACK | protocol)
    frontend.share_memory()
    layout = layout_of(index, packed)
    driver = frontend.driver(index, layout, use)
    frontend.start(index, layout)
    return driver


def exchange(frontend: Frontend, driver: DriverQueue, text: bytes, index: int = 0) -> bytes:
    """Send text through a ring; return the answer."""
    frontend.memory.write(BUFFERS, text)
    driver.enqueue([(BUFFERS, len(text))], [(BUFFERS + 0x1000, 256)], cookie="c")
    driver.notify()
    frontend.kick(index)
    wait_for(lambda: driver.nused > 0)
    ((_, length),) = driver.dequeue_burst()
    return frontend.memory.read(BUFFERS + 0x1000, length)
