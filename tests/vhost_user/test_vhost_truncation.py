"""A frontend that cuts short what it shares, while we use it: its connection ends, and nothing else does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from descriptors import open_count
from formats import FORMATS
from inflight_region import PROTOCOL
from taps import interface, udp
from vhost_device import Upper, exchange, running, served
from vhost_frontend import GPA, PROTOCOL_FEATURES, SIZE, UADDR, Frontend, layout_of
from vhost_guest import HEADER, ROOM, TRANSMIT, Guest, Neighbours
from waiting import wait_for

from virtio import Feature
from virtio.errors import RingError, VhostUserError
from virtio.net import NetDevice
from virtio.net.netns import Namespace
from virtio.vhost_user import ProtocolFeature, Server
from virtio.vhost_user.message import INFLIGHT, LOG, REGION, TABLE, Request
from virtio.vhost_user.session import LOG_ALL
from virtio.virtqueue.inflight import Inflight


def ends(server: Server, what: str) -> None:
    """The connection ends with a word on what was cut."""
    wait_for(lambda: not server.connected)
    with pytest.raises(VhostUserError, match=f"^frontend truncated the {what}"):
        raise server.error or AssertionError
    server.error = None


MEMORY = f"memory region of {SIZE:#x} bytes at {GPA:#x}, or its file system is full$"


def memory_file(kind: str, folder: Path) -> int:
    if kind == "huge":
        fd = os.memfd_create("guest", os.MFD_HUGETLB)
        free = int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text())
        if free * (2 << 20) < SIZE:
            os.close(fd)
            pytest.skip("no huge pages are free (vm.nr_hugepages)")
        return fd
    return os.open(folder / "memory", os.O_RDWR | os.O_CREAT) if kind == "file" else os.memfd_create("guest")


PIPES = """
import os, signal, socket, sys
from vhost_device import BUFFERS, Upper, running
from waiting import wait_for
from vhost_frontend import Frontend
from virtio.vhost_user import Server
from virtio.vhost_user.message import U64, Request
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
with Server(Upper(), sys.argv[1]):
    frontend = Frontend(sys.argv[1])
    driver = running(frontend, False)
    call, reader = socket.socketpair()
    frontend.order(Request.SET_VRING_CALL, U64.pack(0), [call.fileno()])
    call.close()
    reader.close()
    driver.enqueue([(BUFFERS, 4)], [(BUFFERS + 64, 64)], cookie=1)
    driver.notify()
    frontend.kick(0)
    wait_for(lambda: driver.dequeue())
"""


def test_a_call_that_nobody_reads_ends_no_program(tmp_path: Path) -> None:
    """One that has SIGPIPE's default action, unlike Python's own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", PIPES, str(tmp_path / "s")], env=environment, check=True, timeout=120)


def cut(fd: int, size: int) -> None:
    """In another process."""
    subprocess.run([sys.executable, "-c", f"import os; os.ftruncate({fd}, {size})"], pass_fds=[fd], check=True)


@pytest.fixture
def neighbours(tmp_path: Path) -> Iterator[Neighbours]:
    with ExitStack() as stack:
        yield Neighbours(stack, tmp_path)


@pytest.mark.threads
@pytest.mark.races
@pytest.mark.parametrize("kind", ["memfd", "file", "huge"])
@FORMATS
def test_memory_is_cut_under_traffic(kind: str, packed: bool, neighbours: Neighbours) -> None:
    neighbours.check()
    wait_for(lambda: not neighbours.server.connected)
    before = open_count()
    for left in (0, SIZE // 2, 0x21000):
        if kind == "huge" and left == 0x21000:
            continue
        with Guest(neighbours.path, packed=packed, fd=memory_file(kind, neighbours.folder)) as guest:
            for _ in range(200):
                guest.send(neighbours.frame())
                guest.receive()
            cut(guest.fd, left)
            with suppress(RingError):  # its own end may read zeroes, too
                while neighbours.server.connected and neighbours.server.error is None:
                    guest.tx.dequeue_burst()
                    if guest.tx.nfree:
                        guest.tx.enqueue([(TRANSMIT, HEADER + 60)], [], cookie=None)
                        guest.tx.notify()
                    neighbours.far.send(neighbours.frame())
                    guest.kick(0)
                    guest.kick(1)
            neighbours.exchange(neighbours.near, neighbours.near)
            ends(neighbours.server, MEMORY)
        neighbours.check()
    assert open_count() <= before


@FORMATS
def test_memory_is_cut_while_nobody_kicks(packed: bool, neighbours: Neighbours) -> None:
    """A frame for it comes from the other end of the cable: the far guest's worker finds out."""
    with Guest(neighbours.path, packed=packed) as guest:
        neighbours.exchange(neighbours.far, guest)
        cut(guest.fd, 0)
        while neighbours.server.connected and neighbours.server.error is None:
            neighbours.far.send(neighbours.frame())
        ends(neighbours.server, MEMORY)
    neighbours.check()


def test_threads_of_a_program_that_blocks_signals(tmp_path: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGBUS])
    try:
        with ExitStack() as stack:
            neighbours = Neighbours(stack, tmp_path)
            with Guest(neighbours.path) as guest:
                cut(guest.fd, 0x30000)  # the rings are there
                guest.tx.enqueue([(TRANSMIT, HEADER + 60)], [], cookie=None)
                guest.tx.notify()
                guest.kick(1)
                ends(neighbours.server, MEMORY)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@FORMATS
def test_memory_of_a_device_in_python_is_cut(packed: bool, tmp_path: Path) -> None:
    """The thread that faults is the connection's own, and has the GIL."""
    with served(Upper(), tmp_path / "s") as (server, frontend):
        exchange(frontend, running(frontend, packed), b"there")
        os.ftruncate(frontend.fd, 0)
        frontend.kick(0)
        ends(server, MEMORY)


class Writes(Upper):
    """Has the kernel read what came."""

    def notified(self, index: int) -> None:
        for chain in self.chains(index):
            os.writev(self.pipe, chain.readable)

    def __init__(self) -> None:
        super().__init__()
        self.reader, self.pipe = os.pipe()


def two_regions(frontend: Frontend) -> int:
    """Share memory of which the second half is a file of its own; return that."""
    half = SIZE // 2
    fd = os.memfd_create("half")
    os.ftruncate(fd, half)
    table = TABLE.pack(2, 0) + REGION.pack(GPA, half, UADDR, 0) + REGION.pack(GPA + half, half, UADDR + half, 0)
    frontend.order(Request.SET_MEM_TABLE, table, [frontend.fd, fd])
    return fd


HALF = f"memory region of {SIZE // 2:#x} bytes at {GPA + SIZE // 2:#x}"


def test_the_kernel_is_who_finds_nothing(tmp_path: Path) -> None:
    """A device in Python gets EFAULT."""
    device = Writes()
    with served(device, tmp_path / "s") as (server, frontend):
        use = frontend.negotiate()
        fd = two_regions(frontend)
        driver = frontend.driver(0, layout_of(0, False), use)
        frontend.start(0, layout_of(0, False))
        os.ftruncate(fd, 0)
        driver.enqueue([(TRANSMIT, 100)], [], cookie=None)
        driver.notify()
        frontend.kick(0)
        ends(server, HALF)
        os.close(fd)
    os.close(device.reader)
    os.close(device.pipe)


@pytest.mark.parametrize("way", ["sent", "received"])
def test_a_tap_finds_nothing(way: str, space: Namespace, tmp_path: Path) -> None:
    """writev gets EFAULT; readv may say that all was well. The connection ends, the TAP goes on."""
    tap = interface(space)
    with NetDevice(tap, worker="own") as device, Server(device, tmp_path / "s") as server:
        with Frontend(str(tmp_path / "s")) as frontend:
            use = frontend.negotiate()
            fd = two_regions(frontend)
            rings = [frontend.driver(index, layout_of(index, False), use) for index in (0, 1)]
            for index in (0, 1):
                frontend.start(index, layout_of(index, False))
            os.ftruncate(fd, 0)
            if way == "sent":
                rings[1].enqueue([(GPA + SIZE // 4, HEADER), (TRANSMIT, 100)], [], cookie=None)  # we read the header
                rings[1].notify()
                frontend.kick(1)
            else:
                rings[0].enqueue([], [(TRANSMIT, ROOM)], cookie=None)
                rings[0].notify()
                frontend.kick(0)
                with space.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
                    outside.sendto(b"for the guest", ("10.0.0.2", 9))
                    ends(server, HALF)
            if way == "sent":
                ends(server, HALF)
            os.close(fd)
        assert way == "received" or tap.statistics()["send_EFAULT"] > 0
        sent = tap.statistics()["send_packets"]
        with Guest(str(tmp_path / "s")) as guest:
            assert guest.send(udp(b"next"))
            wait_for(lambda: tap.statistics()["send_packets"] == sent + 1)


@FORMATS
def test_a_dirty_log_is_cut(packed: bool, neighbours: Neighbours) -> None:
    with Guest(neighbours.path, packed=packed) as guest:
        log = os.memfd_create("log")
        os.ftruncate(log, 1 << 20)
        guest.order(Request.SET_LOG_BASE, LOG.pack(1 << 20, 0), [log])
        use = Feature.VERSION_1 | (Feature.RING_PACKED if packed else 0) | PROTOCOL_FEATURES
        guest.order(Request.SET_FEATURES, int(use | LOG_ALL).to_bytes(8, "little"))
        neighbours.exchange(guest, neighbours.far)
        assert any(os.pread(log, 1 << 20, 0))
        cut(log, 0)
        guest.send(neighbours.frame())
        ends(neighbours.server, r"dirty log of 0x100000 bytes")
        os.close(log)
    neighbours.check()


@FORMATS
def test_an_inflight_file_is_cut(packed: bool, tmp_path: Path) -> None:
    """One that cannot be sealed. Of one that can, no byte can be cut off."""
    for flags in (0, os.MFD_ALLOW_SEALING):
        with served(Upper(), tmp_path / "s") as (server, frontend):
            frontend.negotiate(Feature.VERSION_1 | (Feature.RING_PACKED if packed else 0), PROTOCOL)
            fd = os.memfd_create("inflight", flags)
            size = Inflight.size(64, packed)
            os.ftruncate(fd, size)
            frontend.order(Request.SET_INFLIGHT_FD, INFLIGHT.pack(size, 0, 1, 64), [fd])
            driver = running(frontend, packed, protocol=ProtocolFeature.INFLIGHT_SHMFD)
            assert exchange(frontend, driver, b"there") == b"THERE"
            if flags:
                with pytest.raises(PermissionError):
                    os.ftruncate(fd, 0)
                assert exchange(frontend, driver, b"still there") == b"STILL THERE"
            else:
                cut(fd, 0)
                exchange(frontend, driver, b"here")
                ends(server, f"inflight region of {size:#x} bytes")
            os.close(fd)
