"""No queue of a network device, or of vtnet, touches a byte beyond its ring, its buffers or its pools.

They all end at, or begin on, a guard page. Bursts are as large as the ring; what a guest sends may lie.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from formats import FORMATS
from guardframes import EVERY, cut_off, undone
from guardguest import ENDS, ETHERNET, GUESTS, HOST, OFFLOADS, TUNNELLED, Receiver, Ring, Sender
from guardpages import SIMD, Children, Guarded, at

from bench.kernels.devicebench import ScriptPort
from virtio import Feature
from virtio.constants import NetFeature as F
from virtio.net.ports import Cable, Loopback
from virtio.netdev.rxq import NetReceive
from virtio.netdev.txq import NetTransmit
from virtio.offload import NetHeader
from virtio.ports.software_offload import Executor
from virtio.vtnet.pool import Pool, pool_size
from virtio.vtnet.pump import PumpReceive, PumpTransmit
from virtio.vtnet.rxq import VtnetReceive
from virtio.vtnet.txq import VtnetTransmit

# ---- the driver's end ----


# bytes of buffers, with which those of a pool end where the pool does
MERGED, SMALL, LARGE = 128, 1920, 65664
FRAME_MAX = 65589


class Nic:
    """vtnet's two queues over a loopback; rings and pools are at guards, a pool's last buffer at its very end."""

    def __init__(self, guest: str, packed: bool, end: str, size: int = 64, more: int = 0) -> None:
        features = GUESTS[guest][0] | HOST | more
        port = Loopback()
        self.rings = [Ring(features, packed, ENDS[end], rooms=0, size=size) for _ in range(2)]
        rx, tx = self.rings
        self.large = guest not in ("plain", "checksum")
        frame_max = FRAME_MAX if self.large else SMALL
        room = MERGED if features & F.MRG_RXBUF else LARGE if self.large else SMALL
        bells = rx.bells["kick"], None
        pool = self.pool(rx, room, size)
        self.receive = VtnetReceive(rx.driver, *bells, pool, features=rx.features, frame_max=frame_max)
        pools = self.pool(tx, SMALL, max(size, 16)), self.pool(tx, LARGE, 16)
        self.transmit = VtnetTransmit(tx.driver, *bells, *pools, features=tx.features)
        self.tasks: list[NetReceive | NetTransmit] = [
            NetReceive(rx.device, port, 0, rx.features, by_hand=True, **rx.bells)
        ]
        self.tasks[0].connect()
        self.tasks.append(NetTransmit(tx.device, port, 0, tx.features, by_hand=True, **tx.bells))
        for task in self.tasks:
            task.resume()
        self.receive.fill()

    @staticmethod
    def pool(ring: Ring, room: int, count: int) -> Pool:
        return Pool(ring.memory, ring.area(pool_size(room, count), ring.last, 64), room, count)

    def poll(self) -> None:
        while sum(task.poll() for task in self.tasks):
            pass
        assert not any(ring.driver.broken or ring.device.broken for ring in self.rings)


def driver(guest: str) -> None:
    """Frames at guards are sent by vtnet, come back, and are received: copied, as views, and by a pump."""
    accepted = GUESTS[guest][1]
    guards = [Guarded(17) for _ in range(4)]
    for packed, end in itertools.product((False, True), ENDS):
        nic = Nic(guest, packed, end)
        port = ScriptPort(offloads=OFFLOADS)
        pumps = [PumpTransmit(nic.transmit, port), PumpReceive(nic.receive, port)]
        frames = [(NetHeader(), ETHERNET + bytes(n)) for n in (*range(130), 1900)]
        frames += [(NetHeader(), ETHERNET + bytes(65000))] if guest == "hash" else []
        for payload, mss in ((0, 0), (60, 0), (100, 32)):
            frames += undone(payload, mss, EVERY & ~TUNNELLED).values()
        for i, (header, frame) in enumerate(frames):
            expected = [made for _, made in Executor().execute([(header, frame)], accepted)]
            at(guest, packed, end, i, len(frame))
            views = [getattr(guard, end_of)(frame) for guard, end_of in zip(guards, ("last", "first"), strict=False)]
            assert nic.transmit.transmit(views, headers=[header] * 2) == 2
            nic.poll()
            assert nic.receive.receive(complete=False) == 2 * expected
            nic.transmit.transmit(views[:1], checksum=True, mss=header.gso_size)
            nic.poll()
            for parts in nic.receive.receive_views():
                assert parts
            port.give([(header, frame)], splits=(1, 14, 40))
            for pump in pumps:
                pump.resume()
            while sum(pump.poll() for pump in pumps) + sum(task.poll() for task in nic.tasks):
                pass
            for pump in pumps:
                pump.pause()
            assert [made for _, made in port.take()] == expected
        for size in range(14, 300):
            (buffer,) = nic.transmit.buffers(1, size)
            buffer[:] = bytes(size)
            nic.transmit.transmit([buffer])
            nic.poll()
            nic.transmit.reclaim()
            assert nic.receive.receive() == [bytes(size)]


@pytest.mark.parametrize("simd", SIMD)
@pytest.mark.parametrize("guest", [guest for guest in GUESTS if guest != "tunnels"])
def test_vtnet_both_ways(guest: str, simd: str, children: Callable[[str], Children]) -> None:
    children(simd).run("driver", guest)


RINGS = [(False, 1), (False, 2), (False, 256), (True, 1), (True, 2), (True, 3), (True, 256)]


def laps(packed: bool, size: int, end: str) -> None:
    """Bursts as large as the ring, laps of it: a guest to another, and vtnet to itself."""
    for in_order, ahead in itertools.product((0, int(Feature.IN_ORDER)), (False, True)):
        a, b = Cable()
        sender = Sender(a, in_order, packed, ENDS[end], size)
        receiver = Receiver(b, in_order, packed, ENDS[end], size)
        nic = Nic("plain", packed, end, size, in_order | int(Feature.INDIRECT_DESC))
        for queue in (sender.device, receiver.device, *(ring.device for ring in nic.rings)):
            queue.far = ahead
        for lap, count in itertools.product(range(3), {1, size - 1 or 1, size}):
            at(in_order, ahead, lap, count)
            frames = [ETHERNET + bytes([i & 0xFF]) * 46 for i in range(count)]
            for some in (frames[i : i + 12] for i in range(0, count, 12)):
                for frame in some:  # no more than there are rooms
                    receiver.post(len(frame), "one")
                    sender.give(NetHeader(), frame)
                sender.poll()
                assert receiver.take() == some
            assert nic.transmit.transmit(frames) == count
            nic.poll()
            nic.transmit.reclaim()
            assert nic.receive.receive(256) == frames


@pytest.mark.parametrize("end", list(ENDS))
@pytest.mark.parametrize(("packed", "size"), RINGS)
def test_bursts_as_large_as_the_ring(packed: bool, size: int, end: str, children: Callable[[str], Children]) -> None:
    children("scalar").run("laps", packed, size, end)


# ---- what a hostile guest sends ----


def hostile(packed: bool) -> None:
    """Headers that lie about frames cut off anywhere, to ports that take everything undone, something and nothing."""
    headers = [header for header, _ in undone(100, 32).values()]
    lies = [NetHeader(flags=1, csum_start=start, csum_offset=offset) for start in (0, 33, 60) for offset in (0, 16)]
    for offloads, end in itertools.product((0, 1, OFFLOADS), ENDS):
        sender = Sender(ScriptPort(offloads=offloads), TUNNELLED, packed, ENDS[end])
        choices = itertools.cycle(headers + lies)
        for name, frame in cut_off():
            for n in range(2):
                header = next(choices)
                at(name, len(frame), header)
                data = header.to_bytes(sender.header) + frame
                half = len(data) // (n + 1)
                sender.give_raw(data, half)
                while sender.task.poll():
                    pass
                assert sender.device.broken is None
                sender.driver.dequeue_burst()


@pytest.mark.parametrize("simd", SIMD)
@FORMATS
def test_lying_headers(packed: bool, simd: str, children: Callable[[str], Children]) -> None:
    children(simd).run("hostile", packed)
