"""The TAP port: interfaces that go down and away, offloads that kernels know, queues, and interfaces of others."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import threading
import time

import pytest
from peers import need_peer
from taps import (
    ALL,
    CSUM,
    ECN,
    THEIRS,
    TSO4,
    TSO6,
    TUNNEL,
    TUNNEL_CSUM,
    UFO,
    USO4,
    USO6,
    interface,
    listener,
    pull,
    sender,
    udp,
)

from bench.kernels.portbench import MemorySink, arm, receive, send
from virtio.errors import ConfigError
from virtio.net.netns import Namespace
from virtio.net.ports import Tap
from virtio.offload import Verdict, verify
from virtio.ports import tap as _tap

# ---- its life ----


def test_an_interface_that_is_down_drops_and_comes_back(space: Namespace) -> None:
    tap = interface(space)
    space.set_link("vm0", up=False)
    assert send(tap, [(None, [udp(b"x")])] * 3) == 3
    counts = tap.statistics()
    assert (counts["send_dropped"], counts["send_EIO"]) == (3, 3)
    assert pull(tap) == []
    assert not arm(tap, "receive")[0]
    space.set_link("vm0", up=True)
    sock = listener(space)
    assert send(tap, [(None, [udp(b"x")])]) == 1
    assert sock.recv(10) == b"x"
    space.add_neighbour("vm0", "10.0.0.2", THEIRS)
    sender(space)(b"back")
    assert [frame[42:] for _, frame in pull(tap)] == [b"back"]


def test_an_interface_that_is_deleted_does_no_harm(space: Namespace) -> None:
    tap = interface(space)
    space.delete_link("vm0")
    assert select.select([tap.fileno()], [], [], 1)[0]  # the kernel says that something happened
    assert pull(tap) == []
    # a worker that armed it would never sleep
    assert arm(tap, "receive") == (False, [], -1, 0)
    assert send(tap, [(None, [bytes(60)])] * 3) == 3
    assert arm(tap, "send") == (True, [], -1, 0)
    counts = tap.statistics()
    assert (counts["send_dropped"], counts["send_EBADFD"], counts["receive_dropped"]) == (3, 3, 0)


def test_waiting(space: Namespace) -> None:
    tap = interface(space)
    ready, fds, us, full = arm(tap, "receive")
    assert (ready, fds, us, full) == (False, [(tap.fileno(), select.POLLIN)], -1, 0)
    assert arm(tap, "send")[:2] == (False, [(tap.fileno(), select.POLLOUT)])
    poll = select.poll()
    poll.register(tap.fileno(), select.POLLIN)
    assert poll.poll(0) == []
    sender(space)(b"x")
    assert poll.poll(1000)


def test_close(space: Namespace) -> None:
    tap = interface(space)
    fds = len(os.listdir("/proc/self/fd"))
    with tap:
        sender(space)(b"x")
    assert len(os.listdir("/proc/self/fd")) == fds - 1
    assert space.links() == ["lo"]
    tap.close()
    assert repr(tap) == "<Tap vm0: closed>"
    assert tap.fds == ()
    with pytest.raises(ValueError, match="TAP vm0 is closed"):
        tap.fileno()
    assert send(tap, [(None, [bytes(60)])] * 2) == 2
    assert pull(tap) == []
    assert arm(tap, "receive")[1] == []
    tap.receive_offloads(ALL, 12)
    tap.set_queues(1)
    assert tap.statistics()["send_dropped"] == 2


def test_a_tap_that_is_forgotten_is_closed(space: Namespace) -> None:
    tap = interface(space)
    del tap
    assert space.links() == ["lo"]


def test_without_header(space: Namespace) -> None:
    tap = interface(space, vnet_header=False)
    assert (tap.header_size, tap.offloads, tap.known_offloads) == (0, 0, 0)
    tap.receive_offloads(ALL, 12)
    assert tap.granted_offloads == 0
    sock = listener(space)
    frame = udp(b"x" * 1200)
    assert send(tap, [(None, [frame[:5], frame[5:]]), (None, [frame[i : i + 1] for i in range(len(frame))])]) == 2
    assert [sock.recv(2000), sock.recv(2000)] == [b"x" * 1200] * 2
    sender(space)(b"y" * 700)
    ((hdr, frame),) = pull(tap, piece=100)
    assert (hdr.flags, frame[42:]) == (0, b"y" * 700)
    assert verify(frame).l4 is Verdict.GOOD


# ---- offloads that are known ----


def test_only_what_goes_together_is_granted(space: Namespace) -> None:
    tap = interface(space)
    known = tap.known_offloads
    assert known & 0xF == 0xF
    for wanted, granted in (
        (TSO4 | TSO6, 0),  # without checksums there is nothing
        (CSUM | TSO4, CSUM | TSO4),
        (CSUM | ECN, CSUM),
        (CSUM | TSO6 | ECN, CSUM | TSO6 | ECN),
        (CSUM | USO4, CSUM),  # both or none
        (CSUM | USO4 | USO6, CSUM | (known & (USO4 | USO6))),
        (CSUM | UFO, CSUM),
        (CSUM | TUNNEL, CSUM),
        (ALL, known),
        (0xFFFFFFFF, known),
        (CSUM | TSO4 | TUNNEL_CSUM, CSUM | TSO4),
        (0, 0),
    ):
        tap.receive_offloads(wanted, 12)
        assert tap.granted_offloads == granted, hex(wanted)


def test_tunnels_are_taken_when_they_are_given(space: Namespace) -> None:
    tap = interface(space)
    if not tap.known_offloads & TUNNEL:
        pytest.skip("this kernel has no tunnels in TAPs")
    assert tap.header_size == 24
    assert not tap.offloads & TUNNEL
    tap.receive_offloads(ALL, 12)
    assert tap.offloads & (TUNNEL | TUNNEL_CSUM) == TUNNEL | TUNNEL_CSUM
    tap.receive_offloads(ALL & ~TUNNEL, 12)
    assert not tap.offloads & (TUNNEL | TUNNEL_CSUM)
    tap.close()
    small = interface(space, header_size=12)
    assert not small.known_offloads & (TUNNEL | TUNNEL_CSUM)


@pytest.mark.parametrize(
    ("lacks", "known"),
    [
        (0, 0x1EF),
        (TUNNEL_CSUM, 0xEF),
        (TUNNEL | TUNNEL_CSUM, 0x6F),
        (USO4 | USO6 | TUNNEL | TUNNEL_CSUM, 0xF),
        (ALL & ~(CSUM | TSO4 | TSO6), 0x7),
        (ALL & ~CSUM, 0x1),
        (ALL, 0),
    ],
)
def test_kernels_that_know_less(space: Namespace, monkeypatch: pytest.MonkeyPatch, lacks: int, known: int) -> None:
    class Older:
        @staticmethod
        def ioctl(fd: object, request: int, argument: object = 0) -> object:
            if request == _tap.TUNSETOFFLOAD:
                assert isinstance(argument, int)
                if argument & lacks:
                    raise OSError(errno.EINVAL, "Invalid argument")
            return fcntl.ioctl(fd, request, argument)  # type: ignore[arg-type]

    monkeypatch.setattr(_tap, "fcntl", Older)
    tap = interface(space)
    assert tap.known_offloads & ~known == 0
    if not lacks:
        return
    assert tap.known_offloads == known & tap.known_offloads
    assert tap.header_size == (24 if known & TUNNEL else 12)
    tap.receive_offloads(ALL, 12)
    assert tap.granted_offloads == tap.known_offloads
    assert tap.offloads & (USO4 | USO6) == tap.known_offloads & (USO4 | USO6)


def test_other_refusals_are_raised(space: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    tap = interface(space)

    class Broken:
        @staticmethod
        def ioctl(*_: object) -> object:
            raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(_tap, "fcntl", Broken)
    with pytest.raises(PermissionError):
        tap.receive_offloads(ALL, 12)


# ---- several queues ----


def test_queues(space: Namespace) -> None:
    tap = interface(space, queues=4)
    assert (tap.queues, len(set(tap.fds))) == (4, 4)
    sock = listener(space)
    for queue in range(4):
        assert send(tap, [(None, [udp(bytes([queue]))])], queue) == 1
    assert [sock.recv(10)[0] for _ in range(4)] == [0, 1, 2, 3]
    puts = [sender(space) for _ in range(32)]

    def where() -> list[int]:
        """How many of 32 flows each queue gets."""
        for put in puts:
            put(b"x")
        return [len(pull(tap, queue)) for queue in range(4)]

    spread = where()
    assert sum(spread) == 32
    assert sum(count > 0 for count in spread) >= 2
    for pairs in (2, 1, 3):
        tap.set_queues(pairs)
        where()  # flows that the kernel remembers by queue find a new one
        spread = where()
        assert sum(spread) == 32
        assert spread[pairs:] == [0] * (4 - pairs)
        # a queue that is not in use is not waited for: the kernel would say at once that it is broken
        assert [len(arm(tap, "receive", queue)[1]) for queue in range(4)] == [1] * pairs + [0] * (4 - pairs)
    tap.set_queues(4)
    assert send(tap, [(None, [udp(b"again")])], 3) == 1
    assert sock.recv(10) == b"again"
    assert sum(where()) == 32
    for pairs in (0, 5):
        with pytest.raises(ValueError, match=f"{pairs} queue pairs: limit 1 to 4"):
            tap.set_queues(pairs)


@pytest.mark.threads
def test_queues_on_two_threads(space: Namespace) -> None:
    tap = interface(space, queues=2)
    sock = listener(space)
    frame = udp(b"x" * 100)

    def work(queue: int) -> None:
        for _ in range(50):
            assert send(tap, [(None, [frame])] * 10, queue) == 10

    threads = [threading.Thread(target=work, args=(queue,)) for queue in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(1000):
        assert sock.recv(1000) == b"x" * 100
    for thread in threads:
        thread.join()
    assert tap.statistics()["send_packets"] == 1000


@pytest.mark.threads
def test_a_queue_that_is_switched_while_frames_pass_comes_back(space: Namespace) -> None:
    """A worker that finds it detached must not take the interface for deleted."""
    tap = interface(space, queues=2)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            send(tap, [(None, [udp(b"x")])] * 8, 1)
            pull(tap, 1)

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(300):
        tap.set_queues(1)
        tap.set_queues(2)
    stop.set()
    thread.join()
    sent = tap.statistics()["send_packets"]
    assert send(tap, [(None, [udp(b"x")])], 1) == 1
    assert tap.statistics()["send_packets"] == sent + 1
    assert len(arm(tap, "receive", 1)[1]) == 1


@pytest.mark.threads
def test_close_while_frames_pass(space: Namespace) -> None:
    """Nothing goes to whatever has the descriptor's number next."""
    for _ in range(20):
        tap = interface(space)
        begun, stop = threading.Event(), threading.Event()
        sink = MemorySink(size=64)  # one for all: each has a descriptor, too

        def work(
            tap: Tap = tap, sink: MemorySink = sink, begun: threading.Event = begun, stop: threading.Event = stop
        ) -> None:
            while not stop.is_set():
                send(tap, [(None, [udp(b"x")])] * 32)
                receive(tap, sink, 64)
                sink.take()
                begun.set()

        thread = threading.Thread(target=work)
        thread.start()
        begun.wait(10)
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        number = tap.fileno()
        tap.close()
        os.dup2(writer, number)
        time.sleep(0.002)
        stop.set()
        thread.join()
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
        for fd in (reader, writer, number):
            os.close(fd)


# ---- interfaces that are there already ----


def test_a_persistent_interface_of_several_queues_is_taken(space: Namespace) -> None:
    need_peer("ip", "iproute2")
    assert space.popen(["ip", "tuntap", "add", "old", "mode", "tap", "multi_queue", "vnet_hdr"]).wait() == 0
    with space.run(lambda: Tap("old")) as tap:
        assert (tap.name, tap.queues) == ("old", 1)
    assert "old" in space.links()
    assert space.popen(["ip", "tuntap", "add", "older", "mode", "tap"]).wait() == 0
    with space.run(lambda: Tap("older", mtu=1234)) as tap:
        assert tap.name == "older"
        assert space.run(lambda: mtu_of("older")) == 1234


def mtu_of(name: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        return int(struct.unpack("16xi20x", fcntl.ioctl(control, 0x8921, struct.pack("16s24x", name.encode())))[0])


def test_names(space: Namespace) -> None:
    taps = [space.run(lambda: Tap("vm%d")) for _ in range(3)]
    assert [tap.name for tap in taps] == ["vm0", "vm1", "vm2"]
    assert space.run(Tap).name == "tap0"
    taps.append(space.run(lambda: Tap("x" * 15)))
    assert repr(taps[-1]) == f"<Tap {'x' * 15}: 1 queues>"


def test_fds_are_adopted(space: Namespace) -> None:
    original = interface(space, queues=2, header_size=20)
    os.set_blocking(original.fds[0], True)
    tap = Tap(fds=original.fds)
    assert (tap.name, tap.queues, tap.header_size) == ("vm0", 2, 20)
    assert not set(tap.fds) & set(original.fds)
    assert not os.get_blocking(tap.fds[0])
    original.close()  # ours stay
    sock = listener(space)
    for queue in range(2):
        assert send(tap, [(None, [udp(b"x")])], queue) == 1
        assert sock.recv(10) == b"x"
    sender(space)(b"y")
    assert sum(len(pull(tap, queue)) for queue in range(2)) == 1
    with Tap(fd=tap.fds[0], header_size=12) as other:
        assert (other.queues, other.header_size) == (1, 12)


def test_fds_of_other_things_are_refused(space: Namespace) -> None:
    first, second = os.pipe()
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match=f"fd {first} is not a TAP's: "):
        Tap(fd=first)
    with pytest.raises(ConfigError, match="fd 1234 is not a TAP's: Bad file descriptor"):
        Tap(fd=1234)

    def made(flags: int, name: bytes = b"odd%d") -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(fd, _tap.TUNSETIFF, struct.pack("16sH22x", name, flags))
        return fd

    tun = space.run(lambda: made(_tap.IFF_TUN | _tap.IFF_NO_PI))
    with pytest.raises(ConfigError, match=f"fd {tun} is a TUN interface's"):
        Tap(fd=tun)
    plain = space.run(lambda: made(_tap.IFF_TAP | _tap.IFF_NO_PI))
    vnet = space.run(lambda: made(_tap.IFF_TAP | _tap.IFF_NO_PI | _tap.IFF_VNET_HDR))
    with pytest.raises(ConfigError, match="fds of different interfaces"):
        Tap(fds=[plain, vnet])
    fcntl.ioctl(vnet, _tap.TUNSETVNETHDRSZ, struct.pack("i", 17))
    with pytest.raises(ConfigError, match="has a header of 17 bytes: none of 10, 12, 20, 24"):
        Tap(fd=vnet)
    with Tap(fd=plain) as tap:
        assert (tap.header_size, tap.offloads) == (0, 0)
    for fd in (tun, plain, vnet):
        os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == fds
    os.close(first)
    os.close(second)


def test_an_interface_in_use_is_refused(space: Namespace) -> None:
    tap = interface(space)
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="TAP 'vm0', queue 0 of 1: Device or resource busy") as error:
        space.run(lambda: Tap("vm0"))
    assert error.value.errno == errno.EBUSY
    with pytest.raises(OSError, match="TAP 'lo'"):
        space.run(lambda: Tap("lo"))
    assert len(os.listdir("/proc/self/fd")) == fds
    assert tap.queues == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"header_size": 11}, "header_size 11 is none of 10, 12, 20, 24"),
        ({"queues": 0}, "queues 0 is not within 1 to 256"),
        ({"queues": 257}, "queues 257 is not within 1 to 256"),
        ({"name": "x" * 16}, "interface name 'x{16}' has 16 bytes: limit 15"),
        ({"name": "a", "fd": 0}, "give one of name, fd and fds"),
        ({"fds": []}, "0 fds: limit 1 to 256"),
    ],
)
def test_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Tap(**options)  # type: ignore[arg-type]


def test_no_device_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(path: str, *_: object) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)

    monkeypatch.setattr(_tap.os, "open", absent)
    with pytest.raises(ConfigError, match="no /dev/net/tun: load the kernel's tun module"):
        Tap("x")
