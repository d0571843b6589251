"""Hostile guests against the network device, beside an honest one in the same process that loses nothing."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from formats import FORMATS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nic import ALL, PACKED, RawNic, attach
from rawring import BASE, DATA, INDIRECT, SIZE, TABLE, WRITE, RawRing
from ring_faults import CASES
from undone import NONE, payload, undone
from waiting import wait_for

from bench.kernels.devicebench import ScriptPort
from virtio import GuestMemory
from virtio.constants import Feature, NetFeature
from virtio.event.worker import Worker
from virtio.net.device import NetDevice
from virtio.offload import NetHeader
from virtio.ports.cable import Cable

F = NetFeature
QUEUES = pytest.mark.parametrize("index", [0, 1], ids=["receive", "transmit"])


class Victim(RawRing):
    """A queue of a live device, to be written to as raw bytes, where rawring's cases expect it."""

    def __init__(self, nic: RawNic, index: int) -> None:
        self.packed = nic.queues[index].layout.is_packed
        self.memory = nic.memory
        self.layout = nic.queues[index].layout
        self.published = 0


class World:
    """A device with a guest that may do anything, and one with a guest that works, in one process."""

    def __init__(self, packed: bool, worker: Any = None, without: int = 0, offloads: int = 0) -> None:
        wanted = ALL & ~PACKED & ~without & ~int(Feature.IN_ORDER) | (PACKED if packed else 0)
        self.port, self.good_port = ScriptPort(offloads=offloads), ScriptPort(offloads=offloads)
        self.device = NetDevice(self.port, queue_size=SIZE, worker=worker)
        self.nic = attach(
            self.device, wanted, memory=GuestMemory.allocate(1 << 20, BASE), pool=(0x40000, (1 << 20) - 0x30000)
        )
        self.good_device = NetDevice(self.good_port, worker=worker)
        self.good = attach(self.good_device, wanted)
        self.number = 0

    def poll(self) -> None:
        self.device.poll()
        self.good_device.poll()

    def honest(self, count: int = 20) -> None:
        """Move frames through the honest device: all arrive."""
        frames = [(NONE, payload(60, self.number + i)) for i in range(count)]
        self.number += count
        self.good.post(count)
        self.good.send(frames)
        self.good_port.give(frames)
        self.poll()
        assert self.good_port.take() == frames
        assert [frame for _, frame in self.good.receive()] == [frame for _, frame in frames]
        assert len(self.good.reap()) == count
        assert not self.good_device.status & 64


FAULTS = [
    pytest.param(packed, case, id=f"{'packed' if packed else 'split'}-{case.__name__}")
    for case, *errors, _ in CASES
    for packed, error in zip((False, True), errors, strict=True)
    if error is not None
]


@QUEUES
@pytest.mark.parametrize(("packed", "case"), FAULTS)
def test_ring_rules_broken(packed: bool, case: Callable[[RawRing], None], index: int) -> None:
    """The queue breaks, with a reason; the other queue goes on, and so does the other device; a reset heals."""
    world = World(packed)
    ring = Victim(world.nic, index)
    world.honest()
    world.nic.memory.write(DATA, bytes(12) + payload(60))
    ring.desc(0, DATA, 72, 0 if index else WRITE, 7 if packed else 0)
    case(ring)
    ring.publish(0, 1)
    world.port.give([(NONE, payload(60))] * 3)
    world.honest()
    assert world.device.status & 64
    assert world.device.reason is not None
    assert f"queue {index}" in world.device.reason
    if index:
        assert world.port.take() == [(NONE, payload(60))]
        world.nic.post(3)
        world.poll()
        assert len(world.nic.receive()) == 3
    else:
        assert world.nic.memory.read(DATA + 12, 60) == payload(60)
        assert world.device.statistics()["rx0"]["dropped"] == {"broken": 2}
        world.nic.send([(NONE, payload(60))] * 3)
        world.poll()
        assert len(world.port.take()) == 3
    world.honest()
    world.device.reset()
    again = attach(world.device, ALL & ~PACKED)
    again.send([(NONE, payload(60))])
    world.poll()
    assert len(world.port.take()) == 1
    world.honest()


@pytest.mark.parametrize(("packed", "case"), FAULTS)
def test_ring_rules_broken_in_the_control_queue(packed: bool, case: Callable[[RawRing], None]) -> None:
    world = World(packed)
    ring = Victim(world.nic, 2)
    ring.desc(0, DATA, 8, 0, 7 if packed else 0)  # a command without room for an answer
    case(ring)
    ring.publish(0, 1)
    world.nic.queues[2].kick.ring()
    world.honest()
    assert world.device.status & 64
    assert world.device.statistics()["control"] == {"refused": 1}
    world.nic.send([(NONE, payload(60))])
    world.poll()
    assert len(world.port.take()) == 1


@FORMATS
@QUEUES
def test_indices_that_jump(packed: bool, index: int) -> None:
    world = World(packed)
    layout = world.nic.queues[index].layout
    for value in (9, 0x8000, 0xFFFF):
        if packed:  # every descriptor available at once, in every wrap
            world.nic.memory.write(layout.desc, struct.pack("<QIHH", DATA, 100, value, 1 << 7) * SIZE)
        else:
            world.nic.memory.write_u16(layout.driver + 2, value)
        world.port.give([(NONE, payload(60))])
        world.honest()


def indirect_chain(world: World, pieces: list[tuple[int, int, int]], index: int) -> None:
    ring = Victim(world.nic, index)
    for i, (at, length, flags) in enumerate(pieces):
        more = 0 if i == len(pieces) - 1 else 1
        ring.entry(i, at, length, flags | more, i + 1)
    ring.desc(0, TABLE, 16 * len(pieces), INDIRECT, 0)
    ring.publish(0)


@FORMATS
def test_a_chain_of_bytes_that_overlap_the_ring(packed: bool) -> None:
    """A receive buffer over the ring itself: the guest harms itself alone."""
    world = World(packed)
    layout = world.nic.queues[0].layout
    indirect_chain(world, [(layout.desc, 100, WRITE), (layout.device & ~7, 64, WRITE)], 0)
    world.port.give([(NONE, b"\xff" * 150)] * 2)
    world.honest()
    world.honest()


@FORMATS
@pytest.mark.parametrize("offloads", [0, 0x1FF])
def test_net_header_garbage(packed: bool, offloads: int) -> None:
    """Random headers, on frames of every kind: each chain comes back, what goes out is bounded."""
    world = World(packed, offloads=offloads)
    rng = random.Random(packed + 2 * offloads)
    sent = 0
    for _ in range(300):
        header = bytearray(rng.randbytes(12))
        if rng.random() < 0.8:
            header[0] = rng.choice([0, 1])
            header[1] = rng.choice([0, 1, 3, 4, 5, 0x81, 0x84])
        if rng.random() < 0.5:
            header[6:8] = struct.pack("<H", rng.choice([14, 34, 54, 60]))
            header[8:10] = struct.pack("<H", rng.choice([6, 16]))
        frame = undone(rng.choice(["tcp4", "udp6", "tcp6-extension"]), rng.randint(0, 3000), 0)[1]
        world.nic.send_raw(bytes(header) + frame, splits=[rng.randint(1, 80)])
        world.device.poll()
        assert world.nic.reap() == [0]
        sent += len(world.port.take())
    figures = world.device.statistics()["tx0"]
    assert figures["frames"] + sum(figures["dropped"].values()) == 300
    assert sent <= 300 * 2048
    assert not world.device.status & 64
    world.honest()


def test_a_guest_that_asks_for_as_many_segments_as_it_can() -> None:
    """gso_size 1 on the largest frame: dropped, so one chain costs no more than a bounded number of frames."""
    world = World(False)
    header, frame = undone("tcp4", 60000, 1000)
    for size in range(1, 40):
        header.gso_size = size
        world.nic.send([(header, frame)])
        world.device.poll()
        assert len(world.port.take()) <= 2048
        world.nic.reap()
    assert world.device.statistics()["tx0"]["executed"]["dropped"] == {"count": 29}
    world.honest()


# ---- at random ----


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), packed=st.booleans(), offloads=st.sampled_from([0, 1, 0x1FF]))
def test_any_bytes_in_the_rings(seed: int, packed: bool, offloads: int) -> None:
    """Rings, tables, headers and buffers of random words: whatever the device makes of it, it goes on."""
    rng = random.Random(seed)
    world = World(packed, offloads=offloads)
    memory = world.nic.memory
    addresses = [DATA, DATA + 100, TABLE, BASE, 0, (1 << 64) - 8, BASE + (1 << 20) - 16, BASE + (1 << 20)]
    lengths = [0, 1, 11, 12, 16, 32, 64, 128, 1000, 70000, 0xFFFFFFFF]
    for _ in range(rng.randint(1, 6)):
        for index in range(3):
            layout = world.nic.queues[index].layout
            for i in range(SIZE):
                words = (
                    rng.choice(addresses), rng.choice(lengths), rng.choice([0, 1, 2, 3, 4, 7, 128, 0x8000, 129, 132]),
                    rng.choice([0, 1, 2, 3, 7, 8, 128, 0xFFFF]),
                )  # fmt: skip
                memory.write(layout.desc + 16 * i, struct.pack("<QIHH", *words))
                memory.write(TABLE + 16 * i, struct.pack("<QIHH", rng.choice(addresses), *words[1:]))
            memory.write(layout.driver, rng.randbytes(4))
            if not packed:
                memory.write_u16(layout.driver + 2, rng.choice([1, 2, 8, 9]))
                memory.write(
                    layout.driver + 4, bytes(rng.randint(0, SIZE) if i % 2 == 0 else 0 for i in range(2 * SIZE))
                )
            world.nic.queues[index].kick.ring()
        memory.write(DATA, rng.randbytes(200))
        world.port.give([undone("tcp4", 3000, 500), (NONE, payload(60))])
        world.device.poll()
        world.port.take()
        if rng.random() < 0.3:
            world.device.reset()
            world.nic = attach(
                world.device, ALL & ~PACKED | (PACKED if packed else 0), memory=memory, pool=(0x40000, 0x80000)
            )
    world.honest()


@pytest.mark.threads
@pytest.mark.races
@FORMATS
def test_a_guest_that_scribbles_while_workers_run(packed: bool) -> None:
    """Another thread writes garbage to rings and buffers of one guest, all the time; the other's frames all arrive."""
    worker = Worker(spin_us=0)
    world = World(packed, worker=worker)
    stop = threading.Event()

    def scribble() -> None:
        rng = random.Random(packed)
        while not stop.is_set():
            world.nic.memory.write(0x40000 + rng.randrange(0x4000), rng.randbytes(rng.randint(1, 64)))
            for index in range(3):
                world.nic.queues[index].kick.ring()
            if world.device.status & 64:
                world.device.reset()
                world.nic = attach(
                    world.device, ALL & ~PACKED | (PACKED if packed else 0), memory=world.nic.memory,
                    pool=(0x40000, 0x80000),
                )  # fmt: skip
                world.nic.post(6)
                world.nic.send([undone("tcp4", 3000, 500)] * 6)

    thread = threading.Thread(target=scribble)
    worker.start()
    thread.start()
    received: list[bytes] = []
    try:
        for round_ in range(60):
            frames = [(NONE, payload(60, round_ * 20 + i)) for i in range(20)]
            world.good.post(20)
            world.good.send(frames)
            wait_for(lambda: world.good.ring(1).nused >= 20, 30)
            world.good.reap()
            received += [frame for _, frame in frames]
    finally:
        stop.set()
        thread.join()
        world.device.close()
        world.good_device.close()
        worker.stop()
    assert [frame for _, frame in world.good_port.take()] == received


# ---- through a cable ----


def cable(packed: bool) -> Iterator[tuple[NetDevice, RawNic]]:
    for port in Cable():
        device = NetDevice(port, queue_size=64)
        yield device, attach(device, ALL & ~PACKED | (PACKED if packed else 0))


@FORMATS
def test_a_broken_peer_on_a_cable(packed: bool) -> None:
    """What is sent to a guest that broke its queue is dropped: the sender's queue does not fill up."""
    (good, nic), (bad, hostile) = cable(packed)
    hostile.post(4)
    nic.send([(NONE, payload(60))] * 2)
    good.poll()
    assert len(hostile.receive()) == len(nic.reap()) == 2
    layout = hostile.queues[0].layout
    if packed:
        hostile.memory.write(layout.desc, struct.pack("<QIHH", 1 << 63, 100, 0, 0x80) * 64)
    else:
        hostile.memory.write_u16(layout.driver + 2, 0x4000)
    for _ in range(20):
        nic.send([(NONE, payload(60))] * 10)
        good.poll()
        bad.poll()
        assert nic.reap() == [0] * 10
    assert bad.status & 64
    assert not good.status & 64
    nic.post(4)
    hostile.send([(NONE, payload(60))] * 2)
    bad.poll()
    assert len(nic.receive()) == 2


@FORMATS
def test_what_a_guest_sends_to_another_is_checked(packed: bool) -> None:
    """Headers that lie reach nobody; those that ask for what the other did not accept are done for it."""
    (good, nic), (bad, hostile) = cable(packed)
    nic.post(40)
    nic.control(5, 0, bytes(8))
    tcp = undone("tcp4", 3000, 500)
    lie = NetHeader(flags=1, csum_start=60000, csum_offset=16)
    hostile.send([(lie, payload(60)), tcp, (NetHeader(flags=2), payload(60)), (NONE, payload(60))])
    bad.poll()
    frames = nic.receive()
    assert len(frames) == 8  # flags beside NEEDS_CSUM are ignored (5.1.9.2)
    assert all(header.flags == 0 and header.gso_type == 0 for header, _ in frames)
    assert bad.statistics()["tx0"]["dropped"] == {"csum_start": 1}
    assert good.statistics()["rx0"]["frames"] == 8
