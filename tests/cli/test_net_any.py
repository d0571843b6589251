"""The command `virtio net`, between endpoints of which none is a guest: any two are joined."""

from __future__ import annotations

import itertools
import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from captures import frames_in
from netcommand import PATIENCE, count, frames, joined, ready, started, stopped
from netns import Namespace
from spaces import namespaces
from vhost_frontend import Frontend
from waiting import wait_for

from virtio.cli.endpoints import Joined, parse
from virtio.net.ports import PcapWriter
from virtio.offload import NetHeader, fill_checksums
from virtio.ports.software_offload import Executor
from virtio.vhost_user.message import Request

SOL_PACKET, PACKET_VNET_HDR, ETH_P_ALL = 263, 15, 3
GSO_TCPV4, NEEDS_CSUM = 1, 1


def up(space: Namespace, *names: str) -> None:
    """Interfaces that say nothing of their own accord."""
    for name in names:
        space.run(lambda name=name: Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1"))  # type: ignore[misc]
        space.ip("link", "set", "dev", name, "up")


def wire(space: Namespace, name: str) -> socket.socket:
    """A socket that sends by an interface, and sees what it receives; virtio_net_hdr before each frame."""

    def made() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sock.bind((name, ETH_P_ALL))
        return sock

    sock = space.run(made)
    sock.settimeout(60)
    return sock


def taken(sock: socket.socket) -> bytes:
    """The next frame that came in from outside, without its header."""
    while True:
        data, address = sock.recvfrom(1 << 17)
        if address[2] != socket.PACKET_OUTGOING:
            return data[10:]


def tcp(payload: bytes) -> bytearray:
    """A frame of TCP, with checksums."""
    head = bytes.fromhex("020000007702020000007701 0800".replace(" ", ""))
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40 + len(payload), 7, 0x4000, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    frame = bytearray(head + ip + struct.pack(">HHIIBBHHH", 1, 2, 3, 4, 0x50, 0x10, 500, 0, 0) + payload)
    fill_checksums(frame)
    return frame


def plain(i: int) -> bytes:
    return bytes.fromhex("0200000077020200000077018888") + struct.pack(">I", i) * 20


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """A file with 50 frames, a millisecond apart."""
    path = tmp_path / "from.pcap"
    PcapWriter(path).close()
    with path.open("ab") as file:
        for i in range(50):
            file.write(struct.pack("=IIII", 0, 1000000 * i, len(plain(i)), len(plain(i))) + plain(i))
    return path


KINDS = ("loopback", "null", "sink", "gen:size=64,count=20", "pcap:{}", "replay:{}")


@pytest.mark.parametrize(
    ("one", "other"), [*itertools.combinations(KINDS, 2), *((kind, kind) for kind in KINDS if ":" not in kind)]
)
def test_any_two_kinds_are_joined(one: str, other: str, tmp_path: Path, capture: Path) -> None:
    files = {"pcap:{}": str(tmp_path / "to.pcap"), "replay:{}": str(capture)}
    texts = [kind.format(files.get(kind)) for kind in (one, other)]
    giving = {texts[i]: n for i in (0, 1) for kind, n in (("gen", 20), ("replay", 50)) if texts[i].startswith(kind)}
    with Joined([parse(text) for text in texts]) as net:
        first, second = net.statistics()
        assert (first, second) == (texts[0], texts[1] if one != other else f"{texts[1]} (2)")
        for i in (0, 1):
            here, there = (first, second) if i == 0 else (second, first)
            count = giving.get(texts[i], 0)
            wait_for(lambda here=here, count=count: net.statistics()[here]["tx0"]["frames"] >= count, PATIENCE)  # type: ignore[misc]
            wait_for(lambda there=there, count=count: net.statistics()[there]["rx0"]["frames"] >= count, PATIENCE)  # type: ignore[misc]
            if texts[1 - i] == "loopback" and count:
                wait_for(lambda here=here, count=count: net.statistics()[here]["rx0"]["frames"] == count, PATIENCE)  # type: ignore[misc]
    if "pcap:{}" in (one, other) and giving:
        assert len(frames_in(tmp_path / "to.pcap")) == sum(giving.values())


def test_a_generator_into_a_file_and_back(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    generator, pcap, replay = "gen:size=64,count=1000", f"pcap:{path}", f"replay:{path},loops=3"
    with joined(tmp_path, generator, pcap) as (process, status):
        wait_for(lambda: frames(status, pcap) == 1000, PATIENCE)
        assert frames(status, generator, "tx0") == 1000
        assert stopped(process)[pcap]["port"]["send_packets"] == 1000
    assert {len(frame) for frame in frames_in(path)} == {64}
    with joined(tmp_path, replay, "sink") as (process, status):
        wait_for(lambda: frames(status, "sink") == 3000, PATIENCE)
        port = stopped(process)["sink"]["port"]
        assert (port["repeated"], port["corrupt"], port["missing"], port["foreign"]) == (2000, 0, 0, 0)


def test_a_generator_verifies_what_a_loopback_gives_back(tmp_path: Path) -> None:
    text = "gen:kind=tcp,size=30000,gso-size=1448,count=300"
    with joined(tmp_path, "loopback", text, "--poll") as (process, status):
        wait_for(lambda: frames(status, text) == 300, PATIENCE)
        port = stopped(process)[text]["port"]
    assert port["send_bytes"] > 30000 * 300  # it was cut
    assert not any(port[name] for name in ("missing", "late", "repeated", "corrupt", "bad_checksum", "foreign"))


def test_both_ends_have_as_many_queues_as_one_asks_for(tmp_path: Path) -> None:
    with joined(tmp_path, "gen:count=10,queues=3", "sink", "--workers", "2") as (_, status):
        wait_for(lambda: all(frames(status, "sink", f"rx{i}") == 10 for i in range(3)), PATIENCE)
    with joined(tmp_path, "sink,queues=200", "gen:count=10,queues=2") as (_, status):  # those that both have
        wait_for(lambda: frames(status, "sink,queues=200", "rx1") == 10, PATIENCE)
    with joined(tmp_path, "null", "gen:count=10,queues=2") as (_, status):
        wait_for(lambda: frames(status, "null", "rx1") == 10, PATIENCE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_guest_with_many_queues_before_any(kind: str, tmp_path: Path, capture: Path) -> None:
    path = str(tmp_path / "s")
    other = kind.format(capture)
    with joined(tmp_path, f"vhost-user:{path},queues=4", other), Frontend(path) as frontend:
        assert frontend.ask_u64(Request.GET_QUEUE_NUM) == 4


def test_one_file_is_not_both_ends(tmp_path: Path, capture: Path) -> None:
    before = capture.read_bytes()
    with started(f"replay:{capture}", f"pcap:{capture.parent}/./{capture.name}") as process:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2
        assert err == f"virtio net: both endpoints are of one file, {capture}\n"
    assert capture.read_bytes() == before


# ---- with the kernel ----


@pytest.mark.root
def test_a_large_frame_of_a_tap_is_written_as_a_guests_would_be(tmp_path: Path) -> None:
    """A TSO frame, its checksum left undone: the capture has what is to be on a wire, as behind a device."""
    frame = tcp(bytes(range(250)) * 100)
    frame[50:52] = struct.pack(">H", 0)
    half = frame[:50] + struct.pack(">H", pseudo(frame)) + frame[52:]
    header = struct.pack("<BBHHHH", NEEDS_CSUM, GSO_TCPV4, 54, 1448, 34, 16)
    wanted = Executor().execute([(NetHeader.from_bytes(header, 10), bytes(half))])
    path = tmp_path / "x.pcap"
    with (
        namespaces(1, Namespace) as (space,),
        joined(tmp_path, "tap:a", f"pcap:{path}", before=space.command()) as (process, status),
    ):
        up(space, "a")
        with wire(space, "a") as sock:
            sock.send(header + half)
            sock.send(bytes(10) + plain(1))
            wait_for(lambda: frames(status, f"pcap:{path}") == 2, PATIENCE)
        figures = stopped(process)
    assert figures[f"pcap:{path}"]["rx0"]["executed"]["segments"] == len(wanted) == 18
    assert frames_in(path) == [*(bytes(made) for _, made in wanted), plain(1)]


def pseudo(frame: bytes | bytearray) -> int:
    """The sum of the pseudo-header, which is what a checksum field holds that is to be completed."""
    total = sum(struct.unpack(">4H", frame[26:34])) + 6 + len(frame) - 34
    return (total & 0xFFFF) + (total >> 16)


@pytest.mark.root
@pytest.mark.parametrize("text", ["replay:{},speed=1,loops=none", "gen:size=100,rate=1000"])
def test_a_file_or_a_generator_into_a_tap(text: str, tmp_path: Path, capture: Path) -> None:
    with (
        namespaces(1, Namespace) as (space,),
        started("tap:a", text.format(capture), "--json", before=space.command()) as process,
    ):
        ready(process)
        up(space, "a")
        with wire(space, "a") as sock:
            seen = [taken(sock) for _ in range(150)]
        assert stopped(process)["tap:a"]["port"]["send_packets"] >= 150
    if text.startswith("replay"):
        assert set(seen) == {plain(i) for i in range(50)}
    else:
        assert {len(frame) for frame in seen} == {100}


@pytest.mark.root
def test_a_tap_before_a_loopback_sees_its_own(tmp_path: Path) -> None:
    with (
        namespaces(1, Namespace) as (space,),
        joined(tmp_path, "tap:a", "loopback", before=space.command()) as (process, _),
    ):
        up(space, "a")
        with wire(space, "a") as sock:
            for i in range(100):
                sock.send(bytes(10) + plain(i))
            # a thread that changes its CPU lets frames overtake each other in the kernel's queues
            assert {taken(sock) for _ in range(100)} == {plain(i) for i in range(100)}
        assert stopped(process)["loopback"]["rx0"]["frames"] >= 100


@pytest.mark.root
@pytest.mark.parametrize("more", [(), ("--poll", "--workers", "1"), ("--cpus", "0")], ids=["adaptive", "busy", "cpus"])
def test_two_taps_are_a_cable(more: tuple[str, ...], tmp_path: Path) -> None:
    """A TCP stream of the kernel passes whole, uncut, in both directions, and is counted."""
    data = b"".join(struct.pack(">I", i) for i in range(1 << 20))
    with (
        namespaces(2, Namespace) as (left, right),
        joined(tmp_path, "tap:a", "tap:b,queues=1", *more, before=left.command()) as (process, status),
    ):
        left.ip("link", "set", "dev", "b", "netns", f"/proc/{os.getpid()}/fd/{right.fileno()}")
        for i, (space, name) in enumerate(((left, "a"), (right, "b"))):
            space.ip("addr", "add", f"10.77.0.{i + 1}/24", "dev", name)
            up(space, name)
        with right.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind(("10.77.0.2", 5001))
            listener.listen(1)
            with left.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
                sock.connect(("10.77.0.2", 5001))
                other, _ = listener.accept()
                with other:
                    exchange(sock, other, data)
                    exchange(other, sock, data)
            for text, queue in itertools.product(("tap:a", "tap:b,queues=1"), ("rx0", "tx0")):
                wait_for(lambda text=text, queue=queue: count(status, text, queue, "bytes") > len(data), PATIENCE)  # type: ignore[misc]
            figures: dict[str, Any] = status.read()["endpoints"]
        assert figures["tap:a"]["tx0"]["frames"] < len(data) / 1500  # large ones are not cut
        assert left.counters()["Tcp.InCsumErrors"] == right.counters()["Tcp.InCsumErrors"] == 0
        stopped(process)


def exchange(sender: socket.socket, receiver: socket.socket, data: bytes) -> None:
    got = bytearray()
    sent = 0
    sender.settimeout(60)
    receiver.settimeout(60)
    while len(got) < len(data):
        if sent < len(data):
            sent += sender.send(data[sent : sent + (1 << 17)])
        got += receiver.recv(1 << 17)
    assert got == data
