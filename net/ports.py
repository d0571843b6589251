"""What may lie behind a network device, or beside a network driver."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from virtio.errors import ConfigError
from virtio.ports.cable import Cable, CableEnd
from virtio.ports.callback import CallPort
from virtio.ports.checker import Sink
from virtio.ports.generator import Generator
from virtio.ports.loopback import Loopback
from virtio.ports.pcap import PcapReader, PcapWriter
from virtio.ports.port import Port
from virtio.ports.tap import Tap
from virtio.ports.taploop import TapLoop

__all__ = [
    "Port",
    "Tap",
    "TapLoop",
    "Cable",
    "CableEnd",
    "Loopback",
    "Generator",
    "Sink",
    "PcapReader",
    "PcapWriter",
    "CallPort",
    "port",
]

# by the word that a text begins with: the class, and whether a name follows
KINDS: dict[str, tuple[Callable[..., Port], bool]] = {
    "null": (Port, False),
    "tap": (Tap, True),
    "loopback": (Loopback, False),
    "gen": (Generator, False),
    "sink": (Sink, False),
    "replay": (PcapReader, True),
    "pcap": (PcapWriter, True),
}


def port(text: str, **defaults: Any) -> Port:
    """Make the port that a text describes: ``KIND[:NAME][,OPTION=VALUE]...``.

    ``tap:NAME``, ``loopback``, ``gen`` (Generator), ``sink``, ``replay:FILE`` (PcapReader), ``pcap:FILE`` (PcapWriter),
    ``null``; options are the classes' arguments, like ``gen,size=1514,count=1000`` and ``replay:a.pcap,loops=3``. Where
    there is no name, a colon may stand before the options: ``gen:size=1514,count=1000``.
    Values are numbers, true and false, none, and text. A file name with a comma in it takes the class itself.

    ``defaults`` are options that the text does not give.

    Raises ConfigError for a text that is none, or whose options the class does not take, and what the class raises.
    """
    head, *rest = text.split(",")
    kind, _, name = head.partition(":")
    if kind not in KINDS:
        raise ConfigError(f"port {text!r}: {kind!r} is none of {', '.join(KINDS)}")
    made, named = KINDS[kind]
    if named and not name:
        raise ConfigError(f"port {text!r}: {kind} needs a name, {kind}:NAME")
    if "=" in name and not named:
        rest.insert(0, name)
    elif name and not named:
        raise ConfigError(f"port {text!r}: {kind} has no name; options are {kind}:OPTION=VALUE")
    options = dict(defaults)
    for item in rest:
        option, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"port {text!r}: {item!r} is not OPTION=VALUE")
        options[option.replace("-", "_")] = parse_value(value)
    try:
        return made(name, **options) if named else made(**options)
    # a text may have anything where a class wants a number: what that leads to is the text's fault
    except (TypeError, ValueError, ArithmeticError, AttributeError, struct.error) as error:
        raise ConfigError(f"port {text!r}: {error}") from None


def parse_value(text: str) -> int | float | bool | str | None:
    """Return what a text stands for: a number (0x... too), true, false, none; or the text."""
    words: dict[str, bool | None] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return int(text, 0)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text
