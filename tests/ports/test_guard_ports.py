"""No port touches a byte beyond a frame that it takes, or a buffer that it fills, in either direction.

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
from formats import FORMATS
from guardframes import EVERY, HEADS, undone
from guardguest import ENDS, ETHERNET, GUESTS, OFFLOADS, SHAPES, TUNNELLED, Frames, Receiver, Sender
from guardpages import SIMD, Children, Guarded, at
from spaces import namespaces, need_namespaces

from bench.kernels.devicebench import ScriptPort
from bench.kernels.portbench import MemorySink, receive
from virtio.net.ports import Cable, CallPort, Generator, Loopback, PcapReader, PcapWriter, Port, Sink
from virtio.offload import NetHeader
from virtio.offload import inet_checksum as _checksum
from virtio.ports.software_offload import Executor
from virtio.ports.splice import PortSplice

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


FEW = ("v4-tcp-options", "v6-udp-uso", "vxlan-tcp")
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
@FORMATS
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


@pytest.mark.root
@pytest.mark.parametrize("guest", ["plain", "segmentation", "tunnels"])
@pytest.mark.parametrize("end", list(ENDS))
@FORMATS
def test_tap(packed: bool, end: str, guest: str, children: Callable[[str], Children]) -> None:
    need_namespaces()
    children("scalar").run("kernel", packed, end, guest)
