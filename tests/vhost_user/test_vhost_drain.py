"""What becomes of chains that a device has popped when the frontend stops their ring, without an inflight region."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from formats import FORMATS
from keeping_device import Draining, Keeping, send
from vhost_device import BUFFERS, Upper, exchange, running, served
from vhost_frontend import GPA, SIZE, Frontend, layout_of
from waiting import wait_for

from virtio import DeviceQueue, DriverQueue, Feature, GuestMemory
from virtio.vhost_user import ProtocolFeature, Server
from virtio.vhost_user.message import STATE, U64, Request
from virtio.vhost_user.vring import WRAP, packed_position, split_position


@contextmanager
def holding(device: Keeping, packed: bool, path: Path, **options: Any) -> Iterator[tuple[Frontend, DriverQueue]]:
    """A frontend whose texts 0 to 3 the device has popped."""
    with served(device, path, **options) as (server, frontend):
        driver = running(frontend, packed)
        send(frontend, driver, range(4))
        wait_for(lambda: len(device.kept) == 4)
        yield frontend, driver
        assert server.error is None


@FORMATS
def test_a_ring_stops_when_all_has_come_back(packed: bool, tmp_path: Path) -> None:
    device = Draining()
    with holding(device, packed, tmp_path / "s") as (frontend, driver):
        base = frontend.stop(0)
        assert base == ((8 | WRAP) * 0x10001 if packed else 4)  # of a packed ring, both halves
        assert driver.dequeue_burst() == [(3, 5), (2, 5), (1, 5), (0, 5)]
        frontend.start(0, layout_of(0, packed), base)
        send(frontend, driver, range(4, 6))
        wait_for(lambda: len(device.kept) == 2)
        assert device.texts == [b"text4", b"text5"]
        device.answer_all()
        assert driver.dequeue_burst() == [(5, 5), (4, 5)]
        for thread in device.threads:
            thread.join()


def test_a_frontend_that_goes_is_not_waited_for(tmp_path: Path) -> None:
    device = Keeping()
    with holding(device, False, tmp_path / "s", drain=3600) as (frontend, _):
        frontend.say(Request.GET_VRING_BASE, STATE.pack(0, 0))
        wait_for(lambda: device.queues[0].halted)
        frontend.socket.shutdown(socket.SHUT_RDWR)
        with Frontend(str(tmp_path / "s")) as other:
            assert other.ask_u64(Request.GET_FEATURES) & Feature.VERSION_1


@FORMATS
def test_what_does_not_come_back_comes_again(packed: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    device = Keeping()
    with holding(device, packed, tmp_path / "s", drain=0.1) as (frontend, driver):
        device.answer(0)
        device.answer(0)
        queue, stale = device.queues[0].queue, device.kept[0]
        assert queue is not None
        with caplog.at_level(logging.WARNING):
            base = frontend.stop(0)
        assert "ring 0 is stopped, and the device gave back all but 2 chains" in caplog.text
        assert "2 are done again when the ring goes on, 0 are lost" in caplog.text
        assert base & 0x7FFF == (4 if packed else 2)
        before = frontend.memory.read(GPA, SIZE)
        with pytest.raises(ValueError, match="not outstanding"):
            queue.add_used(stale)
        assert frontend.memory.read(GPA, SIZE) == before
        frontend.start(0, layout_of(0, packed), base)
        wait_for(lambda: len(device.kept) == 2)
        assert device.texts == [b"text2", b"text3"]
        device.answer(1)
        device.answer(0)
        assert driver.dequeue_burst() == [(0, 5), (1, 5), (3, 5), (2, 5)]


@FORMATS
def test_nothing_is_done_twice(packed: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The third chain came back before two earlier ones, which then never do; the fourth is done again."""
    device = Keeping()
    with holding(device, packed, tmp_path / "s", drain=0.1) as (frontend, driver):
        device.answer(2)
        with caplog.at_level(logging.WARNING):
            base = frontend.stop(0)
        assert "all but 3 chains" in caplog.text
        assert "1 are done again when the ring goes on, 2 are lost" in caplog.text
        frontend.start(0, layout_of(0, packed), base)
        wait_for(lambda: device.kept)
        send(frontend, driver, range(4, 6))
        wait_for(lambda: len(device.kept) == 3)
        assert device.texts == [b"text3", b"text4", b"text5"]
        device.answer(0, 1, 2)
        assert driver.dequeue_burst() == [(2, 5), (3, 5), (4, 5), (5, 5)]
        for i in range(100):  # the ring goes round without them
            number = 6 + i % 4
            send(frontend, driver, range(number, number + 1))
            wait_for(lambda: device.kept)
            assert device.texts == [b"text%d" % number]
            device.answer(0)
            assert driver.dequeue_burst()[0][0] == number
        frontend.stop(0)
        assert device.kept == []


@pytest.mark.timeout(60)
def test_nobody_else_waits_and_the_server_may_end(tmp_path: Path) -> None:
    device = Keeping()
    with served(Upper(), tmp_path / "other") as (_, other), Server(device, tmp_path / "s", drain=1000) as server:
        honest = running(other, False)
        with Frontend(str(tmp_path / "s")) as frontend:
            driver = running(frontend, False)
            send(frontend, driver, range(4))
            wait_for(lambda: len(device.kept) == 4)
            frontend.say(Request.GET_VRING_BASE, STATE.pack(0, 0))
            wait_for(lambda: device.queues[0].halted)
            assert exchange(other, honest, b"here") == b"HERE"
            send(frontend, driver, range(4, 6))
            device.kick(0)
            assert len(device.kept) == 4  # nothing more is taken
            server.close()


@FORMATS
def test_a_device_that_keeps_its_chains_for_long_says_so(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that waits for something to receive."""
    device = Keeping()
    monkeypatch.setattr(device, "queue_drain", lambda index: False)
    with holding(device, packed, tmp_path / "s", drain=1000) as (frontend, driver):
        device.answer(0)
        base = frontend.stop(0)
        frontend.start(0, layout_of(0, packed), base)
        wait_for(lambda: device.texts == [b"text1", b"text2", b"text3"])
        device.answer(2, 1, 0)
        assert driver.dequeue_burst() == [(0, 5), (3, 5), (2, 5), (1, 5)]


@FORMATS
def test_a_status_of_0_may_be_a_guest_that_is_stopped(packed: bool, tmp_path: Path) -> None:
    """QEMU 7.2 says it before it stops the rings; then it goes on."""
    device = Draining()
    features = Feature.VERSION_1 | (Feature.RING_PACKED if packed else 0)
    with served(device, tmp_path / "s", drain=30) as (_, frontend):
        use = frontend.negotiate(features, ProtocolFeature.REPLY_ACK | ProtocolFeature.STATUS)
        frontend.share_memory()
        driver = frontend.driver(0, layout_of(0, packed), use)
        frontend.start(0, layout_of(0, packed))
        send(frontend, driver, range(4))
        wait_for(lambda: len(device.kept) == 4)
        frontend.order(Request.SET_STATUS, U64.pack(0))
        assert driver.dequeue_burst() == [(3, 5), (2, 5), (1, 5), (0, 5)]
        base = frontend.stop(0)
        assert base & 0x7FFF == (8 if packed else 4)
        frontend.start(0, layout_of(0, packed), base)
        send(frontend, driver, range(4, 6))
        wait_for(lambda: device.texts == [b"text4", b"text5"])
        device.answer_all()
        assert driver.dequeue_burst() == [(5, 5), (4, 5)]
        for thread in device.threads:
            thread.join()


@FORMATS
def test_a_driver_that_begins_anew_waits_for_nothing(packed: bool, tmp_path: Path) -> None:
    device = Keeping()
    with holding(device, packed, tmp_path / "s", drain=1000) as (frontend, _):
        frontend.order(Request.RESET_DEVICE)
        assert device.kept == []
        frontend.memory.write(GPA, bytes(0x10000))
        layout = layout_of(0, packed)
        driver = frontend.driver(0, layout, Feature.VERSION_1 | (Feature.RING_PACKED if packed else 0))
        frontend.start(0, layout)
        send(frontend, driver, range(1))
        wait_for(lambda: device.texts == [b"text0"])


# ---- positions ----


@pytest.mark.parametrize(("popped", "used"), [(3, 1), (40, 9), (64, 62), (66, 64), (70, 66)])
def test_both_halves_of_a_packed_base_count(popped: int, used: int, tmp_path: Path) -> None:
    """Another backend stopped with chains that it had popped and not used, out of order."""
    with served(Upper(), tmp_path / "s") as (_, frontend):
        use = frontend.negotiate(Feature.VERSION_1 | Feature.RING_PACKED)
        frontend.share_memory()
        layout = layout_of(0, True)
        driver = frontend.driver(0, layout, use)
        other = DeviceQueue(frontend.memory, layout, features=use & ~(1 << 30))
        held = []
        for number in range(popped):
            driver.enqueue([(BUFFERS, 4)], cookie=number)
            held.append(other.pop())
            if number >= popped - used:
                other.add_used(held.pop())
                driver.dequeue_burst()
        state = other.state()
        base = state["next_avail"] | WRAP * state["avail_wrap"]
        base |= (state["next_used"] | WRAP * state["used_wrap"]) << 16
        frontend.start(0, layout, base)
        assert exchange(frontend, driver, b"and on") == b"AND ON"


LAYOUT = layout_of(0, True, 8)
AVAIL, USED = 0x80, 0x8000


@pytest.mark.parametrize(
    ("base", "flags", "expected"),
    [
        (0x0000_0000, 0, (0, 1, 0, 1)),  # fresh, of user-mode Linux
        (0x0000_8000, 0, (0, 1, 0, 1)),  # fresh, of DPDK
        (0x0000_8005, AVAIL, (5, 1, 5, 1)),  # one half
        (0x0000_0005, 0, (5, 0, 5, 0)),  # one half, in a lap of 0
        (0x0000_0005, AVAIL | USED, (5, 0, 5, 0)),  # slot 0 was used in the lap before
        (0x0000_0005, USED, (5, 0, 0, 0)),  # both: slot 0 is not used yet
        (0x8000_8005, AVAIL, (5, 1, 0, 1)),
        (0x8006_0001, AVAIL, (1, 0, 6, 1)),
        (0x0002_0002, 0, (2, 0, 2, 0)),
        (0x8005_8002, AVAIL, (2, 1, 2, 1)),  # used ahead of available: cannot be
        (0x0000_8000, USED, (0, 1, 0, 1)),  # fresh, of DPDK, in memory that was not cleared
    ],
)
def test_a_packed_base(base: int, flags: int, expected: tuple[int, ...]) -> None:
    memory = GuestMemory.allocate(0x1000, GPA)
    memory.write_u16(LAYOUT.desc + 14, flags)
    found = packed_position(base, memory, LAYOUT)
    assert tuple(found[key] for key in ("next_avail", "avail_wrap", "next_used", "used_wrap")) == expected


def test_a_packed_base_out_of_range() -> None:
    memory = GuestMemory.allocate(0x1000, GPA)
    for base in (8, 8 << 16):
        with pytest.raises(ValueError, match="slot 8"):
            packed_position(base, memory, LAYOUT)


@pytest.mark.parametrize(
    ("base", "stood", "expected"),
    [
        (3, None, (3, 3)),
        (0, None, (3, 3)),  # DPDK, to whoever connects anew
        (5, None, (3, 3)),  # of a backend that was killed
        (5, (5, 3), (5, 3)),  # of this connection
        (5, (5, 2), (3, 3)),  # of another life of the ring
        (4, (5, 3), (3, 3)),
    ],
)
def test_a_split_base(base: int, stood: tuple[int, int] | None, expected: tuple[int, int]) -> None:
    memory = GuestMemory.allocate(0x1000, GPA)
    layout = layout_of(0, False, 8)
    memory.write_u16(layout.device + 2, 3)
    memory.write_u16(layout.driver + 2, 7)
    found = split_position(base, memory, layout, stood, "s", 0)
    assert (found["next_avail"], found["next_used"]) == expected


@pytest.mark.parametrize(
    ("base", "avail", "used", "expected"),
    [
        (0, 8, 0xBEEF, 0),  # a guest that was booted again, in memory that was not cleared
        (0, 2, 3, 0),  # used ahead of available
        (0xFFFE, 1, 0x7777, 0xFFFE),
        (0, 9, 0, 0),  # the driver's fault, whatever counts
        (0, 9, 0xBEEF, 0xBEEF),
        (0, 9, 1, 1),  # DPDK says so at each new connection: both can be meant
        (0, 1, 0xFFFA, 0xFFFA),
    ],
)
def test_a_used_index_that_cannot_be_meant(base: int, avail: int, used: int, expected: int) -> None:
    memory = GuestMemory.allocate(0x1000, GPA)
    layout = layout_of(0, False, 8)
    memory.write_u16(layout.device + 2, used)
    memory.write_u16(layout.driver + 2, avail)
    found = split_position(base, memory, layout, None, "s", 0)
    assert (found["next_avail"], found["next_used"]) == (expected, expected)


class Asking(Upper):
    """Says when it wants kicks, and never that it does not."""

    def notified(self, index: int) -> None:
        queue, more = self.device_queue(index), True
        while more:
            while chain := queue.pop():
                chain.write(chain.read().upper())
                queue.add_used(chain)
            more = queue.enable_notification()


@pytest.mark.parametrize("waits", [False, True], ids=["nothing waits", "chains wait"])
@pytest.mark.parametrize("features", [0, Feature.EVENT_IDX], ids=["flags", "event index"])
@pytest.mark.parametrize("garbage", [b"\x01", b"\xa5\x5a\x77"], ids=bytes.hex)
@FORMATS
def test_what_the_device_writes_is_garbage_before(
    packed: bool, garbage: bytes, features: int, waits: bool, tmp_path: Path
) -> None:
    """The driver starts again in memory that was not cleared, and kicks only when it is asked to."""
    with served(Asking(), tmp_path / "s") as (server, frontend):
        use = frontend.negotiate(Feature.VERSION_1 | features | (Feature.RING_PACKED if packed else 0))
        frontend.share_memory()
        layout = layout_of(0, packed)
        driver = frontend.driver(0, layout, use)
        if waits:
            driver.enqueue([(BUFFERS, 4)], [(BUFFERS + 0x1000, 16)], cookie=0)
        gpa, length = layout.areas[2]
        frontend.memory.write(gpa, (garbage * length)[:length])
        frontend.start(0, layout, 0x8000 if packed else 0)
        assert frontend.ask_u64(Request.GET_FEATURES)
        wait_for(lambda: driver.nused == waits)
        driver.dequeue_burst()
        for number in range(200):
            driver.enqueue([(BUFFERS, 4)], [(BUFFERS + 0x1000, 16)], cookie=number)
            if driver.notify():
                frontend.kick(0)
            wait_for(lambda: driver.nused)
            assert [cookie for cookie, _ in driver.dequeue_burst()] == [number]
        assert server.error is None


@pytest.mark.timeout(60)
def test_a_queue_that_broke_is_not_waited_for(tmp_path: Path) -> None:
    device = Upper()
    with served(device, tmp_path / "s", drain=1000) as (_, frontend):
        driver = running(frontend, False)
        driver.enqueue([(BUFFERS, 4)], [], cookie=None)  # no room for an answer
        driver.notify()
        frontend.kick(0)
        wait_for(lambda: device.queues[0].broken)
        frontend.stop(0)
