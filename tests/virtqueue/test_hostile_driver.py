"""A hostile driver against our device end: each rule it can break, in both formats."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable

import pytest
from formats import FORMATS
from rawring import BASE, DATA, INDIRECT, NEXT, SIZE, TABLE, TOP, WRITE, RawRing
from ring_faults import CASES, HUGE

from virtio import (
    BadDescriptor,
    BadIndex,
    ChainTooLong,
    DeviceQueue,
    Feature,
    GuestMemory,
    MemoryFault,
    QueueLayout,
    Region,
    VirtioError,
)

PARAMETERS = [
    pytest.param(packed, case, error, text, id=f"{'packed' if packed else 'split'}-{case.__name__}")
    for case, *errors, text in CASES
    for packed, error in zip((False, True), errors, strict=True)
    if error is not None
]


@pytest.mark.parametrize(("packed", "case", "error", "text"), PARAMETERS)
def test_rule_broken(packed: bool, case: Callable[[RawRing], None], error: type[VirtioError], text: str) -> None:
    """The chain before is delivered and can be finished; then the queue is broken, with the reason; others go on."""
    ring = RawRing(packed)
    device = ring.device()
    ring.desc(0, DATA, 8, WRITE, 7 if packed else 0)
    case(ring)
    ring.publish(0, 1)

    good = device.pop_burst()
    assert [chain.writable_length for chain in good] == [8]
    assert device.broken is not None
    with pytest.raises(error) as caught:
        device.pop()
    assert any(words in str(caught.value) for words in text.split("|"))
    assert type(device.broken) is error
    assert str(device.broken) == str(caught.value)
    with pytest.raises(error):  # each time
        device.pop_burst()

    good[0].write(b"finished")
    device.add_used(good[0])
    assert device.needs_notification()
    assert ring.memory.read(DATA, 8) == b"finished"
    if packed:
        assert ring.memory.read_u16(ring.layout.desc + 14) & (1 << 15 | 1 << 7) == 1 << 15 | 1 << 7
    else:
        assert ring.memory.read_u16(ring.layout.device + 2) == 1
    assert ring.neighbour_works()

    device.reset()
    assert device.broken is None


@FORMATS
def test_indirect_without_the_feature(packed: bool) -> None:
    ring = RawRing(packed, features=0)
    device = ring.device()
    ring.desc(0, TABLE, 16, INDIRECT, 0)
    ring.entry(0, DATA, 8)
    ring.publish(0)
    with pytest.raises(BadDescriptor, match="INDIRECT_DESC was not negotiated"):
        device.pop()


@FORMATS
@pytest.mark.parametrize("excess", [0, 1])
def test_four_gib_are_the_limit(packed: bool, excess: int) -> None:
    """A chain of 2^32 bytes is taken, one of a byte more is not (2.7.5)."""
    fd = os.memfd_create("sparse")  # never touched, so 4 GiB of it cost nothing
    os.ftruncate(fd, (1 << 32) + (1 << 20))
    ring = RawRing(packed)
    ring.memory = GuestMemory([Region.from_fd(BASE, fd, (1 << 32) + (1 << 20))])
    os.close(fd)
    device = ring.device()
    ring.desc(0, DATA, HUGE, NEXT, 1)
    ring.desc(1, DATA, 1 + excess, 0, 0)
    ring.publish(0)
    if excess:
        with pytest.raises(ChainTooLong, match=f"{(1 << 32) + 1} or more bytes"):
            device.pop()
    else:
        chain = device.pop()
        assert chain is not None
        assert chain.readable_length == HUGE  # counts stop there


@pytest.mark.parametrize("claimed", [SIZE + 1, 0x8000, 0xFFFF])
def test_available_index_jumps(claimed: int) -> None:
    ring = RawRing(packed=False)
    device = ring.device()
    ring.memory.write_u16(ring.layout.driver + 2, claimed)
    with pytest.raises(BadIndex, match=f"{claimed} chains") as caught:
        device.pop()
    assert (caught.value.value, caught.value.limit) == (claimed, SIZE)
    assert ring.neighbour_works()


def test_available_index_takes_in_flight_chains_into_account() -> None:
    """Eight are popped and not given back: there can be no ninth."""
    ring = RawRing(packed=False)
    device = ring.device()
    for i in range(SIZE):
        ring.desc(i, DATA, 8)
    ring.publish(*range(SIZE))
    assert len(device.pop_burst()) == SIZE
    ring.publish(0)
    with pytest.raises(BadIndex, match="9 chains"):
        device.pop()


@pytest.mark.parametrize("head", [SIZE, 0x7FFF, 0xFFFF])
def test_head_out_of_range(head: int) -> None:
    ring = RawRing(packed=False)
    device = ring.device()
    ring.publish(head)
    with pytest.raises(BadIndex, match=f"descriptor index {head} out of range") as caught:
        device.pop()
    assert (caught.value.value, caught.value.limit, caught.value.head) == (head, SIZE, head)


def test_packed_list_that_runs_around_the_ring() -> None:
    """NEXT in every descriptor: a list cannot be longer than what is free."""
    ring = RawRing(packed=True)
    device = ring.device()
    for i in range(SIZE):
        ring.desc(i, DATA, 8, NEXT, i)
    with pytest.raises((BadIndex, ChainTooLong)) as caught:
        device.pop()
    assert (caught.value.value, caught.value.limit) == (SIZE + 1, SIZE)


def test_packed_list_into_descriptors_still_out() -> None:
    ring = RawRing(packed=True)
    device = ring.device()
    for i in range(3):
        ring.desc(i, DATA, 8, 0, i)
    assert len(device.pop_burst()) == 3
    for i in range(3, SIZE):
        ring.desc(i, DATA, 8, NEXT, i)
    with pytest.raises(BadIndex, match="9 descriptors outstanding"):
        device.pop()


@pytest.mark.parametrize("flags", [0, 1 << 15, 1 << 7 | 1 << 15, 0xFF7F])
def test_packed_flags_that_are_not_available(flags: int) -> None:
    """AVAIL clear, or AVAIL and USED alike: not available, whatever else is set."""
    ring = RawRing(packed=True)
    device = ring.device()
    ring.memory.write(ring.layout.desc + 8, (8).to_bytes(4, "little") + b"\0\0" + flags.to_bytes(2, "little"))
    assert device.pop() is None
    assert device.available == 0


def test_packed_flags_that_are_unknown_are_ignored() -> None:
    """Reserved bits mean nothing: a driver of a later version may set them."""
    ring = RawRing(packed=True)
    device = ring.device()
    ring.desc(0, DATA, 8, 0x7F78, 0)
    chain = device.pop()
    assert chain is not None
    assert chain.readable_length == 8


@FORMATS
@pytest.mark.parametrize("garbage", [b"\xff" * 4, b"\xff\xff\x02\x00", b"\x34\x12\x03\x00", b"\xff\x7f\x02\x00"])
def test_event_garbage_costs_the_driver_only_its_interrupts(packed: bool, garbage: bytes) -> None:
    ring = RawRing(packed)
    device = ring.device()
    if packed:
        ring.memory.write(ring.layout.driver, garbage)
    else:
        ring.memory.write(ring.layout.driver + 4 + 2 * SIZE, garbage[:2])
    ring.desc(0, DATA, 8, 0, 0)
    ring.publish(0)
    chain = device.pop()
    assert chain is not None
    device.add_used(chain)
    assert device.needs_notification() in (True, False)
    assert device.explain_notify()
    assert device.broken is None


@FORMATS
def test_the_same_head_again(packed: bool) -> None:
    """A head made available twice is two chains of the same memory: odd, but only the driver is hurt."""
    ring = RawRing(packed)
    device = ring.device()
    ring.desc(0, DATA, 8, WRITE, 0)
    if packed:
        ring.desc(1, DATA, 8, WRITE, 0)
    ring.publish(0, 0)
    first, second = device.pop_burst()
    device.add_used_burst([first, second])
    with pytest.raises(ValueError, match="not outstanding"):
        device.add_used(first)


@FORMATS
def test_a_popped_chain_is_a_copy(packed: bool) -> None:
    """What the driver writes into its descriptors after the pop changes nothing."""
    ring = RawRing(packed)
    device = ring.device()
    ring.memory.write(DATA, b"original")
    ring.desc(0, DATA, 8, NEXT, 1)
    ring.desc(1, TABLE, 16, INDIRECT, 0)
    ring.entry(0, DATA + 64, 16, WRITE)
    ring.publish(0)
    chain = device.pop()
    assert chain is not None
    ring.memory.write(ring.layout.desc, b"\xff" * 16 * SIZE)
    ring.entry(0, TOP, HUGE, WRITE)
    assert chain.read() == b"original"
    assert (chain.readable_length, chain.writable_length) == (8, 16)
    chain.write(b"answer")
    assert ring.memory.read(DATA + 64, 6) == b"answer"


@pytest.mark.races
@FORMATS
def test_memory_that_changes_between_check_and_use(packed: bool) -> None:
    """A thread flips descriptors and table entries between good and bad while the device pops.

    Whatever it gets must lie in memory as one of the two versions: each word is fetched once.
    """
    ring = RawRing(packed)
    stop = threading.Event()
    good = [(DATA, 64, 0), (DATA + 4096, 128, WRITE)]
    bad = [(TOP - 8, HUGE, 0), ((1 << 64) - 4, 0x80000000, WRITE)]

    def flip() -> None:
        rnd = random.Random(1)
        while not stop.is_set():
            addr, length, flags = rnd.choice(good + bad)
            ring.desc(0, addr, length, flags, 0)
            addr, length, flags = rnd.choice(good + bad)
            ring.entry(0, addr, length, flags)

    thread = threading.Thread(target=flip)
    thread.start()
    seen = broken = 0
    try:
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            ring.published = 0
            ring.memory.write(ring.layout.driver, bytes(4))
            device = ring.device()
            ring.desc(1, TABLE, 16, INDIRECT, 0)
            ring.publish(0, 1)
            try:
                for chain in device.pop_burst():
                    for view in (*chain.readable, *chain.writable):
                        seen += 1
                        assert len(view) in (64, 128)  # all others do not fit in memory
                        bytes(view)
            except VirtioError:
                broken += 1
    finally:
        stop.set()
        thread.join()
    assert seen > 100
    assert broken > 100


@FORMATS
@pytest.mark.parametrize("start", range(0, 2000, 500))
def test_random_bytes_everywhere(packed: bool, start: int) -> None:
    """Rings of random bytes: chains in bounds, or a latched fault; never a crash."""
    for seed in range(start, start + 500):
        rnd = random.Random(seed)
        ring = RawRing(packed)
        device = DeviceQueue(ring.memory, ring.layout, features=ring.features, max_chain=rnd.choice((None, 1, 100)))
        for address, length in ring.layout.areas:
            ring.memory.write(address, rnd.randbytes(length))
        ring.memory.write(TABLE, rnd.randbytes(256))
        if not packed:
            ring.memory.write_u16(ring.layout.driver + 2, rnd.randrange(SIZE + 2))
        for i in range(SIZE):  # some that look right, so that it goes deeper
            if rnd.random() < 0.7:
                place = rnd.choice((DATA, TABLE, BASE, TOP - 16))
                length = rnd.choice((1, 16, 32, 64))
                ring.desc(i, place, length, rnd.randrange(8), rnd.randrange(SIZE))
        try:
            while chains := device.pop_burst():
                for chain in chains:
                    assert sum(map(len, chain.readable)) == chain.readable_length
                    assert sum(map(len, chain.writable)) == chain.writable_length
                    device.add_used(chain, chain.writable_length)
                device.needs_notification()
        except VirtioError:
            assert device.broken is not None
        device.enable_notification()
        device.dump()


def test_a_ring_whose_memory_goes_away() -> None:
    ring = RawRing(packed=False)
    device, driver = ring.device(), ring.driver()
    driver.enqueue([(DATA, 8)], cookie="kept")
    chain = device.pop()
    assert chain is not None
    ring.memory.replace([(0x900000, bytearray(4096))])
    for queue in (device, driver):
        assert isinstance(queue.broken, MemoryFault)
        assert "ring area" in str(queue.broken)
        assert queue.dump()
    device.add_used(chain)  # nowhere to go, and no crash
    with pytest.raises(MemoryFault):
        driver.enqueue([(0x900000, 8)])
    with pytest.raises(MemoryFault):
        device.reset()
    device.reset(QueueLayout.split(SIZE, 0x900000))
    assert device.broken is None
    assert Feature.EVENT_IDX in Feature(device.features)
