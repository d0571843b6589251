"""What a ring test is about: the format, the features, and the chains that travel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from models.chain import Piece

from virtio import Feature, QueueLayout

RING = 1 << 32  # the ring areas and indirect tables, above 4 GiB
RING_BYTES = 1 << 16
OUR_TABLES = RING + 0x4000
MODEL_TABLES = RING + 0x8000
TABLE = 256  # bytes for each table of the model: 12 pieces and some, so that tables need not be aligned
DATA = 0x7000_0000_0000  # buffers, in adjacent regions with seams at odd places
DATA_REGIONS = (5000, 1, 333, 12345, 7, 30000)
BLOCK = 512  # bytes for the buffers of one chain
BLOCKS = 80
MAX_PIECES = 12


@dataclass(frozen=True)
class Plan:
    """One set of negotiated features and sizes. ``start`` is the index (packed: position) that the ring starts at."""

    packed: bool
    size: int
    event_idx: bool = False
    indirect: bool = False
    in_order: bool = False
    on_empty: bool = False
    max_indirect: int = 0
    start: int = 0

    @property
    def layout(self) -> QueueLayout:
        return QueueLayout.packed(self.size, RING) if self.packed else QueueLayout.split(self.size, RING)

    @property
    def features(self) -> int:
        bits = Feature.VERSION_1
        for wanted, bit in (
            (self.packed, Feature.RING_PACKED),
            (self.event_idx, Feature.EVENT_IDX),
            (self.indirect, Feature.INDIRECT_DESC),
            (self.in_order, Feature.IN_ORDER),
            (self.on_empty, Feature.NOTIFY_ON_EMPTY),
        ):
            bits |= bit if wanted else 0
        return int(bits)

    def resized(self, size: int) -> Plan:
        """The plan after a queue reset, with another size."""
        return replace(self, size=size, start=0)


@dataclass
class Job:
    """One chain on its way: what it must look like at the device, and what must come back to the driver."""

    serial: int
    block: int
    pieces: list[Piece]
    cookie: Any
    direct: int | None = None  # model driver: pieces before the indirect table; None: no table
    slots: int = 0  # ring slots it takes
    written: int = 0  # bytes the device wrote

    @property
    def readable(self) -> list[Piece]:
        return [piece for piece in self.pieces if not piece.write]

    @property
    def writable(self) -> list[Piece]:
        return [piece for piece in self.pieces if piece.write]

    @property
    def writable_length(self) -> int:
        return sum(piece.length for piece in self.writable)

    @property
    def question(self) -> bytes:
        """What the driver put into the readable pieces."""
        return pattern(self.serial, sum(piece.length for piece in self.readable))

    @property
    def answer(self) -> bytes:
        """What the device puts into the writable pieces."""
        return pattern(~self.serial, self.writable_length)


def pattern(serial: int, length: int) -> bytes:
    """Bytes that differ from chain to chain and from place to place."""
    return bytes((serial * 31 + i * 7 + (i >> 3)) & 0xFF for i in range(length))


def make_job(serial: int, block: int, readable: list[int], writable: list[int], direct: int | None) -> Job:
    """Lay out a chain of pieces of the given lengths in a block, one behind the other from an odd place on."""
    at = DATA + block * BLOCK + serial % 16
    pieces = []
    for k, length in enumerate(readable + writable):
        pieces.append(Piece(at, length, k >= len(readable)))
        at += length
    return Job(serial, block, pieces, ["cookie", serial], direct)  # a list: a cookie need not be hashable
