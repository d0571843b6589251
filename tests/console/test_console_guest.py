"""Our console before the Linux kernel's own driver, virtio_console, over vhost-user: user-mode Linux."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from guestprocess import GuestProcess
from peers import need_peer
from qemuguest import Qemu
from umlguest import Uml
from waiting import wait_for

from virtio import Feature
from virtio.console import ConsoleDevice, ConsoleFeature, ConsolePort
from virtio.constants import DeviceType
from virtio.vhost_user import Server

# hvc0 is there once the control queue has said that the port is a console; before, to open it would make a file
OPEN = """
for i in $(seq 300); do [ -c /dev/hvc0 ] && break; sleep 0.1; done
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

    def wait(self, what: bytes, guest: GuestProcess | None = None) -> None:
        try:
            wait_for(lambda: what in self.content, 60)
        except AssertionError:
            said = guest.said() if guest else "-"
            raise AssertionError(f"{what!r} did not come: {bytes(self.content)[-200:]!r}; guest: {said}") from None


def send(port: ConsolePort, content: bytes) -> None:
    """Write all of it, as the guest takes it."""
    while content:
        content = content[port.write(content) :]
        wait_for(lambda: port.out_waiting < port.limit, 60)


EXCHANGE = "\n".join(
    [
        *(OPEN, size("24 80"), "byte", size("33 99"), "head -c 20000 <&3 | sha256sum"),
        *("dd if=/bin/busybox bs=1000 count=20 2>/dev/null >&3", "exec 3>&-"),
    ]
)


def exchanged(console: ConsoleDevice, guest: GuestProcess) -> None:
    """A guest that does EXCHANGE gets bytes and sizes, and what it sends comes."""
    console.port.on_data = seen = Collected()
    seen.wait(b"HELLO\n", guest)
    assert console.port.guest_open
    guest.wait_for("24 80")
    console.resize(33, 99)
    assert console.port.write(b"x") == 1
    guest.wait_for("33 99")
    send(console.port, data(20000))
    assert digest(data(20000)) in guest.finish()
    assert bytes(seen.content) == b"HELLO\n" + Path("/bin/busybox").read_bytes()[:20000]


@KINDS
def test_a_terminal_carries_bytes_both_ways_and_changes_its_size(more: dict[str, Any], tmp_path: Path) -> None:
    console = ConsoleDevice(**more)
    with Server(console, tmp_path / "s") as server:
        for boot in (1, 2):
            console.resize(24, 80)
            with Uml(server.path, EXCHANGE, tmp_path, kind=DeviceType.CONSOLE) as guest:
                wait_for(lambda: console.negotiated, 60)
                negotiated = console.negotiated
                exchanged(console, guest)
            wait_for(lambda: not console.port.guest_open)
            assert server.connections == boot
        assert server.error is None
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
            terminal.wait(b"HELLO\n", guest)
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
            # open until the answer is there: Linux discards what comes to a port that nothing has open
            *("name vport0p1", "exec 4<>/dev/vport0p1", f"echo turn-{i} >&4", "head -c 6 <&4", "exec 4>&-"),
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


def test_the_example(tmp_path: Path) -> None:
    """examples/console.py with a guest: its terminal is a pseudo-terminal, its log is printed."""
    example = Path(__file__).parents[2] / "examples" / "console.py"
    lines = [
        OPEN, PORTS, size("40 120"), "name vport0p1", "echo started > /dev/vport0p1",
        "head -c 6 <&3 | sed s/^/HEARD/; echo back >&3",
    ]  # fmt: skip
    with subprocess.Popen([sys.executable, example, tmp_path / "s"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            terminal = os.open(process.stdout.readline().split()[1], os.O_RDWR | os.O_NOCTTY)
            with Uml(str(tmp_path / "s"), "\n".join(lines), tmp_path, kind=DeviceType.CONSOLE) as guest:
                assert process.stdout.readline() == "started\n"
                os.write(terminal, b"typed\n")
                assert "HEARDtyped" in guest.finish()
            assert os.read(terminal, 4096) == b"HELLO\nback\n"
            os.close(terminal)
        finally:
            process.send_signal(signal.SIGINT)
        assert process.stdout.read() == ""
    assert process.returncode == 0


def test_a_guest_in_qemu(tmp_path: Path) -> None:
    """A vhost-user device of any type is for QEMU's users from 10.2 on."""
    program, name = need_peer("qemu-system-x86_64", "qemu-system-x86"), "vhost-user-test-device-pci"
    known = subprocess.run([program, "-device", "help"], capture_output=True, check=False, text=True).stdout
    if f'name "{name}"' not in known:
        pytest.skip(f"this QEMU has no {name}: 10.2 and later do")
    console = ConsoleDevice(max_ports=3)
    options = f"chardev=c0,virtio-id={DeviceType.CONSOLE:d},num_vqs={len(console.queues)},config_size=12"
    with Server(console, tmp_path / "s") as server:
        words = ["-chardev", f"socket,id=c0,path={server.path}", "-device", f"{name},{options}"]
        with Qemu(server.path, EXCHANGE, tmp_path, modules=("virtio_console",), devices=words) as guest:
            exchanged(console, guest)
        assert server.error is None
    assert not console.refused
