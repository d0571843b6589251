"""A device of ours over vhost-user, before a frontend that the tests play.

The real frontends are in test_vhost_dpdk.py. Here is what those never do: wrong messages, odd orders, going away.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from descriptors import open_count
from formats import FORMATS
from vhost_device import BUFFERS, Upper, exchange, running, served
from vhost_frontend import GPA, PROTOCOL_FEATURES, SIZE, UADDR, Frontend, layout_of, u32s
from waiting import wait_for

from virtio import DriverQueue, Feature
from virtio.constants import NetFeature
from virtio.errors import Disconnected, VhostUserError
from virtio.net import CallPort, Loopback, NetDevice
from virtio.vhost_user import PROTOCOL, ProtocolFeature, Server
from virtio.vhost_user.message import ADDRESS, CONFIG, NO_FD, REGION, STATE, U64, BackendRequest, Request
from virtio.vhost_user.session import LOG_ALL

LOG_RING = 1  # flag of SET_VRING_ADDR: log writes to the used ring
R = Request


@FORMATS
def test_any_device_is_served(packed: bool, tmp_path: Path) -> None:
    with served(Upper(), tmp_path / "s") as (_, frontend):
        driver = running(frontend, packed)
        for i in range(300):  # the ring wraps
            assert exchange(frontend, driver, f"text {i}".encode()) == f"TEXT {i}".encode()
        assert select.select([frontend.calls[0]], [], [], 10)[0]  # and it interrupts


@FORMATS
def test_a_ring_that_is_stopped_goes_on_where_it_stood(packed: bool, tmp_path: Path) -> None:
    with served(Upper(), tmp_path / "s") as (_, frontend):
        driver = running(frontend, packed)
        for i in range(7):
            exchange(frontend, driver, b"x%d" % i)
        base = frontend.stop(0)
        assert base & 0x7FFF == 7 * (2 if packed else 1)
        frontend.start(0, layout_of(0, packed), base)
        for i in range(100):
            assert exchange(frontend, driver, b"y%d" % i) == b"Y%d" % i


@pytest.mark.parametrize("pieces", [2, 3])
def test_a_packed_ring_goes_on_at_slot_0_of_any_lap(pieces: int, tmp_path: Path) -> None:
    """A base of 0 is the start of the second lap, too; descriptors of three pieces are left over from those before."""
    with served(Upper(), tmp_path / "s") as (_, frontend):
        driver = running(frontend, True)
        size = layout_of(0, True).size
        writable = [(BUFFERS + 0x1000 * i, 256) for i in range(1, pieces)]
        seen = set()
        for i in range(4 * size):
            frontend.memory.write(BUFFERS, b"x%d" % i)
            driver.enqueue([(BUFFERS, 8)], writable, cookie="c")
            driver.notify()
            frontend.kick(0)
            wait_for(lambda: driver.nused > 0)
            driver.dequeue_burst()
            if (i + 1) * pieces % size == 0:
                base = frontend.stop(0)
                seen.add(base & 0xFFFF)
                frontend.start(0, layout_of(0, True), base)
        assert seen == {0, 0x8000}


@FORMATS
def test_a_frontend_that_comes_back_goes_on(packed: bool, tmp_path: Path) -> None:
    """The backend sees a new connection; the ring in guest memory is that of before."""
    device = Upper()
    with Server(device, tmp_path / "s") as server:
        with Frontend(str(tmp_path / "s")) as frontend:
            driver = running(frontend, packed)
            for i in range(5):
                exchange(frontend, driver, b"a%d" % i)
            base = frontend.stop(0)
            state, content = driver.state(), frontend.memory.read(GPA, SIZE)
        wait_for(lambda: not server.connected)
        with Frontend(str(tmp_path / "s")) as frontend:
            frontend.memory.write(GPA, content)
            use = Feature.VERSION_1 | (Feature.RING_PACKED if packed else 0)
            frontend.negotiate(use)
            frontend.share_memory()
            again = DriverQueue.restore(frontend.memory, state)
            frontend.start(0, layout_of(0, packed), base)
            assert exchange(frontend, again, b"and on") == b"AND ON"
        assert server.connections == 2
        assert server.error is None


def test_what_a_killed_backend_took_is_done_again(tmp_path: Path) -> None:
    """Base ahead of used.idx: chains that never came back."""
    with served(Upper(), tmp_path / "s") as (_, frontend):
        use = frontend.negotiate()
        frontend.share_memory()
        layout = layout_of(0, False)
        driver = frontend.driver(0, layout, use)
        frontend.memory.write(BUFFERS, b"lost")
        driver.enqueue([(BUFFERS, 4)], [(BUFFERS + 0x1000, 16)], cookie=None)
        driver.notify()
        frontend.start(0, layout, base=1)
        wait_for(lambda: driver.nused == 1)
        assert frontend.memory.read(BUFFERS + 0x1000, 4) == b"LOST"


def test_kicks_before_the_start_count(tmp_path: Path) -> None:
    with served(Upper(), tmp_path / "s") as (_, frontend):
        use = frontend.negotiate()
        frontend.share_memory()
        layout = layout_of(0, False)
        driver = frontend.driver(0, layout, use)
        frontend.memory.write(BUFFERS, b"early")
        driver.enqueue([(BUFFERS, 5)], [(BUFFERS + 0x1000, 16)], cookie=None)
        frontend.start(0, layout)
        wait_for(lambda: driver.nused == 1)


def running_without_kicks(frontend: Frontend) -> DriverQueue:
    """Start ring 0, split; return its driver end."""
    use = frontend.negotiate()
    frontend.share_memory()
    layout = layout_of(0, False)
    driver = frontend.driver(0, layout, use)
    frontend.place(0, layout)
    frontend.order(R.SET_VRING_KICK, U64.pack(0 | NO_FD))
    frontend.enable(0, True)
    return driver


def test_a_ring_without_kicks_is_looked_at_again_and_again(tmp_path: Path) -> None:
    with served(Upper(), tmp_path / "s") as (_, frontend):
        driver = running_without_kicks(frontend)
        for text in (b"one", b"two"):
            frontend.memory.write(BUFFERS, text)
            driver.enqueue([(BUFFERS, 3)], [(BUFFERS + 0x1000, 16)], cookie=None)
            wait_for(lambda: driver.nused)
            driver.dequeue_burst()
            assert frontend.memory.read(BUFFERS + 0x1000, 3) == text.upper()


def test_a_ring_without_kicks_that_goes_on_is_looked_at_as_a_new_one(tmp_path: Path) -> None:
    """It may look as the last one did when that was seen last: the chains of each are counted from 0."""
    device = Upper()
    with served(device, tmp_path / "s") as (server, frontend):
        driver = running_without_kicks(frontend)
        assert server._backend is not None
        polling = server._backend.rings.polling
        for _ in range(2):
            driver.enqueue([(BUFFERS, 3)], [(BUFFERS + 0x1000, 16)], cookie=None)
            wait_for(lambda: driver.nused)
            driver.dequeue_burst()
            polling._seen[0] = (1, 0, True)  # as if it was stopped before another look
            frontend.order(R.SET_VRING_BASE, STATE.pack(0, frontend.stop(0)))
            frontend.order(R.SET_VRING_KICK, U64.pack(0 | NO_FD))


def test_a_ring_starts_disabled_if_the_frontend_knows_of_that(tmp_path: Path) -> None:
    with served(Upper(), tmp_path / "s") as (_, frontend):
        use = frontend.negotiate()
        frontend.share_memory()
        layout = layout_of(0, False)
        driver = frontend.driver(0, layout, use)
        frontend.start(0, layout, enable=False)
        frontend.memory.write(BUFFERS, b"wait")
        driver.enqueue([(BUFFERS, 4)], [(BUFFERS + 0x1000, 16)], cookie=None)
        frontend.kick(0)
        frontend.ask_u64(R.GET_FEATURES)
        time.sleep(0.05)
        assert driver.nused == 0
        frontend.enable(0, True)
        wait_for(lambda: driver.nused == 1)


def test_a_ring_starts_enabled_without_protocol_features(tmp_path: Path) -> None:
    with served(Upper(), tmp_path / "s") as (_, frontend):
        use = frontend.negotiate(protocol=0)
        frontend.share_memory()
        layout = layout_of(0, False)
        driver = frontend.driver(0, layout, use)
        frontend.start(0, layout, enable=False)
        assert exchange(frontend, driver, b"on") == b"ON"


def test_the_call_descriptor_may_change(tmp_path: Path) -> None:
    with served(Upper(), tmp_path / "s") as (_, frontend):
        driver = running(frontend, False)
        exchange(frontend, driver, b"1")
        frontend.eventfd(R.SET_VRING_CALL, 0, frontend.calls)
        assert select.select([frontend.calls[0]], [], [], 10)[0]  # one may have been missed
        os.eventfd_read(frontend.calls[0])
        exchange(frontend, driver, b"2")
        assert select.select([frontend.calls[0]], [], [], 10)[0]


def test_memory_may_come_and_go_by_slots(tmp_path: Path) -> None:
    slots = ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIGURE_MEM_SLOTS
    with served(Upper(), tmp_path / "s") as (_, frontend):
        use = frontend.negotiate(protocol=slots)
        assert frontend.ask_u64(R.GET_MAX_MEM_SLOTS) == 509
        half = SIZE // 2
        for at in (0, half):
            frontend.order(R.ADD_MEM_REG, bytes(8) + REGION.pack(GPA + at, half, UADDR + at, at), [frontend.fd])
        for request in (R.ADD_MEM_REG, R.REM_MEM_REG):  # QEMU says all of it again for each queue pair
            frontend.order(request, bytes(8) + REGION.pack(GPA, half, UADDR, 0), [frontend.fd])
        layout = layout_of(0, False)
        driver = frontend.driver(0, layout, use)
        frontend.start(0, layout)
        assert exchange(frontend, driver, b"slot") == b"SLOT"
        frontend.order(R.REM_MEM_REG, bytes(8) + REGION.pack(GPA + half, half, UADDR + half, 0))
        assert exchange(frontend, driver, b"still") == b"STILL"
        # the ring's own region may be given again: the same addresses, mapped anew
        frontend.share_memory()
        assert exchange(frontend, driver, b"and now") == b"AND NOW"


def test_configuration_is_read_and_written(tmp_path: Path) -> None:
    both = ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG | ProtocolFeature.BACKEND_REQ
    device = Upper()
    with served(device, tmp_path / "s") as (_, frontend):
        frontend.negotiate(protocol=both)
        head = CONFIG.pack(0, 8, 0)
        assert frontend.ask(R.GET_CONFIG, head + bytes(8)) == head + b"upper\0\0\0"
        frontend.order(R.SET_CONFIG, CONFIG.pack(1, 2, 0) + b"PP")
        assert frontend.ask(R.GET_CONFIG, head + bytes(8)) == head + b"uPPer\0\0\0"
        assert frontend.ask(R.GET_CONFIG, CONFIG.pack(0, 300, 0) + bytes(300)) == b""  # refused
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.settimeout(10)
        with ours:
            frontend.order(R.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
            theirs.close()
            frontend.share_memory()
            frontend.start(0, layout_of(0, False))
            device.config_changed()
            assert ours.recv(12) == u32s(2, 1, 0)  # CONFIG_CHANGE_MSG


@pytest.mark.parametrize("may", [ProtocolFeature.BACKEND_SEND_FD, ProtocolFeature(0)], ids=["may", "may not"])
def test_a_device_asks_the_frontend_and_sends_a_descriptor(may: ProtocolFeature, tmp_path: Path) -> None:
    device = Upper()
    told: list[Any] = []
    device.bind = lambda memory, interrupt: (told.append(interrupt), Upper.bind(device, memory, interrupt))  # type: ignore
    with served(device, tmp_path / "s") as (_, frontend):
        frontend.negotiate(protocol=ProtocolFeature.REPLY_ACK | ProtocolFeature.BACKEND_REQ | may)
        (backend,) = told
        ask = BackendRequest.VRING_HOST_NOTIFIER_MSG
        assert not backend.tell(ask, U64.pack(1))  # there is no channel yet
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.settimeout(10)
        with ours, open(os.devnull) as given:
            frontend.order(R.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
            theirs.close()
            if may:
                assert backend.tell(ask, U64.pack(1), [given.fileno()])
                data, (got,), *_ = socket.recv_fds(ours, 64, 2)
                assert data == u32s(3, 1, 8) + U64.pack(1)
                assert os.path.sameopenfile(got, given.fileno())
                os.close(got)
            else:
                with pytest.raises(VhostUserError, match="BACKEND_SEND_FD is not negotiated"):
                    backend.tell(ask, U64.pack(1), [given.fileno()])


def test_status_is_kept_and_a_refusal_shows(tmp_path: Path) -> None:
    with served(Upper(), tmp_path / "s") as (_, frontend):
        frontend.negotiate(protocol=ProtocolFeature.REPLY_ACK | ProtocolFeature.STATUS)
        frontend.order(R.SET_STATUS, U64.pack(0xB))
        assert frontend.ask_u64(R.GET_STATUS) == 0xB
        frontend.order(R.SET_STATUS, U64.pack(0))
        assert frontend.ask_u64(R.GET_STATUS) == 0


@FORMATS
def test_a_dirty_log_has_what_the_device_wrote_while_it_was_on(packed: bool, tmp_path: Path) -> None:
    """In QEMU's order: it is switched on while rings run, and off again when a migration is cancelled."""
    use = Feature.VERSION_1 | (Feature.RING_PACKED if packed else 0) | PROTOCOL_FEATURES
    ring, move = layout_of(0, packed), UADDR - GPA
    address = ADDRESS.pack(0, LOG_RING, ring.desc + move, ring.device + move, ring.driver + move, ring.device)
    with served(Upper(), tmp_path / "s") as (_, frontend):
        driver = running(frontend, packed, protocol=ProtocolFeature.LOG_SHMFD)
        log = os.memfd_create("log")
        os.ftruncate(log, 1 << 20)
        exchange(frontend, driver, b"unseen")
        frontend.say(R.SET_LOG_BASE, U64.pack(1 << 20) + U64.pack(0), [log])
        frontend.answer()
        frontend.order(R.SET_FEATURES, U64.pack(use | LOG_ALL))
        frontend.order(R.SET_VRING_ADDR, address)
        exchange(frontend, driver, b"seen")
        first = GPA >> 12
        data = os.pread(log, 1 << 20, 0)
        dirty = {page for page in range(first, first + (SIZE >> 12)) if data[page >> 3] >> (page & 7) & 1}
        written = (ring.desc if packed else ring.device) >> 12
        assert dirty == {written, (BUFFERS + 0x1000) >> 12}
        frontend.order(R.SET_FEATURES, U64.pack(use))
        os.pwrite(log, bytes(len(data)), 0)
        assert exchange(frontend, driver, b"unseen") == b"UNSEEN"
        assert not any(os.pread(log, 1 << 20, 0))
        os.close(log)


def test_a_guest_that_moved_here_is_announced(tmp_path: Path) -> None:
    seen: list[bytes] = []
    device = NetDevice(CallPort(lambda frames: seen.extend(frame for _, frame in frames)), mtu=1500, worker="own")
    protocol = ProtocolFeature.REPLY_ACK | ProtocolFeature.RARP | ProtocolFeature.MTU
    with device, served(device, tmp_path / "s") as (server, frontend):
        running(frontend, False, index=1, protocol=protocol)
        frontend.order(R.NET_SET_MTU, U64.pack(1400))
        frontend.order(R.SEND_RARP, U64.pack(0x665544332202))
        wait_for(lambda: seen)
        assert seen[0][:14] == bytes.fromhex("ffffffffffff 022233445566 8035")
        assert len(seen[0]) == 60
        assert server.error is None
        frontend.say(R.NET_SET_MTU, U64.pack(9000), flags=8)
        assert U64.unpack(frontend.answer()[0]) == (1,)


@pytest.mark.timeout(60)
def test_a_channel_for_requests_that_is_full_holds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtio.vhost_user.connection.PATIENCE", 1000)
    device = Upper()
    with served(device, tmp_path / "s") as (_, frontend):
        frontend.negotiate(protocol=ProtocolFeature.CONFIG | ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours:
            frontend.order(R.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
            theirs.close()
            frontend.share_memory()
            frontend.start(0, layout_of(0, False))
            for _ in range(100_000):
                device.config_changed()
            ours.settimeout(10)
            while ours.recv(1 << 16):  # whole messages, then its end
                pass


@pytest.mark.timeout(60)
@pytest.mark.parametrize("count", [0, 1], ids=["plain", "with a descriptor"])
def test_nor_one_that_the_frontend_fills_and_sets_blocking(count: int, tmp_path: Path) -> None:
    device = Upper()
    with served(device, tmp_path / "s") as (server, frontend):
        bits = ProtocolFeature.CONFIG | ProtocolFeature.BACKEND_REQ | ProtocolFeature.BACKEND_SEND_FD
        frontend.negotiate(protocol=bits | ProtocolFeature.REPLY_ACK)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            frontend.order(R.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
            theirs.setblocking(False)
            with suppress(BlockingIOError):
                while theirs.send(b"x"):
                    pass
            theirs.setblocking(True)
            assert server._backend is not None
            assert not server._backend.tell(BackendRequest.CONFIG_CHANGE_MSG, b"", [ours.fileno()] * count)


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    """Frontends come, share memory, run rings, some break off amid it all."""
    with Server(NetDevice(Loopback()), tmp_path / "s") as server:

        def once(i: int) -> None:
            with Frontend(str(tmp_path / "s")) as frontend:
                driver = running(frontend, bool(i % 2), index=i % 2)
                held: dict[int, int] = {}
                frontend.eventfd(R.SET_VRING_ERR, 0, held)
                if i % 3 == 0:
                    frontend.say(77, b"", [held[0]] * 3)
                elif i % 3 == 1:
                    frontend.stop(i % 2)
                os.close(held[0])
                del driver
            wait_for(lambda: not server.connected)

        once(0)
        once(1)
        before = open_count()
        for i in range(30):
            once(i)
        assert open_count() <= before


def test_a_connection_ends_whole_without_any_descriptor_left(tmp_path: Path) -> None:
    with NetDevice(Loopback()) as device, Server(device, tmp_path / "s") as server:
        frontend = Frontend(str(tmp_path / "s"))
        running(frontend, False, index=1)
        frontend.start(0, layout_of(0, False))
        before = Path("/proc/self/maps").read_text().count("memfd:guest")
        held: list[int] = []
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, limits[1]), limits[1]))
        try:
            with suppress(OSError):
                while True:
                    held.append(os.dup(0))
            frontend.socket.close()
            wait_for(lambda: not server.connected)
            assert server.error is None
        finally:
            for fd in held:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        gc.collect()
        assert Path("/proc/self/maps").read_text().count("memfd:guest") == before - 1  # what is left is the frontend's
        frontend.close()
        with Frontend(str(tmp_path / "s")) as frontend:
            running(frontend, False, index=1)


def test_features_that_contradict_each_other_leave_nothing(tmp_path: Path) -> None:
    """Nor does the device keep more than what it has to say of them."""
    with Server(NetDevice(Loopback()), tmp_path / "s") as server:

        def once() -> None:
            with Frontend(str(tmp_path / "s")) as frontend, pytest.raises((AssertionError, EOFError, ConnectionError)):
                running(frontend, False, features=NetFeature.HOST_TSO4)
            wait_for(lambda: not server.connected)
            assert "HOST_TSO4 (needs CSUM)" in str(server.error)

        once()
        before = open_count()
        for _ in range(5):
            once()
        assert open_count() <= before


def test_two_servers_may_not_share_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Server(Upper(), path), pytest.raises(OSError, match="in use"):
        Server(Upper(), path)
    assert not path.exists()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    with Server(Upper(), path), Frontend(str(path)) as frontend:  # of a process that was killed
        assert frontend.ask_u64(R.GET_QUEUE_NUM) == 2


def test_we_connect_to_a_frontend_that_listens(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with Server(Upper(), path, client=True) as server:
        for count in (1, 2):  # it may go, and come again
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                listener.listen(1)
                connection, _ = listener.accept()
                connection.sendall(u32s(R.GET_QUEUE_NUM, 1, 0))
                connection.settimeout(10)
                assert connection.recv(20, socket.MSG_WAITALL)[12:] == U64.pack(2)
            os.unlink(path)  # nobody listens when the connection ends: the next one is the next round's
            connection.close()
            wait_for(lambda: not server.connected)
            assert server.connections == count


def test_features_may_be_masked(tmp_path: Path) -> None:
    mask = ~(Feature.RING_PACKED | Feature.IN_ORDER)
    only = ProtocolFeature.REPLY_ACK
    with served(Upper(), tmp_path / "s", mask=mask, protocol=only) as (_, frontend):
        offered = frontend.ask_u64(R.GET_FEATURES)
        assert not offered & (Feature.RING_PACKED | Feature.IN_ORDER | 1 << 26)
        assert frontend.ask_u64(R.GET_PROTOCOL_FEATURES) == only
    assert PROTOCOL & only


def test_all_may_be_masked(tmp_path: Path) -> None:
    with served(Upper(), tmp_path / "s", mask=0) as (_, frontend):
        assert frontend.ask_u64(R.GET_FEATURES) == 0
        assert frontend.ask_u64(R.GET_PROTOCOL_FEATURES) == 0


def test_disconnected_is_no_error_of_the_frontend() -> None:
    assert not issubclass(Disconnected, VhostUserError)
