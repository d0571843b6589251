"""A turn of a task is bounded by work: whatever a guest asks for, others have theirs soon."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from formats import FORMATS
from naive_device import transmit
from netdev import attached
from nic import ALL, PACKED, RawNic, attach
from undone import NONE, payload, undone

from bench.kernels.devicebench import ScriptPort
from virtio import GuestMemory
from virtio.constants import NetFeature
from virtio.event.worker import Task, Worker
from virtio.net.device import NetDevice
from virtio.net.ports import Cable, CallPort, PcapWriter, Sink
from virtio.net.pump import Pump
from virtio.offload import NetHeader
from virtio.ports.splice import PortSplice

F = NetFeature
TURN = 20000  # units of work
SEGMENTS = 2040  # of a frame whose segments have 32 bytes: what a guest can ask for at most is 2048
GUEST = F.GUEST_CSUM | F.GUEST_TSO4 | F.GUEST_TSO6 | F.GUEST_ECN | F.GUEST_UFO
MEMORY = 48 << 20


def uncut(size: int = 32 * SEGMENTS) -> tuple[NetHeader, bytes]:
    """A frame that is cut into segments of 32 bytes."""
    return undone("tcp4", size, 32)


def guest(port: Any, *, packed: bool = False, without: int = 0, segments: int = 0, **options: Any) -> RawNic:
    device = NetDevice(port, **options)
    wanted = ALL & ~PACKED & ~int(without) | (PACKED if packed else 0)
    return attach(device, wanted, segments=segments, memory=GuestMemory.allocate(MEMORY))


def task(nic: RawNic, index: int = 1) -> Task:
    return nic.device._tasks[index]


def figure(nic: RawNic, *names: str, of: str = "tx0") -> int:
    found: Any = nic.device.statistics()[of]
    for name in names:
        found = found[name]
    return int(found)


def each_poll(polled: Task, count: Callable[[], int]) -> list[int]:
    """Poll until nothing is left; return by how much the count grew each time."""
    grown = []
    last = count()
    while polled.poll():
        grown.append(count() - last)
        last = count()
        assert len(grown) < 100_000
    return grown


# ---- how much a poll does ----


@FORMATS
@pytest.mark.parametrize("segments", [0, 10], ids=["direct", "indirect"])
def test_segments_of_a_poll(packed: bool, segments: int) -> None:
    """64 frames of 2,040 segments are not cut in one poll, which others would wait for."""
    nic = guest(ScriptPort(keep=False), packed=packed, segments=segments)
    nic.send([uncut()] * 3, splits=(12, 100, 1000) if segments else ())
    grown = each_poll(task(nic), lambda: figure(nic, "executed", "segments"))
    assert sum(grown) == 3 * SEGMENTS
    assert max(grown) <= TURN // 60 + 1
    assert figure(nic, "frames") == 3


@FORMATS
def test_segments_of_a_poll_that_another_guest_has_cut(packed: bool) -> None:
    """At the end of a cable, too, where the receiver's queue is locked meanwhile."""
    cable = Cable()
    nic, other = guest(cable.a, packed=packed), guest(cable.b, packed=packed, without=GUEST, queue_size=1024)
    nic.send([uncut()] * 2)
    got, grown = [], []
    while figure(nic, "frames") < 2:
        other.post(200, 256)
        task(nic).poll()
        frames = other.receive()
        grown.append(len(frames))
        got += [frame for _, frame in frames]
    assert got == 2 * transmit(*uncut())
    assert max(grown) <= TURN // 60 + 1


def test_bytes_of_a_poll() -> None:
    cable = Cable()
    nic, other = guest(cable.a), guest(cable.b)
    nic.send([(NONE, payload(60000))] * 20)
    other.post(20, 65600)
    grown = each_poll(task(nic), lambda: figure(nic, "bytes"))
    assert sum(grown) == 20 * 60000
    assert max(grown) <= TURN * 8 + 60000


@FORMATS
def test_descriptors_of_a_poll(packed: bool) -> None:
    """A burst of long chains is a short one."""
    nic = guest(Sink(), packed=packed, queue_size=32768, without=F.MQ)
    gpa, _ = nic.buffer(bytes(4096))
    for _ in range(64):
        nic.ring(1).enqueue([(gpa, 2)] * 500, (), None)
    queue = nic.device.device_queue(1)
    grown = each_poll(task(nic), lambda: queue.counters()["completions"])
    assert sum(grown) == 64
    assert max(grown) * 500 <= 4096 + 500


@FORMATS
@pytest.mark.parametrize("index", [0, 1], ids=["receive", "transmit"])
def test_no_more_is_walked_than_a_frame_may_have(packed: bool, index: int) -> None:
    """Where a chain names addresses outside memory behind its 2,048th piece, the device does not look."""
    port = ScriptPort()
    nic = guest(port, packed=packed, queue_size=32768)
    gpa, _ = nic.buffer(bytes(4096))
    pieces = [(gpa, 2)] * 3000 + [(1 << 40, 2)] * 29000
    nic.ring(index).enqueue(pieces if index else (), () if index else pieces, None)
    if index:
        assert task(nic).poll() == 1
        assert figure(nic, "dropped", "pieces") == 1
    else:
        port.give([(NONE, payload(1000))])
        assert task(nic, 0).poll() == 1
        assert figure(nic, "frames", of="rx0") == 1
    assert len(nic.ring(index).dequeue_burst(64)) == 1
    assert nic.device.device_queue(index).broken is None


def test_frames_of_a_poll_whose_port_is_slow() -> None:
    """What a frame costs besides its bytes counts too: Python objects, system calls."""
    bursts: list[int] = []
    nic = guest(CallPort(send=lambda frames: bursts.append(len(frames))))
    nic.send([(NONE, payload(60))] * 100)
    while task(nic).poll():
        pass
    assert sum(bursts) == 100
    assert max(bursts) <= TURN // 500


def test_a_poll_may_be_given_less() -> None:
    nic = guest(ScriptPort())
    nic.send([(NONE, payload(60))] * 64)
    assert 1 <= task(nic).poll(1) <= 2
    assert 2 <= task(nic).poll(500) <= 11
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"{bad}"):
            task(nic).poll(bad)


def test_frames_dropped_in_a_poll(tmp_path: Any) -> None:
    """Those with a header that cannot be are bounded as others are."""
    nic = guest(PcapWriter(tmp_path / "none.pcap"))
    for _ in range(200):
        nic.send_raw(NetHeader(gso_type=77).to_bytes(nic.header) + bytes(60))
    grown = each_poll(task(nic), lambda: sum(nic.device.statistics()["tx0"]["dropped"].values()))
    assert sum(grown) == 200
    assert max(grown) <= 64


# ---- a frame that is cut over many polls ----


@FORMATS
@pytest.mark.parametrize("splits", [(), (12,), (1, 13, 40, 70, 900, 30000)], ids=lambda splits: f"{len(splits)}")
def test_a_frame_is_whole_and_in_order(packed: bool, splits: tuple[int, ...]) -> None:
    port = ScriptPort()
    nic = guest(port, packed=packed)
    frames = [uncut(), (NONE, payload(60)), undone("tcp4", 3000, 500), uncut(32 * 700 + 5)]
    nic.send(frames, splits=splits)
    polls = 0
    while task(nic).poll():
        polls += 1
    assert polls > 8
    assert [frame for _, frame in port.take()] == [each for frame in frames for each in transmit(*frame)]
    assert nic.reap() == [0] * 4
    assert figure(nic, "executed", "frames") == 3


@pytest.mark.parametrize("in_place", [False, True], ids=["copied", "read"])
def test_a_frame_that_the_port_gives(in_place: bool) -> None:
    """Toward a guest, who does not accept it uncut."""
    port = ScriptPort(in_place=in_place)
    nic = guest(port, without=GUEST, queue_size=4096)
    nic.post(4096, 256)
    port.give([uncut(), uncut(32 * 300)])
    polls, got = 0, []
    while task(nic, 0).poll():
        polls += 1
        got += [frame for _, frame in nic.receive()]
        nic.post(300, 256)
    assert polls > 8
    assert got == [*transmit(*uncut()), *transmit(*uncut(32 * 300))]


def test_two_senders_of_one_queue() -> None:
    """Each frame goes on where it stopped, although segments of the other's come between."""
    cable = Cable(queues=2)
    nic = guest(cable.a, queue_pairs=2)
    other = guest(cable.b, without=GUEST, queue_size=4096)
    nic.control(4, 0, struct.pack("<H", 2))
    frames = uncut(), undone("tcp6", 32 * 1500, 32)
    other.post(4096, 256)
    for pair in range(2):
        nic.send([frames[pair]], pair=pair)
    got, turns = [], 0
    tasks = [task(nic, 1), task(nic, 3)]
    while sum([polled.poll() for polled in tasks]):
        turns += 1
        got += [frame for _, frame in other.receive()]
        other.post(1000, 256)
    assert turns > 5
    for frame in frames:
        wanted = transmit(*frame)
        assert [each for each in got if each[12:14] == wanted[0][12:14]] == wanted
    assert len(got) == SEGMENTS + 1500


def test_a_full_receiver_amid_a_frame() -> None:
    """What stopped for want of room goes on there, too, and a turn that is over is not taken for that."""
    cable = Cable(full="drop")
    nic, other = guest(cable.a), guest(cable.b, without=GUEST, queue_size=4096)
    other.post(4096, 256)
    nic.send([uncut()])
    got = []
    while task(nic).poll():
        got += [frame for _, frame in other.receive()]
    assert got == transmit(*uncut())
    assert cable.a.statistics()["send_dropped"] == 0
    assert figure(nic, "stalls") == 0


def test_the_pump() -> None:
    """It stops amid a frame that the device gives uncut, and goes on."""
    giver, taker = ScriptPort(), ScriptPort()
    frames = [uncut(), (NONE, payload(60)), uncut(32 * 900)]
    device = NetDevice(giver)
    nic = attached(device, idle=device.poll)
    with Pump(nic, taker, worker=None) as pump:
        giver.give(frames)
        device.poll()
        polls = 0
        while pump.poll():
            polls += 1
    assert polls > 8
    assert [frame for _, frame in taker.take()] == [each for frame in frames for each in transmit(*frame)]


def test_a_pump_that_is_reset_amid_a_frame() -> None:
    """The next frame is sent from its start."""
    giver, taker = ScriptPort(), ScriptPort()
    device = NetDevice(giver)
    nic = attached(device, idle=device.poll)
    with Pump(nic, taker, worker=None) as pump:
        giver.give([uncut()])
        device.poll()
        assert pump.poll()
        assert 0 < len(taker.take()) < SEGMENTS
        nic.down()
        nic.up()
        giver.give([uncut()])
        device.poll()
        while pump.poll():
            pass
        assert [frame for _, frame in taker.take()] == transmit(*uncut())


@pytest.mark.parametrize("drops", [False, True], ids=["goes on", "drops"])
def test_the_splice(drops: bool) -> None:
    """It stops amid a frame and goes on, as a device does; when it dropped the rest, the next begins at its start."""
    giver, taker = ScriptPort(in_place=drops), ScriptPort()  # the splice holds what it read in place
    frames = [uncut(), (NONE, payload(60)), uncut(32 * 900)]
    giver.give(frames)
    splice = PortSplice(giver, taker)
    splice.resume()
    if drops:
        assert splice.poll()
        assert 0 < len(taker.take()) < SEGMENTS
        splice.pause()
        splice.abandon()
        giver.give(frames)
        splice.resume()
    polls = 0
    while splice.poll():
        polls += 1
    assert polls > 8
    assert [frame for _, frame in taker.take()] == [each for frame in frames for each in transmit(*frame)]


@pytest.mark.parametrize("how", ["reset", "stop", "link"])
def test_an_end_amid_a_frame(how: str) -> None:
    """What comes after it, be it the same frame, is sent from its start."""
    port = ScriptPort()
    device = NetDevice(port)
    nic = attach(device, ALL & ~PACKED, memory=GuestMemory.allocate(MEMORY))
    nic.send([uncut()])
    assert task(nic).poll() == 1
    begun = len(port.take())
    assert 0 < begun < SEGMENTS
    if how == "reset":
        nic.detach()
        nic = attach(device, ALL & ~PACKED, memory=GuestMemory.allocate(MEMORY))
        nic.send([uncut()])
    elif how == "stop":
        queue = device.device_queue(1)
        device.stop_queue(1)
        device.start_queue(1, queue)
    else:
        device.link = False
        task(nic).poll()
        device.link = True
        nic.send([uncut()])
    while task(nic).poll():
        pass
    assert [frame for _, frame in port.take()] == transmit(*uncut())


# ---- whose turn it is ----


def fill(nic: RawNic, count: int, header: NetHeader, frame: bytes) -> None:
    """Make the same frame available, many times."""
    data = header.to_bytes(nic.header) + frame
    gpa, size = nic.buffer(data)
    for _ in range(count):
        nic.ring(1).enqueue([(gpa, size)], (), None)


SMALL = NONE, payload(60)


LOADS = {
    "small": SMALL, "usual": (NONE, payload(1514)), "large": (NONE, payload(60000)), "uncut": uncut(32 * 1000),
    "pieces": (NONE, payload(2000)),
}  # fmt: skip


def units(nic: RawNic, name: str) -> float:
    """Work done for a guest, whose port sums and compares each byte: of the figures that the device counts."""
    frames, sent, segments = figure(nic, "frames"), figure(nic, "bytes"), figure(nic, "executed", "segments")
    if name == "uncut":
        return frames * 50 + segments * (60 + 30 + 3 * (54 + 12 + 32) / 8)
    return frames * (50 + 30 + (50 + 100 * 8 if name == "pieces" else 0)) + 2 * sent / 8


@pytest.mark.parametrize("load", list(LOADS))
@pytest.mark.parametrize("other", list(LOADS))
def test_shares(load: str, other: str) -> None:
    """Two guests that want more than there is have equal shares of the work, whatever each sends."""
    worker = Worker()
    nics = [guest(Sink(), worker=worker, queue_size=32768) for _ in range(2)]
    for nic, name in zip(nics, (load, other), strict=True):
        header, frame = LOADS[name]
        data = header.to_bytes(nic.header) + frame
        gpa, size = nic.buffer(data)
        pieces = [(gpa + at, 20) for at in range(0, 2000, 20)] if name == "pieces" else [(gpa, size)]
        while nic.ring(1).nfree >= len(pieces):
            nic.ring(1).enqueue(pieces, (), None)
    for _ in range(25):
        worker.poll()
    shares = [units(nic, name) for nic, name in zip(nics, (load, other), strict=True)]
    assert 0.8 <= shares[0] / shares[1] <= 1.25, shares


def test_shares_of_a_guest_with_many_queues() -> None:
    """It has no more than one with a single queue."""
    worker = Worker()
    pairs = 1, 8
    nics = [guest(Sink(queues=n), worker=worker, queue_pairs=n, queue_size=4096) for n in pairs]
    nics[1].control(4, 0, struct.pack("<H", 8))
    rings = [(nic, nic.ring(2 * pair + 1)) for nic, n in zip(nics, pairs, strict=True) for pair in range(n)]
    header, frame = SMALL
    buffers = {id(nic): nic.buffer(header.to_bytes(nic.header) + frame) for nic in nics}
    for nic, ring in rings:
        while ring.nfree:
            ring.enqueue([buffers[id(nic)]], (), None)

    def sent() -> list[int]:
        return [sum(figure(nic, "frames", of=f"tx{i}") for i in range(n)) for nic, n in zip(nics, pairs, strict=True)]

    worker.poll()  # from now on it is known how many queues have something to do
    before = sent()
    for _ in range(10):
        worker.poll()
    one, many = (now - was for now, was in zip(sent(), before, strict=True))
    assert all(ring.outstanding for _, ring in rings) and one < 4096 - before[0]
    assert 0.8 <= one / many <= 1.25, (one, many)


@pytest.mark.threads
def test_a_task_is_added_in_the_next_round() -> None:
    """However much there is to do."""
    worker = Worker(mode="busy")
    rounds: list[int] = []
    came = threading.Event()

    def first(frames: list[Any]) -> None:
        if not rounds:
            rounds.append(worker.rounds)
            worker.add(waiting)

    def second(frames: list[Any]) -> None:
        rounds.append(worker.rounds)
        came.set()

    late = guest(CallPort(send=second), queue_size=32768)
    late.device.workers = None
    waiting = task(late)
    fill(late, 10, *SMALL)
    busy = guest(CallPort(send=first), worker=worker, queue_size=32768)
    fill(busy, 32767, *SMALL)
    with worker:
        assert came.wait(60)
    worker.remove(waiting)
    assert rounds[1] - rounds[0] <= 2


@pytest.mark.threads
def test_who_waits_for_a_queue_is_next() -> None:
    """A worker that takes the lock again and again lets a thread have it that pauses the task."""
    calls = []
    about, paused = threading.Event(), threading.Event()

    def pause() -> None:
        about.set()
        polled.pause()
        paused.set()

    def send(frames: list[Any]) -> None:
        calls.append(len(frames))
        if len(calls) == 1:
            thread.start()
            about.wait(60)
            time.sleep(0.1)  # until it waits: it cannot say so

    nic = guest(CallPort(send=send), queue_size=32768)
    polled = task(nic)
    thread = threading.Thread(target=pause)
    fill(nic, 30000, *SMALL)
    while not paused.is_set():
        polled.poll()
    thread.join()
    assert len(calls) == 1
