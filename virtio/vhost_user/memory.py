"""Guest memory as a frontend gives it: files, mapped; their dirty log; and the messages about these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from virtio.errors import VhostUserError
from virtio.event.notifier import Bell
from virtio.memory.guest_memory import GuestMemory
from virtio.memory.region import Region
from virtio.vhost_user.message import LOG, REGION, REGIONS_MAX, SINGLE, TABLE, U64, Message

if TYPE_CHECKING:
    from virtio.vhost_user.backend import Backend

SLOTS_MAX = 509  # regions of one frontend: as libvhost-user and the kernel's vhost
REPEATS_MAX = 0x8000  # times that one of them may be added again: there are no more queue pairs


@dataclass(frozen=True)
class Slot:
    """A region as the frontend names it, which is there once, however often it was added."""

    gpa: int
    size: int
    uaddr: int
    region: Region

    @property
    def name(self) -> tuple[int, int, int]:
        """What the frontend knows it by."""
        return self.gpa, self.size, self.uaddr


class MemoryTable:
    """The regions of one connection, in ``guest``. Raises VhostUserError for what cannot be; nothing changes then.

    A message gives the regions that there are to be, or None if it changes nothing; :meth:`install` puts them in place.
    ``bell`` is rung when the frontend cut the file of one shorter (see Region.from_fd). ``gone`` are ranges of guest
    addresses that were removed at some time. ``log``: the dirty log's file, used while LOG_ALL is.

    QEMU 7.2 adds each region once for each queue pair, and removes it as often: the last removal counts.
    """

    def __init__(self, bell: Bell) -> None:
        self.bell = bell
        self.guest = GuestMemory()
        self.log: Region | None = None
        self.slots: list[Slot] = []
        self.gone: tuple[tuple[int, int], ...] = ()
        self.repeats: Counter[int] = Counter()  # by guest address

    def whole(self, message: Message) -> list[Slot]:
        """Take a whole table (SET_MEM_TABLE), which :func:`files_of_regions` has checked."""
        slots = [self._map(message, TABLE.size + i * REGION.size, fd) for i, fd in enumerate(message.fds)]
        self.repeats.clear()
        return slots

    def added(self, message: Message) -> list[Slot] | None:
        """Take one region more (ADD_MEM_REG)."""
        if slot := self._find(message):
            if self.repeats[slot.gpa] >= REPEATS_MAX:
                raise VhostUserError(f"{message.name}: region at {slot.gpa:#x} again (limit {REPEATS_MAX} times)")
            self.repeats[slot.gpa] += 1
            return None
        if len(self.slots) >= SLOTS_MAX:
            raise VhostUserError(f"{message.name}: {len(self.slots)} regions are there (limit {SLOTS_MAX})")
        return [*self.slots, self._map(message, SINGLE.size - REGION.size, message.fds[0])]

    def removed(self, message: Message) -> list[Slot] | None:
        """Let go of one region (REM_MEM_REG)."""
        slot = self._find(message)
        if slot is None:
            gpa, size, uaddr, _ = message.unpack(SINGLE)
            raise VhostUserError(f"{message.name}: no region of {size:#x} bytes at {gpa:#x} (frontend's {uaddr:#x})")
        if self.repeats[slot.gpa]:
            self.repeats[slot.gpa] -= 1
            return None
        return [each for each in self.slots if each is not slot]

    def plan(self, slots: list[Slot]) -> GuestMemory:
        """Return a memory of these regions."""
        try:
            return GuestMemory([slot.region for slot in slots])
        except ValueError as error:
            raise VhostUserError(f"regions: {error}") from None

    def leaving(self, slots: list[Slot]) -> list[tuple[int, int]]:
        """Return the ranges (guest address, bytes) of the regions that are not among these."""
        names = {slot.name for slot in slots}
        return [(slot.gpa, slot.size) for slot in self.slots if slot.name not in names]

    def install(self, slots: list[Slot]) -> None:
        """Replace the regions."""
        leaving = self.leaving(slots)
        try:
            self.guest.replace([slot.region for slot in slots])
        except ValueError as error:
            raise VhostUserError(f"regions: {error}") from None
        self.slots = slots
        self.gone = tuple(dict.fromkeys((*self.gone, *leaving)))[-SLOTS_MAX:]

    def set_log(self, wanted: bool) -> None:
        """Write the dirty log, if there is one, or do not."""
        if wanted and self.log is not None:
            try:
                self.guest.start_log(self.log)
            except ValueError as error:
                raise VhostUserError(f"dirty log: {error}") from None
        else:
            self.guest.stop_log()

    def clear(self) -> None:
        """Let go of all."""
        self.guest.stop_log()
        self.install([])

    def lost(self) -> str | None:
        """Return what the frontend cut short; None: nothing."""
        if slot := next((slot for slot in self.slots if slot.region.lost), None):
            return f"memory region of {slot.size:#x} bytes at {slot.gpa:#x}"
        if self.log is not None and self.log.lost:
            return f"dirty log of {self.log.size:#x} bytes"
        return None

    def _find(self, message: Message) -> Slot | None:
        *name, _ = message.unpack(SINGLE)
        return next((slot for slot in self.slots if slot.name == tuple(name)), None)

    def _map(self, message: Message, at: int, fd: int) -> Slot:
        gpa, size, uaddr, offset = REGION.unpack_from(message.payload, at)
        try:
            return Slot(gpa, size, uaddr, Region.from_fd(gpa, fd, size, offset, uaddr=uaddr, bell=self.bell))
        except (ValueError, OverflowError, OSError) as error:
            raise VhostUserError(f"{message.name}: region of {size:#x} bytes at {gpa:#x}: {error}") from None


def overlap(ranges: Iterable[tuple[int, int]], start: int, size: int) -> bool:
    """Say whether any of the ranges (start, bytes) has a byte of another."""
    return any(first < start + size and start < first + length for first, length in ranges)


# ---- rows of the table in dispatch.py: a check ----


def files_of_regions(backend: Backend, message: Message) -> None:
    """Raise VhostUserError unless SET_MEM_TABLE has a file for each of 1 to 8 regions."""
    count, _ = message.unpack(TABLE)
    if not 1 <= count <= REGIONS_MAX:
        raise VhostUserError(f"{message.name} has {count} regions (1 to {REGIONS_MAX})")
    if len(message.payload) < TABLE.size + count * REGION.size:
        raise VhostUserError(f"{message.name} of {count} regions has {len(message.payload)} bytes")
    if len(message.fds) != count:
        raise VhostUserError(f"{message.name} of {count} regions has {len(message.fds)} file descriptors")


# ---- handlers ----


def set_mem_table(backend: Backend, message: Message) -> None:
    """SET_MEM_TABLE: these regions replace all."""
    _install(backend, backend.memory.whole(message))


def add_mem_reg(backend: Backend, message: Message) -> None:
    """ADD_MEM_REG: one region more."""
    _install(backend, backend.memory.added(message))


def rem_mem_reg(backend: Backend, message: Message) -> None:
    """REM_MEM_REG: one region less."""
    _install(backend, backend.memory.removed(message))


def _install(backend: Backend, slots: list[Slot] | None) -> None:
    if slots is not None:
        with backend.rings.moving(slots):
            backend.memory.install(slots)


def get_max_mem_slots(backend: Backend, message: Message) -> bytes:
    """GET_MAX_MEM_SLOTS: SLOTS_MAX."""
    return U64.pack(SLOTS_MAX)


def set_log_base(backend: Backend, message: Message) -> bytes:
    """SET_LOG_BASE: the dirty log's file."""
    size, offset = message.unpack(LOG)
    try:
        backend.memory.log = Region.from_fd(0, message.fds[0], size, offset, bell=backend.lost)
    except (ValueError, OverflowError, OSError) as error:
        raise VhostUserError(f"{message.name}: log of {size:#x} bytes: {error}") from None
    backend.memory.set_log(backend.session.logs)
    return U64.pack(0)


def set_log_fd(backend: Backend, message: Message) -> None:
    """SET_LOG_FD: its eventfd is not needed."""
