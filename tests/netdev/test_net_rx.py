"""The device's receive queue: frames of every kind into buffers of every shape, in both ring formats."""

from __future__ import annotations

import random

import pytest
from formats import FORMATS
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_device import transmit
from net_machine import GUEST, IN_ORDER, IN_PLACE, got, machine
from nic import ALL, PACKED, attach
from undone import CSUM, KINDS, NONE, payload, undone

from bench.kernels.devicebench import ScriptPort
from virtio import GuestMemory
from virtio.constants import Feature, NetFeature
from virtio.event.notifier import Bell
from virtio.event.worker import Worker
from virtio.net.device import NetDevice
from virtio.netdev.rxq import NetReceive, guest_offloads
from virtio.offload import NetHeader
from virtio.ports.port import Port

F = NetFeature


@FORMATS
@IN_PLACE
@pytest.mark.parametrize("without", [F(0), F.MRG_RXBUF], ids=["mergeable", "whole"])
@pytest.mark.parametrize("order", [0, IN_ORDER], ids=["any", "in-order"])
def test_frames_of_all_sizes(packed: bool, in_place: bool, without: F, order: int) -> None:
    device, nic, port = machine(packed=packed, without=without | IN_ORDER & ~order, in_place=in_place)
    sizes = [14, 15, 31, 32, 33, 60, 63, 64, 65, 127, 128, 129, 130, 255, 1000, 1514]
    frames = [(NONE, payload(size, size)) for size in sizes]
    nic.post(len(frames), 1526)
    port.give(frames)
    assert device.poll() == len(frames)
    assert got(nic) == frames
    figures = device.statistics()["rx0"]
    assert (figures["frames"], figures["bytes"], figures["dropped"]) == (len(frames), sum(sizes), {})


@FORMATS
@IN_PLACE
@pytest.mark.parametrize("splits", [(), (5,), (14, 34, 54, 700)])
def test_a_frame_over_many_buffers(packed: bool, in_place: bool, splits: tuple[int, ...]) -> None:
    device, nic, port = machine(packed=packed, in_place=in_place)
    frame = payload(5000)
    nic.post(256, 512)
    port.give([(NONE, frame), (NONE, frame[:500]), (NONE, frame[:501])], splits=splits)
    device.poll()
    frames = nic.receive()
    assert [header.num_buffers for header, _ in frames] == [10, 1, 2]
    assert [data for _, data in frames] == [frame, frame[:500], frame[:501]]
    assert device.statistics()["rx0"]["merged"] == 2


@FORMATS
@IN_PLACE
def test_num_buffers_and_lengths(packed: bool, in_place: bool) -> None:
    """Each buffer but the last is full, and the header stands in the first."""
    device, nic, port = machine(packed=packed, in_place=in_place, without=IN_ORDER)
    nic.post(256, 300)
    port.give([(NONE, payload(1000))])
    device.poll()
    buffers = nic.buffers()
    assert [length for _, length in buffers] == [300, 300, 300, 112]
    assert buffers[0][0][10:12] == b"\4\0"
    assert buffers[0][0][:10] == bytes(10)


@IN_PLACE
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("without", [F(0), F.MRG_RXBUF])
def test_a_header_in_a_buffer_of_its_own(in_place: bool, legacy: bool, without: F) -> None:
    """As drivers do that know no ANY_LAYOUT."""
    device, nic, port = machine(in_place=in_place, without=without, legacy=legacy)
    frame = payload(1000)
    nic.post(4, pieces=[nic.header, 600, 914])
    port.give([(NONE, frame)])
    device.poll()
    assert got(nic) == [(NONE, frame)]


@pytest.mark.parametrize(
    ("legacy", "without", "offer", "size"),
    [
        (True, F.MRG_RXBUF, 0, 10),
        (True, F(0), 0, 12),
        (False, F.MRG_RXBUF, 0, 12),
        (False, F(0), F.HASH_REPORT, 20),
        (False, F(0), F.GUEST_UDP_TUNNEL_GSO | F.HOST_UDP_TUNNEL_GSO, 24),
    ],
)
@IN_PLACE
def test_header_sizes(legacy: bool, without: F, offer: F, size: int, in_place: bool) -> None:
    device, nic, port = machine(legacy=legacy, without=without, offer=int(offer), in_place=in_place)
    assert nic.header == size
    header, frame = undone("tcp4", 100)
    nic.post(4, 500)
    port.give([(NONE, frame), (header, frame)])
    device.poll()
    assert got(nic) == [(NONE, frame), (header, frame)]


@FORMATS
@IN_PLACE
def test_back_pressure(packed: bool, in_place: bool) -> None:
    """What finds no room waits in the port; in order, and none twice."""
    device, nic, port = machine(packed=packed, in_place=in_place, without=F.MRG_RXBUF, queue_size=8)
    frames = [(NONE, payload(100, i)) for i in range(50)]
    port.give(frames)
    received: list[tuple[NetHeader, bytes]] = []
    while len(received) < len(frames):
        posted = nic.post(3)
        device.poll()
        received += got(nic)
        assert port.waiting() == len(frames) - len(received)
        assert posted
    assert received == frames
    assert device.statistics()["rx0"]["stalls"] > 10


@FORMATS
@IN_PLACE
def test_a_frame_waits_until_all_its_buffers_are_there(packed: bool, in_place: bool) -> None:
    """In the port, or, as how large it is shows only when it is read, with us; and those behind it wait, too."""
    device, nic, port = machine(packed=packed, in_place=in_place, mtu=5000, without=GUEST & ~F.GUEST_CSUM)
    frame = payload(5014)
    port.give([(NONE, frame), (NONE, frame[:60])])
    for _ in range(9):
        nic.post(1, 512)
        device.poll()
        assert port.waiting() == (1 if in_place else 2)
        assert nic.buffers() == []
    nic.post(1, 512)
    device.poll()
    assert nic.receive()[0][1] == frame
    nic.post(1, 512)
    device.poll()
    assert nic.receive()[0][1] == frame[:60]


def test_a_frame_that_waits_with_us_needs_no_more_of_the_port() -> None:
    device, nic, port = machine(in_place=True)
    port.give([(NONE, payload(1000))])
    nic.post(1, 512)
    assert device.poll() == 1
    assert port.waiting() == 0
    nic.post(1, 512)
    assert nic.queues[0].kick.rings == 1
    assert device.poll() == 1
    assert nic.receive()[0][1] == payload(1000)


@FORMATS
def test_a_frame_that_no_queue_can_take_is_dropped(packed: bool) -> None:
    device, nic, port = machine(packed=packed, queue_size=8)
    nic.post(8, 512)
    port.give([(NONE, payload(8 * 512 - 12 + 1)), (NONE, payload(60))])
    device.poll()
    assert nic.receive()[0][1] == payload(60)
    assert device.statistics()["rx0"]["dropped"] == {"too_large": 1}


def test_a_frame_that_no_queue_of_chains_can_take_is_dropped() -> None:
    """All descriptors are there, two to a buffer: no more will come."""
    device, nic, port = machine(queue_size=8, without=int(Feature.INDIRECT_DESC))
    nic.post(4, pieces=[200, 300])
    port.give([(NONE, payload(4 * 500 - 11)), (NONE, payload(4 * 500 - 12))])
    device.poll()
    assert [len(frame) for _, frame in nic.receive()] == [4 * 500 - 12]
    assert device.statistics()["rx0"]["dropped"] == {"too_large": 1}


def test_a_frame_over_more_buffers_than_can_be_held_is_dropped() -> None:
    """More wait, and would be no help. By a worker's rules, which do a burst: by hand, a poll would look for ever."""
    device, nic, port = machine(queue_size=2048, worker=Worker())
    nic.post(2000, 16)
    port.give([(NONE, payload(1088 * 16 - 11)), (NONE, payload(1088 * 16 - 12))])
    device.poll()
    assert [len(frame) for _, frame in nic.receive()] == [1088 * 16 - 12]
    assert device.statistics()["rx0"]["dropped"] == {"too_large": 1}


@FORMATS
@IN_PLACE
def test_a_buffer_too_small_is_not_lost(packed: bool, in_place: bool) -> None:
    """Not mergeable: the frame is dropped, its buffer takes the next."""
    device, nic, port = machine(packed=packed, in_place=in_place, without=F.MRG_RXBUF)
    nic.post(1, 100)
    port.give([(NONE, payload(89)), (NONE, payload(88))])
    device.poll()
    assert got(nic) == [(NONE, payload(88))]
    assert device.statistics()["rx0"]["dropped"] == {"too_large": 1}


@IN_PLACE
def test_very_many_buffers(in_place: bool) -> None:
    """Buffers of 64 bytes: the largest frame takes more of them than a port may be given pieces."""
    device, nic, port = machine(in_place=in_place, queue_size=2048)
    nic.post(2000, 64)
    port.give([(NONE, payload(65589)), (NONE, payload(40000))])
    device.poll()
    frames = nic.receive()
    assert [header.num_buffers for header, _ in frames] == [1026, 626]
    assert [frame for _, frame in frames] == [payload(65589), payload(40000)]


# ---- interrupts, kicks, memory ----


@FORMATS
def test_interrupts(packed: bool) -> None:
    """One for a burst, none while the driver wants none."""
    device, nic, port = machine(packed=packed)
    bell = nic.queues[0].interrupt
    assert bell is not None
    nic.post(64)
    nic.ring(0).disable_intr()
    port.give([(NONE, payload(60))] * 10)
    device.poll()
    assert not bell.answer()
    nic.receive()
    assert not nic.ring(0).enable_intr()
    port.give([(NONE, payload(60))] * 10)
    device.poll()
    assert bell.answer()
    assert bell.rings == 1


@FORMATS
def test_kicks_are_wanted_only_while_there_is_no_room(packed: bool) -> None:
    device, nic, port = machine(packed=packed, without=F.MRG_RXBUF)
    kick = nic.queues[0].kick
    nic.post(2)
    assert not kick.rings
    port.give([(NONE, payload(60))] * 3)
    device.poll()
    nic.post(1)
    assert kick.rings == 1
    device.poll()
    assert len(nic.receive()) == 3
    nic.post(5)
    assert kick.rings == 1


@FORMATS
def test_a_kick_comes_for_the_buffer_that_makes_it_enough(packed: bool) -> None:
    """Buffers that are there and too few: EVENT_IDX must not ask for a kick that was due before."""
    device, nic, port = machine(packed=packed)
    kick = nic.queues[0].kick
    port.give([(NONE, payload(1000))])
    nic.post(2, 400)
    device.poll()
    assert port.waiting() == 1
    before = kick.rings
    nic.post(1, 400)
    assert kick.rings == before + 1
    device.poll()
    assert port.waiting() == 0


@FORMATS
def test_frames_over_the_seams_of_regions(packed: bool) -> None:
    """Buffers that lie in two adjacent regions of memory."""
    base = 1 << 20
    memory = GuestMemory([(0, bytearray(base)), (base, bytearray(4096)), (base + 4096, bytearray(base))])
    port = ScriptPort()
    device = NetDevice(port)
    nic = attach(device, ALL & ~PACKED | (PACKED if packed else 0), memory=memory, pool=(0, base))
    queue = nic.ring(0)
    for at in (base - 5, base - 40 + 4096, base - 13):
        queue.enqueue((), [(at, 6000)], None)
        frame = payload(5900, at)
        port.give([(NONE, frame)])
        device.poll()
        assert queue.dequeue() == (None, 5912)
        assert memory.read(at, 12) == bytes(10) + b"\1\0"
        assert memory.read(at + 12, 5900) == frame


@FORMATS
@IN_PLACE
def test_dirty_log(packed: bool, in_place: bool) -> None:
    """What was written is in the log, and the buffers that were not are not."""
    _, nic, port = machine(packed=packed, in_place=in_place)
    gpa = nic.pool.allocate(16 * 4096, 4096)
    queue = nic.ring(0)
    for i in range(16):
        queue.enqueue((), [(gpa + 4096 * i, 4096)], i)
    nic.memory.start_log()
    port.give([undone("tcp4", 9000), (NONE, payload(60))])
    nic.device.poll()
    pages = [page - gpa // 4096 for page in nic.memory.dirty_pages()]
    assert [page for page in pages if 0 <= page < 16] == [0, 1, 2, 3]


# ---- at random ----

sizes = st.integers(14, 3000)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    packed=st.booleans(),
    in_place=st.booleans(),
    mergeable=st.booleans(),
    accept=st.lists(st.sampled_from(list(GUEST)), max_size=7),
    order=st.booleans(),
)
def test_any_mixture(seed: int, packed: bool, in_place: bool, mergeable: bool, accept: list[F], order: bool) -> None:
    """Frames of all kinds, buffers of all sizes, at any time: what arrives, when all is done, is what was sent."""
    rng = random.Random(seed)
    accepted = sum(set(accept), F(0))
    without = GUEST & ~accepted | (F(0) if mergeable else F.MRG_RXBUF) | (0 if order else IN_ORDER)
    device, nic, port = machine(packed=packed, in_place=in_place, without=without)
    given_frames: list[tuple[NetHeader, bytes]] = []
    for _ in range(rng.randint(1, 12)):
        kind = rng.choice([kind for kind in KINDS if kind != "vxlan"])
        size = rng.randint(0, 6000)
        frame = rng.choice([(NONE, payload(size + 14)), undone(kind, size), undone(kind, size + 1000, 999)])
        given_frames.append(frame)
    for frame in given_frames:
        port.give([frame], splits=[rng.randint(1, 200) for _ in range(rng.randint(0, 3))])
    received: list[tuple[NetHeader, bytes]] = []
    for _ in range(400):
        if mergeable:
            nic.post(rng.randint(1, 30), rng.choice([64, 300, 1500, 4096]))
        else:
            nic.post(rng.randint(1, 30), 7200)
        device.poll()
        received += got(nic)
    assert port.waiting() == 0
    assert [each for header, frame in received for each in transmit(header, frame)] == [
        each for header, frame in given_frames for each in transmit(header, frame)
    ]
    assert not device.statistics()["rx0"]["dropped"]


# ---- the object ----


def test_guest_offloads() -> None:
    assert guest_offloads(int(GUEST)) == 0x7F
    assert guest_offloads(int(F.GUEST_CSUM | F.MRG_RXBUF)) == CSUM


def test_arguments() -> None:
    _, nic, _ = machine()
    queue = nic.device.queues[0].queue
    assert queue is not None
    bell = Bell()
    with pytest.raises(ValueError, match=r"frame_max 13 out of range \(14 to 65589\)"):
        NetReceive(queue, Port(), 0, 0, frame_max=13, kick=bell, call=bell, trouble=bell)
    task = NetReceive(queue, Port(), 0, 0, kick=bell, call=bell, trouble=bell)
    assert not task.active
    assert task.poll() == 0
    with pytest.raises(TypeError, match="already"):
        task.__init__(queue, Port(), 0, 0, kick=bell, call=bell, trouble=bell)  # type: ignore[misc]
    with pytest.raises(ValueError, match="65 addresses"):
        task.filter(modes=0, mac=bytes(6), unicast=[bytes(6)] * 65)
