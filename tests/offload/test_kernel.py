"""The Linux kernel as an oracle: its stack takes what we cut and sum, and we cut and sum what its stack leaves to us.

Two namespaces, each behind a TAP with virtio_net_hdr. From A to B go the GSO frames and partial checksums that A's
kernel leaves to a NIC, done by our kernels; B's kernel verifies each segment. From B to A go B's plain frames,
coalesced; A's kernel takes the large frames. Real TCP and UDP sockets at both ends, every byte compared by hash.
"""

from __future__ import annotations

import functools
import operator
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import netns
import pytest
from kernel_streams import FAMILIES, UDP_SEGMENT, content, stream_both_ways
from netns import CSUM, ECN, TSO4, TSO6, TUNNEL, TUNNEL_CSUM, USO4, USO6, A, B, Link, Pump
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from virtio import offload
from virtio.constants import NetFeature

ALL = CSUM | TSO4 | TSO6 | ECN | USO4 | USO6
FEATURES = functools.reduce(operator.or_, (feature for feature in NetFeature if feature.name.startswith("HOST_")),
                            NetFeature.CSUM)  # fmt: skip
GUEST_FEATURES = NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6 | NetFeature.GUEST_ECN
SO_RCVBUFFORCE = 33


class Nic:
    """What a NIC does between two TAPs, by our kernels."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.seen: Counter[str] = Counter()
        self.coalescer = offload.Coalescer()
        self.carrier = True  # without, frames are lost

    def about(self, header: bytes, frame: bytes) -> offload.NetHeader:
        """The kernel's virtio_net_hdr, found right and true of the frame."""
        about = offload.NetHeader.from_bytes(header, len(header))
        assert about.check(len(frame), FEATURES) is offload.NetHeaderFault.OK
        told = offload.classify_receive(about, frame, FEATURES, to_driver=False)
        assert told.verdict is not offload.ReceiveVerdict.BAD, (told, about, frame.hex())
        return about

    def leaves(self, header: bytes, frame: bytes) -> list[tuple[Any, ...]]:
        """The plain frames, each in pieces, that a frame with this virtio_net_hdr becomes."""
        about = self.about(header, frame)
        if about.gso_type:
            self.seen[f"gso {about.gso_type:#x}"] += 1
            cut = list(offload.segment(frame, about.gso_size, about.gso_type))
            self.seen["segments"] += len(cut)
            return cut
        if about.flags & 1:
            self.seen["needs checksum"] += 1
            whole = bytearray(frame)
            offload.complete_checksum(whole, about.csum_start, about.csum_offset)
            return [(whole,)]
        return [(frame,)]

    def check_merged(self, one: offload.Merged) -> None:
        """A's kernel believes NEEDS_CSUM. So look first: completed, the frame is right; its segments are as counted."""
        frame = bytearray(bytes(one))
        told = offload.complete_receive(one.net_header, frame, GUEST_FEATURES)
        assert (told.verdict, told.segments) == (offload.ReceiveVerdict.NEEDS_CHECKSUM, one.segments)
        ether = Ether(bytes(frame))
        checksum = ether[TCP].chksum
        del ether[TCP].chksum
        # 0 and 0xffff are one number there: we store 0xffff, as Linux does, scapy 0
        assert (Ether(bytes(ether))[TCP].chksum or 0xFFFF) == checksum

    def a_to_b(self, group: list[tuple[bytes, bytes]]) -> None:
        for header, frame in group if self.carrier else ():
            for pieces in self.leaves(header, frame):
                self.link.taps[B].write(*pieces)

    def b_to_a(self, group: list[tuple[bytes, bytes]]) -> None:
        if not self.carrier:
            return
        merged = self.coalescer.receive([frame for _, frame in group]) + self.coalescer.flush()
        for one in merged:
            if one.segments > 1:
                self.seen["merged"] += 1
                self.check_merged(one)
            header = one.net_header.to_bytes(self.link.taps[A].header)
            self.link.taps[A].write(one.header, *one.pieces, header=header)


class Traffic:
    """Both pumps of a link, and the streams that are sent over it."""

    def __init__(self, link: Link, nic: Nic) -> None:
        self.link, self.nic = link, nic
        self.pumps = [Pump(link.taps[A], nic.a_to_b), Pump(link.taps[B], nic.b_to_a)]

    def stop(self) -> None:
        for pump in self.pumps:
            pump.stop()


@pytest.fixture
def joined(request: pytest.FixtureRequest) -> Iterator[tuple[Link, Nic]]:
    """A link whose A side leaves offloads to our Nic, and whose B side does everything itself; errors end the test."""
    options = {"offloads": (ALL, 0), **getattr(request, "param", {})}
    with netns.link(**options) as link:
        nic = Nic(link)
        traffic = Traffic(link, nic)
        try:
            yield link, nic
        finally:
            traffic.stop()
        assert link.errors() == {}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("joined", [{}, {"mtu": 9000}, {"mtu": 1280}], indirect=True, ids=["1500", "9000", "1280"])
def test_tcp_streams(joined: tuple[Link, Nic], version: int, simd: str) -> None:
    link, nic = joined
    stream_both_ways(link, version)
    assert nic.seen[f"gso {1 if version == 4 else 4:#x}"] > 0
    assert nic.seen["segments"] > 1000 or link.namespaces[B].counters()["Tcp.InSegs"] < 4000
    assert nic.seen["merged"] > 0


def datagrams_to_b(link: Link, version: int, size: int, gso: int) -> tuple[bytes, list[bytes]]:
    """Send one large write cut into datagrams of gso bytes (Linux's UDP_SEGMENT); return it and what B gets."""
    family, _, address = FAMILIES[version]
    to = link.namespaces[B].socket(family, socket.SOCK_DGRAM)
    to.bind((address, 7000))
    of = link.namespaces[A].socket(family, socket.SOCK_DGRAM)
    of.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, gso)
    data = content(size, size)
    of.sendto(data, (address, 7000))
    got = [to.recv(1 << 16) for _ in range((size + gso - 1) // gso)]
    to.close()
    of.close()
    return data, got


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("size", "gso"), [(50_000, 1400), (999, 10), (1401, 1400), (28_000, 1400), (3, 2)])
def test_udp_gso_datagrams(joined: tuple[Link, Nic], version: int, size: int, gso: int) -> None:
    link, nic = joined
    data, got = datagrams_to_b(link, version, size, gso)
    assert [len(one) for one in got] == [min(gso, size - at) for at in range(0, size, gso)]
    assert b"".join(got) == data
    assert nic.seen["gso 0x5"] == 1


def test_the_oracle_can_fail() -> None:
    """A segment with a wrong checksum is counted by the kernel: the errors that the other tests forbid."""
    with netns.link() as link:
        packet = bytearray(udp_frame(link, b"x" * 100))
        packet[-1] ^= 1
        to = link.namespaces[B].socket(socket.AF_INET, socket.SOCK_DGRAM)
        to.bind(("10.77.0.2", 7000))
        link.taps[B].write(packet)
        to.settimeout(0.2)
        with pytest.raises(TimeoutError):  # it is verified when it is asked for
            to.recv(1 << 16)
        assert link.errors() == {"B Udp.InCsumErrors": 1, "B Udp.InErrors": 1}
        to.close()


def udp_frame(link: Link, payload: bytes, *, sport: int = 7001, dport: int = 7000, proto: int = 17) -> bytes:
    """A frame from A to B with sound checksums, made by scapy."""
    ether = Ether(src=link.macs[A], dst=link.macs[B])
    return bytes(ether / IP(src="10.77.0.1", dst="10.77.0.2", id=77) / UDP(sport=sport, dport=dport) / payload)


@pytest.mark.parametrize("payload", [1481, 1600, 30_001, 65_507])
def test_ufo_fragments_are_put_together_again(payload: int) -> None:
    """One datagram, cut into IPv4 fragments: the kernel reassembles it and finds its checksum right."""
    with netns.link() as link:
        to = link.namespaces[B].socket(socket.AF_INET, socket.SOCK_DGRAM)
        to.bind(("10.77.0.2", 7000))
        data = content(payload, payload)
        pieces = list(offload.segment(udp_frame(link, data), 1480, 3))
        for one in pieces:
            link.taps[B].write(*one)
        assert to.recv(1 << 17) == data
        to.close()
        assert link.errors() == {}
        counters = link.namespaces[B].counters()
        assert counters["Ip.ReasmReqds"] == len(pieces) > 1
        assert counters["Ip.ReasmOKs"] == 1


TUNNELS = {"offloads": (ALL | TUNNEL | TUNNEL_CSUM, 0), "header": 24}


@pytest.mark.parametrize("joined", [TUNNELS], indirect=True, ids=["tunnel"])
@pytest.mark.parametrize("checksum", ["udpcsum", "noudpcsum"])
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("inner", [4, 6])
def test_vxlan_streams(joined: tuple[Link, Nic], outer: int, inner: int, checksum: str) -> None:
    """TCP in the kernel's own VXLAN: GSO frames with a tunnel, cut by us, and taken by the kernel's VXLAN."""
    link, nic = joined
    nic.carrier = False  # what is sent to a namespace that has no VXLAN yet is an error there
    for i, space in enumerate(link.namespaces):
        flags = [checksum] if outer == 4 else ["udp6zerocsumtx", "udp6zerocsumrx"] if checksum == "noudpcsum" else []
        space.ip(
            "link", "add", "vx", "mtu", "1400", "address", f"02:00:00:00:88:0{i + 1}", "type", "vxlan", "id", "42",
            "remote", FAMILIES[outer][2 - i], "local", FAMILIES[outer][1 + i], "dstport", "4789", *flags, "dev", "tap0",
        )  # fmt: skip
        space.ip("link", "set", "vx", "up")
        for address in ("10.88.0.", "fd88::"):
            space.ip("addr", "add", f"{address}{i + 1}/{24 if '.' in address else 64}", "dev", "vx", "nodad")
            space.ip("neigh", "add", f"{address}{2 - i}", "lladdr", f"02:00:00:00:88:0{2 - i}", "dev", "vx")
        space.patient("vx", "10.88.0.0/24", "fd88::/64")
        space.settle()
    nic.carrier = True
    stream_both_ways(link, inner, 4 << 20, addresses=(("10.88.0.1", "10.88.0.2"), ("fd88::1", "fd88::2"))[inner == 6])
    kind = (1 if inner == 4 else 4) | (0x20 if outer == 4 else 0x40)
    assert nic.seen[f"gso {kind:#x}"] > 0


class Wrapping(Nic):
    """Puts something around what A sends before it is cut, and takes it off what was cut before B gets it."""

    def wrap(self, about: Any, frame: bytes) -> tuple[bytes, int]:
        raise AssertionError

    def unwrap(self, pieces: tuple[Any, ...]) -> None:
        raise AssertionError

    def a_to_b(self, group: list[tuple[bytes, bytes]]) -> None:
        for header, frame in group:
            about = self.about(header, frame)
            if about.gso_type:
                wrapped, gso_type = self.wrap(about, frame)
                self.seen["wrapped"] += 1
                for pieces in offload.segment(wrapped, about.gso_size, gso_type):
                    self.unwrap(pieces)
            else:
                super().a_to_b([(header, frame)])


class Tagged(Wrapping):
    """VLAN tags: this kernel may have no VLANs, so they are put on before the cut and taken off after it."""

    tags = b"\x88\xa8\x01\x23\x81\x00\x60\x42"

    def wrap(self, about: Any, frame: bytes) -> tuple[bytes, int]:
        return frame[:12] + self.tags + frame[12:], about.gso_type

    def unwrap(self, pieces: tuple[Any, ...]) -> None:
        whole = b"".join(pieces)
        assert whole[12:20] == self.tags
        self.link.taps[B].write(whole[:12], whole[20:])


class Extended(Wrapping):
    """IPv6 extension headers: the kernel cuts such frames itself, so they are put in before the cut. B takes them."""

    headers = bytes.fromhex("3c00010400000000 2b00010400000000 3c00630000000000 0600010400000000")  # routing: used up

    def wrap(self, about: Any, frame: bytes) -> tuple[bytes, int]:
        length = int.from_bytes(frame[18:20], "big") + len(self.headers)
        return frame[:18] + length.to_bytes(2, "big") + b"\0" + frame[21:54] + self.headers + frame[54:], about.gso_type

    def unwrap(self, pieces: tuple[Any, ...]) -> None:
        assert bytes(pieces[0])[54 : 54 + len(self.headers)] == self.headers
        self.link.taps[B].write(*pieces)


class Geneve(Wrapping):
    """GENEVE with options: each frame of A goes to a UDP socket of B, whose kernel verifies the outer headers.

    Frames that are not cut go the same way: TCP drops segments that are overtaken (PAWS: old timestamps).
    """

    options = bytes.fromhex("0102800101020304")
    head = bytes([len(options) // 4, 0, 0x65, 0x58, 0, 0, 42, 0]) + options

    def wrap(self, about: Any, frame: bytes) -> tuple[bytes, int]:
        return udp_frame(self.link, self.head + frame, dport=6081), about.gso_type | 0x20

    def unwrap(self, pieces: tuple[Any, ...]) -> None:
        self.seen["outer"] += 1
        self.link.taps[B].write(*pieces)

    def leaves(self, header: bytes, frame: bytes) -> list[tuple[Any, ...]]:
        [pieces] = super().leaves(header, frame)  # without gso_type: a_to_b cuts the others
        self.seen["outer"] += 1
        return [(udp_frame(self.link, self.head + b"".join(pieces), dport=6081),)]


@pytest.mark.parametrize(("kind", "version"), [(Tagged, 4), (Tagged, 6), (Extended, 6)])
def test_streams_of_wrapped_frames(kind: type[Wrapping], version: int) -> None:
    with netns.link(offloads=(ALL, 0)) as link:
        for space in link.namespaces:
            for name in ("all", "tap0"):
                path = f"/proc/sys/net/ipv6/conf/{name}/accept_source_route"
                space.run(lambda path=path: Path(path).write_text("1"))
        nic = kind(link)
        traffic = Traffic(link, nic)
        try:
            stream_both_ways(link, version, 4 << 20)
        finally:
            traffic.stop()
        assert link.errors() == {}
        assert nic.seen["wrapped"] > 0


@pytest.mark.parametrize("version", [4, 6])
def test_geneve_streams(version: int) -> None:
    with netns.link(offloads=(ALL, 0), mtu=1400) as link:
        for space in link.namespaces:
            space.ip("link", "set", "tap0", "mtu", "1500")
        nic = Geneve(link)
        port = link.namespaces[B].socket(socket.AF_INET, socket.SOCK_DGRAM)
        port.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        port.bind(("10.77.0.2", 6081))
        got: Counter[str] = Counter()

        def unpack() -> None:
            while (data := port.recv(1 << 16)) != b"stop":
                assert data.startswith(Geneve.head)
                got["inner"] += 1
                link.taps[B].write(data[len(Geneve.head) :])

        thread = threading.Thread(target=unpack)
        thread.start()
        traffic = Traffic(link, nic)
        try:
            stream_both_ways(link, version, 4 << 20, options=[(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1300)])
        finally:
            traffic.stop()
            link.taps[B].write(udp_frame(link, b"stop", dport=6081))
            thread.join()
            port.close()
        assert got["inner"] == nic.seen["outer"] > nic.seen["wrapped"] > 0
        assert link.errors() == {}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_kernel_cuts_merged_frames_into_what_they_were(version: int, shuffled: bool) -> None:
    """A kernel forwards our merged frames to an interface without offloads: what it cuts them into is the input."""
    with netns.link() as link:
        space, far = link.namespaces[A], "02:00:00:00:79:02"
        out = netns.Tap(space, "tap1", mac="02:00:00:00:79:01")
        family, prefix = ("ipv4", "10.79.0.") if version == 4 else ("ipv6", "fd79::")
        path = f"/proc/sys/net/{family}/conf/all/forwarding"
        space.run(lambda: Path(path).write_text("1"))
        space.ip("addr", "add", f"{prefix}1/{24 if version == 4 else 64}", "dev", "tap1", "nodad")
        space.ip("neigh", "add", f"{prefix}2", "lladdr", far, "dev", "tap1", "nud", "permanent")
        space.settle()
        plain: list[bytes] = []
        ether = Ether(src=link.macs[B], dst=link.macs[A])
        for flow in range(3):
            ip = (IP(src="10.77.0.2", dst="10.79.0.2", id=65530, ttl=64) if version == 4
                  else IPv6(src="fd77::2", dst="fd79::2", hlim=64))  # fmt: skip
            tcp = TCP(sport=1000 + flow, dport=80, seq=2**32 - 5000, ack=7, flags="PAE",
                      options=[("NOP", None), ("NOP", None), ("Timestamp", (1, 2))])  # fmt: skip
            plain += offload.segment(bytes(ether / ip / tcp / content(flow, 20_001 + flow)), 1000 + flow).packets()
        if shuffled:
            random.Random(version).shuffle(plain)
        coalescer = offload.Coalescer()
        merged = coalescer.receive(plain) + coalescer.flush()
        assert sorted(one.segments for one in merged if one.segments > 1) == [20, 20, 21]
        try:
            for one in merged:
                link.taps[A].write(one.header, *one.pieces, header=one.net_header.to_bytes(12))
            got: list[bytes] = []
            end = time.monotonic() + 10
            while len(got) < len(plain) and time.monotonic() < end:
                if (read := out.read()) is None:
                    time.sleep(0.01)
                elif read[1][6:12] == bytes.fromhex("020000007901") and read[1][:6] == bytes.fromhex("020000007902"):
                    frame = bytearray(read[1])
                    frame[:12] = plain[0][:12]
                    frame[22 if version == 4 else 21] += 1  # the hop
                    if version == 4:  # its checksum, too (RFC 1141)
                        checksum = offload.update_checksum(
                            int.from_bytes(frame[24:26], "big"), b"\x3f\x06", b"\x40\x06"
                        )
                        frame[24:26] = checksum.to_bytes(2, "big")
                    got.append(bytes(frame))
        finally:
            out.close()
        assert sorted(got) == sorted(plain)
