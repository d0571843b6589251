"""fork() in a process with workers: the child's objects refuse by name, and the parent's notice nothing."""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import pytest
from net_machine import machine
from netdev import attached
from nic import attach
from undone import NONE, payload
from virtio_device import Echo, Guest
from waiting import wait_for

from virtio.core.logs import LineLimit
from virtio.errors import DeviceBroken
from virtio.event.worker import Worker
from virtio.net.device import NetDevice
from virtio.net.machine import Machine
from virtio.net.ports import Cable, CallPort, Loopback, PcapWriter, Port
from virtio.net.pump import Pump
from virtio.net.splice import Splice
from virtio.vhost_user.server import Server

pytestmark = pytest.mark.timeout(120)  # what fails here hangs


def in_child(work: Callable[[], None]) -> None:
    """Do something in a child, which must come to its end."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def refused(work: Callable[[], object], name: str) -> None:
    with pytest.raises(RuntimeError, match=rf"{name} was made before fork\(\) in process {os.getppid()}"):
        work()


def test_a_worker() -> None:
    device, nic, _ = machine(worker="own")
    task = device.tasks[0]
    with Worker() as worker:

        def child() -> None:
            for work in (worker.start, worker.stop, worker.wake, lambda: worker.remove(task), lambda: worker.add(task)):
                refused(work, "worker")
            worker.__exit__(None, None, None)
            with Worker() as own:  # a new one is the child's
                assert own.running

        in_child(child)
        assert worker.running
    nic.send([(NONE, payload(60))])
    wait_for(lambda: nic.ring(1).nused == 1, 20)
    device.close()


@pytest.mark.parametrize("kind", ["own", "busy"])
def test_a_network_device_that_workers_run(kind: str) -> None:
    device, nic, port = machine(worker=kind)

    def child() -> None:
        for work in (device.reset, device.close, device.snapshot, lambda: device.write_status(0)):
            refused(work, "device")
        device.__exit__(None, None, None)

    for _ in range(20):  # at any moment of the parent's threads
        nic.send([(NONE, payload(60))] * 5)
        in_child(child)
        wait_for(lambda: nic.ring(1).nused == 5, 20)
        nic.reap()
    device.close()
    assert len(port.take()) == 100


def test_a_device_that_nobody_runs_is_the_childs_too() -> None:
    """An emulator that forks for each input (AFL's fork server) goes on in the child."""
    guest = Guest(Echo()).up()
    assert guest.ask(b"a") == b"A"

    def child() -> None:
        assert guest.ask(b"b") == b"B"
        guest.device.reset()

    in_child(child)
    assert guest.device.status
    assert guest.ask(b"c") is not None


def test_a_device_whose_lock_a_thread_of_the_parent_has() -> None:
    device = Echo()
    guest = Guest(device).up()
    inside, over = Event(), Event()

    def hold() -> None:
        with device._control():
            inside.set()
            over.wait()

    thread = Thread(target=hold)
    thread.start()
    inside.wait()
    try:
        in_child(lambda: refused(device.reset, "device"))
    finally:
        over.set()
        thread.join()
    assert guest.ask(b"a") == b"A"


@pytest.mark.parametrize("changing", [False, True], ids=["a queue", "the map"])
def test_a_memory_with_which_a_thread_of_the_parent_is_at_work(changing: bool) -> None:
    """A burst is under way, or a change of the map that waits for its end."""
    inside, over = Event(), Event()

    def taken(frames: object) -> None:
        inside.set()
        over.wait()

    device = NetDevice(CallPort(taken))
    nic = attach(device)
    nic.send([(NONE, payload(60))])
    memory = nic.memory
    threads = [Thread(target=device.poll)]
    threads[0].start()
    inside.wait()
    if changing:
        threads.append(Thread(target=memory.replace, args=(memory.regions,)))
        threads[1].start()
        wait_for(lambda: not device.queues[1].queue.comes_free(0), 20)
        time.sleep(0.1)  # it has the map by now, and waits

    def child() -> None:
        for work in (lambda: memory.replace(memory.regions), memory.start_log):
            refused(work, "guest memory")
        assert memory.read(memory.regions[0].gpa, 1)

    try:
        in_child(child)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    in_child(lambda: memory.replace(memory.regions))  # nothing is under way now
    memory.replace(memory.regions)
    device.close()


def test_a_pump_and_a_driver_are_let_go() -> None:
    with NetDevice(Loopback(), worker="busy") as device:
        nic = attached(device)
        port = Loopback()
        pump = Pump(nic, port, mode="busy")
        nic.transmit([bytes(60)] * 64)

        def child() -> None:
            for _ in range(2):
                pump.__exit__(None, None, None)
            assert nic.pumps == []
            port.attach(device)  # it is free
            nic.__exit__(None, None, None)

        for _ in range(10):  # at any moment of the parent's threads
            in_child(child)
        sent = port.statistics()["send_packets"]
        wait_for(lambda: port.statistics()["send_packets"] > sent + 1000, 20)
        pump.close()
        nic.detach()


def test_a_pump_without_workers_is_the_childs_too() -> None:
    device = NetDevice(Loopback())
    nic = attached(device)
    pump = Pump(nic, Loopback(), worker=None)

    def child() -> None:
        pump.close()
        assert not pump.tasks[0][0].active

    in_child(child)
    assert pump.tasks[0][0].active
    pump.close()
    nic.detach()
    device.close()


def test_a_splice_is_let_go() -> None:
    ports = Loopback(), CallPort(lambda frames: None)
    with Worker(mode="busy") as worker, Splice(*ports, [worker]) as splice:

        def child() -> None:
            splice.__exit__(None, None, None)
            ports[0].attach(worker)  # it is free

        in_child(child)
        with pytest.raises(RuntimeError, match=r"attached to <virtio\.net\.splice\.Splice"):
            ports[0].attach(worker)


def test_a_server_keeps_its_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Server(NetDevice(), str(path)) as server:

        def child() -> None:
            refused(server.close, "server")
            refused(server.start, "server")
            server.__exit__(None, None, None)

        in_child(child)
        assert path.is_socket()
    assert not path.exists()


def held(inside: Event, over: Event) -> Callable[[object], None]:
    """Return what a port or a lock's owner calls to stay where it is until ``over``; in a child it does not stay."""
    process = os.getpid()

    def hold(_: object = None) -> None:
        inside.set()
        if os.getpid() == process:
            over.wait()

    return hold


@pytest.mark.parametrize("worker", ["own", None])
def test_a_queue_amid_a_burst(worker: str | None) -> None:
    """It refuses by name, whoever asks; after a reset of its own it is the child's."""
    inside, over = Event(), Event()
    device = NetDevice(CallPort(held(inside, over)), worker=worker)
    nic = attach(device)
    nic.send([(NONE, payload(60))] * 3)
    thread = Thread(target=device.poll)
    if worker is None:
        thread.start()
    inside.wait()
    queue = device.queues[1].queue

    def child() -> None:
        for work in (queue.pop, queue.pop_burst):
            refused(work, "queue")
        assert not queue.needs_notification()
        refused(lambda: nic.memory.replace(nic.memory.regions), "guest memory")
        if worker is None:
            assert device.poll() == 0
            assert device.frontend_rarp(bytes(6))  # the port is free
            queue.reset()
            assert queue.broken is None
        else:
            for work in (device.poll, lambda: device.frontend_rarp(bytes(6)), lambda: device.write_status(0)):
                refused(work, "device")

    try:
        in_child(child)
    finally:
        over.set()
    if worker is None:
        thread.join()
    device.close()
    assert queue.broken is None


@pytest.mark.parametrize("way", ["transmit", "receive"])
def test_a_driver_at_any_moment(way: str) -> None:
    """A driver whose queue a pump's worker has says so by name; one that is free goes on."""
    with NetDevice(Loopback(), worker="busy") as device:
        nic = attached(device)
        with Pump(nic, Loopback(), mode="busy"):
            nic.transmit([bytes(60)] * 64)

            def child() -> None:
                with suppress(DeviceBroken):
                    nic.transmit([bytes(60)] * 4) if way == "transmit" else nic.receive()

            for _ in range(30):
                in_child(child)


def test_registers_that_a_vcpu_writes() -> None:
    machine = Machine()
    function = machine.plug(NetDevice())
    inside, over = Event(), Event()

    def write() -> None:
        with function._lock:
            held(inside, over)()

    thread = Thread(target=write)
    thread.start()
    inside.wait()

    def child() -> None:
        for work in (function.reset, function.snapshot, lambda: function.write(18, 1, 0)):
            refused(work, "PCI function")

    try:
        in_child(child)
    finally:
        over.set()
        thread.join()
    in_child(function.reset)
    function.reset()


@pytest.mark.parametrize("make", [lambda: Loopback(full="drop"), lambda: Cable().a, lambda: PcapWriter("/dev/null")])
def test_a_port_amid_a_send(make: Callable[[], Port]) -> None:
    """The thread that sends is not in the child, and the port is free there."""
    port = make()
    with NetDevice(port, worker="busy") as device:
        nic = attach(device)

        def child() -> None:
            port.detach()
            own = attach(other := NetDevice(port))
            own.send([(NONE, payload(60))] * 20)
            other.poll()
            assert own.ring(1).nused == 20

        for _ in range(20):
            nic.send([(NONE, payload(60))] * 20)
            in_child(child)
            wait_for(lambda: nic.ring(1).nused == 20)
            nic.reap()


def test_a_log_line_that_a_thread_of_the_parent_writes() -> None:
    limit = LineLimit()
    record = logging.makeLogRecord({"msg": "a line"})
    with limit._lock:
        in_child(lambda: limit.filter(record) or os._exit(1))
    assert limit.filter(record)
