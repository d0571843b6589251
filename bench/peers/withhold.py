"""A vhost-user backend that offers less: its messages pass through here, but for some feature bits.

DPDK's net_vhost offers a control queue that nobody serves: user-mode Linux, which takes what is offered, waits for
ever. And user-mode Linux starts a packed ring at base 0, without the wrap bit: with net_vhost no
frame passes then.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path

GET_FEATURES = 1
REPLY = 4
UNSERVED = 0x3F << 17 | 1 << 23 | 1 << 34  # CTRL_VQ and what is by it (CTRL_RX to MQ, CTRL_MAC_ADDR); RING_PACKED


def pass_on(source: socket.socket, sink: socket.socket, withheld: int) -> None:
    """Pass messages and their descriptors on until either side goes."""
    try:
        while True:
            head, ancillary, *_ = source.recvmsg(12, socket.CMSG_SPACE(4 * 32), socket.MSG_WAITALL)
            fds = array.array("i")
            for *_, data in ancillary:
                fds.frombytes(data[: len(data) // 4 * 4])
            if len(head) < 12:
                return
            request, flags, size = struct.unpack("=III", head)
            payload = source.recv(size, socket.MSG_WAITALL) if size else b""
            if request == GET_FEATURES and flags & REPLY:
                payload = struct.pack("=Q", struct.unpack("=Q", payload)[0] & ~withheld)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else []
            sink.sendmsg([head + payload], rights)
            for fd in fds:
                os.close(fd)
    except OSError:
        pass
    finally:
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def between(listen: Path, backend: Path, withheld: int = UNSERVED) -> socket.socket:
    """Serve one frontend at ``listen`` by the backend at ``backend``, on threads; close what is returned to end it."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(listen))
    server.listen(1)

    def serve() -> None:
        try:
            frontend, _ = server.accept()
        except OSError:
            return
        to = socket.socket(socket.AF_UNIX)
        to.connect(str(backend))
        threading.Thread(target=pass_on, args=(frontend, to, 0), daemon=True).start()
        pass_on(to, frontend, withheld)

    threading.Thread(target=serve, daemon=True).start()
    return server
