"""Snapshot and restore of a whole device."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from virtio_device import ACK, DRIVER, FAILED, MODERN, NEEDS_RESET, READY, Echo, Guest, Later, Silent

from virtio import Feature, GuestMemory
from virtio.errors import MemoryFault, NegotiationError

FORMATS = pytest.mark.parametrize(
    "features",
    [MODERN, MODERN | Feature.IN_ORDER, MODERN | Feature.RING_PACKED, MODERN | Feature.RING_PACKED | Feature.IN_ORDER],
    ids=["split", "split in order", "packed", "packed in order"],
)


def move(guest: Guest, device: Any, state: dict[str, Any] | None = None) -> Guest:
    """Go on with another device, on a copy of the memory; the driver's queues move too."""
    state = json.loads(json.dumps(guest.device.snapshot() if state is None else state))
    memory = GuestMemory.allocate(1 << 20)
    memory.write(0, guest.memory.read(0, 1 << 20))
    new = Guest(device, legacy=guest.device.legacy, memory=memory)
    for index, queue in guest.queues.items():
        new.queues[index] = type(queue).restore(memory, queue.state(), {})
    device.restore(state, memory)
    return new


@FORMATS
def test_a_live_device_goes_on(features: int) -> None:
    guest = Guest(Echo(config=b"abc", queue_size=64)).up(features)
    for i in range(13):  # over the end of the ring
        assert guest.ask(b"%d" % i) is not None
    guest.device.config_changed()
    new = move(guest, Echo(config=b"xyz", queue_size=64))
    device = new.device
    assert (device.status, device.negotiated, device.generation) == (READY, features, 1)
    assert device.config == b"abc"
    assert device.told == ["activate"]
    assert [slot.size for slot in device.queues] == [8, 8]
    for i in range(20):
        text = b"more %d" % i
        assert new.ask(text, i & 1) == text.upper()
    # and the old one has not noticed
    assert guest.ask(b"still here") == b"STILL HERE"
    assert guest.device.told == ["activate", "pause", "resume"]


@FORMATS
def test_chains_in_flight_are_finished_after_it(features: int) -> None:
    guest = Guest(Later()).up(features)
    for text in (b"a", b"b", b"c"):
        guest.send(text)
    new = move(guest, Later())
    assert new.device.told == [("load", 3), "activate"]
    assert len(new.device.held) == 3
    new.device.finish()
    completions = new.queues[0].dequeue_burst()
    assert [length for _, length in completions] == [1, 1, 1]
    assert [new.memory.read(0x80800 + 0x1000 * i, 1) for i in range(3)] == [b"A", b"B", b"C"]


@FORMATS
def test_what_the_driver_made_available_is_served_though_its_kick_was_lost(features: int) -> None:
    guest = Guest(Echo()).up(features)
    guest.ask(b"a")
    guest.send(b"b", kick=False)
    guest.queues[0].notify()  # the kick that went to the old process
    new = move(guest, Echo())
    assert new.queues[0].dequeue() is not None
    assert new.ask(b"c") == b"C"


@FORMATS
def test_each_queue_interrupts_once_though_nothing_is_new(features: int) -> None:
    guest = Guest(Echo()).negotiate(features).setup(0).go()
    guest.ask(b"a")
    new = move(guest, Echo())
    assert new.calls.rings(0) == 1
    assert new.calls.rings(1) == 0  # not set up
    assert new.calls.configs == 0


class Cut(Later):
    """Its process ends in the middle of a burst: the interrupt is decided, and not sent."""

    def notified(self, index: int) -> None:
        super().notified(index)
        self.finish()
        self.state = self.snapshot()


@FORMATS
def test_an_interrupt_that_was_owed_comes_after_it(features: int) -> None:
    device = Cut()
    guest = Guest(device).up(features)
    guest.send(b"a")
    new = move(guest, Later(), device.state)
    assert new.calls.rings() == 1
    assert new.queues[0].dequeue() is not None
    assert new.calls.configs == 0


def test_the_next_decision_is_yes_whatever_the_event_index() -> None:
    guest = Guest(Later()).up()
    guest.send(b"a")
    guest.queues[0].disable_intr()
    new = move(guest, Later())
    before = new.calls.rings()
    new.device.finish()
    assert new.calls.rings() == before + 1


@pytest.mark.parametrize("legacy", [False, True])
def test_before_driver_ok(legacy: bool) -> None:
    guest = Guest(Echo(), legacy=legacy).negotiate(0 if legacy else MODERN).setup(0)
    guest.send(b"early", kick=not legacy)  # a legacy driver's kick would start it
    new = move(guest, Echo())
    assert new.device.told == []
    assert new.calls.rings() == 0
    new.go()
    new.device.kick(0)
    assert new.queues[0].dequeue() is not None
    assert new.device.told == ["activate"]


def test_before_features_ok() -> None:
    guest = Guest(Echo())
    guest.device.write_status(ACK | DRIVER)
    guest.device.driver_features(MODERN)
    new = move(guest, Echo())
    new.device.write_status(ACK | DRIVER | 8)
    assert new.device.negotiated == MODERN


def test_a_failed_and_a_broken_one() -> None:
    guest = Guest(Echo()).up()
    guest.memory.write_u16(guest.layout(0).driver + 2, 1000)
    guest.device.kick(0)
    new = move(guest, Echo())
    assert new.device.status == READY | NEEDS_RESET
    assert new.device.reason == guest.device.reason
    assert new.device.queues[0].broken == guest.device.queues[0].broken
    assert new.ask(b"other", 1) == b"OTHER"
    guest.device.write_status(READY | FAILED)
    new = move(guest, Echo())
    assert new.device.told == [] and not new.device.live


def test_a_snapshot_does_not_let_a_device_at_its_memory() -> None:
    guest = Guest(Echo()).up()
    guest.device.set_dma(False)
    guest.device.told.clear()
    guest.device.snapshot()
    assert guest.device.told == []


def test_a_device_that_no_transport_shows_is_a_bug_of_the_embedder() -> None:
    guest = Guest(Echo()).up()
    with pytest.raises(RuntimeError, match="is not bound"):
        Echo().restore(guest.device.snapshot(), guest.memory)


def test_kicks_of_a_device_without_a_handler() -> None:
    guest = Guest(Silent()).up(queues=(0,))
    new = move(guest, Silent())
    assert new.device.queues[0].kick.answer()
    assert new.calls.rings(0) == 1


def test_restore_onto_a_device_in_use() -> None:
    guest = Guest(Echo()).up()
    guest.ask(b"a")
    state = guest.device.snapshot()
    memory = guest.memory.read(0, 1 << 20)
    driver = guest.queues[0].state()
    for i in range(5):
        guest.ask(b"%d" % i)
    guest.memory.write(0, memory)
    guest.queues[0] = type(guest.queues[0]).restore(guest.memory, driver, {})
    guest.device.told.clear()
    guest.device.restore(state, guest.memory)
    assert guest.device.told == ["deactivate", "activate"]
    assert guest.ask(b"again") == b"AGAIN"


def test_restore_onto_other_memory() -> None:
    guest = Guest(Echo()).up()
    guest.ask(b"a")
    memory = GuestMemory.allocate(1 << 20)
    memory.write(0, guest.memory.read(0, 1 << 20))
    guest.device.restore(guest.device.snapshot(), memory)
    assert guest.device.memory is memory
    guest.memory = memory
    guest.queues[0] = type(guest.queues[0]).restore(memory, guest.queues[0].state(), {})
    assert guest.ask(b"again") == b"AGAIN"
    guest.device.write_status(0)
    assert guest.up().ask(b"anew") == b"ANEW"


def test_bells_that_a_transport_set_stay() -> None:
    guest = Guest(Echo()).up()
    bell = guest.calls.bells[0]
    guest.device.restore(guest.device.snapshot(), guest.memory)
    assert guest.device.queues[0].call is bell


def no_such_queue(state: dict[str, Any]) -> None:
    state["queues"].append(state["queues"][0])


def too_large(state: dict[str, Any]) -> None:
    state["queues"][0]["layout"]["size"] = 512


def other_format(state: dict[str, Any]) -> None:
    state["queues"][0]["layout"].update(is_packed=True, device=0x10100)


def outside(state: dict[str, Any]) -> None:
    state["queues"][0]["layout"]["desc"] = state["queues"][0]["state"]["layout"]["desc"] = 1 << 30


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda state: state.update(device_type=1), ValueError, "device_type is 1: this device is of type 3"),
        (lambda state: state.update(legacy=True), ValueError, "of the legacy interface, not of the modern one"),
        (no_such_queue, ValueError, "queues has 3 entries, not 2"),
        (too_large, ValueError, "which this device cannot have"),
        (other_format, ValueError, "which this device cannot have"),
        (outside, MemoryFault, "0x40000000"),
        (lambda state: state.update(config="0011"), ValueError, "config has 2 bytes, not 0"),
        (lambda state: state.update(negotiated=1 << 60 | 1 << 40), NegotiationError, "does not offer: bit 60"),
        (lambda state: state.pop("reason"), ValueError, "state: reason is missing"),
        (lambda state: state["queues"][0].update(state=7), ValueError, r"queues\[0\].state is 7: no mapping"),
    ],
)
def test_states_that_cannot_be(change: Callable[[dict[str, Any]], None], error: type[Exception], text: str) -> None:
    guest = Guest(Echo()).up()
    guest.ask(b"a")
    state = json.loads(json.dumps(guest.device.snapshot()))
    change(state)
    other = Guest(Echo())
    with pytest.raises(error, match=text):
        other.device.restore(state, other.memory)
    assert (other.device.status, other.device.live) == (0, False)
    assert other.up().ask(b"usable") == b"USABLE"
