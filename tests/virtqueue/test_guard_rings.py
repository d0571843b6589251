"""No end of a ring touches a byte beyond its areas: each area, table and buffer ends at, or begins on, a guard page.

A used ring ends two bytes before the page, which its alignment takes.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Callable
from contextlib import suppress

import pytest
from guardpages import Children, GuestAreas, at

from bench.kernels.ringbench import cycle
from virtio import DeviceQueue, DriverQueue, Feature, Postpone, VirtioError
from virtio.virtqueue.inflight import Inflight

ENDS = {"ending": True, "beginning": False}
RINGS = [(False, 1), (False, 2), (False, 4), (False, 256), (True, 1), (True, 2), (True, 3), (True, 7), (True, 256)]
FEATURES = {
    "none": 0,
    "event index": Feature.EVENT_IDX,
    "in order": Feature.IN_ORDER,
    "tables": Feature.INDIRECT_DESC,
    "all": Feature.EVENT_IDX | Feature.IN_ORDER | Feature.INDIRECT_DESC | Feature.NOTIFY_ON_EMPTY,
}
ENTRIES = 5  # of a table
NEXT, WRITE, INDIRECT, AVAIL = 1, 2, 4, 1 << 7


class Areas(GuestAreas):
    """A ring's areas, its tables, and buffers of 1 to 16 bytes, all apart."""

    def __init__(self, packed: bool, size: int, last: bool) -> None:
        super().__init__()
        self.size = size
        self.layout = self.ring(packed, size, last)
        self.tables = self.area(16 * ENTRIES * size, last, 16)
        self.buffers = [(self.area(n, last), n) for n in range(1, 17)]

    def ends(self, features: int) -> tuple[DriverQueue, DeviceQueue]:
        tables = {"indirect": self.tables, "max_indirect": ENTRIES} if features & Feature.INDIRECT_DESC else {}
        features |= Feature.VERSION_1 | (Feature.RING_PACKED if self.layout.is_packed else 0)
        driver = DriverQueue(self.memory, self.layout, features=features, **tables)
        return driver, DeviceQueue(self.memory, self.layout, features=features)


def serve(driver: DriverQueue, device: DeviceQueue, burst: bool) -> int:
    """One turn of the device end and of the driver's; return how many chains came back."""
    device.enable_notification()
    assert device.available
    chains = device.pop_burst(64) if burst else [chain for chain in [device.pop()] if chain]
    if len(chains) > 1:
        device.unpop(chains.pop())
    for chain in chains:
        assert len(chain.read()) == chain.readable_length
        assert chain.write(bytes(chain.writable_length)) == chain.writable_length
    if burst:
        device.add_used_burst(chains)
    else:
        for chain in chains:
            device.add_used(chain)
    device.disable_notification()
    device.needs_notification()
    driver.postpone_intr(Postpone.LONG)
    driver.enable_intr()
    assert driver.nused or driver.layout.is_packed
    back = driver.dequeue_burst(64) if burst else [one for one in [driver.dequeue()] if one]
    driver.disable_intr()
    return len(back)


def chains_of(areas: Areas, turn: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The pieces of a chain: readable and writable ones, as many as the ring or a table takes."""
    most = min(areas.size, ENTRIES)
    pieces = [areas.buffers[(turn + i) % len(areas.buffers)] for i in range(1 + turn % most)]
    split = turn // 3 % (len(pieces) + 1)
    return pieces[:split], pieces[split:]


def traffic(packed: bool, size: int, features: str, end: str, log: bool, burst: bool) -> None:
    """Some laps of chains of all shapes; now and then one end goes on from a snapshot, or is reset."""
    areas = Areas(packed, size, ENDS[end])
    driver, device = areas.ends(FEATURES[features])
    device.far = burst
    if log:
        areas.memory.start_log()
    done = turn = 0
    while done < 3 * size + 5:
        while driver.nfree >= min(size, ENTRIES):
            readable, writable = chains_of(areas, turn)
            at(turn, readable, writable)
            if burst:
                assert driver.enqueue_burst([(readable, writable, turn)]) == 1
            else:
                driver.enqueue(readable, writable, turn)
            turn += 1
        driver.notify()
        driver.notification_data()
        done += serve(driver, device, burst)
        assert driver.dump() and device.dump()
    outstanding = driver.state()["outstanding"]
    driver = DriverQueue.restore(areas.memory, json.loads(json.dumps(driver.state())), {x[0]: x for x in outstanding})
    device = DeviceQueue.restore(areas.memory, json.loads(json.dumps(device.state())))
    device.add_used_burst(device.outstanding)
    driver.dequeue_burst()
    driver.drain()
    driver.reset()
    device.reset()
    driver.enqueue([areas.buffers[0]])
    assert serve(driver, device, burst) == 1


@pytest.mark.parametrize("end", list(ENDS))
@pytest.mark.parametrize("features", list(FEATURES))
@pytest.mark.parametrize(("packed", "size"), RINGS)
def test_both_ends(packed: bool, size: int, features: str, end: str, children: Callable[[str], Children]) -> None:
    children("scalar").run("all_traffic", packed, size, features, end)


def all_traffic(packed: bool, size: int, features: str, end: str) -> None:
    for log, burst in itertools.product((False, True), repeat=2):
        traffic(packed, size, features, end, log, burst)


# ---- the loops in C, with bursts as large as the ring ----


def bursts(packed: bool, size: int, end: str) -> None:
    few = min(size, 3)
    for features, pieces in ((0, 1), (0, few), (int(Feature.IN_ORDER), 1), (int(Feature.INDIRECT_DESC), few)):
        whole = size if features & Feature.INDIRECT_DESC else size // pieces
        areas = Areas(packed, size, ENDS[end])
        for batch in {1, max(1, whole // 2), whole}:
            at(features, pieces, batch)
            buffers = areas.area(2048 * (batch * pieces - 1) + 16, ENDS[end])
            cycle(*areas.ends(features), batch, 4 * size, buffers=buffers, length=16, pieces=pieces)


@pytest.mark.parametrize("end", list(ENDS))
@pytest.mark.parametrize(("packed", "size"), RINGS)
def test_bursts(packed: bool, size: int, end: str, children: Callable[[str], Children]) -> None:
    children("scalar").run("bursts", packed, size, end)


# ---- a hostile driver, a hostile device ----


class Raw(Areas):
    """The same, written by hand."""

    def __init__(self, packed: bool, size: int, last: bool) -> None:
        super().__init__(packed, size, last)
        self.packed = packed
        self.driver, device = self.ends(Feature.INDIRECT_DESC | Feature.EVENT_IDX)
        self.device = DeviceQueue(self.memory, self.layout, features=device.features, max_chain=64)

    def put(self, where: int, addr: int, length: int, flags: int, link: int = 0) -> None:
        fields = (addr, length, link, flags) if self.packed else (addr, length, flags, link)
        self.memory.write(where, struct.pack("<QIHH", *fields))

    def fresh(self) -> None:
        """Both ends start again, the ring is zero."""
        self.driver.drain()
        self.driver.reset()
        self.device.reset()

    def desc(self, i: int, addr: int, length: int, flags: int = 0, link: int = 0) -> None:
        self.put(self.layout.desc + 16 * i, addr, length, flags | (AVAIL if self.packed else 0), link)

    def publish(self, head: int = 0) -> None:
        if not self.packed:
            self.memory.write_u16(self.layout.driver + 4, head)
            self.memory.write_u16(self.layout.driver + 2, 1)

    def pop(self) -> bool:
        """Whether there is a chain, and it is sound."""
        try:
            chain = self.device.pop()
        except VirtioError:
            return False
        assert chain and chain.read()
        self.device.add_used(chain)
        return True


# kind: whether it is sound in a split ring, where links say where the chain ends; in a packed one its length does
TABLES = {
    "whole": (True, True),
    "chained to the last": (True, True),
    "longer than its memory": (True, False),
    "linked behind": (False, True),
    "longer than its memory, linked behind": (False, False),
    "pieces longer than their memory": (False, False),
}


def tables(packed: bool, size: int, end: str) -> None:
    """Indirect tables of each length, each in memory that just takes it: sound ones, and such as go on behind it."""
    raw = Raw(packed, size, ENDS[end])
    for entries in range(1, 40):
        table = raw.area(16 * entries, ENDS[end], 16)
        for kind, sound in TABLES.items():
            at(entries, kind)
            raw.fresh()
            for i in range(entries):
                addr, length = raw.buffers[i % 16]
                more = NEXT if "linked behind" in kind or i < entries - 1 else 0
                raw.put(table + 16 * i, addr, length + kind.startswith("pieces"), more, 0 if packed else i + 1)
            if kind.startswith("chained") and not packed and entries > 1:
                raw.put(table, *raw.buffers[0], NEXT, entries - 1)
            raw.desc(0, table, 16 * (entries + kind.startswith("longer")), INDIRECT)
            raw.publish()
            assert raw.pop() is sound[packed]


def indices(packed: bool, size: int, end: str) -> None:
    """Heads, links and used ids of every value near the ring's end, and far from it."""
    raw = Raw(packed, size, ENDS[end])
    for value in {0, 1, size - 1, size, size + 1, 2 * size, 0x7FFF, 0x8000, 0xFFFF}:
        for what in ("head", "link", "list", "used", "index"):
            at(value, what)
            raw.fresh()
            if what == "head":
                raw.desc(0, *raw.buffers[0], link=value)
                raw.publish(value)
            elif what == "link":
                raw.desc(0, *raw.buffers[0], NEXT, value)
                raw.publish()
            elif what == "list":
                for i in range(size):
                    raw.desc(i, *raw.buffers[i % 16], NEXT, i + 1)
                raw.publish()
            else:
                raw.driver.enqueue([raw.buffers[1]])
                if packed:
                    raw.memory.write(raw.layout.desc + 8, struct.pack("<IHH", 0, value, AVAIL | AVAIL << 8))
                else:
                    raw.memory.write(raw.layout.device + 4, struct.pack("<II", value, 0))
                    raw.memory.write_u16(raw.layout.device + 2, value if what == "index" else 1)
            with suppress(VirtioError):
                raw.device.pop_burst()
            with suppress(VirtioError):
                raw.driver.dequeue_burst()
            assert raw.driver.dump() and raw.device.dump()


@pytest.mark.parametrize("end", list(ENDS))
@pytest.mark.parametrize(("packed", "size"), RINGS)
@pytest.mark.parametrize("what", ["tables", "indices"])
def test_a_hostile_peer(what: str, packed: bool, size: int, end: str, children: Callable[[str], Children]) -> None:
    children("scalar").run(what, packed, size, end)


# ---- chains in flight ----


def lives(packed: bool, size: int, end: str) -> None:
    """An inflight region that just fits, of a queue that is popped, used and taken over by the next backend."""
    entries = size
    while Inflight.size(entries + 1, packed) == Inflight.size(size, packed):
        entries += 1  # its last one is at its end
    for features, count in itertools.product((0, int(Feature.INDIRECT_DESC), int(Feature.IN_ORDER)), {size, entries}):
        areas = Areas(packed, size, ENDS[end])
        kept = areas.area(Inflight.size(size, packed), ENDS[end], 64)
        (region,) = [region for region in areas.memory.regions if region.gpa == kept]
        driver, device = areas.ends(features)
        device.track(Inflight(region, 0, count))
        done = turn = 0
        while done < 3 * size + 5:
            while driver.nfree >= min(size, ENTRIES):
                readable, writable = chains_of(areas, turn)
                at(features, count, turn)
                driver.enqueue(readable, writable, turn)
                turn += 1
            chains = device.pop_burst(size)
            if turn % 2:  # the process ends with all that it has, and the next one begins
                device = DeviceQueue(areas.memory, areas.layout, features=device.features)
                if not packed:
                    used = areas.memory.read_u16(areas.layout.device + 2)
                    where = {"next_avail": used, "next_used": used}
                    device = DeviceQueue.restore(areas.memory, device.state() | where)
                device.track(Inflight(region, 0, count))
                before, chains = chains, device.pop_burst(size)
                assert len(chains) == len(before)
            device.add_used_burst(chains)
            done += len(driver.dequeue_burst(size))


@pytest.mark.parametrize("end", list(ENDS))
@pytest.mark.parametrize(("packed", "size"), RINGS)
def test_chains_in_flight(packed: bool, size: int, end: str, children: Callable[[str], Children]) -> None:
    children("scalar").run("lives", packed, size, end)
