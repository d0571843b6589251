"""The tap-loop: two real kernels talk through it, both ways, and it counts what went through."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from peers import need_peer
from spaces import MACS, namespaces
from waiting import wait_for

from virtio.net.netns import Namespace
from virtio.net.ports import Tap, TapLoop

ALL = 0x1FF
TUNSETSNDBUF = 0x400454D4
ADDRESSES = ("10.77.0.1", "10.77.0.2")


@contextmanager
def pair(**options) -> Iterator[tuple[list[Namespace], list[Tap]]]:
    """Two namespaces with a TAP each, that know each other."""
    with namespaces(2) as spaces, ExitStack() as stack:
        taps = []
        for i, space in enumerate(spaces):
            tap = space.tap("tap0", mac=MACS[i], up=False, **options)
            taps.append(stack.enter_context(tap))
            space.sysctl("net/ipv6/conf/tap0/disable_ipv6", 1)
            space.set_link("tap0", up=True)
            space.add_address("tap0", f"{ADDRESSES[i]}/24")
            space.add_neighbour("tap0", ADDRESSES[1 - i], MACS[1 - i])
        yield spaces, taps


def stream(spaces: list[Namespace], size: int, to: int) -> None:
    """Send random bytes by TCP to one of the namespaces, and see that they arrive."""
    data = os.urandom(size)
    with spaces[to].socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((ADDRESSES[to], 5001))
        listener.listen()
        with spaces[1 - to].socket(socket.AF_INET, socket.SOCK_STREAM) as sender:
            sender.settimeout(30)
            sender.connect((ADDRESSES[to], 5001))
            receiver, _ = listener.accept()
            receiver.settimeout(30)
            thread = threading.Thread(target=lambda: (sender.sendall(data), sender.shutdown(socket.SHUT_WR)))
            thread.start()
            found = hashlib.sha256()
            with receiver:
                while part := receiver.recv(1 << 20):
                    found.update(part)
            thread.join()
    assert found.digest() == hashlib.sha256(data).digest()


def counted(loop: TapLoop, name: str, least: int) -> dict[str, int | str]:
    """What the loop counts, when it has counted that much: it does so after the receiver has the frame."""
    wait_for(lambda: int(loop.statistics()[name]) >= least, what=f"{name} is under {least}")
    return loop.statistics()


@pytest.mark.parametrize("options", [{}, {"header_size": 12}, {"vnet_header": False}])
@pytest.mark.parametrize("offloads", [ALL, 1, 0])
def test_streams_both_ways(offloads: int, options: dict[str, int]) -> None:
    with pair(**options) as (spaces, taps), TapLoop(*taps, offloads=offloads) as loop:
        assert loop.running
        size = 3_000_000
        stream(spaces, size, 1)
        there = counted(loop, "a_to_b_bytes", size)
        stream(spaces, size, 0)
        back = counted(loop, "b_to_a_bytes", size + int(there["b_to_a_bytes"]))
        assert there["a_to_b_bytes"] > size
        assert there["b_to_a_packets"] > 0
        assert back["b_to_a_bytes"] > size + int(there["b_to_a_bytes"])
        average = int(there["a_to_b_bytes"]) / int(there["a_to_b_packets"])
        if offloads == ALL and "vnet_header" not in options:
            assert average > 3000  # large frames pass as they are
        else:
            assert average <= 1514
        assert back["a_to_b_dropped"] == back["b_to_a_dropped"] == 0
        assert "a_to_b_error" not in back
        for space in spaces:
            assert not any(space.counters()[f"{name}InCsumErrors"] for name in ("Tcp.", "IpExt."))
        # what one kernel sent the other one has, and so we counted
        loop.stop()
        for way, sender, receiver in (("a_to_b", 0, 1), ("b_to_a", 1, 0)):
            counts = loop.statistics()
            assert counts[f"{way}_packets"] == spaces[sender].link_counters("tap0")["tx_packets"]
            assert counts[f"{way}_packets"] == spaces[receiver].link_counters("tap0")["rx_packets"]
            assert counts[f"{way}_bytes"] == spaces[sender].link_counters("tap0")["tx_bytes"]


def test_it_starts_and_stops_again() -> None:
    with pair() as (spaces, taps):
        loop = TapLoop(*taps, offloads=ALL)
        assert not loop.running
        loop.stop()
        for _ in range(3):
            loop.start()
            with pytest.raises(RuntimeError, match="loop runs already"):
                loop.start()
            stream(spaces, 100_000, 1)
            time.sleep(0.05)
            before = int(loop.statistics()["polls"])
            time.sleep(0.1)
            assert int(loop.statistics()["polls"]) - before < 50  # it sleeps
            loop.stop()
            assert not loop.running
        assert repr(loop) == "<TapLoop tap0 - tap0: stopped>"


def test_it_stops_in_the_middle_of_a_stream() -> None:
    with pair() as (spaces, taps), spaces[1].socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind((ADDRESSES[1], 9))
        loop = TapLoop(*taps)
        loop.start()
        sender = spaces[0].socket(socket.AF_INET, socket.SOCK_DGRAM)
        stop = threading.Event()

        def flood() -> None:
            while not stop.is_set():
                sender.sendto(bytes(1000), (ADDRESSES[1], 9))

        thread = threading.Thread(target=flood)
        thread.start()
        while int(loop.statistics()["a_to_b_packets"]) < 100:
            time.sleep(0.001)
        loop.stop()
        stop.set()
        thread.join()
        sender.close()


def test_what_a_kernel_refuses_is_counted() -> None:
    with pair() as (spaces, taps), TapLoop(*taps) as loop:
        spaces[1].set_link("tap0", up=False)
        with spaces[0].socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(5):
                sender.sendto(b"x", (ADDRESSES[1], 9))
        counts = counted(loop, "a_to_b_dropped", 5)
        assert (counts["a_to_b_dropped"], counts["a_to_b_packets"], counts["a_to_b_error"]) == (5, 0, "EIO")
        spaces[1].set_link("tap0", up=True)
        stream(spaces, 10_000, 1)


def test_it_waits_for_room() -> None:
    """Nothing is lost, and it ends even then."""
    need_peer("tc", "iproute2")
    with pair() as (spaces, taps), spaces[1].tap("slow"):
        for words in (
            "ip link add br0 type bridge",
            "ip link set tap0 master br0",
            "ip link set slow master br0",
            "ip link set br0 up",
            "tc qdisc add dev slow root handle 1: htb default 1",
            "tc class add dev slow parent 1: classid 1:1 htb rate 64kbit burst 2000 quantum 2000",
        ):
            if spaces[1].popen(words.split(), stderr=subprocess.DEVNULL).wait():
                pytest.skip(f"this kernel cannot {words}")
        fcntl.ioctl(taps[1].fileno(), TUNSETSNDBUF, struct.pack("i", 20000))
        with TapLoop(*taps) as loop, spaces[0].socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind(("tap0", 0))
            for _ in range(30):
                sender.send(bytes.fromhex("020000009999" + MACS[0].replace(":", "") + "88b5") + bytes(1000))
            counts = counted(loop, "a_to_b_packets", 12)
            assert int(counts["a_to_b_packets"]) < 30
            assert counts["a_to_b_dropped"] == 0
            assert loop.running


def test_it_ends_with_an_interface() -> None:
    with pair() as (spaces, taps), TapLoop(*taps) as loop:
        spaces[0].delete_link("tap0")
        wait_for(lambda: not loop.running)


def test_a_tap_that_is_closed_meanwhile() -> None:
    """The loop goes on with the interface, and lets go of it when it is stopped."""
    with pair() as (spaces, taps):
        fds = len(os.listdir("/proc/self/fd"))
        with TapLoop(*taps) as loop:
            for tap in taps:
                tap.close()
            stream(spaces, 10_000, 1)
        assert [space.links() for space in spaces] == [["lo"], ["lo"]]
        with pytest.raises(ValueError, match="is closed"):
            loop.start()
        del loop
        assert len(os.listdir("/proc/self/fd")) == fds - 2


def test_it_runs_where_it_is_told() -> None:
    cpu = max(os.sched_getaffinity(0))
    with pair() as (spaces, taps), TapLoop(*taps, cpu=cpu):
        threads = [t for t in threading.enumerate() if t.name == "virtio-taploop"]
        assert [os.sched_getaffinity(t.native_id or 0) for t in threads] == [{cpu}]
        stream(spaces, 1000, 1)


def test_taps_that_do_not_fit() -> None:
    with namespaces(1) as (space,), ExitStack() as stack:

        def tap(**options: int) -> Tap:
            return stack.enter_context(space.tap("t%d", **options))

        with pytest.raises(
            ValueError, match="header sizes 12 of <Tap t0: 1 queues> and 10 of <Tap t1: 1 queues> differ"
        ):
            TapLoop(tap(header_size=12), tap(header_size=10))
        with pytest.raises(ValueError, match="limit one queue each"):
            TapLoop(tap(), tap(queues=2))
        with pytest.raises(ValueError, match="burst 0 is not within 1 to 1024"):
            TapLoop(tap(), tap(), burst=0)
        closed = tap()
        closed.close()
        with pytest.raises(ValueError, match="is closed"):
            TapLoop(tap(), closed)
        with pytest.raises(TypeError):
            TapLoop(tap(), None)  # type: ignore[arg-type]
