"""A vhost-user frontend for tests: says what a test says, in the order it says it, right or wrong."""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Sequence

from virtio import DriverQueue, Feature, GuestMemory, QueueLayout, Region
from virtio.event.notifier import Bell
from virtio.vhost_user.message import ADDRESS, HEADER, NEED_REPLY, REGION, STATE, TABLE, U64, ProtocolFeature, Request

SIZE = 4 << 20
GPA, UADDR = 0x4000_0000, 0x7F00_0000_0000
PROTOCOL_FEATURES = 1 << 30
SURVIVE = Bell()  # nobody listens


class Frontend:
    """Connected to a socket, with guest memory in a memfd. ``ask`` waits for the reply, ``say`` does not.

    ``before``: the same guest's last connection, which is over. ``fd``: the file that is its memory, ours from now on.
    If it is cut shorter, this side reads zeroes, too, and goes on.
    """

    def __init__(self, path: str, before: Frontend | None = None, fd: int | None = None) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(10)
        self.socket.connect(path)
        if fd is None:
            fd = os.dup(before.fd) if before else os.memfd_create("guest", os.MFD_CLOEXEC)
        self.fd = fd
        os.ftruncate(self.fd, SIZE)
        self.memory = GuestMemory([Region.from_fd(GPA, self.fd, SIZE, uaddr=UADDR, bell=SURVIVE)])
        self.kicks: dict[int, int] = {}
        self.calls: dict[int, int] = {}
        self.acknowledged = False

    def close(self) -> None:
        self.socket.close()
        os.close(self.fd)
        for fd in (*self.kicks.values(), *self.calls.values()):
            os.close(fd)
        self.kicks, self.calls = {}, {}

    def __enter__(self) -> Frontend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- messages ----

    def say(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0, version: int = 1
    ) -> None:
        data = HEADER.pack(request, version | flags, len(payload)) + payload
        socket.send_fds(self.socket, [data], list(fds))

    def answer(self) -> tuple[bytes, list[int]]:
        """Return the payload and descriptors of a reply; EOFError when the backend has closed the connection."""
        fds: list[int] = []
        try:
            header = b""
            while len(header) < HEADER.size:
                part, extra, _, _ = self.socket.recvmsg(HEADER.size - len(header), 256)
                header += some(part)
                for _, _, data in extra:
                    got = array.array("i")
                    got.frombytes(data)
                    fds += list(got)
            _, flags, size = HEADER.unpack(header)
            assert flags & 7 == 5  # version 1, a reply
            payload = b""
            while len(payload) < size:
                payload += some(self.socket.recv(size - len(payload)))
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return payload, fds

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        self.say(request, payload, fds)
        return self.payload()

    def payload(self) -> bytes:
        """Return a reply, without what came with it."""
        payload, fds = self.answer()
        for fd in fds:
            os.close(fd)
        return payload

    def ask_u64(self, request: int, payload: bytes = b"") -> int:
        (value,) = U64.unpack(self.ask(request, payload))
        return int(value)

    def order(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send what has no answer of its own, and wait until it is obeyed."""
        if not self.acknowledged:
            self.say(request, payload, fds)
            self.ask_u64(Request.GET_FEATURES)  # answered after it
            return
        self.say(request, payload, fds, NEED_REPLY)
        (code,) = U64.unpack(self.payload())
        assert code == 0, f"{Request(request).name} failed"

    # ---- the usual course ----

    def negotiate(self, features: int = Feature.VERSION_1, protocol: int = ProtocolFeature.REPLY_ACK) -> int:
        """Accept these features, of those that are offered; return what is in use."""
        offered = self.ask_u64(Request.GET_FEATURES)
        self.order(Request.SET_OWNER)
        if protocol:
            assert offered & PROTOCOL_FEATURES
            protocol &= self.ask_u64(Request.GET_PROTOCOL_FEATURES)
            self.order(Request.SET_PROTOCOL_FEATURES, U64.pack(protocol))
            self.acknowledged = bool(protocol & ProtocolFeature.REPLY_ACK)
            features |= PROTOCOL_FEATURES
        use = int(features) & offered
        self.order(Request.SET_FEATURES, U64.pack(use))
        return use

    def share_memory(self) -> None:
        self.order(Request.SET_MEM_TABLE, TABLE.pack(1, 0) + REGION.pack(GPA, SIZE, UADDR, 0), [self.fd])

    def place(self, index: int, layout: QueueLayout, base: int = 0) -> None:
        """Say where a ring is, and where it stands."""
        move = UADDR - GPA
        self.order(Request.SET_VRING_NUM, STATE.pack(index, layout.size))
        self.order(Request.SET_VRING_BASE, STATE.pack(index, base))
        self.order(
            Request.SET_VRING_ADDR,
            ADDRESS.pack(index, 0, layout.desc + move, layout.device + move, layout.driver + move, 0),
        )

    def eventfd(self, request: int, index: int, held: dict[int, int]) -> None:
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        old, held[index] = held.get(index), fd
        try:
            self.order(request, U64.pack(index), [fd])
        finally:
            if old is not None:
                os.close(old)

    def start(self, index: int, layout: QueueLayout, base: int = 0, enable: bool = True) -> None:
        self.eventfd(Request.SET_VRING_CALL, index, self.calls)
        self.place(index, layout, base)
        self.eventfd(Request.SET_VRING_KICK, index, self.kicks)
        if enable:
            self.enable(index, True)

    def enable(self, index: int, on: bool) -> None:
        self.order(Request.SET_VRING_ENABLE, STATE.pack(index, on))

    def stop(self, index: int) -> int:
        """Stop a ring; return where it stands."""
        found, base = STATE.unpack(self.ask(Request.GET_VRING_BASE, STATE.pack(index, 0)))
        assert found == index
        return int(base)

    def driver(self, index: int, layout: QueueLayout, features: int) -> DriverQueue:
        return DriverQueue(self.memory, layout, features=features & ~PROTOCOL_FEATURES, index=index)

    def kick(self, index: int) -> None:
        os.eventfd_write(self.kicks[index], 1)


def some(data: bytes) -> bytes:
    """Return what was received; EOFError for nothing: the connection has ended."""
    if not data:
        raise EOFError
    return data


def layout_of(index: int, packed: bool, size: int = 64) -> QueueLayout:
    """Where tests have ring ``index``."""
    base = GPA + 0x10000 * index
    return QueueLayout.packed(size, base) if packed else QueueLayout.split(size, base)


def u32s(*numbers: int) -> bytes:
    return struct.pack(f"={len(numbers)}I", *numbers)
