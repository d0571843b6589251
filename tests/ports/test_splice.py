"""Two ports joined with no device between them: order, room, offloads, and what each kind is as an end."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from captures import frames_in
from taps import ALL, interface, listener, sender, udp

from bench.kernels.portbench import MemorySink, connect, send
from virtio.errors import ConfigError
from virtio.event.worker import Worker
from virtio.net.netns import Namespace
from virtio.net.ports import Cable, Generator, Loopback, PcapReader, PcapWriter, Port, Sink
from virtio.net.splice import Splice
from virtio.ports.splice import PortSplice


def run_dry(splice: Splice) -> None:
    while splice.poll():
        pass


@pytest.mark.parametrize("kind", ["raw", "tcp"])
@pytest.mark.parametrize("size", [60, 1514, 9000])
def test_every_frame_of_a_generator_comes_once_and_whole(kind: str, size: int) -> None:
    generator, sink = Generator(size, kind=kind, count=500), Sink()
    with Splice(generator, sink) as splice:
        run_dry(splice)
        there, back = splice.statistics()
    assert sink.faults() == {}
    assert sink.statistics()["send_packets"] == 500
    assert (there["tx0"]["frames"], there["tx0"]["bytes"]) == (500, 500 * size)
    assert (back["rx0"]["frames"], back["tx0"]["frames"], there["rx0"]["frames"]) == (500, 0, 0)


def test_what_the_other_end_cannot_do_is_done_on_the_way(tmp_path: Path) -> None:
    """Large TCP frames of a generator are in a capture file as they would be on a wire."""
    path = tmp_path / "x.pcap"
    with Splice(Generator(30000, kind="tcp", gso_size=1448, count=7), PcapWriter(path)) as splice:
        run_dry(splice)
        assert splice.statistics()[1]["rx0"]["executed"]["segments"] == 7 * 21
        for port in splice.ports:
            port.close()
    assert {len(frame) <= 1514 for frame in frames_in(path)} == {True}
    sink = Sink()
    with Splice(PcapReader(path), sink) as splice:
        run_dry(splice)
    assert sink.faults() == {}
    assert sink.statistics()["send_packets"] == 7 * 21


def test_both_ends_may_give(tmp_path: Path) -> None:
    a, b = Generator(count=100, flow=1), Generator(count=200, flow=2)
    with Splice(a, b) as splice:
        run_dry(splice)
    assert (a.statistics()["send_packets"], b.statistics()["send_packets"]) == (200, 100)
    assert a.faults() == b.faults() == {}


def test_a_loopback_gives_back() -> None:
    for full in ("wait", "drop"):
        generator, loopback = Generator(count=300), Loopback(full=full)
        with Splice(generator, loopback) as splice:
            run_dry(splice)
        assert generator.statistics()["send_packets"] == 300
        assert generator.faults() == {}
        with Splice(loopback, Generator(count=5)) as splice:  # it is free again
            run_dry(splice)
            assert splice.statistics()[1]["rx0"]["frames"] == 5


def test_nothing_is_lost_while_the_other_end_has_no_room() -> None:
    loopback, narrow = Loopback(), MemorySink(size=5, offloads=ALL)
    got = []
    with Splice(Generator(200, count=100), loopback) as splice:
        connect(loopback, 0, narrow)
        while len(got) < 100:
            splice.poll()
            got += [frame for _, frame in narrow.take()]
        assert splice.statistics()[1]["rx0"]["stalls"] >= 19
        connect(loopback, 0, None)
    sink = Sink()
    assert send(sink, [(None, [frame]) for frame in got]) == 100
    assert sink.faults() == {}


def test_what_was_read_waits_for_room(space: Namespace) -> None:
    loopback, narrow = Loopback(), MemorySink(size=3, offloads=ALL)
    got: list[bytes] = []
    with interface(space) as tap, Splice(tap, loopback) as splice:
        connect(loopback, 0, narrow)
        say = sender(space)
        for i in range(100):
            say(b"number %d" % i)
        while len(got) < 100:
            splice.poll()
            got += [frame[42:] for _, frame in narrow.take()]
        connect(loopback, 0, None)
    assert got == [b"number %d" % i for i in range(100)]


@pytest.mark.threads
def test_many_queues_and_workers() -> None:
    generator, sink = Generator(queues=3, count=1000), Sink(queues=4)
    workers = [Worker(), Worker(mode="busy")]
    with Splice(generator, sink, workers) as splice:
        for worker in workers:
            worker.start()
        while sink.statistics()["send_packets"] < 3000:
            pass
        for worker in workers:
            worker.stop()
        assert [splice.statistics()[1][f"rx{i}"]["frames"] for i in range(3)] == [1000] * 3
    assert sink.faults() == {}
    assert [worker.tasks for worker in workers] == [(), ()]


def test_ends_belong_to_one(tmp_path: Path) -> None:
    null = Port()
    with pytest.raises(ConfigError, match="at both ends"):
        Splice(null, null)
    with Splice(null, Sink()), pytest.raises(RuntimeError, match="is attached to"):
        Splice(Generator(), null)
    with Splice(null, Loopback()), pytest.raises(ValueError, match="queue 1 out of range"):
        PortSplice(null, Sink(queues=2), 1)


def test_of_two_ends_one_at_most_delivers_of_itself() -> None:
    one, other, loopback = Cable(), Cable(), Loopback()
    for a, b in ((one.a, other.b), (one.a, loopback), (loopback, one.a)):
        with pytest.raises(ConfigError, match="both deliver of themselves"):
            Splice(a, b)
    with Splice(one.a, Sink()) as splice, Splice(loopback, Loopback()) as idle:
        assert splice.poll() == idle.poll() == 0


def test_a_tap_into_a_file(space: Namespace, tmp_path: Path) -> None:
    """What the kernel leaves undone is done: the file holds frames as on a wire."""
    path = tmp_path / "x.pcap"
    with interface(space) as tap, Splice(tap, PcapWriter(path)) as splice:
        assert tap.granted_offloads & ~ALL == 0
        say = sender(space)
        for i in range(50):
            say(bytes([i]) * 1000)
        run_dry(splice)
        figures = splice.statistics()
    frames = frames_in(path)
    assert [frame[42] for frame in frames] == list(range(50))
    assert figures[1]["rx0"]["executed"]["checksums"] == 50
    for frame in frames:
        words = struct.unpack(">10H", frame[26:34] + b"\0\x11" + frame[38:40] + frame[34:42])
        total = sum(words) + sum(struct.unpack(">500H", frame[42:1042]))
        assert total % 0xFFFF == 0


def test_a_file_into_a_tap(space: Namespace, tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    PcapWriter(path).close()
    with interface(space) as tap, listener(space) as sock:
        with path.open("ab") as file:
            for i in range(20):
                frame = udp(b"number %d" % i)
                file.write(struct.pack("=IIII", i, 0, len(frame), len(frame)) + frame)
        with Splice(PcapReader(path), tap) as splice:
            run_dry(splice)
            assert {sock.recv(100) for _ in range(20)} == {b"number %d" % i for i in range(20)}
            assert splice.statistics()[1]["rx0"]["frames"] == 20


def test_a_tap_sees_itself_by_loopback(space: Namespace) -> None:
    with interface(space) as tap, Splice(tap, Loopback()) as splice:
        say = sender(space)
        for _ in range(30):
            say(b"x" * 500)
        run_dry(splice)
        there, back = splice.statistics()
    assert there["tx0"]["frames"] == there["rx0"]["frames"] == back["tx0"]["frames"] == 30
    assert there["port"]["send_packets"] == 30
