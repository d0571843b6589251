"""The messages about guest memory: its regions, and the log of what was written there."""

from __future__ import annotations

from typing import ClassVar

from virtio.errors import VhostUserError
from virtio.event.notifier import Bell
from virtio.memory.region import Region
from virtio.vhost_user.memory import SLOTS_MAX, MemoryTable
from virtio.vhost_user.message import LOG, U64, Message, Obey, ProtocolFeature, Request
from virtio.vhost_user.session import LOG_ALL, Session


class MemoryMessages:
    """From messages to the regions in ``table``, and to their dirty log.

    ``bell`` is rung when the frontend cut the file of one shorter (see Region.from_fd).
    """

    def __init__(self, session: Session, bell: Bell) -> None:
        self.session = session
        self.bell = bell
        self.table = MemoryTable(bell)
        self.log: Region | None = None

    def set_log(self) -> None:
        """Log, or do not, as the features in use say."""
        memory = self.table.memory
        if self.session.features & LOG_ALL and self.log is not None:
            try:
                memory.start_log(self.log)
            except ValueError as error:
                raise VhostUserError(f"dirty log: {error}") from None
        else:
            memory.stop_log()

    def lost(self) -> str | None:
        """Say what the frontend cut short, if it did."""
        if slot := self.table.lost():
            return f"memory region of {slot.size:#x} bytes at {slot.gpa:#x}"
        if self.log is not None and self.log.lost:
            return f"dirty log of {self.log.size:#x} bytes"
        return None

    def clear(self) -> None:
        """Let go of all memory."""
        self.table.memory.stop_log()
        self.table.clear()

    def _set_log_base(self, message: Message) -> bytes | None:
        size, offset = message.unpack(LOG)
        try:
            self.log = Region.from_fd(0, message.only_fd(), size, offset, bell=self.bell)
        except (ValueError, OverflowError, OSError) as error:
            raise VhostUserError(f"{message.name}: log of {size:#x} bytes: {error}") from None
        self.set_log()
        return U64.pack(0) if self.session.protocol & ProtocolFeature.LOG_SHMFD else None

    def _get_max_mem_slots(self, message: Message) -> bytes:
        return U64.pack(SLOTS_MAX)

    OBEY: ClassVar[Obey] = {
        Request.SET_LOG_BASE: _set_log_base,
        Request.GET_MAX_MEM_SLOTS: _get_max_mem_slots,
    }
