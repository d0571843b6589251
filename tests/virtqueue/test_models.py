"""The models against each other: an oracle must first agree with itself."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product

import pytest
from formats import FORMATS
from models import packed as packed_model
from models import split as split_model
from models.chain import ModelChain, Piece, Ram

DATA, TABLES, ROOM = 0x8000, 0xC000, 0x20000


@dataclass(frozen=True)
class Area:
    size: int
    desc: int = 0x1000
    driver: int = 0x3000
    device: int = 0x4000


def make(packed: bool, area: Area, event_idx: bool, in_order: bool, start: int):
    mem = Ram(ROOM)
    if packed:
        packed_model.lay_out(mem, area, start)
        ends = (packed_model.PackedDriver, packed_model.PackedDevice)
    else:
        split_model.lay_out(mem, area, start)
        ends = (split_model.SplitDriver, split_model.SplitDevice)
    return mem, *(end(mem, area, event_idx=event_idx, in_order=in_order, start=start) for end in ends)


@pytest.mark.parametrize(("packed", "event_idx", "in_order"), list(product((False, True), repeat=3)))
@pytest.mark.parametrize("seed", range(6))
def test_models_agree(packed: bool, event_idx: bool, in_order: bool, seed: int) -> None:
    """Random traffic: what is popped is what was added, what is taken is what was used, and no wake-up is lost."""
    rnd = random.Random(seed)
    area = Area(rnd.choice((1, 3, 7, 33)) if packed else rnd.choice((1, 2, 8, 32)))
    _, driver, device = make(packed, area, event_idx, in_order, rnd.choice((0, 0xFFF9)))
    added: list[tuple[int, list[Piece]]] = []
    popped: list[tuple[int, ModelChain]] = []
    used: list[tuple[int, int]] = []
    driver_sleeps, device_sleeps, serial, taken = False, False, 0, 0
    for step in range(600):
        wind_down = step >= 500
        if not driver_sleeps and not wind_down and driver.nfree:
            serial += 1
            count = rnd.randint(1, min(4, area.size))
            split_at = rnd.randint(0, count)
            pieces = [Piece(DATA + 16 * k, rnd.randint(1, 16), k >= split_at) for k in range(count)]
            table, direct = None, 0
            if rnd.random() < 0.5 or count > driver.nfree:
                table = TABLES + serial % 64 * 64
                direct = 0 if packed else rnd.randint(0, min(count - 1, driver.nfree - 1))
            driver.add(pieces, serial, table, direct)
            added.append((serial, pieces))
        if not driver_sleeps and rnd.random() < 0.5 and driver.kick():
            device_sleeps = False
        if not device_sleeps:
            while rnd.random() < 0.7 and (chain := device.pop()):
                want, pieces = added.pop(0)
                assert chain.pieces == pieces
                popped.append((want, chain))
            count = rnd.randint(0, len(popped))
            if not in_order:
                rnd.shuffle(popped)
            done = [
                (chain, chain.writable if k + 1 < count and in_order else rnd.randint(0, chain.writable))
                for k, (_, chain) in enumerate(popped[:count])
            ]
            device.use(*done)
            used += [(want, written) for (want, _), (_, written) in zip(popped, done, strict=False)]
            del popped[:count]
            if device.call():
                driver_sleeps = False
            if not popped and not device.arm():
                device_sleeps = True
        if not driver_sleeps:
            while got := driver.take():
                assert got == used.pop(0)
                taken += 1
            if driver.kick():
                device_sleeps = False
            outstanding = area.size - driver.nfree if packed else len(driver.out)
            driver_sleeps = not driver.arm(rnd.choice((0, outstanding // 2))) and outstanding > 0
    assert taken == serial and not added and not popped and not used
    assert driver.nfree == area.size


@FORMATS
def test_model_refuses_a_used_id_that_is_not_outstanding(packed: bool) -> None:
    """The oracle is strict: it must not let a wrong peer pass."""
    _, driver, device = make(packed, Area(4), False, False, 0)
    driver.add([Piece(DATA, 4, True)], "a")
    chain = device.pop()
    assert chain is not None
    chain.head ^= 1
    device.use((chain, 0))
    with pytest.raises(AssertionError, match="not outstanding"):
        driver.take()


@FORMATS
def test_model_refuses_a_chain_with_readable_after_writable(packed: bool) -> None:
    _, driver, device = make(packed, Area(4), False, False, 0)
    driver.add([Piece(DATA, 4, True), Piece(DATA + 4, 4)], "a")
    with pytest.raises(AssertionError, match="readable after writable"):
        device.pop()
