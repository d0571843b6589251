"""A chain that was popped can be put back: the ring is then as if it had never been popped."""

from __future__ import annotations

import random

import pytest
from formats import FORMATS
from ring_ends import DATA, ends

from virtio import Feature
from virtio.errors import BadIndex, MemoryFault


@FORMATS
@pytest.mark.parametrize(
    "features", [0, Feature.IN_ORDER, Feature.INDIRECT_DESC], ids=["plain", "in order", "indirect"]
)
@pytest.mark.parametrize("size", [4, 8])
def test_popping_and_putting_back_changes_nothing(packed: bool, features: int, size: int) -> None:
    """Many laps of chains of 1 to 3 pieces: of each burst a part is put back, newest first, and comes again."""
    options = {"indirect": 0x140000, "max_indirect": 4} if features & Feature.INDIRECT_DESC else {}
    driver, device = ends(packed, size, features, **options)
    choose = random.Random(size)
    sent = back = 0
    while back < 300:
        pieces = choose.randint(1, 3)
        while driver.nfree >= pieces:
            driver.enqueue([(DATA + 64 * k, 16 + k) for k in range(pieces)], cookie=sent)
            sent += 1
        before = device.state()
        chains = device.pop_burst()
        keep = choose.randint(0, len(chains))
        heads = [chain.head for chain in chains]
        for chain in reversed(chains[keep:]):
            device.unpop(chain)
        assert device.outstanding == chains[:keep]
        if keep == 0:
            assert device.state() == before
        again = device.pop_burst()
        assert [chain.head for chain in again] == heads[keep:]
        for chain in reversed(again):
            device.unpop(chain)
        device.add_used_burst(chains[:keep])
        assert [cookie for cookie, _ in driver.dequeue_burst()] == list(range(back, back + keep))
        back += keep


@FORMATS
def test_only_the_last_one_goes_back(packed: bool) -> None:
    driver, device = ends(packed)
    for k in range(3):
        driver.enqueue([(DATA, 8 + k)])
    first, second, third = device.pop_burst()
    with pytest.raises(ValueError, match="not the last"):
        device.unpop(second)
    device.unpop(third)
    with pytest.raises(ValueError, match="not outstanding"):
        device.unpop(third)
    device.add_used(first)
    device.unpop(second)
    assert [len(chain.read()) for chain in device.pop_burst()] == [9, 10]


@FORMATS
@pytest.mark.parametrize("back", [1, 3])
def test_a_chain_that_is_put_back_behind_a_fault_is_not_lost(packed: bool, back: int) -> None:
    """The burst that finds the fault may be put back in part, since a turn is over: that part comes again."""
    driver, device = ends(packed)
    for k in range(4):
        driver.enqueue([(DATA, 8 + k)])
    driver.enqueue([(0x7_0000_0000, 8)])  # in no guest memory
    chains = device.pop_burst()
    assert [len(chain.read()) for chain in chains] == [8, 9, 10, 11]
    for chain in reversed(chains[-back:]):
        device.unpop(chain)
    assert device.enable_notification()
    again = device.pop_burst()
    assert [len(chain.read()) for chain in again] == [8, 9, 10, 11][-back:]
    with pytest.raises(MemoryFault):
        device.pop()
    device.add_used_burst([*chains[:-back], *again])
    assert len(driver.dequeue_burst()) == 4


@FORMATS
def test_a_chain_put_back_is_checked_again_on_a_broken_queue(packed: bool) -> None:
    driver, device = ends(packed)
    driver.enqueue([(DATA, 8)])
    driver.enqueue([(0x7_0000_0000, 8)])
    (chain,) = device.pop_burst()
    device.unpop(chain)
    driver.memory.write(driver.layout.desc, (0x7_0000_0000).to_bytes(8, "little"))
    with pytest.raises(MemoryFault):
        device.pop()
    assert not device.enable_notification()


def test_an_index_that_jumps_loses_nothing_that_was_announced_before() -> None:
    driver, device = ends(False)
    for k in range(4):
        driver.enqueue([(DATA, 8 + k)])
    _, second = device.pop_burst(2)  # which has seen all four
    device.unpop(second)
    driver.memory.write_u16(driver.layout.driver + 2, 1000)
    assert [len(chain.read()) for chain in device.pop_burst()] == [9, 10, 11]
    with pytest.raises(BadIndex):
        device.pop()
