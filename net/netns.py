"""Network namespaces of a process's own, and TAPs within: the Linux kernel as guest and host, with nothing installed.

A namespace here has no name: it lives as long as somebody holds it, this process or a socket or TAP made in it.
Whatever happens to the process, no namespace stays behind.

Making one takes root (CAP_SYS_ADMIN and CAP_NET_ADMIN). :func:`become_root` gives the process these over network
namespaces of its own, where the kernel lets users do that.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from virtio.core.process import ForkAwareLock
from virtio.errors import ConfigError
from virtio.net.netlink import Netlink
from virtio.ports.tap import Tap

T = TypeVar("T")

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21
ENDED = 0.1  # seconds after its end within which the kernel no longer counts a thread
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def is_root() -> bool:
    """Say whether this thread may make network namespaces, and interfaces within."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            able = int(line.split()[1], 16)
            return bool(able >> CAP_NET_ADMIN & 1 and able >> CAP_SYS_ADMIN & 1)
    return False


def become_root() -> bool:
    """Let this process make network namespaces: enter a user namespace in which it is root, unless it is root already.

    Returns whether it entered one. There is no way back: files, and the network of the machine, are seen with the
    rights of before. Call it early: the kernel allows it only while the process has a single thread. Raises ConfigError
    with the reason where it cannot be.
    """
    if is_root():
        return False
    end = time.monotonic() + ENDED
    while (threads := len(os.listdir("/proc/self/task"))) > 1 and time.monotonic() < end:
        time.sleep(0.001)
    if threads > 1:
        raise ConfigError(f"a process of {threads} threads cannot enter a user namespace: limit 1")
    user, group = os.geteuid(), os.getegid()
    try:
        _check(_libc.unshare(CLONE_NEWUSER), "unshare")
        # before the map of groups may be written, groups must be beyond change (user_namespaces(7))
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    except OSError as error:
        raise ConfigError(f"no user namespace for a process without root: {error.strerror}{_hint()}") from None
    if not is_root():
        raise ConfigError("a user namespace, but no rights within: a security module of the kernel forbids it")
    return True


def _hint() -> str:
    """Say which setting of the machine forbids user namespaces, if one is known to."""
    for name, forbids in (
        ("kernel/unprivileged_userns_clone", "0"),
        ("user/max_user_namespaces", "0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ):
        path = Path("/proc/sys", name)
        if path.exists() and path.read_text().strip() == forbids:
            return f" ({name.replace('/', '.')} is {forbids})"
    return ""


def unsettled_addresses() -> set[str]:
    """Return this thread's IPv6 addresses that are not in use yet."""
    addresses, routes = (
        [line.split() for line in Path("/proc/thread-self/net", name).read_text().splitlines()]
        for name in ("if_inet6", "ipv6_route")
    )
    local = {route[0] for route in routes if route[1] == "80" and int(route[8], 16) & 0x80000000}  # RTF_LOCAL
    # link-local addresses have their duplicates looked for; 0x40 is IFA_F_TENTATIVE
    return {a[0] for a in addresses if a[0][:4] != "fe80" and (int(a[4], 16) & 0x40 or a[0] not in local)}


def protocol_counters() -> dict[str, int]:
    """Return the kernel's counters of protocols in this thread's namespace, as in nstat."""
    counts: dict[str, int] = {}
    for path in ("snmp", "netstat"):
        lines = [line.split() for line in Path("/proc/thread-self/net", path).read_text().splitlines()]
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            pairs = zip(names[1:], values[1:], strict=True)
            counts.update({names[0][:-1] + "." + name: int(value) for name, value in pairs})
    for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines():
        name, value = line.split()
        counts[name] = int(value)
    return counts


class Namespace:
    """A network namespace. Any thread may call; it is gone with the last of its sockets and TAPs after :meth:`close`.

    Raises OSError if the kernel refuses (EPERM: no root, see :func:`become_root`).
    """

    def __init__(self) -> None:
        self._fd = -1
        self._lock = ForkAwareLock("namespace")
        self._call(self._make)
        self._netlink.set_link("lo", up=True)

    def _make(self) -> None:
        _check(_libc.unshare(CLONE_NEWNET), "new network namespace")
        self._netlink = Netlink()
        self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            self._netlink.close()
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Return its file descriptor, for setns(2); ValueError when it is closed."""
        if self._fd < 0:
            raise ValueError("network namespace is closed")
        return self._fd

    @staticmethod
    def _call(function: Callable[[], T]) -> T:
        """Call function on a new thread, which is gone then: give what it returns or raises."""
        result: list[T] = []
        errors: list[BaseException] = []

        def inside() -> None:
            try:
                result.append(function())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=inside, name="virtio-netns")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return result[0]

    def run(self, function: Callable[[], T]) -> T:
        """Call function on a thread within; give what it returns or raises.

        Sockets, TAPs and processes made there belong to the namespace, whoever uses them then.
        """
        fd = self.fileno()

        def inside() -> T:
            self.enter_thread(fd)
            return function()

        return self._call(inside)

    @staticmethod
    def enter_thread(fd: int) -> None:
        """Move the calling thread, for good, into the namespace of a file descriptor."""
        _check(_libc.setns(fd, CLONE_NEWNET), "enter network namespace")

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a socket of this namespace."""
        return self.run(lambda: socket.socket(family, kind, protocol))

    def command(self, *words: str) -> list[str]:
        """Return the command line that runs these words within, while this process lives; it takes nsenter(1)."""
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self.fileno()}", *words]

    def popen(self, words: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program within, as subprocess.Popen does."""
        return self.run(lambda: subprocess.Popen(words, **options))

    def tap(
        self,
        name: str = "tap%d",
        *,
        mac: str | None = None,
        mtu: int | None = None,
        addresses: Iterable[str] = (),
        neighbours: Iterable[tuple[str, str]] = (),
        up: bool = True,
        **options: Any,
    ) -> Tap:
        """Make a TAP in this namespace, and return it: an interface of this kernel, whose other end is the Tap.

        ``addresses`` like "10.0.0.1/24" and "fd00::1/64"; ``neighbours`` are (address, MAC) that need no asking for.
        ``options`` are those of :class:`virtio.net.ports.Tap`.
        """
        made = self.run(lambda: Tap(name, **options))
        try:
            self.set_link(made.name, mac=mac, mtu=mtu)
            if up:
                self.set_link(made.name, up=True)
            for address in addresses:
                self.add_address(made.name, address)
            for address, neighbour in neighbours:
                self.add_neighbour(made.name, address, neighbour)
        except BaseException:
            made.close()
            raise
        return made

    def links(self) -> list[str]:
        """Return the names of the interfaces."""
        with self._lock:
            return self._netlink.links()

    def set_link(self, name: str, **changes: Any) -> None:
        """Change an interface: ``up`` (bool), ``mtu``, ``mac`` ("02:..."), ``queue`` (frames that may wait in it)."""
        with self._lock:
            self._netlink.set_link(name, **changes)

    def delete_link(self, name: str) -> None:
        """Delete an interface."""
        with self._lock:
            self._netlink.delete_link(name)

    def add_address(self, name: str, address: str) -> None:
        """Give an interface an address, "10.0.0.1/24" or "fd00::1/64"."""
        with self._lock:
            self._netlink.add_address(name, address)

    def add_neighbour(self, name: str, address: str, mac: str) -> None:
        """Say for good what MAC an address has."""
        with self._lock:
            self._netlink.add_neighbour(name, address, mac)

    def link_counters(self, name: str) -> dict[str, int]:
        """Return what an interface counts: rx_packets, tx_packets, rx_bytes, tx_bytes, rx_dropped, ..."""
        with self._lock:
            return self._netlink.counters(name)

    def sysctl(self, name: str, value: object) -> None:
        """Write a setting of this namespace: ``sysctl("net/ipv4/ip_forward", 1)``."""
        path = Path("/proc/sys", name)
        self.run(lambda: path.write_text(str(value)))

    def quiet(self, name: str) -> None:
        """Keep an interface from sending anything of its own accord. Before it is up: it has no link-local address."""
        self.sysctl(f"net/ipv6/conf/{name}/addr_gen_mode", 1)
        self.sysctl(f"net/ipv6/conf/{name}/accept_ra", 0)

    def settle(self, seconds: float = 10) -> None:
        """Wait until IPv6 addresses are in use: what comes for them before is lost. OSError after ``seconds``."""
        end = time.monotonic() + seconds
        while left := self.run(unsettled_addresses):
            if time.monotonic() > end:
                raise OSError(f"IPv6 addresses {' '.join(sorted(left))} are not in use after {seconds} s")
            time.sleep(0.005)

    def counters(self) -> dict[str, int]:
        """Return the kernel's counters of protocols, as in nstat: "Tcp.InSegs", "Udp6InDatagrams", ..."""
        return self.run(protocol_counters)

    def __repr__(self) -> str:
        return f"<Namespace: {'closed' if self._fd < 0 else f'fd {self._fd}'}>"
