"""The device's transmit queue: what a guest sends goes out as it is meant, or not at all."""

from __future__ import annotations

import random
import select
import threading
from collections.abc import Iterator

import pytest
from formats import FORMATS
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_device import transmit
from net_machine import IN_ORDER, machine
from nic import ALL, PACKED, RawNic, attach
from undone import CSUM, EVERY, KINDS, NONE, payload, reassemble, sound, ufo, undone

from bench.kernels.devicebench import ScriptPort
from virtio import GuestMemory
from virtio.constants import Feature, NetFeature
from virtio.event.notifier import Bell
from virtio.event.worker import Worker
from virtio.net.device import NetDevice
from virtio.netdev.txq import NetTransmit
from virtio.offload import NetHeader
from virtio.ports.port import Port

F = NetFeature
HOST = F.CSUM | F.HOST_TSO4 | F.HOST_TSO6 | F.HOST_ECN | F.HOST_UFO | F.HOST_USO


@FORMATS
@pytest.mark.parametrize("order", [0, IN_ORDER], ids=["any", "in-order"])
@pytest.mark.parametrize(
    "splits", [(), (12,), (3,), (3, 9), (12, 26), (1, 2, 3, 4, 5, 20, 21, 70)], ids=lambda splits: f"{len(splits)}"
)
@pytest.mark.parametrize("segments", [0, 10], ids=["direct", "indirect"])
def test_frames(packed: bool, order: int, splits: tuple[int, ...], segments: int) -> None:
    """However the driver splits header and frame into pieces; the chains come back, with nothing written."""
    device, nic, port = machine(packed=packed, without=IN_ORDER & ~order, segments=segments)
    frames = [(NONE, payload(size, size)) for size in (14, 60, 64, 1000, 1514, 9000)]
    nic.send(frames, splits=splits)
    assert device.poll() == len(frames)
    assert port.take() == frames
    assert nic.reap() == [0] * len(frames)
    figures = device.statistics()["tx0"]
    assert (figures["frames"], figures["bytes"]) == (6, sum(len(frame) for _, frame in frames))
    assert figures["dropped"] == {}


@pytest.mark.parametrize(
    ("legacy", "without", "offer", "size"),
    [
        (True, F.MRG_RXBUF, 0, 10),
        (True, F(0), 0, 12),
        (False, F.MRG_RXBUF, 0, 12),
        (False, F(0), F.HASH_REPORT, 20),
        (False, F(0), F.HOST_UDP_TUNNEL_GSO | F.HOST_UDP_TUNNEL_GSO_CSUM, 24),
    ],
)
def test_header_sizes(legacy: bool, without: F, offer: F, size: int) -> None:
    device, nic, port = machine(legacy=legacy, without=without, offer=int(offer))
    assert nic.header == size
    frames = [undone("tcp4", 3000, 1000), (NONE, payload(60))]
    if size == 24:
        frames.append(undone("vxlan", 3000, 1000))
    nic.send(frames)
    device.poll()
    assert port.take() == frames


def test_the_largest_frame() -> None:
    device, nic, port = machine()
    nic.send([(NONE, payload(65589)), (NONE, payload(65590)), (NONE, payload(60))])
    device.poll()
    assert [len(frame) for _, frame in port.take()] == [65589, 60]
    assert device.statistics()["tx0"]["dropped"] == {"long": 1}


# ---- what is undone ----


@FORMATS
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "vxlan"])
def test_a_port_gets_what_it_takes(packed: bool, kind: str) -> None:
    device, nic, port = machine(packed=packed)
    frames = [undone(kind, 100), undone(kind, 5000, 1000)]
    nic.send(frames)
    device.poll()
    assert port.take() == frames
    figures = device.statistics()["tx0"]
    assert (figures["csum"], figures["gso"], figures["gso_bytes"]) == (2, 1, len(frames[1][1]))
    assert figures["executed"]["frames"] == 0


@FORMATS
@pytest.mark.parametrize("offloads", [0, CSUM, EVERY & ~CSUM])
@pytest.mark.parametrize("splits", [(), (12, 26, 46, 66, 800)])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "vxlan"])
def test_what_the_port_cannot_is_done_here(packed: bool, offloads: int, splits: tuple[int, ...], kind: str) -> None:
    device, nic, port = machine(packed=packed, offloads=offloads)
    frames = [undone(kind, 100), (NONE, payload(60)), undone(kind, 5000, 1000)]
    nic.send(frames, splits=splits)
    device.poll()
    got = port.take()
    assert all(not header.gso_type and not header.flags & ~offloads for header, _ in got)
    leave = [each for header, frame in got for each in transmit(header, frame)]
    assert leave == [each for header, frame in frames for each in transmit(header, frame)]
    assert nic.reap() == [0, 0, 0]


def test_a_port_whose_offloads_change() -> None:
    device, nic, port = machine()
    frame = undone("tcp4", 5000, 1000)
    nic.send([frame])
    device.poll()
    assert port.take() == [frame]
    port.set_offloads(0)
    nic.send([frame])
    device.poll()
    assert [data for _, data in port.take()] == transmit(*frame)


@FORMATS
def test_fragments(packed: bool) -> None:
    device, nic, port = machine(packed=packed, offloads=CSUM)
    nic.send([ufo(4000, 1000)])
    device.poll()
    got = port.take()
    assert all(header == NONE for header, _ in got)
    assert reassemble([frame for _, frame in got])[8:] == payload(4000)


def test_guest_memory_is_not_written() -> None:
    """What a guest gave to read is as it was, whatever is done to its frame on the way."""
    device, nic, port = machine(offloads=0)
    header, frame = undone("tcp4", 5000, 1000)
    data = header.to_bytes(nic.header) + frame
    gpa, size = nic.buffer(data)
    nic.ring(1).enqueue([(gpa, size)], (), [(gpa, size)])
    device.poll()
    assert len(port.take()) == 5
    assert nic.memory.read(gpa, size) == data


# ---- back-pressure ----


@FORMATS
@pytest.mark.parametrize("order", [0, IN_ORDER], ids=["any", "in-order"])
@pytest.mark.parametrize("offloads", [0, EVERY], ids=["cut", "whole"])
def test_a_port_that_is_full(packed: bool, order: int, offloads: int) -> None:
    """Nothing is lost, doubled or reordered, whatever room there is at a time, in the middle of a cut frame too."""
    device, nic, port = machine(packed=packed, without=IN_ORDER & ~order, offloads=offloads)
    rng = random.Random(offloads + packed)
    frames = []
    for i in range(60):
        kind = rng.choice(["tcp4", "udp6"])
        frames.append(rng.choice([(NONE, payload(60, i)), undone(kind, 100 + i), undone(kind, 3000 + i, 500)]))
    nic.send(frames)
    got = []
    returned = []
    while len(returned) < len(frames):
        port.room = rng.randint(0, 9)
        device.poll()
        got += port.take()
        returned += nic.reap()
        state = nic.device.queues[1].queue
        assert state is not None
        assert state.state()["outstanding"] == []
    assert [each for header, frame in got for each in transmit(header, frame)] == [
        each for header, frame in frames for each in transmit(header, frame)
    ]
    assert port.refused > 10
    assert device.statistics()["tx0"]["frames"] == len(frames)


def test_dropped_frames_count_once() -> None:
    """Also those behind a frame that the port did not take."""
    device, nic, port = machine()
    nic.send([(NONE, payload(60))])
    nic.send_raw(bytes(20))
    nic.send([(NONE, payload(60))])
    port.room = 0
    for _ in range(5):
        assert device.poll() == 0
    assert device.statistics()["tx0"]["dropped"] == {}
    port.room = -1
    assert device.poll() == 3
    assert device.statistics()["tx0"]["dropped"] == {"short": 1}


def test_a_frame_cut_in_part_is_forgotten_with_its_chain() -> None:
    """After the link was down another frame is first: it is sent whole."""
    device, nic, port = machine(offloads=0)
    first, second = undone("tcp4", 3000, 500), undone("tcp4", 3001, 500)
    nic.send([first, second])
    port.room = 2
    device.poll()
    assert len(port.take()) == 2
    device.link = False
    assert device.poll() == 2
    device.link = True
    nic.send([second])
    port.room = -1
    device.poll()
    assert [frame for _, frame in port.take()] == transmit(*second)


def test_a_frame_cut_in_part_that_the_guest_spoils() -> None:
    """What it is now is dropped; the frame behind it is sent whole."""
    device, nic, port = machine(offloads=0)
    first, second = undone("tcp4", 3000, 500), undone("tcp4", 3001, 500)
    data = first[0].to_bytes(nic.header) + first[1]
    gpa, size = nic.buffer(data)
    nic.ring(1).enqueue([(gpa, size)], (), [(gpa, size)])
    nic.send([second])
    port.room = 2
    device.poll()
    assert len(port.take()) == 2
    nic.memory.write(gpa, b"\xff" * 12)
    port.room = -1
    device.poll()
    assert [frame for _, frame in port.take()] == transmit(*second)
    assert device.statistics()["tx0"]["dropped"] == {"csum_start": 1}


# ---- bad guests ----


def bad_frames() -> Iterator[tuple[str, bytes]]:
    tcp = undone("tcp4", 3000, 1000)[1]

    def raw(frame: bytes = tcp, **fields: int) -> bytes:
        return NetHeader(**fields).to_bytes(12) + frame

    yield "short", b""
    yield "short", bytes(11)
    yield "short", bytes(12)
    yield "short", bytes(12 + 13)
    yield "csum_start", raw(flags=1, csum_start=4000)
    yield "csum_offset", raw(flags=1, csum_start=3000, csum_offset=2000)
    yield "csum_offset", raw(flags=1, csum_start=len(tcp) - 17, csum_offset=16)
    yield "gso_type", raw(flags=1, gso_type=2, csum_start=34, csum_offset=16, gso_size=1)
    yield "gso_type", raw(flags=1, gso_type=0x1F, csum_start=34, csum_offset=16, gso_size=1)
    yield "gso_size", raw(gso_type=1)
    yield "gso_size", raw(flags=1, gso_type=1, csum_start=34, csum_offset=16)
    yield "gso_offset", raw(flags=1, gso_type=1, csum_start=34, csum_offset=6, gso_size=9)
    yield "tunnel_feature", raw(flags=1, gso_type=0x21, csum_start=34, csum_offset=16, gso_size=9)
    yield "tunnel_type", raw(flags=1, gso_type=0x61, csum_start=34, csum_offset=16, gso_size=9)


@FORMATS
@pytest.mark.parametrize(("reason", "data"), list(bad_frames()))
def test_a_malformed_frame(packed: bool, reason: str, data: bytes) -> None:
    """It is dropped and counted, its chain comes back, and those around it go out."""
    device, nic, port = machine(packed=packed)
    good = (NONE, payload(60))
    nic.send([good])
    nic.send_raw(data or b"\0")
    nic.send([good])
    assert device.poll() == 3
    assert port.take() == [good, good]
    assert device.statistics()["tx0"]["dropped"] == {reason: 1}
    assert nic.reap() == [0, 0, 0]
    assert not device.status & 64


@pytest.mark.parametrize("bit", list(HOST & ~F.HOST_ECN))  # whose bit is a hint: test_odd_frames.py
def test_an_offload_that_was_not_negotiated(bit: F) -> None:
    kinds = {
        F.CSUM: ("tcp4", 0), F.HOST_TSO4: ("tcp4", 500), F.HOST_TSO6: ("tcp6", 500),
        F.HOST_USO: ("udp4", 500),
    }  # fmt: skip
    frame = ufo(2000, 1000) if bit == F.HOST_UFO else undone(kinds[bit][0], 2000, kinds[bit][1])
    device, nic, port = machine(without=bit)
    nic.send([frame, (NONE, payload(60))])
    device.poll()
    assert port.take() == [(NONE, payload(60))]
    assert sum(device.statistics()["tx0"]["dropped"].values()) == 1


def test_the_legacy_bit_for_all_offloads() -> None:
    """GSO stands for TSO of both versions, with ECN, and UFO (5.1.3.2)."""
    device, nic, port = machine(legacy=True, without=F.HOST_TSO4 | F.HOST_TSO6 | F.HOST_ECN | F.HOST_UFO)
    frames = [*(undone(kind, 2000, 500) for kind in ("tcp4", "tcp6", "tcp4-ecn")), ufo(2000, 1000)]
    nic.send([*frames, undone("udp4", 2000, 500)])
    device.poll()
    assert port.take() == frames
    assert device.statistics()["tx0"]["dropped"] == {"gso_feature": 1}


@FORMATS
def test_a_chain_with_writable_buffers(packed: bool) -> None:
    device, nic, port = machine(packed=packed)
    gpa, size = nic.buffer(bytes(12) + payload(60))
    more = nic.pool.allocate(64)
    nic.ring(1).enqueue([(gpa, size)], [(more, 64)], [(gpa, size)])
    nic.send([(NONE, payload(60))])
    device.poll()
    assert port.take() == [(NONE, payload(60))]
    assert nic.reap() == [0, 0]
    assert device.statistics()["tx0"]["dropped"] == {"writable": 1}


def test_a_frame_in_too_many_pieces() -> None:
    device, nic, port = machine(queue_size=4096)
    data = bytes(12) + payload(3000)
    nic.send_raw(data, splits=range(12, 12 + 1025))
    nic.send_raw(data, splits=range(13, 13 + 1023))
    device.poll()
    assert port.take() == [(NONE, payload(3000))]
    assert device.statistics()["tx0"]["dropped"] == {"pieces": 1}


@FORMATS
def test_a_broken_queue(packed: bool) -> None:
    """What was sent before is sent; the device says NEEDS_RESET; a reset heals."""
    device, nic, port = machine(packed=packed)
    nic.send([(NONE, payload(60))])
    layout = nic.queues[1].layout
    gpa = layout.desc + 16
    if packed:
        nic.memory.write(gpa, b"\xff" * 8 + (64).to_bytes(4, "little") + b"\1\0" + (1 << 7).to_bytes(2, "little"))
    else:
        nic.memory.write(gpa, b"\xff" * 8 + (64).to_bytes(4, "little") + bytes(4))
        nic.memory.write_u16(layout.driver + 6, 1)
        nic.memory.write_u16(layout.driver + 2, 2)
    device.poll()
    assert port.take() == [(NONE, payload(60))]
    assert device.status & 64
    assert device.reason is not None
    assert "queue 1" in device.reason
    nic.stop()
    for queue in nic.queues.values():
        queue.queue.drain()
    nic.reinit()
    nic.send([(NONE, payload(61))])
    device.poll()
    assert port.take() == [(NONE, payload(61))]


# ---- interrupts, kicks ----


@FORMATS
def test_interrupts(packed: bool) -> None:
    device, nic, port = machine(packed=packed)
    bell = nic.queues[1].interrupt
    assert bell is not None
    nic.ring(1).disable_intr()
    nic.send([(NONE, payload(60))] * 20)
    device.poll()
    assert not bell.rings
    nic.reap()
    nic.ring(1).enable_intr()
    nic.send([(NONE, payload(60))] * 20)
    device.poll()
    assert bell.rings == 1
    assert len(port.take()) == 40


def test_notify_on_empty() -> None:
    """Legacy: an interrupt when the ring runs empty, although the driver wants none (2.7.10.1)."""
    device, nic, _ = machine(legacy=True, without=int(Feature.EVENT_IDX))
    bell = nic.queues[1].interrupt
    assert bell is not None
    nic.ring(1).disable_intr()
    nic.send([(NONE, payload(60))] * 20)
    device.poll()
    assert bell.rings == 1


@FORMATS
def test_kicks_by_hand(packed: bool) -> None:
    """They stay on: whoever emulates polls when one comes."""
    device, nic, port = machine(packed=packed)
    kick = nic.queues[1].kick
    for i in range(1, 6):
        nic.send([(NONE, payload(60))])
        assert kick.rings == i
        device.poll()
    assert len(port.take()) == 5


# ---- interrupts wait for company, when a worker polls ----


def worked(packed: bool, size: int = 256) -> tuple[NetDevice, RawNic, Worker, Bell]:
    worker = Worker(spin_us=0)
    device, nic, _ = machine(packed=packed, without=int(Feature.EVENT_IDX), worker=worker, queue_size=size)
    bell = nic.queues[1].interrupt
    assert bell is not None
    return device, nic, worker, bell


@FORMATS
@pytest.mark.parametrize(("size", "hold"), [(256, 64), (16, 4)])
def test_an_interrupt_for_many(packed: bool, size: int, hold: int) -> None:
    device, nic, worker, bell = worked(packed, size)
    with device:
        for i in range(hold):
            assert bell.rings == 0
            assert len(nic.reap()) == min(i, 1)  # given back at once all the same
            nic.send([(NONE, payload(60))])
            worker.poll()
        assert bell.rings == 1


@FORMATS
def test_an_interrupt_when_nothing_more_comes(packed: bool) -> None:
    device, nic, worker, bell = worked(packed)
    with device:
        nic.send([(NONE, payload(60))])
        polls = 0
        while bell.rings == 0:
            worker.poll()
            polls += 1
            assert polls < 1000
        for _ in range(1000):
            worker.poll()
        assert bell.rings == 1


@FORMATS
def test_an_interrupt_waits_while_the_device_is_paused(packed: bool) -> None:
    device, nic, worker, bell = worked(packed)
    with device:
        nic.send([(NONE, payload(60))])
        worker.poll()
        device.pause()
        for _ in range(1000):
            worker.poll()
        assert bell.rings == 0
        device.resume()
        for _ in range(1000):
            worker.poll()
        assert bell.rings == 1


@FORMATS
def test_an_interrupt_when_the_queue_is_stopped(packed: bool) -> None:
    """With no lock held: what handles it may wait for another thread that wants the device."""
    device, nic, worker, _ = worked(packed)
    stuck = []

    def handle() -> None:
        other = threading.Thread(target=device.snapshot, daemon=True)
        other.start()
        other.join(30)
        stuck.append(other.is_alive())

    device.set_call(1, Bell(handle))
    with device:
        nic.send([(NONE, payload(60))])
        worker.poll()
        assert not stuck
        device.stop_queue(1)
        assert stuck == [False]


def test_no_interrupt_at_a_reset() -> None:
    device, nic, worker, bell = worked(False)
    with device:
        nic.send([(NONE, payload(60))])
        worker.poll()
        device.reset()
        assert bell.rings == 0


@FORMATS
def test_an_interrupt_before_sleep(packed: bool) -> None:
    device, nic, worker, bell = worked(packed)
    with device, worker:
        for i in range(1, 6):
            nic.send([(NONE, payload(60))])
            assert select.select([bell.fileno()], [], [], 60)[0]
            bell.answer()
            assert bell.rings == i


@FORMATS
def test_frames_over_the_seams_of_regions(packed: bool) -> None:
    base = 1 << 20
    memory = GuestMemory([(0, bytearray(base)), (base, bytearray(4096)), (base + 4096, bytearray(base))])
    port = ScriptPort(offloads=0)
    device = NetDevice(port)
    nic = attach(device, ALL & ~PACKED | (PACKED if packed else 0), memory=memory, pool=(0, base))
    header, frame = undone("tcp4", 6000, 1000)
    data = header.to_bytes(12) + frame
    for at in (base - 5, base - 12, base - 40, base - 66, base + 4000):
        memory.write(at, data)
        nic.ring(1).enqueue([(at, len(data))], (), [])
        device.poll()
        assert [each for _, each in port.take()] == transmit(header, frame)


# ---- at random ----


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), packed=st.booleans(), offloads=st.integers(0, EVERY), segments=st.booleans())
def test_any_mixture(seed: int, packed: bool, offloads: int, segments: bool) -> None:
    rng = random.Random(seed)
    device, nic, port = machine(packed=packed, offloads=offloads, segments=8 * segments)
    frames: list[tuple[NetHeader, bytes]] = []
    got: list[tuple[NetHeader, bytes]] = []
    for _ in range(20):
        batch = []
        for _ in range(rng.randint(0, 5)):
            kind = rng.choice([kind for kind in KINDS if kind != "vxlan"])
            size = rng.randint(0, 4000)
            batch.append(rng.choice([(NONE, payload(size + 14)), undone(kind, size), undone(kind, size + 500, 499)]))
        nic.send(batch, splits=[rng.randint(1, 300) for _ in range(rng.randint(0, 4))])
        frames += batch
        port.room = rng.choice([-1, 0, 1, 7])
        device.poll()
        got += port.take()
        nic.reap()
    port.room = -1
    device.poll()
    got += port.take()
    nic.reap()
    leave = [each for header, frame in got for each in transmit(header, frame)]
    assert leave == [each for header, frame in frames for each in transmit(header, frame)]
    assert nic.ring(1).empty


# ---- the object ----


def test_arguments() -> None:
    _, nic, _ = machine()
    queue = nic.device.queues[1].queue
    assert queue is not None
    bell = Bell()
    task = NetTransmit(queue, Port(), 0, 0, kick=bell, call=bell, trouble=bell)
    assert not task.active
    assert task.poll() == 0
    with pytest.raises(TypeError, match="already"):
        task.__init__(queue, Port(), 0, 0, kick=bell, call=bell, trouble=bell)  # type: ignore[misc]
    assert not sound(undone("tcp4", 10)[1])
