"""Negotiation of features by a driver, and the report of what came of it (VIRTIO 1.4, 2.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from virtio.constants import DeviceType, Feature
from virtio.errors import NegotiationError
from virtio.features import LEGACY_BITS, bits_of, legacy_only, missing, names_of, parse

# what a driver on the rings here can do of what concerns rings and transports: kicks carry no data, addresses are
# guest-physical, and there are no administration queues
_DONE = (
    Feature.NOTIFY_ON_EMPTY
    | Feature.ANY_LAYOUT
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.VERSION_1
    | Feature.RING_PACKED
    | Feature.IN_ORDER
    | Feature.RING_RESET
)
_NOT_DONE: int = sum(feature for feature in Feature if feature not in _DONE)


def type_name(device_type: int) -> str:
    """Return the name of a device type, or its number."""
    try:
        return DeviceType(device_type).name.lower()
    except ValueError:
        return f"type {device_type}"


@dataclass(frozen=True)
class Negotiation:
    """What came of a negotiation. Sets of bits, of any width; ``refused`` says by name why a wanted bit was not got."""

    device_type: int
    legacy: bool
    offered: int
    wanted: int
    required: int
    got: int
    refused: dict[str, str]

    @property
    def interface(self) -> str:
        """Which interface it was made over."""
        return "legacy interface" if self.legacy else "modern interface"

    def names(self, bits: int) -> list[str]:
        """Return the names of bits, lowest first."""
        return names_of(bits, self.device_type)

    def to_dict(self) -> dict[str, Any]:
        """Return it as what JSON can hold: lists of names."""
        return {
            "device_type": self.device_type,
            "legacy": self.legacy,
            "offered": self.names(self.offered),
            "wanted": self.names(self.wanted),
            "required": self.names(self.required),
            "got": self.names(self.got),
            "refused": dict(self.refused),
        }

    def __str__(self) -> str:
        every = self.offered | self.wanted
        width = max((len(name) for name in self.names(every)), default=7)
        counts = [bits.bit_count() for bits in (self.offered, self.wanted, self.got)]
        lines = [
            "{} device, {}: {} features offered, {} wanted, {} negotiated".format(
                type_name(self.device_type), self.interface, *counts
            ),
            f"  bit  {'feature':{width}}  offered  wanted  got",
        ]
        for bit, name in zip(bits_of(every), self.names(every), strict=True):
            offered, wanted, got = ("yes" if bits >> bit & 1 else "-" for bits in (self.offered, self.wanted, self.got))
            why = self.refused.get(name, "" if got == "yes" else "not wanted")
            lines.append(f"  {bit:3}  {name:{width}}  {offered:7}  {wanted:6}  {got:3}  {why}".rstrip())
        return "\n".join(lines)


def agree(
    device_type: int,
    legacy: bool,
    offered: int,
    wanted: int,
    required: int = 0,
    adjust: Callable[[int], int] | None = None,
) -> Negotiation:
    """Choose the features to accept: what is offered and wanted, exists in this interface, and has what it needs.

    ``adjust`` may drop some of them. VERSION_1 is required of the modern interface. Raises NegotiationError, with names
    and reasons, if one of ``required`` is not among the rest.
    """
    # plain ints, for ~ of an IntFlag gives no bits but those that it knows
    offered, wanted, required = int(offered), int(wanted), int(required)
    if not legacy:
        wanted |= int(Feature.VERSION_1)
        required |= int(Feature.VERSION_1)
    foreign = ~LEGACY_BITS if legacy else legacy_only(device_type)
    refused = dict.fromkeys(names_of(wanted & ~offered, device_type), "not offered")
    there = "legacy" if legacy else "modern"
    refused |= dict.fromkeys(names_of(wanted & foreign, device_type), f"not part of the {there} interface")
    refused |= dict.fromkeys(names_of(wanted & _NOT_DONE, device_type), "not done by the driver's rings")
    got = _close(device_type, wanted & offered & ~foreign & ~_NOT_DONE, refused)
    if adjust is not None:
        chosen = int(adjust(got)) & got
        refused |= dict.fromkeys(names_of(got & ~chosen, device_type), "dropped by the driver")
        got = _close(device_type, chosen, refused)
    lacking = tuple(names_of(required & ~got, device_type))
    if lacking:
        reasons = ", ".join(f"{name} ({refused.get(name, 'not wanted')})" for name in lacking)
        raise NegotiationError(f"required features are missing: {reasons}", offered, wanted, lacking)
    return Negotiation(device_type, legacy, offered, wanted, required, got, refused)


def _close(device_type: int, bits: int, refused: dict[str, str]) -> int:
    """Drop the bits that lack what they need, and then those that need these; say why."""
    while gaps := missing(bits, device_type):
        for name, needs in gaps:
            refused[name] = f"needs {needs}"
            bits &= ~parse(name, device_type)
    return bits
