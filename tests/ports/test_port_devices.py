"""Ports behind whole devices: a driver, its rings and a device on either side, and every byte verified at the end."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import dpkt
import pytest
from waiting import wait_for

from virtio.constants import NetFeature
from virtio.net.device import NetDevice
from virtio.net.machine import Machine
from virtio.net.ports import Cable, CallPort, Generator, Loopback, PcapReader, PcapWriter, Port, Sink
from virtio.net.pump import Pump
from virtio.net.vtnet import Vtnet
from virtio.pci.probe import virtio_functions

N = NetFeature
OFFLOADS = int(
    N.CSUM | N.GUEST_CSUM | N.HOST_TSO4 | N.HOST_TSO6 | N.GUEST_TSO4 | N.GUEST_TSO6 | N.HOST_ECN | N.GUEST_ECN
    | N.HOST_UFO | N.GUEST_UFO | N.HOST_USO | N.GUEST_USO4 | N.GUEST_USO6
)  # fmt: skip
KINDS: list[tuple[Any, dict[str, Any]]] = [
    (64, {}),
    ([60, 1514, 300, 30], {}),
    (1514, {"kind": "tcp"}),
    (1514, {"kind": "tcp", "partial": True}),
    ([65549, 200, 9014], {"kind": "tcp", "gso_size": 1448}),
]


class Guest:
    """A machine with one NIC: ``port`` is behind its device, ``inside`` is what its driver is pumped to."""

    def __init__(
        self, stack: ExitStack, port: Port, inside: Port, *, threads: bool = False, pairs: int = 1, **options: Any
    ) -> None:
        self.machine = Machine(32 << 20)
        self.device = NetDevice(port, worker="own" if threads else None, queue_pairs=pairs, **options)
        stack.callback(self.device.close)
        self.machine.plug(self.device)
        (function,) = virtio_functions(self.machine.probe())
        self.nic = cast(Vtnet, self.machine.attach(function, pairs=pairs))
        stack.callback(self.nic.detach)
        self.stack, self.inside, self.threads = stack, inside, threads
        self.pump: Pump | None = None

    def run(self) -> None:
        """Let frames flow: when all who are to take them are there."""
        self.pump = Pump(self.nic, self.inside, worker="direction" if self.threads else None)
        self.stack.callback(self.pump.close)

    def poll(self) -> int:
        assert self.pump is not None
        return self.pump.poll() + self.device.poll()


def settle(guests: list[Guest], done: Callable[[], bool], threads: bool = False) -> None:
    """Work guests until they are done; fail after a while."""
    for guest in guests:
        if guest.pump is None:
            guest.run()
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end, [g.device.statistics() for g in guests]
        if threads:
            time.sleep(0.001)
        else:
            for guest in guests:
                guest.poll()


@contextmanager
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def arrived(sink: Sink, generator: Generator) -> Callable[[], bool]:
    """Say whether all that a generator gave is where it should be (frames may be cut, and small ones merged)."""

    def look() -> bool:
        given, got = generator.statistics(), sink.statistics()
        payload = given["receive_bytes"] - given["receive_packets"] * 54
        if generator.kind == "raw":
            return bool(generator.done and got["send_packets"] >= given["receive_packets"])
        return bool(generator.done and got["send_bytes"] - got["send_packets"] * 54 >= payload)

    return look


@pytest.mark.parametrize("withhold", [0, OFFLOADS], ids=["offloads", "none"])
@pytest.mark.parametrize("takes", [0, 0x1FF])
@pytest.mark.parametrize(("size", "options"), KINDS)
def test_from_the_guest_to_the_port(size: Any, options: dict[str, Any], takes: int, withhold: int) -> None:
    generator, sink = Generator(size, count=300, **options), Sink(offloads=takes)
    with ExitStack() as stack:
        guest = Guest(stack, sink, generator, withhold=withhold)
        settle([guest], arrived(sink, generator))
    assert sink.faults() == {}
    counts = sink.statistics()
    assert counts["foreign"] == 0
    if takes and not withhold:
        assert counts["send_packets"] == 300  # nothing was cut on the way


@pytest.mark.parametrize("withhold", [0, OFFLOADS], ids=["offloads", "none"])
@pytest.mark.parametrize(("size", "options"), KINDS)
def test_from_the_port_to_the_guest(size: Any, options: dict[str, Any], withhold: int) -> None:
    generator, sink = Generator(size, count=300, **options), Sink(offloads=0x1FF)
    with ExitStack() as stack:
        guest = Guest(stack, generator, sink, withhold=withhold)
        settle([guest], arrived(sink, generator))
    assert sink.faults() == {}
    assert generator.statistics()["receive_packets"] == 300


@pytest.mark.parametrize("withhold", [(0, 0), (0, OFFLOADS), (OFFLOADS, 0)], ids=["both", "a", "b"])
@pytest.mark.parametrize(("size", "options"), KINDS)
def test_cable_both_ways(size: Any, options: dict[str, Any], withhold: tuple[int, int]) -> None:
    """What one guest may leave undone and the other does not take is done on the way."""
    a, b = (Generator(size, count=300, flow=i, offloads=0x1FF, **options) for i in range(2))
    cable = Cable()
    with ExitStack() as stack:
        guests = [
            Guest(stack, end, inside, withhold=held) for end, inside, held in zip(cable, (a, b), withhold, strict=True)
        ]
        there, back = arrived(b, a), arrived(a, b)
        settle(guests, lambda: there() and back())
    assert (a.faults(), b.faults()) == ({}, {})
    for end in cable:
        assert end.statistics()["send_dropped"] == 0


@pytest.mark.threads
@pytest.mark.parametrize("pairs", [1, 2])
def test_cable_on_threads(pairs: int) -> None:
    """Each task on a thread that sleeps when there is nothing to do: nothing is lost, and no wake-up either."""
    a, b = (Generator([60, 1514, 590], count=20000, flow=8 * i, queues=pairs) for i in range(2))
    cable = Cable(queues=pairs)
    with ExitStack() as stack:
        guests = [
            Guest(stack, end, inside, threads=True, pairs=pairs, queue_size=64)
            for end, inside in zip(cable, (a, b), strict=True)
        ]
        there, back = arrived(b, a), arrived(a, b)
        settle(guests, lambda: there() and back(), threads=True)
    assert (a.faults(), b.faults()) == ({}, {})
    assert a.statistics()["send_packets"] == b.statistics()["send_packets"] == 20000 * pairs
    for end in cable:
        assert end.statistics()["send_dropped"] == 0


@pytest.mark.threads
def test_the_other_end_resets_in_mid_stream() -> None:
    """A sender may be asleep until the other end has room when that goes away: it must not take its bell along."""
    a, b = Generator(1514, verify=False), Sink()
    cable = Cable()
    with ExitStack() as stack:
        there = Guest(stack, cable.b, b, threads=True, queue_size=16)
        there.run()
        Guest(stack, cable.a, a, threads=True).run()
        for number in range(20):
            enough = b.statistics()["send_packets"] + 100
            wait_for(lambda enough=enough: b.statistics()["send_packets"] >= enough, 60)  # type: ignore[misc]
            if number % 2:
                there.pump.pause()  # so that the rings fill up, and the sender sleeps
                time.sleep(0.02)
                there.pump.resume()
            there.nic.reset()
    found = b.faults()
    found.pop("missing", None)  # while nobody was there
    assert found == {}


@pytest.mark.threads
def test_a_guest_that_does_not_take_frames_stops_its_sender_and_no_one_else() -> None:
    a, b = Generator(60, count=5000), Sink()
    c, d = Generator(60, count=5000), Sink()
    one, two = Cable(), Cable()
    with ExitStack() as stack:
        stuck = Guest(stack, one.b, b, threads=True)
        stuck.run()
        guests = [Guest(stack, end, inside, threads=True) for end, inside in zip(two, (c, d), strict=True)]
        stuck.pump.pause()
        Guest(stack, one.a, a, threads=True).run()
        settle(guests, arrived(d, c), threads=True)
        assert b.statistics()["send_packets"] < 5000
        stuck.pump.resume()
        settle([stuck], arrived(b, a), threads=True)
    assert (b.faults(), d.faults()) == ({}, {})
    assert one.a.statistics()["send_dropped"] == 0


@pytest.mark.threads
@pytest.mark.parametrize("threads", [False, True])
def test_loopback(threads: bool) -> None:
    inside = Generator([60, 1514, 9014], count=2000)
    with ExitStack() as stack:
        guest = Guest(stack, Loopback(), inside, threads=threads, mtu=9000)
        settle([guest], arrived(inside, inside), threads)
    assert inside.faults() == {}
    assert inside.statistics()["send_packets"] == 2000


def test_capture_and_replay(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    generator, sink = Generator(5054, kind="tcp", gso_size=1000, count=100), Sink()
    with ExitStack() as stack, PcapWriter(path) as writer:
        guest = Guest(stack, writer, generator)
        settle([guest], lambda: writer.statistics()["send_packets"] == 500)
    with path.open("rb") as file:
        frames = [frame for _, frame in dpkt.pcap.Reader(file)]
    assert {len(frame) for frame in frames} == {1054}  # the device did what the file cannot say
    reader = PcapReader(path)
    with ExitStack() as stack:
        guest = Guest(stack, reader, sink)
        settle([guest], lambda: reader.done and sink.statistics()["send_packets"] == 500)
    assert sink.faults() == {}
    raw = tmp_path / "raw.pcap"
    generator = Generator(5054, kind="tcp", gso_size=1000, count=100)
    with ExitStack() as stack, PcapWriter(raw, offloads=0x1FF) as writer:
        guest = Guest(stack, writer, generator)
        settle([guest], lambda: writer.statistics()["send_packets"] == 100)
    with raw.open("rb") as file:
        assert {len(frame) for _, frame in dpkt.pcap.Reader(file)} == {5054}


@pytest.mark.threads
@pytest.mark.parametrize("threads", [False, True])
def test_functions_of_the_users(threads: bool) -> None:
    """An echo in Python."""
    waiting: deque[bytes] = deque()

    def keep(frames: list[Any]) -> None:
        waiting.extend(frame for _, frame in frames)
        echo.wake()

    def give(limit: int) -> list[bytes]:
        return [waiting.popleft() for _ in range(min(limit, len(waiting)))]

    echo, inside = CallPort(keep, give), Generator([60, 1514], count=2000)
    with ExitStack() as stack:
        guest = Guest(stack, echo, inside, threads=threads)
        settle([guest], arrived(inside, inside), threads)
    assert inside.faults() == {}
    counts = echo.statistics()
    assert counts["send_packets"] == counts["receive_packets"] == 2000


@pytest.mark.threads
def test_a_function_that_takes_long_does_not_stop_python() -> None:
    """The device can be looked at, and paused, while the user's function runs under its queue's lock."""
    inside_it, go_on = threading.Event(), threading.Event()

    def slow(frames: object) -> None:
        inside_it.set()
        go_on.wait(30)

    with ExitStack() as stack:
        guest = Guest(stack, CallPort(slow), Generator(count=10), threads=True)
        guest.run()
        assert inside_it.wait(30)
        pausing = threading.Thread(target=guest.device.pause)
        pausing.start()
        pausing.join(0.05)
        assert pausing.is_alive()  # it waits for the burst
        go_on.set()
        pausing.join(30)
        assert not pausing.is_alive()


@pytest.mark.threads
def test_figures_may_be_read_while_frames_pass() -> None:
    a, b = (Generator([60, 1514, 9014], kind="tcp", gso_size=1000, count=3000, flow=8 * i) for i in range(2))
    with ExitStack() as stack:
        guests = [Guest(stack, end, inside, threads=True) for end, inside in zip(Cable(), (a, b), strict=True)]
        there, back = arrived(b, a), arrived(a, b)

        def look() -> bool:
            for guest in guests:
                assert guest.pump is not None
                guest.device.statistics()
                guest.nic.statistics()
                guest.pump.statistics()
                repr(guest.device)
                for slot in guest.device.queues:
                    assert slot.broken is None
                for pair in guest.nic.pairs:
                    assert 0 <= pair.receive.posted <= 256
                    assert pair.transmit.queue.broken is None
                    pair.receive.reasons()
                    pair.transmit.reasons()
                for worker in guest.pump.workers:
                    assert worker.rounds >= worker.sleeps >= 0
                for task in guest.device.tasks:
                    assert task.active
            return there() and back()

        settle(guests, look, threads=True)
    assert (a.faults(), b.faults()) == ({}, {})


@pytest.mark.threads
def test_a_function_may_ask_for_figures() -> None:
    """It runs under the queue's lock: to read figures takes none."""
    seen: list[int] = []

    def take(frames: object) -> None:
        seen.append(guest.device.statistics()["tx0"]["frames"])
        seen.append(guest.nic.statistics()["txq0.opackets"])

    with ExitStack() as stack:
        guest = Guest(stack, CallPort(take), Generator(count=100), threads=True)
        guest.run()
        wait_for(lambda: guest.device.statistics()["tx0"]["frames"] >= 100, 30)
    assert seen
