"""What `virtio net` joins: endpoints, from their texts to devices, sockets and ports."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import Any

from virtio import features
from virtio.cli.supervisor import inherited
from virtio.constants import DeviceType
from virtio.core.weak import weakly
from virtio.errors import ConfigError
from virtio.event.worker import Worker
from virtio.net.device import NetDevice
from virtio.net.ports import Cable, PcapWriter, Port, Sink, parse_value, port
from virtio.net.splice import Splice
from virtio.vhost_user import PROTOCOL, ProtocolFeature, Server

log = logging.getLogger("virtio.net")

VHOST_USER = "vhost-user"
MANY = ("tap", "loopback", "gen", "sink", "pcap", "replay")  # ports that may have several queue pairs
FILES = ("pcap", "replay")  # whose name is a file's
SILENT = ("loopback", "sink", "pcap", "null")  # that give nothing of themselves
QUEUES_MAX = 128  # pairs: a ring's index has 8 bits in vhost-user
PORT_QUEUES_MAX = 256  # pairs that a port may have


@dataclass(frozen=True)
class VhostUser:
    """A socket at which a program that runs a guest finds a network device."""

    text: str
    path: str = ""
    fd: int | None = None
    client: bool = False
    queues: int = 1
    options: tuple[tuple[str, Any], ...] = ()  # of NetDevice
    protocol: ProtocolFeature = PROTOCOL

    def socket(self) -> dict[str, Any]:
        """Return what a Server takes in place of a path, if it was given by its descriptor; that is then ours."""
        if self.fd is None:
            return {}
        found, listens = inherited(self.fd)
        return {"listener" if listens else "connection": found}


@dataclass(frozen=True)
class PortEnd:
    """Any other endpoint: a port, made when all texts are found good."""

    text: str

    @property
    def kind(self) -> str:
        """The word that it begins with."""
        return self.text.split(",")[0].partition(":")[0]

    @property
    def queues(self) -> int | None:
        """The queue pairs that its text asks for, or None."""
        found = [
            word.partition("=")[2] for word in self.text.replace(":", ",").split(",") if word.startswith("queues=")
        ]
        value = parse_value(found[-1]) if found else None
        return value if type(value) is int and value > 0 else None


def words(value: object) -> list[str]:
    """Return the words of a list that is written a+b+c."""
    return [word for word in str(value).split("+") if word]


def known(words: Sequence[str]) -> int:
    """Return the features of these names. Raises ValueError for one that is none."""
    return features.parse(",".join(words), DeviceType.NET) if words else 0


def parse(text: str) -> VhostUser | PortEnd:
    """Return what a text says. Raises ConfigError, with the text, for what cannot be."""
    kind, _, rest = text.partition(":")
    if kind != VHOST_USER:
        return PortEnd(text)
    path, *items = rest.split(",")
    found: dict[str, Any] = {"path": path}
    device: dict[str, Any] = {}
    try:
        for item in items:
            name, equals, value = item.partition("=")
            if not equals:
                raise ValueError(f"{item!r} is not OPTION=VALUE")
            take(name.replace("_", "-"), value, found, device)
        if "fd" in found and (path or found.get("client")):
            raise ValueError("fd=NUMBER is in place of a path")
        if found.get("client") and not path:
            raise ValueError("client=1 needs a path")
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"endpoint {text!r}: {error}") from None
    return VhostUser(text, **found, options=tuple(device.items()))


def take(name: str, value: str, found: dict[str, Any], device: dict[str, Any]) -> None:
    """Take one option of a vhost-user endpoint."""
    number = parse_value(value)
    if name in ("queues", "mtu", "speed", "fd"):
        if type(number) is not int:
            raise ValueError(f"{name} {value!r} is no number")
        if name == "queues" and not 1 <= number <= QUEUES_MAX:
            raise ValueError(f"{number} queue pairs (1 to {QUEUES_MAX})")
        (found if name in ("queues", "fd") else device)[name] = number
    elif name == "client":
        if number not in (True, False, 0, 1):
            raise ValueError(f"client {value!r} is neither 1 nor 0")
        found["client"] = bool(number)
    elif name == "mac":
        device["mac"] = value
    elif name in ("withhold", "offer"):
        known(words(value))
        device[name] = words(value)
    elif name == "withhold-protocol":
        bits = {bit.name: bit for bit in ProtocolFeature}
        unknown = [word for word in words(value) if word.upper() not in bits]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is none of {', '.join(map(str, bits))}")
        found["protocol"] = PROTOCOL & ~reduce(or_, (bits[word.upper()] for word in words(value)), ProtocolFeature(0))
    else:
        options = "queues, mtu, mac, speed, client, fd, withhold, offer, withhold-protocol"
        raise ValueError(f"option {name!r} is none of {options}")


def give_descriptors(
    ends: Sequence[VhostUser | PortEnd], fds: Sequence[int] | Callable[[], Sequence[int]]
) -> list[VhostUser | PortEnd]:
    """Return the ends, of which those that are ``vhost-user:`` without a path or fd have these, in order.

    A function is asked only if there is one. Raises ConfigError if there are not as many as are needed.
    """
    wanting = any(isinstance(end, VhostUser) and not end.path and end.fd is None for end in ends)
    left = list(fds) if not callable(fds) else list(fds()) if wanting else []
    made: list[VhostUser | PortEnd] = []
    for end in ends:
        if isinstance(end, VhostUser) and not end.path and end.fd is None:
            if not left:
                raise ConfigError(f"endpoint {end.text!r} has neither a path nor a descriptor (fd=NUMBER, --fd)")
            fd = left.pop(0)
            end = replace(end, fd=fd, text=",".join([f"{VHOST_USER}:", f"fd={fd}", *end.text.split(",")[1:]]))
        made.append(end)
    if left:
        raise ConfigError(f"fd {left[0]}: no endpoint is for it (it would be {VHOST_USER}: without a path)")
    held = [end.fd for end in made if isinstance(end, VhostUser) and end.fd is not None]
    if len(set(held)) < len(held):
        raise ConfigError(f"fd {held[0]} for two endpoints")
    return made


class Joined:
    """Two endpoints, joined: their devices, sockets, ports and threads. A context manager: within, threads run.

    ``workers`` threads at most work the queues, pair i those of number i, modulo their number (None: one for each
    pair); ``poll``: they never sleep. ``cpus`` are dealt out to them in turn. ``over`` is called, on some thread, when
    guests had connections that we inherited, all of them, and all have gone: none can come again. Raises ConfigError
    and OSError for what cannot be.
    """

    def __init__(
        self,
        ends: Sequence[VhostUser | PortEnd],
        *,
        workers: int | None = None,
        poll: bool = False,
        cpus: Sequence[int] = (),
        over: Callable[[], object] | None = None,
    ) -> None:
        if len(ends) != 2:
            raise ConfigError(f"{len(ends)} endpoints (2: more would need a switch)")
        self.ends = tuple(give_descriptors(ends, ()))
        self.devices: dict[str, NetDevice] = {}
        self.servers: list[Server] = []
        self.ports: list[Port] = []
        self.splice: Splice | None = None
        self.workers: list[Worker] = []
        self._over = over
        self._poll = poll
        self._guests = sum(isinstance(end, VhostUser) for end in self.ends)  # that are there, or may come
        self._lock = threading.Lock()
        self._stack = ExitStack()
        pairs = min(max(end.queues or 1 for end in self.ends), PORT_QUEUES_MAX)
        try:
            self.workers = [
                Worker(mode="busy" if poll else "adaptive", cpu=cpus[i % len(cpus)] if cpus else None)
                for i in range(min(workers or pairs, pairs))
            ]
            self._join()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Begin: start the threads, let guests come. Once."""
        for worker in self.workers:
            worker.start()
            self._stack.callback(worker.stop)
        for server in self.servers:
            self._stack.enter_context(server)

    def _join(self) -> None:
        first, second = self.ends
        if isinstance(first, VhostUser) and isinstance(second, VhostUser):
            cable = Cable(queues=max(first.queues, second.queues))
            for end, side in zip((first, second), cable, strict=True):
                self._serve(end, side)
        elif isinstance(first, VhostUser) and isinstance(second, PortEnd):
            self._serve(first, self._port(second, first.queues))
        elif isinstance(first, PortEnd) and isinstance(second, VhostUser):
            self._serve(second, self._port(first, second.queues))
        elif isinstance(first, PortEnd) and isinstance(second, PortEnd):
            self._connect(first, second)

    def _connect(self, first: PortEnd, second: PortEnd) -> None:
        """Join two ports. Two of which neither has anything to give are joined, too, and nothing happens."""
        files = [end.text.split(",")[0].partition(":")[2] for end in (first, second) if end.kind in FILES]
        if len(files) == 2 and os.path.realpath(files[0]) == os.path.realpath(files[1]):
            raise ConfigError(f"both endpoints are of one file, {files[0]}")
        if first.kind in SILENT and second.kind in SILENT:
            log.info("neither of %s and %s has frames to give", first.text, second.text)
        a, b = self._port(first, second.queues or 1), self._port(second, first.queues or 1)
        self.splice = self._stack.enter_context(Splice(a, b, self.workers))

    def _port(self, end: PortEnd, queues: int) -> Port:
        """Make a port, with as many queue pairs as the other end has, unless its text says how many."""
        if end.text == "null" and queues > 1:
            made: Port = Sink(queues=queues, verify=False)
        else:
            made = port(end.text, **({"queues": queues} if end.kind in MANY else {}))
        self.ports.append(made)
        close: Callable[[], object] | None = getattr(made, "close", None)
        if close is not None:
            self._stack.callback(close)
        return made

    def _serve(self, end: VhostUser, behind: Port) -> None:
        device = NetDevice(behind, worker=self.workers, queue_pairs=end.queues, **dict(end.options))
        self._stack.callback(device.close)
        self.devices[end.text] = device
        options = end.socket() | ({} if end.path else {"name": end.text})
        server = Server(device, end.path, client=end.client, protocol=end.protocol, over=weakly(self._gone), **options)
        self._stack.callback(server.close)
        self.servers.append(server)

    def _gone(self) -> None:
        """The guest of a connection that we inherited has gone."""
        with self._lock:
            self._guests -= 1
            if self._guests == 0 and self._over is not None:
                self._over()

    def statistics(self) -> dict[str, Any]:
        """Return all that was counted, by endpoint; of two with the same text the second is called "TEXT (2)"."""
        if self.splice is not None:
            first, second = (end.text for end in self.ends)
            names = (first, second if second != first else f"{second} (2)")
            return dict(zip(names, self.splice.statistics(), strict=True))
        found = {text: device.statistics() for text, device in self.devices.items()}
        if self._poll:  # kicks are counted where they are read, which nobody does
            for figures in found.values():
                for queue in figures.values():
                    queue.pop("kicks", None)
        return found

    def drain(self) -> None:
        """Take no more frames of any end, and give to the other what was taken, as far as it has room in half a second.

        Of all ends before any of them ends: none is to send to one that has gone.
        """
        for device in self.devices.values():
            device.drain()
        if self.splice is not None:
            self.splice.drain()

    def close(self) -> None:
        """End all: frontends are cut off, sockets and interfaces that are ours go."""
        self.drain()
        for made in self.ports:  # before all that waits for the workers: one may wait in it for a pipe's reader
            if isinstance(made, PcapWriter):
                made.close()
        self._stack.close()

    def __enter__(self) -> Joined:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
