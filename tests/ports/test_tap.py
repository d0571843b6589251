"""The TAP port, with a real kernel behind it: what it sends arrives, and what the kernel sends comes out of it."""

from __future__ import annotations

import fcntl
import itertools
import os
import select
import socket
import struct
import subprocess

import pytest
from peers import need_peer
from taps import (
    ALL,
    CSUM,
    THEIRS,
    USO4,
    interface,
    listener,
    pull,
    sender,
    udp,
)

from bench.kernels.portbench import MemorySink, arm, receive, send
from virtio.net.netns import Namespace
from virtio.net.ports import Generator
from virtio.offload import NetHeader, Verdict, fill_partial_checksum, segment, verify
from virtio.ports import tap as _tap

UDP_SEGMENT = 103
TUNSETSNDBUF = 0x400454D4


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


def test_segments_of_ours_are_those_of_the_kernel(space: Namespace) -> None:
    """What the kernel would cut, cut by us: the same datagrams arrive."""
    tap = interface(space)
    sock = listener(space)
    payload = os.urandom(5300)
    frame = udp(payload)
    parts = [bytes(part) for part in segment(frame, 1000, 5).packets()]
    assert send(tap, [(None, [part]) for part in parts]) == 6
    assert b"".join(sock.recv(2000) for _ in range(6)) == payload
