"""Backends that are killed, again and again, amid what they do: each chain is answered once, by one or the next."""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path

import pytest
from inflight_backend import FLUSH, Backends
from inflight_region import Region, negotiate
from vhost_device import BUFFERS
from vhost_frontend import Frontend, layout_of
from waiting import wait_for

from virtio import Feature

KILLS = 100
SLOT = 128  # bytes of a buffer: 64 to be read, then 64 to be written
IDLE = b"\xee" * SLOT


class Guest:
    """The driver: numbers what it asks, and looks at each buffer twice: when it is answered, and before its next use.

    What a backend wrote into a chain that was answered already would show then.
    """

    def __init__(self, frontend: Frontend, packed: bool, size: int, features: int, choose: random.Random) -> None:
        self.memory, self.choose = frontend.memory, choose
        self.queue = frontend.driver(0, layout_of(0, packed, size), features)
        self.idle = deque(range(4 * size))  # buffers
        self.out: dict[int, int] = {}  # number: buffer
        self.sent = 0
        for slot in self.idle:
            self.memory.write(BUFFERS + SLOT * slot, IDLE)

    def fill(self) -> None:
        while self.queue.nfree >= 3:
            self.send(b"%d:%s" % (self.sent, b"x" * self.choose.randint(0, 40)))

    def send(self, text: bytes) -> None:
        slot = self.idle.popleft()
        at = BUFFERS + SLOT * slot
        assert self.memory.read(at, SLOT) == IDLE
        self.memory.write(at, text)
        cut = self.choose.randint(1, len(text) - 1)
        pieces = [(at, len(text))] if self.choose.random() < 0.5 else [(at, cut), (at + cut, len(text) - cut)]
        self.queue.enqueue(pieces, [(at + SLOT // 2, SLOT // 2)], cookie=self.sent)
        self.out[self.sent] = slot
        self.sent += 1

    def collect(self) -> int:
        got = self.queue.dequeue_burst()
        for number, length in got:
            slot = self.out.pop(number)
            at = BUFFERS + SLOT * slot
            text = self.memory.read(at, length)
            assert self.memory.read(at + SLOT // 2, length) == text.upper()
            assert text == FLUSH or int(text.split(b":")[0]) == number
            self.memory.write(at, IDLE)
            self.idle.append(slot)
        return len(got)


@pytest.mark.parametrize(("packed", "size"), [(False, 32), (True, 37)], ids=["split", "packed"])
def test_killed_at_any_moment(packed: bool, size: int, tmp_path: Path) -> None:
    choose = random.Random(size)
    path = tmp_path / "s"
    flight = 0
    with Backends(path) as backends:
        backends.start(0)
        frontend = Frontend(str(path))
        use = negotiate(frontend, packed, Feature.EVENT_IDX)
        guest = Guest(frontend, packed, size, use, choose)
        with Region(frontend, packed, size=64) as region:
            for kill in range(1, KILLS + 1):
                region.give(frontend)
                frontend.start(0, layout_of(0, packed, size))
                answers = choose.randint(0, 300)
                while answers > 0:
                    guest.fill()
                    frontend.kick(0)
                    answers -= guest.collect()
                guest.fill()
                frontend.kick(0)
                backends.kill()
                guest.collect()
                flight += len(region.inflight())
                backends.start(kill)
                before, frontend = frontend, Frontend(str(path), frontend)
                before.close()
                negotiate(frontend, packed, Feature.EVENT_IDX)
            region.give(frontend)
            frontend.start(0, layout_of(0, packed, size))
            wait_for(lambda: guest.collect() or guest.queue.nfree >= 3)
            guest.send(FLUSH)
            frontend.kick(0)
            wait_for(lambda: guest.collect() and not guest.out)
            assert region.inflight() == []
        frontend.close()
    assert guest.queue.broken is None
    assert guest.sent > 10 * size
    assert flight > KILLS  # some each time, as it happens
