"""MSI-X: a table of messages and an array of pending bits, in a memory BAR (PCI Local Bus 3.0, 6.8.2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from virtio.core.process import ForkAwareLock
from virtio.errors import ConfigError, SnapshotError
from virtio.event.notifier import Bell
from virtio.pci.config import COMMAND_MASTER, ConfigSpace
from virtio.virtqueue import saved

CAPABILITY_ID = 0x11
CONTROL = 2  # message control: offset in the capability; both bits of it are in the second byte
CONTROL_ENABLE, CONTROL_FUNCTION_MASK = 1 << 15, 1 << 14

VECTORS_MAX = 2048
ENTRY_SIZE = 16
ADDRESS, DATA, VECTOR_CONTROL = 0, 8, 12  # offsets in an entry; each address and data is little-endian
VECTOR_MASKED = 1
# what a guest may write of an entry: a message's address is that of a 32-bit word, and of the control only the mask
ENTRY_WRITABLE = b"\xfc" + b"\xff" * 11 + b"\x01\0\0\0"
# the BAR as QEMU lays it out: table in the lower half of 4096 bytes, pending bits in the upper, while they fit
BAR_SIZE, PENDING_OFFSET = 4096, 2048

Message = Callable[[int, int], object]
Resolve = Callable[[int, int], Bell | None]


class Msix:
    """The MSI-X capability of a function, and the ``vectors`` behind it, which occupy memory BAR ``bar``.

    A vector rings its bell if it has one: its route, or what ``resolve(address, data)`` returned for its message when
    it was unmasked; else it is sent by ``message(address, data)``. While it cannot be sent it is pending: MSI-X is
    off, the function or the vector masked, bus mastering off, or there is neither bell nor ``message``. Once it can, it
    is sent once.

    Any thread may call :meth:`notify`; one at a time all else. Bells and callables are called without a lock. Raises
    ConfigError for a number of vectors outside 1..2048.
    """

    def __init__(
        self,
        config: ConfigSpace,
        vectors: int,
        bar: int,
        message: Message | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        if not 1 <= vectors <= VECTORS_MAX:
            raise ConfigError(f"{vectors} MSI-X vectors: out of range (1 to {VECTORS_MAX})")
        self.vectors = vectors
        self.pending_offset = max(PENDING_OFFSET, vectors * ENTRY_SIZE)
        end = self.pending_offset + (vectors + 63) // 64 * 8
        self.size = max(BAR_SIZE, 1 << (end - 1).bit_length())
        config.add_bar(bar, self.size)
        body = (vectors - 1).to_bytes(2, "little") + bar.to_bytes(4, "little")
        body += (self.pending_offset | bar).to_bytes(4, "little")
        writable = (CONTROL_ENABLE | CONTROL_FUNCTION_MASK).to_bytes(2, "little").ljust(len(body), b"\0")
        self.capability = config.add_capability(CAPABILITY_ID, body, writable)
        self._control = self.capability + CONTROL + 1
        self._config = config
        self._message = message
        self._resolve = resolve
        self._lock = ForkAwareLock("MSI-X table")  # guards all below
        self._table = bytearray()
        self._pending = 0
        self._routes: dict[int, Bell] = {}
        self._resolved: dict[int, tuple[tuple[int, int], Bell | None]] = {}  # unmasked vectors: message, its bell
        self.reset()

    @property
    def enabled(self) -> bool:
        """Whether MSI-X is on, and INTx is therefore off."""
        return self._config.bytes[self._control] & CONTROL_ENABLE >> 8 != 0

    @property
    def pending(self) -> int:
        """The pending bits: bit ``v`` is vector ``v``."""
        return self._pending

    def masked(self, vector: int) -> bool:
        """Whether the vector may not be sent now."""
        return (
            self._config.bytes[self._control] & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK) >> 8 != CONTROL_ENABLE >> 8
            or not self._config.command & COMMAND_MASTER
            or self._table[vector * ENTRY_SIZE + VECTOR_CONTROL] & VECTOR_MASKED != 0
        )

    def entry(self, vector: int) -> tuple[int, int]:
        """Return (address, data) of the vector's message."""
        at = vector * ENTRY_SIZE
        entry = self._table[at : at + VECTOR_CONTROL]
        return int.from_bytes(entry[:DATA], "little"), int.from_bytes(entry[DATA:], "little")

    def bell(self, vector: int) -> Bell | None:
        """Return the bell that the vector rings now, so that who raises it may ring that itself; None: use notify."""
        return None if self.masked(vector) else self._bell(vector)

    def _bell(self, vector: int) -> Bell | None:
        bell = self._routes.get(vector)
        if bell is None and (resolved := self._resolved.get(vector)) and resolved[0] == self.entry(vector):
            return resolved[1]
        return bell

    def route(self, vector: int, bell: Bell | None) -> None:
        """Let the vector ring ``bell``, whatever its message; None undoes it. The owner calls :meth:`flush`."""
        if not 0 <= vector < self.vectors:
            raise ConfigError(f"MSI-X vector {vector} out of range (0 to {self.vectors - 1})")
        with self._lock:
            if bell is None:
                self._routes.pop(vector, None)
            else:
                self._routes[vector] = bell

    def notify(self, vector: int) -> None:
        """Send the vector, or make it pending."""
        with self._lock:
            send = self._take(vector)
            if send is None:
                self._pending |= 1 << vector
        if send is not None:
            send()

    def _take(self, vector: int) -> Callable[[], object] | None:
        """Return what sends the vector as it is now, None if nothing can. Caller holds the lock."""
        if self.masked(vector):
            return None
        bell = self._bell(vector)
        if bell is not None:
            return bell.ring
        message = self._message
        if message is None:
            return None
        address, data = self.entry(vector)
        return lambda: message(address, data)

    def use(self, vectors: int) -> None:
        """Say which vectors (a mask) are in use: pending bits of others are cleared, and the bells of these found.

        After any change of that, and any write of the table, the capability or the command register.
        """
        if self._pending & ~vectors:
            with self._lock:
                self._pending &= vectors
        if self._resolve is not None:
            resolved = {}
            for vector in range(vectors.bit_length()):
                if vectors >> vector & 1 and not self.masked(vector):
                    entry, before = self.entry(vector), self._resolved.get(vector)
                    if before is None or before[0] != entry:
                        before = entry, self._resolve(*entry)
                    resolved[vector] = before
            self._resolved = resolved

    def flush(self) -> None:
        """Send what is pending and can be sent: after whatever may have made it so."""
        while (send := self._next()) is not None:
            send()

    def _next(self) -> Callable[[], object] | None:
        """Take one pending vector that can be sent: what sending raises leaves the others pending."""
        with self._lock:
            for vector in range(self._pending.bit_length()):
                if self._pending >> vector & 1 and (send := self._take(vector)) is not None:
                    self._pending &= ~(1 << vector)
                    return send
        return None

    def read(self, offset: int, size: int) -> int:
        """Read the BAR, at any width and alignment. Between table and pending bits, and after them, it is 0."""
        table = self._table[offset : offset + size]
        value = int.from_bytes(table, "little")
        if offset + size > self.pending_offset:
            pending = self._pending << 8 * self.pending_offset >> 8 * offset
            value |= pending & (1 << 8 * size) - 1
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the BAR: table entries. Pending bits are read-only. The owner calls :meth:`use`, then :meth:`flush`."""
        with self._lock:
            for i in range(offset, min(offset + size, len(self._table))):
                mask = ENTRY_WRITABLE[i % ENTRY_SIZE]
                self._table[i] = self._table[i] & ~mask | value & mask
                value >>= 8

    def reset(self) -> None:
        """Mask all vectors and clear table and pending bits. Routes stay."""
        entry = bytes(VECTOR_CONTROL) + VECTOR_MASKED.to_bytes(4, "little")
        with self._lock:
            self._table = bytearray(entry * self.vectors)
            self._pending = 0

    def snapshot(self) -> dict[str, Any]:
        """Return table and pending bits, as JSON can hold them. Routes are the embedder's and not part of it."""
        with self._lock:
            return {"table": self._table.hex(), "pending": f"{self._pending:x}"}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`snapshot` gave, after the configuration space. The owner goes on as after a write.

        SnapshotError, and no change, for another number of vectors, or for bits that no guest can set.
        """
        saved.fields({"table": saved.hexadecimal(len(self._table)), "pending": saved.text})(state)
        table = bytes.fromhex(state["table"])
        for i, byte in enumerate(table):
            if byte & ~ENTRY_WRITABLE[i % ENTRY_SIZE]:
                raise SnapshotError("table", f"has {byte:#04x} at byte {i:#x}: read-only bits are set")
        if not re.fullmatch("[0-9a-f]+", state["pending"]) or (pending := int(state["pending"], 16)) >> self.vectors:
            raise SnapshotError("pending", f"is {state['pending']!r:.80}: no mask of {self.vectors} vectors")
        with self._lock:
            self._table[:] = table
            self._pending = pending
