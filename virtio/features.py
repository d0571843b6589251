"""Feature sets: names of bits, and which bit needs which (VIRTIO 1.4, 2.2 and the chapter of each device type).

A set is an int of any width: bit n stands for feature n. The bits of a device type are a
:class:`Table` named TABLE in the ``features`` module of its folder, found through :mod:`virtio.registry`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntFlag
from functools import cache
from importlib import import_module

from virtio.constants import Feature
from virtio.errors import ConfigError
from virtio.registry import TYPES

Features = int | str | Iterable[str]

LEGACY_BITS = 0xFFFFFFFF  # what the legacy interfaces can negotiate
LEGACY_ONLY = Feature.NOTIFY_ON_EMPTY | Feature.ANY_LAYOUT | 1 << 30  # bits that VIRTIO 1.0 took away (6.3)


@dataclass(frozen=True)
class Table:
    """Bits of a device type, or of all of them.

    ``needs`` maps a bit to masks: of each mask at least one bit must be negotiated too. ``useless`` does so for bits
    that may be negotiated without, but should not be offered. ``legacy_only`` are bits of the legacy interface alone.
    """

    names: type[IntFlag]
    needs: Mapping[int, tuple[int, ...]]
    useless: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    legacy_only: int = 0
    by_name: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {flag.name: flag.value for flag in self.names if flag.name})


# features that only a device with VIRTIO 1.0's interface has: what they change is defined for it alone
_MODERN = (
    Feature.ACCESS_PLATFORM,
    Feature.RING_PACKED,
    Feature.IN_ORDER,
    Feature.ORDER_PLATFORM,
    Feature.SR_IOV,
    Feature.NOTIFICATION_DATA,
    Feature.NOTIF_CONFIG_DATA,
    Feature.RING_RESET,
    Feature.ADMIN_VQ,
    Feature.SUSPEND,
)

TRANSPORT = Table(Feature, dict.fromkeys(_MODERN, (Feature.VERSION_1,)), legacy_only=LEGACY_ONLY)

_PREFIX = re.compile(r"VIRTIO_(?:[A-Z0-9]+_)?F_")


@cache
def table_of(device_type: int) -> Table | None:
    """Return the table of a device type; None for a type that virtio.registry does not have."""
    home = TYPES.get(device_type)
    if home is None:
        return None
    table: Table = import_module(f"{home.folder}.features").TABLE
    return table


def _tables(device_type: int | None) -> tuple[Table, ...]:
    table = None if device_type is None else table_of(device_type)
    return (TRANSPORT,) if table is None else (table, TRANSPORT)


def bits_of(features: int) -> list[int]:
    """Return the numbers of the bits that are set, lowest first."""
    return [bit for bit in range(features.bit_length()) if features >> bit & 1]


def names_of(features: int, device_type: int | None = None) -> list[str]:
    """Return the name of each bit that is set, lowest first; ``"bit 47"`` for one without a name.

    ``device_type`` (a DeviceType) tells whose bits those from 0 to 23 and from 50 on are.
    """
    return [_name(1 << bit, device_type) for bit in bits_of(features)]


def _name(mask: int, device_type: int | None) -> str:
    for table in _tables(device_type):
        name = table.names(mask).name if mask in table.by_name.values() else None
        if name:
            return name
    return f"bit {mask.bit_length() - 1}"


def parse(text: Features, device_type: int | None = None) -> int:
    """Return the set that ``text`` names: ``"CSUM, HOST_TSO4, bit 47"``; several names, or an int, pass too.

    Names are the specification's, in any case, with or without VIRTIO_NET_F_ before them; a number is a bit's number.
    Raises ValueError for a name that neither the transports nor ``device_type`` have, or a negative set.
    """
    if isinstance(text, int):
        if text < 0:
            raise ValueError(f"feature set {text} is negative")
        return int(text)
    features = 0
    for word in re.split(r"[\s,|]+", re.sub(r"(?i)\bbit\s+", "", text)) if isinstance(text, str) else text:
        features |= _parse_word(word, device_type)
    return features


def _parse_word(word: str, device_type: int | None) -> int:
    name = _PREFIX.sub("", word.strip().upper().removeprefix("BIT "), count=1)
    if not name:
        return 0
    if name.isdecimal():
        if int(name) > 0xFFFF:
            raise ValueError(f"feature bit {name} is out of range (0 to 65535)")
        return 1 << int(name)
    for table in _tables(device_type):
        if name in table.by_name:
            return table.by_name[name]
    known = ", ".join(name for table in _tables(device_type) for name in table.by_name)
    raise ValueError(f"feature {word!r} is unknown; known are: {known}")


def missing(features: int, device_type: int | None = None) -> list[tuple[str, str]]:
    """Return (name, what it needs) for each bit that is set without the bits that it needs: empty if all is well."""
    result = []
    for table in _tables(device_type):
        for bit, groups in table.needs.items():
            if features & bit:
                absent = [group for group in groups if not features & group]
                if absent:
                    needs = [" or ".join(names_of(group, device_type)) for group in absent]
                    if len(needs) > 1:
                        needs = [f"({need})" if " or " in need else need for need in needs]
                    result.append((_name(bit, device_type), " and ".join(needs)))
    return result


def closed(features: int, device_type: int | None = None, *, offer: bool = False) -> int:
    """Return the largest subset in which each bit has what it needs; with ``offer``, what it is useless without."""
    rules = [table.needs for table in _tables(device_type)]
    if offer:
        rules += [table.useless for table in _tables(device_type)]
    while True:
        left = features
        for needs in rules:
            for bit, groups in needs.items():
                if left & bit and not all(left & group for group in groups):
                    left &= ~bit
        if left == features:
            return int(left)
        features = left


def choose(own: int, offer: Features, withhold: Features, device_type: int | None = None) -> int:
    """Return what a device offers that has ``own``, is to ``offer`` more, and is to ``withhold`` some.

    What needs a withheld bit, or is useless without it, is not offered either. Raises ConfigError for what cannot be.
    """
    try:
        more, less = parse(offer, device_type), parse(withhold, device_type)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if more & less:
        raise ConfigError(f"both offered and withheld: {', '.join(names_of(more & less, device_type))}")
    offered = more | closed((own | more) & ~less, device_type, offer=True)
    if lacking := missing(offered, device_type):
        lacks = [f"{name} (needs {needs})" for name, needs in lacking]
        raise ConfigError(f"cannot be offered: {', '.join(lacks)}")
    return offered


def refusals(wanted: int, offered: int, device_type: int | None = None) -> dict[str, str]:
    """Return why a device with ``offered`` refuses a driver that accepts ``wanted``, by the names of the bits."""
    unknown = wanted & ~offered
    faults = dict.fromkeys(names_of(unknown, device_type), "not offered")
    faults.update((name, f"needs {needs}") for name, needs in missing(wanted & ~unknown, device_type))
    if offered & ~wanted & Feature.VERSION_1:
        faults["VERSION_1"] = "must be accepted"
    return faults


def legacy_only(device_type: int | None = None) -> int:
    """Return the bits that exist in the legacy interface alone."""
    result = 0
    for table in _tables(device_type):
        result |= table.legacy_only
    return int(result)  # of an IntFlag, ~ would only give the bits that it knows
