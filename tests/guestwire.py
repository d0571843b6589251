"""A guest's cable: a device of ours between a vhost-user socket and a TAP, and what both ends of it do."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from spaces import namespaces

from virtio.net import Namespace, NetDevice
from virtio.vhost_user import Server

SIZE = 2 << 20
V4, V6 = "10.77.0", "fd77::"


class Host:
    """The other end of the guest's cable: gives ``size`` bytes at port 5001, takes some at 5002, by IPv4 and 6."""

    def __init__(self, space: Namespace, stack: ExitStack, size: int = SIZE) -> None:
        self.data = os.urandom(size)
        self.out = 0  # bytes given so far, over all streams
        self.given = hashlib.sha256(self.data).hexdigest()
        self.taken: list[str] = []
        for port, serve in ((5001, self.give), (5002, self.take)):
            listener = space.socket(socket.AF_INET6, socket.SOCK_STREAM)
            listener.bind(("::", port))  # IPv4 too
            listener.listen(8)
            stack.callback(listener.close)
            threading.Thread(target=self.accept, args=(listener, serve), daemon=True).start()

    def accept(self, listener: socket.socket, serve: Any) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(30)
                serve(connection)

    def give(self, connection: socket.socket) -> None:
        for at in range(0, len(self.data), 1 << 16):
            connection.sendall(self.data[at : at + (1 << 16)])
            self.out += 1 << 16
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)

    def take(self, connection: socket.socket) -> None:
        digest = hashlib.sha256()
        while part := connection.recv(1 << 16):
            digest.update(part)
        self.taken.append(digest.hexdigest())


@contextmanager
def wired(tmp_path: Path, *, mtu: int = 1500, **options: Any) -> Iterator[tuple[str, NetDevice, Host, Server]]:
    with namespaces(1) as (space,), ExitStack() as stack:
        tap = space.tap("tap0", mtu=mtu, queues=options.get("queue_pairs", 1))
        space.add_address("tap0", f"{V4}.1/24")
        space.add_address("tap0", f"{V6}1/64")
        space.set_link("tap0", up=True)
        space.settle()
        host = Host(space, stack)
        device = stack.enter_context(NetDevice(tap, worker="own", queue_size=1024, mtu=mtu, **options))
        path = str(tmp_path / "s")
        yield path, device, host, stack.enter_context(Server(device, path))


def job(*lines: str, mtu: int = 1500) -> str:
    """A guest's job, behind what each begins with."""
    begin = [
        "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad", f"ip link set eth0 mtu {mtu} up",
        f"ip addr add {V4}.2/24 dev eth0",
        f"ip -6 addr add {V6}2/64 dev eth0", "ethtool -i eth0 | head -1",
        f"dd if=/dev/urandom of=/tmp/x bs=64k count={SIZE >> 16} 2>/dev/null",
        "echo MINE $(sha256sum < /tmp/x)",
        # cat writes 64 KB at a time, nc 1 KB: too little at once for segmentation
        'both() { echo GOT $1 $(nc $2 5001 < /dev/null | sha256sum); nc $2 5002 -e cat /tmp/x; echo SENT $1; }',
    ]  # fmt: skip
    return "\n".join((*begin, *lines)) + "\n"


def hashes(said: str, host: Host, rounds: int) -> None:
    """Every stream of the guest's, either way, is what it was."""
    got = re.findall(r"^GOT \S+ ([0-9a-f]{64})", said, re.M)
    (mine,) = re.findall(r"^MINE ([0-9a-f]{64})", said, re.M)
    assert got == [host.given] * rounds, said
    assert host.taken == [mine] * rounds, said


PINGS = [f"ping -c 3 -i 0.2 {V4}.1", f"ping -6 -c 3 -i 0.2 {V6}1"]


def first_contact(said: str, host: Host, device: NetDevice) -> None:
    """A guest has pinged us by both protocols and moved a stream each way by each, with segmentation left undone."""
    assert "driver: virtio_net" in said
    assert said.count("3 packets received, 0% packet loss") == 2, said
    hashes(said, host, 2)
    figures = device.statistics()
    assert figures["tx0"]["gso"] > 0
    assert figures["rx0"]["gso"] > 0
    assert figures["tx0"]["dropped"] == {}
    assert not device.refused


FIRST_CONTACT = job(*PINGS, f"both 4 {V4}.1", f"both 6 {V6}1")
