"""Drivers meet devices: which driver gets which function of a PCI bus.

As in FreeBSD, a driver is registered for a device type, and bids by a priority: the highest bid gets the device. The
legacy interface bids BUS_PROBE_LOW_PRIORITY, so that a better way to a transitional device wins where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from virtio._memory import GuestMemory
from virtio.dma import DmaPool
from virtio.driver import Driver
from virtio.errors import ConfigError, VirtioError
from virtio.negotiation import type_name
from virtio.pci.legacy_driver import Interrupts, LegacyTransport, Mode, PciAccess
from virtio.pci.probe import Function, virtio_functions

# sys/bus.h: what a probe method returns, the higher the better
BUS_PROBE_SPECIFIC, BUS_PROBE_VENDOR, BUS_PROBE_DEFAULT, BUS_PROBE_LOW_PRIORITY, BUS_PROBE_GENERIC = (
    0,
    -10,
    -20,
    -40,
    -100,
)


@dataclass(frozen=True)
class Bid:
    """A driver for a device type: ``make(transport, pool, **options)`` returns it; the highest ``priority`` wins."""

    device_type: int
    make: Callable[..., Driver]
    priority: int = BUS_PROBE_DEFAULT


_registered: list[Bid] = []


def register_driver(device_type: int, make: Callable[..., Driver], priority: int = BUS_PROBE_DEFAULT) -> None:
    """Make a driver known to :func:`attach`: ``make`` is its class. A second time with the same class changes nothing.

    Among equal priorities the first that was registered wins.
    """
    bid = Bid(device_type, make, priority)
    if bid not in _registered:
        _registered.append(bid)


def registered_drivers() -> tuple[Bid, ...]:
    """Return what was registered, in that order."""
    return tuple(_registered)


@dataclass
class Attached:
    """What came of a function: its ``driver``, or the ``error`` for which it has none."""

    function: Function
    driver: Driver | None = None
    error: VirtioError | None = None

    def __str__(self) -> str:
        if self.driver is None:
            return f"{self.function}: {self.error}"
        return f"{self.function}: {type(self.driver).__name__} by {self.driver.transport!r}"


def choose_driver(function: Function, drivers: Iterable[Bid] | None = None) -> Callable[..., Driver]:
    """Return the driver that gets a function, of ``drivers`` or of those that are registered.

    Raises ConfigError if there is none for its type.
    """
    bids = [bid for bid in (_registered if drivers is None else drivers) if bid.device_type == function.device_type]
    if not bids:
        raise ConfigError(
            f"{function} is a virtio {type_name(function.device_type)} device: no driver is registered for it"
        )
    return max(bids, key=lambda bid: bid.priority).make


def attach(
    access: PciAccess,
    function: Function,
    memory: GuestMemory,
    pool: DmaPool,
    interrupts: Interrupts,
    *,
    drivers: Sequence[Bid] | None = None,
    mode: Mode = "msix",
    **options: Any,
) -> Driver:
    """Give a function its driver and bring it up; return the driver.

    ``mode`` is the first way of interrupts to try; ``options`` are passed to the driver's class. Raises what is wrong
    with the function, or what the driver's attach raises; nothing is then kept.
    """
    make = choose_driver(function, drivers)
    driver = make(LegacyTransport(access, function, memory, interrupts, mode=mode), pool, **options)
    driver.attach()
    return driver


def attach_all(
    access: PciAccess,
    functions: Iterable[Function],
    memory: GuestMemory,
    pool: DmaPool,
    interrupts: Interrupts,
    *,
    drivers: Sequence[Bid] | None = None,
    mode: Mode = "msix",
) -> list[Attached]:
    """Bring up every virtio function, in the order of the bus. What fails says why, and does not keep the others."""
    result = []
    for function in virtio_functions(functions):
        try:
            result.append(
                Attached(function, attach(access, function, memory, pool, interrupts, drivers=drivers, mode=mode))
            )
        except VirtioError as error:
            result.append(Attached(function, error=error))
    return result
