"""Why frames were sent and received as they were, and how often."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum

class TransmitOutcome(IntEnum):
    SENT_AS = 0  # as the header says
    DONE_IN_SOFTWARE = 1  # its checksum is complete; the header asks for nothing
    SEGMENT_IN_SOFTWARE = 2  # it is untouched, and to be cut by us
    REFUSED = 3  # it is untouched, and not to be sent

class TransmitReason(IntEnum):
    NO_OFFLOAD = 0  # nothing was asked for
    CSUM_OFFLOADED = 1
    TSO_OFFLOADED = 2
    USO_OFFLOADED = 3
    CSUM_SOFTWARE = 4  # no CSUM feature
    CSUM_PADDED = 5  # bytes lie behind what is to be summed, and the device would sum them, too
    CSUM_SCTP = 6  # CRC32c
    CSUM_ICMP = 7  # no TCP or UDP, of which alone the specification speaks
    TSO_SOFTWARE = 8  # no HOST_TSO4, HOST_TSO6 or CSUM feature
    TSO_ECN = 9  # CWR is set, and no HOST_ECN feature
    USO_SOFTWARE = 10  # no HOST_USO or CSUM feature
    USO_SEGMENTS = 11  # more than 64
    TUNNEL_SOFTWARE = 12  # no HOST_UDP_TUNNEL_GSO feature
    TUNNEL_CSUM_SOFTWARE = 13  # the outer UDP header has a checksum, and no HOST_UDP_TUNNEL_GSO_CSUM feature
    TUNNEL_FAMILY = 14  # IPv4 in IPv6, or the reverse: what the type bit says of it is in dispute
    GSO_PADDED = 15  # bytes lie behind the packet, and the device would take them for payload
    CSUM_UNKNOWN_ETHTYPE = 16  # neither IPv4 nor IPv6
    CSUM_PROTO_MISMATCH = 17  # the IP version is not the EtherType's
    CSUM_UNKNOWN_IPPROTO = 18  # a protocol without a checksum that is known
    CSUM_FRAGMENT = 19  # the checksum covers more than this frame has
    CSUM_BAD_FRAME = 20  # the frame contradicts itself or is cut off
    TSO_WITHOUT_CSUM = 21  # segments without checksums were asked for
    TSO_NOT_TCP = 22  # neither TCP nor UDP is to be cut
    TSO_EXTENSION = 23  # an IPv6 extension header that speaks of one packet: AH, Fragment, Mobility
    TSO_JUMBOGRAM = 24  # IPv6 jumbogram (RFC 2675)
    GSO_BAD_LENGTH = 25  # a UDP length is not the packet's
    GSO_HEADERS = 26  # the device cannot, and its headers are longer than what segment() repeats
    @property
    def outcome(self) -> TransmitOutcome: ...
    @property
    def counter(self) -> str: ...

class ReceiveVerdict(IntEnum):
    UNKNOWN = 0  # nothing is said: verify it
    VERIFIED = 1  # the peer verified it
    NEEDS_CHECKSUM = 2  # the data are vouched for; the checksum field is yet to be completed
    BAD = 3  # the header cannot be true of this frame

class ReceiveReason(IntEnum):
    CSUM_NONE = 0
    CSUM_OFFLOADED = 1  # VERIFIED
    CSUM_PARTIAL = 2  # NEEDS_CHECKSUM, of a TCP or UDP header that the parse found
    CSUM_ELSEWHERE = 3  # NEEDS_CHECKSUM, of a header that the parse does not know
    GSO_REPAIRED = 4  # NEEDS_CHECKSUM, not by the header: it has a type, and no NEEDS_CSUM
    CSUM_BAD_ETHTYPE = 5  # neither IPv4 nor IPv6: no type; and ARP has no checksum
    CSUM_BAD_IPPROTO = 6  # neither TCP nor UDP: no type; and SCTP has no 16-bit sum
    CSUM_BAD_OFFSET = 7  # csum_start and csum_offset are outside, or no checksum field is there
    CSUM_INACCESSIBLE_IPPROTO = 8  # the frame contradicts itself or is cut off before its transport header
    CSUM_FRAGMENT = 9  # the checksum covers more than this frame has
    GSO_BAD_TYPE = 10  # the frame is not of this type
    GSO_NO_FEATURE = 11  # USO over the IP version that was not negotiated
    GSO_BAD_SEGMENTS = 12  # RSC_INFO counts none, or more than there are bytes
    TUNNEL_BAD_TYPE = 13  # no tunnel, or neither of its IP versions is this one
    TUNNEL_BAD_OFFSET = 14  # outer_th_offset or inner_nh_offset is not where the header is
    HDR_SHORT = 15  # fewer bytes than a virtio_net_hdr
    HDR_CSUM_FEATURE = 17  # NEEDS_CSUM, and no CSUM feature
    HDR_RSC_INFO = 20  # RSC_INFO and NEEDS_CSUM with no type
    HDR_GSO_TYPE = 21  # no such type
    HDR_GSO_FEATURE = 22  # a type that was not negotiated
    HDR_GSO_OFFSET = 23  # csum_offset is not that of the type's protocol, or its header is cut off
    HDR_GSO_SIZE = 24  # 0
    HDR_TUNNEL_TYPE = 25  # both bits; or with no type, or with UDP (UFO)
    HDR_TUNNEL_FEATURE = 26  # not negotiated
    HDR_TUNNEL_CSUM = 27  # UDP_TUNNEL_CSUM of a tunnel type, and not negotiated
    HDR_TUNNEL_OFFSETS = 28  # outer_th_offset, inner_nh_offset, csum_start: no room for the headers
    HDR_NUM_BUFFERS = 29  # 0 to the driver
    @property
    def counter(self) -> str: ...

class OffloadCounters(Mapping[str, int]):
    def __init__(self) -> None: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, name: str, /) -> int: ...
    def reset(self) -> None: ...
