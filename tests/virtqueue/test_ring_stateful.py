"""Random walks of both ends over every combination of features, watched by the oracle of rings.world.

Three pairs in both formats: our driver with the model's device, the model's driver with our device, and ours with ours.
``VIRTIO_SEED=n`` repeats a run whose seed was printed; ``VIRTIO_FUZZ_SECONDS=n`` walks with new seeds for that long.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from rings.plan import MAX_PIECES, Plan
from rings.world import World

from virtio import Postpone

EXAMPLES = 150  # for each of the six pairs
STEPS = 50
FUZZ_SECONDS = float(os.environ.get("VIRTIO_FUZZ_SECONDS", "0"))

lengths = st.integers(1, 40)
hints = st.sampled_from((None, *Postpone))
limits = st.sampled_from((1, 2, 3, 7, 64, 256))
written = st.lists(st.sampled_from((0, 1, 2, 17)), min_size=1, max_size=4)


@st.composite
def shapes(draw: Callable[[Any], Any]) -> tuple[list[int], list[int], int | None]:
    """A chain: lengths of its readable and writable pieces, and what the model's driver puts into a table."""
    count = draw(st.one_of(st.integers(1, 3), st.integers(1, MAX_PIECES)))
    pieces = draw(st.lists(lengths, min_size=count, max_size=count))
    at = draw(st.integers(0, count))
    direct = draw(st.one_of(st.none(), st.integers(0, count - 1)))
    return pieces[:at], pieces[at:], direct


def plans(packed: bool) -> st.SearchStrategy[Plan]:
    flag = st.booleans()
    if packed:
        sizes: st.SearchStrategy[int] = st.integers(1, 33)
        starts = st.integers(0, 70)
    else:
        sizes = st.sampled_from((1, 2, 4, 8, 16, 32, 64))
        starts = st.one_of(st.just(0), st.integers(0xFFC0, 0xFFFF))
    indirect = st.sampled_from(((False, 0), (True, 0), (True, 2), (True, 8), (True, MAX_PIECES)))
    return st.builds(
        lambda size, start, event_idx, table, in_order, on_empty: Plan(
            packed, size, event_idx, table[0], in_order, on_empty and not packed, table[1], start
        ),
        sizes, starts, flag, indirect, flag, flag,
    )  # fmt: skip


class Walk(RuleBasedStateMachine):
    packed = our_driver = our_device = False
    world: World

    @initialize(data=st.data())
    def begin(self, data: Any) -> None:
        self.world = World(data.draw(plans(self.packed)), self.our_driver, self.our_device)

    @rule(shape=shapes())
    def add(self, shape: tuple[list[int], list[int], int | None]) -> None:
        self.world.add([self.cut(shape)])

    @rule(burst=st.lists(shapes(), min_size=2, max_size=20))
    def add_burst(self, burst: list[tuple[list[int], list[int], int | None]]) -> None:
        self.world.add([self.cut(shape) for shape in burst])

    def cut(self, shape: tuple[list[int], list[int], int | None]) -> tuple[list[int], list[int], int | None]:
        """A chain is no longer than the queue (2.7.5.3.1)."""
        size = self.world.plan.size
        readable, at_most = shape[0][:size], size - len(shape[0][:size])
        direct = None if shape[2] is None else min(shape[2], size - 1, len(readable) + len(shape[1][:at_most]) - 1)
        return readable, shape[1][:at_most], direct

    @rule()
    def kick(self) -> None:
        self.world.kick()

    @precondition(lambda self: self.world.driver_sleeps is None)
    @rule(limit=limits)
    def take(self, limit: int) -> None:
        self.world.take(limit)

    @precondition(lambda self: self.world.driver_sleeps is None)
    @rule(hint=hints)
    def driver_sleep(self, hint: Postpone | None) -> None:
        self.world.driver_sleep(hint)

    @precondition(lambda self: self.world.driver_sleeps is None)
    @rule()
    def driver_disarm(self) -> None:
        self.world.driver.disarm()

    @precondition(lambda self: not self.world.device_sleeps)
    @rule(limit=limits, written=written)
    def pop(self, limit: int, written: list[int]) -> None:
        self.world.pop(limit, written)

    @precondition(lambda self: self.world.popped)
    @rule(which=st.lists(st.integers(0, 63), min_size=1, max_size=12), burst=st.booleans())
    def use(self, which: list[int], burst: bool) -> None:
        self.world.use(which, burst)

    @rule()
    def call(self) -> None:
        self.world.call()

    @precondition(lambda self: not self.world.device_sleeps)
    @rule()
    def device_sleep(self) -> None:
        self.world.device_sleep()

    @precondition(lambda self: not self.world.device_sleeps)
    @rule()
    def device_disarm(self) -> None:
        self.world.device.disarm()

    @rule(which=st.sampled_from(("remap", "snapshot_driver", "snapshot_device", "check")))
    def disturb(self, which: str) -> None:
        getattr(self.world, which)()

    @rule(chance=st.integers(0, 9), size=st.integers(0, 6))
    def reset(self, chance: int, size: int) -> None:
        if chance == 9:
            self.world.reset(1 + size * 5 if self.packed else 1 << size)

    @invariant()
    def no_more_than_the_ring_holds(self) -> None:
        assert self.world.slots <= self.world.plan.size

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.world.settle(None if self.world.serial % 2 else Postpone.EMPTIED)
            finally:
                self.world.close()


PAIRS = [
    pytest.param(packed, driver, device, id=f"{'packed' if packed else 'split'}-{name}")
    for packed in (False, True)
    for driver, device, name in ((True, False, "our-driver"), (False, True, "our-device"), (True, True, "both-ours"))
]


def walk(packed: bool, our_driver: bool, our_device: bool, number: int | None, examples: int) -> None:
    """Run one pair's machine; without a seed the walks are the same ones each time."""
    machine = type("Walk", (Walk,), {"packed": packed, "our_driver": our_driver, "our_device": our_device})
    if number is not None:
        seed(number)(machine)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=number is None,
            database=None,
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def new_seed() -> int:
    return int(os.environ.get("VIRTIO_SEED") or random.randrange(1 << 32))


@pytest.mark.parametrize(("packed", "our_driver", "our_device"), PAIRS)
def test_walk(packed: bool, our_driver: bool, our_device: bool) -> None:
    """Every chain arrives, comes back once with the bytes and length written, and nobody sleeps through it."""
    number = None if os.environ.get("CI") == "true" and "VIRTIO_SEED" not in os.environ else new_seed()
    print(f"VIRTIO_SEED={number}")
    walk(packed, our_driver, our_device, number, EXAMPLES)


@pytest.mark.skipif(FUZZ_SECONDS <= 0, reason="set VIRTIO_FUZZ_SECONDS to walk for that long")
def test_walk_for_long() -> None:
    """The same with new seeds, one pair after the other, until the time is over."""
    begin = shown = time.monotonic()
    rounds = 0
    while time.monotonic() - begin < FUZZ_SECONDS:
        packed, our_driver, our_device = PAIRS[rounds % len(PAIRS)].values
        number = random.randrange(1 << 32)
        print(f"VIRTIO_SEED={number} {PAIRS[rounds % len(PAIRS)].id}")
        walk(bool(packed), bool(our_driver), bool(our_device), number, EXAMPLES // 4)
        rounds += 1
        if time.monotonic() - shown >= 10:
            shown = time.monotonic()
            done = rounds * EXAMPLES // 4
            print(f"fuzz: {done} walks in {shown - begin:.0f} s, nothing found", file=sys.__stderr__, flush=True)
