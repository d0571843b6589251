"""No port, queue of a network device or queue of vtnet touches a byte beyond a frame, a buffer, a pool or a ring.

Each piece of a frame that a guest sends, each buffer that it gives and each area of its rings ends at, or begins on, a
guard page. Frames are sent in one piece, and in two that are parted at each byte of their headers.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import socket
from collections.abc import Callable
from functools import cached_property
from tempfile import mkdtemp
from typing import Any

import pytest
from guardframes import EVERY, HEADS, cut_off, undone
from guardpages import PAGE, SIMD, Children, Guarded, GuestAreas, at
from spaces import namespaces, need_namespaces

from virtio import DeviceQueue, DriverQueue, Feature, _checksum
from virtio._bell import Bell
from virtio._devicebench import ScriptPort
from virtio._net_execute import Executor
from virtio._net_receive import NetReceive
from virtio._net_tx import NetTransmit
from virtio._portbench import MemorySink, receive
from virtio._pump import PumpReceive, PumpTransmit
from virtio._splice import PortSplice
from virtio._vtnet_pool import Pool, pool_size
from virtio._vtnet_receive import VtnetReceive
from virtio._vtnet_transmit import VtnetTransmit
from virtio.constants import NetFeature as F
from virtio.net.ports import Cable, CallPort, Generator, Loopback, PcapReader, PcapWriter, Port, Sink
from virtio.offload import NetHeader, net_header_size

ENDS = {"ending": True, "beginning": False}
SEGMENTED = int(F.GUEST_TSO4 | F.GUEST_TSO6 | F.GUEST_ECN | F.GUEST_UFO | F.GUEST_USO4 | F.GUEST_USO6)
HOST = int(F.CSUM | F.HOST_TSO4 | F.HOST_TSO6 | F.HOST_ECN | F.HOST_UFO | F.HOST_USO)
TUNNELLED = EVERY & 0xF << 65
OFFLOADS = 0x1FF  # VIRTIO_OFFLOAD_* of a port that takes everything
# what a guest negotiates, besides VERSION_1 and HOST, and the VIRTIO_OFFLOAD_* that it accepts undone
GUESTS = {
    "plain": (0, 0),
    "mergeable": (int(F.MRG_RXBUF), 0),
    "checksum": (int(F.GUEST_CSUM), 1),
    "segmentation": (int(F.GUEST_CSUM | F.MRG_RXBUF) | SEGMENTED, 0x7F),
    "hash": (int(F.GUEST_CSUM | F.HASH_REPORT) | SEGMENTED, 0x7F),
    "tunnels": (int(F.GUEST_CSUM | F.MRG_RXBUF) | SEGMENTED | TUNNELLED, OFFLOADS),
}
SHAPES = ("one", "header apart", "odd", "loose", "merged")
FEW = ("v4-tcp-options", "v6-udp-uso", "vxlan-tcp")
ROOM = 17 * PAGE  # of a buffer for the largest frame
ETHERNET = bytes.fromhex("02000000000202000000000188b5")
Frames = list[tuple[NetHeader, bytes]]


class Ring(GuestAreas):
    """One queue of a guest, both ends; buffers lie in rooms of their own."""

    def __init__(self, features: int, packed: bool, last: bool, rooms: int = 12) -> None:
        super().__init__()
        self.last, self.features = last, features | Feature.VERSION_1 | (Feature.RING_PACKED if packed else 0)
        self.header = net_header_size(self.features)
        layout = self.ring(packed, 64, last)
        self.driver = DriverQueue(self.memory, layout, features=self.features)
        self.device = DeviceQueue(self.memory, layout, features=self.features)
        self.rooms = itertools.cycle([self.area(ROOM, last) for _ in range(rooms)])
        self.bells = {"kick": Bell(), "call": Bell(), "trouble": Bell()}

    def room(self, size: int) -> tuple[int, int]:
        """Return a buffer of so many bytes, at the guard."""
        return next(self.rooms) + (ROOM - size if self.last else 0), size


class Sender(Ring):
    """A transmit queue, at a port."""

    def __init__(self, port: Port, features: int, packed: bool, last: bool) -> None:
        super().__init__(features | HOST, packed, last)
        self.task = NetTransmit(self.device, port, 0, self.features, by_hand=True, **self.bells)
        self.task.resume()

    def give(self, header: NetHeader, frame: bytes, *places: int) -> None:
        """Make a frame available in pieces that end at these places, counted with the header."""
        self.give_raw(header.to_bytes(self.header) + frame, *places)

    def give_raw(self, data: bytes, *places: int) -> None:
        pieces = []
        for start, end in itertools.pairwise([0, *(place for place in places if place < len(data)), len(data)]):
            gpa, size = self.room(end - start)
            self.memory.write(gpa, data[start:end])
            pieces.append((gpa, size))
        self.driver.enqueue(pieces)

    def poll(self) -> None:
        while self.task.poll():
            pass
        assert self.device.broken is None and not any(self.task.statistics()["dropped"].values())
        self.driver.dequeue_burst()


class Receiver(Ring):
    """A receive queue, at a port."""

    def __init__(self, port: Port, features: int, packed: bool, last: bool) -> None:
        super().__init__(features, packed, last, rooms=48)
        self.mergeable = bool(features & F.MRG_RXBUF)
        self.task = NetReceive(self.device, port, 0, self.features, by_hand=True, **self.bells)
        self.task.resume()
        self.task.connect()
        self.got = b""

    def post(self, size: int, shape: str) -> None:
        """Give buffers for a frame of so many bytes: just as many, header and all."""
        total = self.header + size
        if shape == "merged" and self.mergeable and size >= 2 * self.header:  # no buffer is smaller than a header
            for part in (size - self.header, self.header, self.header):
                buffer = [self.room(part)]
                self.driver.enqueue([], buffer, buffer)
            return
        cuts = {"header apart": [self.header, size], "odd": [5, total - 12, 7], "loose": [total + 3]}
        pieces = [self.room(part) for part in cuts.get(shape, [total])]
        self.driver.enqueue([], pieces, pieces)

    def take(self) -> list[bytes]:
        """Return the frames that came, without headers."""
        while self.task.poll():
            pass
        assert self.device.broken is None and not any(self.task.statistics()["dropped"].values())
        frames, left = [], 0
        for pieces, length in self.driver.dequeue_burst():
            data = b"".join(self.memory.read(*piece) for piece in pieces)[:length]
            if left == 0:
                left = int.from_bytes(data[10:12], "little")
                frames.append(data[self.header :])
            else:
                frames[-1] += data
            left -= 1
        assert left == 0
        return frames


# ---- from one guest to another ----


Move = Callable[[], object]
# two ports, the VIRTIO_OFFLOAD_* that they pass on undone, and what moves frames from the first to the second
Path = tuple[Port, Port, int, Move]


def nothing() -> None: ...


def cable() -> Path:
    a, b = Cable()
    return a, b, OFFLOADS, nothing


def loopback() -> Path:
    port = Loopback()
    return port, port, OFFLOADS, nothing


def script(offloads: int, in_place: bool) -> Path:
    a, b = ScriptPort(offloads=offloads), ScriptPort(in_place=in_place)
    return a, b, offloads, lambda: b.give(a.take())


def script_in_pieces() -> Path:
    a, b = ScriptPort(offloads=OFFLOADS), ScriptPort()
    return a, b, OFFLOADS, lambda: b.give(a.take(), splits=(1, 14, 40))


def callport(offloads: int) -> Path:
    """Frames given to the guest lie at guards, too."""
    frames: Frames = []
    guards = itertools.cycle([Guarded(17) for _ in range(16)])
    views = itertools.cycle(["last", "first"])

    def receive(limit: int) -> Frames:
        some, frames[:] = frames[:limit], frames[limit:]
        return [(header, getattr(next(guards), next(views))(frame)) for header, frame in some]

    given = CallPort(None, receive)
    return CallPort(frames.extend, offloads=offloads), given, offloads, given.wake


def capture() -> Path:
    """Frames are written to a capture file, which is played back: a pipe."""
    folder = mkdtemp()
    path = os.path.join(folder, "pipe")
    os.mkfifo(path)
    held = os.open(path, os.O_RDWR)  # so that neither waits for the other
    fcntl.fcntl(held, fcntl.F_SETPIPE_SZ, 1 << 18)  # a frame is written before one is read
    ports = PcapWriter(path), PcapReader(path)
    os.close(held)
    shutil.rmtree(folder)
    return *ports, 0, nothing


def splice() -> Path:
    """Frames pass a splice on their way to a cable."""
    taken, given = ScriptPort(offloads=OFFLOADS), ScriptPort(in_place=True)
    a, b = Cable()
    task = PortSplice(given, a)
    task.connect()
    task.resume()

    def move() -> None:
        given.give(taken.take())
        while task.poll():
            pass

    return taken, b, OFFLOADS, move


PATHS: dict[str, Callable[[], Path]] = {
    "cable": cable,
    "loopback": loopback,
    "script": lambda: script(OFFLOADS, False),
    "script, complete": lambda: script(0, False),
    "script, in place": lambda: script(OFFLOADS, True),
    "script, in pieces": script_in_pieces,
    "callport": lambda: callport(OFFLOADS),
    "callport, complete": lambda: callport(0),
    "pcap": capture,
    "splice": splice,
}


SUMMING = ("cable", "script, complete", "script, in place")


class Passage:
    """A guest that sends, a path, and a guest that receives, which must find what the executor makes of a frame."""

    def __init__(self, path: str, guest: str, packed: bool, end: str) -> None:
        features, accepted = GUESTS[guest]
        sent, received, passed, self.move = PATHS[path]()
        self.sender = Sender(sent, features & TUNNELLED, packed, ENDS[end])
        self.receiver = Receiver(received, features, packed, ENDS[end])
        self.packed, self.what, self.way = packed, (path, guest, packed, end), (passed, accepted)
        if guest == "hash":  # one that has its frames filtered
            self.receiver.task.filter(modes=0x06, mac=bytes(6))
        first = 2 * packed + ENDS[end]
        self.shapes = itertools.cycle(SHAPES[first:] + SHAPES[:first])

    @cached_property
    def frames(self) -> Frames:
        """Frames of every kind, complete, undone and uncut, and plain ones of all lengths at which a copy differs."""
        features = EVERY if self.sender.header == 24 else EVERY & ~TUNNELLED
        found = [(NetHeader(), ETHERNET + bytes(n)) for n in (*range(130), 1500, 9000, 65535)]
        for payload, mss in ((0, 0), (1, 0), (60, 0), (100, 32)):
            found += undone(payload, mss, features).values()
        return found

    def expected(self, header: NetHeader, frame: bytes) -> list[bytes]:
        executor, frames = Executor(), [(header, frame)]
        for offloads in self.way:
            frames = executor.execute(frames, offloads)
        return [frame for _, frame in frames]

    def send(self, header: NetHeader, frame: bytes, expected: list[bytes], *places: int) -> None:
        shape = next(self.shapes)
        at(*self.what, len(frame), shape, places)
        for one in expected:
            self.receiver.post(len(one), shape)
        self.sender.give(header, frame, *places)
        self.sender.poll()
        self.move()
        assert self.receiver.take() == expected

    def whole(self) -> None:
        for header, frame in self.frames:
            self.send(header, frame, self.expected(header, frame))

    def parted(self) -> None:
        """Split rings take frames that are parted at even places, packed ones the others."""
        features = EVERY if self.sender.header == 24 else EVERY & ~TUNNELLED
        for payload, mss in ((60, 0), (100, 32)):
            frames = [(NetHeader(), ETHERNET + bytes(60))]
            frames += [frame for name, frame in undone(payload, mss, features).items() if name.startswith(FEW)]
            for header, frame in frames:
                expected = self.expected(header, frame)
                for place in range(1 + self.packed, self.sender.header + min(HEADS, len(frame)), 2):
                    self.send(header, frame, expected, place)


def passages(path: str, guest: str) -> None:
    for packed, end in itertools.product((False, True), ENDS):
        passage = Passage(path, guest, packed, end)
        passage.whole()
        passage.parted()


@pytest.mark.parametrize("simd", SIMD)
@pytest.mark.parametrize("guest", list(GUESTS))
@pytest.mark.parametrize("path", list(PATHS))
def test_from_guest_to_guest(path: str, guest: str, simd: str, children: Callable[[str], Children]) -> None:
    if simd != _checksum.simd_available()[-1] and path not in SUMMING:
        pytest.skip("nothing here depends on the path")
    children(simd).run("passages", path, guest)


# ---- ports that make or take frames of themselves ----


def generated(packed: bool, end: str) -> None:
    """Frames of the generator, received; the same frames, sent to the sink that verifies them."""
    kinds: list[dict[str, Any]] = [
        {"size": [60, 30, 61, 127, 128, 129, 1514, 9001]}, {"size": [60, 200, 1514], "kind": "tcp"},
        {"size": 1000, "kind": "tcp", "partial": True}, {"size": [3000, 10001], "kind": "tcp", "gso_size": 700},
    ]  # fmt: skip
    for guest, kind in itertools.product(("plain", "mergeable", "segmentation"), kinds):
        features, accepted = GUESTS[guest]
        generator, sink = Generator(**kind, count=24), Sink()
        receiver = Receiver(generator, features, packed, ENDS[end])
        sender = Sender(sink, 0, packed, ENDS[end])
        reference = MemorySink(offloads=accepted)
        receive(Generator(**kind, count=24), reference)
        shapes = itertools.cycle(SHAPES)
        for header, frame in reference.take():
            expected = [made for _, made in Executor().execute([(header, frame)], accepted)]
            at(guest, kind, len(frame))
            for one in expected:
                receiver.post(len(one), next(shapes))
            got = receiver.take()
            assert list(map(len, got)) == list(map(len, expected))
            for place in (1, 12, 13, 26, 46, 60):
                sender.give(NetHeader(), got[0], *([place] if place < 12 + len(got[0]) else []))
                sender.poll()


@pytest.mark.parametrize("end", list(ENDS))
@pytest.mark.parametrize("packed", [False, True])
def test_generator_and_sink(packed: bool, end: str, children: Callable[[str], Children]) -> None:
    children("scalar").run("generated", packed, end)


def kernel(packed: bool, end: str, guest: str) -> None:
    """Frames to and from the kernel's TAP; what arrives there, and what comes from there, a packet socket sees."""
    with namespaces(1) as (space,):
        tap = space.tap("vm0", up=False)
        space.quiet(tap.name)
        space.sysctl(f"net/ipv6/conf/{tap.name}/disable_ipv6", 1)
        space.set_link(tap.name, up=True)
        space.settle()
        features, _ = GUESTS[guest]
        sender = Sender(tap, features & TUNNELLED, packed, ENDS[end])
        receiver = Receiver(tap, features, packed, ENDS[end])
        peer = space.socket(socket.AF_PACKET, socket.SOCK_RAW)
        peer.bind((tap.name, 0x0003))
        peer.settimeout(10)
        for n, shape in itertools.product((*range(46, 70), 127, 128, 1486), SHAPES):
            frame = ETHERNET + bytes([n & 0xFF]) * n
            at(guest, n, shape)
            sender.give(NetHeader(), frame, *([n] if shape == "odd" else []))
            sender.poll()
            assert peer.recv(2000) == frame
            receiver.post(len(frame), shape)
            peer.send(frame)
            assert receiver.take() == [frame]
        for name, (header, frame) in undone(100, 32, EVERY if features & TUNNELLED else EVERY & ~TUNNELLED).items():
            for place in range(1, sender.header + HEADS, 3):
                at(name, place)
                sender.give(header, frame, place)
                sender.poll()


@pytest.mark.parametrize("guest", ["plain", "segmentation", "tunnels"])
@pytest.mark.parametrize("end", list(ENDS))
@pytest.mark.parametrize("packed", [False, True])
def test_tap(packed: bool, end: str, guest: str, children: Callable[[str], Children]) -> None:
    need_namespaces()
    children("scalar").run("kernel", packed, end, guest)


# ---- the driver's end ----


# bytes of buffers, with which those of a pool end where the pool does
MERGED, SMALL, LARGE = 128, 1920, 65664
FRAME_MAX = 65589


class Nic:
    """vtnet's two queues over a loopback; rings and pools are at guards, a pool's last buffer at its very end."""

    def __init__(self, guest: str, packed: bool, end: str) -> None:
        features = GUESTS[guest][0] | HOST
        port = Loopback()
        self.rings = [Ring(features, packed, ENDS[end], rooms=0) for _ in range(2)]
        rx, tx = self.rings
        self.large = guest not in ("plain", "checksum")
        frame_max = FRAME_MAX if self.large else SMALL
        room = MERGED if features & F.MRG_RXBUF else LARGE if self.large else SMALL
        bells = rx.bells["kick"], None
        pool = self.pool(rx, room, 64)
        self.receive = VtnetReceive(rx.driver, *bells, pool, features=rx.features, frame_max=frame_max)
        pools = self.pool(tx, SMALL, 16), self.pool(tx, LARGE, 16)
        self.transmit = VtnetTransmit(tx.driver, *bells, *pools, features=tx.features)
        self.tasks: list[NetReceive | NetTransmit] = [
            NetReceive(rx.device, port, 0, rx.features, by_hand=True, **rx.bells)
        ]
        self.tasks[0].connect()
        self.tasks.append(NetTransmit(tx.device, port, 0, tx.features, by_hand=True, **tx.bells))
        for task in self.tasks:
            task.resume()
        self.receive.fill()

    @staticmethod
    def pool(ring: Ring, room: int, count: int) -> Pool:
        return Pool(ring.memory, ring.area(pool_size(room, count), ring.last, 64), room, count)

    def poll(self) -> None:
        while sum(task.poll() for task in self.tasks):
            pass
        assert not any(ring.driver.broken or ring.device.broken for ring in self.rings)


def driver(guest: str) -> None:
    """Frames at guards are sent by vtnet, come back, and are received: copied, as views, and by a pump."""
    accepted = GUESTS[guest][1]
    guards = [Guarded(17) for _ in range(4)]
    for packed, end in itertools.product((False, True), ENDS):
        nic = Nic(guest, packed, end)
        port = ScriptPort(offloads=OFFLOADS)
        pumps = [PumpTransmit(nic.transmit, port), PumpReceive(nic.receive, port)]
        frames = [(NetHeader(), ETHERNET + bytes(n)) for n in (*range(130), 1900)]
        frames += [(NetHeader(), ETHERNET + bytes(65000))] if guest == "hash" else []
        for payload, mss in ((0, 0), (60, 0), (100, 32)):
            frames += undone(payload, mss, EVERY & ~TUNNELLED).values()
        for i, (header, frame) in enumerate(frames):
            expected = [made for _, made in Executor().execute([(header, frame)], accepted)]
            at(guest, packed, end, i, len(frame))
            views = [getattr(guard, end_of)(frame) for guard, end_of in zip(guards, ("last", "first"), strict=False)]
            assert nic.transmit.transmit(views, headers=[header] * 2) == 2
            nic.poll()
            assert nic.receive.receive(complete=False) == 2 * expected
            nic.transmit.transmit(views[:1], checksum=True, mss=header.gso_size)
            nic.poll()
            for parts in nic.receive.receive_views():
                assert parts
            port.give([(header, frame)], splits=(1, 14, 40))
            for pump in pumps:
                pump.resume()
            while sum(pump.poll() for pump in pumps) + sum(task.poll() for task in nic.tasks):
                pass
            for pump in pumps:
                pump.pause()
            assert [made for _, made in port.take()] == expected
        for size in range(14, 300):
            (buffer,) = nic.transmit.buffers(1, size)
            buffer[:] = bytes(size)
            nic.transmit.transmit([buffer])
            nic.poll()
            nic.transmit.reclaim()
            assert nic.receive.receive() == [bytes(size)]


@pytest.mark.parametrize("simd", SIMD)
@pytest.mark.parametrize("guest", [guest for guest in GUESTS if guest != "tunnels"])
def test_vtnet_both_ways(guest: str, simd: str, children: Callable[[str], Children]) -> None:
    children(simd).run("driver", guest)


# ---- what a hostile guest sends ----


def hostile(packed: bool) -> None:
    """Headers that lie about frames cut off anywhere, to ports that take everything undone, something and nothing."""
    headers = [header for header, _ in undone(100, 32).values()]
    lies = [NetHeader(flags=1, csum_start=start, csum_offset=offset) for start in (0, 33, 60) for offset in (0, 16)]
    for offloads, end in itertools.product((0, 1, OFFLOADS), ENDS):
        sender = Sender(ScriptPort(offloads=offloads), TUNNELLED, packed, ENDS[end])
        choices = itertools.cycle(headers + lies)
        for name, frame in cut_off():
            for n in range(2):
                header = next(choices)
                at(name, len(frame), header)
                data = header.to_bytes(sender.header) + frame
                half = len(data) // (n + 1)
                sender.give_raw(data, half)
                while sender.task.poll():
                    pass
                assert sender.device.broken is None
                sender.driver.dequeue_burst()


@pytest.mark.parametrize("simd", SIMD)
@pytest.mark.parametrize("packed", [False, True])
def test_lying_headers(packed: bool, simd: str, children: Callable[[str], Children]) -> None:
    children(simd).run("hostile", packed)
