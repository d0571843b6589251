"""Snapshots of the console: it goes on elsewhere, no byte is lost or comes twice, and no malformed state is taken."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from formats import FORMATS
from virtcon import ALL, PACKED, Virtcon, attach

from virtio import GuestMemory
from virtio.console import ConsoleDevice, ConsolePort
from virtio.console.control import Event
from virtio.errors import SnapshotError


def busy(packed: bool = False) -> tuple[ConsoleDevice, Virtcon]:
    """A console in the middle of everything: something waits everywhere."""
    console = busy_ports()
    driver = attach(console, PACKED if packed else int(ALL))
    driver.greet()
    driver.came(2)
    driver.queues[2].queue.disable_intr()
    driver.post(0, 3)
    console.port.write(b"to guest")
    console["agent"].write(b"agent")
    driver.say(2, Event.PORT_OPEN, 0)
    console["log"].write(b"held")
    for text in (b"from ", b"guest ", b"waits "):
        driver.transmit(text)
    return console, driver


def busy_ports() -> ConsoleDevice:
    return ConsoleDevice(ConsolePort(console=True, limit=8), ports=["agent", "log"], max_ports=4)


def moved(
    console: ConsoleDevice, driver: Virtcon, other: ConsoleDevice, packed: bool = False
) -> tuple[ConsoleDevice, Virtcon]:
    """Device and guest on another machine."""
    state = json.loads(json.dumps(console.snapshot()))
    region = driver.memory.regions[0]
    memory = GuestMemory([(region.gpa, bytearray(driver.memory.read(region.gpa, region.size)))])
    again = attach(other, PACKED if packed else int(ALL), memory=GuestMemory.allocate(1 << 22))
    queues = {index: each.queue.state() for index, each in driver.queues.items()}
    kept = {index: [each[0] for each in state["outstanding"]] for index, state in queues.items()}
    again.memory, again.next = memory, driver.next
    other.restore(state, memory)
    for index, attached in again.queues.items():
        cookies = dict.fromkeys(kept[index], (0, 0))
        attached.queue = type(attached.queue).restore(memory, queues[index], cookies)
        attached.kick = other.queues[index].kick
    return other, again


@FORMATS
def test_it_goes_on_elsewhere(packed: bool) -> None:
    console, driver = busy(packed)
    assert driver.received() == b"to "
    assert driver.sent(1) == 2
    console.resize(40, 100)
    console["agent"].open = False
    there, guest = moved(console, driver, busy_ports(), packed)
    for each in (there, console):
        assert [(port.rows, port.cols) for port in each.ports] == [(40, 100), (0, 0), (0, 0)]
        assert [port.guest_open for port in each.ports] == [True, True, False]
        assert each["log"].out_waiting == 4
    assert there.read_config(0, 8) == console.read_config(0, 8)
    assert there["agent"].open  # that is the new embedder's, and the driver hears of it
    guest.came(0)
    guest.post(0, 64)
    assert guest.received() == b"guest"
    assert there.port.read() == b"from guest "
    assert there.port.read() == b"waits "
    assert guest.sent(1) == 1
    guest.say(2, Event.PORT_OPEN)
    guest.post(6, 64)
    assert guest.received(2) == b"held"
    driver.post(0, 64)  # and the first goes on as well
    assert driver.received() == b"guest"
    assert console.port.read() == b"from guest "


def test_control_messages_that_wait() -> None:
    console = ConsoleDevice(max_ports=3)
    driver = attach(console)
    driver.say(0, Event.DEVICE_READY)
    extra = console.add_port("x")
    driver.post(2, 128)
    assert [event for _, event, *_ in driver.heard(0)] == [Event.DEVICE_ADD]
    state = json.loads(json.dumps(console.snapshot()))
    assert state["own"]["control"]["pending"] == [[1, Event.DEVICE_ADD]]
    console.remove_port(extra)
    console.add_port("x")
    console.restore(state, driver.memory)
    assert [(number, event) for number, event, *_ in driver.heard()] == []
    assert [(number, event) for number, event, *_ in driver.heard()] == [(1, Event.DEVICE_ADD)]
    assert console.port.id == 0


@FORMATS
def test_a_port_that_is_open_here_and_was_not_there(packed: bool) -> None:
    console = ConsoleDevice(max_ports=2)
    driver = attach(console, PACKED if packed else int(ALL))
    driver.post(2, *[128] * 5)
    driver.say(0, Event.DEVICE_READY)
    driver.say(0, Event.PORT_READY)
    console.port.open = False
    assert driver.heard(0)[-1] == (0, Event.PORT_OPEN, 0, b"")
    _, guest = moved(console, driver, ConsoleDevice(max_ports=2), packed)
    guest.heard()
    assert guest.heard() == [(0, Event.PORT_OPEN, 1, b"")]


def places(state: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, child in state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ():
        yield from places(child, (*path, key))


WRONG = [None, "x", "00", "0", -1, 0, 1, 2, 5, 1 << 64, 1.5, [], {}, [[0, 0]], [[1, 4]], [0] * 70000, "00" * (1 << 21)]


def test_malformed_states_are_refused_or_work() -> None:
    console, driver = busy()
    state = json.loads(json.dumps(console.snapshot()))
    refused = 0
    for path in places(state["own"], ("own",)):
        for value in WRONG:
            wrong = copy.deepcopy(state)
            parent = wrong
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = value
            try:
                console.restore(wrong, driver.memory)
            except SnapshotError as error:
                refused += 1
                assert error.field.startswith("own"), error
                assert console.status == 0
            else:
                assert console.status == state["status"]
    assert refused > 300
    for gone in ("control", "ports"):
        wrong = copy.deepcopy(state)
        del wrong["own"][gone]
        with pytest.raises(SnapshotError, match=f"own.{gone} is missing"):
            console.restore(wrong, driver.memory)
    console.restore(state, driver.memory)
    assert console.port.guest_open


@pytest.mark.parametrize("ports", [["agent"], ["agent", "lag"], ["log", "agent"]])
def test_another_devices_ports(ports: list[str]) -> None:
    console, driver = busy()
    with pytest.raises(SnapshotError, match=r"own\.ports"):
        ConsoleDevice(ports=ports, max_ports=4).restore(console.snapshot(), driver.memory)
    with pytest.raises(SnapshotError, match="queues"):
        ConsoleDevice(ports=["agent", "log"]).restore(console.snapshot(), driver.memory)
