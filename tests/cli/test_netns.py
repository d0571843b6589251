"""Network namespaces of our own: what is made in them, and that nothing stays behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from peers import need_peer
from spaces import MACS, namespaces, need_namespaces

from virtio.errors import ConfigError
from virtio.net import netns
from virtio.net.netns import Namespace


def network() -> int:
    """Which network namespace this thread is in."""
    return os.stat("/proc/thread-self/ns/net").st_ino


def python(text: str, *arguments: str, **options: object) -> subprocess.Popen[str]:
    """Run a program in a process of its own, with the modules that we have."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def test_a_namespace_is_one_of_its_own_and_this_thread_stays_where_it_is() -> None:
    with namespaces(2) as (a, b):
        here = network()
        assert len({here, a.run(network), b.run(network)}) == 3
        assert network() == here
        assert os.fstat(a.fileno()).st_ino == a.run(network)
        assert a.links() == ["lo"]
        assert a.link_counters("lo")["rx_packets"] == 0


def test_what_runs_within_returns_and_raises() -> None:
    with namespaces(1) as (space,):
        assert space.run(lambda: 5) == 5
        with pytest.raises(ZeroDivisionError):
            space.run(lambda: 1 // 0)
        with pytest.raises(KeyboardInterrupt):
            space.run(lambda: (_ for _ in ()).throw(KeyboardInterrupt()))
        before = threading.active_count()
        space.run(lambda: None)
        assert threading.active_count() == before


def test_sockets_within() -> None:
    with namespaces(2) as (a, b):
        with a.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, b.socket(socket.AF_INET, socket.SOCK_DGRAM) as two:
            one.bind(("127.0.0.1", 7))  # lo is up
            two.bind(("127.0.0.1", 7))  # elsewhere
            two.settimeout(0.05)
            with a.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"x", ("127.0.0.1", 7))
            assert one.recv(10) == b"x"
            with pytest.raises(TimeoutError):
                two.recv(10)
        assert a.counters()["Udp.InDatagrams"] == 1
        assert b.counters()["Udp.InDatagrams"] == 0


def test_an_interface_is_as_it_was_asked_for() -> None:
    need_peer("ip", "iproute2")
    with namespaces(1) as (space,):
        tap = space.tap(
            "vm0", mac=MACS[0], mtu=1400, addresses=["10.1.2.3/20", "fd01::5/64"],
            neighbours=[("10.1.2.4", MACS[1]), ("fd01::6", MACS[1])],
        )  # fmt: skip
        space.settle()

        def ip(*words: str) -> str:
            return space.popen(["ip", *words], stdout=subprocess.PIPE, text=True).communicate()[0]

        link = ip("link", "show", "vm0")
        assert "mtu 1400" in link
        assert "UP" in link
        assert MACS[0] in link
        addresses = ip("addr", "show", "vm0")
        assert "inet 10.1.2.3/20" in addresses
        assert "inet6 fd01::5/64 scope global nodad" in addresses
        neighbours = ip("neigh", "show", "dev", "vm0")
        assert f"10.1.2.4 lladdr {MACS[1]} PERMANENT" in neighbours
        assert f"fd01::6 lladdr {MACS[1]} PERMANENT" in neighbours
        assert sorted(space.links()) == ["lo", "vm0"]
        space.set_link("vm0", up=False, mtu=9000, queue=77)
        link = ip("link", "show", "vm0")
        assert "mtu 9000" in link
        assert "qlen 77" in link
        assert "state DOWN" in link
        space.set_link("vm0", mtu=1300)  # leaves the rest as it is
        assert "state DOWN" in ip("link", "show", "vm0")
        space.set_link("vm0", up=True)
        space.set_link("vm0", mtu=1400)
        assert "state DOWN" not in ip("link", "show", "vm0")
        assert space._netlink.link("vm0")[1] & 1
        tap.close()
        assert space.links() == ["lo"]


def test_an_interface_may_stay_down() -> None:
    with namespaces(1) as (space,), space.tap("vm0", up=False):
        assert not space._netlink.link("vm0")[1] & 1
        space.set_link("vm0", up=True)
        assert space._netlink.link("vm0")[1] & 1


def test_a_tap_that_cannot_be_set_up_is_gone() -> None:
    with namespaces(1) as (space,):
        for options in ({"mtu": 10}, {"addresses": ["nonsense"]}, {"mac": "02:00"}, {"mac": "ff:ff:ff:ff:ff:ff"}):
            with pytest.raises((OSError, ValueError)) as error:
                space.tap("vm0", **options)  # type: ignore[arg-type]
            assert space.links() == ["lo"]  # while the traceback still holds what was made
            assert error.value


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.set_link("none", up=True), "interface 'none': No such device"),
        (lambda s: s.delete_link("none"), "interface 'none': No such device"),
        (lambda s: s.add_address("none", "10.0.0.1/8"), "interface 'none': No such device"),
        (lambda s: s.set_link("lo", mac="02:00:00:00:00:0"), "MAC '02:00:00:00:00:0' is not six bytes"),
        (lambda s: s.set_link("lo", mac="02:00:00:00:00"), "MAC '02:00:00:00:00' is not six bytes"),
        (lambda s: s.add_neighbour("lo", "10.0.0.300", MACS[0]), "'10.0.0.300' does not appear"),
        (lambda s: s.link_counters("none"), "interface 'none': No such device"),
    ],
)
def test_refusals_name_what_was_refused(call, message: str) -> None:
    with namespaces(1) as (space,), pytest.raises((OSError, ValueError), match=message):
        call(space)


def test_delete_link() -> None:
    with namespaces(1) as (space,), space.tap("vm0"):
        space.delete_link("vm0")
        assert space.links() == ["lo"]


def test_sysctl_and_quiet() -> None:
    with namespaces(1) as (space,):
        space.sysctl("net/ipv4/ip_forward", 1)
        read = space.run(lambda: Path("/proc/sys/net/ipv4/ip_forward").read_text())
        assert read.strip() == "1"
        tap = space.tap("vm0", up=False)
        space.quiet("vm0")
        space.set_link("vm0", up=True)
        time.sleep(0.3)  # router solicitations and multicast reports would be among the first frames
        with pytest.raises(BlockingIOError):
            os.read(tap.fileno(), 2000)
        tap.close()


def test_programs_within() -> None:
    with namespaces(1) as (space,):
        words = ["readlink", "/proc/self/ns/net"]
        child = space.popen(words, stdout=subprocess.PIPE, text=True)
        assert child.communicate()[0].strip() == f"net:[{space.run(network)}]"
        need_peer("nsenter", "util-linux")
        done = subprocess.run(space.command(*words), capture_output=True, text=True, check=True)
        assert done.stdout.strip() == f"net:[{space.run(network)}]"


def test_closed() -> None:
    with namespaces(1) as (space,):
        fds = len(os.listdir("/proc/self/fd"))
        other = Namespace()
        assert "fd" in repr(other)
        other.close()
        other.close()
        assert len(os.listdir("/proc/self/fd")) == fds
        assert repr(other) == "<Namespace: closed>"
        with pytest.raises(ValueError, match="network namespace is closed"):
            other.run(lambda: None)
        assert space.run(lambda: 1) == 1


def alive(inode: int) -> bool:
    """Whether a process of this machine is in, or holds, a network namespace."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == f"net:[{inode}]":
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize("how", ["exception", "SIGINT", "SIGKILL"])
def test_whatever_ends_a_process_no_namespace_stays(how: str) -> None:
    need_namespaces()
    named = set(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else set()
    child = python(
        """
        import os, sys, time
        from virtio.net.netns import Namespace
        space = Namespace()
        tap = space.tap("vm0", addresses=["10.0.0.1/24"])
        print(os.fstat(space.fileno()).st_ino, flush=True)
        if sys.argv[1] == "exception":
            raise RuntimeError
        time.sleep(60)
        """,
        how,
    )
    assert child.stdout is not None
    inode = int(child.stdout.readline())
    if how != "exception":
        assert alive(inode)
        child.send_signal(getattr(signal, how))
    child.communicate(timeout=30)
    assert child.returncode != 0
    assert not alive(inode)
    now = set(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else set()
    assert {name for name in now - named if str(child.pid) in name} == set()


AS_NOBODY = """
    import ctypes, os, sys
    from virtio.net import netns
    from virtio.ports.taploop import TapLoop
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: or our own /proc/self is root's
"""


def as_nobody(text: str) -> str:
    """Run a program without root; return what it prints."""
    need_namespaces()
    if os.stat("/dev/net/tun").st_mode & 0o006 != 0o006:
        pytest.skip("/dev/net/tun is root's alone")
    limit = Path("/proc/sys/user/max_user_namespaces")
    if (limit.exists() and limit.read_text().strip() == "0") or netns._hint():
        pytest.skip("this machine lets nobody make user namespaces")
    child = python(textwrap.dedent(AS_NOBODY) + textwrap.dedent(text))
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    return out


def test_without_root_in_a_user_namespace() -> None:
    out = as_nobody(
        """
        import socket, threading
        assert not netns.is_root()
        assert netns.become_root()
        assert netns.is_root()
        assert not netns.become_root()
        macs = ("02:00:00:00:77:01", "02:00:00:00:77:02")
        spaces = [netns.Namespace() for _ in range(2)]
        taps = [
            space.tap("tap0", mac=mac, addresses=[f"10.77.0.{i}/24"], neighbours=[(f"10.77.0.{3 - i}", macs[2 - i])])
            for i, (space, mac) in enumerate(zip(spaces, macs), 1)
        ]
        with TapLoop(*taps, offloads=0x7f):
            listener = spaces[1].socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.bind(("10.77.0.2", 5001))
            listener.listen()
            sender = spaces[0].socket(socket.AF_INET, socket.SOCK_STREAM)
            sender.connect(("10.77.0.2", 5001))
            receiver, _ = listener.accept()
            sender.sendall(b"hello")
            print(receiver.recv(10).decode(), os.getuid())
        print(spaces[0].popen(["true"]).wait())
        """
    )
    assert out.split() == ["hello", "0", "0"]


def test_threads_forbid_a_user_namespace() -> None:
    out = as_nobody(
        """
        import threading
        from virtio.errors import ConfigError
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        try:
            netns.become_root()
        except ConfigError as error:
            print(error)
        stop.set()
        thread.join()
        print(netns.become_root())
        """
    )
    assert out.splitlines() == ["a process of 2 threads cannot enter a user namespace: limit 1", "True"]


def test_namespaces_without_root_are_refused() -> None:
    out = as_nobody(
        """
        try:
            netns.Namespace()
        except OSError as error:
            print(error)
        """
    )
    assert out.strip() == "[Errno 1] new network namespace: Operation not permitted"


def test_where_the_kernel_forbids_it_the_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netns, "is_root", lambda: False)
    monkeypatch.setattr(netns.os, "listdir", lambda path: ["1"])
    monkeypatch.setattr(netns, "_hint", lambda: " (user.max_user_namespaces is 0)")

    class Forbidding:
        @staticmethod
        def unshare(flags: int) -> int:
            assert flags == netns.CLONE_NEWUSER
            netns.ctypes.set_errno(28)
            return -1

    monkeypatch.setattr(netns, "_libc", Forbidding)
    with pytest.raises(
        ConfigError, match=r"without root: unshare: No space left .* \(user.max_user_namespaces is 0\)$"
    ):
        netns.become_root()


def test_root_needs_no_user_namespace() -> None:
    need_namespaces()
    assert not netns.become_root()
