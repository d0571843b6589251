"""Memory that changes while queues send into each other: neither waits for what the other has."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from formats import FORMATS
from netdev import attached
from nic import ALL, PACKED, attach
from repetition import repeating
from waiting import wait_for

from virtio import GuestMemory
from virtio.net import CallPort, Loopback, NetDevice
from virtio.net.pump import Pump
from virtio.netdev.rxq import NetReceive
from virtio.offload import NetHeader

pytestmark = pytest.mark.threads
MANY, ROOM = 8, 1 << 20

CHANGES: list[Callable[[GuestMemory], None]] = [
    lambda memory: memory.replace(memory.regions),
    lambda memory: memory.start_log(),
]


@pytest.mark.parametrize("change", CHANGES, ids=["regions", "log"])
@FORMATS
def test_no_receive_queue_is_held_while_a_sender_is_waited_for(
    packed: bool, change: Callable[[GuestMemory], None]
) -> None:
    """A loopback delivers with the sender's lock held; so does a cable. Otherwise each waits for the other."""
    free: list[bool] = []

    def send(frames: object) -> None:
        changing = threading.Thread(target=change, args=(memory,))
        changing.start()
        threads.append(changing)
        time.sleep(0.1)  # it waits for this queue
        assert changing.is_alive()
        for task in receivers:
            free.append(task.pause(0.05))
            if free[-1]:
                task.resume()

    threads: list[threading.Thread] = []
    memory = GuestMemory.allocate(MANY * ROOM)
    with ExitStack() as stack:
        devices = [stack.enter_context(NetDevice(CallPort(send))) for _ in range(MANY)]  # in any order of addresses
        nics = [attach(device, ALL if packed else ALL & ~PACKED, memory=memory, pool=(i * ROOM, ROOM))
                for i, device in enumerate(devices)]  # fmt: skip
        receivers = [task for device in devices for task in device.tasks if isinstance(task, NetReceive)]
        nics[MANY // 2].send([(NetHeader(), bytes(60))])
        assert devices[MANY // 2].poll() == 1
        for thread in threads:
            thread.join()
        assert free == [True] * MANY


def test_memory_changes_under_a_loopback_and_a_pump() -> None:
    with NetDevice(Loopback(), worker="busy") as device:
        nic = attached(device)
        port = Loopback()
        with Pump(nic, port, mode="busy"), repeating(lambda: nic.memory.replace(nic.memory.regions)):
            for count in (1000, 2000, 3000):
                nic.transmit([bytes(60)] * 64)
                wait_for(lambda count=count: port.statistics()["send_packets"] > count)
