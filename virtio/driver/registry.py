"""Which driver gets a device, by the device's type, whatever bus found it.

As in FreeBSD, drivers bid for a device; the highest bid wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module

from virtio.driver.driver import Driver
from virtio.driver.negotiation import type_name
from virtio.errors import ConfigError
from virtio.registry import TYPES

# bids, as in FreeBSD's sys/bus.h
BUS_PROBE_DEFAULT, BUS_PROBE_LOW_PRIORITY = -20, -40


@dataclass(frozen=True)
class Bid:
    """A driver for a device type: ``make(transport, pool, **options)`` returns it; the highest ``priority`` wins."""

    device_type: int
    make: Callable[..., Driver]
    priority: int = BUS_PROBE_DEFAULT


_registered: list[Bid] = []


def register_driver(device_type: int, make: Callable[..., Driver], priority: int = BUS_PROBE_DEFAULT) -> None:
    """Make a driver known: ``make`` is its class. A second time with the same class changes nothing.

    Among equal priorities the first that was registered wins.
    """
    bid = Bid(device_type, make, priority)
    if bid not in _registered:
        _registered.append(bid)


def registered_drivers() -> tuple[Bid, ...]:
    """Return the bids that were registered, in that order."""
    return tuple(_registered)


def choose_driver(
    device_type: int, drivers: Iterable[Bid] | None = None, device: str = "the device"
) -> Callable[..., Driver]:
    """Return the driver for a device type, of ``drivers``, or of those registered and the type's own.

    ``device`` names the device in the ConfigError that is raised if there is no driver.
    """
    if drivers is None:
        home = TYPES.get(device_type)
        if home is not None and home.driver is not None:
            import_module(f"{home.folder}.{home.driver}")  # registers its driver
        drivers = _registered
    bids = [bid for bid in drivers if bid.device_type == device_type]
    if not bids:
        raise ConfigError(f"{device} has no driver: none is registered for {type_name(device_type)}")
    return max(bids, key=lambda bid: bid.priority).make
