"""Devices, drivers, ports, servers, machines: each goes when its last user does, without the cycle collector.

Each holds descriptors: an eventfd for a queue, a thread's, a guest's memory.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from descriptors import open_kinds
from netdev import attached, frames_of
from vhost_device import Upper

from virtio.cli.endpoints import Joined, parse
from virtio.cli.status import Status, StatusSocket
from virtio.event.worker import Worker
from virtio.net import Cable, CallPort, Loopback, NetDevice, Pump, Sink
from virtio.net.machine import Machine
from virtio.net.ports import port
from virtio.net.splice import Splice
from virtio.vhost_user import Server

TIMES = 5


def device_in_python(_: Path) -> None:
    Upper()


def device(_: Path) -> None:
    with NetDevice(Loopback()):
        pass


def two_of_a_cable(_: Path) -> None:
    a, b = Cable()
    with NetDevice(a), NetDevice(b):
        pass


def call_port(_: Path) -> None:
    with NetDevice(CallPort(lambda _: None)):
        pass


def generator(_: Path) -> None:
    with NetDevice(port("gen:count=3")):
        pass


def capture(path: Path) -> None:
    made = port(f"pcap:{path / 'x.pcap'}")
    with NetDevice(made):
        pass
    made.close()  # type: ignore[attr-defined]


def worker(_: Path) -> None:
    """One that ran, whose tasks stay with it."""
    a = Loopback()
    with Splice(a, Sink()) as splice:
        shared = Worker([task for both in splice.tasks for task in both])
        shared.start()
        shared.stop()


def driver(_: Path) -> None:
    with NetDevice(Loopback(), worker="own") as made:
        nic = attached(made)
        nic.transmit(frames_of(4))
        nic.detach()


def driver_that_is_not_detached(_: Path) -> None:
    with NetDevice(Loopback(), worker="own") as made:
        attached(made).transmit(frames_of(4))


def pump(_: Path) -> None:
    with NetDevice(Loopback(), worker="own") as made:
        nic = attached(made)
        with Pump(nic, Sink()):
            pass
        nic.detach()


def server(path: Path) -> None:
    with Server(Upper(), path / "s"):
        pass


def server_that_was_not_started(path: Path) -> None:
    Server(Upper(), path / "s").close()


def status(path: Path) -> None:
    with StatusSocket(dict, str(path / "top")), Status(str(path / "top")) as there:
        there.read()


def status_that_was_not_started(path: Path) -> None:
    StatusSocket(dict, str(path / "top"))
    (path / "top").unlink()


def guest_and_port(path: Path) -> None:
    with Joined([parse(f"vhost-user:{path / 's'}"), parse("loopback")]):
        pass


def two_guests(path: Path) -> None:
    with Joined([parse(f"vhost-user:{path / name}") for name in "ab"]):
        pass


def two_ports(_: Path) -> None:
    with Joined([parse("gen:count=3"), parse("sink")]):
        pass


def machine(_: Path) -> None:
    for fast in (False, True):
        for mode in ("msix", "msix-shared", "intx"):
            made = Machine(64 << 20, fast=fast)
            with NetDevice(Loopback()) as plugged:
                made.plug(plugged)
                for found in made.attach_all(mode=mode):  # type: ignore[arg-type]
                    assert found.driver is not None
                    found.driver.detach()


def machine_whose_driver_is_not_detached(_: Path) -> None:
    made = Machine(64 << 20)
    with NetDevice(Loopback()) as plugged:
        made.plug(plugged)
        made.attach_all()


CASES = [
    device_in_python, device, two_of_a_cable, call_port, generator, capture, worker, driver,
    driver_that_is_not_detached, pump, server, server_that_was_not_started, status, status_that_was_not_started,
    guest_and_port, two_guests, two_ports, machine, machine_whose_driver_is_not_detached,
]  # fmt: skip


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_it_goes_with_its_last_user(case: Callable[[Path], None], no_collector: None, tmp_path: Path) -> None:
    case(tmp_path)
    gc.collect()
    before = open_kinds()
    for _ in range(TIMES):
        case(tmp_path)
    assert not open_kinds() - before
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    found = {type(it).__qualname__ for it in gc.garbage if type(it).__module__.partition(".")[0] == "virtio"}
    assert not found, "these lay in cycles, or hung from one"
