"""A network device that lies in every way that there is, and a driver that does not mind.

It is honest towards its second queue pair: nothing that is said there may be lost. What it does to the first ends in a
counter, or in DeviceBroken, and a reset makes it whole again.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest
from netdev import MAC, HandDevice, attached, frames_of, lie_used, raw

from virtio import GuestMemory
from virtio.direct import DirectTransport
from virtio.errors import ConfigError, DeviceBroken, VirtioError
from virtio.memory.dma import DmaPool
from virtio.net import Loopback, Port, Pump, Vtnet
from virtio.net.rarp import reverse_arp
from virtio.offload import NetHeader

HONEST = frames_of(8, 100)


class Liar(HandDevice):
    """Answers control commands as ``answer`` says: (byte, used length), or not at all."""

    def __init__(self, **options: object) -> None:
        self.answer: tuple[int, int] | None = (0, 1)
        super().__init__(pairs=2, **options)  # type: ignore[arg-type]

    def idle(self) -> None:
        queue = self.device_queue(4)
        while self.answer is not None and (chain := queue.pop()) is not None:
            chain.write(bytes([self.answer[0]]))
            queue.add_used(chain, self.answer[1])


@pytest.fixture
def pair() -> tuple[Liar, Vtnet]:
    device = Liar()
    return device, attached(device, pairs=2, idle=device.idle, timeout=0.2)


def neighbour_works(device: Liar, nic: Vtnet) -> bool:
    """Move frames both ways through the second pair."""
    sent = nic.transmit(HONEST, queue=1) == len(HONEST) and device.sent(1) == HONEST
    return sent and device.give(*HONEST, pair=1) == len(HONEST) and nic.receive(queue=1) == HONEST


def whole(device: Liar, nic: Vtnet) -> bool:
    """The same of the first."""
    sent = nic.transmit(HONEST, queue=0) == len(HONEST) and device.sent(0) == HONEST
    return sent and device.give(*HONEST, pair=0) == len(HONEST) and nic.receive(queue=0) == HONEST


# ---- rings ----


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("entries", [
    [(256, 0)], [(0xFFFFFFFF, 0)], [(0x10000, 0)], [(3, 0xFFFFFFFF)], [(3, 1 << 17)], [(3, 0), (3, 0)],
])  # fmt: skip
def test_used_entries(pair: tuple[Liar, Vtnet], index: int, entries: list[tuple[int, int]]) -> None:
    device, nic = pair
    if index:
        nic.transmit(HONEST, queue=0)
    lie_used(nic, index, *entries)
    for _ in range(3):
        assert neighbour_works(device, nic)
        with pytest.raises(DeviceBroken, match=r"used (id|length)"):
            if index:
                nic.transmit([bytes(60)] * 256, queue=0)
                nic.transmit([bytes(60)], queue=0)
            else:
                nic.receive(queue=0)
    nic.reset()
    assert whole(device, nic) and neighbour_works(device, nic)


@pytest.mark.parametrize("claim", [257, 1000, 0x8000, 0xFFFF])
def test_used_index(pair: tuple[Liar, Vtnet], claim: int) -> None:
    device, nic = pair
    lie_used(nic, 0, claim=claim)
    with pytest.raises(DeviceBroken, match=f"used index claims {claim} chains"):
        nic.receive(queue=0)
    assert neighbour_works(device, nic)
    nic.reset()
    assert whole(device, nic)


def test_a_broken_queue_does_not_stop_the_pump_of_another(pair: tuple[Liar, Vtnet]) -> None:
    device, nic = pair
    with Pump(nic, Loopback(queues=2), worker="one"):
        lie_used(nic, 0, (1000, 0))
        lie_used(nic, 1, (1000, 0))
        device.give(*HONEST, pair=1)
        queue = nic.pairs[1].receive
        while queue.statistics()["ipackets"] < len(HONEST):
            pass
        nic.reset()
        device.give(*HONEST, pair=0)
        while nic.pairs[0].receive.statistics()["ipackets"] < len(HONEST):
            pass


# ---- headers and lengths ----


def test_random_headers_and_lengths(pair: tuple[Liar, Vtnet]) -> None:
    """Whatever is in the buffers: each packet is received, or counted for one reason, and no buffer is lost."""
    device, nic = pair
    rng = random.Random(20)
    queue = nic.pairs[0].receive
    received = 0
    for _ in range(400):
        parts, used = [], []
        for _ in range(rng.choice([1, 1, 2, 5])):
            frame = rng.randbytes(rng.choice([0, 13, 14, 60, 1500]))
            count = rng.choice([1, 1, 1, 0, 2, 3, 0xFFFF])
            header = NetHeader(
                flags=rng.choice([0, 0, 1, 2, 4, 255]), gso_type=rng.choice([0, 0, 1, 3, 4, 5, 0x81, 99]),
                hdr_len=rng.choice([0, 54, 0xFFFF]), gso_size=rng.choice([0, 1, 1448]),
                csum_start=rng.choice([0, 14, 34, 60, 0xFFFF]), csum_offset=rng.choice([0, 6, 16, 0xFFFF]),
            )  # fmt: skip
            parts.append(raw(frame, count) if rng.random() < 0.3 else header.to_bytes(10) + struct.pack("<H", count)
                         + frame)  # fmt: skip
            used.append(rng.choice([0, 5, 12, 12 + len(frame), 12 + len(frame), 4108]))
        device.give_raw(*parts, used=used)
        views = rng.random() < 0.5
        received += len(nic.receive_views(queue=0) if views else nic.receive(queue=0))
        assert neighbour_works(device, nic)
    nic.receive(queue=0)
    counts = queue.statistics()
    assert received == counts["ipackets"] - counts["csum_failed"] > 0
    reasons = ("mergeable_failed", "frame_too_short", "frame_too_large", "bad_header", "csum_failed")
    assert counts["ierrors"] == sum(counts[name] for name in reasons) > 0
    assert all(counts[name] for name in reasons if name != "frame_too_large")
    assert (
        sum(value for reason, value in queue.reasons().items() if reason.name.startswith("HDR_"))
        <= counts["bad_header"] + counts["csum_failed"]
    )
    assert queue.posted == 256 and queue.pool.lent == 0
    assert whole(device, nic)


def test_random_headers_through_a_pump(pair: tuple[Liar, Vtnet]) -> None:
    device, nic = pair
    rng = random.Random(21)
    with Pump(nic, Port(), worker=None) as pump:
        for _ in range(300):
            frame = rng.randbytes(rng.choice([14, 60, 3000]))
            header = NetHeader(
                flags=rng.choice([0, 1, 2]), gso_type=rng.choice([0, 1, 3, 4, 5]), gso_size=rng.choice([1, 7, 1448]),
                hdr_len=54, csum_start=rng.choice([14, 34, 44]), csum_offset=rng.choice([6, 16]), num_buffers=1,
            )  # fmt: skip
            device.give_raw(header.to_bytes(12) + frame)
            pump.poll()
    counts = nic.pairs[0].receive.statistics()
    assert counts["ipackets"] + counts["ierrors"] == 300
    assert nic.pairs[0].receive.posted == 256


def test_a_ring_of_garbage_before_a_frame(pair: tuple[Liar, Vtnet]) -> None:
    device, nic = pair
    for views in (False, True):
        device.give_raw(*[raw(b"", 0)] * 200)
        device.give(*HONEST)
        take: Callable[..., list[object]] = nic.receive_views if views else nic.receive
        assert len(take(queue=0)) == len(HONEST)


# ---- configuration ----


@pytest.mark.parametrize("seed", range(30))
def test_random_configuration(seed: int) -> None:
    """The driver attaches, or says what is wrong; what it believes is within limits."""
    rng = random.Random(seed)
    device = Liar()
    device.config[:] = rng.randbytes(len(device.config))
    if rng.random() < 0.5:
        device.config[8:10] = struct.pack("<H", 2)
    memory = GuestMemory.allocate(256 << 20)
    nic = Vtnet(DirectTransport(device, memory), DmaPool(memory, 0, 256 << 20), pairs=2, idle=device.idle)
    try:
        nic.attach()
    except VirtioError:
        assert nic.pool.used == 0
        return
    assert 68 <= nic.mtu <= 65535 and len(nic.pairs) in (1, 2) and len(nic.mac) == 6
    assert nic.speed is None or nic.speed < 1 << 31
    announcements = [reverse_arp(nic.mac)] * nic.counters["announcements"]  # if its status asks for one
    assert nic.transmit(HONEST, queue=0) == len(HONEST) and device.sent() == announcements + HONEST
    nic.detach()
    assert nic.pool.used == 0


def test_a_configuration_that_changes_under_way(pair: tuple[Liar, Vtnet]) -> None:
    device, nic = pair
    device.config[8:10] = struct.pack("<H", 0)
    device.config[10:12] = struct.pack("<H", 1)
    device.config_changed()
    with pytest.raises(ConfigError, match="max_virtqueue_pairs is 0"):
        _ = nic.max_pairs
    nic.tick()
    assert nic.mtu == 1500 and whole(device, nic) and neighbour_works(device, nic)


def test_an_announcement_without_end(pair: tuple[Liar, Vtnet]) -> None:
    device, nic = pair
    device.config[6:8] = struct.pack("<H", 3)
    for i in range(5):
        device.config_changed()
        nic.tick()
        assert nic.counters["announcements"] == i + 1


# ---- control queue ----


@pytest.mark.parametrize(("answer", "error", "match"), [
    (None, DeviceBroken, "did not answer control command 0/0 within 0.2 s"),
    ((1, 1), ConfigError, "refused receive mode 0"),
    ((2, 1), DeviceBroken, "with 2, which is neither"),
    ((255, 1), DeviceBroken, "with 255"),
    ((0, 0), DeviceBroken, "wrote 0 bytes"),
])  # fmt: skip
def test_answers(
    pair: tuple[Liar, Vtnet], answer: tuple[int, int] | None, error: type[VirtioError], match: str
) -> None:
    device, nic = pair
    device.answer = answer
    with pytest.raises(error, match=match):
        nic.filter.promiscuous = True
    assert nic.filter.promiscuous is None
    assert neighbour_works(device, nic) and whole(device, nic)
    device.answer = (0, 1)
    nic.reset()
    nic.filter.promiscuous = True
    assert nic.filter.promiscuous and neighbour_works(device, nic)


def test_a_device_that_stops_answering_is_attached_no_more() -> None:
    device = Liar()
    device.answer = None
    memory = GuestMemory.allocate(64 << 20)
    nic = Vtnet(DirectTransport(device, memory), DmaPool(memory, 0, 64 << 20), pairs=2, idle=device.idle, timeout=0.1)
    with pytest.raises(DeviceBroken, match="did not answer control command 4/0"):
        nic.attach()
    assert nic.pool.used == 0 and nic.pairs == [] and device.status in (0, 128)
    device.answer = (0, 1)
    nic.attach()
    assert whole(device, nic) and neighbour_works(device, nic)


def test_control_ring_of_garbage(pair: tuple[Liar, Vtnet]) -> None:
    device, nic = pair
    device.answer = None
    lie_used(nic, 4, (77, 1))
    with pytest.raises(VirtioError):
        nic.filter.promiscuous = True
    assert neighbour_works(device, nic)
    device.answer = (0, 1)
    nic.reset()
    nic.filter.promiscuous = True


# ---- status ----


@pytest.mark.parametrize("status", [0, 0x40, 0xFF, 0x4F])
def test_a_status_out_of_nowhere(pair: tuple[Liar, Vtnet], status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    device, nic = pair
    device.status = status
    nic.transport.config_bell.ring()
    nic.tick()
    assert nic.counters["resets"] == 1
    assert whole(device, nic) and neighbour_works(device, nic)
    assert nic.mac == MAC
