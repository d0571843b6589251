"""Drivers meet devices: which driver gets which function of a PCI bus.

As in FreeBSD, transports bid for a function first, then drivers for the device type; the highest bid wins. The legacy
transport bids BUS_PROBE_LOW_PRIORITY, so that a better way to a transitional device wins where there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from virtio.driver import Driver, Transport
from virtio.driver.registry import Bid, choose_driver
from virtio.errors import ConfigError, VirtioError
from virtio.memory.dma import DmaPool
from virtio.memory.guest_memory import GuestMemory
from virtio.pci.legacy_driver import Interrupts, LegacyTransport, Mode, PciAccess
from virtio.pci.probe import Function, virtio_functions


class PciTransport(Protocol):
    """A class of transports: says what it bids for a function (None: it cannot drive it), and makes one."""

    def probe(self, function: Function) -> int | None: ...

    def __call__(
        self, access: PciAccess, function: Function, memory: GuestMemory, interrupts: Interrupts, *, mode: Mode
    ) -> Transport: ...


TRANSPORTS: tuple[PciTransport, ...] = (LegacyTransport,)


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


def choose_transport(function: Function, transports: Iterable[PciTransport] = TRANSPORTS) -> PciTransport:
    """Return the transport that drives a function best. Raises ConfigError if none can."""
    bids = [(bid, transport) for transport in transports if (bid := transport.probe(function)) is not None]
    if not bids:
        what = f"the interface {function.interface}" if function.interface else "no virtio interface"
        raise ConfigError(f"{function} revision {function.revision} has {what}, and no transport here drives that")
    return max(bids, key=lambda bid: bid[0])[1]


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
    transport = choose_transport(function)(access, function, memory, interrupts, mode=mode)
    driver = choose_driver(function.device_type, drivers, str(function))(transport, pool, **options)
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
