"""The pump: a port on one side of a driver, its device on the other."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import Any

import pytest
from netdev import MAC, HandDevice, attached, frames_of
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from waiting import wait_for

from virtio.errors import ConfigError
from virtio.event.worker import Worker
from virtio.net import Cable, CallPort, Generator, Loopback, NetDevice, Port, Pump, Sink
from virtio.offload import NetHeader, segment

BIG = bytes(Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02") / IP(src="10.0.0.1", dst="10.0.0.2")
            / TCP(flags="A") / (bytes(range(256)) * 20))  # fmt: skip


class Ends:
    """A port of Python functions: what it was sent, and what it has to give."""

    def __init__(self, offloads: int = 0) -> None:
        self.got: list[tuple[NetHeader, bytes]] = []
        self.waiting: list[Any] = []
        self.port = CallPort(self.got.extend, self.give, offloads=offloads)

    def give(self, limit: int) -> list[Any]:
        given, self.waiting = self.waiting[:limit], self.waiting[limit:]
        return given

    @property
    def frames(self) -> list[bytes]:
        return [frame for _, frame in self.got]


def test_both_ways_by_hand() -> None:
    device, ends = HandDevice(), Ends()
    with Pump(attached(device), ends.port, worker=None) as pump:
        ends.waiting = frames_of(100)
        while pump.poll():
            pass
        assert device.sent() == frames_of(100)
        device.give(*frames_of(100))
        while pump.poll():
            pass
        assert ends.frames == frames_of(100)
        counts = pump.statistics()
        assert counts["transmit_packets"] == counts["receive_packets"] == 100
        assert counts["transmit_bursts"] >= 2
    assert pump.workers == []


def test_a_full_ring_loses_nothing() -> None:
    device, ends = HandDevice(queue_size=16), Ends()
    with Pump(attached(device), ends.port, worker=None) as pump:
        ends.waiting = frames_of(100)
        got: list[bytes] = []
        while len(got) < 100:
            pump.poll()
            got += device.sent()
        assert got == frames_of(100)


def test_a_port_that_is_full_gets_the_rest_later() -> None:
    """Of a burst the port took a part: what is left comes first, and nothing twice."""
    device = NetDevice(Loopback(), mac=MAC, queue_size=16)
    nic = attached(device, idle=device.poll)
    cable = Cable()
    pump = Pump(nic, cable.a, worker=None)
    far = NetDevice(cable.b, queue_size=8)
    driver = attached(far, idle=far.poll, refuse="MRG_RXBUF")
    frames = frames_of(60)
    sent = 0
    got: list[bytes] = []
    for _ in range(200):
        sent += nic.transmit(frames[sent:])
        device.poll()
        pump.poll()
        got += driver.receive(3)
        far.poll()
    assert got == frames
    assert nic.pairs[0].receive.statistics()["rescheduled"] > 0
    pump.close()


@pytest.mark.threads
@pytest.mark.parametrize("threads", [False, True])
def test_ports_that_deliver_of_themselves(threads: bool) -> None:
    """A cable between a driver and a device: driver, cable, device, and its driver; there and back."""
    with ExitStack() as stack:
        cable = Cable()
        worker = "own" if threads else None
        devices = [NetDevice(Loopback(), mac=MAC, worker=worker), NetDevice(cable.b, worker=worker)]
        for device in devices:
            stack.callback(device.close)
        near, far = (attached(device, idle=device.poll) for device in devices)
        pump = stack.enter_context(Pump(near, cable.a, worker="one" if threads else None))
        frames = frames_of(1000)
        sent = 0
        got: list[bytes] = []

        def step() -> bool:
            nonlocal sent, got
            sent += far.transmit(frames[sent : sent + 50])
            if not threads:
                devices[1].poll()
                devices[0].poll()
                pump.poll()
                devices[1].poll()
            got += far.receive()
            return len(got) == 1000

        wait_for(step, 20)
        assert got == frames
        near.reset()
        sent, got = 0, []
        wait_for(step, 20)
        assert got == frames


def test_a_loopback_beside_the_driver() -> None:
    device = HandDevice()
    with Pump(attached(device), Loopback(), worker=None) as pump:
        device.give(*frames_of(20))
        pump.poll()
        assert device.sent() == frames_of(20)


@pytest.mark.threads
@pytest.mark.parametrize("worker", ["one", "pair", "direction"])
@pytest.mark.parametrize("mode", ["adaptive", "busy"])
def test_on_threads(worker: Any, mode: Any) -> None:
    with ExitStack() as stack:
        device = NetDevice(Loopback(), mac=MAC, worker="own")
        stack.callback(device.close)
        nic = attached(device)
        stack.callback(nic.detach)
        ends = Ends()
        pump = stack.enter_context(Pump(nic, ends.port, worker=worker, mode=mode))
        assert len(pump.workers) == {"one": 1, "pair": 1, "direction": 2}[worker]
        ends.waiting = frames_of(2000)
        wait_for(lambda: len(ends.got) == 2000, 20)
        assert ends.frames == frames_of(2000)


@pytest.mark.threads
def test_several_pairs() -> None:
    with ExitStack() as stack:
        device = NetDevice(Loopback(queues=3), mac=MAC, queue_pairs=3, worker="own")
        stack.callback(device.close)
        nic = attached(device, pairs=3)
        stack.callback(nic.detach)
        generator = Generator(200, count=300, queues=3)
        stack.enter_context(Pump(nic, generator, worker="pair"))
        wait_for(lambda: generator.statistics()["send_packets"] >= 900, 20)
        counts = nic.statistics()
        assert all(counts[f"txq{i}.opackets"] == 300 for i in range(3))
        assert all(counts[f"rxq{i}.ipackets"] == 300 for i in range(3))


def test_what_the_port_cannot_is_done_here() -> None:
    """Frames that the device merged, or left without a checksum, for a port that takes whole small ones."""
    header = NetHeader(flags=1, gso_type=1, gso_size=1000, hdr_len=54, csum_start=34, csum_offset=16)
    device, ends = HandDevice(), Ends()
    with Pump(attached(device), ends.port, worker=None) as pump:
        device.give(BIG, header=header)
        pump.poll()
        assert ends.frames == [b"".join(pieces) for pieces in segment(BIG, 1000)]
        assert all(not header.flags and not header.gso_type for header, _ in ends.got)
        assert pump.statistics()["receive_segments"] == 6
    able = Ends(offloads=3)
    device = HandDevice()
    with Pump(attached(device), able.port, worker=None) as pump:
        device.give(BIG, header=header)
        pump.poll()
        ((got, frame),) = able.got
        assert frame == BIG and (got.flags, got.gso_type, got.gso_size) == (1, 1, 1000)


def test_what_the_device_cannot_is_done_here() -> None:
    header = NetHeader(flags=1, gso_type=1, gso_size=1000, hdr_len=54, csum_start=34, csum_offset=16)
    device, ends = HandDevice(withhold="CSUM"), Ends()
    with Pump(attached(device), ends.port, worker=None) as pump:
        assert ends.port.offloads == 0
        ends.waiting = [(header, BIG), BIG[:60]]
        pump.poll()
        assert device.sent() == [*(b"".join(pieces) for pieces in segment(BIG, 1000)), BIG[:60]]


def test_a_device_may_say_what_a_driver_may_not() -> None:
    """A TAP, or another driver's receive queue, may vouch for a checksum: that is not passed on."""
    device, ends = HandDevice(), Ends()
    with Pump(attached(device), ends.port, worker=None) as pump:
        ends.waiting = [(NetHeader(flags=2, num_buffers=3), BIG[:60])]
        pump.poll()
        assert device.sent() == [BIG[:60]]


def test_software_lro_for_a_port_that_takes_it() -> None:
    segments = [b"".join(pieces) for pieces in segment(BIG, 1000)]
    device, ends = HandDevice(), Ends(offloads=3)
    with Pump(attached(device, lro="software", refuse="GUEST_CSUM"), ends.port, worker=None) as pump:
        device.give(*segments)
        pump.poll()
        ((header, frame),) = ends.got
        assert (header.gso_type, header.gso_size) == (1, 1000)
        assert [b"".join(pieces) for pieces in segment(frame, 1000)] == segments
    device, ends = HandDevice(), Ends()
    with Pump(attached(device, lro="software", refuse="GUEST_CSUM"), ends.port, worker=None) as pump:
        device.give(*segments)
        pump.poll()
        assert ends.frames == segments


# ---- life ----


@pytest.mark.threads
def test_a_pump_goes_on_over_everything() -> None:
    with ExitStack() as stack:
        device = NetDevice(Loopback(), mac=MAC, worker="own")
        stack.callback(device.close)
        nic = attached(device)
        stack.callback(nic.detach)
        ends = Ends()
        stack.enter_context(Pump(nic, ends.port))

        def works() -> None:
            ends.got.clear()
            ends.waiting = frames_of(10)
            wait_for(lambda: len(ends.got) >= 10, 20)

        def down_and_up() -> None:
            nic.down()
            nic.up()

        def detach_and_attach() -> None:
            nic.detach()
            nic.attach()

        works()
        for change in (nic.reset, down_and_up, detach_and_attach, nic.reset, detach_and_attach):
            change()
            works()
        stop = threading.Event()

        def feed() -> None:
            while not stop.is_set():
                if not ends.waiting:
                    ends.waiting = frames_of(50)
                time.sleep(0.0005)

        feeder = threading.Thread(target=feed)
        feeder.start()
        for _ in range(10):
            for change in (nic.reset, detach_and_attach):
                change()
        stop.set()
        feeder.join()
        ends.waiting = []
        time.sleep(0.01)
        works()


@pytest.mark.threads
def test_workers_of_ones_own() -> None:
    device, ends = HandDevice(), Ends()
    nic = attached(device)
    pump = Pump(nic, ends.port, worker=None)
    with Worker([task for pair in pump.tasks for task in pair]) as worker:
        ends.waiting = frames_of(20)
        got: list[bytes] = []
        wait_for(lambda: bool(got.extend(device.sent()) or len(got) == 20), 20)
        nic.detach()
        nic.attach()
        assert all(task in worker.tasks for pair in pump.tasks for task in pair)
        got.clear()
        ends.waiting = frames_of(20)
        wait_for(lambda: bool(got.extend(device.sent()) or len(got) == 20), 20)
    pump.close()


def test_owners() -> None:
    device = HandDevice()
    nic = attached(device)
    port = Port()
    pump = Pump(nic, port, worker=None)
    with pytest.raises(RuntimeError, match="attached"):
        Pump(nic, port)
    pump.close()
    pump.close()
    Pump(nic, port, worker=None).close()
    nic.detach()
    with pytest.raises(ConfigError, match="not attached"):
        Pump(nic, port)


# ---- sleep ----


@pytest.mark.threads
def test_buffers_are_free_soon_after_traffic_stops() -> None:
    """With nothing more to send, no interrupt and nobody who asks: the worker looks after them."""
    with ExitStack() as stack:
        device = NetDevice(Sink(), mac=MAC, worker="own")
        stack.callback(device.close)
        nic = attached(device)
        stack.callback(nic.detach)
        ends = Ends()
        stack.enter_context(Pump(nic, ends.port))
        queue = nic.pairs[0].transmit
        (view,) = nic.buffers(1, 60)
        nic.transmit([view])
        view.release()
        ends.waiting = frames_of(100)
        wait_for(lambda: queue.statistics()["opackets"] == 101, 20)
        wait_for(lambda: queue.small.nfree == queue.small.count, 5)


@pytest.mark.threads
def test_few_interrupts_under_load() -> None:
    with ExitStack() as stack:
        device = NetDevice(Sink(), mac=MAC, worker="own")
        stack.callback(device.close)
        nic = attached(device)
        stack.callback(nic.detach)
        generator = Generator(60, count=40_000)
        stack.enter_context(Pump(nic, generator))
        queue = nic.pairs[0].transmit
        wait_for(lambda: queue.statistics()["opackets"] == 40_000, 60)
        bell = nic.queues[1].interrupt
        assert bell is not None and bell.rings <= 40
        assert queue.statistics()["intrs"] <= 40_000 // 2048 + 1


@pytest.mark.threads
def test_idle_threads_sleep() -> None:
    with ExitStack() as stack:
        device = NetDevice(Port(), mac=MAC, worker="own")
        stack.callback(device.close)
        nic = attached(device)
        stack.callback(nic.detach)
        pump = stack.enter_context(Pump(nic, Loopback()))
        time.sleep(0.1)
        before = [worker.rounds for worker in pump.workers]
        time.sleep(0.3)
        assert all(worker.rounds - rounds < 2000 for worker, rounds in zip(pump.workers, before, strict=True))


@pytest.mark.threads
def test_the_driver_is_ticked() -> None:
    with ExitStack() as stack:
        device = NetDevice(Port(), mac=MAC, worker="own")
        stack.callback(device.close)
        nic = attached(device)
        stack.callback(nic.detach)
        seen: list[bool] = []
        nic.on_link = seen.append
        stack.enter_context(Pump(nic, Port(), tick=30))
        device.link = False
        wait_for(lambda: seen == [False], 20)  # at once, not after half a minute
        device.needs_reset("test")
        wait_for(lambda: nic.counters["resets"] == 1 and nic.attached, 20)
