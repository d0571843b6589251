"""Snapshots of which one field is wrong: an error that names it, or an object that works."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from formats import FORMATS
from nic import ALL, PACKED, RawNic, attach
from undone import NONE, payload
from virtio_device import MODERN, Echo, Guest, Later

from virtio import DeviceQueue, DriverQueue, Feature, GuestMemory, QueueLayout
from virtio.errors import MemoryFault, NegotiationError, RingError, SnapshotError
from virtio.net.device import NetDevice
from virtio.pci.bus import Bus
from virtio.pci.legacy_device import LegacyFunction

GONE, MORE = object(), object()
WRONG = [GONE, None, "x", "00", -1, 1 << 64, 1.5, [], {}, [0] * 70000]  # of another type or size
ODD = [0, 1, 2, 255, 0xFFFF, 0xFFFFFFFF, True]  # perhaps in range
PATIENT = pytest.mark.timeout(300)


def places(state: Any, depth: int, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Each field, down to a depth."""
    yield path
    children = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    for key, child in children:
        if depth:
            yield from places(child, depth - 1, (*path, key))


def changed(state: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The state with one field replaced, removed (GONE), or given one neighbour or entry more (MORE)."""
    state = copy.deepcopy(state)
    if not path:
        return {} if value is GONE else value
    parent = state
    for key in path[:-1]:
        parent = parent[key]
    if value is GONE:
        del parent[path[-1]]
    elif value is MORE:
        if isinstance(parent[path[-1]], dict):
            parent[path[-1]]["unknown"] = 1
        elif isinstance(parent[path[-1]], list):
            parent[path[-1]] += parent[path[-1]][:1] or [0]
    else:
        parent[path[-1]] = value
    return state


def named(path: tuple[Any, ...]) -> str:
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def attempts(state: Any, depth: int) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """(path, value, state with it), for each field and value."""
    for path in places(state, depth):
        for value in [*WRONG, *ODD, MORE]:
            if value is not MORE or path:
                yield path, value, changed(state, path, value)


CONTRADICTIONS = ("has ", "reach ", "is of a queue with another", "is not possible")


def related(field: str, error: SnapshotError) -> bool:
    """Say whether an error names the field, one that holds it or that it holds, or one that contradicts it."""
    a, b = field, error.field
    return a.startswith(b) or b.startswith(a) or error.problem.startswith(CONTRADICTIONS)


def tried(state: Any, restore: Callable[[Any], Any], works: Callable[[Any], None], depth: int = 100) -> None:
    """Each malformed state is refused by the name of its field, or restored to something that works."""
    state = json.loads(json.dumps(state))
    works(restore(state))  # as it is, it is restored
    refused = 0
    for path, value, wrong in attempts(state, depth):
        if wrong == state:
            continue
        try:
            found = restore(wrong)
        except SnapshotError as error:
            refused += 1
            assert str(error).startswith("state")
            typed = value is None or isinstance(value, (str, float)) or value in (GONE, -1, 1 << 64)
            if typed or isinstance(error, (MemoryFault, NegotiationError)):
                assert related(named(path), error), f"{named(path)} = {value!r}: {error}"
        else:
            works(found)
    assert refused > 50


# ---- queues ----


def pair(packed: bool, more: int) -> tuple[DriverQueue, DeviceQueue, GuestMemory]:
    memory = GuestMemory.allocate(1 << 16)
    features = MODERN | more | (Feature.RING_PACKED if packed else 0)
    layout = (QueueLayout.packed if packed else QueueLayout.split)(8, 0)
    driver = DriverQueue(memory, layout, features=features, indirect=0x8000, max_indirect=4)
    return driver, DeviceQueue(memory, layout, features=features), memory


RINGS = pytest.mark.parametrize("more", [0, Feature.IN_ORDER], ids=["any order", "in order"])


def in_flight(packed: bool, more: int) -> tuple[DriverQueue, DeviceQueue, GuestMemory]:
    driver, device, memory = pair(packed, more)
    for _ in range(2):
        for i in range(5):
            driver.enqueue([(0x4000 + 64 * i, 8)], [(0x5000, 16)] if i != 1 else [], cookie=i)
        device.pop_burst(3)
        for chain in device.outstanding[:2]:
            device.add_used(chain)
        driver.dequeue_burst()
        if len(device.outstanding) + 5 > 8 or driver.nfree < 5:
            break
    return driver, device, memory


@PATIENT
@RINGS
@FORMATS
def test_a_device_queue(packed: bool, more: int) -> None:
    _, device, memory = in_flight(packed, more)

    def works(queue: DeviceQueue) -> None:
        with suppress(RingError):
            for chain in [*queue.outstanding, *queue.pop_burst()]:
                queue.add_used(chain)
        queue.needs_notification()
        queue.enable_notification()
        queue.reset()

    ring = memory.read(0, 1 << 12)
    tried(device.state(), lambda state: (memory.write(0, ring), DeviceQueue.restore(memory, state))[1], works)


@PATIENT
@RINGS
@FORMATS
def test_a_driver_queue(packed: bool, more: int) -> None:
    driver, _, memory = in_flight(packed, more)

    def works(queue: DriverQueue) -> None:
        with suppress(RingError):
            while queue.nfree > 2:
                queue.enqueue([(0x4000, 8)], [(0x5000, 16)])
            queue.notify()
            queue.dequeue_burst()
        queue.enable_intr()
        queue.drain()

    ring = memory.read(0, 1 << 12)
    tried(driver.state(), lambda state: (memory.write(0, ring), DriverQueue.restore(memory, state))[1], works)


# ---- devices ----


@PATIENT
@FORMATS
def test_a_device(packed: bool) -> None:
    guest = Guest(Later(config=b"abc")).up(MODERN | (Feature.RING_PACKED if packed else 0))
    guest.send(b"a")
    other = Guest(Later(config=b"abc"))
    other.memory.write(0, guest.memory.read(0, 1 << 20))

    def works(device: Later) -> None:
        for index in range(2):
            device.kick(index)
        device.read_config(0, 3)
        device.write_config(0, b"x")
        device.snapshot()
        device.write_status(0)
        assert device.status == 0
        device.told.clear()

    tried(guest.device.snapshot(), lambda state: (other.device.restore(state, other.memory), other.device)[1], works)
    assert other.device.status == 0
    assert Guest(Echo()).up().ask(b"usable") == b"USABLE"


@PATIENT
@FORMATS
def test_a_network_device(packed: bool) -> None:
    device = NetDevice(mac="02:00:00:00:00:01", queue_size=8)
    nic = attach(device, ALL if packed else ALL & ~PACKED)
    assert nic.control(0, 0, b"\0") == 0
    assert nic.control(1, 0, b"\1\0\0\0" + bytes(6) + b"\1\0\0\0" + b"\1" * 6) == 0
    nic.post(3)
    nic.send([(NONE, payload(60))] * 3)
    state = device.snapshot()
    other = NetDevice(queue_size=8)
    ring = nic.memory.read(nic.memory.regions[0].gpa, 1 << 16)
    RawNic(other, memory=nic.memory)

    def restore(state: Any) -> NetDevice:
        nic.memory.write(nic.memory.regions[0].gpa, ring)
        other.restore(state, nic.memory)
        return other

    def works(device: NetDevice) -> None:
        device.poll()
        for index in range(3):
            device.kick(index)
        device.statistics()
        device.snapshot()
        device.write_status(0)

    tried(state, restore, works)


# ---- PCI ----


def writes(read: Callable[[int, int], int], write: Callable[[int, int, int], None], end: int) -> None:
    """Read each register, write it again as it is, and then all ones."""
    for offset in range(0, end, 2):
        write(offset, 2, read(offset, 2))
    for offset in range(0, end, 4):
        write(offset, 4, 0xFFFFFFFF)


def used(function: LegacyFunction) -> None:
    """What a guest may do with a function: anything."""
    writes(function.config_read, function.config_write, 256)
    writes(function.memory_read, function.memory_write, 4096)
    for index in range(3):
        function.write(0x0E, 2, index)
        writes(function.read, function.write, 0x20)
    function.snapshot()
    function.reset()


def live_function(vectors: int) -> LegacyFunction:
    memory = GuestMemory.allocate(1 << 20)
    function = LegacyFunction(Echo(config=b"abcd"), memory, vectors=vectors)
    function.config_write(4, 2, 7)
    function.write(0x12, 1, 3)
    function.write(0x08, 4, 1)
    function.write(0x12, 1, 7)
    if vectors:
        function.memory_write(0, 4, 0xFEE00000)
    return function


@PATIENT
@pytest.mark.parametrize("vectors", [0, 3])
def test_a_function_of_legacy_pci(vectors: int) -> None:
    function = live_function(vectors)
    state = function.snapshot()
    tried(state, lambda state: (function.restore(state), function)[1], used)
    with pytest.raises(SnapshotError, match=r"device\.status"):
        function.restore(changed(state, ("device", "status"), 256))
    assert function.device.status == 0 and function.config.command == 0  # it is reset


@PATIENT
def test_a_bus() -> None:
    bus = Bus()
    for slot in (1, 4):
        bus.add(live_function(2), slot)

    def works(bus: Bus) -> None:
        bus.io_write(0xCF8, 4, 0xFFFFFFFF)
        bus.io_read(0xCFC, 4)
        for function in bus.functions.values():
            assert isinstance(function, LegacyFunction)
            used(function)
        bus.reset()

    # a function's own fields have a test of their own
    tried(bus.snapshot(), lambda state: (bus.restore(state), bus)[1], works, depth=3)


# ---- what was another error once, and still is ----


def outside(field: str, gpa: int) -> Any:
    return pytest.raises(MemoryFault, match=rf"^state: {re.escape(field)} is outside of .*{gpa:#x}")


@FORMATS
def test_what_lies_outside_of_memory_is_named(packed: bool) -> None:
    driver, device, memory = in_flight(packed, 0)
    state = device.state()
    state["outstanding"][0]["readable"].append([1 << 20, 8])
    with outside("outstanding[0].readable[1]", 1 << 20) as caught:
        DeviceQueue.restore(memory, state)
    assert isinstance(caught.value, SnapshotError) and (caught.value.gpa, caught.value.length) == (1 << 20, 8)
    for end, kind in ((driver, DriverQueue), (device, DeviceQueue)):
        state = end.state()
        state["layout"]["desc"] = 1 << 20
        with outside("layout", 1 << 20) as caught:
            kind.restore(memory, state)
        assert isinstance(caught.value, SnapshotError)
    with outside("indirect", 1 << 20) as caught:
        DriverQueue.restore(memory, driver.state() | {"indirect": 1 << 20})
    assert isinstance(caught.value, SnapshotError)


def test_a_ring_in_memory_that_is_not_aligned_is_named() -> None:
    _, device, _ = pair(False, 0)
    odd = GuestMemory([(0, memoryview(bytearray((1 << 16) + 1))[1:])])
    with pytest.raises(SnapshotError, match=r"^state: layout is not possible: .* aligned"):
        DeviceQueue.restore(odd, device.state())


def test_features_that_a_device_does_not_offer_are_named() -> None:
    guest = Guest(Echo()).up()
    state = guest.device.snapshot()
    with pytest.raises(SnapshotError, match=r"^state: negotiated has what this device does not offer") as caught:
        Guest(Echo(withhold="EVENT_IDX")).device.restore(state, guest.memory)
    assert isinstance(caught.value, NegotiationError) and caught.value.rejected == ("EVENT_IDX",)


def test_what_a_subclass_refuses_is_named() -> None:
    class Picky(Echo):
        def load(self, state: Any) -> None:
            raise ValueError("for a test")

    guest = Guest(Echo()).up()
    with pytest.raises(SnapshotError, match=r"^state: own is malformed: ValueError: for a test"):
        Guest(Picky()).device.restore(guest.device.snapshot(), guest.memory)
