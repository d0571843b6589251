"""A guest for the guard-page tests of ports and queues: rings, buffers and pieces of frames at guard pages, by hand."""

from __future__ import annotations

import itertools

from guardframes import EVERY
from guardpages import PAGE, GuestAreas

from virtio import DeviceQueue, DriverQueue, Feature
from virtio.constants import NetFeature as F
from virtio.event.notifier import Bell
from virtio.net.ports import Port
from virtio.netdev.rxq import NetReceive
from virtio.netdev.txq import NetTransmit
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
ROOM = 17 * PAGE  # of a buffer for the largest frame
ENTRIES = 4  # of a table
ETHERNET = bytes.fromhex("02000000000202000000000188b5")
Frames = list[tuple[NetHeader, bytes]]


class Ring(GuestAreas):
    """One queue of a guest, both ends; buffers lie in rooms of their own. With INDIRECT_DESC it has tables."""

    def __init__(self, features: int, packed: bool, last: bool, rooms: int = 12, size: int = 64) -> None:
        super().__init__()
        tables = features & Feature.INDIRECT_DESC
        self.last, self.features = last, features | Feature.VERSION_1 | (Feature.RING_PACKED if packed else 0)
        self.header = net_header_size(self.features)
        layout = self.ring(packed, size, last)
        room = {"indirect": self.area(16 * ENTRIES * size, last, 16), "max_indirect": ENTRIES} if tables else {}
        self.driver = DriverQueue(self.memory, layout, features=self.features, **room)
        self.device = DeviceQueue(self.memory, layout, features=self.features)
        self.device.far = packed is last  # buffers of a burst are fetched ahead, or not
        self.rooms = itertools.cycle([self.area(ROOM, last) for _ in range(rooms)])
        self.bells = {"kick": Bell(), "call": Bell(), "trouble": Bell()}

    def room(self, size: int) -> tuple[int, int]:
        """Return a buffer of so many bytes, at the guard."""
        return next(self.rooms) + (ROOM - size if self.last else 0), size


class Sender(Ring):
    """A transmit queue, at a port."""

    def __init__(self, port: Port, features: int, packed: bool, last: bool, size: int = 64) -> None:
        super().__init__(features | HOST, packed, last, size=size)
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

    def __init__(self, port: Port, features: int, packed: bool, last: bool, size: int = 64) -> None:
        super().__init__(features, packed, last, rooms=48, size=size)
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
