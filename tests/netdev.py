"""A network device worked by hand: what the driver's tests look into, and make lie."""

from __future__ import annotations

import struct
from typing import Any, ClassVar

from virtio import GuestMemory
from virtio.constants import DeviceType, Feature, NetFeature
from virtio.device import Device
from virtio.direct import DirectTransport
from virtio.dma import DmaPool
from virtio.net.vtnet import Vtnet
from virtio.offload import net_header_size

MAC = bytes.fromhex("020000000001")


class HandDevice(Device):
    """Offers every network feature; does what the test says, and nothing else."""

    device_type: ClassVar[int] = DeviceType.NET
    features: ClassVar[int] = (
        Device.features
        | sum(feature for feature in NetFeature if feature < 1 << 24)
        | sum(NetFeature[name] for name in ("GUEST_USO4", "GUEST_USO6", "HOST_USO", "SPEED_DUPLEX"))
    )

    def __init__(self, *, pairs: int = 1, mtu: int = 1500, status: int = 1, **options: Any) -> None:
        self.max_pairs = pairs
        self.config = bytearray(struct.pack("<6sHHHIB", MAC, status, pairs, mtu, 10_000, 1))
        super().__init__(**options)

    def queue_sizes(self) -> tuple[int, ...]:
        return (self.queue_size,) * (2 * self.max_pairs) + (64,)

    @property
    def header_size(self) -> int:
        return net_header_size(self.negotiated)

    def sent(self, pair: int = 0, limit: int = 1 << 20) -> list[tuple[bytes, bytes]]:
        """Take what the driver transmitted: (header, frame) each."""
        queue = self.device_queue(2 * pair + 1)
        frames = []
        while len(frames) < limit and (chain := queue.pop()) is not None:
            assert chain.writable_length == 0
            data = chain.read()
            frames.append((data[: self.header_size], data[self.header_size :]))
            queue.add_used(chain)
        self.finish(2 * pair + 1)
        return frames

    def give(self, *frames: bytes, header: bytes = b"", pair: int = 0) -> int:
        """Deliver frames to the driver, each in as many buffers as it takes; return how many there was room for."""
        for i, frame in enumerate(frames):
            if not self.give_one(frame, header, pair):
                break
        else:
            i = len(frames)
        self.finish(2 * pair)
        return i

    def give_one(self, frame: bytes, header: bytes, pair: int, num_buffers: int | None = None) -> bool:
        queue = self.device_queue(2 * pair)
        size = self.header_size
        chains = []
        data = header.ljust(size, b"\0") + frame
        room = 0
        while room < len(data):
            chain = queue.pop()
            if chain is None:
                for taken in reversed(chains):
                    queue.unpop(taken)
                return False
            chains.append(chain)
            room += chain.writable_length
            if not self.negotiated & NetFeature.MRG_RXBUF:
                assert room >= len(data)
        if size >= 12:
            count = len(chains) if num_buffers is None else num_buffers
            data = data[:10] + struct.pack("<H", count) + data[12:]
        for chain in chains:
            part, data = data[: chain.writable_length], data[chain.writable_length :]
            chain.write(part)
        queue.add_used_burst(chains)
        return True

    def finish(self, index: int) -> None:
        if self.device_queue(index).needs_notification():
            self.queues[index].call.ring()


def attached(device: Device, *, legacy: bool = False, memory: int = 64 << 20, **options: Any) -> Vtnet:
    """A driver on this device."""
    room = GuestMemory.allocate(memory)
    nic = Vtnet(DirectTransport(device, room, legacy=legacy), DmaPool(room, 0, memory), **options)
    nic.attach()
    return nic


FEATURES = Feature
