"""The paths that ``virtio iperf`` measures: from a network namespace on the guest's side to one on the host's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Literal, Protocol, cast

from virtio._tap import Tap
from virtio._taploop import TapLoop
from virtio._worker import Worker
from virtio.constants import Feature, NetFeature
from virtio.direct import DirectTransport
from virtio.net.device import NetDevice
from virtio.net.iperf_report import DIRECTIONS, Direction
from virtio.net.iperf_traffic import Space
from virtio.net.machine import Machine
from virtio.net.netns import Namespace
from virtio.net.pump import Pump
from virtio.net.vtnet import Vtnet
from virtio.pci.probe import virtio_functions

N = NetFeature
# by the names of the command's options: what the row without offloads withholds
OFFLOADS: dict[str, int] = {
    "csum": N.CSUM | N.GUEST_CSUM,
    # GSO is the legacy interface's word for all that the device can cut
    "tso4": N.HOST_TSO4 | N.GUEST_TSO4 | N.GSO,
    "tso6": N.HOST_TSO6 | N.GUEST_TSO6 | N.GSO,
    "ecn": N.HOST_ECN | N.GUEST_ECN | N.GSO,
    "ufo": N.HOST_UFO | N.GUEST_UFO | N.GSO,
    "uso": N.HOST_USO | N.GUEST_USO4 | N.GUEST_USO6,
}

ROWS = ("vtnet", "vtnet-off", "tap-loop")
SPIN_US = 20
EVERY_OFFLOAD = 0xFFFFFFFF  # VIRTIO_OFFLOAD_*, as far as the kernel knows them
MEMORY = 64 << 20  # of the guest, for each queue pair
MACS = ("02:00:00:00:77:01", "02:00:00:00:77:02")
ADDRESSES = {False: ("10.77.0.1", "10.77.0.2"), True: ("fd77::1", "fd77::2")}


@dataclass(frozen=True)
class Settings:
    """What is measured. ``withheld``: feature bits that the device does not offer, in any row."""

    runs: int = 5
    seconds: float = 1.0
    directions: Sequence[Direction] = DIRECTIONS
    rows: Sequence[str] = ROWS
    mtu: int = 1500
    ipv6: bool = False
    queues: int = 1
    streams: int = 1
    withheld: int = 0
    packed: bool = False
    queue_size: int = 256
    workers: int = 1
    mode: Literal["adaptive", "busy"] = "adaptive"
    spin_us: int = SPIN_US
    iperf3: bool = False


@dataclass
class Counts:
    """Of a path since it was made: frames each way, by direction, and what they took."""

    packets: dict[Direction, int]
    frame_bytes: dict[Direction, int]
    kicks: int = 0
    interrupts: int = 0
    copied: int = 0


class Path(Protocol):
    """A way between two namespaces. ``spaces`` and ``addresses``: per direction sender and receiver, and where to."""

    nic: str
    offloads: bool
    label: str
    spaces: dict[Direction, tuple[Space, Space]]
    addresses: dict[Direction, str]

    def counts(self) -> Counts: ...
    def about(self) -> str: ...


class Ends:
    """Two namespaces, A on the guest's side and B on the host's, with a TAP each."""

    def __init__(self, settings: Settings, stack: ExitStack, guest_mac: str = MACS[0], queues: int = 1) -> None:
        guest, host = (stack.enter_context(Namespace()) for _ in range(2))
        macs, addresses = (guest_mac, MACS[1]), ADDRESSES[settings.ipv6]
        self.taps: list[Tap] = []
        for i, space in enumerate((guest, host)):
            tap = space.tap(
                "vtnet0" if i == 0 else "tap0",
                mac=macs[i],
                mtu=settings.mtu,
                addresses=[f"{addresses[i]}/{64 if settings.ipv6 else 24}"],
                neighbours=[(addresses[1 - i], macs[1 - i])],
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


class TapLoopPath(Ends):
    """Two TAPs joined by a loop of read and write: no device, no driver, no ring."""

    nic, offloads, label = "tap-loop", True, "tap-loop"

    def __init__(self, settings: Settings, stack: ExitStack) -> None:
        super().__init__(settings, stack)
        self.loop = stack.enter_context(TapLoop(*self.taps, offloads=EVERY_OFFLOAD))

    def counts(self) -> Counts:
        found = self.loop.statistics()
        return Counts(
            {"guest-to-host": int(found["a_to_b_packets"]), "host-to-guest": int(found["b_to_a_packets"])},
            {"guest-to-host": int(found["a_to_b_bytes"]), "host-to-guest": int(found["b_to_a_bytes"])},
        )

    def about(self) -> str:
        return "two TAPs, and a loop in C that reads from one and writes to the other"


def union(masks: Iterable[int]) -> int:
    """Return all bits of all masks."""
    return reduce(or_, masks, 0)


def total(figures: Sequence[dict[str, int]], name: str) -> int:
    return sum(figure[name] for figure in figures)


class VtnetPath(Ends):
    """A machine of our own: vtnet finds and drives a virtio-net device, whose port is B's TAP; A's TAP feeds vtnet."""

    nic = "vtnet"

    def __init__(self, settings: Settings, stack: ExitStack, offloads: bool) -> None:
        super().__init__(settings, stack, queues=settings.queues)
        self.offloads, self.label = offloads, "vtnet" if offloads else "vtnet, offloads off"
        withheld = settings.withheld | (0 if offloads else union(OFFLOADS.values()))
        guest_tap, host_tap = self.taps
        # all of it on one thread: sender and receiver need the other CPUs
        workers = [Worker(mode=settings.mode, spin_us=settings.spin_us) for _ in range(settings.workers)]
        self.machine = Machine(MEMORY * settings.queues)
        self.device = NetDevice(
            host_tap,
            mac=MACS[0],
            mtu=settings.mtu,
            queue_pairs=settings.queues,
            queue_size=settings.queue_size,
            withhold=withheld,
            worker=workers[0],
        )
        stack.callback(self.device.close)
        if settings.packed:
            transport = DirectTransport(self.device, self.machine.memory)
            self.driver = Vtnet(transport, self.machine.pool, want=Feature.RING_PACKED, pairs=settings.queues)
            self.driver.attach()
        else:
            self.machine.plug(self.device)
            (function,) = virtio_functions(self.machine.probe())
            self.driver = cast(Vtnet, self.machine.attach(function, pairs=settings.queues))
        stack.callback(self.driver.detach)
        self.pump = Pump(self.driver, guest_tap, worker=None)
        stack.callback(self.pump.close)
        for pair in self.pump.tasks:
            for task in pair:
                workers[-1].add(task)
        for worker in workers:
            worker.start()
            stack.callback(worker.stop)

    def counts(self) -> Counts:
        pairs = self.driver.pairs
        queues = [self.driver.queues[index] for index in range(2 * len(pairs))]
        sent = [pair.transmit.statistics() for pair in pairs]
        got = [pair.receive.statistics() for pair in pairs]
        return Counts(
            {"guest-to-host": total(sent, "opackets"), "host-to-guest": total(got, "ipackets")},
            {"guest-to-host": total(sent, "obytes"), "host-to-guest": total(got, "ibytes")},
            sum(queue.kick.rings for queue in queues),
            sum(queue.interrupt.rings for queue in queues if queue.interrupt),
            total(sent, "copied") + total(got, "copied"),
        )

    def about(self) -> str:
        return f"{self.driver.transport!r}, {self.driver.negotiation}"
