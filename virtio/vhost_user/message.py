"""The messages of vhost-user: numbers, layouts, bounds. Source: QEMU's docs/interop/vhost-user.rst."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

from virtio.vhost_user.descriptors import close_all

HEADER = struct.Struct("=III")  # request, flags, bytes of payload
VERSION = 1
VERSION_MASK = 3
REPLY = 4
NEED_REPLY = 8

PAYLOAD_MAX = 4096  # bytes: as rust-vmm; the largest that exists, a region table of 8, has 264
FDS_MAX = 32  # of one message: as rust-vmm; a region table has 8
REGIONS_MAX = 8  # of SET_MEM_TABLE

U64 = struct.Struct("=Q")
STATE = struct.Struct("=II")  # vring index, number
ADDRESS = struct.Struct("=IIQQQQ")  # index, flags, descriptor, used, available, log
REGION = struct.Struct("=QQQQ")  # guest address, size, address in the frontend, offset in the file
SINGLE = struct.Struct("=8xQQQQ")  # one region, behind padding: ADD_MEM_REG, REM_MEM_REG
TABLE = struct.Struct("=II")  # regions, padding
LOG = struct.Struct("=QQ")  # size, offset in the file
CONFIG = struct.Struct("=III")  # offset, size, flags
INFLIGHT = struct.Struct("=QQHH")  # size, offset in the file, queues, size of each

CONFIG_MAX = 256  # bytes of a config space: what QEMU takes
NO_FD = 0x100  # of SET_VRING_KICK, _CALL and _ERR: no descriptor comes with it
INDEX_MASK = 0xFF


class Request(IntEnum):
    """What a frontend asks."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class BackendRequest(IntEnum):
    """What a backend asks, on the channel that SET_BACKEND_REQ_FD gave it."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8


class ProtocolFeature(IntFlag):
    """Bits of GET_PROTOCOL_FEATURES: those that the backend has."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16


@dataclass
class Message:
    """A message as it came. Its file descriptors are ours: :meth:`take` hands one on, :meth:`close` ends the rest."""

    request: int
    flags: int
    payload: bytes
    fds: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What it asks."""
        try:
            return Request(self.request).name
        except ValueError:
            return f"request {self.request}"

    @property
    def needs_reply(self) -> bool:
        """Whether NEED_REPLY is set: it counts once REPLY_ACK is negotiated."""
        return bool(self.flags & NEED_REPLY)

    def number(self) -> int:
        """Return a payload that is one u64. Sizes are checked by the message's row (dispatch.py), here and below."""
        return int(U64.unpack(self.payload)[0])

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        """Return the numbers at the start of the payload."""
        return layout.unpack_from(self.payload)

    def take(self) -> int:
        """Return its first file descriptor, which is the caller's from here on."""
        return self.fds.pop(0)

    def close(self) -> None:
        """Close the file descriptors that nobody took."""
        close_all(self.fds)
        self.fds.clear()


Answer = bytes | Message | None
