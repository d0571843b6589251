"""The device core: features, status machine, configuration, queues, kicks and interrupts, errors."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
    Silent,
)

from virtio import Chain, Feature, GuestMemory, NetFeature, QueueLayout, Region
from virtio._bell import Bell
from virtio.constants import DeviceType
from virtio.device import Device
from virtio.errors import ConfigError, MemoryFault, NegotiationError, RingError
from virtio.features import closed, missing, names_of

RINGS = pytest.mark.parametrize(
    "features",
    [MODERN, MODERN | Feature.IN_ORDER, MODERN | Feature.RING_PACKED, Feature.VERSION_1 | Feature.RING_PACKED],
    ids=["split", "in order", "packed", "packed without event index"],
)
NET_BITS = sum(NetFeature)


class Net(Device):
    device_type = DeviceType.NET
    features = Device.features | NET_BITS


# ---- what is offered ----


def test_offered_by_default() -> None:
    assert Device.features & Echo().offered == Device.features == Echo().offered
    assert Net().offered == Device.features | NET_BITS
    assert type(Net().offered) is int


@pytest.mark.parametrize("bit", [*Feature, *NetFeature, 1 << 47, 1 << 200], ids=lambda bit: names_of(bit, 1)[0])
def test_every_bit_can_be_offered_or_withheld(bit: int) -> None:
    without = Net(withhold=bit)
    assert not without.offered & bit
    assert without.offered == closed(Net().offered & ~int(bit), DeviceType.NET, offer=True)
    assert Net(offer=bit).offered == Net().offered | bit


def test_what_is_useless_is_offered_if_it_is_asked_for() -> None:
    assert not Net(withhold="CTRL_VQ").offered & NetFeature.CTRL_RX_EXTRA
    assert Net(withhold="CTRL_VQ", offer="CTRL_RX_EXTRA").offered & NetFeature.CTRL_RX_EXTRA


def test_by_name() -> None:
    device = Net(offer="bit 47", withhold=["VIRTIO_NET_F_MQ", "ring_packed"])
    assert device.offered == (Net().offered | 1 << 47) & ~NetFeature.MQ & ~Feature.RING_PACKED


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"offer": "MAC", "withhold": "MAC, MQ"}, "both offered and withheld: MAC$"),
        ({"offer": "HOST_ECN", "withhold": "CSUM"}, r"cannot be offered: HOST_ECN \(needs HOST_TSO4 or HOST_TSO6\)"),
        ({"offer": "NOPE"}, "feature 'NOPE' is unknown"),
        ({"withhold": -1}, "feature set -1 is negative"),
        ({"queue_size": 0}, r"size 0 of queue 0 out of range \(1 to 32768\)"),
        ({"queue_size": 32769}, r"size 32769 of queue 0 out of range \(1 to 32768\)"),
    ],
)
def test_what_cannot_be_made(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Net(**options)


def test_more_queues_than_an_index_can_name() -> None:
    with pytest.raises(ConfigError, match=r"65537 queues \(at most 65536\)"):
        Echo(queues=65537)


def test_the_legacy_interface_has_32_bits_and_the_modern_one_none_of_its_own() -> None:
    device = Net()
    assert device.device_features == device.offered & ~(1 << 24 | 1 << 27 | 1 << 6)
    device.legacy = True
    assert device.device_features == device.offered & 0xFFFFFFFF
    assert device.device_features & (1 << 24) and device.device_features & (1 << 6)


# ---- negotiation ----


def test_what_is_negotiated_is_what_the_driver_accepted() -> None:
    wanted = Feature.VERSION_1 | NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.IPSEC
    device = Guest(Net()).negotiate(wanted).device
    assert device.negotiated == wanted
    assert not device.refused


@pytest.mark.parametrize(
    ("wanted", "rejected", "text"),
    [
        (NetFeature.HOST_TSO4, ("HOST_TSO4",), r"HOST_TSO4 \(needs CSUM\)"),
        (NetFeature.CTRL_VQ | NetFeature.HASH_TUNNEL, ("HASH_TUNNEL",), r"HASH_TUNNEL \(needs HASH_REPORT or RSS\)"),
        (NetFeature.MQ | 1 << 90, ("bit 90", "MQ"), r"bit 90 \(not offered\), MQ \(needs CTRL_VQ\)"),
        (Feature.NOTIFY_ON_EMPTY, ("NOTIFY_ON_EMPTY",), r"NOTIFY_ON_EMPTY \(not offered\)"),
        (NetFeature.MTU, ("MTU",), r"MTU \(not offered\)"),
        # a bit that is not offered is no help to one that needs it
        (NetFeature.RSS_CONTEXT | NetFeature.RSS | NetFeature.CTRL_VQ, ("RSS", "RSS_CONTEXT"), "RSS_CONTEXT"),
    ],
)
def test_a_refused_bit_is_named_and_features_ok_stays_clear(wanted: int, rejected: tuple[str, ...], text: str) -> None:
    device = Guest(Net(withhold="MTU")).device
    device.offered &= ~NetFeature.RSS  # a device that offers what cannot be used, as only a broken one does
    device.write_status(ACK | DRIVER)
    device.driver_features(wanted | Feature.VERSION_1)
    device.write_status(ACK | DRIVER | FEATURES_OK)
    assert device.status == ACK | DRIVER
    assert device.negotiated == 0
    (error,) = device.refused
    assert isinstance(error, NegotiationError)
    assert error.rejected == rejected
    assert (error.offered, error.wanted) == (device.device_features, wanted | Feature.VERSION_1)
    with pytest.raises(NegotiationError, match=text):
        device.check_features(wanted | Feature.VERSION_1)
    # a driver may try again with less
    device.driver_features(Feature.VERSION_1)
    device.write_status(ACK | DRIVER | FEATURES_OK)
    assert device.status == ACK | DRIVER | FEATURES_OK
    assert device.negotiated == Feature.VERSION_1


def test_version_1_must_be_accepted_where_it_is_offered() -> None:
    device = Guest(Net()).device
    device.driver_features(NetFeature.CSUM)
    device.write_status(ACK | DRIVER | FEATURES_OK)
    assert device.status == ACK | DRIVER
    assert "VERSION_1 (must be accepted)" in str(device.refused[0])
    without = Guest(Net(withhold="VERSION_1")).device
    without.driver_features(NetFeature.CSUM)
    without.write_status(ACK | DRIVER | FEATURES_OK)
    assert without.negotiated == NetFeature.CSUM


def test_a_driver_that_accepts_nothing() -> None:
    device = Guest(Net(withhold="VERSION_1")).device
    device.write_status(ACK | DRIVER | FEATURES_OK)
    assert (device.status, device.negotiated) == (ACK | DRIVER | FEATURES_OK, 0)


def test_features_are_fixed_once_they_are_ok() -> None:
    device = Guest(Net()).negotiate(Feature.VERSION_1).device
    device.driver_features(Feature.VERSION_1 | NetFeature.CSUM)
    assert device.negotiated == Feature.VERSION_1
    device.write_status(device.status)
    assert device.negotiated == Feature.VERSION_1
    assert "negotiated already" in str(device.refused[0])


def test_a_legacy_driver_gets_what_it_may_have() -> None:
    device = Guest(Net(withhold="MTU"), legacy=True).device
    device.write_status(ACK | DRIVER)
    # MTU is not offered; MQ lacks CTRL_VQ; HOST_ECN lacks what HOST_TSO4 would give it, if that had CSUM
    device.driver_features(NetFeature.MTU | NetFeature.MQ | NetFeature.HOST_TSO4 | NetFeature.HOST_ECN | NetFeature.MAC)
    assert device.negotiated == NetFeature.MAC
    (error,) = device.refused
    assert isinstance(error, NegotiationError)
    assert set(error.rejected) == {"MTU", "MQ", "HOST_TSO4"}
    device.driver_features(NetFeature.CSUM | Feature.NOTIFY_ON_EMPTY)
    assert device.negotiated == NetFeature.CSUM | Feature.NOTIFY_ON_EMPTY
    device.write_status(ACK | DRIVER | DRIVER_OK)
    device.driver_features(NetFeature.MAC)
    assert device.negotiated == NetFeature.CSUM | Feature.NOTIFY_ON_EMPTY


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


# ---- kicks ----


@pytest.mark.parametrize("legacy", [False, True])
def test_a_kick_before_driver_ok_is_remembered(legacy: bool) -> None:
    guest = Guest(Echo(), legacy=legacy).negotiate(0 if legacy else MODERN).setup(0, 1)
    guest.send(b"early")
    assert guest.received() == []
    assert guest.calls.rings() == 0
    guest.go()
    assert guest.received() == [b"EARLY"]
    assert guest.calls.rings() == 1


def test_a_kick_from_before_a_reset_is_not() -> None:
    guest = Guest(Echo()).negotiate().setup(0)
    guest.send(b"early")
    guest.device.write_status(0)
    guest.negotiate().setup(0)
    guest.send(b"unkicked", kick=False)
    guest.go()
    assert guest.received() == []


def test_bells_of_a_device_without_a_handler_stay_rung() -> None:
    guest = Guest(Silent()).negotiate().setup(0)
    bell = guest.device.queues[0].kick
    guest.device.kick(0)
    guest.go()
    assert bell.answer()
    assert not bell.answer()
    guest.device.kick(0)
    guest.device.write_status(0)
    assert not bell.answer()
    assert bell is guest.device.queues[0].kick


def test_some_queues_handled_and_some_not() -> None:
    class Half(Echo):
        def handles(self, index: int) -> bool:
            return index == 1

    guest = Guest(Half()).up()
    assert guest.ask(b"a", 1) == b"A"
    assert guest.ask(b"a", 0) is None
    assert guest.device.queues[0].kick.answer()


def test_kicks_of_no_queue() -> None:
    guest = Guest(Echo()).up()
    for index in (2, -1, 1 << 40):
        guest.device.kick(index)
    assert guest.device.counters["queue"] == 3
    assert guest.device.status == READY


def test_a_bell_kicks_from_any_thread_and_no_request_is_lost() -> None:
    guest = Guest(Echo()).up(MODERN & ~Feature.EVENT_IDX)
    answers: list[list[bytes]] = [[], []]

    def drive(index: int) -> None:
        for i in range(300):
            guest.send(b"%d" % i, index)
            while not (got := guest.received(index)):
                pass
            answers[index] += got

    threads = [threading.Thread(target=drive, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [[b"%d" % i for i in range(300)]] * 2


def test_driver_and_device_that_kick_each_other_get_no_deeper() -> None:
    guest = Guest(Echo())
    count = 0

    def interrupted() -> None:
        nonlocal count
        count += len(guest.received())
        if count < 5000:
            guest.send(b"again")

    guest.calls.bells[0] = Bell(interrupted)
    guest.device.bind(guest.memory, guest.calls)
    guest.up(Feature.VERSION_1)
    guest.send(b"go")
    assert count == 5000


def test_an_interrupt_finds_no_lock_held() -> None:
    """A driver whose lock is held by a thread that resets the device, while another's interrupt waits for that lock."""
    guest = Guest(Echo())
    lock = threading.Lock()
    inside, waiting = threading.Event(), threading.Event()

    def interrupted() -> None:
        waiting.set()
        with lock:
            pass

    def kick() -> None:
        inside.wait(30)
        guest.send(b"a")

    guest.calls.bells[0] = Bell(interrupted)
    guest.device.bind(guest.memory, guest.calls)
    guest.up()
    thread = threading.Thread(target=kick, daemon=True)
    thread.start()
    with lock:
        inside.set()
        assert waiting.wait(30)
        resetter = threading.Thread(target=guest.device.write_status, args=(0,), daemon=True)
        resetter.start()
        resetter.join(30)
        assert not resetter.is_alive()
    thread.join(30)
    assert not thread.is_alive()


def test_a_kick_does_not_wait_for_a_hook_and_is_served_after_it() -> None:
    kicked = threading.Event()
    served = []

    class Waits(Echo):
        def notified(self, index: int) -> None:
            served.append(index)
            if index == 0:
                assert kicked.wait(30)

    guest = Guest(Waits()).up()
    slow = threading.Thread(target=guest.device.kick, args=(0,), daemon=True)
    slow.start()
    while not served:
        pass
    other = threading.Thread(target=guest.device.kick, args=(1,), daemon=True)
    other.start()
    other.join(30)
    assert not other.is_alive()
    assert served == [0]
    kicked.set()
    slow.join(30)
    assert served == [0, 1]


class Held(Echo):
    """Its hook holds the lock until it is told to let go."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.inside, self.leave = threading.Event(), threading.Event()

    def notified(self, index: int) -> None:
        self.inside.set()
        assert self.leave.wait(30)


def test_what_any_thread_may_say_does_not_wait_for_a_hook_and_is_done_after_it() -> None:
    guest = Guest(Held()).up()
    device = guest.device
    done: list[str] = []
    slow = threading.Thread(target=device.kick, args=(0,), daemon=True)
    slow.start()
    assert device.inside.wait(30)

    def say() -> None:
        device.needs_reset("no more")
        device.config_changed()
        device.soon(lambda: done.append("soon"))
        device.interrupt(1)

    other = threading.Thread(target=say, daemon=True)
    other.start()
    other.join(30)
    assert not other.is_alive()
    assert (device.status, device.generation, done, guest.calls.configs) == (READY, 0, [], 0)
    device.leave.set()
    slow.join(30)
    assert (device.status, device.generation, done) == (READY | NEEDS_RESET, 1, ["soon"])
    assert (guest.calls.configs, guest.calls.rings(1)) == (1, 1)


def test_a_need_of_reset_that_a_reset_overtakes_is_none() -> None:
    class Resets(Held):
        def notified(self, index: int) -> None:
            super().notified(index)
            self.reset()

    guest = Guest(Resets()).up()
    slow = threading.Thread(target=guest.device.kick, args=(0,), daemon=True)
    slow.start()
    assert guest.device.inside.wait(30)
    guest.device.needs_reset("of the life before")
    guest.device.leave.set()
    slow.join(30)
    assert (guest.device.status, guest.device.reason) == (0, None)


def test_soon_is_at_once_where_nobody_has_the_lock_or_we_do() -> None:
    device = Guest(Echo()).up().device
    done: list[int] = []
    device.soon(lambda: done.append(1))
    assert done == [1]

    def nested() -> None:
        device.soon(lambda: done.append(2))
        done.append(3)

    device.soon(nested)
    assert done == [1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        device.soon(lambda: done.append(1 // 0))
    device.soon(lambda: done.append(4))
    assert done[-1] == 4


def test_interrupts_of_soon_go_out_without_the_lock() -> None:
    guest = Guest(Echo()).up()
    free = []

    def called() -> None:
        other = threading.Thread(target=guest.device.set_dma, args=(False,), daemon=True)  # waits for the lock
        other.start()
        other.join(30)
        free.append(not other.is_alive())

    guest.device.set_call(0, Bell(called))
    guest.device.soon(lambda: guest.device.interrupt(0))
    assert free == [True]


def test_a_kick_out_of_an_interrupt_is_served() -> None:
    guest = Guest(Echo()).up()
    guest.send(b"a", kick=False)
    guest.device.set_call(0, Bell(lambda: guest.device.kick(0)))
    guest.device.interrupt(0)
    assert guest.received() == [b"A"]


def test_a_change_of_the_configuration_out_of_an_interrupt_is_told() -> None:
    guest = Guest(Echo()).up()
    guest.device.set_call(0, Bell(guest.device.config_changed))
    guest.device.interrupt(0)
    assert guest.calls.configs == 1


def test_interrupts_that_a_hook_raises_go_out_after_it() -> None:
    order = []

    class Noisy(Echo):
        def notified(self, index: int) -> None:
            super().notified(index)
            self.config_changed()
            self.interrupt(1)
            order.append("hook ends")

    guest = Guest(Noisy())
    guest.calls.bells = {0: Bell(lambda: order.append("queue 0")), 1: Bell(lambda: order.append("queue 1"))}
    guest.calls.config = lambda: order.append("config")  # type: ignore[method-assign]
    guest.device.bind(guest.memory, guest.calls)
    guest.up()
    guest.send(b"a")
    assert order == ["hook ends", "queue 0", "queue 1", "config"]


def test_call_bells_can_be_swapped() -> None:
    guest = Guest(Echo()).up(Feature.VERSION_1)
    guest.ask(b"a")
    bell = Bell()
    guest.device.set_call(0, bell)
    assert guest.device.told[-1] == ("call", 0)
    guest.ask(b"b")
    assert (bell.rings, guest.calls.rings()) == (1, 1)


def test_an_unbound_device_interrupts_nobody() -> None:
    Echo().interrupt(0)


def test_dma_off() -> None:
    guest = Guest(Echo()).negotiate().setup(0, 1)
    device = guest.device
    device.set_dma(False)
    guest.go()
    assert device.told == []
    assert guest.ask(b"a") is None
    device.set_dma(True)
    assert device.told == ["activate"]
    assert guest.received() == [b"A"]
    device.set_dma(False)
    device.set_dma(False)
    assert device.told == ["activate", "pause"]
    assert guest.ask(b"b") is None
    device.set_dma(True)
    assert device.told == ["activate", "pause", "resume"]
    assert guest.received() == [b"B"]
    device.set_dma(False)
    device.write_status(0)
    device.set_dma(True)
    assert device.told[3:] == ["pause", "deactivate"]


def test_a_queue_that_is_enabled_while_dma_is_off_is_paused() -> None:
    guest = Guest(Echo()).up()
    guest.device.reset_queue(0)
    guest.device.set_dma(False)
    guest.device.told.clear()
    guest.setup(0)
    assert guest.device.told == [("enable", 0), "pause"]


def test_dma_on_rings_what_tasks_wait_for() -> None:
    class Two(Silent):
        def queue_sizes(self) -> tuple[int, ...]:
            return (8, 8)

    device = Guest(Two()).negotiate().setup(0).go().device
    bells = [slot.kick for slot in device.queues]
    device.kick(0)
    assert bells[0].answer()
    device.set_dma(False)
    assert not bells[0].answer()
    device.set_dma(True)
    assert bells[0].answer() and not bells[1].answer()


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
    assert record.exc_info is not None and record.exc_info[0] is ZeroDivisionError
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


# ---- a hostile driver ----

VALUES = st.one_of(st.integers(0, 255), st.sampled_from([0, ACK, ACK | DRIVER, ACK | DRIVER | FEATURES_OK, READY]))
WORDS = st.one_of(st.integers(0, (1 << 80) - 1), st.sampled_from([int(MODERN), int(MODERN | Feature.RING_PACKED), 0]))
INDICES = st.integers(-2, 3)
PLACES = st.one_of(st.integers(0, 1 << 64).map(lambda v: v & ~15 & (1 << 64) - 1), st.sampled_from([0x10000, 0x20000]))


@st.composite
def layouts(draw: st.DrawFn) -> QueueLayout:
    make = draw(st.sampled_from([QueueLayout.split, QueueLayout.packed]))
    try:
        return make(draw(st.sampled_from([1, 8, 32, 64, 32768])), draw(PLACES))
    except ValueError:
        return QueueLayout.split(8, 0x10000)


OPERATIONS = st.one_of(
    st.tuples(st.just("write_status"), VALUES),
    st.tuples(st.just("driver_features"), WORDS),
    st.tuples(st.just("setup_queue"), INDICES, layouts()),
    st.tuples(st.just("reset_queue"), INDICES),
    st.tuples(st.just("kick"), INDICES),
    st.tuples(st.just("write_config"), st.integers(-5, 20), st.binary(max_size=20)),
    st.tuples(st.just("read_config"), st.integers(-5, 20), st.integers(-5, 1 << 20)),
    st.tuples(st.just("needs_reset"), st.just("test")),
    st.tuples(st.just("config_changed")),
    st.tuples(st.just("set_dma"), st.booleans()),
    st.tuples(st.just("scribble"), st.sampled_from([0x10000, 0x10080, 0x10082, 0x20000]), st.binary(max_size=64)),
)


@settings(max_examples=150, deadline=None)
@given(st.booleans(), st.lists(OPERATIONS, max_size=30))
def test_whatever_a_driver_does_nothing_is_raised(legacy: bool, operations: list[tuple[Any, ...]]) -> None:
    guest = Guest(Echo(queue_size=32, config=b"0123456789"), legacy=legacy)
    device = guest.device
    for name, *arguments in operations:
        if name == "scribble":
            guest.memory.write(*arguments)
            continue
        before = device.status
        getattr(device, name)(*arguments)
        assert device.negotiated & ~device.device_features == 0
        assert missing(device.negotiated, device.device_type) == []
        assert device.status & ~(READY | NEEDS_RESET | FAILED) == 0
        assert device.status & before == before or device.status == 0
        assert not device.live or device.status & DRIVER_OK
        assert legacy or not device.status & DRIVER_OK or device.status & FEATURES_OK
        assert bool(device.status & NEEDS_RESET) == (device.reason is not None)
        assert device.config == b"0123456789"
        hooks = [told for told in device.told if told in ("activate", "deactivate")]
        assert hooks[::2] == ["activate"] * len(hooks[::2]) and hooks[1::2] == ["deactivate"] * len(hooks[1::2])
        assert device.live == bool(len(hooks) % 2)
        for slot in device.queues:
            assert slot.enabled == (slot.layout is not None)
            assert slot.layout is None or slot.layout.size == slot.size <= slot.size_max
    # and an honest driver that comes after it is served
    device.set_dma(True)
    device.write_status(0)
    guest.memory.write(0, bytes(1 << 20))
    guest.up(0 if legacy else MODERN)
    assert guest.ask(b"honest") == b"HONEST"


def test_what_a_driver_does_wrong_takes_no_memory() -> None:
    device = Guest(Echo()).device
    for _ in range(1000):
        device.kick(99)
    assert len(device.refused) == 64
    assert device.counters["queue"] == 1000


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
