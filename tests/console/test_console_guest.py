"""Our console before the Linux kernel's own driver, virtio_console, over vhost-user: user-mode Linux."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
from umlguest import Uml
from waiting import wait_for

from virtio import Feature
from virtio.console import ConsoleDevice, ConsoleFeature, ConsolePort
from virtio.constants import DeviceType
from virtio.vhost_user import Server

OPEN = """
exec 3<>/dev/hvc0
stty raw -echo -F /dev/hvc0
echo HELLO >&3
byte() { dd bs=1 count=1 2>/dev/null <&3; }
"""
KINDS = pytest.mark.parametrize(
    "more", [{}, {"withhold": "RING_PACKED"}, {"max_ports": 3}], ids=["packed", "split", "multiport"]
)


def data(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def size(what: str) -> str:
    """Wait until the terminal has a size, and say it: it comes another way than the bytes."""
    return f"for i in $(seq 50); do stty size -F /dev/hvc0 | grep '{what}' && break; sleep 0.1; done"


class Collected:
    """A port's on_data, which remembers."""

    def __init__(self) -> None:
        self.content = bytearray()

    def __call__(self, more: bytes) -> None:
        self.content += more

    def wait(self, what: bytes) -> None:
        wait_for(lambda: what in self.content, 60, f"{what!r} did not come: {bytes(self.content)[-200:]!r}")


def send(port: ConsolePort, content: bytes) -> None:
    """Write all of it, as the guest takes it."""
    while content:
        content = content[port.write(content) :]
        wait_for(lambda: port.out_waiting < port.limit, 60)


@KINDS
def test_a_terminal_carries_bytes_both_ways_and_changes_its_size(more: dict[str, Any], tmp_path: Path) -> None:
    console = ConsoleDevice(**more)
    console.port.on_data = seen = Collected()
    lines = [
        OPEN, size("24 80"), "byte", size("33 99"), "head -c 20000 <&3 | sha256sum",
        "dd if=/bin/busybox bs=1000 count=20 2>/dev/null >&3", "exec 3>&-",
    ]  # fmt: skip
    with Server(console, tmp_path / "s") as server:
        for _ in range(2):  # it may be booted again
            seen.content.clear()
            console.resize(24, 80)
            with Uml(server.path, "\n".join(lines), tmp_path, kind=DeviceType.CONSOLE) as guest:
                seen.wait(b"HELLO\n")
                assert console.port.guest_open
                guest.wait_for("24 80")
                console.resize(33, 99)
                negotiated = console.negotiated
                assert console.port.write(b"x") == 1
                guest.wait_for("33 99")
                send(console.port, data(20000))
                said = guest.finish()
            assert digest(data(20000)) in said
            assert not console.port.guest_open
            busybox = Path("/bin/busybox").read_bytes()[:20000]
            assert bytes(seen.content) == b"HELLO\n" + busybox
        assert server.error is None
        assert server.connections == 2
    assert not console.refused
    assert bool(negotiated & ConsoleFeature.MULTIPORT) == (console.max_ports > 1)
    assert bool(negotiated & Feature.RING_PACKED) == ("withhold" not in more)


PORTS = """
name() { for i in $(seq 50); do [ -e /sys/class/virtio-ports/$1/name ] && break; sleep 0.1; done
    echo $1 $(cat /sys/class/virtio-ports/$1/name); }
"""


def test_ports_by_name_plugged_and_unplugged(tmp_path: Path) -> None:
    """A generic port is a file; what is written before the guest opens it waits; and it goes and comes."""
    heard: list[bool] = []
    agent = ConsolePort("org.virtio.agent", on_open=heard.append)
    console = ConsoleDevice(ports=[agent], max_ports=4)
    console.port.on_data = terminal = Collected()
    agent.on_data = seen = Collected()
    lines = [
        OPEN, PORTS, "name vport0p1", "exec 4<>/dev/vport0p1", "sha256sum /bin/busybox", "cat /bin/busybox >&4",
        "head -c 300000 <&4 | sha256sum", "exec 4>&-",
        "echo PLUG >&3", "name vport0p2", "echo from-two > /dev/vport0p2",
        "echo UNPLUG >&3", "for i in $(seq 50); do [ -e /dev/vport0p2 ] || break; sleep 0.1; done", "ls /dev/vport*",
        "echo AGAIN >&3", "name vport0p2", "cat /dev/vport0p2", "echo EOF",
    ]  # fmt: skip
    agent.write(b"early")
    with Server(console, tmp_path / "s") as server:
        with Uml(server.path, "\n".join(lines), tmp_path, kind=DeviceType.CONSOLE) as guest:
            terminal.wait(b"HELLO\n")
            send(agent, data(300000 - 5))
            terminal.wait(b"PLUG\n")
            second = console.add_port("second")
            second.on_data = other = Collected()
            other.wait(b"from-two\n")
            terminal.wait(b"UNPLUG\n")
            assert console["second"] is second
            console.remove_port(second)
            terminal.wait(b"AGAIN\n")
            third = console.add_port(ConsolePort("third"))
            assert third.id == 2
            third.write(b"last words\n")
            wait_for(lambda: third.guest_open and not third.out_waiting, 60)
            third.open = False  # end of file to its reader
            said = guest.finish()
        assert server.error is None
    busybox = Path("/bin/busybox").read_bytes()
    assert digest(bytes(seen.content)) == digest(busybox)
    assert digest(b"early" + data(300000 - 5)) in said
    assert "vport0p1 org.virtio.agent" in said
    assert "vport0p2 second" in said and "vport0p2 third" in said
    assert "last words\nEOF" in said, said
    assert heard == [True, False]
    assert console.counters["control"] <= 1  # it may say that a port is closed which is gone


def test_the_driver_is_unbound_and_bound_again(tmp_path: Path) -> None:
    """User-mode Linux stops no ring and resets nothing then: the driver says DEVICE_READY a second time."""
    console = ConsoleDevice(ports=["agent"])
    console["agent"].on_data = seen = Collected()
    driver = "/sys/bus/virtio/drivers/virtio_console"
    lines = [PORTS, f"device=$(basename {driver}/virtio*)"]
    for i in range(3):
        lines += [
            *("name vport0p1", f"echo turn-{i} > /dev/vport0p1", "head -c 6 /dev/vport0p1"),
            *(f"echo $device > {driver}/unbind", "ls /dev/vport* || echo GONE", f"echo $device > {driver}/bind"),
        ]
    with Server(console, tmp_path / "s") as server:
        with Uml(server.path, "\n".join(lines), tmp_path, kind=DeviceType.CONSOLE) as guest:
            for i in range(3):
                seen.wait(f"turn-{i}\n".encode())
                console["agent"].write(f"to-{i:2}\n".encode())
            said = guest.finish()
        assert server.error is None
    assert said.count("vport0p1 agent") == 3, said
    assert said.count("GONE") == 3, said
    assert all(f"to-{i:2}\n" in said for i in range(3)), said
