"""The console device before a driver of ours: bytes, sizes, ports, by each transport and ring format."""

from __future__ import annotations

import gc
import struct
from typing import Any
from weakref import ref

import pytest
from virtcon import ALL, WAYS, Virtcon, attach

from virtio import Feature
from virtio.console import ConsoleDevice, ConsoleFeature, ConsolePort
from virtio.console.control import Event
from virtio.constants import DeviceType
from virtio.errors import ConfigError
from virtio.features import names_of, parse

MANY = int(ConsoleFeature.MULTIPORT)
BOTH = pytest.mark.parametrize("way", WAYS)


def one(way: str = "split", **options: Any) -> tuple[ConsoleDevice, Virtcon]:
    """A console with one port and its driver."""
    console = ConsoleDevice(**options)
    how, wanted = WAYS[way]
    return console, attach(console, wanted, how=how)


@BOTH
def test_bytes_go_both_ways_and_wait_for_buffers(way: str) -> None:
    console, driver = one(way)
    heard: list[bytes] = []
    console.port.on_data = heard.append
    assert console.port.write(b"before any buffer") == 17
    assert console.port.out_waiting == 17
    driver.post(0, 6, 6, 64)
    assert driver.came(0) == [b"before", b" any b", b"uffer"]
    assert console.port.out_waiting == 0
    driver.post(0, 64)
    assert driver.queues[0].interrupt is not None
    driver.queues[0].interrupt.answer()
    console.port.write(b"at once")
    assert driver.queues[0].interrupt.answer()
    assert driver.received() == b"at once"
    driver.send(1, b"from ", b"the ", b"guest")
    driver.transmit(b"!")
    assert driver.sent(1) == 2
    assert b"".join(heard) == b"from the guest!"
    assert console.statistics()["port0"] == {"in_bytes": 24, "out_bytes": 15}
    assert not console.refused


@BOTH
def test_many_bytes_and_more_chains_than_the_ring_has(way: str) -> None:
    console, driver = one(way)
    text = bytes(range(256)) * 40
    driver.post(0, *[100] * 100)
    got = b""
    for at in range(0, len(text), 512):
        assert console.port.write(text[at : at + 512]) == 512
        fresh = driver.came(0)
        got += b"".join(fresh)
        driver.post(0, *[100] * len(fresh))
        driver.transmit(text[at : at + 512])
        assert driver.sent(1) == 1
    assert got == text
    assert console.port.read() == text


def test_a_guest_waits_while_nobody_reads() -> None:
    port = ConsolePort(console=True, limit=10)
    console = ConsoleDevice(port)
    driver = attach(console)
    for i in range(5):
        driver.transmit(b"%d23456" % i)
    assert driver.sent(1) == 2  # the second begins below the limit
    assert port.in_waiting == 12
    assert port.read(5) == b"02345"
    assert driver.sent(1) == 1  # and now the third
    assert port.read() == b"6123456" + b"223456"
    assert port.read() == b"323456423456"
    assert driver.sent(1) == 2
    driver.transmit(b"more")
    assert port.read() == b"more"


def test_a_lossy_port_keeps_the_last_bytes_and_no_guest_waiting() -> None:
    port = ConsolePort(console=True, limit=10, lossy=True)
    driver = attach(ConsoleDevice(port))
    for i in range(50):
        driver.transmit(b"%06d" % i)
        assert driver.sent(1) == 1
    assert port.read() == b"0048" + b"000049"
    assert port.counters["dropped_bytes"] == 290
    assert port.counters["out_bytes"] == 300


def test_write_says_how_much_it_took_and_when_there_is_room() -> None:
    ready: list[int] = []
    port = ConsolePort(console=True, limit=8, on_ready=lambda: ready.append(port.out_waiting))
    driver = attach(ConsoleDevice(port))
    assert port.write(b"0123456789") == 8
    assert port.write(b"x") == 0
    assert not ready
    driver.post(0, 5)
    assert ready == [3]
    assert port.write(memoryview(b"89abcd")) == 5
    driver.post(0, 64)
    assert driver.received() == b"0123456789abc"
    assert ready == [3, 0]
    driver.transmit(b"in")
    assert ready == [3, 0, 0]
    assert port.wait(0)
    assert port.read() == b"in"
    assert not port.wait(0.01)


def test_on_data_gets_first_what_waited() -> None:
    console, driver = one()
    driver.transmit(b"waited ")
    heard: list[bytes] = []
    console.port.on_data = heard.append
    assert heard == [b"waited "]
    driver.transmit(b"came")
    assert heard == [b"waited ", b"came"]
    console.port.on_data = None
    driver.transmit(b"waits")
    assert console.port.read() == b"waits"


def test_a_callback_may_write_and_its_errors_end_nothing(caplog: pytest.LogCaptureFixture) -> None:
    console, driver = one()

    def echo(data: bytes) -> None:
        console.port.write(data.upper())
        if data == b"bad":
            raise KeyError(data)

    console.port.on_data = echo
    driver.post(0, 64, 64, 64)
    for data in (b"one", b"bad", b"two"):
        driver.transmit(data)
    assert driver.received() == b"ONEBADTWO"
    assert console.port.counters["callback_errors"] == 1
    assert "KeyError" in caplog.text
    assert console.reason is None


@BOTH
def test_the_size_is_in_the_configuration_and_changes(way: str) -> None:
    how, wanted = WAYS[way]
    console = ConsoleDevice(rows=25, cols=81)
    driver = attach(console, wanted & ~MANY, how=how)
    assert struct.unpack("<HHI", driver.transport.read_config(0, 8)) == (81, 25, 1)
    driver.transport.config_bell.answer()
    console.resize(50, 132)
    assert driver.transport.config_bell.answer()
    assert struct.unpack("<HH", driver.transport.read_config(0, 4)) == (132, 50)
    console.resize(50, 132)
    assert not driver.transport.config_bell.answer()
    driver.transmit(b"$ ")  # Linux has a terminal by now
    assert driver.transport.config_bell.answer()
    driver.transmit(b"$ ")
    assert not driver.transport.config_bell.answer()
    for rows, cols in ((-1, 80), (24, 65536)):
        with pytest.raises(ValueError, match="65535"):
            console.resize(rows, cols)


@BOTH
def test_ports_and_what_is_said_of_them(way: str) -> None:
    how, wanted = WAYS[way]
    opened: list[bool] = []
    agent = ConsolePort("agent", on_open=opened.append)
    console = ConsoleDevice(ports=[agent, "log"], max_ports=5)
    driver = attach(console, wanted, how=how)
    assert console.negotiated & MANY
    assert driver.transport.read_config(4, 4) == struct.pack("<I", 5)
    agent.write(b"waits until it is open")
    driver.post(4, 64)
    console["log"].open = False
    assert driver.greet() == [
        (0, Event.DEVICE_ADD, 1, b""),
        (1, Event.DEVICE_ADD, 1, b""),
        (2, Event.DEVICE_ADD, 1, b""),
        (0, Event.CONSOLE_PORT, 1, b""),
        (0, Event.RESIZE, 1, struct.pack("<HH", 80, 24)),
        (0, Event.PORT_OPEN, 1, b""),
        (1, Event.PORT_NAME, 1, b"agent"),
        (1, Event.PORT_OPEN, 1, b""),
        (2, Event.PORT_NAME, 1, b"log"),
    ]
    assert opened == [True]
    assert driver.received(1) == b"waits until it is open"
    driver.transmit(b"to the log", 2)
    driver.transmit(b"to the agent", 1)
    assert agent.read() == b"to the agent"
    assert console["log"].read() == b""
    assert console["log"].counters == {"out_bytes": 10, "dropped_bytes": 10}
    console["log"].open = True
    console.resize(30, 90)
    console["log"].resize(1, 2)
    assert driver.heard() == [
        (2, Event.PORT_OPEN, 1, b""),
        (0, Event.RESIZE, 1, struct.pack("<HH", 90, 30)),
        (2, Event.RESIZE, 1, struct.pack("<HH", 2, 1)),
    ]
    driver.say(1, Event.PORT_OPEN, 0)
    assert opened == [True, False]
    with pytest.raises(KeyError):
        console["nobody"]
    assert not console.refused


def test_ports_come_and_go() -> None:
    console = ConsoleDevice(max_ports=3)
    driver = attach(console)
    driver.greet()
    second = console.add_port("second")
    assert driver.heard() == [(1, Event.DEVICE_ADD, 1, b"")]
    driver.say(1, Event.PORT_READY)
    assert [event for _, event, *_ in driver.heard()] == [Event.PORT_NAME, Event.PORT_OPEN]
    driver.say(1, Event.PORT_OPEN)
    driver.transmit(b"x", 1)
    console.remove_port(second)
    assert second.read() == b"x"
    assert second.id is None and not second.guest_open
    driver.transmit(b"y", 1)
    assert driver.sent(5) == 2
    assert console.counters["portless"] == 1
    third = console.add_port(ConsolePort("third"))
    assert third.id == 1
    assert driver.heard() == [(1, Event.DEVICE_REMOVE, 1, b""), (1, Event.DEVICE_ADD, 1, b"")]
    console.remove_port(third)
    fourth = console.add_port("fourth")
    console.remove_port(fourth)
    assert [event for _, event, *_ in driver.heard()] == [Event.DEVICE_REMOVE, Event.DEVICE_ADD, Event.DEVICE_REMOVE]
    with pytest.raises(ConfigError, match="not of this device"):
        console.remove_port(fourth)
    console.add_port(fourth, 2)
    with pytest.raises(ConfigError, match="taken or out of range"):
        console.add_port("other", 2)
    with pytest.raises(ConfigError, match="named 'fourth' already"):
        console.add_port("fourth")
    with pytest.raises(ValueError, match="belongs to a device"):
        ConsoleDevice(max_ports=2).add_port(fourth)


def test_of_ports_that_come_and_go_unseen_the_driver_hears_little() -> None:
    console = ConsoleDevice(max_ports=3)
    driver = attach(console)
    driver.post(2, 128)
    driver.say(0, Event.DEVICE_READY)
    driver.say(0, Event.PORT_READY)
    for _ in range(1000):
        console.remove_port(console.add_port("x"))
        console.port.open = not console.port.open
        console.resize(1, 1 + console.port.open)
    assert driver.heard() == [(0, Event.DEVICE_ADD, 1, b"")]
    assert [event for _, event, *_ in driver.heard()] == [Event.CONSOLE_PORT, Event.RESIZE, Event.PORT_OPEN]


def test_an_older_kernel_gets_rows_first() -> None:
    driver = attach(ConsoleDevice(max_ports=2, rows_first=True))
    assert (0, Event.RESIZE, 1, struct.pack("<HH", 24, 80)) in driver.greet()


def test_a_driver_without_multiport_has_the_first_port() -> None:
    console = ConsoleDevice(ports=["agent"])
    driver = attach(console, int(ALL) & ~MANY)
    assert len(driver.queues) == 2
    assert console.port.guest_open and not console["agent"].guest_open
    driver.post(0, 64)
    console.port.write(b"x")
    console["agent"].write(b"y")
    assert driver.received() == b"x"
    driver.detach()
    assert not console.port.guest_open


@BOTH
def test_reset_keeps_what_waits_and_forgets_what_was_said(way: str) -> None:
    how, wanted = WAYS[way]
    console = ConsoleDevice(ports=["agent"])
    driver = attach(console, wanted, how=how)
    driver.greet()
    console["agent"].write(b"held")
    driver.detach()
    assert not any(port.guest_open for port in console.ports)
    assert not console.control.ready
    console.port.write(b"typed ahead")
    driver.attach()
    driver.post(0, 64)
    driver.post(4, 64)
    assert driver.received() == b""
    assert len(driver.greet()) == 7
    assert driver.received() == b"typed ahead"
    assert driver.received(1) == b"held"


@pytest.mark.parametrize("how", ["direct", "direct legacy", "pci"])
def test_emergency_write_at_any_time(how: str) -> None:
    console = ConsoleDevice()
    driver = attach(console, how=how)
    driver.detach()
    for byte in b"panic":
        driver.transport.write_config(8, struct.pack("<I", 0xABCDEF00 | byte))
    driver.transport.write_config(8, b"!")
    driver.transport.write_config(9, b"\0\0\0")
    assert console.port.read() == b"panic!"
    assert not console.refused
    driver.transport.write_config(4, b"\1")
    driver.transport.write_config(0, bytes(12))
    assert console.counters["config"] >= 2


def test_features_and_names() -> None:
    assert names_of(7, DeviceType.CONSOLE) == ["SIZE", "MULTIPORT", "EMERG_WRITE"]
    assert parse("VIRTIO_CONSOLE_F_SIZE, multiport", DeviceType.CONSOLE) == 3
    assert not ConsoleDevice().offered & MANY
    assert len(ConsoleDevice().queues) == 2
    assert len(ConsoleDevice(max_ports=31).queues) == 64
    plain = ConsoleDevice(withhold="SIZE, EMERG_WRITE", offer=Feature.SUSPEND)
    assert not plain.offered & 7
    plain.write_config(8, b"x")
    assert plain.port.read() == b"" and plain.counters["config"] == 1
    plain.resize(1, 1)
    assert plain.read_config(0, 4) == bytes(4)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"ports": ["a"], "max_ports": 1}, "2 ports, max_ports 1"),
        ({"max_ports": 512}, "1 to 511"),
        ({"rows": 65536}, "0 to 65535"),
        ({"ports": ["a", "a"]}, "named 'a' already"),
        ({"ports": ["a"], "withhold": "MULTIPORT"}, "without MULTIPORT"),
        ({"offer": "MULTIPORT"}, "both offered and withheld"),
    ],
)
def test_consoles_that_cannot_be(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        ConsoleDevice(**options)


@pytest.mark.parametrize("options", [{"name": "n" * 121}, {"name": "a\0b"}, {"limit": 0}])
def test_ports_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"at (least|most)"):
        ConsolePort(**options)


def test_nothing_lies_in_a_cycle() -> None:
    gc.collect()
    gc.disable()
    try:
        console = ConsoleDevice(ports=["one"], max_ports=3)
        driver = attach(console)
        driver.greet()
        console.remove_port(console.add_port("two"))
        console["one"].on_data = list
        driver.transmit(b"x", 1)
        gone = [ref(each) for each in (console, console.control, *console.ports)]
        del driver, console
        assert [each() for each in gone] == [None] * 4
    finally:
        gc.enable()


def test_a_port_without_a_device() -> None:
    port = ConsolePort("alone")
    assert port.write(b"early") == 5
    assert port.read() == b""
    port.open = False
    assert port.write(b"x") == 0
    port.open = True
    port.on_data = print
    assert "alone" in repr(port)
