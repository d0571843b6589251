"""Scripted network guests over vhost-user: one queue pair, frames in, frames out; and those beside one that attacks."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from vhost_frontend import GPA, Frontend, layout_of
from waiting import wait_for

from virtio import Feature
from virtio.event.worker import Worker
from virtio.net import Cable, Loopback, NetDevice
from virtio.vhost_user import Server

HEADER = 12
ROOM = 2048  # bytes of each buffer
COUNT = 32  # buffers of each ring
RECEIVE, TRANSMIT = GPA + 0x100000, GPA + 0x200000
HONEST = b"\xff" * 12 + b"\x88\xb5honest"


class Guest(Frontend):
    """Connected, with both rings running and its receive buffers given. Close it, as a Frontend."""

    def __init__(self, path: str, *, packed: bool = False, fd: int | None = None) -> None:
        super().__init__(path, fd=fd)
        use = self.negotiate(Feature.VERSION_1 | (Feature.RING_PACKED if packed else 0))
        self.share_memory()
        self.rx, self.tx = (self.driver(index, layout_of(index, packed), use) for index in (0, 1))
        self.start(0, layout_of(0, packed))
        self.start(1, layout_of(1, packed))
        for i in range(COUNT):
            self.give(i)
        self.kick(0)
        self.sent = 0

    def give(self, i: int) -> None:
        """Lend the device a receive buffer."""
        self.rx.enqueue([], [(RECEIVE + i * ROOM, ROOM)], cookie=i)
        self.rx.notify()

    def send(self, frame: bytes) -> bool:
        """Send a frame; return whether there was room for it."""
        self.tx.dequeue_burst()
        if self.tx.outstanding >= COUNT:
            return False
        at = TRANSMIT + self.sent % COUNT * ROOM
        self.sent += 1
        self.memory.write(at, bytes(HEADER) + frame)
        self.tx.enqueue([(at, HEADER + len(frame))], [], cookie="t")
        self.tx.notify()
        self.kick(1)
        return True

    def receive(self) -> list[bytes]:
        """Return the frames that came, and give their buffers again."""
        frames = []
        for i, length in self.rx.dequeue_burst():
            frames.append(self.memory.read(RECEIVE + i * ROOM + HEADER, length - HEADER))
            self.give(i)
        if frames:
            self.kick(0)
        return frames


class Neighbours:
    """A server to be attacked, at a cable; a guest at its other end, and one with the same worker."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.folder = folder
        self.worker = worker = stack.enter_context(Worker())
        a, b = Cable(full="drop", queues=2)
        self.device = NetDevice(a, worker=worker, queue_pairs=2)
        near = NetDevice(Loopback(), worker=worker)
        devices = {"attacked": self.device, "far": NetDevice(b, worker="own"), "near": near}
        servers = {
            name: stack.enter_context(Server(stack.enter_context(device), folder / name))
            for name, device in devices.items()
        }
        self.server = servers["attacked"]
        self.path = str(folder / "attacked")
        self.far = stack.enter_context(Guest(str(folder / "far")))
        self.near = stack.enter_context(Guest(str(folder / "near")))
        self.count = 0

    def frame(self) -> bytes:
        self.count += 1
        return HONEST + self.count.to_bytes(4, "big") + bytes(40)

    def exchange(self, one: Guest, other: Guest, count: int = 40) -> None:
        """Frames go from one to the other, all of them, in order; those of an attacker's may come between."""
        begin = HONEST + self.count.to_bytes(4, "big")
        sent: list[bytes] = []
        came: list[bytes] = []

        def done() -> bool:
            came.extend(frame for frame in other.receive() if frame.startswith(HONEST) and frame[: len(begin)] > begin)
            while len(sent) < min(count, len(came) + 16):  # no more than it has buffers for
                frame = self.frame()
                if not one.send(frame):
                    break
                sent.append(frame)
            return len(came) >= count

        wait_for(done)
        assert came == sent

    def check(self, count: int = 40) -> None:
        """The near one's frames come back; so do those that pass between the far one and the next to be served."""
        self.exchange(self.near, self.near, count)
        self.far.receive()
        self.far.send(self.frame())  # whoever is or is not at the other end
        with Guest(self.path) as guest:
            self.exchange(guest, self.far, count)
            self.exchange(self.far, guest, count)
        wait_for(lambda: not self.server.connected)
        assert self.server.error is None
