"""Interfaces, addresses and neighbours of a network namespace, by the kernel's own protocol: it takes no other program.

rtnetlink(7): requests and replies of a header, a fixed struct, and attributes.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator

from virtio.offload.mac import mac_bytes

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_NEWADDR, RTM_NEWNEIGH = 16, 17, 18, 20, 28
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_CREATE, NLM_F_DUMP = 1, 4, 0x100, 0x400, 0x300
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_TXQLEN, IFLA_STATS64 = 1, 3, 4, 13, 23
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_NODAD = 0x02
NDA_DST, NDA_LLADDR = 1, 2
NUD_PERMANENT = 0x80
IFF_UP = 1
HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
NEIGHBOUR = struct.Struct("=B3xiHBB")  # family, index, state, flags, type
COUNTERS = (
    "rx_packets", "tx_packets", "rx_bytes", "tx_bytes", "rx_errors", "tx_errors", "rx_dropped", "tx_dropped",
)  # fmt: skip


def attribute(kind: int, data: bytes) -> bytes:
    """Return one attribute, padded."""
    return struct.pack("=HH", 4 + len(data), kind) + data.ljust((len(data) + 3) & ~3, b"\0")


def attributes(data: bytes) -> dict[int, bytes]:
    """Return a message's attributes by kind."""
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def family_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    return int(socket.AF_INET if address.version == 4 else socket.AF_INET6)


class Netlink:
    """A socket to the kernel's network configuration, in the network namespace of the thread that makes it.

    It stays there: afterwards any thread may call, one at a time. Methods raise OSError for what the kernel refuses,
    with the interface's name.
    """

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self.socket.bind((0, 0))
        self.sequence = 0

    def close(self) -> None:
        self.socket.close()

    def ask(self, kind: int, body: bytes, flags: int = 0, what: str = "") -> Iterator[bytes]:
        """Send a request, and give the bodies of the answers."""
        self.sequence += 1
        flags |= NLM_F_REQUEST | NLM_F_ACK
        self.socket.send(HEADER.pack(HEADER.size + len(body), kind, flags, self.sequence, 0) + body)
        while True:
            data = self.socket.recv(1 << 18)
            while len(data) >= HEADER.size:
                length, kind, _, sequence, _ = HEADER.unpack_from(data)
                body, data = data[HEADER.size : length], data[(length + 3) & ~3 :]
                if sequence != self.sequence:
                    continue
                if kind == NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", body)
                    if code:
                        raise OSError(-code, f"{what}: {os.strerror(-code)}")
                    return
                if kind == NLMSG_DONE:
                    return
                yield body

    def do(self, kind: int, body: bytes, flags: int = 0, what: str = "") -> None:
        for _ in self.ask(kind, body, flags, what):
            pass

    def link(self, name: str) -> tuple[int, int, dict[int, bytes]]:
        """Return (index, flags, attributes) of an interface; OSError ENODEV if there is none."""
        body = LINK.pack(0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, os.fsencode(name) + b"\0")
        found = list(self.ask(RTM_GETLINK, body, what=f"interface {name!r}"))
        if not found:
            raise OSError(errno.ENODEV, f"no interface {name!r}")
        _, _, index, flags, _ = LINK.unpack_from(found[0])
        return index, flags, attributes(found[0][LINK.size :])

    def links(self) -> list[str]:
        """Return the names of all interfaces."""
        found = self.ask(RTM_GETLINK, LINK.pack(0, 0, 0, 0, 0), NLM_F_DUMP, "interfaces")
        return [os.fsdecode(attributes(body[LINK.size :])[IFLA_IFNAME].rstrip(b"\0")) for body in found]

    def set_link(
        self, name: str, *, up: bool | None = None, mtu: int | None = None, mac: str | None = None,
        queue: int | None = None,
    ) -> None:  # fmt: skip
        """Change an interface. ``queue`` is how many frames wait in it, at most, for whoever reads them."""
        index = self.link(name)[0]
        extra = b""
        if mtu is not None:
            extra += attribute(IFLA_MTU, struct.pack("=I", mtu))
        if mac is not None:
            extra += attribute(IFLA_ADDRESS, mac_bytes(mac))
        if queue is not None:
            extra += attribute(IFLA_TXQLEN, struct.pack("=I", queue))
        flags, change = (IFF_UP if up else 0), (0 if up is None else IFF_UP)
        self.do(RTM_NEWLINK, LINK.pack(0, 0, index, flags, change) + extra, what=f"interface {name!r}")

    def delete_link(self, name: str) -> None:
        self.do(RTM_DELLINK, LINK.pack(0, 0, self.link(name)[0], 0, 0), what=f"interface {name!r}")

    def add_address(self, name: str, address: str) -> None:
        """Give an interface an address, "10.0.0.1/24" or "fd00::1/64" (without a search for others that have it)."""
        chosen = ipaddress.ip_interface(address)
        body = ADDRESS.pack(family_of(chosen.ip), chosen.network.prefixlen, 0, 0, self.link(name)[0])
        body += attribute(IFA_LOCAL, chosen.ip.packed) + attribute(IFA_ADDRESS, chosen.ip.packed)
        if chosen.version == 6:
            body += attribute(IFA_FLAGS, struct.pack("=I", IFA_F_NODAD))
        self.do(RTM_NEWADDR, body, NLM_F_CREATE | NLM_F_REPLACE, f"address {address} of {name!r}")

    def add_neighbour(self, name: str, address: str, mac: str) -> None:
        """Say for good what MAC an address has, so that nobody asks for it."""
        chosen = ipaddress.ip_address(address)
        body = NEIGHBOUR.pack(family_of(chosen), self.link(name)[0], NUD_PERMANENT, 0, 0)
        body += attribute(NDA_DST, chosen.packed) + attribute(NDA_LLADDR, mac_bytes(mac))
        self.do(RTM_NEWNEIGH, body, NLM_F_CREATE | NLM_F_REPLACE, f"neighbour {address} of {name!r}")

    def counters(self, name: str) -> dict[str, int]:
        """Return what an interface counts: rx_packets, tx_packets, rx_bytes, ... rx is what its kernel received."""
        values = struct.unpack_from(f"={len(COUNTERS)}Q", self.link(name)[2][IFLA_STATS64])
        return dict(zip(COUNTERS, values, strict=True))
