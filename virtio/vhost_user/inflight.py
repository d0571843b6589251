"""The file in which a backend notes what it has popped and not used: the frontend keeps it, the next backend goes on.

Source: QEMU's docs/interop/vhost-user.rst, "Inflight I/O tracking", GET_INFLIGHT_FD and SET_INFLIGHT_FD.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from virtio.errors import VhostUserError
from virtio.event.notifier import Bell
from virtio.memory.region import Region
from virtio.vhost_user.message import INFLIGHT, REPLY, Message
from virtio.virtqueue.inflight import Inflight
from virtio.virtqueue.layout import QUEUE_SIZE_MAX

if TYPE_CHECKING:
    from virtio.vhost_user.backend import Backend

ROOM = 1024  # descriptors of the largest ring that a guest of QEMU has, whatever size QEMU asks a region for
SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


@dataclass(frozen=True)
class InflightFile:
    """The regions of the first ``queues`` queues, one behind the other, for ``size`` descriptors each.

    ``size`` is the frontend's: QEMU names the device's ``queue-size``, and its guest may choose larger rings. A file of
    our own has a second region of ROOM descriptors for each queue, behind those that any backend expects; ``room`` is
    0 if there are none.

    The file is the frontend's too. It is sealed against being cut shorter where it can be; if that happens, it reads as
    zeroes, and a bell is rung. What is in a region is checked when its queue starts.
    """

    region: Region
    queues: int
    size: int
    room: int
    packed: bool

    @classmethod
    def answer(cls, message: Message, queues_max: int, packed: bool) -> Message:
        """Return the answer to GET_INFLIGHT_FD: a new file, empty. Raises VhostUserError."""
        _, _, queues, size = cls.numbers(message, queues_max)
        total = queues * cls._stride(size, cls._room(size), packed)
        fd = os.memfd_create("vhost-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, total)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        except BaseException:
            os.close(fd)
            raise
        # as long as the question: QEMU's has 4 bytes of padding at the end
        payload = INFLIGHT.pack(total, 0, queues, size).ljust(len(message.payload), b"\0")
        return Message(message.request, REPLY, payload, [fd])

    @classmethod
    def take(cls, message: Message, queues_max: int, packed: bool, bell: Bell) -> InflightFile:
        """Map the file that comes with SET_INFLIGHT_FD; ``bell`` as in Region.from_fd. Raises VhostUserError."""
        total, offset, queues, size = cls.numbers(message, queues_max)
        room = cls._room(size)
        if total != queues * cls._stride(size, room, packed):
            room = 0
        needed = queues * cls._stride(size, room, packed)
        if total < needed:
            raise VhostUserError(f"{message.name}: {total} bytes for {queues} queues of {size} (at least {needed})")
        if offset % 8:
            raise VhostUserError(f"{message.name}: offset {offset} is no multiple of 8")
        with suppress(OSError):  # it need not be a memfd
            fcntl.fcntl(message.fds[0], fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        try:
            region = Region.from_fd(0, message.fds[0], needed, offset, bell=bell)
        except (ValueError, OverflowError, OSError) as error:
            raise VhostUserError(f"{message.name}: {needed} bytes at offset {offset}: {error}") from None
        return cls(region, queues, size, room, packed)

    def queue(self, index: int, size: int, packed: bool) -> Inflight | None:
        """Return the region of a queue of ``size`` descriptors; None if there is none.

        Raises ValueError if it is for another format.
        """
        if index >= self.queues:
            return None
        if packed != self.packed:
            raise ValueError(f"inflight region is of a {'packed' if self.packed else 'split'} ring")
        large = self.size < size <= self.room
        self._clear(index, large=not large)  # it is of a driver before
        return Inflight(self.region, self._at(index, large), self.room if large else self.size)

    def clear(self, index: int) -> None:
        """Have what there is of a queue as a new file has it: nothing is in flight, no queue had it."""
        if index < self.queues:
            self._clear(index, large=False)
            self._clear(index, large=True)

    def _clear(self, index: int, large: bool) -> None:
        length = self._length(self.room if large else self.size, self.packed)
        at = self._at(index, large)
        memoryview(self.region)[at : at + length] = bytes(length)

    def _at(self, index: int, large: bool) -> int:
        """Return where a region of a queue is."""
        size = self._length(self.size, self.packed)
        return self.queues * size + index * self._length(self.room, self.packed) if large else index * size

    @staticmethod
    def _room(size: int) -> int:
        return ROOM if size < ROOM else 0

    @staticmethod
    def _length(size: int, packed: bool) -> int:
        return Inflight.size(size, packed) if size else 0

    @classmethod
    def _stride(cls, size: int, room: int, packed: bool) -> int:
        """Return the bytes of all regions of one queue."""
        return cls._length(size, packed) + cls._length(room, packed)

    @staticmethod
    def numbers(message: Message, queues_max: int) -> tuple[int, int, int, int]:
        """Return bytes, offset, queues and size of each. Raises VhostUserError for those that cannot be."""
        total, offset, queues, size = message.unpack(INFLIGHT)
        if not 1 <= queues <= queues_max:
            raise VhostUserError(f"{message.name}: {queues} queues (1 to {queues_max})")
        if not 1 <= size <= QUEUE_SIZE_MAX:
            raise VhostUserError(f"{message.name}: queue size {size} (1 to {QUEUE_SIZE_MAX})")
        return total, offset, queues, size


# ---- rows of the table in dispatch.py: a check, and handlers ----


def file_of_queues(backend: Backend, message: Message) -> None:
    """Raise VhostUserError unless SET_INFLIGHT_FD has one file for queues that there are."""
    InflightFile.numbers(message, len(backend.rings.rings))
    if len(message.fds) != 1:
        raise VhostUserError(f"{message.name} has {len(message.fds)} file descriptors (1)")


def get_inflight_fd(backend: Backend, message: Message) -> Message:
    """GET_INFLIGHT_FD: a new file, empty."""
    return InflightFile.answer(message, len(backend.rings.rings), backend.session.packed)


def set_inflight_fd(backend: Backend, message: Message) -> None:
    """SET_INFLIGHT_FD: rings that run are stopped, and go on with this file."""
    rings = backend.rings
    rings.track(InflightFile.take(message, len(rings.rings), backend.session.packed, backend.lost))
