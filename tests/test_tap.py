"""The TAP port, with a real kernel behind it: what it sends arrives, and what the kernel sends comes out of it."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest
from peers import need_peer
from spaces import MACS, namespaces

from virtio import _tap
from virtio._portbench import MemorySink, arm, receive, send
from virtio.errors import ConfigError
from virtio.net.netns import Namespace
from virtio.net.ports import Generator, Tap
from virtio.offload import NetHeader, Verdict, fill_checksums, fill_partial_checksum, segment, verify

CSUM, TSO4, TSO6, ECN, UFO, USO4, USO6, TUNNEL, TUNNEL_CSUM = (1 << i for i in range(9))
ALL = 0x1FF
UDP_SEGMENT = 103
TUNSETSNDBUF = 0x400454D4
OURS, THEIRS = MACS  # of the interface, and of whoever is at our end
PAIR4 = ("10.0.0.2", "10.0.0.1")
PAIR6 = ("fd00::2", "fd00::1")


@pytest.fixture
def space() -> Iterator[Namespace]:
    with namespaces(1) as (made,):
        yield made


def interface(space: Namespace, version: int = 4, **options) -> Tap:
    """A TAP that is up at 10.0.0.1 or fd00::1; at our end is 10.0.0.2 or fd00::2."""
    tap = space.tap("vm0", mac=OURS, up=False, **options)
    space.quiet(tap.name)
    if version == 4:
        space.sysctl(f"net/ipv6/conf/{tap.name}/disable_ipv6", 1)
    space.set_link(tap.name, up=True)
    own, other = ("10.0.0.1/24", "10.0.0.2") if version == 4 else ("fd00::1/64", "fd00::2")
    space.add_address(tap.name, own)
    space.add_neighbour(tap.name, other, THEIRS)
    space.settle()
    return tap


def pull(tap: Tap, queue: int = 0, limit: int = 64, **options) -> list[tuple[NetHeader, bytes]]:
    """The frames that wait at a TAP; without those of ICMPv6, which the kernel sends of its own accord."""
    options = {"offloads": ALL, **options}
    sink = MemorySink(size=64, **options)
    receive(tap, sink, limit, queue)
    assert sink.unlocked == 0
    frames = sink.take()
    for hdr, _ in frames:  # nothing of ours leaks where the kernel writes nothing
        assert (hdr.num_buffers, hdr.hash_value, hdr.hash_report) == (1, 0, 0)
        assert (hdr.outer_th_offset, hdr.inner_nh_offset) == (0, 0)
    return [(hdr, frame) for hdr, frame in frames if frame[12:14] != b"\x86\xdd" or frame[20] == 17]


def udp(payload: bytes, *, port: int = 9, version: int = 4) -> bytes:
    """A frame to the interface, checksums and all."""
    head = bytes.fromhex((OURS + THEIRS).replace(":", ""))
    l4 = struct.pack(">HHHH", 7, port, 8 + len(payload), 0) + payload
    if version == 4:
        ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(l4), 1, 0, 64, 17, 0, *map(socket.inet_aton, PAIR4))
        frame = bytearray(head + b"\x08\x00" + ip + l4)
    else:
        ip = struct.pack(
            ">IHBB16s16s", 6 << 28, len(l4), 17, 64, *(socket.inet_pton(socket.AF_INET6, a) for a in PAIR6)
        )
        frame = bytearray(head + b"\x86\xdd" + ip + l4)
    fill_checksums(frame)
    return bytes(frame)


def listener(space: Namespace, version: int = 4, port: int = 9) -> socket.socket:
    sock = space.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind(("10.0.0.1" if version == 4 else "fd00::1", port))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    sock.settimeout(10)
    return sock


def sender(space: Namespace, version: int = 4) -> Callable[[bytes], int]:
    sock = space.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    to = ("10.0.0.2" if version == 4 else "fd00::2", 9)
    return lambda data: sock.sendto(data, to)


# ---- what the kernel sends ----


@pytest.mark.parametrize("version", [4, 6])
def test_frames_of_the_kernel_come_whole_with_checksums(space: Namespace, version: int) -> None:
    tap = interface(space, version)
    put = sender(space, version)
    payloads = [bytes([i]) * (i * 37 % 1400 + 1) for i in range(40)]
    for payload in payloads:
        put(payload)
    got = pull(tap, limit=10)
    assert len(got) <= 10
    while more := pull(tap):
        got += more
    assert [frame[14 + (20 if version == 4 else 40) + 8 :] for _, frame in got] == payloads
    for hdr, frame in got:
        assert (hdr.flags, hdr.gso_type, hdr.num_buffers) == (0, 0, 1)
        assert verify(frame).l4 is Verdict.GOOD
    counts = tap.statistics()
    assert counts["receive_packets"] >= 40
    assert counts["receive_dropped"] == 0
    assert pull(tap) == []


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [10, 12, 20, 24])
def test_what_was_granted_may_be_left_undone(space: Namespace, size: int, version: int) -> None:
    tap = interface(space, version, header_size=size)
    assert tap.header_size == size
    tap.receive_offloads(CSUM, 12)
    assert tap.granted_offloads == CSUM
    sender(space, version)(b"x" * 100)
    ((hdr, frame),) = pull(tap)
    start = 14 + (20 if version == 4 else 40)
    assert (hdr.flags, hdr.gso_type, hdr.csum_start, hdr.csum_offset) == (1, 0, start, 6)
    assert verify(frame).l4 is Verdict.BAD
    tap.receive_offloads(0, 12)
    sender(space, version)(b"x" * 100)
    ((hdr, frame),) = pull(tap)
    assert hdr.flags == 0
    assert verify(frame).l4 is Verdict.GOOD


@pytest.mark.parametrize("version", [4, 6])
def test_large_frames_of_the_kernel(space: Namespace, version: int) -> None:
    tap = interface(space, version)
    if not tap.known_offloads & USO4:
        pytest.skip("this kernel has no USO")
    put = space.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    put.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 1000)
    data = os.urandom(40500)
    to = ("10.0.0.2" if version == 4 else "fd00::2", 9)
    start = 14 + (20 if version == 4 else 40)
    tap.receive_offloads(ALL, 24)
    put.sendto(data, to)
    for piece in (70000, 1500, 100):
        ((hdr, frame),) = pull(tap, piece=piece)
        assert (hdr.flags, hdr.gso_type, hdr.gso_size, hdr.csum_start) == (1, 5, 1000, start)
        assert frame[start + 8 :] == data
        put.sendto(data, to)
    pull(tap)
    tap.receive_offloads(CSUM, 24)  # and the kernel cuts
    put.sendto(data, to)
    got = pull(tap)
    assert [len(frame) - start - 8 for _, frame in got] == [1000] * 40 + [500]
    assert b"".join(frame[start + 8 :] for _, frame in got) == data


def test_what_the_sink_does_not_take_it_completes(space: Namespace) -> None:
    """Frames that wait when less is granted still are what they were."""
    tap = interface(space)
    tap.receive_offloads(CSUM, 24)
    sender(space)(b"y" * 500)
    tap.receive_offloads(0, 24)
    before = pull(tap, offloads=0)
    assert [hdr.flags for hdr, _ in before] == [1]  # through deliver, which in a device completes it
    assert before[0][1][42:] == b"y" * 500
    assert tap.statistics()["receive_dropped"] == 0
    sink = MemorySink(size=1, offloads=0)
    tap.receive_offloads(CSUM, 24)
    for _ in range(2):
        sender(space)(b"z" * 100)
    assert receive(tap, sink, 1) == 1
    assert receive(tap, sink, 1) == 0  # full
    assert tap.statistics()["receive_full"] == 1
    assert sink.take()[0][1][42:] == b"z" * 100
    assert receive(tap, sink, 1) == 1
    assert sink.take()[0][1][42:] == b"z" * 100


def test_a_frame_larger_than_its_room_is_dropped(space: Namespace) -> None:
    tap = interface(space, mtu=3000)
    put = sender(space)
    for size in (1000, 1001, 2000, 900):
        put(b"x" * size)
    got = pull(tap, frame_max=1042, piece=100)
    assert [len(frame) for _, frame in got] == [1042, 942]
    counts = tap.statistics()
    assert (counts["receive_dropped"], counts["receive_EMSGSIZE"]) == (2, 2)


def test_rooms_of_many_pieces(space: Namespace) -> None:
    tap = interface(space)
    put = sender(space)
    put(b"a" * 1000)
    ((_, frame),) = pull(tap, frame_max=1022 * 2, piece=2)  # with header and guard as many as readv takes
    assert frame[42:] == b"a" * 1000
    put(b"b" * 1000)
    assert pull(tap, frame_max=1023, piece=1) == []  # one more: no room, and the frame waits
    assert tap.statistics()["receive_full"] == 1
    ((_, frame),) = pull(tap)
    assert frame[42:] == b"b" * 1000


def test_that_the_kernel_has_checked_is_passed_on_to_who_understands_it(space: Namespace) -> None:
    """What an interface with NAPI merged on receipt, and a bridge forwards: DATA_VALID."""
    need_peer("ip", "iproute2")
    tap = interface(space)
    tap.receive_offloads(ALL, 24)
    flags = _tap.IFF_TAP | _tap.IFF_NO_PI | 0x10  # IFF_NAPI

    def made() -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(fd, _tap.TUNSETIFF, struct.pack("16sH22x", b"vm1", flags))
        return fd

    fd = space.run(made)
    for words in ("link add br0 type bridge", "link set vm0 master br0", "link set vm1 master br0"):
        if space.popen(["ip", *words.split()]).wait():
            pytest.skip("this kernel has no bridge")
    for name in ("vm1", "br0"):
        space.quiet(name)
        space.set_link(name, up=True)
    generator, made_frames = Generator(1014, kind="tcp", destination=THEIRS), MemorySink()
    for offloads, seen in ((ALL, 2), (0, 0)):
        receive(generator, made_frames, 1)
        ((_, frame),) = made_frames.take()
        os.write(fd, frame)
        flags_seen: list[int] = []
        while not flags_seen:
            assert select.select([tap.fileno()], [], [], 10)[0]
            flags_seen = [hdr.flags for hdr, got in pull(tap, offloads=offloads) if got == frame]
        assert flags_seen == [seen]
    os.close(fd)


# ---- what the kernel receives ----


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("pieces", [1, 2, 17, 1000, 1023, 1024, 1400])
def test_frames_in_pieces_arrive(space: Namespace, pieces: int, version: int) -> None:
    tap = interface(space, version)
    sock = listener(space, version)
    payload = os.urandom(1400)
    frame = udp(payload, version=version)
    ends = [len(frame) * i // pieces for i in range(pieces + 1)]
    assert send(tap, [(None, [frame[a:b] for a, b in itertools.pairwise(ends)])] * 2) == 2
    assert sock.recv(2000) == payload
    assert sock.recv(2000) == payload
    counts = tap.statistics()
    assert (counts["send_packets"], counts["send_bytes"], counts["send_dropped"]) == (2, 2 * len(frame), 0)


@pytest.mark.parametrize("size", [10, 12, 20, 24])
def test_what_is_left_undone_the_kernel_does(space: Namespace, size: int) -> None:
    tap = interface(space, header_size=size)
    assert tap.offloads & 0x1F == 0x1F
    sock = listener(space)
    frame = bytearray(udp(b"x" * 333))
    start, offset = fill_partial_checksum(frame)
    assert send(tap, [(NetHeader(flags=1, csum_start=start, csum_offset=offset), [bytes(frame)])]) == 1
    assert sock.recv(2000) == b"x" * 333
    # num_buffers, hash and offsets say nothing to the kernel
    hdr = NetHeader(
        flags=1, csum_start=start, csum_offset=offset, num_buffers=77, hash_value=1, hash_report=2,
        outer_th_offset=1, inner_nh_offset=2,
    )  # fmt: skip
    assert send(tap, [(hdr, [bytes(frame)])]) == 1
    assert sock.recv(2000) == b"x" * 333
    assert space.counters()["Udp.InCsumErrors"] == 0
    # without saying so it is wrong
    assert send(tap, [(None, [bytes(frame)])]) == 1
    sock.settimeout(0.05)
    with pytest.raises(TimeoutError):  # the kernel looks when it is read
        sock.recv(2000)
    assert space.counters()["Udp.InCsumErrors"] == 1


@pytest.mark.parametrize("version", [4, 6])
def test_large_frames_are_cut_by_the_kernel(space: Namespace, version: int) -> None:
    tap = interface(space, version)
    if not tap.offloads & USO4:
        pytest.skip("this kernel has no USO")
    sock = listener(space, version)
    payload = os.urandom(60300)
    frame = bytearray(udp(payload, version=version))
    start, offset = fill_partial_checksum(frame)
    hdr = NetHeader(flags=1, gso_type=5, gso_size=1000, hdr_len=start + 8, csum_start=start, csum_offset=offset)
    assert send(tap, [(hdr, [bytes(frame)])]) == 1
    assert b"".join(sock.recv(2000) for _ in range(61)) == payload


def test_ufo_frames_arrive(space: Namespace) -> None:
    """One datagram that would be fragments on a wire."""
    tap = interface(space)
    sock = listener(space)
    payload = os.urandom(30000)
    frame = bytearray(udp(payload))
    start, offset = fill_partial_checksum(frame)
    hdr = NetHeader(flags=1, gso_type=3, gso_size=1480, hdr_len=start + 8, csum_start=start, csum_offset=offset)
    assert send(tap, [(hdr, [bytes(frame)])]) == 1
    assert sock.recv(65536) == payload


def test_what_the_kernel_refuses_is_dropped_and_counted_by_its_name(space: Namespace) -> None:
    tap = interface(space)
    sock = listener(space)
    good = udp(b"good")
    bad = NetHeader(flags=1, gso_type=1, gso_size=0, csum_start=34, csum_offset=16)
    assert send(tap, [(None, [bytes(13)]), (None, [good]), (bad, [good]), (None, []), (None, [good])]) == 5
    assert [sock.recv(100), sock.recv(100)] == [b"good", b"good"]
    counts = tap.statistics()
    assert (counts["send_packets"], counts["send_dropped"], counts["send_EINVAL"]) == (2, 3, 3)
    assert send(tap, [(None, [bytes(60000)] * 1100)]) == 1  # larger than any frame, in more pieces than writev takes
    assert tap.statistics()["send_EMSGSIZE"] == 1


def test_full_and_room_again(space: Namespace) -> None:
    """Frames that wait in a queue of the kernel for their turn count as ours until they are sent."""
    need_peer("ip", "iproute2")
    need_peer("tc", "iproute2")
    tap = interface(space)
    beyond = space.tap("vm1")
    for words in (
        "ip link add br0 type bridge",
        "ip link set vm0 master br0",
        "ip link set vm1 master br0",
        "ip link set br0 up",
        "tc qdisc add dev vm1 root handle 1: htb default 1",
        "tc class add dev vm1 parent 1: classid 1:1 htb rate 64kbit burst 2000 quantum 2000",
    ):
        if space.popen(words.split(), stderr=subprocess.DEVNULL).wait():
            pytest.skip(f"this kernel cannot {words}")
    fcntl.ioctl(tap.fileno(), TUNSETSNDBUF, struct.pack("i", 20000))
    frame = bytes.fromhex("020000009999" + THEIRS.replace(":", "") + "88b5") + bytes(1000)
    sent = 0
    while (taken := send(tap, [(None, [frame])] * 8)) == 8:
        sent += 8
        assert sent < 100
    sent += taken
    counts = tap.statistics()
    assert (counts["send_packets"], counts["send_dropped"], counts["send_full"]) == (sent, 0, 1)
    poll = select.poll()
    for fd, events in arm(tap, "send")[1]:
        poll.register(fd, events)
    assert poll.poll(0) == []
    assert poll.poll(10000)  # the kernel says when
    assert send(tap, [(None, [frame])]) == 1
    beyond.close()


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


def test_segments_of_ours_are_those_of_the_kernel(space: Namespace) -> None:
    """What the kernel would cut, cut by us: the same datagrams arrive."""
    tap = interface(space)
    sock = listener(space)
    payload = os.urandom(5300)
    frame = udp(payload)
    parts = [bytes(part) for part in segment(frame, 1000, 5).packets()]
    assert send(tap, [(None, [part]) for part in parts]) == 6
    assert b"".join(sock.recv(2000) for _ in range(6)) == payload
