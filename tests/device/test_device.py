"""The device core: status machine, configuration, queues, errors in a handler."""

from __future__ import annotations

import logging

import pytest
from virtio_device import (
    ACK,
    DATA,
    DRIVER,
    DRIVER_OK,
    FAILED,
    FEATURES_OK,
    MODERN,
    NEEDS_RESET,
    READY,
    RING,
    Calls,
    Echo,
    Guest,
    Later,
)

from virtio import Chain, Feature, GuestMemory, QueueLayout, Region
from virtio.errors import ConfigError, MemoryFault, RingError

RINGS = pytest.mark.parametrize(
    "features",
    [MODERN, MODERN | Feature.IN_ORDER, MODERN | Feature.RING_PACKED, Feature.VERSION_1 | Feature.RING_PACKED],
    ids=["split", "in order", "packed", "packed without event index"],
)
# ---- status ----


@pytest.mark.parametrize(
    ("writes", "expected", "live"),
    [
        ([ACK], ACK, False),
        ([ACK, ACK | DRIVER], ACK | DRIVER, False),
        ([ACK | DRIVER | FEATURES_OK], ACK | DRIVER | FEATURES_OK, False),
        ([READY], READY, True),
        ([ACK, ACK | DRIVER, ACK | DRIVER | FEATURES_OK, READY], READY, True),
        ([READY, 0], 0, False),
        ([FEATURES_OK], 0, False),
        ([ACK | FEATURES_OK], ACK, False),
        ([ACK | DRIVER | DRIVER_OK], ACK | DRIVER, False),
        ([DRIVER_OK], 0, False),
        ([READY, ACK], READY, True),
        ([READY, ACK | FAILED], READY | FAILED, False),
        ([READY | FAILED], READY & ~DRIVER_OK | FAILED, False),
        ([READY | FAILED, READY], READY & ~DRIVER_OK | FAILED, False),
        ([NEEDS_RESET | ACK], ACK, False),
        ([ACK | 16 | 32], ACK, False),
        ([0x1FF & ~FAILED], READY, True),
    ],
)
def test_status(writes: list[int], expected: int, live: bool) -> None:
    device = Guest(Echo()).device
    device.driver_features(Feature.VERSION_1)
    for value in writes:
        device.write_status(value)
    assert (device.status, device.live) == (expected, live)


@pytest.mark.parametrize(
    ("writes", "expected", "live"),
    [
        ([ACK, ACK | DRIVER, ACK | DRIVER | DRIVER_OK], ACK | DRIVER | DRIVER_OK, True),
        ([READY], ACK | DRIVER | DRIVER_OK, True),
        ([DRIVER_OK], DRIVER_OK, True),
        ([DRIVER_OK, 0], 0, False),
        ([FAILED], FAILED, False),
    ],
)
def test_legacy_status(writes: list[int], expected: int, live: bool) -> None:
    device = Guest(Echo(), legacy=True).device
    for value in writes:
        device.write_status(value)
    assert (device.status, device.live) == (expected, live)


@pytest.mark.parametrize(
    ("legacy", "value", "text"),
    [
        (False, FEATURES_OK, "FEATURES_OK before DRIVER"),
        (False, ACK | DRIVER | DRIVER_OK, "DRIVER_OK before FEATURES_OK"),
        (False, ACK | 16, "status bits 0x10 are not the driver's to set"),
        (True, ACK | DRIVER | FEATURES_OK, "FEATURES_OK is not part of the legacy interface"),
        (True, FAILED | DRIVER_OK, "DRIVER_OK after FAILED"),
    ],
)
def test_refused_status_is_explained(legacy: bool, value: int, text: str) -> None:
    device = Guest(Echo(), legacy=legacy).device
    device.write_status(value)
    assert text in str(device.refused[-1])
    assert device.counters["status"] == len(device.refused) == 1


def test_clearing_bits_is_refused() -> None:
    device = Guest(Echo()).up().device
    device.write_status(ACK | DRIVER)
    assert device.status == READY
    assert "status 0x3 would clear bits of 0xf" in str(device.refused[-1])
    # what the device set itself, a driver need not write back
    device.needs_reset("for a test")
    device.write_status(READY)
    assert len(device.refused) == 1


def test_hooks_in_order_and_once() -> None:
    guest = Guest(Echo())
    guest.up()
    guest.device.write_status(READY)
    assert guest.device.told == ["activate"]
    guest.device.write_status(0)
    guest.device.write_status(0)
    assert guest.device.told == ["activate", "deactivate"]


def test_a_reset_forgets_what_the_driver_said_and_keeps_what_the_transport_did() -> None:
    guest = Guest(Echo(config=b"abc")).up()
    assert guest.ask(b"a") == b"A"
    guest.device.needs_reset("for a test")
    guest.device.write_status(0)
    device = guest.device
    assert (device.status, device.negotiated, device.reason) == (0, 0, None)
    for slot in device.queues:
        assert (slot.layout, slot.enabled, slot.size, slot.queue) == (None, False, 256, None)
    assert device.memory is guest.memory
    assert guest.up().ask(b"again") == b"AGAIN"
    assert guest.calls.rings() > 0


def test_a_driver_that_comes_before_the_transport_is_a_bug_of_the_embedder() -> None:
    device = Echo()
    device.driver_features(Feature.VERSION_1)
    with pytest.raises(RuntimeError, match="is not bound to memory"):
        device.write_status(READY)


def test_bind_under_way() -> None:
    guest = Guest(Echo()).up()
    with pytest.raises(RuntimeError, match="live: reset it first"):
        guest.device.bind(guest.memory, guest.calls)


def test_activate_that_fails() -> None:
    class Fails(Echo):
        def activate(self, memory: GuestMemory, interrupt: object) -> None:
            super().activate(memory, interrupt)
            self.device_queue(1)

    guest = Guest(Fails()).negotiate().setup(0).go()
    device = guest.device
    assert device.status == READY | NEEDS_RESET
    assert device.reason == "activate: ConfigError: queue 1 is not set up"
    assert device.told == ["activate", "deactivate"]
    assert guest.calls.configs == 1
    assert guest.ask(b"a") is None
    device.write_status(0)
    assert device.told == ["activate", "deactivate"]
    assert guest.negotiate().setup(0, 1).go().ask(b"a") == b"A"


# ---- configuration ----


def test_reading_the_configuration() -> None:
    device = Echo(config=bytes(range(1, 9)))
    assert device.read_config(0, 8) == bytes(range(1, 9))
    assert device.read_config(6, 4) == b"\7\10\0\0"
    assert device.read_config(100, 2) == b"\0\0"
    assert device.read_config(3, 0) == b""
    assert len(device.read_config(0, 65536)) == 65536
    assert not device.refused
    assert (
        device.read_config(-1, 2) == b"" and device.read_config(0, -1) == b"" and device.read_config(0, 1 << 40) == b""
    )
    assert device.counters["config"] == 3


def test_writing_the_configuration() -> None:
    class Writable(Echo):
        def config_written(self, offset: int, data: bytes) -> bool:
            if offset < 2:
                return False
            self.config[offset : offset + len(data)] = data
            return True

    device = Writable(config=b"abcdef")
    device.write_config(2, bytearray(b"XY"))
    device.write_config(5, b"f")
    assert device.config == b"abXYef" and not device.refused
    device.write_config(5, b"ZZ")
    device.write_config(-1, b"Z")
    device.write_config(0, b"Z")
    assert device.config == b"abXYef"
    assert [str(error) for error in device.refused] == [
        "config write of 2 bytes at 5 (size 6)",
        "config write of 1 bytes at -1 (size 6)",
        "config write of 1 bytes at 0: read-only",
    ]
    plain = Echo(config=b"abc")
    plain.write_config(0, b"Z")
    assert plain.config == b"abc"


def test_a_change_is_a_generation_and_once_the_driver_is_ready_an_interrupt() -> None:
    guest = Guest(Echo(config=b"abc"))
    before = guest.device.generation
    guest.device.config_changed()
    guest.negotiate()
    guest.device.config_changed()
    assert (guest.device.generation, guest.calls.configs) == (before + 2, 0)
    guest.setup(0).go()
    guest.device.config_changed()
    assert (guest.device.generation, guest.calls.configs) == (before + 3, 1)
    guest.device.write_status(0)
    guest.device.config_changed()
    assert (guest.device.generation, guest.calls.configs) == (before + 4, 1)


def test_a_reset_takes_back_a_change_that_was_not_told_yet() -> None:
    class Confused(Echo):
        def notified(self, index: int) -> None:
            self.config_changed()
            self.interrupt(1)
            self.reset()

    guest = Guest(Confused()).up()
    guest.device.kick(0)
    assert (guest.device.generation, guest.calls.configs, guest.calls.rings(1)) == (1, 0, 0)


# ---- needs_reset ----


def test_needs_reset() -> None:
    guest = Guest(Echo()).negotiate()
    guest.device.needs_reset("early")
    assert guest.device.status & NEEDS_RESET and guest.calls.configs == 0
    guest.device.write_status(0)
    assert guest.device.status == 0
    guest.up()
    guest.device.needs_reset("first")
    guest.device.needs_reset("second")
    assert guest.device.reason == "first"
    assert guest.device.counters["needs_reset"] == 3
    assert guest.calls.configs == 1
    assert guest.ask(b"others go on", 1) == b"OTHERS GO ON"


# ---- queues ----


@RINGS
def test_requests_are_answered(features: int) -> None:
    guest = Guest(Echo()).up(features)
    for i in range(50):
        text = b"request %d" % i
        assert guest.ask(text, i & 1) == text.upper()
    assert guest.calls.rings(0) and guest.calls.rings(1)
    assert not guest.device.refused


@pytest.mark.parametrize(
    ("legacy", "stage", "index", "layout", "text"),
    [
        (False, "ack", 0, QueueLayout.split(8, 0x10000), "features are not negotiated"),
        (False, "negotiated", 2, QueueLayout.split(8, 0x10000), r"queue 2 out of range \(2 queues\)"),
        (False, "negotiated", -1, QueueLayout.split(8, 0x10000), r"queue -1 out of range \(2 queues\)"),
        (False, "negotiated", 0, QueueLayout.split(64, 0x10000), r"size 64 \(at most 32\)"),
        (False, "negotiated", 0, QueueLayout.packed(8, 0x10000), "RING_PACKED is not negotiated"),
        (False, "set up", 0, QueueLayout.split(8, 0x10000), "queue 0 cannot be set up: it is enabled"),
        (False, "live", 1, QueueLayout.split(8, 0x10000), "live, and RING_RESET is not negotiated"),
        (True, "ack", 0, QueueLayout.packed(8, 0x10000), "the legacy interface has no packed rings"),
        (True, "ack", 0, QueueLayout.split(64, 0x10000), r"size 64 \(at most 32\)"),
    ],
)
def test_queues_that_cannot_be(legacy: bool, stage: str, index: int, layout: QueueLayout, text: str) -> None:
    guest = Guest(Echo(queue_size=32), legacy=legacy)
    if stage == "ack":
        guest.device.write_status(ACK)
    else:
        guest.negotiate(Feature.VERSION_1)
        if stage != "negotiated":
            guest.setup(0)
        if stage == "live":
            guest.go()
    enabled = [slot.enabled for slot in guest.device.queues]
    assert not guest.device.setup_queue(index, layout)
    (error,) = guest.device.refused
    with pytest.raises(type(error), match=text):
        raise error
    assert [slot.enabled for slot in guest.device.queues] == enabled
    assert not guest.device.status & NEEDS_RESET


@pytest.mark.parametrize("area", ["desc", "driver", "device"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_queue_outside_of_memory(area: str, legacy: bool) -> None:
    guest = Guest(Echo(), legacy=legacy).negotiate(0 if legacy else MODERN)
    places = {"desc": 0x10000, "driver": 0x11000, "device": 0x12000, area: (1 << 20) - 16}
    assert not guest.device.setup_queue(0, QueueLayout(8, **places))
    assert isinstance(guest.device.refused[0], MemoryFault)
    assert guest.device.status & NEEDS_RESET
    assert "outside of guest memory" in str(guest.device.reason)
    assert guest.setup(1).go().ask(b"the other", 1) == b"THE OTHER"


def test_size_is_what_the_driver_chose() -> None:
    guest = Guest(Echo(queue_size=64)).negotiate().setup(0, size=16).go()
    slot = guest.device.queues[0]
    assert (slot.size, slot.size_max) == (16, 64)
    assert guest.device.device_queue(0).size == 16
    assert guest.device.device_queue(0) is guest.device.device_queue(0)
    assert guest.device.device_queue(0).features == MODERN


def test_a_queue_that_is_not_set_up_is_no_queue() -> None:
    guest = Guest(Echo()).negotiate().setup(1).go()
    with pytest.raises(ConfigError, match="queue 0 is not set up"):
        guest.device.device_queue(0)
    guest.device.kick(0)
    assert guest.device.status == READY
    assert guest.ask(b"x", 1) == b"X"


@RINGS
def test_reset_of_one_queue(features: int) -> None:
    features |= Feature.RING_RESET
    guest = Guest(Echo()).up(features)
    assert guest.ask(b"before") == b"BEFORE"
    guest.send(b"lost", kick=False)
    assert guest.device.reset_queue(0)
    assert guest.device.told == ["activate", ("reset", 0)]
    slot = guest.device.queues[0]
    assert (slot.enabled, slot.layout, slot.queue) == (False, None, None)
    guest.device.kick(0)
    assert guest.ask(b"other", 1) == b"OTHER"
    assert guest.received(0) == []
    guest.setup(0, size=4)
    assert guest.device.told[-1] == ("enable", 0)
    assert guest.ask(b"after") == b"AFTER"
    assert guest.device.device_queue(0).size == 4


def test_reset_of_a_queue_that_is_not_enabled_tells_nobody() -> None:
    guest = Guest(Echo()).negotiate()
    assert guest.device.reset_queue(0)
    guest.setup(1).go()
    assert guest.device.reset_queue(0)
    assert guest.device.told == ["activate"]


def test_reset_of_a_queue_needs_ring_reset() -> None:
    guest = Guest(Echo()).up(Feature.VERSION_1)
    assert not guest.device.reset_queue(0)
    assert not guest.device.reset_queue(7)
    assert [str(error) for error in guest.device.refused] == [
        "reset of queue 0: RING_RESET is not negotiated",
        "queue 7 out of range (2 queues)",
    ]
    assert guest.ask(b"a") == b"A"


def test_a_legacy_driver_stops_a_queue_at_any_time() -> None:
    guest = Guest(Echo(), legacy=True).up(0)
    assert guest.ask(b"a") == b"A"
    assert guest.device.reset_queue(0)
    assert guest.device.told[-1] == ("reset", 0)
    guest.setup(0)
    assert guest.ask(b"b") == b"B"


def test_a_broken_queue_heals_by_its_reset() -> None:
    guest = Guest(Echo()).up()
    guest.memory.write_u16(guest.layout(0).driver + 2, 1000)  # avail.idx
    guest.device.kick(0)
    assert guest.device.queues[0].broken is not None
    guest.device.reset_queue(0)
    guest.setup(0)
    assert guest.device.queues[0].broken is None
    assert guest.ask(b"a") == b"A"


# ---- errors in a handler ----


def test_a_driver_that_breaks_a_queue() -> None:
    guest = Guest(Echo()).up()
    guest.memory.write_u16(guest.layout(0).driver + 2, 1000)
    guest.device.kick(0)
    device = guest.device
    assert device.status == READY | NEEDS_RESET
    assert device.reason == device.queues[0].broken
    assert device.reason == "queue 0: BadIndex: available index claims 1000 chains (queue size 8)"
    assert isinstance(device.refused[-1], RingError)
    assert guest.calls.configs == 1
    assert guest.ask(b"other", 1) == b"OTHER"
    guest.device.kick(0)
    assert device.counters["fault"] == 1


def test_memory_that_goes_away() -> None:
    guest = Guest(Echo()).up()
    assert guest.ask(b"a") == b"A"
    guest.memory.replace([(0x20000, bytearray(0x10000))])
    guest.device.kick(0)
    assert "MemoryFault" in str(guest.device.reason)
    guest.device.write_status(0)
    assert guest.device.status == 0


def test_a_bug_in_a_handler_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    class Buggy(Echo):
        def answer(self, index: int, chain: Chain) -> None:
            if index == 0:
                raise ZeroDivisionError("by mistake")
            super().answer(index, chain)

    guest = Guest(Buggy()).up()
    with caplog.at_level(logging.ERROR, "virtio.device"):
        assert guest.ask(b"a") is None
    assert guest.device.reason == "queue 0: ZeroDivisionError: by mistake"
    assert guest.device.status & NEEDS_RESET
    (record,) = caplog.records
    assert "Traceback" in record.getMessage() and record.getMessage().endswith("ZeroDivisionError: by mistake")
    assert record.exc_info is None  # a record that is kept keeps no frame, and so no guest's memory
    assert guest.ask(b"b", 1) == b"B"
    assert guest.device.counters["fault"] == 1


def test_a_handler_that_resets_the_device(caplog: pytest.LogCaptureFixture) -> None:
    class Resets(Echo):
        def answer(self, index: int, chain: Chain) -> None:
            super().answer(index, chain)
            self.reset()

    guest = Guest(Resets()).up()
    guest.send(b"a")
    assert guest.device.status == 0
    assert guest.received() == []
    assert not caplog.records

    class ResetsAndFails(Resets):
        def answer(self, index: int, chain: Chain) -> None:
            super().answer(index, chain)
            raise ValueError("too late")

    guest = Guest(ResetsAndFails()).up()
    guest.send(b"a")
    assert guest.device.status == 0  # the new driver is not told of the old one's trouble
    assert "too late" in caplog.text


@RINGS
def test_chains_of_before_a_reset_cannot_be_given_back(features: int) -> None:
    guest = Guest(Later()).up(features)
    guest.send(b"a")
    (chain,) = guest.device.held
    queue = guest.device.device_queue(0)
    guest.device.write_status(0)
    rings = guest.memory.read(RING, 0x10000)
    with pytest.raises(ValueError, match="reset away"):
        queue.add_used(chain)
    assert guest.memory.read(RING, 0x10000) == rings


def test_break_leaves_the_other_chains_in_the_ring() -> None:
    class OneAtATime(Echo):
        def notified(self, index: int) -> None:
            for chain in self.chains(index):
                chain.write(b"x")
                break

    guest = Guest(OneAtATime()).up(Feature.VERSION_1)
    for _ in range(3):
        guest.send(b"a", kick=False)
    guest.device.kick(0)
    assert len(guest.device.device_queue(0).outstanding) == 1
    assert guest.device.device_queue(0).available == 2


def test_kicks_are_off_while_a_queue_is_worked() -> None:
    wanted = []

    class Asks(Echo):
        def answer(self, index: int, chain: Chain) -> None:
            super().answer(index, chain)
            if len(wanted) < 3:
                guest.send(b"more", kick=False)
                wanted.append(guest.queues[0].notify())

    guest = Guest(Asks()).up(Feature.VERSION_1)
    guest.send(b"a")
    assert wanted == [False] * 3
    assert len(guest.received()) == 4
    guest.send(b"a", kick=False)
    assert guest.queues[0].notify()


@pytest.mark.parametrize("event_idx", [0, Feature.EVENT_IDX])
def test_an_interrupt_for_a_batch_and_none_where_none_is_wanted(event_idx: int) -> None:
    guest = Guest(Echo()).up(Feature.VERSION_1 | event_idx)
    for _ in range(4):
        guest.send(b"a", kick=False)
    guest.device.kick(0)
    assert guest.calls.rings() == 1
    assert len(guest.received()) == 4
    guest.queues[0].disable_intr()
    guest.send(b"a", kick=False)
    guest.device.kick(0)
    assert guest.calls.rings() == 1
    assert len(guest.received()) == 1


def test_regions_of_odd_addresses_are_no_place_for_a_ring(caplog: pytest.LogCaptureFixture) -> None:
    block = memoryview(bytearray((1 << 20) + 16))
    offset = next(i for i in range(16) if GuestMemory([Region(0, block[i : i + (1 << 20)])]).translate(0) % 8 == 1)
    guest = Guest(Echo(), memory=GuestMemory([Region(0, block[offset : offset + (1 << 20)])]))
    guest.negotiate()
    assert guest.device.setup_queue(0, QueueLayout.split(8, 0x10000))
    guest.go()
    guest.device.kick(0)
    assert guest.device.status & NEEDS_RESET
    assert "aligned" in str(guest.device.reason)


def test_repr() -> None:
    guest = Guest(Echo())
    assert repr(guest.device) == "<Echo: 2 queues, reset>"
    guest.negotiate()
    assert repr(guest.device) == "<Echo: 2 queues, ACKNOWLEDGE|DRIVER|FEATURES_OK>"
    guest.setup(0).go()
    assert repr(guest.device) == "<Echo: 2 queues, live>"
    guest.device.needs_reset("why not")
    assert repr(guest.device) == "<Echo: 2 queues, why not>"
    assert repr(guest.device.queues[0]) == "<QueueSlot 0: size 8 of 256, enabled>"


def test_a_stranger_of_a_transport_gets_its_bells_at_bind() -> None:
    device = Echo()
    calls = Calls()
    device.bind(GuestMemory.allocate(DATA), calls)
    assert [slot.call for slot in device.queues] == [calls.bells[0], calls.bells[1]]
