"""A ring that runs is set up again without GET_VRING_BASE: that stops it, too, as DPDK's backend has it.

User-mode Linux does so when its driver is unbound and bound again (test_vhost_uml.py has the real one).
"""

from __future__ import annotations

import logging
import os
import select
from contextlib import ExitStack
from pathlib import Path

import pytest
from formats import FORMATS
from inflight_region import Region
from inflight_region import negotiate as negotiate_inflight
from keeping_device import Draining, Keeping, send
from vhost_device import BUFFERS, Upper, exchange, running, served
from vhost_frontend import GPA, PROTOCOL_FEATURES, UADDR, Frontend, layout_of
from vhost_guest import HEADER, Guest
from waiting import wait_for

from virtio import Feature
from virtio.constants import NetFeature, Status
from virtio.net import Loopback, NetDevice
from virtio.vhost_user import ProtocolFeature, Server
from virtio.vhost_user.message import ADDRESS, NO_FD, STATE, U64, Request
from virtio.vhost_user.session import LOG_ALL

R = Request
MOVE = UADDR - GPA
OTHER = 3  # layout_of(OTHER): where a ring goes that is moved


def set_num(frontend: Frontend) -> None:
    frontend.order(R.SET_VRING_NUM, STATE.pack(0, 64))


def set_base(frontend: Frontend) -> None:
    frontend.order(R.SET_VRING_BASE, STATE.pack(0, 0))


def set_addr(frontend: Frontend) -> None:
    """Say another place."""
    frontend.order(R.SET_VRING_ADDR, ADDRESS.pack(0, 0, UADDR, UADDR + 0x8000, UADDR + 0x4000, 0))


def flags(packed: bool) -> int:
    return int(Feature.VERSION_1 | (Feature.RING_PACKED if packed else 0) | PROTOCOL_FEATURES)


def set_features(frontend: Frontend) -> None:
    frontend.order(R.SET_FEATURES, U64.pack(Feature.VERSION_1 | Feature.EVENT_IDX | PROTOCOL_FEATURES))


STOPS = pytest.mark.parametrize("say", [set_num, set_base, set_addr, set_features], ids=lambda say: say.__name__)


@FORMATS
@pytest.mark.parametrize("base", ["base", "no base"])
def test_a_driver_is_bound_again(packed: bool, base: str, tmp_path: Path) -> None:
    """New rings elsewhere, of another size, in the order of user-mode Linux; the old ones were never stopped.

    What is in the new ring before the kick is served, and the old ring's memory is left alone from then on.
    """
    with served(Upper(), tmp_path / "s") as (server, frontend):
        driver = running(frontend, packed)
        for i in range(5):
            exchange(frontend, driver, b"x%d" % i)
        old = layout_of(0, packed)
        layout = layout_of(OTHER, packed, 32)
        use = flags(packed)
        frontend.order(R.SET_FEATURES, U64.pack(use))
        frontend.share_memory()
        frontend.eventfd(R.SET_VRING_CALL, 0, frontend.calls)
        frontend.order(R.SET_VRING_NUM, STATE.pack(0, 32))
        before = frontend.memory.read(old.desc, 0x10000)
        if base == "base" or packed:
            frontend.order(R.SET_VRING_BASE, STATE.pack(0, 0))
        places = (layout.desc + MOVE, layout.device + MOVE, layout.driver + MOVE)
        frontend.order(R.SET_VRING_ADDR, ADDRESS.pack(0, 0, *places, (1 << 64) - 1))
        again = frontend.driver(0, layout, use)
        frontend.memory.write(BUFFERS, b"early")
        again.enqueue([(BUFFERS, 5)], [(BUFFERS + 0x1000, 16)], cookie=None)
        frontend.eventfd(R.SET_VRING_KICK, 0, frontend.kicks)
        wait_for(lambda: again.nused == 1)
        assert frontend.memory.read(BUFFERS + 0x1000, 5) == b"EARLY"
        again.dequeue_burst()
        for i in range(100):
            assert exchange(frontend, again, b"y%d" % i) == b"Y%d" % i
        assert frontend.memory.read(old.desc, 0x10000) == before
        assert server.error is None


@FORMATS
@STOPS
def test_what_is_out_is_given_back_first(say: object, packed: bool, tmp_path: Path) -> None:
    """As for GET_VRING_BASE: the message is obeyed once the device has given back what it had."""
    device = Draining()
    with served(device, tmp_path / "s") as (server, frontend):
        driver = running(frontend, packed)
        send(frontend, driver, range(4))
        wait_for(lambda: len(device.kept) == 4)
        assert callable(say)
        say(frontend)
        assert driver.nused == 4
        assert [number for number, _ in driver.dequeue_burst()] == [3, 2, 1, 0]
        assert not device.queues[0].enabled
        for thread in device.threads:
            thread.join()
        assert server.error is None


@FORMATS
@pytest.mark.parametrize("say", [set_num, set_base], ids=lambda say: say.__name__)
def test_a_kick_on_the_old_descriptor_starts_it_too(say: object, packed: bool, tmp_path: Path) -> None:
    """A ring starts when its kick descriptor is readable, says the document: one that came before does not count."""
    with served(Upper(), tmp_path / "s") as (server, frontend):
        driver = running(frontend, packed)
        exchange(frontend, driver, b"before")
        where = 2 if packed else 1
        if say is set_num:
            set_num(frontend)
        else:
            frontend.order(R.SET_VRING_BASE, STATE.pack(0, (where | 0x8000) * 0x10001 if packed else where))
        assert exchange(frontend, driver, b"and on") == b"AND ON"
        assert server.error is None


def test_a_kick_that_came_before_the_stop_starts_nothing(tmp_path: Path) -> None:
    device = Upper()
    with served(device, tmp_path / "s") as (server, frontend):
        driver = running(frontend, False)
        exchange(frontend, driver, b"before")
        frontend.enable(0, False)
        set_num(frontend)
        assert not select.select([frontend.kicks[0]], [], [], 0)[0]  # what was left there was taken
        frontend.order(R.SET_VRING_ADDR, ADDRESS.pack(0, 0, 1, 2, 3, 0))  # nowhere: it must not start now
        assert not device.queues[0].enabled
        assert server.error is None


@FORMATS
def test_the_same_addresses_again_stop_nothing(packed: bool, tmp_path: Path) -> None:
    """QEMU says them again, without a kick, when a migration begins."""
    layout = layout_of(0, packed)
    places = (layout.desc + MOVE, layout.device + MOVE, layout.driver + MOVE)
    device = Upper()
    with served(device, tmp_path / "s") as (_, frontend):
        driver = running(frontend, packed)
        frontend.order(R.SET_VRING_ADDR, ADDRESS.pack(0, 1, *places, layout.device))
        assert device.queues[0].enabled
        assert exchange(frontend, driver, b"on") == b"ON"


def test_other_features_while_rings_run(tmp_path: Path) -> None:
    """A kernel hands its NIC to DPDK: a driver with other features, and packed rings; the old one's were never
    stopped. Its rings run by the new features, and the control state of the old one is gone.
    """
    with NetDevice(Loopback(), worker="own") as device, Server(device, tmp_path / "s") as server:
        with Guest(str(tmp_path / "s")) as guest:
            guest.send(b"\xff" * 60)
            wait_for(guest.receive)
            assert not device.negotiated & Feature.RING_PACKED
            device.control.pairs = 77  # whatever the old driver said
            use = Feature.VERSION_1 | Feature.RING_PACKED | NetFeature.MRG_RXBUF | PROTOCOL_FEATURES
            guest.order(R.SET_FEATURES, U64.pack(use))
            assert not device.live
            guest.memory.write(GPA, bytes(0x20000))
            guest.rx, guest.tx = (guest.driver(index, layout_of(index, True), use) for index in (0, 1))
            guest.start(0, layout_of(0, True), 0x8000)
            guest.start(1, layout_of(1, True), 0x8000)
            for i in range(32):
                guest.give(i)
            guest.kick(0)
            guest.send(b"\xff" * 60)
            wait_for(guest.receive)
            assert device.negotiated & Feature.RING_PACKED
            assert device.control.pairs == 1
        assert server.error is None


def test_a_kick_does_not_start_a_ring_of_other_features(tmp_path: Path) -> None:
    """The ring is still that of the old ones: SET_VRING_KICK comes when it is not."""
    device = Upper()
    with served(device, tmp_path / "s") as (server, frontend):
        running(frontend, False)
        frontend.order(R.SET_FEATURES, U64.pack(flags(True)))
        frontend.kick(0)
        frontend.order(R.SET_FEATURES, U64.pack(flags(True)))
        assert not device.queues[0].enabled
        assert server.error is None


@FORMATS
@pytest.mark.parametrize("kind", ["python", "network"])
def test_features_without_bit_30_enable_rings_that_run(packed: bool, kind: str, tmp_path: Path) -> None:
    """And what waits in them is served. A network device drops the frames that it is sent before, as it should."""
    with ExitStack() as stack:
        device = Upper() if kind == "python" else stack.enter_context(NetDevice(Loopback(), worker="own"))
        server, frontend = stack.enter_context(served(device, tmp_path / "s"))
        use = frontend.negotiate(flags(packed))
        frontend.share_memory()
        layouts = [layout_of(index, packed) for index in (0, 1)]
        rx, tx = (frontend.driver(index, layout, use) for index, layout in enumerate(layouts))
        for index, layout in enumerate(layouts):
            frontend.start(index, layout, enable=False)
        frontend.memory.write(BUFFERS, bytes(HEADER) + b"wait" * 16)
        rx.enqueue([] if kind == "network" else [(BUFFERS, 76)], [(BUFFERS + 0x1000, 256)], cookie=None)
        frontend.kick(0)
        frontend.ask_u64(R.GET_FEATURES)
        assert rx.nused == 0
        frontend.order(R.SET_FEATURES, U64.pack(use & ~PROTOCOL_FEATURES))
        if kind == "network":
            tx.enqueue([(BUFFERS, 76)], [], cookie=None)
            frontend.kick(1)
        wait_for(lambda: rx.nused == 1)
        assert server.error is None


def test_features_again_leave_the_pairs_that_the_driver_chose(tmp_path: Path) -> None:
    """Without bit 30 the driver says how many, on the control queue; SET_FEATURES comes again, with a log."""
    device = NetDevice(Loopback(queues=2), queue_pairs=2)
    with device, served(device, tmp_path / "s") as (server, frontend):
        use = frontend.negotiate(
            Feature.VERSION_1 | NetFeature.MQ | NetFeature.CTRL_VQ,
            ProtocolFeature.REPLY_ACK | ProtocolFeature.LOG_SHMFD,
        )
        frontend.order(R.SET_FEATURES, U64.pack(use & ~PROTOCOL_FEATURES))
        frontend.share_memory()
        for index in range(4):
            frontend.start(index, layout_of(index, False), enable=False)
        assert device.control.pairs == 1
        frontend.order(R.SET_FEATURES, U64.pack(use & ~PROTOCOL_FEATURES | LOG_ALL))
        assert device.control.pairs == 1
        assert server.error is None


@FORMATS
def test_kick_and_call_again(packed: bool, tmp_path: Path) -> None:
    with served(Upper(), tmp_path / "s") as (server, frontend):
        driver = running(frontend, packed)
        for i in range(20):
            exchange(frontend, driver, b"x%d" % i)
            frontend.eventfd(R.SET_VRING_KICK, 0, frontend.kicks)
            frontend.eventfd(R.SET_VRING_CALL, 0, frontend.calls)
            exchange(frontend, driver, b"y%d" % i)
        frontend.order(R.SET_VRING_KICK, U64.pack(NO_FD))
        exchange(frontend, driver, b"polled")
        frontend.order(R.SET_VRING_CALL, U64.pack(NO_FD))
        assert exchange(frontend, driver, b"and on") == b"AND ON"
        assert server.error is None


@FORMATS
def test_what_is_said_twice(packed: bool, tmp_path: Path) -> None:
    """Owner, protocol features, memory, log, status: none of it stops a ring, nor does it lose one."""
    protocol = ProtocolFeature.REPLY_ACK | ProtocolFeature.LOG_SHMFD | ProtocolFeature.STATUS
    with served(Upper(), tmp_path / "s") as (server, frontend):
        driver = running(frontend, packed, protocol=protocol)
        log = os.memfd_create("log")
        os.ftruncate(log, 1 << 20)
        for _ in range(2):
            frontend.order(R.SET_OWNER)
            frontend.order(R.SET_PROTOCOL_FEATURES, U64.pack(protocol))
            frontend.say(R.SET_LOG_BASE, U64.pack(1 << 20) + U64.pack(0), [log])
            frontend.answer()
            frontend.order(R.SET_FEATURES, U64.pack(flags(packed) | LOG_ALL))
            frontend.order(R.SET_STATUS, U64.pack(15))
            frontend.share_memory()
            assert exchange(frontend, driver, b"on") == b"ON"
        assert any(os.pread(log, 1 << 20, 0))
        os.close(log)
        assert server.error is None


@FORMATS
@pytest.mark.parametrize("request_", [R.SET_STATUS, R.RESET_OWNER, R.RESET_DEVICE], ids=lambda request: request.name)
def test_a_reset_and_all_again(packed: bool, request_: Request, tmp_path: Path) -> None:
    protocol = ProtocolFeature.STATUS | ProtocolFeature.RESET_DEVICE
    with served(Upper(), tmp_path / "s") as (server, frontend):
        driver = running(frontend, packed, protocol=protocol)
        for _ in range(3):
            exchange(frontend, driver, b"x")
            frontend.order(request_, U64.pack(0) if request_ == R.SET_STATUS else b"")
            frontend.memory.write(GPA, bytes(0x10000))
            driver = frontend.driver(0, layout_of(0, packed), flags(packed))
            frontend.start(0, layout_of(0, packed), 0x8000 if packed else 0)
        assert exchange(frontend, driver, b"y") == b"Y"
        assert server.error is None


@FORMATS
def test_an_inflight_region_while_a_ring_runs(packed: bool, tmp_path: Path) -> None:
    """What is out comes back first; the ring goes on, and the new region is kept up. DPDK's backend takes it, too."""
    device = Draining()
    with served(device, tmp_path / "s") as (server, frontend):
        use = negotiate_inflight(frontend, packed)
        layout = layout_of(0, packed)
        driver = frontend.driver(0, layout, use)
        frontend.start(0, layout)
        send(frontend, driver, range(4))
        wait_for(lambda: len(device.kept) == 4)
        with Region(frontend, packed) as region:
            region.give(frontend)
            assert [number for number, _ in driver.dequeue_burst()] == [3, 2, 1, 0]
            send(frontend, driver, range(4, 6))
            wait_for(lambda: len(device.kept) == 2)
            assert len(region.inflight()) == 2
            region.give(frontend)  # and again
            assert region.inflight() == []
        device.answer_all()
        for thread in device.threads:
            thread.join()
        assert server.error is None


@pytest.mark.parametrize("order", ["enable first", "memory last", "kick first"])
@FORMATS
def test_setup_in_an_odd_order(packed: bool, order: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SET_VRING_ENABLE before all else; memory after the kick. Addresses are looked for when all is there."""
    with served(Upper(), tmp_path / "s") as (server, frontend), caplog.at_level(logging.WARNING):
        use = frontend.negotiate(flags(packed))
        layout = layout_of(0, packed)
        driver = frontend.driver(0, layout, use)
        if order == "enable first":
            frontend.enable(0, True)
        if order != "memory last":
            frontend.share_memory()
        if order == "kick first":
            fd = os.eventfd(0)
            frontend.say(R.SET_VRING_KICK, U64.pack(0), [fd], 8)
            os.close(fd)
            assert frontend.payload() == U64.pack(1)
            return  # there is nothing that could be started
        frontend.start(0, layout, enable=order != "enable first")
        frontend.share_memory()
        assert exchange(frontend, driver, b"text") == b"TEXT"
        assert server.error is None


def test_a_ring_that_was_kept_busy_is_stopped_in_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A device that does not give back what it has: as for GET_VRING_BASE, it is done again."""
    device = Keeping()
    with served(device, tmp_path / "s", drain=0.05) as (_, frontend):
        driver = running(frontend, False)
        send(frontend, driver, range(2))
        wait_for(lambda: len(device.kept) == 2)
        with caplog.at_level(logging.WARNING):
            frontend.order(R.SET_VRING_NUM, STATE.pack(0, 64))
        assert "2 are done again when the ring goes on, 0 are lost" in caplog.text
        frontend.eventfd(R.SET_VRING_KICK, 0, frontend.kicks)
        wait_for(lambda: len(device.kept) == 2)
        assert device.texts == [b"text0", b"text1"]


@FORMATS
def test_a_queue_that_broke_is_whole_again(packed: bool, tmp_path: Path) -> None:
    """The memory of a ring whose driver is gone holds anything; with the first ring of the next the device is reset."""
    device = Upper()
    with served(device, tmp_path / "s") as (server, frontend):
        driver = running(frontend, packed, protocol=ProtocolFeature.STATUS)
        driver.enqueue([(1 << 60, 64)], cookie=None)
        frontend.kick(0)
        wait_for(lambda: device.reason)
        assert frontend.ask_u64(R.GET_STATUS) == Status.DEVICE_NEEDS_RESET
        layout = layout_of(OTHER, packed)
        again = frontend.driver(0, layout, flags(packed))
        frontend.start(0, layout, 0x8000 if packed else 0)
        assert exchange(frontend, again, b"on") == b"ON"
        assert frontend.ask_u64(R.GET_STATUS) == 0
        assert device.reason is None
        assert server.error is None


@FORMATS
@pytest.mark.parametrize("again", ["another ring", "the same ring"])
def test_an_inflight_region_is_for_the_next_driver(packed: bool, again: str, tmp_path: Path) -> None:
    """With nothing in flight it says no more where the ring stands: SET_VRING_BASE does, or where it stood."""
    with served(Upper(), tmp_path / "s") as (server, frontend):
        use = negotiate_inflight(frontend, packed)
        layout = layout_of(0, packed)
        driver = frontend.driver(0, layout, use)
        with Region(frontend, packed) as region:
            region.give(frontend)
            frontend.start(0, layout)
            for i in range(7):
                exchange(frontend, driver, b"x%d" % i)
            if again == "another ring":
                layout = layout_of(OTHER, packed)
                driver = frontend.driver(0, layout, use)
                frontend.start(0, layout, 0x8000 if packed else 0)
            else:
                frontend.order(R.SET_VRING_NUM, STATE.pack(0, layout.size))
                frontend.eventfd(R.SET_VRING_KICK, 0, frontend.kicks)
            for i in range(70):
                assert exchange(frontend, driver, b"y%d" % i) == b"Y%d" % i
            assert region.inflight() == []
        assert server.error is None
