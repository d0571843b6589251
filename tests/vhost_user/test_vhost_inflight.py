"""The inflight region over vhost-user: how a frontend gets it and gives it back, and what it may not have in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from descriptors import open_count
from formats import FORMATS
from inflight_region import PROTOCOL, Region, negotiate
from keeping_device import Keeping, send
from vhost_device import BUFFERS, Upper, exchange, served
from vhost_frontend import Frontend, layout_of
from waiting import wait_for

from virtio import DeviceQueue, DriverQueue, Feature
from virtio import Region as Memory
from virtio.errors import VhostUserError
from virtio.net import Loopback, NetDevice
from virtio.vhost_user import PROTOCOL as ALL
from virtio.vhost_user import Inflight, ProtocolFeature, Server
from virtio.vhost_user.message import INFLIGHT, U64, Request

ENDED = (EOFError, ConnectionError)


@contextmanager
def held(packed: bool, path: Path, size: int = 64) -> Iterator[tuple[Keeping, Server, Region, DriverQueue, Frontend]]:
    """A backend that was killed with texts 1 and 3 in flight, having answered 2 and 0. The frontend is that of before.

    It is a connection that ended, of a device that is told nothing of it, so that it leaves all as it was.
    """
    device = Keeping()
    with ExitStack() as stack:
        server = stack.enter_context(Server(device, path))
        frontend = stack.enter_context(Frontend(str(path)))
        use = negotiate(frontend, packed)
        region = stack.enter_context(Region(frontend, packed, size=size, large=size < 64))
        region.give(frontend)
        layout = layout_of(0, packed)
        driver = frontend.driver(0, layout, use)
        frontend.start(0, layout)
        send(frontend, driver, range(4))
        wait_for(lambda: len(device.kept) == 4)
        device.answer(2)
        device.answer(0)
        frontend.socket.close()
        wait_for(lambda: not server.connected)
        yield device, server, region, driver, frontend


@FORMATS
def test_a_region_is_made_and_kept_up(packed: bool, tmp_path: Path) -> None:
    with served(Upper(), tmp_path / "s") as (_, frontend):
        use = negotiate(frontend, packed)
        with Region(frontend, packed, queues=2) as region:
            # those for 64 descriptors, where any backend has them, and behind them those for 1024
            assert region.total == 2 * (2112 + 32832 if packed else 1088 + 16448)
            assert region.offset == 0
            assert os.fstat(region.fd).st_size == region.total
            with pytest.raises(PermissionError):
                os.ftruncate(region.fd, 0)
            assert not any(region.bytes[:])  # version 0
            region.give(frontend)
            layout = layout_of(0, packed)
            driver = frontend.driver(0, layout, use)
            frontend.start(0, layout)
            assert region.header[1:3] == [1, 64]
            for i in range(100):
                assert exchange(frontend, driver, b"text %d" % i) == b"TEXT %d" % i
            if packed:
                assert region.header[5:] == [200 % 64, 200 % 64, 0, 0]  # two descriptors each, three laps
                assert region.header[3] == region.header[4]
            else:
                assert region.header[4] == 100
            assert region.inflight() == []


def test_the_answer_is_as_long_as_the_question(tmp_path: Path) -> None:
    """QEMU and DPDK have 4 bytes of padding in it, and count them."""
    with served(Upper(), tmp_path / "s") as (_, frontend):
        negotiate(frontend, False)
        for padding in (b"", bytes(4)):
            frontend.say(Request.GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, 1, 64) + padding)
            payload, (fd,) = frontend.answer()
            os.close(fd)
            assert payload == INFLIGHT.pack(1088 + 16448, 0, 1, 64) + padding


def test_the_bit_may_be_masked(tmp_path: Path) -> None:
    assert ALL & ProtocolFeature.INFLIGHT_SHMFD
    with served(Upper(), tmp_path / "s", protocol=ProtocolFeature.REPLY_ACK) as (_, frontend):
        assert frontend.ask_u64(Request.GET_PROTOCOL_FEATURES) == ProtocolFeature.REPLY_ACK


@FORMATS
@pytest.mark.parametrize("size", [64, 32])
def test_what_was_in_flight_comes_again_first_and_in_order(size: int, packed: bool, tmp_path: Path) -> None:
    """Also in a ring that is larger than the size named (SeaBIOS and Linux have such ones behind QEMU 10)."""
    with held(packed, tmp_path / "s", size) as (device, server, region, driver, before):
        assert len(region.inflight()) == 2
        assert [number for number, _ in driver.dequeue_burst()] == [2, 0]
        with Frontend(str(tmp_path / "s"), before) as frontend:
            negotiate(frontend, packed)
            region.give(frontend)
            send(before, driver, range(4, 6))
            frontend.start(0, layout_of(0, packed))  # base 0, which is wrong: the region knows better
            wait_for(lambda: len(device.kept) == 4)
            assert device.texts == [b"text1", b"text3", b"text4", b"text5"]
            device.answer(3, 1)
            device.answer(1)
            device.answer(0)
            assert driver.dequeue_burst() == [(5, 5), (3, 5), (4, 5), (1, 5)]
            assert frontend.memory.read(BUFFERS + 0x380, 5) == b"TEXT3"
            assert region.inflight() == []
        assert server.error is None


@FORMATS
def test_a_ring_that_is_stopped_has_its_chains_again(packed: bool, tmp_path: Path) -> None:
    device = Keeping()
    with served(device, tmp_path / "s", drain=0.1) as (_, frontend):
        use = negotiate(frontend, packed)
        layout = layout_of(0, packed)
        driver = frontend.driver(0, layout, use)
        with Region(frontend, packed) as region:
            region.give(frontend)
            frontend.start(0, layout)
            send(frontend, driver, range(3))
            wait_for(lambda: len(device.kept) == 3)
            device.answer(1)
            base = frontend.stop(0)
            assert device.kept == []
            frontend.start(0, layout, base)
            wait_for(lambda: len(device.kept) == 2)
            assert device.texts == [b"text0", b"text2"]


@FORMATS
def test_a_network_device_has_one_too(packed: bool, tmp_path: Path) -> None:
    """Frames that a backend had popped when it was killed are sent by the next, into buffers that it had popped."""
    with NetDevice(Loopback(), worker="own") as device, served(device, tmp_path / "s") as (server, frontend):
        use = negotiate(frontend, packed)
        layouts = [layout_of(i, packed) for i in (0, 1)]
        rx, tx = (frontend.driver(i, layout, use) for i, layout in enumerate(layouts))

        def frame(number: int) -> None:
            at = BUFFERS + 0x1000 * (number % 8)
            rx.enqueue([], [(at, 2000)], cookie=at)
            frontend.memory.write(at + 0x800, bytes(12) + bytes([2, *bytes(5), 2, *bytes(5)]) + b"%50d" % number)
            tx.enqueue([(at + 0x800, 74)], [], cookie=None)

        with Region(frontend, packed, queues=2) as region:
            for i, layout in enumerate(layouts):  # the one that was killed
                queue = DeviceQueue(frontend.memory, layout, features=use & ~(1 << 30))
                queue.track(Inflight(Memory.from_fd(0, region.fd, region.total), Inflight.size(64, packed) * i, 64))
                for number in range(5) if i == 0 else ():
                    frame(number)
                queue.pop_burst(3 + i)
            region.give(frontend)
            for i, layout in enumerate(layouts):
                frontend.enable(i, True)  # or what it sends is dropped
                frontend.start(i, layout, enable=False)
            for number in range(200):
                if number > 4:
                    frame(number)
                    frontend.kick(0)
                    frontend.kick(1)
                wait_for(lambda: rx.nused)
                ((at, length),) = rx.dequeue_burst(1)
                assert length == 74
                assert frontend.memory.read(at + 24, 50) == b"%50d" % number
                tx.dequeue_burst()
            assert region.header[5] == 200 % 64 if packed else region.header[4] == 200
            assert region.inflight() == []
        assert server.error is None


BAD: dict[str, tuple[int, bytes, str, str]] = {
    # name: request, payload, the file that comes with it, what it is told
    "short": (Request.GET_INFLIGHT_FD, bytes(19), "", r"has 19 bytes \(20 to 24\)"),
    "long": (Request.SET_INFLIGHT_FD, bytes(25), "", "has 25 bytes"),
    "no queues": (Request.GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, 0, 64), "", r"0 queues \(1 to 2\)"),
    "three queues": (Request.GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, 3, 64), "", r"3 queues \(1 to 2\)"),
    "size 0": (Request.GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, 1, 0), "", r"queue size 0 \(1 to 32768\)"),
    "size 32769": (Request.SET_INFLIGHT_FD, INFLIGHT.pack(1 << 30, 0, 1, 32769), "sealed", "queue size 32769"),
    "no file": (Request.SET_INFLIGHT_FD, INFLIGHT.pack(4096, 0, 1, 64), "", r"0 file descriptors \(1\)"),
    "small": (Request.SET_INFLIGHT_FD, INFLIGHT.pack(1087, 0, 1, 64), "sealed", r"1087 bytes .* \(at least 1088\)"),
    "odd": (Request.SET_INFLIGHT_FD, INFLIGHT.pack(4096, 4, 1, 64), "sealed", "offset 4 is no multiple of 8"),
    "beyond its end": (Request.SET_INFLIGHT_FD, INFLIGHT.pack(4096, 4096, 1, 64), "sealed", "ends after the file"),
    "far": (Request.SET_INFLIGHT_FD, INFLIGHT.pack(4096, 1 << 63, 1, 64), "sealed", "1088 bytes at offset 92233"),
    "no memory": (Request.SET_INFLIGHT_FD, INFLIGHT.pack(4096, 0, 1, 64), "/dev/null", "at offset 0: .*No such"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_messages(name: str, tmp_path: Path) -> None:
    request, payload, file, says = BAD[name]
    with served(Upper(), tmp_path / "s") as (server, frontend):
        negotiate(frontend, False)
        before = open_count()
        fds = []
        if file == "/dev/null":
            fds = [os.open(file, os.O_RDWR)]
        elif file:
            fds = [os.memfd_create("x", os.MFD_ALLOW_SEALING)]
            os.ftruncate(fds[0], 4096)
        frontend.say(request, payload, fds)
        for fd in fds:
            os.close(fd)
        with pytest.raises(ENDED):
            frontend.answer()
        wait_for(lambda: not server.connected)
        with pytest.raises(VhostUserError, match=says):
            raise server.error or AssertionError
        assert open_count() < before


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    with served(Upper(), tmp_path / "s") as (_, frontend):
        negotiate(frontend, False)
        before = open_count()
        for _ in range(10):
            with Region(frontend, False) as region:
                region.give(frontend)
        assert open_count() <= before


def head(at: int, value: int) -> Callable[[Region], None]:
    """Put a number into the header."""

    def change(region: Region) -> None:
        numbers = region.header
        numbers[at] = value
        region.header = numbers

    return change


def entry(index: int, at: int, value: int) -> Callable[[Region], None]:
    """Put a number into the first or second entry in flight, or (-1) into the first free one."""

    def change(region: Region) -> None:
        which = region.header[3] if index < 0 else region.inflight()[index]
        numbers = region.entry(which)
        numbers[at] = value
        region.put(which, numbers)

    return change


BAD_SPLIT: dict[str, tuple[Callable[[Region], None], str]] = {
    "features": (head(0, 1), "features is 1, not 0"),
    "version": (head(1, 2), "version is 2, not 1"),
    "desc_num": (head(2, 65), "desc_num is 65, not 64"),
    "a batch of 65": (head(4, 2 - 65 & 0xFFFF), r"used_idx 65473 is 65 chains behind used.idx 2 \(limit 64\)"),
    "a batch nowhere": (
        lambda r: (head(4, 1)(r), head(3, 64)(r))[0],
        r"descriptor of the last batch is 64 \(limit 63\)",
    ),
    "inflight 2": (entry(0, 0, 2), r"inflight of descriptor 2 is 2 \(limit 1\)"),
    "a far counter": (entry(1, 2, 1 << 63), "counter of descriptor 6 is 9223372036854775808"),
    "more than there are": (lambda r: r.put(63, [1, 0, 9]), "3 chains in flight, of which 2 were made available"),
}
BAD_PACKED: dict[str, tuple[Callable[[Region], None], str]] = {
    "features": (head(0, 1), "features is 1, not 0"),
    "version": (head(1, 2), "version is 2, not 1"),
    "desc_num": (head(2, 63), "desc_num is 63, not 64"),
    "free list nowhere": (head(4, 65), r"entry in the free list is 65 \(limit 63\)"),
    "free list loops": (entry(-1, 1, 0), "free list comes to entry 0, which is taken"),
    "free list too short": (entry(-1, 1, 64), "entries that are free or in flight is 5, not 64"),
    "used_idx": (head(5, 64), r"used_idx is 64 \(limit 63\)"),
    "old_used_idx": (head(6, 99), r"old_used_idx is 99 \(limit 63\)"),
    "wrap": (head(7, 2), r"used_wrap_counter is 2 \(limit 1\)"),
    "old wrap": (head(8, 3), r"old_used_wrap_counter is 3 \(limit 1\)"),
    "a batch backwards": (head(6, 5), "used_idx 4 is -1 slots ahead of old_used_idx 5"),
    "inflight 2": (entry(0, 0, 2), r"inflight of entry 2 is 2 \(limit 1\)"),
    "a chain nowhere": (entry(0, 1, 64), r"entry in the chain of entry 2 is 64 \(limit 63\)"),
    "a chain loops": (entry(0, 1, 2), "chain of entry 2 comes to entry 2, which is taken"),
    "a chain ends elsewhere": (entry(0, 2, 9), "last of entry 2 is 9, not 3"),
    "a chain of none": (entry(0, 3, 0), r"num of entry 2 is 0 \(1 to 64\)"),
    "a chain of 65": (entry(0, 3, 65), r"num of entry 2 is 65 \(limit 64\)"),
    "a far counter": (entry(1, 4, 1 << 63), "counter of entry 6 is"),
    "a chain that goes on": (lambda r: r.put(3, [*r.entry(3)[:6], 1, *r.entry(3)[7:]]), "NEXT in flags of entry 3"),
    "a chain that ends before": (entry(0, 6, 0), "NEXT in flags of entry 2 is 0, not 1"),
}


@pytest.mark.parametrize(
    ("packed", "name"), [*((False, name) for name in BAD_SPLIT), *((True, name) for name in BAD_PACKED)]
)
def test_bad_content_is_refused(packed: bool, name: str, tmp_path: Path) -> None:
    change, says = (BAD_PACKED if packed else BAD_SPLIT)[name]
    with held(packed, tmp_path / "s") as (_, server, region, _, before):
        change(region)
        with Frontend(str(tmp_path / "s"), before) as frontend:
            negotiate(frontend, packed)
            region.give(frontend)
            with pytest.raises((AssertionError, *ENDED)):
                frontend.start(0, layout_of(0, packed))
        wait_for(lambda: server.error is not None)
        with pytest.raises(VhostUserError, match=says):
            raise server.error or AssertionError


@FORMATS
def test_garbage_is_refused_or_served(packed: bool, tmp_path: Path) -> None:
    """Any bytes in a region that says it is one: nothing but an error, or chains of this ring."""
    for seed in range(20):
        with held(packed, tmp_path / f"{seed}") as (_, server, region, _, before):
            good = region.bytes[:12]
            rest = bytearray(region.bytes[12:])
            for at in range(seed, len(rest), 41 + seed):
                rest[at] ^= 1 << seed % 8
            region.bytes[:] = good + rest
            with Frontend(str(tmp_path / f"{seed}"), before) as frontend:
                negotiate(frontend, packed)
                region.give(frontend)
                try:
                    frontend.start(0, layout_of(0, packed))
                except (AssertionError, *ENDED):
                    wait_for(lambda: server.error is not None)
            assert server.error is None or isinstance(server.error, VhostUserError), server.error


@FORMATS
def test_a_ring_that_another_driver_has_in_another_size(packed: bool, tmp_path: Path) -> None:
    """A firmware's, larger than the size named, and a system's, in turn: none finds the notes of another."""
    with served(Upper(), tmp_path / "s") as (server, frontend):
        use = negotiate(frontend, packed)
        with Region(frontend, packed, size=32) as region:
            region.give(frontend)
            for size, count in ((64, 100), (32, 7), (64, 3), (32, 1)):
                layout = layout_of(0, packed, size)
                frontend.memory.write(layout_of(0, packed).desc, bytes(0x10000))
                driver = frontend.driver(0, layout, use)
                frontend.start(0, layout)
                for i in range(count):
                    assert exchange(frontend, driver, b"text %d" % i) == b"TEXT %d" % i
                frontend.stop(0)
        assert server.error is None


def test_a_region_of_another_size_or_format(tmp_path: Path) -> None:
    """As other backends have it: there is none for larger rings."""
    with served(Upper(), tmp_path / "s") as (server, frontend):
        negotiate(frontend, False)
        with Region(frontend, False, size=32) as region:
            region.total = Inflight.size(32, False)
            region.give(frontend)
            with pytest.raises((AssertionError, *ENDED)):
                frontend.start(0, layout_of(0, False))
        wait_for(lambda: server.error is not None)
        assert str(server.error) == "ring 0: inflight region of 32 descriptors (queue size 64)"
    with served(Upper(), tmp_path / "s") as (server, frontend):
        negotiate(frontend, False)
        with Region(frontend, False) as region:
            region.give(frontend)
            use = Feature.VERSION_1 | Feature.RING_PACKED | 1 << 30
            frontend.order(Request.SET_FEATURES, U64.pack(use))
            with pytest.raises((AssertionError, *ENDED)):
                frontend.start(0, layout_of(0, True))
        wait_for(lambda: server.error is not None)
        assert str(server.error) == "ring 0: inflight region is of a split ring"
    assert PROTOCOL & ALL == PROTOCOL
