"""The frame parse for Python."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, IntFlag

from typing_extensions import Buffer

from virtio.offload.results import Records

class Stop(IntEnum):
    OK = 0
    NOT_IP = 1
    PROTOCOL = 2
    FRAGMENT = 3
    ENCRYPTED = 4
    NO_NEXT = 5
    SHORT_ETHERNET = 6
    SHORT_VLAN = 7
    SHORT_L3 = 8
    IP_VERSION = 9
    IPV4_IHL = 10
    IP_LENGTH = 11
    SHORT_EXTENSION = 12
    EXTENSIONS = 13
    SHORT_L4 = 14
    TCP_OFFSET = 15
    UDP_LENGTH = 16
    OFFSETS = 17
    SHORT_TUNNEL = 18
    LLC_LENGTH = 19
    OPTION = 20
    ROUTING = 21
    @property
    def is_fault(self) -> bool: ...

class L3Kind(IntEnum):
    NONE = 0
    IPV4 = 1
    IPV6 = 2
    ARP = 3
    OTHER = 4

class LayerFlag(IntFlag):
    L4 = 0x01
    FRAGMENT = 0x02
    LATER = 0x04
    OPTIONS = 0x08
    EXTENSIONS = 0x10
    L4_OPTIONS = 0x20
    PADDED = 0x40
    ROUTED = 0x80
    HOME = 0x100
    ROUTING_2 = 0x200
    TUNNEL = 0x400

class Tunnel(IntEnum):
    NONE = 0
    VXLAN = 1
    GENEVE = 2

class Layer:
    @property
    def end(self) -> int: ...
    @property
    def l3(self) -> int: ...
    @property
    def l4(self) -> int: ...
    @property
    def payload(self) -> int: ...
    @property
    def src(self) -> int: ...
    @property
    def dst(self) -> int: ...
    @property
    def fragment(self) -> int: ...
    @property
    def ethertype(self) -> int: ...
    @property
    def tci(self) -> int: ...
    @property
    def vlans(self) -> int: ...
    @property
    def flags(self) -> LayerFlag: ...
    @property
    def l3_kind(self) -> L3Kind: ...
    @property
    def protocol(self) -> int: ...
    @property
    def protocol_name(self) -> str: ...
    @property
    def stop(self) -> Stop: ...
    def explain(self) -> str: ...

class Frame:
    @property
    def length(self) -> int: ...
    @property
    def tunnel(self) -> Tunnel: ...
    @property
    def inner_l2(self) -> int: ...
    @property
    def outer(self) -> Layer: ...
    @property
    def inner(self) -> Layer | None: ...
    @property
    def stop(self) -> Stop: ...
    def explain(self) -> str: ...

class Frames(Records[Frame]): ...

def parse(frame: Buffer) -> Frame: ...
def parse_burst(frames: Iterable[Buffer] | Buffer, offsets: Iterable[int] | None = None) -> Frames: ...
