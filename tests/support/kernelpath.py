"""The whole path of two kernels: namespace A, TAP, pump and vtnet, a transport, the device, TAP, namespace B."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import netns
from netns import A, B, Namespace

from virtio.constants import Feature
from virtio.direct import DirectTransport
from virtio.event.worker import Worker
from virtio.net import Machine, NetDevice, Pump, Tap, Vtnet

MACS = ("02:00:00:00:77:01", "02:00:00:00:77:02")


class KernelPath:
    """Two namespaces at 10.77.0.1 / fd77::1 and 10.77.0.2 / fd77::2; in between A's nic, and the device that is B's.

    ``fast`` False: kicks and interrupts go by registers. ``withhold`` and ``offer``: the device's features. ``direct``:
    no PCI (for what legacy PCI cannot negotiate). ``workers``: 1: one thread for all; 2: one for the driver, one for
    the device.
    """

    def __init__(
        self, stack: ExitStack, *, mtu: int = 1500, withhold: int = 0, offer: int = 0, want: int = 0,
        direct: bool = False, fast: bool = True, pairs: int = 1, workers: int = 1, memory: int = 256 << 20, **nic: Any,
    ) -> None:  # fmt: skip
        self.namespaces: list[Namespace] = []
        self.taps: list[Tap] = []
        for i in (A, B):
            space = Namespace()
            stack.callback(space.close)
            self.namespaces.append(space)
            tap = space.run(lambda: Tap("tap0", queues=pairs))
            stack.callback(tap.close)
            self.taps.append(tap)
            space.ip("link", "set", "tap0", "mtu", str(mtu), "address", MACS[i], "up")
            space.ip("addr", "add", f"10.77.0.{i + 1}/24", "dev", "tap0")
            space.ip("addr", "add", f"fd77::{i + 1}/64", "dev", "tap0", "nodad")
            space.patient("tap0", "10.77.0.0/24", "fd77::/64")
            for address in (f"10.77.0.{2 - i}", f"fd77::{2 - i}"):
                space.ip("neigh", "add", address, "lladdr", MACS[1 - i], "dev", "tap0", "nud", "permanent")
        for space in self.namespaces:
            space.settle()
        # whoever writes to a TAP stays on one CPU: the kernel may reorder what one is given on two
        cpus = sorted(os.sched_getaffinity(0))
        self.workers = [Worker(cpu=cpus[-1 - i % len(cpus)], spin_us=20) for i in range(workers)]
        self.device = NetDevice(
            self.taps[B], mac=MACS[A], mtu=mtu, queue_pairs=pairs, withhold=withhold, offer=offer,
            worker=self.workers[-1],
        )  # fmt: skip
        stack.callback(lambda: self.device.close())
        self.machine = Machine(memory, fast=fast)
        if direct:
            self.nic = Vtnet(
                DirectTransport(self.device, self.machine.memory), self.machine.pool, want=want, pairs=pairs, **nic
            )
            self.nic.attach()
        else:
            self.machine.plug(self.device)
            (function,) = self.machine.probe()
            self.nic = cast(Vtnet, self.machine.attach(function, pairs=pairs, **nic))
        stack.callback(self.detach)
        self.pump = Pump(self.nic, self.taps[A], worker=None)
        stack.callback(lambda: self.pump.close())
        for pair in self.pump.tasks:
            for task in pair:
                self.workers[0].add(task)
        for worker in self.workers:
            worker.start()
            stack.callback(worker.stop)

    def detach(self) -> None:
        if self.nic.attached:
            self.nic.detach()

    def errors(self) -> dict[str, int]:
        """What went wrong by the kernels' counters."""
        found: dict[str, int] = {}
        for side, space in zip("AB", self.namespaces, strict=True):
            found.update({f"{side} {name}": count for name, count in space.errors().items()})
        return found


@contextmanager
def kernel_path(**options: Any) -> Iterator[KernelPath]:
    """Give a KernelPath, or skip where it cannot be made."""
    if os.geteuid() != 0:
        netns.refuse("needs root: network namespaces and TAP interfaces")
    if not os.path.exists("/dev/net/tun"):
        netns.refuse("no /dev/net/tun: load the kernel's tun module")
    with ExitStack() as stack:
        yield KernelPath(stack, **options)


PACKED = {"direct": True, "offer": int(Feature.RING_PACKED), "want": int(Feature.RING_PACKED)}
