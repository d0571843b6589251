"""Regions that come and go around rings that run: REM_MEM_REG and ADD_MEM_REG, and tables without a ring's region.

A ring stands still while its memory is away, and goes on when that is back; so does one that comes upon a chain whose
memory is away. QEMU removes a region and adds its parts while its guest goes on.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from formats import FORMATS
from inflight_region import Region as Noted
from keeping_device import Draining, Keeping, send
from vhost_device import BUFFERS, Upper, exchange, served
from vhost_frontend import GPA, PROTOCOL_FEATURES, SIZE, UADDR, Frontend, layout_of
from vhost_guest import Guest
from waiting import wait_for

from virtio import Device, DriverQueue, Feature, GuestMemory, Region
from virtio.net import Loopback, NetDevice
from virtio.vhost_user import ProtocolFeature, Server
from virtio.vhost_user.message import NEED_REPLY, REGION, STATE, TABLE, U64, Request
from virtio.vhost_user.session import LOG_ALL

R = Request
HALF = SIZE // 2
LOW, HIGH = 0, HALF  # halves of the memory: all rings are in the low one, buffers may be in the high one
PROTOCOL = (
    ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIGURE_MEM_SLOTS | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.INFLIGHT_SHMFD | ProtocolFeature.STATUS
)  # fmt: skip
AWAY = GPA + HIGH + 0x1000


def region(half: int, gpa: int = GPA) -> bytes:
    return bytes(8) + REGION.pack(gpa + half, HALF, UADDR + half, half)


def add(frontend: Frontend, half: int, gpa: int = GPA) -> None:
    frontend.order(R.ADD_MEM_REG, region(half, gpa), [frontend.fd])


def remove(frontend: Frontend, half: int, gpa: int = GPA) -> None:
    frontend.order(R.REM_MEM_REG, region(half, gpa))


def table(frontend: Frontend, *halves: int) -> None:
    regions = b"".join(region(half)[8:] for half in halves)
    frontend.order(R.SET_MEM_TABLE, TABLE.pack(len(halves), 0) + regions, [frontend.fd] * len(halves))


def flags(packed: bool) -> int:
    return int(Feature.VERSION_1 | (Feature.RING_PACKED if packed else 0) | PROTOCOL_FEATURES)


@contextmanager
def split_memory(device: Device, packed: bool, path: Path, **options: float) -> Iterator[tuple[Frontend, DriverQueue]]:
    """A frontend with a ring that runs, whose memory came in two regions."""
    with served(device, path, **options) as (server, frontend):
        use = frontend.negotiate(flags(packed), PROTOCOL)
        add(frontend, LOW)
        add(frontend, HIGH)
        layout = layout_of(0, packed)
        driver = frontend.driver(0, layout, use)
        frontend.start(0, layout)
        yield frontend, driver
        assert server.error is None
    assert device.counters["needs_reset"] == 0


@FORMATS
@pytest.mark.parametrize("how", ["slots", "tables"])
def test_a_ring_goes_on_when_its_region_is_back(packed: bool, how: str, tmp_path: Path) -> None:
    """What was kicked meanwhile is served then."""
    device = Upper()
    with split_memory(device, packed, tmp_path / "s") as (frontend, driver):
        for i in range(70):  # the ring wraps
            assert exchange(frontend, driver, b"x%d" % i) == b"X%d" % i
            remove(frontend, LOW) if how == "slots" else table(frontend, HIGH)
            assert not device.queues[0].enabled
            frontend.memory.write(BUFFERS, b"meanwhile")
            driver.enqueue([(BUFFERS, 9)], [(BUFFERS + 0x1000, 16)], cookie=None)
            driver.notify()
            frontend.kick(0)
            frontend.ask_u64(R.GET_FEATURES)
            assert driver.nused == 0
            assert frontend.ask_u64(R.GET_STATUS) == 0
            add(frontend, LOW) if how == "slots" else table(frontend, LOW, HIGH)
            wait_for(lambda: driver.nused == 1)
            driver.dequeue_burst()
            assert frontend.memory.read(BUFFERS + 0x1000, 9) == b"MEANWHILE"


@FORMATS
def test_a_network_device_goes_on(packed: bool, tmp_path: Path) -> None:
    """Frames that come while the receive ring is away are not for it; those that wait in a ring are sent."""
    with NetDevice(Loopback(), worker="own") as device, Server(device, tmp_path / "s") as server:
        with Guest(str(tmp_path / "s"), packed=packed) as guest:
            guest.order(R.SET_PROTOCOL_FEATURES, U64.pack(PROTOCOL))
            whole = bytes(8) + REGION.pack(GPA, SIZE, UADDR, 0)
            for number in range(40):
                frame = b"\xff" * 12 + number.to_bytes(48, "big")
                guest.order(R.REM_MEM_REG, whole)
                guest.send(frame)
                assert guest.rx.nused == guest.tx.nused == 0
                guest.order(R.ADD_MEM_REG, whole, [guest.fd])
                got: list[bytes] = []
                wait_for(lambda got=got, guest=guest: got or got.extend(guest.receive()) or got)
                assert got == [frame]
        assert server.error is None
        assert device.counters["needs_reset"] == 0


@FORMATS
def test_the_region_comes_back_at_another_guest_address(packed: bool, tmp_path: Path) -> None:
    """Ring addresses are the frontend's own, and are looked up again; the dirty log has the new ones."""
    other = GPA + 0x1000_0000
    with split_memory(Upper(), packed, tmp_path / "s") as (frontend, driver):
        log = os.memfd_create("log")
        os.ftruncate(log, 1 << 20)
        frontend.say(R.SET_LOG_BASE, U64.pack(1 << 20) + U64.pack(0), [log])
        frontend.answer()
        frontend.order(R.SET_FEATURES, U64.pack(flags(packed) | LOG_ALL))
        exchange(frontend, driver, b"before")
        os.pwrite(log, bytes(1 << 20), 0)
        state = driver.state()
        remove(frontend, LOW)
        add(frontend, LOW, other)
        memory = GuestMemory([Region.from_fd(other, frontend.fd, HALF)])
        for area in ("desc", "driver", "device"):
            state["layout"][area] += other - GPA
        again = DriverQueue.restore(memory, state)
        memory.write(other + 0x100000, b"text")
        again.enqueue([(other + 0x100000, 4)], [(other + 0x110000, 16)], cookie=None)
        again.notify()
        frontend.kick(0)
        wait_for(lambda: again.nused == 1)
        assert memory.read(other + 0x110000, 4) == b"TEXT"
        data = os.pread(log, 1 << 20, 0)
        os.close(log)
        dirty = {page for page in range(len(data) * 8) if data[page >> 3] >> (page & 7) & 1}
        ring = (state["layout"]["desc"] if packed else state["layout"]["device"]) >> 12
        assert dirty == {ring, other + 0x110000 >> 12}


@FORMATS
def test_what_is_out_comes_back_before_the_region_goes(packed: bool, tmp_path: Path) -> None:
    device = Draining()
    with split_memory(device, packed, tmp_path / "s") as (frontend, driver):
        send(frontend, driver, range(4))
        wait_for(lambda: len(device.kept) == 4)
        remove(frontend, LOW)
        assert [number for number, _ in driver.dequeue_burst()] == [3, 2, 1, 0]
        for thread in device.threads:
            thread.join()
        add(frontend, LOW)
        send(frontend, driver, range(4, 5))
        wait_for(lambda: device.texts == [b"text4"])


@FORMATS
def test_what_does_not_come_back_is_done_again(packed: bool, tmp_path: Path) -> None:
    """As after GET_VRING_BASE. The region is added twice before: the second removal counts."""
    device = Keeping()
    with split_memory(device, packed, tmp_path / "s", drain=0.05) as (frontend, driver):
        add(frontend, LOW)
        send(frontend, driver, range(3))
        wait_for(lambda: len(device.kept) == 3)
        remove(frontend, LOW)
        assert len(device.kept) == 3
        device.answer(0)
        remove(frontend, LOW)
        assert device.kept == []
        add(frontend, LOW)
        wait_for(lambda: device.texts == [b"text1", b"text2"])
        device.answer(0, 1)
        assert [number for number, _ in driver.dequeue_burst()] == [0, 1, 2]


@FORMATS
def test_chains_whose_buffers_leave_come_back_first(packed: bool, tmp_path: Path) -> None:
    """The ring stays; nothing is written any more to memory that is not there. Chains elsewhere may stay out."""
    device = Draining()
    with split_memory(device, packed, tmp_path / "s") as (frontend, driver):
        send(frontend, driver, range(1))
        wait_for(lambda: len(device.kept) == 1)
        remove(frontend, HIGH)
        assert driver.nused == 0
        add(frontend, HIGH)
        frontend.memory.write(AWAY, b"high!")
        driver.enqueue([(AWAY, 5)], [(AWAY + 0x100, 16)], cookie=1)
        frontend.kick(0)
        wait_for(lambda: len(device.kept) == 2)
        remove(frontend, HIGH)
        assert [number for number, _ in driver.dequeue_burst()] == [1, 0]
        assert frontend.memory.read(AWAY + 0x100, 5) == b"HIGH!"
        for thread in device.threads:
            thread.join()
        send(frontend, driver, range(2, 3))
        wait_for(lambda: device.texts == [b"text2"])


@FORMATS
@pytest.mark.parametrize("kind", ["python", "network"])
def test_a_chain_whose_memory_is_away_waits_for_it(
    packed: bool, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory that was there may be again: the queue is not broken, and no error is rung."""
    index = 0 if kind == "python" else 1
    device: Device = Upper() if kind == "python" else NetDevice(Loopback(), worker="own")
    errors: dict[int, int] = {}
    with served(device, tmp_path / "s") as (server, frontend), caplog.at_level(logging.INFO):
        use = frontend.negotiate(flags(packed), PROTOCOL)
        add(frontend, LOW)
        add(frontend, HIGH)
        layout = layout_of(index, packed)
        driver = frontend.driver(index, layout, use)
        frontend.start(index, layout)
        frontend.eventfd(R.SET_VRING_ERR, index, errors)
        for _ in range(3):
            caplog.clear()
            remove(frontend, HIGH)
            frontend.memory.write(AWAY, bytes(12) + b"away" * 15)
            writable = [(AWAY + 0x1000, 100)] if kind == "python" else []
            for address in (BUFFERS, AWAY, BUFFERS):
                driver.enqueue([(address, 72)], writable if address == AWAY else [(BUFFERS, 100)][: len(writable)],
                               cookie=address)  # fmt: skip
            frontend.kick(index)
            wait_for(lambda: f"ring {index} stands still: " in caplog.text)
            for _ in range(3):
                frontend.kick(index)
            assert driver.nused <= 1
            assert frontend.ask_u64(R.GET_STATUS) == 0
            assert not select.select([errors[index]], [], [], 0)[0]
            assert caplog.text.count("stands still") == 1
            add(frontend, HIGH)
            wait_for(lambda: driver.nused == 3)
            assert [address for address, _ in driver.dequeue_burst()] == [BUFFERS, AWAY, BUFFERS]
        if kind == "python":
            assert frontend.memory.read(AWAY + 0x100C, 4) == b"AWAY"
        driver.enqueue([(1 << 60, 64)], cookie=None)  # never was memory
        frontend.kick(index)
        assert select.select([errors[index]], [], [], 10)[0]
        os.close(errors[index])
        assert server.error is None
    if isinstance(device, NetDevice):
        device.close()


@FORMATS
def test_stopped_while_its_memory_is_away(packed: bool, tmp_path: Path) -> None:
    """The base is where it stood; it does not start by itself then."""
    device = Upper()
    with split_memory(device, packed, tmp_path / "s") as (frontend, driver):
        for i in range(3):
            exchange(frontend, driver, b"x%d" % i)
        remove(frontend, LOW)
        base = frontend.stop(0)
        assert base == ((6 | 0x8000) * 0x10001 if packed else 3)
        add(frontend, LOW)
        assert not device.queues[0].enabled
        frontend.start(0, layout_of(0, packed), base)
        assert exchange(frontend, driver, b"on") == b"ON"


@FORMATS
def test_started_enabled_called_while_its_memory_is_away(packed: bool, tmp_path: Path) -> None:
    """All that is said of it meanwhile counts when the memory is there."""
    device = Upper()
    with split_memory(device, packed, tmp_path / "s") as (frontend, driver):
        exchange(frontend, driver, b"x")
        remove(frontend, LOW)
        frontend.enable(0, False)
        frontend.order(R.SET_FEATURES, U64.pack(flags(packed)))
        frontend.eventfd(R.SET_VRING_CALL, 0, frontend.calls)
        frontend.eventfd(R.SET_VRING_KICK, 0, frontend.kicks)
        add(frontend, LOW)
        assert device.queues[0].enabled and device.queues[0].muted
        frontend.enable(0, True)
        assert exchange(frontend, driver, b"on") == b"ON"
        assert select.select([frontend.calls[0]], [], [], 10)[0]


@FORMATS
def test_set_up_again_while_its_memory_is_away(packed: bool, tmp_path: Path) -> None:
    """Its driver is bound again: the ring is another one, and starts at the kick."""
    device = Upper()
    with split_memory(device, packed, tmp_path / "s") as (frontend, driver):
        exchange(frontend, driver, b"x")
        remove(frontend, LOW)
        frontend.order(R.SET_VRING_NUM, STATE.pack(0, 64))
        add(frontend, LOW)
        assert not device.queues[0].enabled
        layout = layout_of(3, packed)
        again = frontend.driver(0, layout, flags(packed))
        frontend.start(0, layout, 0x8000 if packed else 0)
        assert exchange(frontend, again, b"on") == b"ON"


@FORMATS
def test_reset_while_its_memory_is_away(packed: bool, tmp_path: Path) -> None:
    device = Upper()
    with split_memory(device, packed, tmp_path / "s") as (frontend, driver):
        exchange(frontend, driver, b"x")
        remove(frontend, LOW)
        frontend.order(R.SET_STATUS, U64.pack(0))
        add(frontend, LOW)
        assert not device.queues[0].enabled


@FORMATS
def test_what_is_in_flight_while_memory_is_away(packed: bool, tmp_path: Path) -> None:
    """A region that notes chains keeps them: they are done again, first, when the ring goes on."""
    device = Keeping()
    with served(device, tmp_path / "s", drain=0.05) as (server, frontend):
        use = frontend.negotiate(flags(packed), PROTOCOL)
        add(frontend, LOW)
        add(frontend, HIGH)
        layout = layout_of(0, packed)
        driver = frontend.driver(0, layout, use)
        with Noted(frontend, packed) as noted:
            noted.give(frontend)
            frontend.start(0, layout)
            send(frontend, driver, range(3))
            wait_for(lambda: len(device.kept) == 3)
            device.answer(1)
            remove(frontend, LOW)
            assert device.kept == []
            assert len(noted.inflight()) == 2
            send(frontend, driver, range(3, 4))
            add(frontend, LOW)
            wait_for(lambda: len(device.kept) == 3)
            assert device.texts == [b"text0", b"text2", b"text3"]
            device.answer(0, 1, 2)
            assert noted.inflight() == []
        assert server.error is None


@FORMATS
def test_a_region_too_short_for_its_ring_is_refused(packed: bool, tmp_path: Path) -> None:
    """It begins where the ring's descriptors are, and ends amid them: there is nothing to wait for."""
    with served(Upper(), tmp_path / "s") as (server, frontend):
        use = frontend.negotiate(flags(packed), PROTOCOL)
        add(frontend, LOW)
        layout = layout_of(0, packed)
        driver = frontend.driver(0, layout, use)
        frontend.start(0, layout)
        exchange(frontend, driver, b"x")
        remove(frontend, LOW)
        frontend.order(R.ADD_MEM_REG, bytes(8) + REGION.pack(GPA, 0x200, UADDR, 0), [frontend.fd])
        rest = bytes(8) + REGION.pack(GPA + 0x200, HALF - 0x200, UADDR + 0x200, 0x200)
        frontend.say(R.ADD_MEM_REG, rest, [frontend.fd], NEED_REPLY)
        assert frontend.payload() == U64.pack(1)
        wait_for(lambda: server.error is not None)
        assert "ring 0: 1024 bytes at 0x40000000 are outside of any one region" in str(server.error)


def test_a_ring_that_would_not_be_aligned_is_refused(tmp_path: Path) -> None:
    """The same addresses, and a file whose bytes are elsewhere: no ring can be worked there."""
    with served(Upper(), tmp_path / "s") as (server, frontend):
        use = frontend.negotiate(flags(False), PROTOCOL)
        add(frontend, LOW)
        layout = layout_of(0, False)
        driver = frontend.driver(0, layout, use)
        frontend.start(0, layout)
        exchange(frontend, driver, b"x")
        odd = TABLE.pack(1, 0) + REGION.pack(GPA, HALF, UADDR, 4)
        frontend.say(R.SET_MEM_TABLE, odd, [frontend.fd], NEED_REPLY)
        assert frontend.payload() == U64.pack(1)
        wait_for(lambda: server.error is not None)
        assert "aligned differently" in str(server.error)


@pytest.mark.parametrize("how", ["set up again", "ring away", "chain away", "other features"])
def test_a_connection_that_ends_so_leaves_no_cycle(how: str, tmp_path: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        with Server(Upper(), tmp_path / "s") as server:
            with Frontend(str(tmp_path / "s")) as frontend:
                use = frontend.negotiate(flags(False), PROTOCOL)
                add(frontend, LOW)
                add(frontend, HIGH)
                driver = frontend.driver(0, layout_of(0, False), use)
                frontend.start(0, layout_of(0, False))
                exchange(frontend, driver, b"x")
                backend = weakref.ref(server._backend)
                if how == "set up again":
                    frontend.order(R.SET_VRING_NUM, STATE.pack(0, 64))
                elif how == "other features":
                    frontend.order(R.SET_FEATURES, U64.pack(flags(True)))
                else:
                    remove(frontend, LOW if how == "ring away" else HIGH)
                    driver.enqueue([(AWAY, 5)], [(AWAY + 0x100, 16)], cookie=None)
                    frontend.kick(0)
                    frontend.ask_u64(R.GET_FEATURES)
            wait_for(lambda: not server.connected and backend() is None)
    finally:
        gc.enable()
