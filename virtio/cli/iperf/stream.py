"""One end of a TCP stream: a program of its own, so that it shares no interpreter with the data path.

:mod:`virtio.cli.iperf.traffic` starts it with the number of a Unix socket, over which it is given orders (JSON) with a
connected TCP socket each, and answers each order with what happened. It imports nothing of the package, and starts in a
few milliseconds.

What is sent is a sequence of blocks. ``pattern``: every block is the same pseudo-random bytes but for its number in
front, so that no two are equal and sender and receiver have next to nothing to compute; the receiver compares every
byte with what it must be. ``hash``: every block is fresh pseudo-random bytes, and both ends tell the SHA-256 of all.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import sys
import time
from typing import Any

BLOCK = 1 << 18
NUMBER = struct.Struct("<Q")
TIMEVAL = struct.Struct("ll")
ORDER_MAX = 4096


def pattern(seed: int) -> bytearray:
    """Return a block of pseudo-random bytes."""
    return bytearray(hashlib.shake_128(NUMBER.pack(seed)).digest(BLOCK))


def fresh(seed: int, number: int) -> bytes:
    """Return the block of this number in a stream that never repeats."""
    return hashlib.shake_128(NUMBER.pack(seed) + NUMBER.pack(number)).digest(BLOCK)


def send(connection: socket.socket, seed: int, seconds: float, limit: int) -> dict[str, Any]:
    """Send numbered blocks of the pattern for so many seconds, at most limit bytes; limit 0: no limit."""
    block = pattern(seed)
    number = sent = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds and (not limit or sent < limit):
        NUMBER.pack_into(block, 0, number)
        connection.sendall(block)
        number += 1
        sent += BLOCK
    connection.shutdown(socket.SHUT_WR)
    return {"bytes": sent, "seconds": time.perf_counter() - begin}


def fill(connection: socket.socket, view: memoryview) -> int:
    """Receive until the view is full or the stream ends; return how many bytes."""
    have = 0
    while have < len(view):
        got = connection.recv_into(view[have:], 0, socket.MSG_WAITALL)
        if not got:
            break
        have += got
    return have


def receive(connection: socket.socket, seed: int) -> dict[str, Any]:
    """Receive numbered blocks of the pattern to the end; compare every byte."""
    expected, block = pattern(seed), bytearray(BLOCK)
    view = memoryview(block)
    number = received = 0
    wrong = ""
    connection.recv(1, socket.MSG_PEEK)
    begin = time.perf_counter()
    while True:
        got = fill(connection, view)
        received += got
        NUMBER.pack_into(expected, 0, number)
        # bytearrays of the same length are compared by memcmp; the end of a stream may be short
        if not wrong and (block != expected if got == BLOCK else view[:got] != memoryview(expected)[:got]):
            at = next(i for i in range(got) if block[i] != expected[i])
            wrong = f"byte {number * BLOCK + at} is {block[at]:#04x}, not {expected[at]:#04x}"
        if got < BLOCK:
            return {"bytes": received, "seconds": time.perf_counter() - begin, "wrong": wrong}
        number += 1


def send_hashed(connection: socket.socket, seed: int, seconds: float, limit: int) -> dict[str, Any]:
    """Send fresh blocks, at most limit bytes, in at most so many seconds; tell the hash of all."""
    digest = hashlib.sha256()
    number = 0
    begin = time.perf_counter()
    while number * BLOCK < limit and time.perf_counter() - begin < seconds:
        block = fresh(seed, number)
        digest.update(block)
        connection.sendall(block)
        number += 1
    connection.shutdown(socket.SHUT_WR)
    return {"bytes": number * BLOCK, "seconds": time.perf_counter() - begin, "sha256": digest.hexdigest()}


def receive_hashed(connection: socket.socket) -> dict[str, Any]:
    """Receive to the end; tell the hash of all."""
    digest, view = hashlib.sha256(), memoryview(bytearray(BLOCK))
    received = 0
    begin = time.perf_counter()
    while got := connection.recv_into(view):
        digest.update(view[:got])
        received += got
    return {"bytes": received, "seconds": time.perf_counter() - begin, "sha256": digest.hexdigest()}


def serve(control: socket.socket) -> None:
    """Follow orders until the other side is gone."""
    while True:
        data, fds, _, _ = socket.recv_fds(control, ORDER_MAX, 1)
        if not data:
            return
        order = json.loads(data)
        with socket.socket(fileno=fds[0]) as connection:
            connection.settimeout(None)
            # bounds on each call, without a poll() beside it as settimeout would have
            bound = TIMEVAL.pack(int(order["stall"]), int(order["stall"] % 1 * 1e6))
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                connection.setsockopt(socket.SOL_SOCKET, option, bound)
            try:
                answer = follow(connection, order)
            except BlockingIOError:
                answer = {"error": f"stalled for {order['stall']} s"}
            except OSError as error:
                answer = {"error": str(error)}
        control.sendall(json.dumps(answer).encode())


def follow(connection: socket.socket, order: dict[str, Any]) -> dict[str, Any]:
    """Do one order; return the answer."""
    name, seed = order["do"], order["seed"]
    if name == "send":
        return send(connection, seed, order["seconds"], order["bytes"])
    if name == "receive":
        return receive(connection, seed)
    if name == "send-hashed":
        return send_hashed(connection, seed, order["seconds"], order["bytes"])
    return receive_hashed(connection)


def main() -> None:
    """Run as a child of the process whose number is the second argument."""
    import ctypes
    import signal

    # whatever becomes of the parent, no child outlives it
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[2]):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as control:
        serve(control)


if __name__ == "__main__":
    main()
