"""DeviceQueue.track: a queue whose chains in flight are noted, and what the next queue makes of it."""

from __future__ import annotations

import json
import random
import struct

import pytest
from formats import FORMATS
from ring_ends import DATA, ends

from virtio import BadDescriptor, DeviceQueue, DriverQueue, Feature, GuestMemory, Region
from virtio.device import Device
from virtio.direct import DirectTransport
from virtio.errors import MemoryFault
from virtio.virtqueue.inflight import Inflight

SIZE = 8
ENTRIES = 11


def region_of(packed: bool) -> Region:
    return Region.allocate(0, 2 * Inflight.size(ENTRIES, packed))


def again(old: DeviceQueue, region: Region, features: int = 0, entries: int = ENTRIES) -> DeviceQueue:
    """The queue of the next process, on the same ring."""
    memory, packed = old.memory, old.packed
    queue = DeviceQueue(memory, old.layout, features=features)
    if not packed:
        used = memory.read_u16(old.layout.device + 2)
        queue = DeviceQueue.restore(memory, queue.state() | {"next_avail": used, "next_used": used})
    queue.track(Inflight(region, 0, entries))
    return queue


def world(packed: bool, features: int = 0, **options: int) -> tuple[DriverQueue, DeviceQueue, Region]:
    driver, device = ends(packed, SIZE, features, **options)
    region = region_of(packed)
    device.track(Inflight(region, 0, ENTRIES))
    return driver, device, region


def send(driver: DriverQueue, lengths: range) -> None:
    for length in lengths:
        driver.enqueue([(DATA, length)], cookie=length)


@FORMATS
def test_sizes_are_those_of_other_backends(packed: bool) -> None:
    """A header, an entry for each descriptor, in steps of 64 bytes (libvhost-user, DPDK)."""
    sizes = [Inflight.size(entries, packed) for entries in (1, 128, 32768)]
    assert sizes == ([64, 4160, 1048640] if packed else [64, 2112, 524352])


@FORMATS
@pytest.mark.parametrize("features", [0, Feature.EVENT_IDX, Feature.IN_ORDER, Feature.INDIRECT_DESC])
def test_many_lives(packed: bool, features: int) -> None:
    """Many laps; now and then a process ends with what it has, and the next has it again, in order, before all else."""
    options = {"indirect": 0x140000, "max_indirect": 4} if features & Feature.INDIRECT_DESC else {}
    driver, device, region = world(packed, features, **options)
    choose = random.Random(features)
    sent = lives = 0
    out: set[int] = set()
    while lives < 100:
        while driver.nfree >= 3:
            pieces = [(DATA + 64 * i, 16 + i) for i in range(choose.randint(1, 3))]
            driver.enqueue(pieces, [], cookie=sent)
            out.add(sent)
            sent += 1
        held = device.pop_burst(choose.randint(1, 8))
        if held and choose.random() < 0.4:
            device.unpop(held[-1])
        held = device.outstanding
        used = choose.randint(0, len(held))
        device.add_used_burst(held[:used] if features & Feature.IN_ORDER else choose.sample(held, used))
        device.needs_notification()
        got = {cookie for cookie, _ in driver.dequeue_burst()}
        assert got <= out
        out -= got
        if choose.random() < 0.5:
            lives += 1
            heads = [chain.head for chain in device.outstanding]
            device = again(device, region, features)
            assert device.inflight is not None
            assert device.inflight.waiting == len(heads)
            assert device.enable_notification() or not heads
            assert [chain.head for chain in device.pop_burst(len(heads))] == heads
            assert device.inflight.waiting == 0
    assert sent > 20 * SIZE
    assert device.broken is None and driver.broken is None
    assert len(out) == driver.outstanding


@FORMATS
def test_chains_that_come_again_may_be_put_back(packed: bool) -> None:
    driver, device, region = world(packed)
    send(driver, range(1, 5))
    device.pop_burst(3)
    device = again(device, region)
    assert device.available == 4
    chains = device.pop_burst()
    assert [len(chain.read()) for chain in chains] == [1, 2, 3, 4]
    for chain in reversed(chains[1:]):
        device.unpop(chain)
    device.add_used(chains[0])
    device = again(device, region)
    assert [len(chain.read()) for chain in device.pop_burst()] == [2, 3, 4]
    assert device.counters()["chains"] == 3
    device = again(device, region)
    assert device.inflight is not None and device.inflight.waiting == 3
    assert [cookie for cookie, _ in driver.dequeue_burst()] == [1]


@FORMATS
def test_a_snapshot_has_what_waits_too(packed: bool) -> None:
    driver, device, region = world(packed)
    send(driver, range(1, 6))
    device.add_used(device.pop_burst(4)[2])
    device = again(device, region)
    first = device.pop()
    assert first is not None and len(first.read()) == 1
    state = json.loads(json.dumps(device.state()))
    assert [piece["readable"] for piece in state["outstanding"]] == [[[DATA, n]] for n in (1, 2, 4)]
    assert device.inflight is not None and device.inflight.waiting == 2
    copy = DeviceQueue.restore(device.memory, state)
    assert copy.inflight is None
    assert [len(chain.read()) for chain in copy.outstanding] == [1, 2, 4]
    assert [len(chain.read()) for chain in copy.pop_burst()] == [5]
    assert [len(chain.read()) for chain in device.pop_burst()] == [2, 4, 5]


@FORMATS
def test_a_reset_ends_it_and_leaves_the_region(packed: bool) -> None:
    driver, device, region = world(packed)
    send(driver, range(1, 4))
    chains = device.pop_burst()
    before = bytes(region)
    device.reset()
    assert device.inflight is None
    with pytest.raises(ValueError, match="not outstanding here"):
        device.add_used(chains[0])
    device.pop_burst()
    assert bytes(region) == before


@FORMATS
def test_what_cannot_be_tracked(packed: bool) -> None:
    driver, device = ends(packed, SIZE)
    region = region_of(packed)
    for entries in (0, 32769):
        with pytest.raises(ValueError, match=rf"inflight region of {entries} descriptors \(1 to 32768\)"):
            Inflight(region, 0, entries)
    with pytest.raises(ValueError, match="offset 12, which is no multiple of 8"):
        Inflight(region, 12, ENTRIES)
    with pytest.raises(ValueError, match="does not fit into"):
        Inflight(region, region.size - 8, ENTRIES)
    with pytest.raises(ValueError, match=r"inflight region of 7 descriptors \(queue size 8\)"):
        device.track(Inflight(region, 0, 7))
    send(driver, range(1, 3))
    chain = device.pop()
    assert chain is not None
    inflight = Inflight(region, 0, ENTRIES)
    with pytest.raises(ValueError, match="chains are outstanding"):
        device.track(inflight)
    device.add_used(chain)
    device.track(inflight)
    with pytest.raises(ValueError, match="has an inflight region already"):
        device.track(Inflight(region, 0, ENTRIES))
    with pytest.raises(ValueError, match="was given to a queue already"):
        DeviceQueue(device.memory, device.layout).track(inflight)
    with pytest.raises(TypeError, match="initialised already"):
        inflight.__init__(region, 0, ENTRIES)  # type: ignore[misc]


@FORMATS
def test_a_chain_that_was_changed_meanwhile_breaks_the_queue(packed: bool) -> None:
    """What is popped again is checked again: where its descriptors are now (split), or as they were noted (packed)."""
    driver, device, region = world(packed)
    send(driver, range(1, 4))
    device.pop_burst()
    if packed:
        memoryview(region)[32 + 32 + 20 : 32 + 32 + 24] = bytes(4)  # len of the second entry
    else:
        device.memory.write_u32(device.layout.desc + 16 + 8, 0)
    device = again(device, region)
    assert [len(chain.read()) for chain in device.pop_burst()] == [1]
    with pytest.raises(BadDescriptor, match="has length 0"):
        device.pop()
    assert device.available == 0


@FORMATS
def test_ids_that_a_driver_gives_twice_cost_nobody_else_anything(packed: bool) -> None:
    """Two chains of one head or id at a time: the driver's own affair, also in the region."""
    driver, device, region = world(packed)
    send(driver, range(1, 5))
    at = device.layout.desc + 12 if packed else device.layout.driver + 4
    for slot in range(4):
        device.memory.write_u16(at + (16 if packed else 2) * slot, 3)
    first, second, *_ = device.pop_burst()
    device.add_used_burst([second, first])
    device = again(device, region)
    assert len(device.pop_burst()) == 2
    assert device.broken is None
    device.add_used_burst(device.outstanding)


def test_no_entry_is_missing_for_ids_given_twice() -> None:
    """Chains of different lengths, all of one id, used in any order: the region has just the entries that it needs."""
    choose = random.Random(1)
    _, device = ends(True, SIZE)
    region = Region.allocate(0, Inflight.size(SIZE, True))
    device.track(Inflight(region, 0, SIZE))
    slot, wrap, free = 0, 1, SIZE
    slots: dict[int, int] = {}
    for _ in range(2000):
        length = choose.randint(1, 3)
        while free >= length:
            free -= length
            for i in range(length):
                flags = (0x80 if wrap else 0x8000) | (i + 1 < length)
                at = device.layout.desc + 16 * slot
                device.memory.write(at, struct.pack("<QIHH", DATA, 16, 5, flags))
                slot += 1
                if slot == SIZE:
                    slot, wrap = 0, 1 - wrap
            length = choose.randint(1, 3)
        for chain in device.pop_burst(choose.randint(1, 4)):
            slots[id(chain)] = len(chain.readable)
        held = device.outstanding
        used = choose.sample(held, choose.randint(0, len(held)))
        device.add_used_burst(used)
        free += sum(slots[id(chain)] for chain in used)
        listed = struct.unpack_from("<H", region, 12)[0]
        count = 0
        while listed != SIZE:
            count += 1
            assert count <= SIZE
            listed = struct.unpack_from("<H", region, 32 + 32 * listed + 2)[0]
        assert count == SIZE - sum(len(chain.readable) for chain in device.outstanding)
    assert device.broken is None
    assert len(again(device, region, entries=SIZE).pop_burst()) >= len(device.outstanding)


@FORMATS
def test_a_region_of_another_time(packed: bool) -> None:
    """Not initialised, it may have anything in it: the ring's own position counts."""
    driver, device = ends(packed, SIZE)
    for _ in range(5):
        send(driver, range(1, 6))
        device.add_used_burst(device.pop_burst())
        driver.dequeue_burst()
    region = region_of(packed)
    memoryview(region)[:] = b"\xa5" * region.size
    memoryview(region)[8:10] = bytes(2)  # the version
    device.track(Inflight(region, 0, ENTRIES))
    send(driver, range(1, 4))
    device.pop_burst(2)
    device = again(device, region)
    assert [len(chain.read()) for chain in device.pop_burst()] == [1, 2, 3]
    assert bytes(region)[Inflight.size(ENTRIES, packed) :] == b"\xa5" * (region.size // 2)


class Reader(Device):
    """Reads, by the loop that most devices have."""

    device_type = 42

    def __init__(self) -> None:
        super().__init__()
        self.read: list[int] = []

    def notified(self, index: int) -> None:
        self.read += [len(chain.read()) for chain in self.chains(index)]


@FORMATS
def test_any_device_has_them_first(packed: bool) -> None:
    memory = GuestMemory.allocate(0x200000)
    device = Reader()
    DirectTransport(device, memory)
    driver, old = ends(packed, SIZE)
    region = region_of(packed)
    old.track(Inflight(region, 0, ENTRIES))
    send(driver, range(1, 6))
    old.pop_burst(3)
    bits = Feature.VERSION_1 | (Feature.RING_PACKED if packed else 0)
    device.write_status(1 | 2)
    device.driver_features(bits)
    device.write_status(device.status | 8)
    device.write_status(device.status | 4)
    device.start_queue(0, again(old, region))
    assert device.read == [1, 2, 3, 4, 5]
    assert [cookie for cookie, _ in driver.dequeue_burst()] == [1, 2, 3, 4, 5]


@FORMATS
def test_what_is_put_back_behind_a_fault_comes_again(packed: bool) -> None:
    """Chains of the backend before and of the ring, popped with a chain that breaks the queue, and put back."""
    driver, device, region = world(packed)
    send(driver, range(1, 4))
    device.pop_burst()
    send(driver, range(4, 6))
    driver.enqueue([(0x7_0000_0000, 8)])
    device = again(device, region)
    chains = device.pop_burst()
    assert [len(chain.read()) for chain in chains] == [1, 2, 3, 4, 5]
    for chain in reversed(chains[-3:]):
        device.unpop(chain)
    assert device.available
    chains[-3:] = device.pop_burst()
    assert [len(chain.read()) for chain in chains] == [1, 2, 3, 4, 5]
    assert not device.available
    assert not device.enable_notification()
    with pytest.raises(MemoryFault):
        device.pop()
    device.add_used_burst(chains)
    assert [len(driver.dequeue_burst()), len(device.outstanding)] == [5, 0]
