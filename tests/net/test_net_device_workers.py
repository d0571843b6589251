"""The network device and the threads that run its data path."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from formats import FORMATS
from net_machine import machine
from nic import ALL, PACKED, attach
from undone import NONE, payload, undone
from waiting import wait_for

from bench.kernels.devicebench import ScriptPort
from virtio.constants import Feature
from virtio.event.notifier import Bell
from virtio.event.worker import Worker
from virtio.net.device import NetDevice


@pytest.mark.threads
@FORMATS
@pytest.mark.parametrize("kind", ["own", "busy", "one", "two"])
def test_workers(packed: bool, kind: str) -> None:
    """Frames go both ways, on each pair, while nobody polls; a sleeper is woken by kicks."""
    workers: Any = kind
    mine: list[Worker] = []
    if kind in ("one", "two"):
        mine = [Worker(spin_us=0) for _ in range(1 if kind == "one" else 2)]
        workers = mine if kind == "two" else mine[0]
    port = ScriptPort(queues=2, offloads=0x1FF, keep=False)
    device = NetDevice(port, queue_pairs=2, worker=workers)
    for worker in mine:
        worker.start()
    try:
        nic = attach(device, ALL if packed else ALL & ~PACKED)
        nic.control(4, 0, b"\2\0")
        for _ in range(5):
            for pair in range(2):
                nic.send([(NONE, payload(60))] * 50, pair=pair)
                wait_for(lambda pair=pair: nic.ring(2 * pair + 1).nused == 50, 20)  # type: ignore[misc]
                nic.reap(pair=pair)
        figures = device.statistics()
        assert (figures["tx0"]["frames"], figures["tx1"]["frames"]) == (250, 250)
        assert all(worker.tasks for worker in mine)
        nic.stop()
        assert all(worker.tasks == () for worker in mine)
        nic.reinit()
    finally:
        device.close()
        for worker in mine:
            worker.stop()


@pytest.mark.threads
def test_a_worker_receives_when_the_guest_gives_buffers() -> None:
    port = ScriptPort(offloads=0x1FF)
    device = NetDevice(port, worker="own")
    port.give([(NONE, payload(60, i)) for i in range(40)])
    nic = attach(device)
    got: list[bytes] = []
    try:
        for _ in range(10):
            nic.post(4)
            wait_for(lambda: nic.ring(0).nused == 4, 20)
            got += [frame for _, frame in nic.receive()]
    finally:
        device.close()
    assert got == [payload(60, i) for i in range(40)]


def test_kicks_are_off_while_a_worker_is_awake() -> None:
    worker = Worker(mode="busy")
    device, nic, _ = machine(worker=worker, without=Feature.EVENT_IDX)
    nic.send([(NONE, payload(60))])
    assert not nic.queues[1].kick.rings
    assert device.poll() == 1
    device.close()


@pytest.mark.threads
def test_a_worker_goes_on_when_a_full_port_has_room() -> None:
    device, nic, port = machine(worker="own", offloads=0)
    port.room = 3
    nic.send([undone("tcp4", 3000, 500)])
    wait_for(lambda: port.refused > 0, 20)
    assert nic.ring(1).nused == 0
    port.room = -1
    wait_for(lambda: nic.ring(1).nused == 1, 20)
    device.close()
    assert len(port.take()) == 6


@pytest.mark.threads
def test_a_link_that_comes_up_while_the_worker_sleeps() -> None:
    device, nic, port = machine(worker="own", link=False)
    nic.post(4)
    time.sleep(0.01)
    device.link = True
    nic.send([(NONE, payload(60))])
    wait_for(lambda: nic.ring(1).nused == 1, 20)
    device.close()
    assert len(port.take()) == 1


@pytest.mark.threads
def test_a_broken_queue_is_reported_from_a_worker() -> None:
    device, nic, _ = machine(worker="own")
    nic.memory.write_u16(nic.queues[1].layout.driver + 2, 1000)
    nic.queues[1].kick.ring()
    wait_for(lambda: bool(device.status & 64), 20)
    assert device.reason is not None
    assert "queue 1" in device.reason
    device.close()


# ---- resets ----


@pytest.mark.threads
def test_an_interrupt_that_resets_the_device() -> None:
    """A handler may do so in the middle of a poll: nothing that is gone is touched."""
    for workers in (None, "own"):
        device, nic, port = machine(worker=workers)
        done = threading.Event()

        def handler(device: NetDevice = device, done: threading.Event = done) -> None:
            device.reset()
            done.set()

        device.set_call(1, Bell(handler))
        nic.send([(NONE, payload(60))] * 3)
        device.poll()
        assert done.wait(10)
        wait_for(lambda device=device: device.tasks == (), 20)  # type: ignore[misc]
        assert len(port.take()) == 3
        device.close()


@pytest.mark.threads
def test_resets_under_load() -> None:
    """A driver resets while workers and a port that always has frames are at it."""
    port = ScriptPort(offloads=0x1FF, keep=False)
    device = NetDevice(port, worker="own")
    nic = attach(device)
    stop = threading.Event()
    for _ in range(30):
        port.give([(NONE, payload(1000))] * 100) if not stop.is_set() else None
        nic.post(50)
        nic.send([undone("tcp4", 3000, 500)] * 20)
        nic.stop()
        for queue in nic.queues.values():
            queue.queue.drain()
        nic.reinit()
    device.close()
