"""Real kernels at both ends of driver and device: every offload on and off, and no frame lost, changed or doubted.

The kernels' own counters must show no error and no retransmission; contents are compared by hash.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import socket
import struct
import threading
from typing import Any

import pytest
from formats import FORMATS
from kernel_streams import FAMILIES, UDP_SEGMENT, content, stream_both_ways
from kernelpath import MACS, PACKED, A, B, KernelPath, kernel_path
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

from virtio import offload
from virtio.constants import Feature, NetFeature

HOST = functools.reduce(operator.or_, (f for f in NetFeature if f.name.startswith("HOST_")))
GUEST = functools.reduce(
    operator.or_, (f for f in NetFeature if f.name.startswith("GUEST_") and f.name != "GUEST_ANNOUNCE")
)
SETS = {
    "all": 0,
    "none": HOST | GUEST | NetFeature.CSUM | NetFeature.GSO,
    "checksums": HOST | NetFeature.GSO | (GUEST & ~NetFeature.GUEST_CSUM),
    "to device only": GUEST,
    "to driver only": HOST | NetFeature.CSUM | NetFeature.GSO,
    "not mergeable": NetFeature.MRG_RXBUF,
    "bare": HOST | GUEST | NetFeature.CSUM | NetFeature.GSO | NetFeature.MRG_RXBUF
    | Feature.EVENT_IDX | Feature.INDIRECT_DESC | Feature.ANY_LAYOUT,
}  # fmt: skip
STREAM = 6 << 20
IPV6_HOPOPTS, IPV6_DSTOPTS = 54, 59
SOL_PACKET, PACKET_AUXDATA, PACKET_VNET_HDR = 263, 8, 15
VLAN_VALID = 1 << 4


def moved(path: KernelPath) -> tuple[dict[str, Any], dict[str, Any]]:
    return path.nic.statistics(), path.device.statistics()


def datagrams_both_ways(path: KernelPath, version: int) -> None:
    """UDP of many sizes from A to B and back: plain ones, fragmented ones, and writes that are cut into datagrams."""
    family, *addresses = FAMILIES[version]
    ends = [space.socket(family, socket.SOCK_DGRAM) for space in path.namespaces]
    for end, address in zip(ends, addresses, strict=True):
        end.bind((address, 7000))
    for sender, receiver, address in ((ends[A], ends[B], addresses[B]), (ends[B], ends[A], addresses[A])):
        for size in (0, 1, 17, 18, 19, 1000, 1472, 1473, 8972, 30_001):
            data = content(size, size)
            sender.sendto(data, (address, 7000))
            assert receiver.recv(1 << 16) == data
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        data = content(7, 20_300)
        sender.sendto(data, (address, 7000))
        assert b"".join(receiver.recv(1 << 16) for _ in range(21)) == data
    for end in ends:
        end.close()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mtu", [1500, 9000])
@pytest.mark.parametrize("offloads", SETS)
def test_streams_and_datagrams_over_legacy_pci(offloads: str, mtu: int, version: int) -> None:
    with kernel_path(mtu=mtu, withhold=SETS[offloads]) as path:
        stream_both_ways(path, version, STREAM)  # type: ignore[arg-type]
        datagrams_both_ways(path, version)
        assert path.errors() == {}
        driver, device = moved(path)
        cut_by_kernel = STREAM // mtu
        # with segmentation left to us there are few frames, and large ones; without, one a segment at least
        if offloads in ("all", "to device only", "not mergeable"):
            assert driver["txq0.tso"] > 0
            assert driver["txq0.opackets"] < cut_by_kernel
        else:
            assert driver["txq0.tso"] == 0
            assert driver["txq0.opackets"] > cut_by_kernel
        if offloads in ("all", "to driver only", "not mergeable"):
            assert driver["rxq0.host_lro"] > 0
            assert driver["rxq0.ipackets"] < cut_by_kernel
        else:
            assert driver["rxq0.host_lro"] == 0
            assert driver["rxq0.ipackets"] > cut_by_kernel
        assert driver["rxq0.ierrors"] == 0
        assert device


@pytest.mark.parametrize("offloads", ["all", "none", "not mergeable"])
@FORMATS
@pytest.mark.parametrize("version", [4, 6])
def test_streams_and_datagrams_without_pci(offloads: str, packed: bool, version: int) -> None:
    """The direct transport: what legacy PCI cannot negotiate, packed rings and USO."""
    more = PACKED if packed else {"direct": True}
    with kernel_path(**more, withhold=SETS[offloads]) as path:
        assert bool(path.nic.features & Feature.RING_PACKED) == packed
        assert bool(path.nic.features & NetFeature.HOST_USO) == (offloads != "none")
        stream_both_ways(path, version, STREAM)  # type: ignore[arg-type]
        datagrams_both_ways(path, version)
        assert path.errors() == {}


@pytest.mark.parametrize("offloads", ["all", "none"])
def test_ipv6_extension_headers(offloads: str) -> None:
    """TCP whose every segment has hop-by-hop and destination options."""
    options = [
        (socket.IPPROTO_IPV6, IPV6_HOPOPTS, bytes.fromhex("0000010400000000")),
        (socket.IPPROTO_IPV6, IPV6_DSTOPTS, bytes.fromhex("0000010400000000")),
    ]
    with kernel_path(withhold=SETS[offloads]) as path:
        stream_both_ways(path, 6, 3 << 20, options=options)  # type: ignore[arg-type]
        assert path.errors() == {}


def packet_socket(path: KernelPath, side: int) -> socket.socket:
    made = path.namespaces[side].run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    made.settimeout(10)
    for option in (PACKET_VNET_HDR, PACKET_AUXDATA):
        made.setsockopt(SOL_PACKET, option, 1)
    made.bind(("tap0", 3))  # ETH_P_ALL
    return made


def take_packet(receiver: socket.socket) -> tuple[offload.NetHeader, bytearray]:
    """Receive a frame with its outer VLAN tag, which the kernel has taken off and tells beside it."""
    data, ((_, _, told), *_), _, _ = receiver.recvmsg(1 << 17, 64)
    header, frame = offload.NetHeader.from_bytes(data[:10], 10), bytearray(data[10:])
    status, _, _, _, _, tci, tpid = struct.unpack("IIIHHHH", told)
    if status & VLAN_VALID:
        frame[12:12] = struct.pack(">HH", tpid, tci)
        header.csum_start += 4
    return header, frame


@pytest.mark.parametrize("offloads", ["all", "none", "to device only", "checksums"])
@pytest.mark.parametrize("tags", [1, 2])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("source", [A, B])
def test_vlan_frames(offloads: str, tags: int, version: int, source: int) -> None:
    """Tagged TCP frames of 20 segments, sent by a packet socket: B gets all of it with its tags, and every sum right.

    This kernel may have no VLAN interfaces; its packet sockets send and see tagged frames all the same.
    """
    with kernel_path(withhold=SETS[offloads]) as path:
        sender, receiver = packet_socket(path, source), packet_socket(path, 1 - source)
        ether = Ether(src=MACS[source], dst=MACS[1 - source])
        for i in range(tags):
            ether /= Dot1Q(vlan=100 + i)
        addresses = FAMILIES[version][1:]
        ip = (
            IP(src=addresses[source], dst=addresses[1 - source]) if version == 4
            else IPv6(src=addresses[source], dst=addresses[1 - source])
        )  # fmt: skip
        payload = content(tags, 20 * 1400 - 13)
        frame = bytearray(bytes(ether / ip / TCP(sport=9, dport=9, flags="PA", seq=1000) / payload))
        about = offload.prepare_transmit(
            frame, NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6, mss=1400
        ).header
        sender.send(about.to_bytes(10) + bytes(frame))
        got = bytearray(len(payload))
        missing = len(payload)
        while missing > 0:
            header, one = take_packet(receiver)
            if bytes(one[12:14]) != b"\x81\x00":
                continue
            if header.flags & 1:
                offload.complete_checksum(one, header.csum_start, header.csum_offset)
            seen = Ether(bytes(one))
            assert [seen.getlayer(Dot1Q, i + 1).vlan for i in range(tags)] == [100 + i for i in range(tags)]
            if not header.gso_type:
                assert offload.verify(one).l4 == 1
            part = bytes(seen[TCP].payload)
            at = seen[TCP].seq - 1000
            got[at : at + len(part)] = part
            missing -= len(part)
        assert hashlib.sha256(got).digest() == hashlib.sha256(payload).digest()
        sender.close()
        receiver.close()


@pytest.mark.threads
@FORMATS
def test_two_queues_on_two_threads(packed: bool) -> None:
    """Two queue pairs, driver and device on a thread each; several streams, and both pairs carry some of it."""
    with kernel_path(pairs=2, workers=2, **(PACKED if packed else {})) as path:
        threads = [
            threading.Thread(target=stream_both_ways, args=(path, 4 + 2 * (i % 2), 1 << 20, 5001 + i))
            for i in range(12)  # the kernel deals them out by a random hash
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = {name: count for name, count in path.errors().items() if not name.endswith("RetransSegs")}
        assert found == {}
        driver = path.nic.statistics()
        assert driver["act_vq_pairs"] == 2
        assert (
            min(driver["rxq0.ipackets"] + driver["txq0.opackets"], driver["rxq1.ipackets"] + driver["txq1.opackets"])
            > 0
        )
