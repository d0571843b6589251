"""What is agreed on counts: protocol features, regions that come twice, descriptors of errors, rings without kicks."""

from __future__ import annotations

import logging
import os
import select
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from formats import FORMATS
from vhost_device import BUFFERS, Upper, running, served
from vhost_frontend import GPA, SIZE, UADDR, layout_of
from vhost_rows import NEGOTIATED, OFFERED
from waiting import wait_for

from virtio import Device, Feature
from virtio.errors import VhostUserError
from virtio.net import Loopback, NetDevice
from virtio.vhost_user import PROTOCOL, ProtocolFeature
from virtio.vhost_user.message import CONFIG, INFLIGHT, LOG, REGION, STATE, U64, Request
from virtio.vhost_user.polling import LONG, SHORT, Polling

R = Request
PAYLOADS = {
    R.SET_LOG_BASE: LOG.pack(4096, 0),
    R.SEND_RARP: U64.pack(0),
    R.NET_SET_MTU: U64.pack(1400),
    R.GET_CONFIG: CONFIG.pack(0, 8, 0) + bytes(8),
    R.SET_CONFIG: CONFIG.pack(0, 8, 0) + bytes(8),
    R.GET_INFLIGHT_FD: INFLIGHT.pack(0, 0, 1, 64),
    R.SET_INFLIGHT_FD: INFLIGHT.pack(0, 0, 1, 64),
    R.ADD_MEM_REG: bytes(8) + REGION.pack(GPA, SIZE, UADDR, 0),
    R.REM_MEM_REG: bytes(8) + REGION.pack(GPA, SIZE, UADDR, 0),
    R.SET_STATUS: U64.pack(1),
}


def refused(device: Device, path: Path, request: Request, use: ProtocolFeature, **options: Any) -> str:
    """Say a message, having agreed on protocol features; return why the connection was ended."""
    with served(device, path, **options) as (server, frontend):
        frontend.negotiate(protocol=use)
        frontend.say(request, PAYLOADS.get(request, b""), [frontend.fd] if request == R.ADD_MEM_REG else [])
        with pytest.raises((EOFError, ConnectionError)):
            frontend.answer()
        wait_for(lambda: not server.connected)
        assert isinstance(server.error, VhostUserError)
        return str(server.error)


@pytest.mark.parametrize("request_", [*OFFERED, *NEGOTIATED], ids=lambda request: request.name)
def test_a_message_of_a_feature_that_is_withheld(request_: Request, tmp_path: Path) -> None:
    feature = (OFFERED | NEGOTIATED)[request_]
    with NetDevice() as device:
        said = refused(device, tmp_path / "s", request_, ProtocolFeature.REPLY_ACK, protocol=PROTOCOL & ~feature)
    assert said == f"{request_.name}: {feature.name} was not offered"


@pytest.mark.parametrize("request_", NEGOTIATED, ids=lambda request: request.name)
def test_a_message_of_a_feature_that_is_not_negotiated(request_: Request, tmp_path: Path) -> None:
    said = refused(Upper(), tmp_path / "s", request_, PROTOCOL & ~NEGOTIATED[request_])
    assert said == f"{request_.name}: {NEGOTIATED[request_].name} is not negotiated"


def test_only_a_network_device_has_an_mtu(tmp_path: Path) -> None:
    assert refused(Upper(), tmp_path / "s", R.NET_SET_MTU, PROTOCOL) == "NET_SET_MTU: MTU was not offered"


def test_a_refused_read_of_the_configuration_has_no_payload(tmp_path: Path) -> None:
    with served(Upper(), tmp_path / "s") as (server, frontend):
        frontend.negotiate(protocol=ProtocolFeature.CONFIG)
        for offset, size in ((0, 257), (257, 4), (0x100, 8), (8, 1), (8, 0)):  # rust-vmm once counted from 0x100
            assert frontend.ask(R.GET_CONFIG, CONFIG.pack(offset, size, 0) + bytes(size)) == b""
        head = CONFIG.pack(0, 256, 0)
        assert frontend.ask(R.GET_CONFIG, head + bytes(256)) == head + b"upper".ljust(256, b"\0")
        assert server.error is None


def test_a_device_without_configuration_has_none_to_read(tmp_path: Path) -> None:
    device = Upper()
    device.config = bytearray()
    with served(device, tmp_path / "s") as (server, frontend):
        frontend.negotiate(protocol=ProtocolFeature.CONFIG)
        assert frontend.ask(R.GET_CONFIG, CONFIG.pack(0, 8, 0) + bytes(8)) == b""
        assert server.error is None


@pytest.mark.parametrize("kind", ["python", "network"])
def test_who_is_offered_a_configuration(kind: str, tmp_path: Path) -> None:
    """QEMU, which asks before SET_OWNER, has a network device's itself; user-mode Linux, which asks after it, not."""
    device: Device = Upper() if kind == "python" else NetDevice(Loopback())
    with served(device, tmp_path / "s") as (server, frontend):
        before = frontend.ask_u64(R.GET_PROTOCOL_FEATURES)
        frontend.order(R.SET_OWNER)
        after = frontend.ask_u64(R.GET_PROTOCOL_FEATURES)
        assert after & ProtocolFeature.CONFIG
        assert before == (after if kind == "python" else after & ~ProtocolFeature.CONFIG)
        frontend.order(R.SET_PROTOCOL_FEATURES, U64.pack(after))
        head = CONFIG.pack(0, 1, 0)
        assert len(frontend.ask(R.GET_CONFIG, head + bytes(1))) == len(head) + 1
        assert server.error is None
    if isinstance(device, NetDevice):
        device.close()


def test_a_region_may_be_added_for_each_queue_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU does; what is limited are different ones, and how often each comes."""
    monkeypatch.setattr("virtio.vhost_user.memory.REPEATS_MAX", 600)
    slots = ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIGURE_MEM_SLOTS
    regions = [bytes(8) + REGION.pack(GPA + at, 4096, UADDR + at, at) for at in range(0, 510 * 4096, 4096)]
    with served(Upper(), tmp_path / "s") as (server, frontend):
        frontend.negotiate(protocol=slots)
        for _ in range(601):
            frontend.order(R.ADD_MEM_REG, regions[0], [frontend.fd])
        for region in regions[1:-1]:
            frontend.order(R.ADD_MEM_REG, region, [frontend.fd])
        for _ in range(600):
            frontend.order(R.REM_MEM_REG, regions[0])
        frontend.say(R.ADD_MEM_REG, regions[-1], [frontend.fd], flags=8)
        assert U64.unpack(frontend.answer()[0]) == (1,)
        wait_for(lambda: server.error is not None)
        assert str(server.error) == "ADD_MEM_REG: 509 regions are there (limit 509)"
    with served(Upper(), tmp_path / "s") as (server, frontend):
        frontend.negotiate(protocol=slots)
        for _ in range(601):
            frontend.order(R.ADD_MEM_REG, regions[0], [frontend.fd])
        with pytest.raises(AssertionError, match="ADD_MEM_REG failed"):
            frontend.order(R.ADD_MEM_REG, regions[0], [frontend.fd])
        wait_for(lambda: server.error is not None)
        assert f"region at {GPA:#x} again (limit 600 times)" in str(server.error)


@FORMATS
@pytest.mark.parametrize("kind", ["python", "network"])
def test_the_descriptor_for_errors_is_rung(
    packed: bool, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a queue is broken; and also if the descriptor comes only then."""
    index = 1
    device = Upper() if kind == "python" else NetDevice(Loopback(), worker="own")
    errors: dict[int, int] = {}
    with served(device, tmp_path / "s") as (server, frontend):
        driver = running(frontend, packed, index=index)
        frontend.eventfd(R.SET_VRING_ERR, index, errors)
        driver.enqueue([(1 << 60, 64)], cookie=None)
        with caplog.at_level(logging.ERROR):
            frontend.kick(index)
            assert select.select([errors[index]], [], [], 10)[0]
        assert os.eventfd_read(errors[index]) == 1
        assert "ring 1 is broken: queue 1: " in caplog.text
        assert "64 bytes at 0x1000000000000000 are outside of guest memory" in caplog.text
        frontend.eventfd(R.SET_VRING_ERR, index, errors)
        assert select.select([errors[index]], [], [], 10)[0]
        frontend.stop(index)
        frontend.eventfd(R.SET_VRING_ERR, index, errors)
        assert not select.select([errors[index]], [], [], 0)[0]
        os.close(errors[index])
        assert server.error is None
    if isinstance(device, NetDevice):
        device.close()


class FakeQueue:
    """A queue as Polling looks at it."""

    def __init__(self) -> None:
        self.available, self.chains, self.broken = 5, 0, None

    def counters(self) -> dict[str, int]:
        return {"chains": self.chains}


def test_an_idle_ring_without_kicks_is_looked_at_ever_less_often() -> None:
    kicks: list[int] = []
    queues = [FakeQueue(), FakeQueue()]
    slots = [SimpleNamespace(queue=queue) for queue in queues]
    polling = Polling(cast(Device, SimpleNamespace(queues=slots, kick=kicks.append)))

    def look() -> tuple[float, list[int]]:
        polling.look([0, 1])
        found = kicks.copy()
        kicks.clear()
        return polling.pause, found

    assert look() == (SHORT, [0, 1])
    pauses = [look() for _ in range(6)]
    assert pauses == [(min(SHORT * 2**i, LONG), []) for i in range(1, 7)]
    assert pauses[-1][0] == LONG
    queues[1].available += 1  # the driver adds a chain
    assert look() == (SHORT, [1])
    queues[1].available -= 1  # it is popped
    queues[1].chains += 1
    assert look() == (SHORT, [1])
    assert look() == (2 * SHORT, [])
    queues[0].chains += 1  # popped, and another one is there: of a packed ring, one waits or none does
    assert look() == (SHORT, [0])
    queues[0].broken = cast(None, RuntimeError())
    assert look() == (SHORT, [0])
    slots[0].queue = cast(FakeQueue, None)
    assert look() == (2 * SHORT, [])


@FORMATS
def test_a_network_device_without_kicks(packed: bool, tmp_path: Path) -> None:
    """Its frames come back, after long pauses too."""
    with NetDevice(Loopback(), worker="own") as device, served(device, tmp_path / "s") as (_, frontend):
        use = frontend.negotiate(Feature.VERSION_1 | (Feature.RING_PACKED if packed else 0))
        frontend.share_memory()
        layouts = [layout_of(i, packed) for i in (0, 1)]
        rx, tx = (frontend.driver(i, layout, use) for i, layout in enumerate(layouts))
        for i, layout in enumerate(layouts):
            frontend.place(i, layout)
            frontend.order(R.SET_VRING_KICK, U64.pack(i | 0x100))
            frontend.order(R.SET_VRING_ENABLE, STATE.pack(i, 1))
        for number in range(60):
            rx.enqueue([], [(BUFFERS, 2000)], cookie=None)
            frontend.memory.write(BUFFERS + 0x1000, bytes(12) + bytes([2, *bytes(5), 2, *bytes(5)]) + b"%50d" % number)
            if number % 20 == 19:
                time.sleep(0.1)  # until it looks seldom
            tx.enqueue([(BUFFERS + 0x1000, 74)], [], cookie=None)
            wait_for(lambda: rx.nused and tx.nused)
            assert frontend.memory.read(BUFFERS + 24, 50) == b"%50d" % number
            rx.dequeue_burst()
            tx.dequeue_burst()
