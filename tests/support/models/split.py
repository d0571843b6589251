"""The split virtqueue (VIRTIO 1.4, 2.7), both ends, for reading rather than for speed.

Indices count for ever and are cut to 16 bits where they go to memory. Where the spec leaves an end a choice it makes
an unusual one: descriptors are taken from the far end, indirect tables are linked backwards, fields that nobody may
look at hold rubbish. An ``assert`` that fails means that the other end broke a rule.
"""

from __future__ import annotations

import struct
from typing import Any

from .chain import IGNORED, INDIRECT, NEXT, WRITE, Area, Memory, ModelChain, Piece


def lay_out(mem: Memory, area: Area, start: int) -> None:
    """Write an idle ring as it is after ``start`` chains: what the driver's zeroes become in time."""
    start &= 0xFFFF
    mem.write(area.desc, bytes(16 * area.size))
    mem.write(area.driver, struct.pack(f"<HH{2 * area.size}xH", 0, start, start))
    mem.write(area.device, struct.pack(f"<HH{8 * area.size}xH", 0, start, start))


class SplitRing:
    """The areas of a split queue, and the notification rule (2.7.7, 2.7.10), which is the same both ways."""

    def __init__(self, mem: Memory, area: Area, event_idx: bool, in_order: bool, start: int) -> None:
        self.mem, self.size, self.event_idx, self.in_order = mem, area.size, event_idx, in_order
        self.desc, self.avail, self.used = area.desc, area.driver, area.device
        self.used_event = self.avail + 4 + 2 * self.size
        self.avail_event = self.used + 4 + 8 * self.size
        self.navail = self.nused = self.told = start

    def get(self, gpa: int) -> int:
        return int.from_bytes(self.mem.read(gpa, 2), "little")

    def put(self, gpa: int, value: int) -> None:
        self.mem.write(gpa, (value & 0xFFFF).to_bytes(2, "little"))

    def wanted(self, event: int, flags: int, now: int) -> bool:
        """Whether the other end asked to be told of the entries that came since the last call."""
        before, self.told = self.told, now
        if before == now:
            return False
        if self.event_idx:
            assert self.get(flags) == 0, "flags are not 0 although EVENT_IDX was negotiated"
            return any(self.get(event) == i & 0xFFFF for i in range(before, now))
        return self.get(flags) == 0

    def ask(self, event: int, flags: int, at: int, *, want: bool) -> None:
        if self.event_idx:
            self.put(event, at if want else at - 1)
        else:
            self.put(flags, 0 if want else 1)


class SplitDriver(SplitRing):
    def __init__(
        self, mem: Memory, area: Area, *, event_idx: bool = False, in_order: bool = False, start: int = 0
    ) -> None:
        super().__init__(mem, area, event_idx, in_order, start)
        self.free = list(range(self.size))
        self.out: dict[int, tuple[Any, int, list[int]]] = {}  # head: cookie, writable bytes, descriptors; oldest first
        self.batch: list[tuple[int, int]] = []  # (head, length): used, and not yet taken

    @property
    def nfree(self) -> int:
        return len(self.free)

    def add(self, pieces: list[Piece], cookie: Any, table: int | None = None, direct: int = 0) -> int:
        """Make a chain available; with ``table``, all but the first ``direct`` pieces go to an indirect table there."""
        inline = pieces if table is None else pieces[:direct]
        count = len(inline) + (table is not None)
        mine = [self.free.pop(0 if self.in_order else -1) for _ in range(count)]
        for k, piece in enumerate(inline):
            more = k + 1 < count
            self.describe(self.desc, mine[k], piece, mine[k + 1] if more else None)
        if table is not None:
            rest = pieces[direct:]
            order = [0, *range(1, len(rest))] if self.in_order else [0, *range(len(rest) - 1, 0, -1)]
            for piece, entry, after in zip(rest, order, [*order[1:], None], strict=True):
                self.describe(table, entry, piece, after)
            rubbish = WRITE if len(rest) % 2 else 0  # the device must ignore it (2.7.5.3.2)
            packed = struct.pack("<QIHH", table, 16 * len(rest), INDIRECT | rubbish, IGNORED)
            self.mem.write(self.desc + 16 * mine[-1], packed)
        self.out[mine[0]] = cookie, sum(piece.length for piece in pieces if piece.write), mine
        self.put(self.avail + 4 + 2 * (self.navail % self.size), mine[0])
        self.navail += 1
        self.put(self.avail + 2, self.navail)
        return mine[0]

    def describe(self, table: int, entry: int, piece: Piece, after: int | None) -> None:
        flags = (WRITE if piece.write else 0) | (NEXT if after is not None else 0)
        link = IGNORED if after is None else after
        self.mem.write(table + 16 * entry, struct.pack("<QIHH", piece.gpa, piece.length, flags, link))

    def waiting(self) -> int:
        """How many used chains wait to be taken."""
        return self.get(self.used + 2) - self.nused & 0xFFFF

    def take(self) -> tuple[Any, int] | None:
        """Take back the next used chain: its cookie and the bytes written."""
        ready = self.waiting()
        assert ready <= len(self.out), "used index is ahead of what was made available"
        if not ready:
            return None
        if not self.batch:
            entry = self.used + 4 + 8 * (self.nused % self.size)
            head, length = struct.unpack("<II", self.mem.read(entry, 8))
            assert head in self.out, "used id is not outstanding"
            if self.in_order:  # the entry names the last chain of a batch; those before it are full (2.7.9)
                heads = list(self.out)
                self.batch = [(h, self.out[h][1]) for h in heads[: heads.index(head)]]
                assert len(self.batch) < ready, "batch reaches beyond the used index"
            self.batch.append((head, length))
        head, length = self.batch.pop(0)
        cookie, writable, mine = self.out.pop(head)
        assert length <= writable, "used length is longer than the buffer"
        self.free += mine
        self.nused += 1
        return cookie, length

    def kick(self) -> bool:
        return self.wanted(self.avail_event, self.used, self.navail)

    def arm(self, after: int = 0) -> bool:
        """Ask for an interrupt once more than ``after`` chains were used; say whether they were already."""
        self.ask(self.used_event, self.avail, self.nused + after, want=True)
        return self.waiting() > after

    def disarm(self) -> None:
        self.ask(self.used_event, self.avail, self.nused, want=False)


class SplitDevice(SplitRing):
    def __init__(
        self,
        mem: Memory,
        area: Area,
        *,
        event_idx: bool = False,
        in_order: bool = False,
        on_empty: bool = False,
        start: int = 0,
    ) -> None:
        super().__init__(mem, area, event_idx, in_order, start)
        self.on_empty = on_empty
        self.out: list[ModelChain] = []

    def waiting(self) -> int:
        return self.get(self.avail + 2) - self.navail & 0xFFFF

    def pop(self) -> ModelChain | None:
        """Take the next available chain."""
        assert self.waiting() + len(self.out) <= self.size, "more chains available than the queue holds"
        if not self.waiting():
            return None
        head = self.get(self.avail + 4 + 2 * (self.navail % self.size))
        assert head < self.size and all(chain.head != head for chain in self.out), "head is no free descriptor"
        chain = ModelChain(head)
        self.walk(chain, self.desc, head, self.size)
        self.navail += 1
        self.out.append(chain)
        return chain

    def walk(self, chain: ModelChain, table: int, entry: int, entries: int) -> None:
        for _ in range(entries):
            assert entry < entries, "next is outside of the table"
            gpa, length, flags, after = struct.unpack("<QIHH", self.mem.read(table + 16 * entry, 16))
            if flags & INDIRECT:
                assert table == self.desc and not flags & NEXT, "indirect where none may be"
                assert length and length % 16 == 0, "indirect table of odd length"
                return self.walk(chain, gpa, 0, length // 16)
            chain.add(gpa, length, bool(flags & WRITE))
            assert len(chain.pieces) <= self.size, "chain is longer than the queue"
            if not flags & NEXT:
                return None
            assert not self.in_order or after == (entry + 1) % entries, "in order, but next is not the next descriptor"
            entry = after
        raise AssertionError("chain loops")

    def use(self, *done: tuple[ModelChain, int]) -> None:
        """Give chains back, each with the bytes written; in order, as one batch (all but the last are full)."""
        for k, (chain, written) in enumerate(done):
            assert written <= chain.writable
            if self.in_order:
                assert self.out[0] is chain and (k == len(done) - 1 or written == chain.writable)
            self.out.remove(chain)
            entry = self.used + 4 + 8 * ((self.nused + (0 if self.in_order else k)) % self.size)
            if not self.in_order or k == len(done) - 1:
                self.mem.write(entry, struct.pack("<II", chain.head, written))
        self.nused += len(done)
        self.put(self.used + 2, self.nused)

    def call(self) -> bool:
        something = self.nused != self.told
        wanted = self.wanted(self.used_event, self.avail, self.nused)
        return wanted or (something and self.on_empty and not self.out and not self.waiting())

    def arm(self) -> bool:
        """Ask for a kick at the next chain; say whether one is available already."""
        self.ask(self.avail_event, self.used, self.navail, want=True)
        return self.waiting() > 0

    def disarm(self) -> None:
        self.ask(self.avail_event, self.used, self.navail, want=False)
