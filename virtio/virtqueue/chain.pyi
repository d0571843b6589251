"""A chain of buffers at the device end."""

from __future__ import annotations

from typing_extensions import Buffer

class Chain:
    """One chain of buffers, popped: a view of guest memory."""
    @property
    def head(self) -> int: ...
    @property
    def readable(self) -> list[memoryview]: ...
    @property
    def writable(self) -> list[memoryview]: ...
    @property
    def readable_length(self) -> int: ...
    @property
    def writable_length(self) -> int: ...
    written: int  # what add_used reports unless told otherwise; write() moves it
    def read(self, offset: int = 0, length: int | None = None) -> bytes: ...
    def write(self, data: Buffer, offset: int | None = None) -> int: ...  # default offset: written
