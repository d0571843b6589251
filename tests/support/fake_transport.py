"""A transport without a device: it records what the driver does, and lies as it is told."""

from __future__ import annotations

from collections.abc import Sequence

from virtio import Feature, GuestMemory, NetFeature
from virtio.constants import Status
from virtio.driver import RING_FEATURES, Driver, QueuePlan
from virtio.event.notifier import Bell
from virtio.virtqueue.layout import QueueLayout

MEMORY = 1 << 20


class FakeTransport:
    """Shows a device of three queues. Tests override attributes and methods to lie."""

    def __init__(self, memory: GuestMemory, *, device_type=1, legacy=False, offered=None, size=64, config=b""):
        self.memory = memory
        self.device_type = device_type
        self.legacy = legacy
        self.offered = int(Feature.VERSION_1 | Feature.INDIRECT_DESC) if offered is None else int(offered)
        if legacy:
            self.offered &= 0xFFFFFFFF
        self.sizes = dict.fromkeys(range(3), size)
        self.config = bytearray(config)
        self.generation = 0
        self.config_bell = Bell()
        self.accepts_features = True
        self.accepted = None
        self.resets = True
        self.log: list[object] = []
        self.layouts: dict[int, QueueLayout] = {}
        self.bells: dict[int, Bell] = {}
        self.kicks: dict[int, Bell] = {}
        self.state = Status.DRIVER_OK | Status.FEATURES_OK | Status.DRIVER | Status.ACKNOWLEDGE  # a former user's

    @property
    def status(self):
        return int(self.state)

    @status.setter
    def status(self, bits):
        self.log.append(Status(bits))
        if bits & Status.FEATURES_OK and not self.accepts_features:
            bits &= ~Status.FEATURES_OK
        self.state |= bits

    def reset(self):
        self.log.append("reset")
        if self.resets:
            self.state = Status(0)
            self.layouts.clear()

    def read_features(self):
        return self.offered

    def write_features(self, bits):
        self.log.append(("features", bits))
        self.accepted = bits

    def read_config(self, offset, size):
        return bytes(self.config[offset : offset + size]).ljust(size, b"\0")

    def write_config(self, offset, data):
        self.config[offset : offset + len(data)] = data

    def queue_size(self, index):
        return self.sizes.get(index, 0)

    def setup_queue(self, index, layout):
        self.log.append(("queue", index))
        self.layouts[index] = layout

    def reset_queue(self, index):
        self.log.append(("reset queue", index))
        del self.layouts[index]

    def kick_bell(self, index):
        return self.kicks.setdefault(index, Bell())

    def interrupt_bells(self, queues: Sequence[int]):
        self.log.append(("interrupts", tuple(queues)))
        return [self.bells.setdefault(queue, Bell()) for queue in queues]

    def release(self):
        self.log.append("release")
        self.bells.clear()
        self.kicks.clear()


class Nic(Driver):
    """A driver of three queues that says when which hook was called."""

    device_type = 1
    wanted = RING_FEATURES | NetFeature.MAC | NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.HOST_ECN
    plans = (QueuePlan(0, "rx", segments=4), QueuePlan(1, "tx", segments=8), QueuePlan(2, "ctrl", interrupt=False))

    def __init__(self, transport, pool, **options):
        super().__init__(transport, pool, timeout=options.pop("timeout", 0.05), **options)
        self.calls = []

    def plan_queues(self):
        return self.plans

    def ready(self):
        self.calls.append(("ready", self.transport.status, sorted(self.queues)))

    def stopping(self):
        self.calls.append(("stopping", self.transport.status))

    def stopped(self):
        self.calls.append(("stopped", self.transport.status, sorted(self.queues)))

    def config_changed(self):
        self.calls.append("config")


def nic(memory, pool, cls=Nic, **fake):
    return cls(FakeTransport(memory, **fake), pool)
