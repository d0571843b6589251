"""A console before drivers that break rules: each fault is counted by its name, and bounded."""

from __future__ import annotations

import tracemalloc

import pytest
from formats import FORMATS
from virtcon import ALL, BUFFERS, CONTROL, MEMORY, PACKED, Virtcon, attach

from virtio import GuestMemory
from virtio.console import ConsoleDevice, ConsoleError, ConsoleFeature, ConsolePort
from virtio.console.control import Event
from virtio.constants import Status
from virtio.errors import RingError
from virtio.virtqueue.layout import QueueLayout


def ports(packed: bool = False) -> tuple[ConsoleDevice, Virtcon]:
    console = ConsoleDevice(ports=["one"], max_ports=3)
    return console, attach(console, PACKED if packed else int(ALL))


def works(console: ConsoleDevice, driver: Virtcon, number: int = 0) -> bool:
    """Whether bytes pass in both directions."""
    port = next(each for each in console.ports if each.id == number)
    driver.transmit(b"sent", number)
    driver.post(4 * bool(number), 64, 64, 64)
    port.write(b"given")
    return port.read().endswith(b"sent") and driver.received(number).endswith(b"given")


@FORMATS
@pytest.mark.parametrize(
    ("message", "what"),
    [
        (b"", "0 bytes"),
        (CONTROL.pack(0, Event.PORT_OPEN, 1)[:7], "7 bytes"),
        (CONTROL.pack(0, Event.DEVICE_READY, 0), "DEVICE_READY 0"),
        (CONTROL.pack(0, Event.DEVICE_READY, 2), "DEVICE_READY 2"),
        (CONTROL.pack(1, Event.PORT_READY, 0), "cannot use it"),
        (CONTROL.pack(1, Event.PORT_READY, 7), "neither 0 nor 1"),
        (CONTROL.pack(1, Event.PORT_OPEN, 0xFFFF), "neither 0 nor 1"),
        (CONTROL.pack(2, Event.PORT_OPEN, 1), "told of no such port"),
        (CONTROL.pack(0xFFFFFFFF, Event.PORT_READY, 1), "port 4294967295: the driver was told of no such port"),
        *((CONTROL.pack(0, event, 1), f"event {event}") for event in (1, 2, 4, 5, 7, 8, 0xFFFF)),
    ],
)
def test_control_messages_that_cannot_be(packed: bool, message: bytes, what: str) -> None:
    console, driver = ports(packed)
    driver.greet()
    driver.queues[3].queue.enqueue([(BUFFERS, len(message))] if message else [], [] if message else [(BUFFERS, 1)])
    driver.memory.write(BUFFERS, message)
    driver.queues[3].notify()
    assert driver.sent(3) == 1
    assert console.counters["control"] == 1
    assert isinstance(console.refused[-1], ConsoleError)
    assert what in str(console.refused[-1])
    assert console.reason is None
    driver.greet()
    assert works(console, driver)
    assert works(console, driver, 1)


def test_messages_in_pieces_and_with_more_behind() -> None:
    console, driver = ports()
    driver.heard(32)
    message = CONTROL.pack(0, Event.DEVICE_READY, 1)
    driver.send(3, message[:1], message[1:6], message[6:] + b"more" * 100)
    assert len(driver.heard()) == 2
    assert not console.refused


def test_messages_before_the_device_is_ready() -> None:
    console, driver = ports()
    driver.say(0, Event.PORT_READY)
    driver.say(0, Event.PORT_OPEN)
    assert console.counters["control"] == 2
    assert not console.port.guest_open
    driver.post(2, 0x80, kick=False)
    driver.say(0, Event.DEVICE_READY)
    driver.say(1, Event.PORT_READY)  # it was told of port 0 only, since it had no more buffers
    assert console.counters["control"] == 3


def test_a_driver_that_asks_for_ever_and_takes_nothing() -> None:
    console, driver = ports()
    for _ in range(50):
        for event in (Event.DEVICE_READY, Event.PORT_READY, Event.PORT_READY):
            driver.say(1, event)
    tracemalloc.start()
    try:
        for i in range(2000):
            driver.say(i % 4, (Event.DEVICE_READY, Event.PORT_READY, Event.PORT_OPEN, 99)[i // 4 % 4])
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()
    assert len(console.control.save()["pending"]) <= 2
    assert len(console.refused) == 64
    driver.greet()
    assert works(console, driver, 1)


@FORMATS
def test_buffers_of_the_wrong_direction(packed: bool) -> None:
    console, driver = ports(packed)
    driver.greet()
    for index in (0, 4):
        driver.queues[index].queue.enqueue([(BUFFERS, 64)], [], (BUFFERS, 0))
        driver.queues[index].notify()
    console.port.write(b"not lost")
    console["one"].write(b"not lost")
    for number, index in ((0, 0), (1, 4)):
        assert driver.came(index) == [b""]
        driver.post(index, 64)
        assert driver.received(number) == b"not lost"
    driver.queues[1].queue.enqueue([(BUFFERS, 4)], [(BUFFERS + 64, 64)], None)
    driver.memory.write(BUFFERS, b"here")
    driver.queues[1].notify()
    assert driver.queues[1].queue.dequeue() == (None, 0)
    assert console.port.read() == b"here"
    driver.queues[3].queue.enqueue([], [(BUFFERS, 64)], None)
    driver.queues[3].notify()
    assert console.counters["direction"] == 4
    assert console.counters["control"] == 1
    assert works(console, driver)


def test_a_chain_that_names_the_same_memory_often_is_cut() -> None:
    console, driver = ports()
    driver.greet()
    driver.memory.write(BUFFERS, b"x" * (1 << 20))
    driver.queues[1].queue.enqueue([(BUFFERS, 1 << 20)] * 8, [], None)
    driver.queues[1].notify()
    assert driver.sent(1) == 1
    assert console.port.read() == b"x" * (1 << 20)
    assert console.counters["too_long"] == 1
    assert works(console, driver)


def test_what_a_port_holds_is_bounded_while_nobody_reads() -> None:
    console, driver = ports()
    driver.greet()
    queue = driver.queues[1].queue
    while queue.nfree:
        queue.enqueue([(BUFFERS, 1 << 20)], [], None)
    driver.queues[1].notify()
    assert console.port.in_waiting == 1 << 20
    assert driver.sent(1) == 1
    console.port.open = False  # and now all of it is dropped
    assert driver.sent(1) == 127
    assert console.port.counters["dropped_bytes"] == 127 << 20


def test_buffers_that_no_message_fits_into() -> None:
    console, driver = ports()
    driver.post(2, 1, 7, 8, 8, 8, 8, 12)
    driver.say(0, Event.DEVICE_READY)
    for number in (0, 1):
        driver.say(number, Event.PORT_READY)
    assert [len(each) for each in driver.came(2)] == [0, 0, 8, 8, 8, 0, 12]
    assert console.counters["short"] == 3
    assert [(number, event) for number, event, *_ in driver.heard()] == []
    assert [event for _, event, *_ in driver.heard()] == [Event.PORT_OPEN, Event.PORT_NAME, Event.PORT_OPEN]


@pytest.mark.parametrize("index", [0, 1, 3, 4, 5])
def test_a_ring_that_breaks_takes_no_other_along(index: int) -> None:
    console, driver = ports()
    driver.greet()
    for port in console.ports:
        port.write(b"something waits")
    broken(console, driver, index)
    for port in console.ports:
        assert port.write(b"x") == 1  # nothing is raised, and it waits for the next driver
    assert works(console, driver, 1 if index < 2 else 0)
    driver.detach()
    driver.attach()
    driver.greet()
    assert works(console, driver, 0)
    assert works(console, driver, 1)


def test_a_control_ring_that_breaks_when_something_is_to_be_said() -> None:
    console, driver = ports()
    driver.say(0, Event.DEVICE_READY)
    broken(console, driver, 2)
    for _ in range(10):
        console["one"].open = not console["one"].open
    driver.detach()
    driver.attach()
    driver.greet()
    assert works(console, driver, 1)


def broken(console: ConsoleDevice, driver: Virtcon, index: int) -> None:
    """Break a ring, and see that the device says so."""
    driver.memory.write(driver.queues[index].layout.driver + 2, b"\0\x80")  # avail.idx
    driver.queues[index].kick.ring()
    assert driver.transport.status & Status.DEVICE_NEEDS_RESET
    assert f"queue {index}" in str(console.reason)
    assert isinstance(console.refused[-1], RingError)
    assert console.counters["fault"] == 1


def test_queues_that_multiport_would_have() -> None:
    console = ConsoleDevice(ports=["one"])
    memory = GuestMemory.allocate(MEMORY)
    driver = attach(console, int(ALL) & ~ConsoleFeature.MULTIPORT, memory=memory)
    assert len(console.queues) == 6
    driver.detach()
    transport = driver.transport
    transport.status = Status.ACKNOWLEDGE | Status.DRIVER
    transport.write_features(int(ALL) & transport.read_features() & ~ConsoleFeature.MULTIPORT)
    transport.status = Status.FEATURES_OK
    for index in range(6):
        transport.setup_queue(index, QueueLayout.split(8, 0x1000 * (index + 1)))
    transport.status = Status.DRIVER_OK
    console["one"].write(b"waits")
    for index in range(6):
        transport.kick_bell(index).ring()
    assert console.reason is None
    assert console["one"].out_waiting == 5


def test_a_callback_that_unplugs_its_port_or_resets_the_device() -> None:
    console, driver = ports()
    driver.greet()
    one = console["one"]
    one.on_data = lambda _: console.remove_port(one)
    driver.transmit(b"first", 1)
    driver.transmit(b"second", 1)
    assert driver.sent(5) == 2
    assert console.counters["portless"] == 1
    console.port.on_data = lambda _: console.reset()
    driver.transmit(b"x")
    assert driver.sent(1) == 0
    assert console.status == 0
    assert console.reason is None


def test_a_port_of_a_device_that_is_gone() -> None:
    port = ConsolePort()
    ConsoleDevice(port)
    assert port.write(b"x") == 1
    port.open = False
    port.resize(1, 1)
    port.on_data = print
