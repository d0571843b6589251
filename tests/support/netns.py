"""Network namespaces and TAP interfaces of the tests' own: the Linux kernel as a peer and an oracle.

Everything is made by the test that uses it and gone afterwards. Needs root, iproute2 and /dev/net/tun.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from peers import need_peer

import virtio.net.netns

TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x2, 0x1000, 0x4000
# offloads of TUNSETOFFLOAD (linux/if_tun.h): what the kernel may leave to whoever reads the TAP
CSUM, TSO4, TSO6, ECN, USO4, USO6, TUNNEL, TUNNEL_CSUM = 1, 2, 4, 8, 0x20, 0x40, 0x80, 0x100
FRAME_MAX = 1 << 17
A, B = 0, 1  # ends of a link

# of /proc/net/snmp, snmp6 and netstat: what must stay 0 while every frame is right. A segment that is not accepted is
# sent again: a stream alone would hide it.
ERRORS = (
    "Ip.InHdrErrors", "Ip.InAddrErrors", "Ip.InUnknownProtos", "Ip.InDiscards", "Ip.ReasmFails",
    "IpExt.InCsumErrors", "IpExt.InTruncatedPkts", "IpExt.InNoRoutes",
    "Tcp.InErrs", "Tcp.InCsumErrors", "Tcp.RetransSegs",
    "Udp.InCsumErrors", "Udp.InErrors", "Icmp.InCsumErrors",
    "Ip6InHdrErrors", "Ip6InUnknownProtos", "Ip6InDiscards", "Ip6InTruncatedPkts", "Ip6InNoRoutes",
    "Ip6ReasmFails", "Udp6InCsumErrors", "Udp6InErrors", "Icmp6InCsumErrors",
)  # fmt: skip


def refuse(reason: str) -> None:
    """Skip with the reason; fail in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class Namespace(virtio.net.netns.Namespace):
    """A network namespace of the package's, for tests: iproute2 within, and what its kernel counts as an error."""

    def __init__(self) -> None:
        self.ip_program = need_peer("ip", "iproute2")
        super().__init__()

    def ip(self, *words: str) -> None:
        done = self.run(lambda: subprocess.run([self.ip_program, *words], capture_output=True, text=True, check=False))
        if done.returncode:
            raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")

    def patient(self, device: str, *prefixes: str) -> None:
        """Let TCP send again only what the other end says it lacks, not what a busy machine answers late."""
        for name in ("tcp_early_retrans", "tcp_recovery"):
            self.sysctl(f"net/ipv4/{name}", 0)
        for prefix in prefixes:
            words = ["-6"] if ":" in prefix else []
            metric = ["metric", "256"] if words else []
            self.ip(*words, "route", "replace", prefix, "dev", device, *metric, "rto_min", "20s")

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        made = super().socket(family, kind, protocol)
        made.settimeout(30)
        return made

    def errors(self) -> dict[str, int]:
        """Return those of ERRORS that are not 0."""
        counts = self.counters()
        return {name: counts[name] for name in ERRORS if counts.get(name)}


class Tap:
    """A TAP with virtio_net_hdr in a namespace: read what its kernel sends, write what it receives."""

    def __init__(self, namespace: Namespace, name: str, *, mtu: int = 1500, mac: str, header: int = 12,
                 offloads: int = 0) -> None:  # fmt: skip
        def make() -> int:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
            return fd

        self.namespace, self.name, self.header = namespace, name, header
        self.fd = namespace.run(make)
        try:
            fcntl.ioctl(self.fd, TUNSETVNETHDRSZ, struct.pack("i", header))
            fcntl.ioctl(self.fd, TUNSETOFFLOAD, offloads)
        except OSError:
            os.close(self.fd)
            raise
        namespace.ip("link", "set", name, "mtu", str(mtu), "address", mac, "up")

    def close(self) -> None:
        os.close(self.fd)

    def read(self) -> tuple[bytes, bytes] | None:
        """Take one frame: (virtio_net_hdr, frame), or None when none waits."""
        try:
            data = os.read(self.fd, FRAME_MAX)
        except BlockingIOError:
            return None
        return data[: self.header], data[self.header :]

    def write(self, *pieces: Any, header: bytes = b"") -> None:
        """Give the kernel one frame; waits while its queue is full."""
        header = header.ljust(self.header, b"\0")
        while True:
            try:
                os.writev(self.fd, [header, *pieces])
                return
            except BlockingIOError:
                select.select([], [self.fd], [], 0.1)


class Pump:
    """A thread that takes what a TAP sends, in groups of what waits, and hands each group to a function."""

    def __init__(self, source: Tap, give: Callable[[list[tuple[bytes, bytes]]], None], group: int = 64) -> None:
        self.source, self.give, self.group = source, give, group
        self.error: BaseException | None = None
        self.frames = 0
        self.wake, self.stopper = os.pipe()
        self.thread = threading.Thread(target=self.loop)
        self.thread.start()

    def loop(self) -> None:
        try:
            # what one TAP is given on two cores may overtake each other in the kernel's queues
            os.sched_setaffinity(threading.get_native_id(), {max(os.sched_getaffinity(0))})
            while True:
                ready, _, _ = select.select([self.source.fd, self.wake], [], [])
                if self.wake in ready:
                    return
                got: list[tuple[bytes, bytes]] = []
                while len(got) < self.group and (one := self.source.read()) is not None:
                    got.append(one)
                self.frames += len(got)
                self.give(got)
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        """End the thread; raise what it raised."""
        os.write(self.stopper, b"x")
        self.thread.join()
        os.close(self.wake)
        os.close(self.stopper)
        if self.error is not None:
            raise self.error


class Link:
    """Two namespaces, A and B, each behind a TAP, at 10.77.0.1 / fd77::1 and 10.77.0.2 / fd77::2."""

    def __init__(self, *, mtu: int = 1500, offloads: tuple[int, int] = (0, 0), header: int = 12) -> None:
        self.namespaces: list[Namespace] = []
        self.taps: list[Tap] = []
        self.macs = ["02:00:00:00:77:01", "02:00:00:00:77:02"]
        try:
            for i in (0, 1):
                space = Namespace()
                self.namespaces.append(space)
                self.taps.append(Tap(space, "tap0", mtu=mtu, mac=self.macs[i], header=header, offloads=offloads[i]))
                space.ip("addr", "add", f"10.77.0.{i + 1}/24", "dev", "tap0")
                space.ip("addr", "add", f"fd77::{i + 1}/64", "dev", "tap0", "nodad")
                space.patient("tap0", "10.77.0.0/24", "fd77::/64")
                for address in (f"10.77.0.{2 - i}", f"fd77::{2 - i}"):  # no ARP, no neighbour discovery needed
                    space.ip("neigh", "add", address, "lladdr", self.macs[1 - i], "dev", "tap0", "nud", "permanent")
            for space in self.namespaces:
                space.settle()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for tap in self.taps:
            tap.close()
        for space in self.namespaces:
            space.close()

    def errors(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for side, space in zip("AB", self.namespaces, strict=True):
            found.update({f"{side} {name}": count for name, count in space.errors().items()})
        return found


@contextmanager
def link(**options: Any) -> Iterator[Link]:
    """Give a Link, or skip where it cannot be made."""
    if os.geteuid() != 0:
        refuse("needs root: network namespaces and TAP interfaces")
    if not os.path.exists("/dev/net/tun"):
        refuse("no /dev/net/tun: load the kernel's tun module")
    made = Link(**options)
    try:
        yield made
    finally:
        made.close()
