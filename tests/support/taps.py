"""A TAP with a real kernel behind it, and UDP to talk with: for tests."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from spaces import MACS

from bench.kernels.portbench import MemorySink, receive
from virtio.net.netns import Namespace
from virtio.net.ports import Tap
from virtio.offload import NetHeader, fill_checksums

CSUM, TSO4, TSO6, ECN, UFO, USO4, USO6, TUNNEL, TUNNEL_CSUM = (1 << i for i in range(9))
ALL = 0x1FF
OURS, THEIRS = MACS  # of the interface, and of whoever is at our end
PAIR4 = ("10.0.0.2", "10.0.0.1")
PAIR6 = ("fd00::2", "fd00::1")


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
