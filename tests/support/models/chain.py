"""What the models of both formats share: memory as bytes, and a chain as a list of pieces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

NEXT, WRITE, INDIRECT = 1, 2, 4
IGNORED = 0xBAD5  # goes where the spec says that the other end must not look


class Memory(Protocol):
    """Guest memory: virtio.GuestMemory, or Ram."""

    def read(self, gpa: int, length: int, /) -> bytes: ...
    def write(self, gpa: int, data: bytes, /) -> object: ...


class Area(Protocol):
    """Where a queue lies: virtio.QueueLayout, or anything with these four."""

    @property
    def size(self) -> int: ...
    @property
    def desc(self) -> int: ...
    @property
    def driver(self) -> int: ...
    @property
    def device(self) -> int: ...


class Ram:
    """Memory from guest address 0 on, for the models alone."""

    def __init__(self, length: int) -> None:
        self.bytes = bytearray(length)

    def read(self, gpa: int, length: int) -> bytes:
        assert gpa >= 0 and gpa + length <= len(self.bytes)
        return bytes(self.bytes[gpa : gpa + length])

    def write(self, gpa: int, data: bytes) -> None:
        assert gpa >= 0 and gpa + len(data) <= len(self.bytes)
        self.bytes[gpa : gpa + len(data)] = data


@dataclass(frozen=True)
class Piece:
    """One element of a buffer: [gpa, gpa + length), which the device writes or reads."""

    gpa: int
    length: int
    write: bool = False


@dataclass
class ModelChain:
    """A chain as the device end sees it. ``slots`` counts only in a packed ring."""

    head: int
    pieces: list[Piece] = field(default_factory=list)
    slots: int = 1

    @property
    def writable(self) -> int:
        return sum(piece.length for piece in self.pieces if piece.write)

    def add(self, gpa: int, length: int, write: bool) -> None:
        """Add the next element, holding the driver to the rules that both formats have for it."""
        assert length > 0, "descriptor of no bytes"
        assert write or not any(piece.write for piece in self.pieces), "readable after writable"
        self.pieces.append(Piece(gpa, length, write))
