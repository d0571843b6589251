"""An orderly stop: nothing more is taken in, what was taken is delivered, and what is not is counted."""

from __future__ import annotations

import json
import os
import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from netcommand import PATIENCE, frames, joined
from netdev import attached, frames_of
from nic import RawNic, attach
from repetition import repeating
from vhost_frontend import Frontend, layout_of
from vhost_guest import HEADER, RECEIVE, Guest
from waiting import wait_for

from bench.kernels.devicebench import ScriptPort
from bench.kernels.portbench import MemorySink, connect
from virtio import Feature, GuestMemory
from virtio.constants import NetFeature
from virtio.event.worker import Worker
from virtio.net import Loopback, NetDevice, Splice
from virtio.net.ports import CallPort, Generator, PcapWriter
from virtio.net.pump import Pump
from virtio.netdev.txq import NetTransmit
from virtio.offload import NetHeader
from virtio.vhost_user import Server

pytestmark = pytest.mark.threads


def used(memory: GuestMemory, layout: Any) -> int:
    """How many chains a device gave back, modulo 2^16."""
    return memory.read_u16(layout.device + 2)


@pytest.mark.parametrize("ends", ["cable", "loopback"])
def test_the_command_delivers_all_that_it_completed(ends: str, tmp_path: Path) -> None:
    """Told to stop under traffic: each frame that a guest got back as sent is in the other's buffers."""
    paths = [str(tmp_path / name) for name in "ab"]
    words = [f"vhost-user:{path}" for path in paths] if ends == "cable" else [f"vhost-user:{paths[0]}", "loopback"]
    with ExitStack() as stack:
        process, status = stack.enter_context(joined(tmp_path, *words))
        one = stack.enter_context(Guest(paths[0]))
        two = stack.enter_context(Guest(paths[1])) if ends == "cable" else one
        frame = bytes(60)

        def work() -> None:
            for _ in range(8):
                one.send(frame)
            two.receive()

        with repeating(work):
            wait_for(lambda: frames(status, words[0], "tx0") > 1000, PATIENCE)
            process.terminate()
            out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (0, "")
        figures = json.loads(out)
        sender, receiver = figures[words[0]], figures[words[-1] if ends == "cable" else words[0]]
        assert used(one.memory, layout_of(1, False)) == used(two.memory, layout_of(0, False))
        assert sender["tx0"]["frames"] == receiver["rx0"]["frames"]
        assert sender["port"]["send_dropped"] == 0


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_device_at_a_loopback_stops_sending_first(how: str) -> None:
    port = Loopback()
    device = NetDevice(port, worker="busy")
    nic = attached(device)
    out = frames_of(64)

    def work() -> None:
        nic.transmit(out)
        nic.receive()

    layouts = [nic.queues[index].layout for index in (0, 1)]
    with repeating(work):
        wait_for(lambda: port.statistics()["send_packets"] > 5000)
        device.close() if how == "close" else device.write_status(0)
        counts = [used(nic.memory, layout) for layout in layouts]
    assert counts[0] == counts[1]
    assert port.statistics()["send_dropped"] == 0
    device.close()


def test_a_server_that_closes_stops_sending_first(tmp_path: Path) -> None:
    port = Loopback()
    with NetDevice(port, worker="busy") as device:
        server = Server(device, tmp_path / "s").start()
        with Guest(str(tmp_path / "s")) as guest:

            def work() -> None:
                for _ in range(8):
                    guest.send(bytes(60))
                guest.receive()

            with repeating(work):
                wait_for(lambda: port.statistics()["send_packets"] > 1000)
                server.close()
            assert used(guest.memory, layout_of(1, False)) == used(guest.memory, layout_of(0, False))
        assert port.statistics()["send_dropped"] == 0


def holding() -> tuple[NetDevice, RawNic, ScriptPort]:
    """A device that has read a frame for which its guest has too few buffers, and a port that has more."""
    port = ScriptPort(in_place=True)
    device = NetDevice(port)
    nic = attach(device)
    nic.post(1, 512)
    port.give([(NetHeader(), bytes(1000))] * 3)
    assert device.poll() == 1 and port.waiting() == 2
    return device, nic, port


def test_a_frame_that_was_read_is_delivered_when_there_is_room() -> None:
    device, nic, port = holding()
    nic.post(3, 512)
    assert device.drain()
    device.poll()
    assert port.waiting() == 2  # the port is not asked any more
    assert [len(frame) for _, frame in nic.receive()] == [1000]
    assert device.statistics()["rx0"]["dropped"] == {}
    device.close()


def test_rings_of_which_a_snapshot_was_taken_stay_as_they_are() -> None:
    """Another device goes on from there: what was used after it would break its queue."""
    device, nic, _ = holding()
    nic.post(3, 512)
    layout = device.queues[0].layout
    assert layout is not None
    before = nic.memory.read(layout.device + 2, 2)  # used.idx
    state = device.snapshot()
    device.close()
    assert nic.memory.read(layout.device + 2, 2) == before
    port = ScriptPort(in_place=True)
    with NetDevice(port) as other:
        RawNic(other, memory=nic.memory)
        other.restore(state, nic.memory)
        port.give([(NetHeader(), bytes(1000))])
        other.poll()
        assert [len(frame) for _, frame in nic.receive()] == [1000]
        assert other.queues[0].broken is None


def test_a_frame_that_was_read_and_finds_no_room_is_counted() -> None:
    device, nic, _ = holding()
    assert not device.drain(0.01)
    nic.transport.reset()
    assert device.statistics()["rx0"]["dropped"] == {"closed": 1}
    device.close()


def test_a_server_that_closes_gives_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its guest has time to make room, before the connection ends."""
    port = ScriptPort(in_place=True)
    with NetDevice(port, worker="own") as device:
        monkeypatch.setattr(device, "drain", partial(device.drain, PATIENCE))
        server = Server(device, tmp_path / "s").start()
        with Frontend(str(tmp_path / "s")) as frontend:
            use = frontend.negotiate(Feature.VERSION_1 | NetFeature.MRG_RXBUF)
            frontend.share_memory()
            rx = frontend.driver(0, layout_of(0, False), use)
            rx.enqueue([], [(RECEIVE, 512)])
            frontend.start(0, layout_of(0, False))
            port.give([(NetHeader(), bytes(1000))] * 3)
            wait_for(lambda: port.waiting() == 2)
            closing = threading.Thread(target=server.close)
            closing.start()
            wait_for(lambda: device._draining or not closing.is_alive())
            rx.enqueue([], [(RECEIVE + 512, 512)])
            closing.join()
            assert sum(length for _, length in rx.dequeue_burst()) == HEADER + 1000
        assert port.waiting() == 2  # the port was not asked any more
        assert device.statistics()["rx0"]["dropped"] == {}


def test_a_drained_device_serves_the_next_driver() -> None:
    sent: list[Any] = []
    with NetDevice(CallPort(sent.extend)) as device:
        nic = attach(device)
        assert device.drain() and device.drain()
        nic.send([(NetHeader(), bytes(60))])
        assert device.poll() == 0
        device.pause()
        device.resume()
        assert device.poll() == 0
        nic.detach()
        nic.attach()
        nic.send([(NetHeader(), bytes(60))])
        assert device.poll() == 1 and len(sent) == 1


def test_a_splice_gives_what_it_read() -> None:
    """Each frame that a generator gave is at the other end, or counted as dropped."""
    for room, delivered in ((1000, 1000), (5, 5)):
        generator, loopback = Generator(200, count=1000), Loopback()
        narrow = MemorySink(size=room)
        splice = Splice(generator, loopback)
        connect(loopback, 0, narrow)
        splice.poll()
        splice.close()
        figures = splice.statistics()
        given = generator.statistics()["receive_packets"]
        assert len(narrow.take()) == figures[1]["rx0"]["frames"] <= delivered
        assert given == figures[1]["rx0"]["frames"] + figures[1]["rx0"]["dropped"].get("closed", 0)


def test_a_splice_of_a_loopback_stops_sending_first() -> None:
    """What a TAP's or a caller's side gives goes into the loopback and comes back: none is lost between."""
    sent: list[Any] = []
    frames = [bytes(60)] * 64
    port, loopback = CallPort(sent.extend, lambda limit: frames[:limit]), Loopback()
    workers = [Worker(mode="busy")]
    splice = Splice(loopback, port, workers)
    with workers[0]:
        wait_for(lambda: len(sent) > 5000)
        splice.close()
    assert loopback.statistics()["send_dropped"] == 0
    assert loopback.statistics()["send_packets"] == len(sent)


def test_a_pump_that_pauses_stops_sending_first() -> None:
    with NetDevice(Loopback(), worker="busy") as device:
        nic = attached(device)
        port = Loopback()
        pump = Pump(nic, port, mode="busy")
        nic.transmit(frames_of(64))
        wait_for(lambda: port.statistics()["send_packets"] > 5000)
        pump.pause()
        assert port.statistics()["send_dropped"] == 0
        pump.close()


def test_a_task_amid_a_burst_is_waited_for_no_longer_than_asked(tmp_path: Path) -> None:
    """A pipe's reader reads nothing: its port's burst lasts. Close the port, and it ends."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        port = PcapWriter(str(pipe))
        with NetDevice(port, worker="own") as device:
            nic = attached(device)
            task = next(task for task in device.tasks if isinstance(task, NetTransmit))

            def stuck() -> bool:
                nic.transmit(frames_of(8, 1500))
                stopped = task.pause(0.2)
                if stopped:
                    task.resume()
                return not stopped

            wait_for(stuck)
            assert not device.drain(0.01)
            port.close()
            nic.detach(force=True)
    finally:
        os.close(reader)
