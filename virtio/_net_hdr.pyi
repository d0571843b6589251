"""The header before a frame: struct virtio_net_hdr."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, Self

from typing_extensions import Buffer

class NetHeaderFault(IntEnum):
    OK = 0
    CSUM_FEATURE = 1  # NEEDS_CSUM or DATA_VALID, and no CSUM feature
    CSUM_START = 2  # beyond the frame
    CSUM_OFFSET = 3  # the checksum field is not within the frame
    FLAGS = 4  # DATA_VALID or RSC_INFO from the driver
    RSC_INFO = 5  # without RSC_EXT, or with no type
    GSO_TYPE = 6  # no such type
    GSO_FEATURE = 7  # not negotiated
    GSO_CSUM = 8  # a type, and no NEEDS_CSUM
    GSO_OFFSET = 9  # csum_offset is not that of the type's protocol, or its header is cut off
    GSO_SIZE = 10  # 0
    HDR_LEN = 11  # beyond the frame
    ECN = 12  # not negotiated, or with no TCP type
    TUNNEL_TYPE = 13  # both bits; or with DATA_VALID, with no type, or with UDP (UFO)
    TUNNEL_FEATURE = 14  # not negotiated
    TUNNEL_CSUM = 15  # UDP_TUNNEL_CSUM not negotiated, or without a tunnel type
    TUNNEL_OFFSETS = 16  # no room for the headers between them
    NUM_BUFFERS = 17  # 0 to the driver

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
