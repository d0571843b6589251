"""A network device worked by hand: what the driver's tests look into, and make lie."""

from __future__ import annotations

import struct
from typing import Any, ClassVar

from virtio import GuestMemory
from virtio.constants import DeviceType, NetFeature
from virtio.device import Device
from virtio.direct import DirectTransport
from virtio.memory.dma import DmaPool
from virtio.net.vtnet import Vtnet
from virtio.offload import NetHeader, net_header_size
from virtio.virtqueue.chain import Chain
from virtio.virtqueue.device_queue import DeviceQueue

MAC = bytes.fromhex("020000000001")
MEMORY = 64 << 20
NET = sum(feature for feature in NetFeature if feature < 1 << 24) | int(
    NetFeature.GUEST_USO4 | NetFeature.GUEST_USO6 | NetFeature.HOST_USO | NetFeature.SPEED_DUPLEX
)


class HandDevice(Device):
    """Offers every feature of a network device up to USO; does what the test says, and nothing else."""

    device_type: ClassVar[int] = DeviceType.NET
    features: ClassVar[int] = int(Device.features) | NET

    def __init__(self, *, pairs: int = 1, mtu: int = 1500, status: int = 1, **options: Any) -> None:
        self.max_pairs = pairs
        self.config = bytearray(struct.pack("<6sHHHIB", MAC, status, pairs, mtu, 10_000, 1))
        super().__init__(**options)

    def queue_sizes(self) -> tuple[int, ...]:
        return (self.queue_size,) * (2 * self.max_pairs) + (64,)

    @property
    def header_size(self) -> int:
        return net_header_size(self.negotiated)

    # ---- what the driver sends ----

    def tx(self, pair: int = 0) -> DeviceQueue:
        return self.device_queue(2 * pair + 1)

    def rx(self, pair: int = 0) -> DeviceQueue:
        return self.device_queue(2 * pair)

    def sent_chains(self, pair: int = 0) -> list[Chain]:
        """Take what the driver transmitted, and keep it."""
        return self.tx(pair).pop_burst(1 << 15)

    def sent_raw(self, pair: int = 0) -> list[tuple[bytes, bytes]]:
        """Take what the driver transmitted, and give it back: (header, frame) each."""
        chains = self.sent_chains(pair)
        frames = []
        for chain in chains:
            assert chain.writable_length == 0
            data = chain.read()
            frames.append((data[: self.header_size], data[self.header_size :]))
        self.tx(pair).add_used_burst(chains)
        self.finish(2 * pair + 1)
        return frames

    def sent(self, pair: int = 0) -> list[bytes]:
        """The same without headers, which must ask for nothing."""
        raw = self.sent_raw(pair)
        assert all(not any(header) for header, _ in raw)
        return [frame for _, frame in raw]

    def sent_headers(self, pair: int = 0) -> list[tuple[NetHeader, bytes]]:
        return [(NetHeader.from_bytes(header, self.header_size), frame) for header, frame in self.sent_raw(pair)]

    # ---- what it gives the driver ----

    def give(self, *frames: bytes, header: NetHeader | None = None, pair: int = 0) -> int:
        """Deliver frames to the driver, each in as many buffers as it takes; return how many there was room for."""
        done = 0
        for frame in frames:
            if not self.give_one(frame, header, pair):
                break
            done += 1
        self.finish(2 * pair)
        return done

    def give_one(self, frame: bytes, header: NetHeader | None, pair: int = 0) -> bool:
        size = self.header_size
        chains: list[Chain] = []
        room = 0
        while room < size + len(frame):
            chain = self.rx(pair).pop()
            if chain is None:
                for taken in reversed(chains):
                    self.rx(pair).unpop(taken)
                return False
            chains.append(chain)
            room += chain.writable_length
            if not self.negotiated & NetFeature.MRG_RXBUF:
                assert room >= size + len(frame)
        header = header or NetHeader()
        header.num_buffers = len(chains)
        data = header.to_bytes(size) + frame
        for chain in chains:
            part, data = data[: chain.writable_length], data[chain.writable_length :]
            chain.write(part)
        self.rx(pair).add_used_burst(chains)
        return True

    def give_raw(self, *parts: bytes, used: list[int] | None = None, pair: int = 0) -> None:
        """Write each part into a buffer of its own, headers and all, and use them; say of each how long it is."""
        chains = []
        for part in parts:
            chain = self.rx(pair).pop()
            assert chain is not None
            chain.write(part)
            chains.append(chain)
        for chain, length in zip(chains, used or [], strict=False):
            chain.written = length
        self.rx(pair).add_used_burst(chains)
        self.finish(2 * pair)

    def finish(self, index: int) -> None:
        if self.device_queue(index).needs_notification():
            self.queues[index].call.ring()


def raw(frame: bytes, num_buffers: int = 1, **fields: int) -> bytes:
    """What a device writes, for a header of 12 bytes."""
    return NetHeader(num_buffers=num_buffers, **fields).to_bytes(12) + frame


def attached(device: Device, *, legacy: bool = False, memory: GuestMemory | None = None, **options: Any) -> Vtnet:
    """A driver on this device."""
    room = memory or GuestMemory.allocate(MEMORY)
    transport = DirectTransport(device, room, legacy=legacy)
    nic = Vtnet(transport, DmaPool(room, 0, room.regions[0].size), **options)
    nic.attach()
    return nic


def frames_of(count: int, size: int = 60, first: int = 0) -> list[bytes]:
    """Frames that are all different."""
    start = bytes([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xB5])
    return [(start + struct.pack("<I", first + i) * (size // 4))[:size] for i in range(count)]


def lie_used(nic: Vtnet, index: int, *entries: tuple[int, int], claim: int | None = None) -> None:
    """Write (id, length) into the used ring behind the device end's back; ``claim``: say that there are so many."""
    layout, memory = nic.queues[index].layout, nic.memory
    assert not layout.is_packed
    at = memory.read_u16(layout.device + 2)
    for i, entry in enumerate(entries):
        memory.write(layout.device + 4 + 8 * ((at + i) % layout.size), struct.pack("<II", *entry))
    memory.write_u16(layout.device + 2, at + (len(entries) if claim is None else claim) & 0xFFFF)
