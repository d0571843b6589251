"""A hostile driver at the control plane: whatever it does, in any order, nothing is raised and nothing is lost."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from virtio_device import (
    ACK,
    DRIVER,
    DRIVER_OK,
    FAILED,
    FEATURES_OK,
    MODERN,
    NEEDS_RESET,
    READY,
    Echo,
    Guest,
)

from virtio import Feature, QueueLayout
from virtio.features import missing

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
        # a legacy driver may clear DRIVER_OK, as in QEMU: the device then stops
        kept = before & ~DRIVER_OK if legacy and name == "write_status" else before
        assert device.status & kept == kept or device.status == 0
        assert not before & DRIVER_OK or device.status & DRIVER_OK or not device.live
        assert not device.live or legacy or device.status & DRIVER_OK
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
