"""The control conversation under any order of events: what is told stays possible, and bounded."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from virtio.console import ConsoleError, ConsolePort
from virtio.console.control import HEADER, OURS, Control, Event

NUMBERS = st.integers(0, 1)
STEPS = st.one_of(
    st.tuples(st.just("driver"), st.integers(0, 2), st.integers(0, 9), st.integers(0, 2)),
    st.just(("answer",)),
    st.just(("driver", 0, 0, 1)),
    st.tuples(st.just("device"), st.sampled_from(["plug", "unplug"]), NUMBERS),
    st.tuples(st.just("device"), st.sampled_from(["open", "resize"]), NUMBERS),
    st.tuples(st.just("tell"), st.integers(1, 9)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_what_the_driver_is_told_is_possible(steps: list[tuple[object, ...]]) -> None:
    """Since the last DEVICE_READY: no port is added twice, none is named before, and none removed that is not there."""
    ports = {0: ConsolePort("zero", console=True)}
    control = Control(ports)
    there: set[int] = set()
    for step in steps:
        match step:
            case ("driver", int(number), int(event), int(value)):
                if event == Event.DEVICE_READY:
                    there.clear()
                with suppress(ConsoleError):
                    control.obey(HEADER.pack(number, event, value))
            case ("answer",):
                for number in there:
                    with suppress(ConsoleError):
                        control.obey(HEADER.pack(number, Event.PORT_READY, 1))
            case ("device", "plug", int(number)) if number not in ports:
                ports[number] = ConsolePort(f"port {number}")
                control.add(number)
            case ("device", "unplug", int(number)) if number in ports:
                del ports[number]
                control.remove(number)
            case ("device", "open", int(number)) if number in ports:
                ports[number].open = not ports[number].open
                control.changed(number, Event.PORT_OPEN)
            case ("device", "resize", int(number)) if number in ports:
                control.changed(number, Event.RESIZE)
            case ("tell", int(times)):
                for _ in range(times):
                    if control.waits:
                        told(control, there)
        assert len(control.save()["pending"]) <= 2 * len(OURS)
        again = Control(ports)
        again.load(**control.save())
        assert again.save() == control.save()


def told(control: Control, there: set[int]) -> None:
    """Take one message, as a driver that holds it against the rules."""
    number, event, value = HEADER.unpack_from(control.message())
    control.told()
    assert value in (0, 1)
    if event == Event.DEVICE_ADD:
        assert number not in there
        there.add(number)
    else:
        assert number in there
        if event == Event.DEVICE_REMOVE:
            there.remove(number)
