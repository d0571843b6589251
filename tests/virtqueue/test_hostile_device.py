"""A hostile device against our driver end: used entries that cannot be, in both formats."""

from __future__ import annotations

import random
import struct

import pytest
from formats import FORMATS
from rawring import AVAIL, BASE, DATA, SIZE, USED, RawRing

from virtio import BadDescriptor, BadIndex, DriverQueue, Feature, VirtioError

ORDER = pytest.mark.parametrize("in_order", [False, True], ids=["any-order", "in-order"])


def ready(packed: bool, in_order: bool = False, **options: object) -> tuple[RawRing, DriverQueue, list[int]]:
    """A driver with three chains out: two of 8 writable bytes, then one of two readable pieces."""
    ring = RawRing(packed, features=Feature.EVENT_IDX | (Feature.IN_ORDER if in_order else 0), **options)
    driver = ring.driver()
    heads = [driver.enqueue((), [(DATA + 64 * i, 8)], cookie=i) for i in range(2)]
    heads.append(driver.enqueue([(DATA, 4), (DATA + 4, 4)], cookie=2))
    return ring, driver, heads


def expect(ring: RawRing, driver: DriverQueue, error: type[VirtioError], text: str) -> None:
    """The fault is raised each time and stays; the neighbour works; a reset heals."""
    for _ in range(2):
        with pytest.raises(error, match=text):
            driver.dequeue()
    assert type(driver.broken) is error
    with pytest.raises(error, match=text):
        driver.enqueue([(DATA, 4)])
    assert driver.notify() is False
    assert "broken" in driver.explain_notify()
    assert "broken" in driver.dump()
    assert ring.neighbour_works()
    lost = driver.drain()
    driver.reset()
    assert driver.broken is None
    assert driver.nfree == SIZE
    assert all(cookie in (0, 1, 2) for cookie in lost)


@FORMATS
@ORDER
@pytest.mark.parametrize("ident", [SIZE, 0xFFFF])
def test_used_id_out_of_range(packed: bool, in_order: bool, ident: int) -> None:
    ring, driver, _ = ready(packed, in_order)
    ring.use(ident, 0)
    expect(ring, driver, BadIndex, f"used id {ident} out of range")


def test_used_id_of_32_bits() -> None:
    """The split ring's id is 32 bits wide: the upper half counts."""
    ring, driver, heads = ready(False)
    ring.use(0x10000 | heads[0], 0)
    expect(ring, driver, BadIndex, f"used id {0x10000 | heads[0]} out of range")


@FORMATS
@ORDER
def test_used_id_never_given_out(packed: bool, in_order: bool) -> None:
    ring, driver, _ = ready(packed, in_order)
    ring.use(SIZE - 1, 0)
    expect(ring, driver, BadIndex, f"used id {SIZE - 1} is not outstanding")


def test_used_id_inside_a_chain() -> None:
    """A descriptor that is the second of its chain is no head."""
    ring, driver, heads = ready(False)
    ring.use(heads[2] + 1, 0)
    expect(ring, driver, BadIndex, "is not outstanding")


@FORMATS
@ORDER
def test_used_id_twice(packed: bool, in_order: bool) -> None:
    ring, driver, heads = ready(packed, in_order)
    ring.use(heads[0], 8)
    ring.use(heads[0], 8, at=1)
    assert driver.dequeue_burst() == [(0, 8)]  # what was good before is delivered
    expect(ring, driver, BadIndex, f"used id {heads[0]} is not outstanding")


@FORMATS
@ORDER
@pytest.mark.parametrize("length", [9, 0xFFFFFFFF])
def test_used_length_over_the_buffers(packed: bool, in_order: bool, length: int) -> None:
    ring, driver, heads = ready(packed, in_order)
    ring.use(heads[0], length)
    with pytest.raises(BadDescriptor) as caught:
        driver.dequeue()
    assert (caught.value.value, caught.value.limit, caught.value.head) == (length, 8, heads[0])
    expect(ring, driver, BadDescriptor, f"used length {length} is more than the chain's 8 writable bytes")


@FORMATS
@ORDER
def test_used_length_of_a_chain_only_read(packed: bool, in_order: bool) -> None:
    ring, driver, heads = ready(packed, in_order)
    for at, head in enumerate(heads[:2]):
        ring.use(head, 8, at=at)
    ring.use(heads[2], 1, at=2)
    assert driver.dequeue_burst() == [(0, 8), (1, 8)]
    expect(ring, driver, BadDescriptor, "used length 1 is more than the chain's 0 writable bytes")


@FORMATS
def test_lengths_of_careless_devices_can_be_cut(packed: bool) -> None:
    ring, driver, heads = ready(packed, clamp_used_len=True)
    ring.use(heads[0], 4096)
    assert driver.dequeue() == (0, 8)
    assert driver.counters()["clamped"] == 1
    assert driver.broken is None


def test_packed_length_without_write_is_no_length() -> None:
    """VIRTIO 1.4, 2.8.7: without WRITE the field is reserved and may hold anything."""
    ring, driver, heads = ready(True)
    ring.memory.write(ring.layout.desc + 8, struct.pack("<IHH", 0xDEADBEEF, heads[0], AVAIL | USED))
    assert driver.dequeue() == (0, 0)


@pytest.mark.parametrize("claimed", [4, SIZE, 0x8000, 0xFFFF])
def test_used_index_jumps(claimed: int) -> None:
    ring, driver, heads = ready(False)
    ring.use(heads[0], 8, idx=claimed)
    with pytest.raises(BadIndex) as caught:
        driver.dequeue()
    assert (caught.value.value, caught.value.limit) == (claimed, 3)
    expect(ring, driver, BadIndex, f"used index claims {claimed} chains \\(3 outstanding\\)")


def test_in_order_entry_that_names_a_later_chain_completes_no_more_than_the_index_says() -> None:
    ring, driver, heads = ready(False, in_order=True)
    ring.use(heads[2], 0)  # all three, says the entry; one, says the index
    assert driver.dequeue_burst() == [(0, 8)]
    assert driver.broken is None
    assert driver.outstanding == 2


@pytest.mark.parametrize("flags", [0, AVAIL, USED, 0x7F7F])
def test_packed_flags_that_are_not_used(flags: int) -> None:
    ring, driver, heads = ready(True)
    ring.memory.write(ring.layout.desc + 8, struct.pack("<IHH", 8, heads[0], flags))
    if flags == 0x7F7F:  # neither AVAIL nor USED: not used either, in a lap whose counter is 1
        flags = 0
    assert driver.dequeue() is None
    assert driver.nused == 0


@FORMATS
@pytest.mark.parametrize("garbage", [b"\xff" * 4, b"\xff\xff\x02\x00", b"\x34\x12\x03\x00", b"\xff\x7f\x02\x00"])
def test_event_garbage_costs_the_device_only_its_kicks(packed: bool, garbage: bytes) -> None:
    ring, driver, _ = ready(packed)
    if packed:
        ring.memory.write(ring.layout.device, garbage)
    else:
        ring.memory.write(ring.layout.device + 4 + 8 * SIZE, garbage[:2])
    assert driver.notify() in (True, False)
    assert driver.explain_notify()
    assert driver.broken is None


@FORMATS
def test_descriptors_overwritten_by_the_device_are_not_believed(packed: bool) -> None:
    """The driver's free list and lengths are its own: a device that scribbles over the table changes nothing."""
    ring, driver, heads = ready(packed)
    if not packed:
        ring.memory.write(ring.layout.desc, b"\xff" * 16 * SIZE)
    for at, head in enumerate(heads):
        ring.use(head, 0, at=at)
    assert [cookie for cookie, _ in driver.dequeue_burst()] == [0, 1, 2]
    assert driver.nfree == SIZE
    for i in range(SIZE):
        driver.enqueue([(DATA, 4)], cookie=i)
    assert driver.full


@FORMATS
@ORDER
@pytest.mark.parametrize("start", range(0, 2000, 500))
def test_random_bytes_everywhere(packed: bool, in_order: bool, start: int) -> None:
    """Used rings of random bytes: completions of what was given out, each once, or a latched fault; never a crash."""
    for seed in range(start, start + 500):
        rnd = random.Random(seed)
        ring, driver, _ = ready(packed, in_order)
        out = {0, 1, 2}
        address, length = ring.layout.areas[0 if packed else 2]
        ring.memory.write(address, rnd.randbytes(length))
        if not packed:
            ring.memory.write_u16(ring.layout.device + 2, rnd.randrange(5))
        for at in range(4):  # some that look right, so that it goes deeper
            if rnd.random() < 0.8:
                ring.use(rnd.randrange(5), rnd.randrange(10), at=at, idx=rnd.randrange(4))
        assert driver.nused <= 3
        try:
            while got := driver.dequeue_burst():
                for cookie, written in got:
                    out.remove(cookie)
                    assert written <= 8
        except VirtioError:
            assert driver.broken is not None
        else:
            assert driver.outstanding == len(out)
        driver.enable_intr()
        driver.dump()
        driver.drain()
        driver.reset()
        assert driver.nfree == SIZE


def test_base_is_where_the_raw_ring_says() -> None:
    ring = RawRing(False)
    assert ring.layout.desc == BASE
