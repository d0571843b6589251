"""TCP streams of the real kernel between two network namespaces: the built-in sender and receiver, and iperf3.

A *space* is a network namespace (:class:`virtio.net.netns.Namespace`): it makes sockets, and runs commands.
Each end of a built-in stream is a process of its own (:mod:`virtio.cli.iperf.stream`): its socket is made here, in its
namespace, and handed over.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from virtio.cli.iperf.stream import ORDER_MAX

STALL = 10.0  # seconds without progress after which a stream has failed
HASHED_SECONDS = 5.0  # at most, for a stream that is hashed


class TrafficError(Exception):
    """A stream failed: it could not connect, stalled, or its program ended."""


class Space(Protocol):
    """What is needed of a network namespace."""

    def socket(self, family: int, kind: int) -> socket.socket: ...
    def popen(self, words: Sequence[str], **options: Any) -> subprocess.Popen[Any]: ...


@dataclass(frozen=True)
class Result:
    """Of one run: payload bytes that arrived, over seconds from the first byte to the last.

    ``wrong`` says what differs: nothing if every byte that was sent arrived as it was sent. ``looked``: whether anybody
    looked.
    """

    bytes: int
    seconds: float
    wrong: str = ""
    looked: bool = True

    @property
    def mbit_s(self) -> float:
        """The rate in Mbit/s."""
        return self.bytes * 8 / self.seconds / 1e6 if self.seconds > 0 else 0.0


class End:
    """A process at one end of a stream."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            program = str(Path(__file__).with_name("stream.py"))
            try:
                # a process group of its own: what the terminal sends on ^C is for us, and we end our children
                self.process = subprocess.Popen(
                    [sys.executable, "-I", "-S", program, str(theirs.fileno()), str(os.getpid())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    process_group=0,
                )
            except BaseException:
                self.control.close()
                raise

    def order(self, connection: socket.socket, **what: Any) -> None:
        """Hand a connected socket over, with what to do with it."""
        data = json.dumps({"stall": STALL, **what}).encode()
        try:
            socket.send_fds(self.control, [data], [connection.fileno()])
        except OSError as error:
            raise TrafficError(f"the stream's program is gone (code {self.process.poll()}): {error}") from None

    def answer(self, seconds: float) -> dict[str, Any]:
        """Wait for the answer; TrafficError after so many seconds, or if the order failed."""
        self.control.settimeout(seconds)
        try:
            data = self.control.recv(ORDER_MAX)
        except TimeoutError:
            raise TrafficError(f"no answer from a stream's end after {seconds:.0f} s") from None
        except OSError as error:
            raise TrafficError(f"a stream's program is gone: {error}") from None
        if not data:
            raise TrafficError(f"a stream's program ended (code {self.process.wait()})")
        found: dict[str, Any] = json.loads(data)
        if "error" in found:
            raise TrafficError(f"stream: {found['error']}")
        return found

    def close(self) -> None:
        """End the process."""
        self.process.kill()  # first: it would take a connection that ends for a fault
        self.process.wait()
        self.control.close()


def connect(sender: Space, receiver: Space, address: str) -> tuple[socket.socket, socket.socket]:
    """Make a TCP connection to this address, which is the receiver's; return the two ends."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    client = sender.socket(family, socket.SOCK_STREAM)
    try:
        with receiver.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind((address, 0))
            listener.listen(1)
            listener.settimeout(STALL)
            client.settimeout(STALL)
            client.connect(listener.getsockname())
            server, _ = listener.accept()
    except OSError as error:
        client.close()
        raise TrafficError(f"no connection to {address}: {error}") from None
    return client, server


class Streams:
    """Built-in traffic: ``count`` streams at a time, each with a process at either end. A context manager."""

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.ends: list[End] = []  # of each stream the sender, then the receiver
        self.seeds = itertools.count(1)
        self.start()

    def start(self) -> None:
        """Start the processes."""
        try:
            while len(self.ends) < 2 * self.count:
                self.ends.append(End())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        while self.ends:
            self.ends.pop().close()

    def run(self, sender: Space, receiver: Space, address: str, seconds: float) -> Result:
        """Send for so many seconds; every byte is compared with what was sent. Raises TrafficError."""
        return self._run(sender, receiver, address, seconds, {"do": "send", "bytes": 0}, {"do": "receive"})

    def run_hashed(self, sender: Space, receiver: Space, address: str, size: int) -> Result:
        """Send size bytes that never repeat (fewer if that takes over 5 s); compare hashes. Raises TrafficError."""
        order = {"do": "send-hashed", "bytes": size}
        return self._run(sender, receiver, address, HASHED_SECONDS, order, {"do": "receive-hashed"})

    def _run(
        self,
        sender: Space,
        receiver: Space,
        address: str,
        seconds: float,
        send: dict[str, Any],
        receive: dict[str, Any],
    ) -> Result:
        try:
            self._order(sender, receiver, address, send | {"seconds": seconds}, receive)
            answers = [end.answer(seconds + 2 * STALL) for end in self.ends]
        except TrafficError:
            self.close()  # some may be at it still: they are not to answer the next order with what became of this one
            self.start()
            raise
        wrong = ""
        for sent, got in zip(answers[::2], answers[1::2], strict=True):
            if sent["bytes"] != got["bytes"]:
                wrong = wrong or f"{got['bytes']} of {sent['bytes']} bytes arrived"
            elif sent.get("sha256") != got.get("sha256"):
                wrong = wrong or f"SHA-256 {got['sha256']}, not {sent['sha256']}"
            wrong = wrong or got.get("wrong", "")
        received = answers[1::2]
        return Result(sum(got["bytes"] for got in received), max(got["seconds"] for got in received), wrong)

    def _order(
        self, sender: Space, receiver: Space, address: str, send: dict[str, Any], receive: dict[str, Any]
    ) -> None:
        """Give each end its connection, and its order."""
        connections: list[socket.socket] = []
        try:
            for _ in range(self.count):
                connections += connect(sender, receiver, address)
            for i in range(0, len(self.ends), 2):
                seed = next(self.seeds)
                self.ends[i + 1].order(connections[i + 1], seed=seed, **receive)
                self.ends[i].order(connections[i], seed=seed, **send)
        finally:
            for one in connections:  # the processes have them
                one.close()


class Iperf3:
    """Traffic of the program iperf3, which does not look at what arrives."""

    def __init__(self, count: int = 1, program: str = "iperf3") -> None:
        self.count, self.program = count, program

    def run(self, sender: Space, receiver: Space, address: str, seconds: float) -> Result:
        """Run iperf3 for so many seconds (whole ones, at least 1). Raises TrafficError."""
        words = ["-s", "-1", "-B", address, "--forceflush"]
        with self._start(receiver, words) as server:
            try:
                self._listening(server)
                words = ["-c", address, "-t", str(max(1, round(seconds))), "-P", str(self.count), "-J"]
                with self._start(sender, words) as client:
                    try:
                        out, _ = client.communicate(timeout=seconds + 3 * STALL)
                    except subprocess.TimeoutExpired:
                        raise TrafficError(f"iperf3 did not end within {seconds + 3 * STALL:.0f} s") from None
                    finally:
                        client.kill()
            finally:
                server.kill()
        return read_iperf3(out)

    def _start(self, space: Space, words: list[str]) -> subprocess.Popen[str]:
        pipe, none = subprocess.PIPE, subprocess.DEVNULL
        try:
            return space.popen(
                [self.program, *words], stdin=none, stdout=pipe, stderr=subprocess.STDOUT, text=True, process_group=0
            )
        except FileNotFoundError as error:
            raise TrafficError(f"iperf3 cannot be run: {error}") from None

    @staticmethod
    def _listening(server: subprocess.Popen[str]) -> None:
        said: list[str] = []
        assert server.stdout is not None
        for line in server.stdout:
            if "listening" in line.lower():
                return
            said.append(line.strip())
        raise TrafficError(f"iperf3 -s: {' '.join(filter(None, said)) or 'ended'}")


def read_iperf3(text: str) -> Result:
    """Return what iperf3 -J says; TrafficError if it says that it failed, or nothing that can be read."""
    try:
        found = json.loads(text)
        if "error" in found:
            raise TrafficError(f"iperf3: {found['error']}")
        received = found["end"]["sum_received"]
        return Result(int(received["bytes"]), float(received["seconds"]), looked=False)
    except (ValueError, KeyError, TypeError):
        raise TrafficError(f"iperf3 said {text[:200]!r}") from None


Traffic = Streams | Iperf3
