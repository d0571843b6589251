"""The cable: frames go from one end's queue into the other's, or are dropped and counted."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest
from nic import RawNic

from bench.kernels.portbench import MemorySink, arm, connect, receive, send
from virtio.event.notifier import Bell
from virtio.event.worker import Worker
from virtio.net.device import NetDevice
from virtio.net.ports import Cable, CableEnd, Loopback, Port
from virtio.offload import NetHeader


def frames(count: int, first: int = 0) -> list[tuple[NetHeader | None, list[bytes]]]:
    return [(None, [bytes(14), (first + i).to_bytes(4, "big"), b"x" * i]) for i in range(count)]


def numbers(taken: list[tuple[NetHeader, bytes]]) -> list[int]:
    return [int.from_bytes(frame[14:18], "big") for _, frame in taken]


@pytest.fixture
def joined() -> tuple[CableEnd, CableEnd, MemorySink, MemorySink]:
    a, b = Cable()
    sink_a, sink_b = MemorySink(size=8), MemorySink(size=8)
    connect(a, 0, sink_a)
    connect(b, 0, sink_b)
    return a, b, sink_a, sink_b


def test_frames_arrive_at_the_other_end_only(joined) -> None:
    a, b, sink_a, sink_b = joined
    hdr = NetHeader(flags=1, csum_start=14, csum_offset=2)
    assert send(a, [(hdr, [b"abc", b"", b"defghijklmnopqrst"]), (None, [bytes(60)])]) == 2
    got = sink_b.take()
    assert [frame for _, frame in got] == [b"abcdefghijklmnopqrst", bytes(60)]
    assert (got[0][0].flags, got[0][0].csum_start, got[0][0].csum_offset) == (1, 14, 2)
    assert sink_a.take() == []
    assert send(b, frames(3)) == 3
    assert numbers(sink_a.take()) == [0, 1, 2]
    assert a.statistics() == {
        "send_packets": 2, "send_bytes": 80, "send_dropped": 0, "send_full": 0,
        "receive_packets": 3, "receive_bytes": 57, "receive_dropped": 0, "receive_full": 0,
    }  # fmt: skip
    assert b.statistics()["send_packets"] == 3
    assert receive(a, sink_a) == 0  # the sender's thread has done it


def test_a_burst_is_one_visit_and_one_bell(joined) -> None:
    a, _, _, sink_b = joined
    assert send(a, frames(8)) == 8
    assert sink_b.flushes == 1
    assert sink_b.bell.rings == 1
    assert sink_b.unlocked == 0


def test_nothing_taken_rings_nothing(joined) -> None:
    a, _, _, sink_b = joined
    assert send(a, frames(9)) == 8
    assert send(a, frames(1, 8)) == 0
    assert sink_b.bell.rings == 1
    assert sink_b.flushes == 2  # though: of a frame that is cut, segments may be in


def test_full_makes_the_sender_look_again(joined) -> None:
    a, _, _, sink_b = joined
    assert send(a, frames(11)) == 8
    assert a.statistics()["send_full"] == 1
    assert a.statistics()["send_dropped"] == 0
    assert arm(a, "send") == (False, [], 50, 0)
    assert not sink_b.armed  # the bell is the other device's, which may go away
    assert numbers(sink_b.take()) == list(range(8))
    assert send(a, frames(3, 8)) == 3
    assert arm(a, "send")[0]
    assert numbers(sink_b.take()) == [8, 9, 10]


def test_the_longer_nothing_moves_the_longer_it_waits(joined) -> None:
    a, _, _, sink_b = joined
    send(a, frames(9))
    waits = []
    for _ in range(40):
        ready, _, us, _ = arm(a, "send")
        assert not ready
        waits.append(us)
        time.sleep(0.0005)
        assert send(a, frames(1)) == 0
    assert waits == sorted(waits)
    assert waits[0] == 50
    assert waits[5] > 500
    assert waits[-1] == 4000
    sink_b.take()
    assert send(a, frames(11)) == 8  # something moved
    assert arm(a, "send")[2] == 50


def test_full_may_drop() -> None:
    cable = Cable(full="drop")
    sink = MemorySink(size=8)
    connect(cable.b, 0, sink)
    assert send(cable.a, frames(11)) == 11
    assert send(cable.a, frames(2)) == 2
    assert cable.a.statistics()["send_dropped"] == 5
    assert cable.a.statistics()["send_packets"] == 8
    assert cable.a.statistics()["send_full"] == 2
    assert arm(cable.a, "send") == (True, [], -1, 0)
    assert not sink.armed


def test_nobody_there_drops_and_counts(joined) -> None:
    a, b, _, sink_b = joined
    connect(b, 0, None)
    assert send(a, frames(5)) == 5
    assert a.statistics()["send_dropped"] == 5
    assert b.statistics()["receive_dropped"] == 5
    assert arm(a, "send")[0]
    assert sink_b.packets == 0
    connect(b, 0, sink_b)
    assert send(a, frames(5)) == 5
    assert numbers(sink_b.take()) == list(range(5))
    assert send(a, frames(9)) == 8
    assert not arm(a, "send")[0]
    connect(b, 0, None)
    assert send(a, frames(1)) == 1
    assert arm(a, "send")[0]  # it waits for nobody any more


def test_unplugged_drops_both_ways() -> None:
    cable = Cable()
    assert cable.up
    sinks = [MemorySink(size=8) for _ in range(2)]
    for end, sink in zip(cable, sinks, strict=True):
        connect(end, 0, sink)
    cable.up = False
    for end in cable:
        assert send(end, frames(3)) == 3
        assert end.statistics()["send_dropped"] == 3
        assert arm(end, "send")[0]
    cable.up = True
    for end in cable:
        assert send(end, frames(3)) == 3
    assert [sink.packets for sink in sinks] == [3, 3]


def test_queues_map_to_those_the_receiver_uses() -> None:
    a, b = Cable(queues=4)
    assert (a.queues, b.queues) == (4, 4)
    sinks = [MemorySink(size=8) for _ in range(4)]
    for i, sink in enumerate(sinks):
        connect(b, i, sink)

    def where() -> list[list[int]]:
        for queue in range(4):
            assert send(a, [(None, [bytes(14), queue.to_bytes(4, "big")])], queue) == 1
        return [numbers(sink.take()) for sink in sinks]

    assert where() == [[0, 1, 2, 3], [], [], []]  # one pair until it is told otherwise
    b.set_queues(4)
    assert where() == [[0], [1], [2], [3]]
    b.set_queues(2)
    assert where() == [[0, 2], [1, 3], [], []]
    for pairs in (0, 5, -1):
        with pytest.raises(ValueError, match=f"^{pairs} queue pairs: limit 1 to 4$"):
            b.set_queues(pairs)
    with pytest.raises(ValueError, match="queue 4 of a cable: limit 3"):
        connect(b, 4, sinks[0])


def test_everything_may_be_left_undone() -> None:
    a, b = Cable()
    assert a.offloads == b.offloads == 0x1FF


@pytest.mark.threads
def test_a_bell_that_takes_the_gil_rings_while_python_connects(port_and_receiver) -> None:
    """Rung under the wire's lock: whoever waits for that may not hold the GIL."""
    port, receiver = port_and_receiver
    stop = threading.Event()
    sink = MemorySink(size=8, keep=False)
    rung = []
    sink.ring_function(lambda: rung.append(1))

    def sender() -> None:
        while not stop.is_set():
            send(port, frames(4))

    thread = threading.Thread(target=sender, daemon=True)
    thread.start()
    connect(receiver, 0, sink)
    end = time.monotonic() + 20
    while len(rung) < 300 and time.monotonic() < end:
        connect(receiver, 0, sink)
        time.sleep(0)  # so that the sender runs, and rings
    stop.set()
    thread.join()
    assert len(rung) >= 300
    assert sink.unlocked == 0


@pytest.fixture(params=["cable", "loopback"])
def port_and_receiver(request: pytest.FixtureRequest) -> tuple[Port, Port]:
    if request.param == "cable":
        cable = Cable(full="drop")
        return cable.a, cable.b
    loop = Loopback(full="drop")
    return loop, loop


@pytest.mark.threads
def test_no_frame_comes_after_a_disconnect() -> None:
    a, b = Cable(full="drop")
    stop = threading.Event()

    def sender() -> None:
        while not stop.is_set():
            send(a, frames(8))

    thread = threading.Thread(target=sender)
    thread.start()
    try:
        for _ in range(500):
            sink = MemorySink(size=8, keep=False)
            connect(b, 0, sink)
            while not sink.packets:
                time.sleep(0)
            connect(b, 0, None)
            there = sink.packets
            time.sleep(0)
            assert sink.packets == there
    finally:
        stop.set()
        thread.join()


@pytest.mark.threads
def test_both_directions_at_once() -> None:
    """Each thread sends into what the other takes from: locks are taken in one order."""
    a, b = Cable()
    sinks = [MemorySink(size=16), MemorySink(size=16)]
    for end, sink in zip((a, b), sinks, strict=True):
        connect(end, 0, sink)
    got: list[list[int]] = [[], []]

    def work(end: CableEnd, sink: MemorySink, to: list[int]) -> None:
        sent = 0
        while sent < 3000 or len(to) < 3000:
            if sent < 3000:
                sent += send(end, frames(min(8, 3000 - sent), sent))
            to += numbers(sink.take())

    threads = [threading.Thread(target=work, args=(end, sinks[i], got[i])) for i, end in enumerate((a, b))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == [list(range(3000))] * 2


def test_arguments() -> None:
    for queues in (0, 257):
        with pytest.raises(ValueError, match=f"queues {queues} is not within 1 to 256"):
            Cable(queues=queues)
    with pytest.raises(ValueError, match="full 'never' is neither 'wait' nor 'drop'"):
        Cable(full="never")
    assert "a: 1 queues" in repr(Cable().a)
    assert repr(Cable(queues=2, full="drop")) == "<Cable: 2 queues, up, drop when full>"


def test_an_end_outlives_its_cable() -> None:
    a, _ = Cable()
    assert send(a, frames(2)) == 2
    assert a.statistics()["send_dropped"] == 2


def joined_devices() -> tuple[RawNic, RawNic, CableEnd, CableEnd]:
    a, b = Cable()
    near, far = RawNic(NetDevice(a)), RawNic(NetDevice(b))
    near.attach()
    far.attach()
    return near, far, a, b


def test_a_device_that_is_forgotten_and_not_closed_is_still_there_for_its_sender() -> None:
    """Its memory must not be: what the other end delivers would go into freed memory."""
    near, far, a, b = joined_devices()
    far.post(8)
    gone = weakref.ref(far)
    del far, b
    gc.collect()
    assert gone() is None
    for _ in range(20):
        near.send([(NetHeader(), bytes(60))])
        near.device.poll()
        near.reap()
    assert a.statistics()["send_packets"] == 8  # as many buffers as there were


@pytest.mark.threads
@pytest.mark.parametrize("port", ["cable", "loopback"])
@pytest.mark.parametrize("what", ["reset", "snapshot", "statistics", "link"])
@pytest.mark.parametrize("worker", [False, True])
def test_an_interrupt_may_do_what_it_likes_with_its_device(port: str, what: str, worker: bool) -> None:
    """It is rung by the sender's thread, when that holds no lock."""
    done = threading.Event()
    errors: list[BaseException] = []

    def interrupt() -> None:
        try:
            if what == "reset":
                device.reset()
            elif what == "link":
                device.link = not device.link
            else:
                getattr(device, what)()
        except BaseException as error:
            errors.append(error)
        done.set()

    with Worker(spin_us=0) as runner:
        of = runner if worker else None
        if port == "cable":
            a, b = Cable()
            sender, receiver = NetDevice(a, worker=of), NetDevice(b, worker=of)
        else:
            sender = receiver = NetDevice(Loopback(), worker=of)
        device = receiver
        near = RawNic(sender)
        near.attach()
        far = near
        if receiver is not sender:
            far = RawNic(receiver)
            far.attach()
        far.post(4)
        receiver.set_call(0, Bell(interrupt))
        near.send([(NetHeader(), bytes(60))])
        if not worker:
            sender.poll()
        assert done.wait(20)
        sender.close()
        receiver.close()
    assert errors == []
