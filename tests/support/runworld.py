"""One queue of a network device, driven by hand from its driver's side: what the tests of runs look at."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

from undone import EVERY, payload, ufo, undone

import virtio
from bench.kernels.devicebench import ScriptPort
from virtio import DeviceQueue, DriverQueue, GuestMemory, QueueLayout
from virtio.constants import Feature, NetFeature
from virtio.event.notifier import Bell
from virtio.netdev.rxq import NetReceive
from virtio.netdev.txq import NetTransmit
from virtio.offload import NetHeader
from virtio.ports.cable import Cable

F = NetFeature
REGION = 1 << 20
TABLES, NEAR, SEAM, FAR, WILD = 0x8000, REGION, 2 * REGION, 8 * REGION, 1 << 40
HOST = F.CSUM | F.HOST_TSO4 | F.HOST_TSO6 | F.HOST_UFO | F.HOST_USO
GUEST = F.GUEST_CSUM | F.GUEST_TSO4 | F.GUEST_TSO6
HEADER = 12


@cache
def frame_of(kind: str, size: int) -> tuple[NetHeader, bytes]:
    """A header and a frame, right or wrong; the payload of one that leaves something undone is of a few sizes only."""
    match kind:
        case "undone":
            return undone("tcp4", size & 0x7C0)
        case "uncut":
            return undone("tcp6", 1000 + (size & 0x7C0), 400)
        case "fragments":
            return ufo(1000 + (size & 0x7C0), 400)
        case "unknown flag":  # which is to be ignored (5.1.9.2.2)
            header, frame = undone("udp4", size & 0x7C0)
            header.flags |= 0x10
            return header, frame
        case "bad flags":
            return NetHeader(flags=2), payload(size + 14, size)
        case "bad checksum":
            return NetHeader(flags=1, csum_start=10, csum_offset=60000), payload(size + 14, size)
        case "short":
            return NetHeader(), payload(size % 14, size)
        case "largest":
            return NetHeader(), payload(65589, size)
        case "too large":
            return NetHeader(), payload(65590, size)
    return NetHeader(), payload(size + 14, size)


class World:
    """Both ends of a queue of ``size``.

    ``log``: a dirty log is on "never", "always", or in turn ("changing"); "never, far": and buffers are fetched ahead.

    Memory is four regions: the rings', two that are adjacent, and one apart.
    """

    net: ClassVar[NetFeature]

    def __init__(self, size: int, packed: bool, *, features: int = 0, tables: bool = False, log: str = "never") -> None:
        self.memory = GuestMemory(
            [(0, bytearray(0x20000)), (NEAR, bytearray(REGION)), (SEAM, bytearray(REGION)), (FAR, bytearray(REGION))]
        )
        self.layout = QueueLayout.packed(size, 0) if packed else QueueLayout.split(size, 0)
        bits = features | Feature.VERSION_1 | Feature.INDIRECT_DESC | (Feature.RING_PACKED if packed else 0)
        self.features = int(bits) | int(self.net)
        self.driver = DriverQueue(
            self.memory, self.layout, features=bits,
            indirect=TABLES if tables else None, max_indirect=8 if tables else 0,
        )  # fmt: skip
        self.device = DeviceQueue(self.memory, self.layout, features=bits)
        self.device.far = log == "never, far"
        self.kick, self.call, self.trouble = Bell(), Bell(), Bell()
        self.log = log
        self.rounds = self.number = 0
        self.next = {NEAR: 0, FAR: 0}
        self.turn_log()

    @property
    def in_order(self) -> bool:
        return bool(self.features & Feature.IN_ORDER)

    def turn_log(self) -> None:
        self.rounds += 1
        if self.log == "always" or (self.log == "changing" and self.rounds % 2):
            self.memory.start_log()
        else:
            self.memory.stop_log()

    def area(self, shape: str, size: int) -> int:
        """Return where the next buffer lies, of a region that is used from its start again when it is full."""
        if shape == "wild":
            return WILD
        if shape == "seam":
            return SEAM - (size + 1) // 2
        base = FAR if shape == "far" else NEAR
        if self.next[base] + size > REGION:
            self.next[base] = 0
        self.next[base] += size
        return base + self.next[base] - size

    def enqueue(self, readable: Sequence[tuple[int, int]], writable: Sequence[tuple[int, int]], shape: str) -> bool:
        """Make a chain available, spoilt if its shape says so; say whether there was room."""
        slot = self.driver.state()["next_avail"] if shape in ("zero", "head") else 0
        try:
            head = self.driver.enqueue(readable, writable, self.number)
        except (virtio.QueueFull, virtio.DoesNotFit):
            return False
        self.number += 1
        if shape == "zero":
            self.memory.write_u32(self.layout.desc + 16 * (slot if self.layout.is_packed else head) + 8, 0)
        elif shape == "head" and not self.layout.is_packed:
            self.memory.write_u16(self.layout.driver + 4 + 2 * (slot % self.layout.size), self.layout.size)
        return True

    def pieces(self, shape: str, size: int) -> list[tuple[int, int]]:
        """Return where a buffer's pieces are: of 8 at most, as one table takes."""
        count = min(self.layout.size, 1 + size % 7, max(size, 1)) if shape == "pieces" else 1
        sizes = [size // count] * (count - 1) + [size - size // count * (count - 1)]
        return [(self.area(shape, each), each) for each in sizes]

    def rings(self) -> bytes:
        """The whole ring, as both ends left it."""
        return self.memory.read(0, TABLES)

    def buffers(self) -> list[bytes]:
        return [self.memory.read(base, REGION) for base in (NEAR, SEAM, FAR)]

    def used_word(self, at: int) -> tuple[int, int, int]:
        """Of a packed ring's slot: length, id, flags."""
        length, ident, flags = struct.unpack("<IHH", self.memory.read(self.layout.desc + 16 * at + 8, 8))
        return length, ident, flags

    def used_entry(self, at: int) -> tuple[int, int]:
        """Of a split ring's position: id, length."""
        ident, length = struct.unpack("<II", self.memory.read(self.layout.device + 4 + 8 * at, 8))
        return ident, length

    def seen(self) -> dict[str, Any]:
        """What the driver, and whoever asks the device, sees now."""
        state = self.device.state()
        counters = self.device.counters()
        broken = self.device.broken
        return {
            "back": self.driver.dequeue_burst(1 << 15),
            "called": self.call.answer(),
            "troubled": self.trouble.answer(),
            "broken": broken and (type(broken), str(broken)),
            "rings": None if self.in_order else self.rings(),
            "state": [state[key] for key in ("next_avail", "avail_wrap", "next_used", "used_wrap", "outstanding")],
            "chains": (counters["chains"], counters["completions"]),
        }


class TransmitWorld(World):
    """A transmit queue, and a port that takes what it is said to have room for."""

    net = HOST | F.MRG_RXBUF

    def __init__(self, *args: Any, offloads: int = EVERY, **options: Any) -> None:
        super().__init__(*args, **options)
        self.port = ScriptPort(offloads=offloads)
        self.task = NetTransmit(
            self.device, self.port, 0, self.features, kick=self.kick, call=self.call, trouble=self.trouble, by_hand=True
        )
        self.task.resume()

    def give(self, shape: str, kind: str, size: int) -> bool:
        """Make a frame available."""
        header, frame = frame_of(kind, size)
        data = header.to_bytes(HEADER) + frame
        pieces = self.pieces(shape, len(data))
        at = 0
        for gpa, length in pieces:
            if shape != "wild":
                self.memory.write(gpa, data[at : at + length])
            at += length
        if shape == "written":
            return self.enqueue([], pieces, shape)
        more = [(self.area("near", 64), 64)] if shape == "mixed" else []
        return self.enqueue(pieces, more, shape)

    def poll(self, room: int = -1) -> list[tuple[NetHeader, bytes]]:
        """Send what the port takes; return it."""
        self.port.room = room
        while self.task.poll():
            pass
        return self.port.take()

    def figures(self) -> dict[str, Any]:
        """Statistics, less what depends on how chains are dealt into bursts while the port is full.

        Those are the bursts that it did not take whole, and what was executed for frames behind the one it refused.
        """
        return {name: value for name, value in self.task.statistics().items() if name not in ("stalls", "executed")}


class ReceiveWorld(World):
    """A receive queue, and another guest's transmit queue at the other end of a cable: it sends in bursts."""

    net = F.MRG_RXBUF

    def __init__(self, *args: Any, accept: int = 0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sender = TransmitWorld(256, False)
        end, own = Cable()
        bells = {"kick": self.kick, "call": self.call, "trouble": self.trouble}
        self.features |= int(accept)
        self.task = NetReceive(self.device, own, 0, self.features, **bells, by_hand=True)
        self.task.resume()
        self.task.connect()
        sender = self.sender
        sender.task = NetTransmit(
            sender.device, end, 0, sender.features, kick=Bell(), call=Bell(), trouble=Bell(), by_hand=True
        )
        sender.task.resume()

    def give(self, shape: str, kind: str, size: int) -> bool:
        """Give the device a buffer."""
        size = 1 + size % HEADER if kind == "tiny" else size + HEADER + 1
        pieces = self.pieces(shape, size)
        readable = pieces if shape == "written" else [(self.area("near", 64), 64)] if shape == "mixed" else []
        return self.enqueue(readable, [] if shape == "written" else pieces, shape)

    def poll(self, room: int = -1) -> list[tuple[NetHeader, bytes]]:
        while self.sender.task.poll() + self.task.poll():
            pass
        return []

    def figures(self) -> dict[str, Any]:
        return {"rx": self.task.statistics(), "tx": self.sender.figures(), "sent": self.sender.driver.dequeue_burst()}
