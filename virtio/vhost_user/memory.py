"""Guest memory as a frontend gives it: files, mapped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from virtio.errors import VhostUserError
from virtio.event.notifier import Bell
from virtio.memory.guest_memory import GuestMemory
from virtio.memory.region import Region
from virtio.vhost_user.message import REGION, REGIONS_MAX, TABLE, Message

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
    """The regions of one connection, in ``memory``. Raises VhostUserError for what cannot be; nothing changes then.

    A message gives the regions that there are to be, or None if it changes nothing; :meth:`install` puts them in place.
    ``bell`` is rung when the frontend cut the file of one shorter (see Region.from_fd). ``gone`` are ranges of guest
    addresses that were removed at some time.

    QEMU 7.2 adds each region once for each queue pair, and removes it as often: the last removal counts.
    """

    def __init__(self, bell: Bell) -> None:
        self.bell = bell
        self.memory = GuestMemory()
        self.slots: list[Slot] = []
        self.gone: tuple[tuple[int, int], ...] = ()
        self.repeats: Counter[int] = Counter()  # by guest address

    def whole(self, message: Message) -> list[Slot]:
        """Take a whole table (SET_MEM_TABLE)."""
        if len(message.payload) < TABLE.size:
            raise VhostUserError(f"{message.name} has {len(message.payload)} bytes (at least {TABLE.size})")
        count, _ = TABLE.unpack_from(message.payload)
        if not 1 <= count <= REGIONS_MAX:
            raise VhostUserError(f"{message.name} has {count} regions (1 to {REGIONS_MAX})")
        if len(message.payload) < TABLE.size + count * REGION.size:
            raise VhostUserError(f"{message.name} of {count} regions has {len(message.payload)} bytes")
        if len(message.fds) != count:
            raise VhostUserError(f"{message.name} of {count} regions has {len(message.fds)} file descriptors")
        slots = [self._map(message, TABLE.size + i * REGION.size, fd) for i, fd in enumerate(message.fds)]
        self.repeats.clear()
        return slots

    def added(self, message: Message) -> list[Slot] | None:
        """Take one region more (ADD_MEM_REG)."""
        self._single(message)
        if len(message.fds) != 1:
            raise VhostUserError(f"{message.name} has {len(message.fds)} file descriptors (1)")
        if slot := self._find(message):
            if self.repeats[slot.gpa] >= REPEATS_MAX:
                raise VhostUserError(f"{message.name}: region at {slot.gpa:#x} again (limit {REPEATS_MAX} times)")
            self.repeats[slot.gpa] += 1
            return None
        if len(self.slots) >= SLOTS_MAX:
            raise VhostUserError(f"{message.name}: {len(self.slots)} regions are there (limit {SLOTS_MAX})")
        return [*self.slots, self._map(message, 8, message.fds[0])]

    def removed(self, message: Message) -> list[Slot] | None:
        """Let go of one region (REM_MEM_REG)."""
        self._single(message)
        slot = self._find(message)
        if slot is None:
            gpa, size, uaddr, _ = REGION.unpack_from(message.payload, 8)
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
            self.memory.replace([slot.region for slot in slots])
        except ValueError as error:
            raise VhostUserError(f"regions: {error}") from None
        self.slots = slots
        self.gone = tuple(dict.fromkeys((*self.gone, *leaving)))[-SLOTS_MAX:]

    def _find(self, message: Message) -> Slot | None:
        *name, _ = REGION.unpack_from(message.payload, 8)
        return next((slot for slot in self.slots if slot.name == tuple(name)), None)

    def clear(self) -> None:
        """Let go of all."""
        self.install([])

    def lost(self) -> Slot | None:
        """Return a region whose file was cut shorter, if there is one."""
        return next((slot for slot in self.slots if slot.region.lost), None)

    @staticmethod
    def _single(message: Message) -> None:
        if len(message.payload) < 8 + REGION.size:
            raise VhostUserError(f"{message.name} has {len(message.payload)} bytes (at least {8 + REGION.size})")

    def _map(self, message: Message, at: int, fd: int) -> Slot:
        gpa, size, uaddr, offset = REGION.unpack_from(message.payload, at)
        try:
            return Slot(gpa, size, uaddr, Region.from_fd(gpa, fd, size, offset, uaddr=uaddr, bell=self.bell))
        except (ValueError, OverflowError, OSError) as error:
            raise VhostUserError(f"{message.name}: region of {size:#x} bytes at {gpa:#x}: {error}") from None


def overlap(ranges: Iterable[tuple[int, int]], start: int, size: int) -> bool:
    """Say whether any of the ranges (start, bytes) has a byte of another."""
    return any(first < start + size and start < first + length for first, length in ranges)
