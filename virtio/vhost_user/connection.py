"""One connection of vhost-user: messages with file descriptors over a UNIX stream socket."""

from __future__ import annotations

import array
import select
import socket
import time
from collections.abc import Sequence
from contextlib import suppress

from virtio.errors import Disconnected, VhostUserError
from virtio.vhost_user.descriptors import FDS_SPACE, close_all, close_socket, received
from virtio.vhost_user.message import FDS_MAX, HEADER, PAYLOAD_MAX, REPLY, VERSION, VERSION_MASK, Message

PATIENCE = 10.0  # seconds that a peer may take for the rest of a message that it has begun, or to take a reply


class Channel:
    """A connected socket, which is the channel's from now on. One thread receives; any thread may send.

    ``patience``: seconds that the other side may take for the rest of a message, or to take one; 0: no time at all.
    Raises VhostUserError for what is no message, Disconnected when the other side is gone or stops amid a message.
    """

    def __init__(self, connection: socket.socket, *, patience: float | None = None) -> None:
        self.socket = connection
        self.patience = PATIENCE if patience is None else patience
        connection.settimeout(self.patience)

    def fileno(self) -> int:
        """Return the socket's descriptor: readable when a message comes."""
        return self.socket.fileno()

    def receive(self) -> Message:
        """Return the next message; wait for its beginning no longer than for its rest."""
        fds: list[int] = []
        deadline = time.monotonic() + self.patience
        try:
            header = self._read(HEADER.size, fds, deadline)
            request, flags, size = HEADER.unpack(header)
            if flags & VERSION_MASK != VERSION:
                raise VhostUserError(f"request {request} has version {flags & VERSION_MASK} (this is {VERSION})")
            if size > PAYLOAD_MAX:
                raise VhostUserError(f"request {request} has {size} bytes of payload (limit {PAYLOAD_MAX})")
            payload = self._read(size, fds, deadline) if size else b""
        except BaseException:
            close_all(fds)
            raise
        self.socket.settimeout(self.patience)
        return Message(request, flags, payload, fds)

    def _read(self, size: int, fds: list[int], deadline: float) -> bytes:
        """Return exactly so many bytes; the descriptors that come with them go to fds."""
        data = b""
        while len(data) < size:
            try:
                self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
                part, extra, flags, _ = self.socket.recvmsg(size - len(data), FDS_SPACE, socket.MSG_CMSG_CLOEXEC)
            except TimeoutError:
                raise Disconnected(f"{len(data)} of {size} bytes came within {self.patience:.0f} s") from None
            except OSError as error:
                raise Disconnected(f"connection lost: {error}") from None
            fds += received(extra)
            if flags & socket.MSG_CTRUNC:  # there was space for all that a message can have
                raise VhostUserError("no file descriptors are left for those that came with a message")
            if len(fds) > FDS_MAX:
                raise VhostUserError(f"more than {FDS_MAX} file descriptors came with one message")
            if not part:
                raise Disconnected("closed by the other side" if not data else "closed amid a message")
            data += part
        return data

    def reply(self, request: int, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Answer a request."""
        self.send(request, payload, fds, REPLY)

    def send(self, request: int, payload: bytes, fds: Sequence[int] = (), flags: int = 0) -> None:
        """Send a message; the descriptors stay the caller's."""
        data = HEADER.pack(request, VERSION | flags, len(payload)) + payload
        try:
            # the frontend may share what is behind the socket, and set it blocking: how long it waits is ours to say
            extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            sent = self.socket.sendmsg([data], extra, socket.MSG_DONTWAIT)
            if sent < len(data):
                self.socket.sendall(data[sent:], socket.MSG_DONTWAIT)
        except TimeoutError:
            raise Disconnected(f"an answer was not taken within {PATIENCE:.0f} s") from None
        except OSError as error:
            raise Disconnected(f"connection lost: {error}") from None

    def gone(self) -> bool:
        """Say whether the other side has closed it, whatever there is still to be received."""
        poll = select.poll()
        poll.register(self.socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def deaf(self) -> bool:
        """Say whether the other side reads no more, and has not closed it: nothing that is sent would be read.

        Its end may then be held by a writer (see make_write_only), and stay open without end.
        """
        poll = select.poll()
        poll.register(self.socket, select.POLLOUT)
        try:
            if poll.poll(0):  # else the send would wait: there is much that is not read yet
                self.socket.send(b"", socket.MSG_DONTWAIT)
        except BrokenPipeError:
            return not self.gone()
        except OSError:  # it was closed, or shut
            return False
        return False

    def shut(self) -> None:
        """End what another thread waits for here: it finds that the other side is gone."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket, and what the other side had sent."""
        close_socket(self.socket)
