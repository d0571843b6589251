"""Runs of plain chains (fastpath.pxd): what a device does by them is what it does without.

While a dirty log is on a device has no runs, and every chain goes the general way (device_pop_burst). So worlds that
differ in that only must look the same to whoever is outside.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest
from formats import FORMATS
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rawring import AVAIL, NEXT, USED
from runworld import GUEST, HEADER, NEAR, ReceiveWorld, TransmitWorld, frame_of
from undone import CSUM, EVERY, sound

from bench.kernels.devicebench import ScriptPort
from virtio.constants import Feature, NetFeature
from virtio.errors import BadIndex
from virtio.netdev.rxq import NetReceive
from virtio.offload import NetHeader

F = NetFeature
EVENTS, IN_ORDER = int(Feature.EVENT_IDX), int(Feature.IN_ORDER)
ORDERS = pytest.mark.parametrize("order", [0, IN_ORDER], ids=["any", "in-order"])
LOGS = ("never", "always", "changing", "never, far")

# ---- at random ----

ring_sizes = st.sampled_from([1, 2, 4, 8, 256, 7])
# what a chain is: mostly plain, else what a run leaves to the general way
shapes = st.sampled_from(["near"] * 6 + ["far", "far", "pieces", "seam", "mixed", "written"])
faults = st.sampled_from(["zero", "wild", "head"])
sizes = st.one_of(st.integers(0, 100), st.integers(0, 3000))
sent_kinds = st.sampled_from(
    ["plain"] * 8
    + ["undone", "uncut", "fragments", "unknown flag", "bad flags", "bad checksum", "short", "largest", "too large"]
)
counts = st.one_of(st.integers(1, 3), st.integers(1, 70))
polls = st.tuples(st.just("poll"), st.one_of(st.just(-1), st.integers(0, 70)))
closes = st.tuples(st.just("close"), st.booleans())
events = st.sampled_from([0, EVENTS])


def agree(worlds: list[Any], steps: list[tuple[Any, ...]], fault: str | None) -> None:
    """Do the same to all worlds: they look the same after each step. A fault comes last, in the middle of a burst."""
    steps = [*steps, ("close", False), ("frames", "plain", 3000, 256), ("poll", -1)]
    if fault:
        around = ("give", "near", "plain", 3000, worlds[0].layout.size // 3)
        steps += [around, ("give", fault, "plain", 3000, 1), around, ("poll", -1)]
    spoilt = 0
    for step in steps:
        seen = [do(world, *step) for world in worlds]
        assert seen[1:] == seen[:1] * (len(seen) - 1)
        spoilt += step[:2] == ("give", fault) and seen[0]
    first, *others = worlds
    for other in others:
        # of a queue that broke, buffers that were not given back may have been written already
        assert first.device.broken or other.buffers() == first.buffers()
    if fault in ("zero", "wild"):
        assert bool(first.device.broken) == spoilt


def do(world: Any, what: str, *how: Any) -> Any:
    match what:
        case "give":
            shape, kind, size, count = how
            return sum(world.give(shape, kind, size + i % 3) for i in range(count))
        case "frames":  # from a receive queue's sender
            if isinstance(world, TransmitWorld):
                return 0
            kind, size, count = how
            return sum(world.sender.give("near", kind, size + i % 3) for i in range(count))
        case "close":
            return world.task.close(*how)
    out = [(header if header.flags or header.gso_type else None, frame) for header, frame in world.poll(*how)]
    world.turn_log()
    return out, world.seen(), world.figures()


@FORMATS
@ORDERS
@settings(max_examples=80, deadline=None)
@given(
    size=ring_sizes,
    event=events,
    tables=st.booleans(),
    offloads=st.sampled_from([EVERY, CSUM, 0]),
    steps=st.lists(
        st.one_of(st.tuples(st.just("give"), shapes, sent_kinds, sizes, counts), polls, polls, closes), max_size=25
    ),
    fault=st.none() | faults,
)
@example(
    256,
    0,
    False,
    EVERY,
    [("give", "near", "plain", 0, 3), ("give", "near", "largest", 0, 2), ("give", "near", "plain", 0, 11)],
    "zero",
)
def test_transmitting_with_runs_and_without(
    packed: bool,
    order: int,
    size: int,
    event: int,
    tables: bool,
    offloads: int,
    steps: list[tuple[Any, ...]],
    fault: str | None,
) -> None:
    size = 8 if size == 7 and not packed else size
    worlds = [
        TransmitWorld(size, packed, features=order | event, tables=tables and size > 1, log=log, offloads=offloads)
        for log in LOGS
    ]
    agree(worlds, steps, fault)


@FORMATS
@ORDERS
@settings(max_examples=80, deadline=None)
@given(
    size=ring_sizes,
    event=events,
    tables=st.booleans(),
    accept=st.sampled_from([F(0), F.GUEST_CSUM, GUEST]),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("give"), shapes, st.sampled_from(["plain"] * 9 + ["tiny"]), sizes, counts),
            st.tuples(st.just("frames"), sent_kinds, sizes, counts),
            polls,
            closes,
        ),
        max_size=25,
    ),
    fault=st.none() | faults,
)
@example(
    8, 0, False, F(0),
    [("frames", "plain", 0, 1), ("frames", "plain", 0, 1), ("frames", "plain", 98, 2), ("frames", "uncut", 0, 19),
     ("frames", "largest", 0, 4)], "zero",
)  # fmt: skip
@example(
    256, 0, False, F(0),
    [("give", "near", "plain", 13, 1), ("frames", "plain", 0, 1), ("frames", "largest", 0, 1),
     ("give", "near", "plain", 0, 1)], "zero",
)  # fmt: skip
def test_receiving_with_runs_and_without(
    packed: bool,
    order: int,
    size: int,
    event: int,
    tables: bool,
    accept: NetFeature,
    steps: list[tuple[Any, ...]],
    fault: str | None,
) -> None:
    size = 8 if size == 7 and not packed else size
    worlds = [
        ReceiveWorld(size, packed, features=order | event, tables=tables and size > 1, log=log, accept=accept)
        for log in LOGS
    ]
    agree(worlds, steps, fault)


# ---- in order ----


@FORMATS
@pytest.mark.parametrize("room", [5, 3])
def test_in_order_one_used_entry_stands_for_what_was_sent_at_once(packed: bool, room: int) -> None:
    """It names the last chain, at the first one's place (2.7.9, 2.8.9); the places behind it stay as they were."""
    world = TransmitWorld(8, packed, features=IN_ORDER)
    for _ in range(5):
        world.give("near", "plain", 60)
    heads = [world.used_word(at)[1] for at in range(5)] if packed else list(range(5))
    assert len(set(heads)) == 5
    assert len(world.poll(room)) == room
    if packed:
        assert world.used_word(0) == (0, heads[room - 1], AVAIL | USED)
        assert [world.used_word(at)[2] for at in range(1, 5)] == [AVAIL] * 4
    else:
        assert world.used_entry(0) == (heads[room - 1], 0)
        assert [world.used_entry(at) for at in range(1, 5)] == [(0, 0)] * 4
        assert world.memory.read_u16(world.layout.device + 2) == room
    assert world.driver.dequeue_burst() == [(i, 0) for i in range(room)]
    assert len(world.poll()) == 5 - room
    assert world.driver.dequeue_burst() == [(i, 0) for i in range(room, 5)]


# ---- the end of the ring ----


@ORDERS
def test_a_run_over_the_end_of_a_packed_ring(order: int) -> None:
    """The marks turn in its middle (2.8.1): those of each lap are right, and the driver finds all."""
    world = TransmitWorld(7, True, features=order)
    for lap in range(15):
        frames = [5 * lap + i for i in range(5)]
        for number in frames:
            assert world.give("near", "plain", number)
        assert [frame for _, frame in world.poll()] == [frame_of("plain", number)[1] for number in frames]
        if not order:
            marks = [world.used_word(number % 7)[2] for number in frames]
            assert marks == [0 if number // 7 % 2 else AVAIL | USED for number in frames]
        assert world.driver.dequeue_burst() == [(number, 0) for number in frames]


@FORMATS
@ORDERS
def test_received_over_the_end_of_the_ring(packed: bool, order: int) -> None:
    """Each chain has its own length, wherever the ring ends."""
    world = ReceiveWorld(7 if packed else 8, packed, features=order)
    for lap in range(15):
        for number in range(5 * lap, 5 * lap + 5):
            assert world.give("near", "plain", 300)
            world.sender.give("near", "plain", number)
        world.poll()
        assert world.driver.dequeue_burst() == [(number, 12 + 14 + number) for number in range(5 * lap, 5 * lap + 5)]


# ---- ports that are full ----


@FORMATS
@ORDERS
@pytest.mark.parametrize("room", range(9))
def test_what_the_port_did_not_take_is_sent_next_time(packed: bool, order: int, room: int) -> None:
    """None is lost, none sent twice, and none given back before it is sent."""
    world = TransmitWorld(8, packed, features=order)
    frames = [frame_of("plain", 60 + i)[1] for i in range(8)]
    for i in range(8):
        world.give("near", "plain", 60 + i)
    assert [frame for _, frame in world.poll(room)] == frames[:room]
    assert world.driver.dequeue_burst() == [(i, 0) for i in range(room)]
    assert world.poll(0) == []
    assert [frame for _, frame in world.poll()] == frames[room:]
    assert world.driver.dequeue_burst() == [(i, 0) for i in range(room, 8)]


# ---- hostile drivers ----


@FORMATS
@pytest.mark.parametrize("make", [TransmitWorld, ReceiveWorld])
def test_more_chains_than_the_ring_has(packed: bool, make: type[Any]) -> None:
    """All are out, popped by hand, when the driver makes one more available: the queue breaks, and nothing is used."""
    world = make(4, packed)
    for _ in range(4):
        world.give("near", "plain", 60)
    assert len(world.device.pop_burst()) == 4
    if packed:
        word = world.memory.read(8, 8)
        world.memory.write(8, word[:6] + (int.from_bytes(word[6:], "little") ^ (AVAIL | USED)).to_bytes(2, "little"))
    else:
        world.memory.write_u16(world.layout.driver + 2, 5)
    before = world.rings()
    if make is ReceiveWorld:
        world.sender.give("near", "plain", 60)
    assert world.poll() == []
    assert "5 " in str(world.device.broken)
    assert world.rings() == before
    assert world.device.counters()["completions"] == 0
    assert world.trouble.answer()


def test_an_index_that_jumps() -> None:
    """Nothing of what it claims is taken."""
    world = TransmitWorld(8, False)
    for _ in range(3):
        world.give("near", "plain", 60)
    world.memory.write_u16(world.layout.driver + 2, 9)
    assert world.poll() == []
    assert "9 " in str(world.device.broken)


def test_a_head_just_behind_the_table() -> None:
    """What lies there is no descriptor, even if it looks like one: of a frame at NEAR."""
    world = TransmitWorld(8, False)
    for _ in range(15):
        world.give("near", "plain", 60)
        assert len(world.poll()) == 1
        world.driver.dequeue_burst()
    world.give("head", "plain", 60)
    # the available ring: its index, 16, and entries that count no more are an address, a length and flags
    assert world.layout.driver == 16 * 8
    world.memory.write(world.layout.driver + 4, struct.pack("<6H", 0, 0, 86, 0, 0, 0))
    assert world.memory.read_u64(world.layout.driver) == NEAR
    assert world.poll() == []
    assert isinstance(world.device.broken, BadIndex)


def test_a_list_that_goes_on_over_chains_of_its_own_lap() -> None:
    """Packed, and the last slots say NEXT: what is before them is sent once, and the queue breaks."""
    world = TransmitWorld(4, True)
    for i in range(4):
        world.give("near", "plain", 60 + i)
    for at in (2, 3):
        world.memory.write_u16(16 * at + 14, AVAIL | NEXT)
    assert [frame for _, frame in world.poll()] == [frame_of("plain", 60 + i)[1] for i in range(2)]
    assert world.device.broken
    assert world.poll() == []


# ---- what a run leaves to the general way ----


@FORMATS
@pytest.mark.parametrize("log", ["never", "always"])
def test_a_checksum_that_cannot_be_completed_is_dropped(packed: bool, log: str) -> None:
    """A port says that there is one, the guest does not accept it undone, and there is no such field."""
    world = ReceiveWorld(8, packed, log=log)
    port = ScriptPort()
    bells = {"kick": world.kick, "call": world.call, "trouble": world.trouble}
    task = NetReceive(world.device, port, 0, world.features, **bells, by_hand=True)
    task.resume()
    good = frame_of("plain", 60)
    port.give([good, frame_of("bad checksum", 60), good])
    for _ in range(3):
        world.give("near", "plain", 100)
    while task.poll():
        pass
    assert world.driver.dequeue_burst() == [(0, 86), (1, 86)]
    assert task.statistics()["dropped"] == {"checksum": 1}


@FORMATS
@pytest.mark.parametrize("log", ["never", "always"])
@pytest.mark.parametrize("shape", ["near", "pieces"])
def test_a_flag_that_nobody_knows(packed: bool, log: str, shape: str) -> None:
    """A guest may set it (5.1.9.2.2: ignored). The other one gets no checksum undone under a header that hides it."""
    world = ReceiveWorld(8, packed, log=log, accept=F.GUEST_CSUM)
    world.give(shape, "plain", 400)
    world.sender.give("near", "unknown flag", 64)
    world.poll()
    [(_, length)] = world.driver.dequeue_burst()
    data = world.memory.read(NEAR, length)
    header, frame = NetHeader.from_bytes(data, HEADER), data[HEADER:]
    assert header.flags & 1 or sound(frame)


def test_a_header_that_says_nothing_is_sent_empty() -> None:
    """What else a driver left in one that says nothing goes nowhere."""
    world = TransmitWorld(8, False)
    world.give("near", "plain", 60)
    world.memory.write(NEAR + 2, b"\xff" * 10)
    [(header, _)] = world.poll()
    assert header == NetHeader()
