"""A scripted network guest over vhost-user: one queue pair, frames in, frames out."""

from __future__ import annotations

from vhost_frontend import GPA, Frontend, layout_of

from virtio import Feature

HEADER = 12
ROOM = 2048  # bytes of each buffer
COUNT = 32  # buffers of each ring
RECEIVE, TRANSMIT = GPA + 0x100000, GPA + 0x200000


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
