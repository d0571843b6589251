"""The device's receive queue: guests that give bad buffers or break the ring, links that are down, filters."""

from __future__ import annotations

import random
from typing import Any

import pytest
from formats import FORMATS
from net_machine import IN_ORDER, IN_PLACE, got, machine
from nic import attach
from undone import NONE, payload

from virtio.net.device import NetDevice
from virtio.ports.cable import Cable


@FORMATS
@pytest.mark.parametrize("order", [0, IN_ORDER], ids=["any", "in-order"])
def test_buffers_that_are_none(packed: bool, order: int) -> None:
    """Readable, or smaller than a header: given back empty, and counted; frames go into those behind them."""
    device, nic, port = machine(packed=packed, without=IN_ORDER & ~order)
    queue = nic.ring(0)
    bad = nic.pool.allocate(64)
    queue.enqueue([(bad, 64)], (), "readable")
    queue.enqueue([(bad, 32)], [(bad + 32, 32)], "both")
    queue.enqueue((), [(bad, 11)], "small")
    nic.post(1, 100)
    queue.enqueue([(bad, 64)], (), "between")
    nic.post(40, 100)
    port.give([(NONE, payload(60)), (NONE, payload(1000)), (NONE, payload(88))])
    device.poll()
    done = queue.dequeue_burst()
    assert [cookie for cookie, length in done if length == 0][:3] == ["readable", "both", "small"]
    assert device.statistics()["rx0"]["bad_chains"] == 4
    assert device.statistics()["rx0"]["frames"] == 3
    assert device.queues[0].queue is not None
    assert device.queues[0].queue.broken is None


@FORMATS
@IN_PLACE
@pytest.mark.parametrize("order", [0, IN_ORDER], ids=["any", "in-order"])
def test_bad_buffers_among_too_few(packed: bool, in_place: bool, order: int) -> None:
    """They are given back, and all before them, while a frame waits for more; they are never written to."""
    device, nic, port = machine(packed=packed, without=IN_ORDER & ~order, in_place=in_place)
    queue = nic.ring(0)
    bad = nic.pool.allocate(64)
    nic.memory.write(bad, b"\x55" * 64)
    frame = payload(3000)
    port.give([(NONE, frame)])
    rng = random.Random(packed + 2 * in_place)
    got_back: list[Any] = []
    for round_ in range(100):
        for _ in range(rng.randint(0, 2) if round_ < 20 else 0):
            queue.enqueue([(bad, 32)], [(bad + 32, 32)] if rng.random() < 0.5 else (), "bad")
        nic.post(rng.randint(0, 2), 100)
        device.poll()
        got_back += queue.dequeue_burst()
    assert nic.memory.read(bad, 64) == b"\x55" * 64
    data = b""
    for cookie, length in got_back:
        if cookie == "bad":
            assert length == 0
        else:
            data += nic.memory.read(cookie[0][0], length)
    assert data[12:] == frame


@FORMATS
@IN_PLACE
def test_no_chain_is_held_between_bursts(packed: bool, in_place: bool) -> None:
    device, nic, port = machine(packed=packed, in_place=in_place)
    nic.post(200, 400)
    for size in (60, 3000, 65000):
        port.give([(NONE, payload(size))])
        device.poll()
        assert device.queues[0].queue is not None
        state = device.queues[0].queue.state()
        assert state["next_avail"] == state["next_used"]
        assert state["outstanding"] == []
    assert [len(frame) for _, frame in nic.receive()] == [60, 3000, 65000]


@IN_PLACE
def test_a_broken_queue_takes_frames_no_more(in_place: bool) -> None:
    """They are dropped, so that a port behind which others are does not fill up; the device says NEEDS_RESET."""
    device, nic, port = machine(in_place=in_place)
    nic.post(2)
    port.give([(NONE, payload(60))] * 2)
    device.poll()
    nic.memory.write_u16(nic.queues[0].layout.driver + 2, 1000)
    port.give([(NONE, payload(60))] * 3)
    assert device.poll() == 3
    figures = device.statistics()["rx0"]
    assert (figures["frames"], figures["dropped"]) == (2, {"broken": 3})
    assert device.status & 64
    assert device.reason is not None
    assert "queue 0" in device.reason
    assert len(nic.receive()) == 2


# ---- links ----


@IN_PLACE
def test_the_link_is_down(in_place: bool) -> None:
    device, nic, port = machine(in_place=in_place)
    nic.post(8)
    device.link = False
    port.give([(NONE, payload(60))] * 3)
    assert device.poll() == 3
    assert nic.receive() == []
    assert device.statistics()["rx0"]["dropped"] == {"closed": 3}
    device.link = True
    port.give([(NONE, payload(60))])
    device.poll()
    assert len(nic.receive()) == 1


def test_a_frame_that_waits_with_us_is_dropped_with_the_link() -> None:
    device, nic, port = machine(in_place=True)
    port.give([(NONE, payload(1000)), (NONE, payload(60))])
    nic.post(1, 512)
    device.poll()
    assert port.waiting() == 1
    device.link = False
    device.poll()
    assert device.statistics()["rx0"]["dropped"] == {"closed": 2}
    device.link = True
    nic.post(3, 512)
    port.give([(NONE, payload(61))])
    device.poll()
    assert [frame for _, frame in nic.receive()] == [payload(61)]


def test_a_paused_queue_loses_nothing() -> None:
    """A cable's other end finds no room, and tries again."""
    (first, sender), (second, receiver) = ((device := NetDevice(end), attach(device)) for end in Cable())
    receiver.post(10)
    second.pause()
    sender.send([(NONE, payload(60))] * 5)
    assert first.poll() == 0
    assert sender.reap() == []
    second.resume()
    assert first.poll() == 5
    assert len(receiver.receive()) == 5


# ---- filters ----


@IN_PLACE
@pytest.mark.parametrize("splits", [(), (3, 13)])
def test_filter(in_place: bool, splits: tuple[int, ...]) -> None:
    device, nic, port = machine(in_place=in_place, mac="02:00:00:00:00:aa")
    nic.post(64, 256)
    own, other = bytes.fromhex("0200000000aa"), bytes.fromhex("0200000000ab")
    multi, broad = bytes.fromhex("01005e000001"), b"\xff" * 6
    assert nic.control(0, 0, b"\0") == 0
    frames = [(NONE, address + payload(60)) for address in (own, other, multi, broad)]
    port.give(frames, splits=splits)
    device.poll()
    assert got(nic) == [frames[0], frames[3]]
    assert device.statistics()["rx0"]["filtered"] == 2
