"""The packed virtqueue (VIRTIO 1.4, 2.8), both ends, for reading rather than for speed.

Positions count descriptors for ever: slot is the remainder by the queue size, the wrap counter the parity of the lap.
Where the spec leaves an end a choice it makes an unusual one: buffer ids lie beyond the queue size, fields that nobody
may look at hold rubbish. An ``assert`` that fails means that the other end broke a rule.
"""

from __future__ import annotations

import struct
from typing import Any

from .chain import IGNORED, INDIRECT, NEXT, WRITE, Area, Memory, ModelChain, Piece

AVAIL, USED = 1 << 7, 1 << 15
ENABLE, DISABLE, DESC = 0, 1, 2


def lay_out(mem: Memory, area: Area, start: int) -> None:
    """Write an idle ring as it is after ``start`` descriptors, each used: what the driver's zeroes become in time."""
    for position in range(start - area.size, start):
        lap, slot = divmod(position, area.size)
        flags = 0 if lap % 2 else AVAIL | USED
        mem.write(area.desc + 16 * slot, struct.pack("<QIHH", 0, 0, 0, flags))
    mem.write(area.driver, bytes(4))
    mem.write(area.device, bytes(4))


class PackedRing:
    """The areas of a packed queue, and the notification rule (2.8.10), which is the same both ways."""

    def __init__(self, mem: Memory, area: Area, event_idx: bool, in_order: bool, start: int) -> None:
        self.mem, self.size, self.event_idx, self.in_order = mem, area.size, event_idx, in_order
        self.desc, self.driver, self.device = area.desc, area.driver, area.device
        self.navail = self.nused = self.told = start  # positions, in descriptors

    def slot(self, position: int) -> tuple[int, int]:
        return position % self.size, 1 - position // self.size % 2  # both wrap counters start at 1 (2.8.1)

    def get(self, position: int) -> tuple[int, int, int, int]:
        gpa, length, ident, flags = struct.unpack("<QIHH", self.mem.read(self.desc + 16 * (position % self.size), 16))
        return gpa, length, ident, flags

    def marks(self, position: int) -> tuple[bool, bool]:
        """Whether the descriptor is marked available, and whether used, for the lap of this position."""
        wrap, flags = self.slot(position)[1], self.get(position)[3]
        avail, used = flags >> 7 & 1, flags >> 15 & 1
        return avail == wrap != used, avail == used == wrap

    def wanted(self, event: int, now: int) -> bool:
        """Whether the other end asked to be told of the descriptors that came since the last call."""
        before, self.told = self.told, now
        if before == now:
            return False
        at, flags = struct.unpack("<HH", self.mem.read(event, 4))
        if flags == DESC:
            assert self.event_idx, "event flags DESC although EVENT_IDX was not negotiated"
            # after a whole lap every event was passed, although the wrap bit alone could not tell
            return now - before >= self.size or (at & 0x7FFF, at >> 15) in map(self.slot, range(before, now))
        assert flags in (ENABLE, DISABLE), "event flags are reserved ones"
        return bool(flags == ENABLE)

    def ask(self, event: int, at: int, *, want: bool) -> None:
        slot, wrap = self.slot(at)
        flags = (DESC if self.event_idx else ENABLE) if want else DISABLE
        self.mem.write(event, struct.pack("<HH", slot | wrap << 15, flags))


class PackedDriver(PackedRing):
    def __init__(
        self, mem: Memory, area: Area, *, event_idx: bool = False, in_order: bool = False, start: int = 0
    ) -> None:
        super().__init__(mem, area, event_idx, in_order, start)
        self.nfree = self.size
        self.ids = [0xFFFF - i for i in range(self.size)]
        self.out: dict[int, tuple[Any, int, int]] = {}  # id: cookie, writable bytes, descriptors; oldest first
        self.batch: list[tuple[int, int]] = []  # (id, length): used, and not yet taken

    def add(self, pieces: list[Piece], cookie: Any, table: int | None = None, direct: int = 0) -> int:
        """Make a chain available; with ``table``, all of it by an indirect table there (no mixing here: 2.8.8)."""
        assert direct == 0
        ident = self.ids.pop()
        writable = sum(piece.length for piece in pieces if piece.write)
        if table is not None:
            for k, piece in enumerate(pieces):
                entry = struct.pack("<QIHH", piece.gpa, piece.length, IGNORED, WRITE if piece.write else 0)
                self.mem.write(table + 16 * k, entry)
            rubbish = len(pieces) % 2 == 1  # the device must ignore WRITE here (2.8.7)
            inline = [(Piece(table, 16 * len(pieces), rubbish), INDIRECT)]
        else:
            inline = [(piece, NEXT) for piece in pieces[:-1]] + [(pieces[-1], 0)]
        self.nfree -= len(inline)
        assert self.nfree >= 0
        for k in reversed(range(len(inline))):  # the first is made available last
            piece, flags = inline[k]
            slot, wrap = self.slot(self.navail + k)
            flags |= (WRITE if piece.write else 0) | (AVAIL if wrap else USED)
            shown = ident if k == len(inline) - 1 else IGNORED
            self.mem.write(self.desc + 16 * slot, struct.pack("<QIHH", piece.gpa, piece.length, shown, flags))
        self.navail += len(inline)
        self.out[ident] = cookie, writable, len(inline)
        return ident

    def waiting(self) -> int:
        """How many slots of used chains wait to be taken."""
        batch = {ident for ident, _ in self.batch}
        position = self.nused + sum(self.out[ident][2] for ident in batch)
        left = {ident: chain for ident, chain in self.out.items() if ident not in batch}
        while left and self.marks(position)[1]:
            last = self.get(position)[2]
            for ident in list(left)[: list(left).index(last) + 1] if self.in_order else [last]:
                position += left.pop(ident)[2]
        return position - self.nused

    def take(self) -> tuple[Any, int] | None:
        """Take back the next used chain: its cookie and the bytes written."""
        if not self.batch:
            if not self.out or not self.marks(self.nused)[1]:
                return None
            _, length, ident, flags = self.get(self.nused)
            assert ident in self.out, "used id is not outstanding"
            if self.in_order:  # the descriptor names the last chain of a batch; those before it are full (2.8.9)
                ids = list(self.out)
                self.batch = [(i, self.out[i][1]) for i in ids[: ids.index(ident)]]
            self.batch.append((ident, length if flags & WRITE else 0))
        ident, length = self.batch.pop(0)
        cookie, writable, slots = self.out.pop(ident)
        assert length <= writable, "used length is longer than the buffer"
        self.ids.append(ident)
        self.nfree += slots
        self.nused += slots
        return cookie, length

    def kick(self) -> bool:
        return self.wanted(self.device, self.navail)

    def arm(self, after: int = 0) -> bool:
        """Ask for an interrupt once more than ``after`` slots were used; say whether they were already."""
        self.ask(self.driver, self.nused + after, want=True)
        return self.waiting() > after

    def disarm(self) -> None:
        self.ask(self.driver, self.nused, want=False)


class PackedDevice(PackedRing):
    def __init__(
        self, mem: Memory, area: Area, *, event_idx: bool = False, in_order: bool = False, start: int = 0
    ) -> None:
        super().__init__(mem, area, event_idx, in_order, start)
        self.out: list[ModelChain] = []

    def waiting(self) -> int:
        """1 when a chain is available."""
        return int(sum(chain.slots for chain in self.out) < self.size and self.marks(self.navail)[0])

    def pop(self) -> ModelChain | None:
        """Take the next available chain."""
        if not self.waiting():
            return None
        chain = ModelChain(0, slots=0)
        more = True
        while more:
            assert self.marks(self.navail + chain.slots)[0], "a descriptor of the list is not available"
            gpa, length, chain.head, flags = self.get(self.navail + chain.slots)
            chain.slots += 1
            if flags & INDIRECT:
                assert chain.slots == 1 and not flags & NEXT, "indirect and chained descriptors in one list"
                assert length and length % 16 == 0, "indirect table of odd length"
                for k in range(length // 16):
                    gpa_k, length_k, _, flags_k = struct.unpack("<QIHH", self.mem.read(gpa + 16 * k, 16))
                    assert flags_k in (0, WRITE), "flags other than WRITE in an indirect table"
                    chain.add(gpa_k, length_k, bool(flags_k))
            else:
                chain.add(gpa, length, bool(flags & WRITE))
            assert len(chain.pieces) <= self.size, "list is longer than the queue"
            more = bool(flags & NEXT)
        assert all(other.head != chain.head for other in self.out), "buffer id is outstanding already"
        self.navail += chain.slots
        self.out.append(chain)
        return chain

    def use(self, *done: tuple[ModelChain, int]) -> None:
        """Give chains back, each with the bytes written; in order, as one batch (all but the last are full)."""
        first = self.nused
        for k, (chain, written) in enumerate(done):
            assert written <= chain.writable
            if self.in_order:
                assert self.out[0] is chain and (k == len(done) - 1 or written == chain.writable)
            self.out.remove(chain)
            slot, wrap = self.slot(first if self.in_order else self.nused)
            if not self.in_order or k == len(done) - 1:
                # the length is reserved where nothing was written: the driver must ignore it (2.8.4)
                flags = (AVAIL | USED if wrap else 0) | (WRITE if written else NEXT)
                shown = written or IGNORED << 16
                self.mem.write(self.desc + 16 * slot + 8, struct.pack("<IHH", shown, chain.head, flags))
            self.nused += chain.slots

    def call(self) -> bool:
        return self.wanted(self.driver, self.nused)

    def arm(self) -> bool:
        """Ask for a kick at the next chain; say whether one is available already."""
        self.ask(self.device, self.navail, want=True)
        return self.waiting() > 0

    def disarm(self) -> None:
        self.ask(self.device, self.navail, want=False)
