"""A raw driver of a network device, for tests: rings and buffers by hand, nothing hidden."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

import virtio
from virtio import GuestMemory
from virtio.constants import DeviceType, Feature, NetFeature
from virtio.direct import DirectTransport
from virtio.driver import RING_FEATURES, Driver, QueuePlan
from virtio.memory.dma import DmaPool
from virtio.net.device import NetDevice
from virtio.offload import NetHeader, net_header_size
from virtio.virtqueue.driver_queue import DriverQueue

MEMORY = 16 << 20
ALL = (1 << 71) - 1
PACKED = int(Feature.RING_PACKED)


class RawNic(Driver):
    """Brings up a NetDevice by the direct transport; ``wanted`` are the features to accept of those offered."""

    device_type = DeviceType.NET

    def __init__(
        self,
        device: NetDevice,
        *,
        wanted: int = ALL & ~PACKED,
        memory: GuestMemory | None = None,
        legacy: bool = False,
        pool: tuple[int, int] | None = None,
        segments: int = 0,
    ) -> None:
        memory = GuestMemory.allocate(MEMORY) if memory is None else memory
        transport = DirectTransport(device, memory, legacy=legacy)
        gpa, size = pool or (memory.regions[0].gpa, memory.regions[0].size)
        super().__init__(transport, DmaPool(memory, gpa, size), wanted=wanted)
        self.device = device
        self.segments = segments
        self.posted: dict[int, tuple[list[int], int]] = {}

    def plan_queues(self) -> Sequence[QueuePlan]:
        pairs = self.device.max_pairs if self.features & NetFeature.MQ else 1
        plans = []
        for pair in range(pairs):
            plans.append(QueuePlan(2 * pair, f"rx{pair}", segments=self.segments))
            plans.append(QueuePlan(2 * pair + 1, f"tx{pair}", segments=self.segments))
        if self.features & NetFeature.CTRL_VQ:
            plans.append(QueuePlan(2 * pairs, "control"))
        return plans

    @property
    def header(self) -> int:
        return net_header_size(self.features)

    @property
    def control_index(self) -> int:
        return 2 * (self.device.max_pairs if self.features & NetFeature.MQ else 1)

    def ring(self, index: int) -> DriverQueue:
        return self.queues[index].queue

    def buffer(self, data: bytes) -> tuple[int, int]:
        gpa = self.pool.allocate(len(data))
        self.memory.write(gpa, data)
        return gpa, len(data)

    # ---- transmit ----

    def send(self, frames: Iterable[tuple[NetHeader, bytes]], *, pair: int = 0, splits: Sequence[int] = ()) -> None:
        """Make frames available, each in pieces that end at ``splits`` (counted with the header)."""
        queue = self.queues[2 * pair + 1]
        for header, frame in frames:
            self.send_raw(header.to_bytes(self.header) + frame, pair=pair, splits=splits)
        queue.notify()

    def send_raw(self, data: bytes, *, pair: int = 0, splits: Sequence[int] = ()) -> None:
        ends = [end for end in sorted(set(splits)) if 0 < end < len(data)] + [len(data)]
        pieces = [self.buffer(data[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
        self.queues[2 * pair + 1].queue.enqueue(pieces, (), pieces)

    def reap(self, *, pair: int = 0) -> list[int]:
        """Take back sent chains; return the lengths that the device reported."""
        lengths = []
        for pieces, length in self.ring(2 * pair + 1).dequeue_burst(1 << 15):
            for gpa, _ in pieces:
                self.pool.free(gpa)
            lengths.append(length)
        return lengths

    # ---- receive ----

    def post(self, count: int, size: int = 2048, *, pair: int = 0, pieces: Sequence[int] | None = None) -> int:
        """Give the device ``count`` buffers of ``size`` bytes, or of several pieces; return how many it takes."""
        sizes = list(pieces) if pieces else [size]
        queue = self.queues[2 * pair]
        for done in range(count):
            parts = [(self.pool.allocate(each), each) for each in sizes]
            for gpa, each in parts:
                self.memory.write(gpa, b"\xaa" * each)
            try:
                queue.queue.enqueue((), parts, parts)
            except (virtio.QueueFull, virtio.DoesNotFit):
                for gpa, _ in parts:
                    self.pool.free(gpa)
                queue.notify()
                return done
        queue.notify()
        return count

    def buffers(self, *, pair: int = 0) -> list[tuple[bytes, int]]:
        """Take back what the device used: (bytes written, length reported) of each buffer."""
        got = []
        for parts, length in self.ring(2 * pair).dequeue_burst(1 << 15):
            data = b"".join(self.memory.read(gpa, size) for gpa, size in parts)
            for gpa, _ in parts:
                self.pool.free(gpa)
            got.append((data[:length], length))
        return got

    def receive(self, *, pair: int = 0) -> list[tuple[NetHeader, bytes]]:
        """Take the frames that were received, put together."""
        frames: list[tuple[NetHeader, bytes]] = []
        parts = iter(self.buffers(pair=pair))
        for data, length in parts:
            assert length >= self.header, (length, self.header)
            header = NetHeader.from_bytes(data, self.header)
            count = header.num_buffers if self.header > 10 else 1
            assert count >= 1
            frame = data[self.header :] + b"".join(next(parts)[0] for _ in range(count - 1))
            frames.append((header, frame))
        return frames

    # ---- control ----

    def control(self, kind: int, number: int, data: bytes = b"", *, splits: Sequence[int] = (2,)) -> int:
        """Send a command; return the device's answer."""
        answer = self.control_raw(struct.pack("BB", kind, number) + data, splits=splits)
        assert answer is not None
        return answer

    def control_raw(self, command: bytes, *, splits: Sequence[int] = (), room: int = 1) -> int | None:
        ends = [end for end in sorted(set(splits)) if 0 < end < len(command)] + [len(command)]
        pieces = [self.buffer(command[start:end]) for start, end in zip([0, *ends], ends, strict=False) if end > start]
        ack = self.pool.allocate(max(room, 1))
        self.memory.write(ack, b"\xff")
        queue = self.queues[self.control_index]
        queue.queue.enqueue(pieces, [(ack, room)] if room else [], None)
        queue.notify()
        done = queue.queue.dequeue()
        assert done is not None, "the command was not answered"
        value = self.memory.read_u8(ack)
        for gpa, _ in pieces:
            self.pool.free(gpa)
        self.pool.free(ack)
        return value if done[1] else None


def attach(device: NetDevice, wanted: int = ALL & ~PACKED, **options: Any) -> RawNic:
    nic = RawNic(device, wanted=wanted, **options)
    nic.attach()
    return nic


__all__ = ["ALL", "PACKED", "RING_FEATURES", "RawNic", "attach"]
