"""The paths that ``virtio iperf`` measures: from a network namespace on the guest's side to one on the host's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Protocol, cast

from virtio.cli.iperf.settings import DIRECTIONS, OFFLOADS, Direction, Settings
from virtio.cli.iperf.traffic import Iperf3, Result, Space, Streams
from virtio.constants import Feature, NetFeature
from virtio.direct import DirectTransport
from virtio.errors import ConfigError
from virtio.event.worker import Worker
from virtio.net.device import NetDevice
from virtio.net.machine import Machine
from virtio.net.netns import Namespace
from virtio.net.pump import Pump
from virtio.net.vtnet import FRAME_MAX, Vtnet
from virtio.pci.legacy_driver import LegacyTransport
from virtio.pci.probe import virtio_functions
from virtio.ports.port import Port
from virtio.ports.tap import Tap
from virtio.ports.taploop import TapLoop

HASHED, HASHED_OFF = 32 << 20, 8 << 20  # bytes of a warm-up, and where each takes longer
EVERY_OFFLOAD = 0x1FF  # VIRTIO_OFFLOAD_*
MEMORY = 64 << 20  # of the guest for each queue pair, besides the buffers of as many frames as fit in its queues
MACS = ("02:00:00:00:77:01", "02:00:00:00:77:02")
ADDRESSES = {False: ("10.77.0.1", "10.77.0.2"), True: ("fd77::1", "fd77::2")}


@dataclass
class Counts:
    """Of a path since it was made: frames each way, by direction, and what they took."""

    packets: dict[Direction, int]
    frame_bytes: dict[Direction, int]
    kicks: int = 0
    receive_interrupts: int = 0
    transmit_interrupts: int = 0
    copied: int = 0  # bytes, by our code: what the kernel copies when a TAP is read or written is not ours

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            {direction: self.packets[direction] + other.packets[direction] for direction in DIRECTIONS},
            {direction: self.frame_bytes[direction] + other.frame_bytes[direction] for direction in DIRECTIONS},
            self.kicks + other.kicks,
            self.receive_interrupts + other.receive_interrupts,
            self.transmit_interrupts + other.transmit_interrupts,
            self.copied + other.copied,
        )


class Path(Protocol):
    """A way from guest to host and back that traffic can take."""

    nic: str
    offloads: bool
    label: str

    def warm_up(self, direction: Direction) -> Result:
        """Send what never repeats, and compare hashes. Raises TrafficError."""

    def run(self, direction: Direction) -> Result:
        """Send for the seconds of the settings, and compare every byte. Raises TrafficError."""

    def counts(self) -> Counts:
        """Return what was counted until now."""

    def about(self) -> str:
        """Say what it is, in a paragraph."""

    def details(self) -> str:
        """Say more; "" where there is no more."""


class Traffic:
    """Sender and receiver: the built-in streams, and in their place iperf3 for what is measured."""

    def __init__(self, settings: Settings, stack: ExitStack) -> None:
        self.streams = stack.enter_context(Streams(settings.streams))
        self.measured = Iperf3(settings.streams) if settings.iperf3 else self.streams


class Ends:
    """Two namespaces, A on the guest's side and B on the host's, with a TAP each: what paths of the kernel share."""

    offloads: bool

    def __init__(self, settings: Settings, stack: ExitStack, traffic: Traffic, queues: int = 1) -> None:
        self.seconds = settings.seconds
        self.traffic = traffic
        guest, host = (stack.enter_context(Namespace()) for _ in range(2))
        addresses = ADDRESSES[settings.ipv6]
        self.taps: list[Tap] = []
        for i, space in enumerate((guest, host)):
            tap = space.tap(
                "vtnet0" if i == 0 else "tap0",
                mac=MACS[i],
                mtu=settings.mtu,
                addresses=[f"{addresses[i]}/{64 if settings.ipv6 else 24}"],
                neighbours=[(addresses[1 - i], MACS[1 - i])],
                queues=queues,
            )
            self.taps.append(stack.enter_context(tap))
        for space in (guest, host):
            space.settle()
        self.spaces: dict[Direction, tuple[Space, Space]] = {
            "guest-to-host": (guest, host),
            "host-to-guest": (host, guest),
        }
        self.addresses: dict[Direction, str] = {"guest-to-host": addresses[1], "host-to-guest": addresses[0]}

    def warm_up(self, direction: Direction) -> Result:
        size = HASHED if self.offloads else HASHED_OFF
        return self.traffic.streams.run_hashed(*self.spaces[direction], self.addresses[direction], size)

    def run(self, direction: Direction) -> Result:
        return self.traffic.measured.run(*self.spaces[direction], self.addresses[direction], self.seconds)


class TapLoopPath(Ends):
    """Two TAPs joined by a loop of read and write: no device, no driver, no ring."""

    nic, offloads, label = "tap-loop", True, "tap-loop"

    def __init__(self, settings: Settings, stack: ExitStack, traffic: Traffic) -> None:
        super().__init__(settings, stack, traffic)
        self.loop = stack.enter_context(TapLoop(*self.taps, offloads=EVERY_OFFLOAD))

    def counts(self) -> Counts:
        found = self.loop.statistics()
        return Counts(
            {"guest-to-host": int(found["a_to_b_packets"]), "host-to-guest": int(found["b_to_a_packets"])},
            {"guest-to-host": int(found["a_to_b_bytes"]), "host-to-guest": int(found["b_to_a_bytes"])},
        )

    def about(self) -> str:
        return "two TAPs, and a loop in C that reads from one and writes to the other"

    def details(self) -> str:
        return ""


def union(masks: Iterable[int]) -> int:
    """Return all bits of all masks."""
    return reduce(or_, masks, 0)


def total(figures: Sequence[dict[str, int]], name: str) -> int:
    return sum(figure[name] for figure in figures)


def memory_size(settings: Settings) -> int:
    """Return bytes of guest memory that are enough. Only what is used is taken from the host."""
    small = max(4096, settings.mtu)
    receive = FRAME_MAX if settings.withheld & NetFeature.MRG_RXBUF else small
    return settings.queues * (MEMORY + settings.queue_size * (receive + small + 1024))


class Nic:
    """A machine of our own, in which vtnet finds and drives a virtio-net device, between ``guest`` and ``host``."""

    def __init__(self, settings: Settings, stack: ExitStack, offloads: bool, guest: Port, host: Port) -> None:
        # all of it on one thread, by default: a sender and a receiver need CPUs too
        workers = [Worker(mode=settings.mode, spin_us=settings.spin_us) for _ in range(settings.workers)]
        machine = Machine(memory_size(settings))
        device = NetDevice(
            host,
            mac=MACS[0],
            mtu=settings.mtu,
            queue_pairs=settings.queues,
            queue_size=settings.queue_size,
            withhold=settings.withheld | (0 if offloads else union(OFFLOADS.values())),
            worker=workers[0],
        )
        stack.callback(device.close)
        if settings.packed:
            self.driver = Vtnet(
                DirectTransport(device, machine.memory), machine.pool, want=Feature.RING_PACKED, pairs=settings.queues
            )
            self.driver.attach()
        else:
            machine.plug(device)
            (function,) = virtio_functions(machine.probe())
            self.driver = cast(Vtnet, machine.attach(function, pairs=settings.queues))
        stack.callback(self.driver.detach)
        if settings.packed and not self.driver.features & Feature.RING_PACKED:
            raise ConfigError("packed rings were not negotiated: RING_PACKED is withheld")
        pump = Pump(self.driver, guest, worker=None)
        stack.callback(pump.close)
        for pair in pump.tasks:
            for task in pair:
                workers[-1].add(task)
        self.workers = workers
        stack.callback(self.stop)
        for worker in workers:
            worker.start()

    def stop(self) -> None:
        """End the threads: nothing moves from here on."""
        for worker in self.workers:
            worker.stop()

    def counts(self) -> Counts:
        """Return what the driver and the bells of its queues have counted."""
        pairs = self.driver.pairs
        queues = [self.driver.queues[index] for index in range(2 * len(pairs))]
        sent = [pair.transmit.statistics() for pair in pairs]
        got = [pair.receive.statistics() for pair in pairs]
        return Counts(
            {"guest-to-host": total(sent, "opackets"), "host-to-guest": total(got, "ipackets")},
            {"guest-to-host": total(sent, "obytes"), "host-to-guest": total(got, "ibytes")},
            sum(queue.kick.rings for queue in queues),
            sum(queue.interrupt.rings for queue in queues[::2] if queue.interrupt),
            sum(queue.interrupt.rings for queue in queues[1::2] if queue.interrupt),
            total(sent, "copied") + total(got, "copied"),
        )

    def about(self) -> str:
        """Return how driver and device met, and what they agreed on."""
        transport, found = self.driver.transport, self.driver.negotiation
        where = "driver and device joined directly"
        if isinstance(transport, LegacyTransport):
            where = f"virtio-net at {transport.function} by legacy PCI, interrupts by {transport.mode}"
        ring = "packed" if self.driver.features & Feature.RING_PACKED else "split"
        return f"{where}, {ring} rings; negotiated: {', '.join(found.names(found.got)) if found else 'nothing'}"

    def details(self) -> str:
        """Return the negotiation, feature by feature."""
        return str(self.driver.negotiation)


def label(offloads: bool) -> str:
    """Return what vtnet's row is called."""
    return "vtnet" if offloads else "vtnet, offloads off"


class VtnetPath(Ends):
    """Our driver and our device between the two TAPs."""

    nic = "vtnet"

    def __init__(self, settings: Settings, stack: ExitStack, traffic: Traffic, offloads: bool) -> None:
        super().__init__(settings, stack, traffic, settings.queues)
        self.offloads, self.label = offloads, label(offloads)
        self.machine = Nic(settings, stack, offloads, *self.taps)

    def counts(self) -> Counts:
        return self.machine.counts()

    def about(self) -> str:
        return self.machine.about()

    def details(self) -> str:
        return self.machine.details()
