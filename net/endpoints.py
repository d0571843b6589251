"""What `virtio net` joins: endpoints, from their texts to devices, sockets and ports."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

from virtio import features
from virtio._worker import Worker
from virtio.constants import DeviceType
from virtio.errors import ConfigError
from virtio.net.device import NetDevice
from virtio.net.ports import Cable, Port, Tap, TapLoop, parse_value, port
from virtio.vhost_user import PROTOCOL, ProtocolFeature, Server

VHOST_USER = "vhost-user"
QUEUE_SIZE = 32768  # descriptors that a frontend's ring may have: it says how many
MANY = ("tap", "loopback", "gen", "sink", "pcap")  # ports that may have several queue pairs
QUEUES_MAX = 128  # pairs: a ring's index has 8 bits in vhost-user


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

    def listener(self) -> socket.socket | None:
        """Return the listening socket that was given by its descriptor, or None."""
        return None if self.fd is None else socket.socket(fileno=os.dup(self.fd))


@dataclass(frozen=True)
class PortEnd:
    """Any other endpoint: a port, made when all texts are found good."""

    text: str


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
        if ("fd" in found) == bool(path):
            raise ValueError("it takes either a path or fd=NUMBER")
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"endpoint {text!r}: {error}") from None
    return VhostUser(text, **found, options=tuple(device.items()))


def take(name: str, value: str, found: dict[str, Any], device: dict[str, Any]) -> None:
    """Take one option of a vhost-user endpoint."""
    number = parse_value(value)
    if name in ("queues", "mtu", "queue-size", "speed", "fd"):
        if type(number) is not int:
            raise ValueError(f"{name} {value!r} is no number")
        if name == "queues" and not 1 <= number <= QUEUES_MAX:
            raise ValueError(f"{number} queue pairs (1 to {QUEUES_MAX})")
        (found if name in ("queues", "fd") else device)[name.replace("-", "_")] = number
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
        options = "queues, mtu, mac, speed, queue-size, client, fd, withhold, offer, withhold-protocol"
        raise ValueError(f"option {name!r} is none of {options}")


class Joined:
    """Two endpoints, joined: their devices, sockets, ports and threads. A context manager; closing it ends all.

    ``workers`` threads work the queues, pair i those of number i, modulo their number (None: as many as the endpoint
    with most pairs has); ``poll``: they never sleep. ``cpus`` are dealt out to them in turn. Raises ConfigError and
    OSError for what cannot be.
    """

    def __init__(
        self,
        ends: Sequence[VhostUser | PortEnd],
        *,
        workers: int | None = None,
        poll: bool = False,
        cpus: Sequence[int] = (),
    ) -> None:
        if len(ends) != 2:
            raise ConfigError(f"{len(ends)} endpoints (2: more would need a switch)")
        self.ends = tuple(ends)
        self.devices: dict[str, NetDevice] = {}
        self.servers: list[Server] = []
        self.ports: list[Port] = []
        self.loop: TapLoop | None = None
        self.workers: list[Worker] = []
        self._stack = ExitStack()
        served = [end for end in ends if isinstance(end, VhostUser)]
        count = workers or max((end.queues for end in served), default=1)
        try:
            self.workers = [
                Worker(mode="busy" if poll else "adaptive", cpu=cpus[i % len(cpus)] if cpus else None)
                for i in range(count if served else 0)
            ]
            self._join(served)
            for worker in self.workers:
                worker.start()
                self._stack.callback(worker.stop)
            for server in self.servers:
                self._stack.enter_context(server)
        except BaseException:
            self.close()
            raise

    def _join(self, served: list[VhostUser]) -> None:
        if len(served) == 2:
            cable = Cable(queues=max(end.queues for end in served))
            for end, side in zip(served, cable, strict=True):
                self._serve(end, side)
        elif len(served) == 1:
            (other,) = [end for end in self.ends if isinstance(end, PortEnd)]
            self._serve(served[0], self._port(other, served[0].queues))
        else:
            first, second = [self._port(end) for end in self.ends if isinstance(end, PortEnd)]
            if not (isinstance(first, Tap) and isinstance(second, Tap)):
                raise ConfigError(f"one of two endpoints is {VHOST_USER}:PATH, or both are taps")
            self.loop = self._stack.enter_context(TapLoop(first, second, offloads=0xFFF))

    def _port(self, end: PortEnd, queues: int = 1) -> Port:
        """Make a port, with as many queue pairs as its device has, unless its text says how many."""
        more = f",queues={queues}" if end.text.split(":")[0].split(",")[0] in MANY and "queues=" not in end.text else ""
        made = port(end.text + more)
        self.ports.append(made)
        close: Callable[[], object] | None = getattr(made, "close", None)
        if close is not None:
            self._stack.callback(close)
        return made

    def _serve(self, end: VhostUser, behind: Port) -> None:
        device = NetDevice(
            behind, worker=self.workers, queue_pairs=end.queues,
            **{"queue_size": QUEUE_SIZE, **dict(end.options)},
        )  # fmt: skip
        self._stack.callback(device.close)
        self.devices[end.text] = device
        server = Server(device, end.path, client=end.client, listener=end.listener(), protocol=end.protocol)
        self._stack.callback(server.close)
        self.servers.append(server)

    def statistics(self) -> dict[str, Any]:
        """Return all that was counted, by endpoint."""
        figures: dict[str, Any] = {text: device.statistics() for text, device in self.devices.items()}
        if self.loop is not None:
            figures["loop"] = self.loop.statistics()
        return figures

    def close(self) -> None:
        """End everything."""
        self._stack.close()

    def __enter__(self) -> Joined:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
