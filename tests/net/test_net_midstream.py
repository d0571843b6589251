"""What happens to a kernel's TCP streams when driver and device are stopped, reset, replaced: they go on, unharmed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

import pytest
from kernel_streams import stream_both_ways
from kernelpath import PACKED, A, KernelPath, kernel_path

from virtio.net import NetDevice, Pump

STREAM = 24 << 20


def disturb(path: KernelPath, what: Callable[[], None], times: int = 5) -> None:
    """Run a stream each way, and do something several times while it runs; every byte must arrive."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            stream_both_ways(path, 4, STREAM)  # type: ignore[arg-type]
        except BaseException as error:
            errors.append(error)

    for space in path.namespaces:  # what is lost must come again soon
        space.ip("route", "replace", "10.77.0.0/24", "dev", "tap0")
    thread = threading.Thread(target=run)
    thread.start()
    done = 0
    while done < times and thread.is_alive():
        before = path.nic.statistics()
        end = time.monotonic() + 5
        while path.nic.statistics()["txq0.opackets"] - before["txq0.opackets"] < 20 and time.monotonic() < end:
            time.sleep(0.005)
        what()
        done += 1
    thread.join(60)
    assert not thread.is_alive()
    assert errors == []
    assert done >= 2
    wrong = {name: n for name, n in path.errors().items() if not name.endswith(("RetransSegs", "ReasmFails"))}
    assert wrong == {}


@pytest.mark.threads
@pytest.mark.parametrize("more", [{}, PACKED], ids=["legacy PCI", "packed"])
@pytest.mark.parametrize("workers", [1, 2])
def test_device_reset(more: dict[str, object], workers: int) -> None:
    """The driver resets the device and takes up its queues again, as its watchdog would."""
    with kernel_path(workers=workers, **more) as path:
        disturb(path, path.nic.reinit)
        assert path.nic.attached


@pytest.mark.parametrize("more", [{}, PACKED], ids=["legacy PCI", "packed"])
def test_down_and_up(more: dict[str, object]) -> None:
    with kernel_path(workers=2, **more) as path:

        def what() -> None:
            path.nic.down()
            assert not path.nic.attached
            path.nic.up()

        disturb(path, what)


@pytest.mark.threads
@pytest.mark.parametrize("more", [{}, PACKED], ids=["legacy PCI", "packed"])
def test_driver_detach(more: dict[str, object]) -> None:
    """The driver leaves the device altogether, giving all memory back, and attaches again."""
    with kernel_path(workers=2, **more) as path:

        def what() -> None:
            for pair in path.pump.tasks:
                for task in pair:
                    path.workers[0].remove(task)
            path.pump.close()
            path.nic.detach()
            assert path.machine.pool.used == 0
            assert not path.device.live
            path.nic.attach()
            path.pump = Pump(path.nic, path.taps[A], worker=None)
            for pair in path.pump.tasks:
                for task in pair:
                    path.workers[0].add(task)

        disturb(path, what)


def test_link_down_and_up() -> None:
    with kernel_path() as path:

        def what() -> None:
            path.device.link = False
            time.sleep(0.01)
            path.device.link = True

        disturb(path, what)


@pytest.mark.threads
@pytest.mark.parametrize("workers", [1, 2])
def test_the_device_is_replaced_by_its_snapshot(workers: int) -> None:
    """Bus, function and device become JSON, and another device goes on from it, under a driver that notices nothing."""
    with kernel_path(workers=workers, fast=False) as path:

        def what() -> None:
            path.workers[-1].stop()
            state = json.loads(json.dumps(path.machine.bus.snapshot()))
            path.device.close()
            path.machine.unplug(0)
            path.device = NetDevice(path.taps[1], mac=bytes(6), mtu=1500, worker=path.workers[-1])
            path.machine.plug(path.device)
            path.machine.bus.restore(state)
            assert path.device.mac == "02:00:00:00:77:01"
            path.workers[-1].start()

        resets = path.nic.statistics()
        disturb(path, what)
        assert path.nic.statistics()["txq0.opackets"] > resets["txq0.opackets"]  # it was never reset
