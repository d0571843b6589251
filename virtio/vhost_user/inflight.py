"""The file in which a backend notes what it has popped and not used: the frontend keeps it, the next backend goes on.

Source: QEMU's docs/interop/vhost-user.rst, "Inflight I/O tracking", GET_INFLIGHT_FD and SET_INFLIGHT_FD.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass

from virtio._bell import Bell
from virtio._inflight import Inflight
from virtio._region import Region
from virtio.errors import VhostUserError
from virtio.layout import QUEUE_SIZE_MAX
from virtio.vhost_user.messages import INFLIGHT, REPLY, Message

SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


@dataclass(frozen=True)
class InflightFile:
    """The regions of the first ``queues`` queues, one behind the other, for ``size`` descriptors each.

    The file is the frontend's too. It is sealed against being cut shorter where it can be; if that happens, it reads as
    zeroes, and a bell is rung. What is in a region is checked when its queue starts.
    """

    region: Region
    queues: int
    size: int

    @classmethod
    def answer(cls, message: Message, queues_max: int, packed: bool) -> Message:
        """Return the answer to GET_INFLIGHT_FD: a new file, empty. Raises VhostUserError."""
        _, _, queues, size = cls._numbers(message, queues_max)
        total = queues * Inflight.size(size, packed)
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
        total, offset, queues, size = cls._numbers(message, queues_max)
        if len(message.fds) != 1:
            raise VhostUserError(f"{message.name} has {len(message.fds)} file descriptors (1)")
        needed = queues * Inflight.size(size, packed)
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
        return cls(region, queues, size)

    def queue(self, index: int, packed: bool) -> Inflight | None:
        """Return the region of a queue; None if there is none. Raises ValueError if it is for another format."""
        if index >= self.queues:
            return None
        return Inflight(self.region, index * Inflight.size(self.size, packed), self.size)

    def clear(self, index: int, packed: bool) -> None:
        """Have the region of a queue, if there is one, as a new file has it: nothing is in flight, no queue had it."""
        if index < self.queues:
            size = Inflight.size(self.size, packed)
            memoryview(self.region)[index * size : (index + 1) * size] = bytes(size)

    @staticmethod
    def _numbers(message: Message, queues_max: int) -> tuple[int, int, int, int]:
        if not INFLIGHT.size <= len(message.payload) <= INFLIGHT.size + 4:
            sizes = f"{INFLIGHT.size} to {INFLIGHT.size + 4}"
            raise VhostUserError(f"{message.name} has {len(message.payload)} bytes ({sizes})")
        total, offset, queues, size = INFLIGHT.unpack_from(message.payload)
        if not 1 <= queues <= queues_max:
            raise VhostUserError(f"{message.name}: {queues} queues (1 to {queues_max})")
        if not 1 <= size <= QUEUE_SIZE_MAX:
            raise VhostUserError(f"{message.name}: queue size {size} (1 to {QUEUE_SIZE_MAX})")
        return total, offset, queues, size
