"""Killed after any one store: no chain is lost, and none is used twice, whatever was being done at that moment."""

from __future__ import annotations

import random

import pytest
from formats import FORMATS
from stepped import GPA, RING, Stepped

from virtio import DriverQueue, Feature

SLOT = 64  # bytes of a buffer
ROUNDS = 6


class Guest:
    """The driver: numbers its chains, and knows which are out."""

    def __init__(self, world: Stepped, choose: random.Random) -> None:
        self.world, self.choose = world, choose
        self.queue = DriverQueue(world.memory, world.layout, features=world.features)
        self.sent = 0
        self.out: dict[int, int] = {}  # number: head

    def fill(self) -> None:
        """Make chains available until there is no room, of one to three descriptors, read or written."""
        while self.queue.nfree >= (pieces := self.choose.randint(1, min(3, self.world.layout.size))):
            at = GPA + RING + 4 * SLOT * (self.sent % 64)
            self.world.memory.write_u32(at, self.sent)
            parts = [(at + SLOT * i, SLOT) for i in range(pieces)]
            writable = parts[1:] if self.choose.random() < 0.5 else []
            readable = parts[: len(parts) - len(writable)]
            self.out[self.sent] = self.queue.enqueue(readable, writable, cookie=self.sent)
            self.sent += 1

    def collect(self) -> None:
        for number, _ in self.queue.dequeue_burst():
            del self.out[number]


def outcome(world: Stepped, guest: Guest, ring: bytes, region: bytes, choose: random.Random) -> None:
    """Go on from there, and hold what the driver sees against what it has out."""
    memory, device = world.survivor(ring, region)
    driver = DriverQueue.restore(memory, guest.queue.state(), {head: number for number, head in guest.out.items()})
    seen = [cookie for cookie, _ in driver.dequeue_burst()]
    held = device.pop_burst()
    numbers = [int.from_bytes(chain.read(0, 4), "little") for chain in held]
    assert sorted(seen + numbers) == sorted(guest.out)
    assert numbers == sorted(numbers)  # in the order in which they were made available
    rest = list(zip(numbers, held, strict=True))
    if not world.features & Feature.IN_ORDER:
        choose.shuffle(rest)
    for number, chain in rest:
        device.add_used(chain)
        assert [cookie for cookie, _ in driver.dequeue_burst()] == [number]
    assert device.broken is None
    assert driver.broken is None


@FORMATS
@pytest.mark.parametrize(
    ("what", "features"), [("pop", 0), ("use", 0), ("use", Feature.IN_ORDER), ("unpop", 0)],
    ids=["pop", "use", "use in order", "unpop"],
)  # fmt: skip
def test_killed_after_any_store(packed: bool, features: int, what: str) -> None:
    choose = random.Random(f"{packed} {features} {what}")
    with Stepped(packed, 8, 11 if packed else 8, features) as world:
        guest = Guest(world, choose)
        states = held = 0

        def some(least: int, most: int) -> list[int]:
            """Chains to be used."""
            used = choose.sample(range(held), choose.randint(least, most))
            return list(range(len(used))) if features else used

        for _ in range(ROUNDS):
            for _ in range(choose.randint(2, 6)):
                guest.fill()
                held = world.order("pop", choose.randint(4, 8))
                held = world.order("use", *some(0, held - 1))
                guest.collect()
            guest.fill()
            if what == "pop":
                moments, held = world.step("pop", choose.randint(1, 8))
            elif what == "use":
                moments, held = world.step("use", *some(1, held))
            elif world.order("pop", 1) > held:
                moments, held = world.step("unpop")
            else:
                moments = []
            for ring, region in moments:
                outcome(world, guest, ring, region, choose)
            states += len(moments)
            guest.collect()
        assert states > ROUNDS
        assert guest.sent > 4 * 8  # the ring wraps
