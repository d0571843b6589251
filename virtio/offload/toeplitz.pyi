"""Toeplitz hash: receive-side scaling and hash reports."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, IntFlag
from typing import Self

from typing_extensions import Buffer

from virtio.offload.results import Records

class HashType(IntFlag):
    IPV4 = 0x001
    TCPV4 = 0x002
    UDPV4 = 0x004
    IPV6 = 0x008
    TCPV6 = 0x010
    UDPV6 = 0x020
    IP_EX = 0x040
    TCP_EX = 0x080
    UDP_EX = 0x100
    ALL = 0x1FF

class HashReport(IntEnum):
    NONE = 0
    IPV4 = 1
    TCPV4 = 2
    UDPV4 = 3
    IPV6 = 4
    TCPV6 = 5
    UDPV6 = 6
    IPV6_EX = 7
    TCPV6_EX = 8
    UDPV6_EX = 9

class HashTunnel(IntFlag):
    VXLAN = 0x10
    GENEVE = 0x40

class Hashes(Records[tuple[int, HashReport]]): ...

class Toeplitz:
    def __new__(cls, key: Buffer) -> Self: ...
    @property
    def key(self) -> bytes: ...
    def hash(self, data: Buffer) -> int: ...
    def hash_frame(self, frame: Buffer, types: int = 0x1FF, *, tunnels: int = 0) -> tuple[int, HashReport]: ...
    def hash_burst(
        self,
        frames: Iterable[Buffer] | Buffer,
        offsets: Iterable[int] | None = None,
        *,
        types: int = 0x1FF,
        tunnels: int = 0,
    ) -> Hashes: ...
