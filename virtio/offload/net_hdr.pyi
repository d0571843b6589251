"""The header before a frame: struct virtio_net_hdr."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, Self

from typing_extensions import Buffer

class NetHeaderFault(IntEnum):
    OK = 0
    CSUM_FEATURE = 1  # NEEDS_CSUM, and no CSUM feature
    CSUM_START = 2  # beyond the frame
    CSUM_OFFSET = 3  # the checksum field is not within the frame
    RSC_INFO = 4  # RSC_INFO and NEEDS_CSUM with no type
    GSO_TYPE = 5  # no such type
    GSO_FEATURE = 6  # not negotiated
    GSO_OFFSET = 7  # csum_offset is not that of the type's protocol, or its header is cut off
    GSO_SIZE = 8  # 0
    TUNNEL_TYPE = 9  # both bits; or with no type, or with UDP (UFO)
    TUNNEL_FEATURE = 10  # not negotiated
    TUNNEL_CSUM = 11  # UDP_TUNNEL_CSUM of a tunnel type, and not negotiated
    TUNNEL_OFFSETS = 12  # no room for the headers between them
    NUM_BUFFERS = 13  # 0 to the driver

class NetHeader:
    flags: int
    gso_type: int
    hdr_len: int
    gso_size: int
    csum_start: int
    csum_offset: int
    num_buffers: int
    hash_value: int
    hash_report: int
    outer_th_offset: int
    inner_nh_offset: int
    def __init__(
        self,
        *,
        flags: int = 0,
        gso_type: int = 0,
        hdr_len: int = 0,
        gso_size: int = 0,
        csum_start: int = 0,
        csum_offset: int = 0,
        num_buffers: int = 0,
        hash_value: int = 0,
        hash_report: int = 0,
        outer_th_offset: int = 0,
        inner_nh_offset: int = 0,
    ) -> None: ...
    @classmethod
    def from_bytes(cls, data: Buffer, size: int) -> Self: ...
    def to_bytes(self, size: int) -> bytes: ...
    def check(self, frame_length: int, features: int, *, to_driver: bool = False) -> NetHeaderFault: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]

def net_header_size(features: int) -> int: ...
