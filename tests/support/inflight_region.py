"""A frontend's side of the inflight region: asked for, kept, given again; read and scribbled over."""

from __future__ import annotations

import mmap
import os
import struct
from typing import Self

from vhost_frontend import Frontend

from virtio import Feature
from virtio.vhost_user import Inflight, ProtocolFeature
from virtio.vhost_user.message import INFLIGHT, Request

PROTOCOL = ProtocolFeature.REPLY_ACK | ProtocolFeature.INFLIGHT_SHMFD
# features, version, desc_num, last_batch_head, used_idx
SPLIT = struct.Struct("<QHHHH")
# features, version, desc_num, free_head, old_free_head, used_idx, old_used_idx, the wrap counters
PACKED = struct.Struct("<QHHHHHHBB10x")
SPLIT_ENTRY = struct.Struct("<B5xHQ")  # inflight, next, counter
PACKED_ENTRY = struct.Struct("<BxHHHQHHIQ")  # inflight, next, last, num, counter, id, flags, len, addr


class Region:
    """The file of queue 0, as GET_INFLIGHT_FD gave it: of ``queues`` queues for ``size`` descriptors each.

    ``large``: what is read and written is the second region, which has room for larger rings.
    """

    def __init__(
        self, frontend: Frontend, packed: bool, queues: int = 1, size: int = 64, *, large: bool = False
    ) -> None:
        self.packed, self.queues, self.size = packed, queues, size
        frontend.say(Request.GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, queues, size))
        payload, (self.fd,) = frontend.answer()
        self.total, self.offset, *rest = INFLIGHT.unpack(payload)
        assert rest == [queues, size]
        self.bytes = mmap.mmap(self.fd, self.total)
        self.at = queues * Inflight.size(size, packed) if large else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes.close()
        os.close(self.fd)

    def give(self, frontend: Frontend) -> None:
        payload = INFLIGHT.pack(self.total, self.offset, self.queues, self.size)
        frontend.order(Request.SET_INFLIGHT_FD, payload, [self.fd])

    @property
    def header(self) -> list[int]:
        return list((PACKED if self.packed else SPLIT).unpack_from(self.bytes, self.at))

    @header.setter
    def header(self, numbers: list[int]) -> None:
        (PACKED if self.packed else SPLIT).pack_into(self.bytes, self.at, *numbers)

    def entry(self, index: int) -> list[int]:
        kind = PACKED_ENTRY if self.packed else SPLIT_ENTRY
        return list(kind.unpack_from(self.bytes, self.at + kind.size * index + len(self)))

    def put(self, index: int, numbers: list[int]) -> None:
        kind = PACKED_ENTRY if self.packed else SPLIT_ENTRY
        kind.pack_into(self.bytes, self.at + kind.size * index + len(self), *numbers)

    def __len__(self) -> int:
        """Bytes of the header."""
        return PACKED.size if self.packed else SPLIT.size

    def inflight(self) -> list[int]:
        """The entries in flight, in the order of their counters."""
        place = 4 if self.packed else 2
        found = [(entry[place], i) for i in range(64) if (entry := self.entry(i))[0]]
        return [i for _, i in sorted(found)]


def negotiate(frontend: Frontend, packed: bool, features: int = 0) -> int:
    """Agree on features, and share memory."""
    use = frontend.negotiate(Feature.VERSION_1 | (Feature.RING_PACKED if packed else 0) | features, PROTOCOL)
    frontend.share_memory()
    return use
