"""Why frames were sent and received as they were, and how often."""

from libc.stdint cimport uint64_t

from collections.abc import Mapping
from enum import IntEnum

from libc.string cimport memset

from virtio.offload.net_hdr cimport (
    VIRTIO_NET_HDR_BAD_CSUM_FEATURE, VIRTIO_NET_HDR_BAD_GSO_FEATURE, VIRTIO_NET_HDR_BAD_GSO_OFFSET,
    VIRTIO_NET_HDR_BAD_GSO_SIZE, VIRTIO_NET_HDR_BAD_GSO_TYPE, VIRTIO_NET_HDR_BAD_NUM_BUFFERS,
    VIRTIO_NET_HDR_BAD_RSC_INFO, VIRTIO_NET_HDR_BAD_TUNNEL_CSUM, VIRTIO_NET_HDR_BAD_TUNNEL_FEATURE,
    VIRTIO_NET_HDR_BAD_TUNNEL_OFFSETS, VIRTIO_NET_HDR_BAD_TUNNEL_TYPE,
)


class TransmitOutcome(IntEnum):
    """What becomes of a frame to send.

    SENT_AS: as the header says. DONE_IN_SOFTWARE: its checksum is complete, and the header asks for nothing.
    SEGMENT_IN_SOFTWARE: it is untouched, and the caller is to cut it. REFUSED: it is untouched, and not to be sent.
    """

    SENT_AS = VIRTIO_TX_SENT_AS
    DONE_IN_SOFTWARE = VIRTIO_TX_DONE_IN_SOFTWARE
    SEGMENT_IN_SOFTWARE = VIRTIO_TX_SEGMENT_IN_SOFTWARE
    REFUSED = VIRTIO_TX_REFUSED


_OUTCOMES = tuple(TransmitOutcome)


class TransmitReason(IntEnum):
    """Why. ``outcome`` is what it leads to, ``counter`` the name under which it is counted."""

    NO_OFFLOAD = VIRTIO_TX_NO_OFFLOAD
    CSUM_OFFLOADED = VIRTIO_TX_CSUM_OFFLOADED
    TSO_OFFLOADED = VIRTIO_TX_TSO_OFFLOADED
    USO_OFFLOADED = VIRTIO_TX_USO_OFFLOADED
    CSUM_SOFTWARE = VIRTIO_TX_CSUM_SOFTWARE
    CSUM_PADDED = VIRTIO_TX_CSUM_PADDED
    CSUM_SCTP = VIRTIO_TX_CSUM_SCTP
    CSUM_ICMP = VIRTIO_TX_CSUM_ICMP
    TSO_SOFTWARE = VIRTIO_TX_TSO_SOFTWARE
    TSO_ECN = VIRTIO_TX_TSO_ECN
    USO_SOFTWARE = VIRTIO_TX_USO_SOFTWARE
    USO_SEGMENTS = VIRTIO_TX_USO_SEGMENTS
    TUNNEL_SOFTWARE = VIRTIO_TX_TUNNEL_SOFTWARE
    TUNNEL_CSUM_SOFTWARE = VIRTIO_TX_TUNNEL_CSUM_SOFTWARE
    TUNNEL_FAMILY = VIRTIO_TX_TUNNEL_FAMILY
    GSO_PADDED = VIRTIO_TX_GSO_PADDED
    CSUM_UNKNOWN_ETHTYPE = VIRTIO_TX_CSUM_UNKNOWN_ETHTYPE
    CSUM_PROTO_MISMATCH = VIRTIO_TX_CSUM_PROTO_MISMATCH
    CSUM_UNKNOWN_IPPROTO = VIRTIO_TX_CSUM_UNKNOWN_IPPROTO
    CSUM_FRAGMENT = VIRTIO_TX_CSUM_FRAGMENT
    CSUM_BAD_FRAME = VIRTIO_TX_CSUM_BAD_FRAME
    TSO_WITHOUT_CSUM = VIRTIO_TX_TSO_WITHOUT_CSUM
    TSO_NOT_TCP = VIRTIO_TX_TSO_NOT_TCP
    TSO_EXTENSION = VIRTIO_TX_TSO_EXTENSION
    TSO_JUMBOGRAM = VIRTIO_TX_TSO_JUMBOGRAM
    GSO_BAD_LENGTH = VIRTIO_TX_GSO_BAD_LENGTH
    GSO_HEADERS = VIRTIO_TX_GSO_HEADERS

    @property
    def outcome(self):
        """What it leads to: TransmitOutcome."""
        return _OUTCOMES[(self >= VIRTIO_TX_SOFTWARE) + (self >= VIRTIO_TX_SEGMENT) + (self >= VIRTIO_TX_REFUSE)]

    @property
    def counter(self):
        """The name under which OffloadCounters has it."""
        return f"tx_{self.name.lower()}"


class ReceiveVerdict(IntEnum):
    """What the transport checksum of a received frame is worth.

    UNKNOWN: nothing is said, so verify it. VERIFIED: the peer did. NEEDS_CHECKSUM: the data are vouched for, but the
    checksum field is yet to be completed. BAD: the header cannot be true of this frame.
    """

    UNKNOWN = VIRTIO_RX_UNKNOWN
    VERIFIED = VIRTIO_RX_VERIFIED
    NEEDS_CHECKSUM = VIRTIO_RX_NEEDS_CHECKSUM
    BAD = VIRTIO_RX_BAD


class ReceiveReason(IntEnum):
    """Why. ``counter`` is the name under which it is counted."""

    CSUM_NONE = VIRTIO_RX_CSUM_NONE
    CSUM_OFFLOADED = VIRTIO_RX_CSUM_OFFLOADED
    CSUM_PARTIAL = VIRTIO_RX_CSUM_PARTIAL
    CSUM_ELSEWHERE = VIRTIO_RX_CSUM_ELSEWHERE
    GSO_REPAIRED = VIRTIO_RX_GSO_REPAIRED
    CSUM_BAD_ETHTYPE = VIRTIO_RX_CSUM_BAD_ETHTYPE
    CSUM_BAD_IPPROTO = VIRTIO_RX_CSUM_BAD_IPPROTO
    CSUM_BAD_OFFSET = VIRTIO_RX_CSUM_BAD_OFFSET
    CSUM_INACCESSIBLE_IPPROTO = VIRTIO_RX_CSUM_INACCESSIBLE_IPPROTO
    CSUM_FRAGMENT = VIRTIO_RX_CSUM_FRAGMENT
    GSO_BAD_TYPE = VIRTIO_RX_GSO_BAD_TYPE
    GSO_NO_FEATURE = VIRTIO_RX_GSO_NO_FEATURE
    GSO_BAD_SEGMENTS = VIRTIO_RX_GSO_BAD_SEGMENTS
    TUNNEL_BAD_TYPE = VIRTIO_RX_TUNNEL_BAD_TYPE
    TUNNEL_BAD_OFFSET = VIRTIO_RX_TUNNEL_BAD_OFFSET
    HDR_SHORT = VIRTIO_RX_HDR_SHORT
    HDR_CSUM_FEATURE = VIRTIO_RX_HDR + VIRTIO_NET_HDR_BAD_CSUM_FEATURE
    HDR_RSC_INFO = VIRTIO_RX_HDR + VIRTIO_NET_HDR_BAD_RSC_INFO
    HDR_GSO_TYPE = VIRTIO_RX_HDR + VIRTIO_NET_HDR_BAD_GSO_TYPE
    HDR_GSO_FEATURE = VIRTIO_RX_HDR + VIRTIO_NET_HDR_BAD_GSO_FEATURE
    HDR_GSO_OFFSET = VIRTIO_RX_HDR + VIRTIO_NET_HDR_BAD_GSO_OFFSET
    HDR_GSO_SIZE = VIRTIO_RX_HDR + VIRTIO_NET_HDR_BAD_GSO_SIZE
    HDR_TUNNEL_TYPE = VIRTIO_RX_HDR + VIRTIO_NET_HDR_BAD_TUNNEL_TYPE
    HDR_TUNNEL_FEATURE = VIRTIO_RX_HDR + VIRTIO_NET_HDR_BAD_TUNNEL_FEATURE
    HDR_TUNNEL_CSUM = VIRTIO_RX_HDR + VIRTIO_NET_HDR_BAD_TUNNEL_CSUM
    HDR_TUNNEL_OFFSETS = VIRTIO_RX_HDR + VIRTIO_NET_HDR_BAD_TUNNEL_OFFSETS
    HDR_NUM_BUFFERS = VIRTIO_RX_HDR + VIRTIO_NET_HDR_BAD_NUM_BUFFERS

    @property
    def counter(self):
        """The name under which OffloadCounters has it."""
        return f"rx_{self.name.lower()}"


_TX = {reason.counter: int(reason) for reason in TransmitReason}
_RX = {reason.counter: int(reason) for reason in ReceiveReason}


cdef class OffloadCounters:
    """How many frames were prepared and classified for each reason: a mapping of names to numbers, all 0 at first.

    ``dict(counters)`` copies it. Names are those of ``sysctl dev.vtnet`` where FreeBSD has them
    (tx_csum_unknown_ethtype, rx_csum_bad_offset). Handed to a call as ``counters=``, it counts that call's frames. One
    thread at a time.
    """

    def __cinit__(self):
        memset(&self.c, 0, sizeof(self.c))

    cdef void add_tx(self, const uint64_t *counts) noexcept:
        cdef int i
        for i in range(VIRTIO_TX_REASONS):
            self.c.tx[i] += counts[i]

    cdef void add_rx(self, const uint64_t *counts) noexcept:
        cdef int i
        for i in range(VIRTIO_RX_REASONS):
            self.c.rx[i] += counts[i]

    def __iter__(self):
        return iter([*_TX, *_RX])

    def __len__(self):
        return len(_TX) + len(_RX)

    def __getitem__(self, name):
        if name in _TX:
            return self.c.tx[<int>_TX[name]]
        return self.c.rx[<int>_RX[name]]

    def __eq__(self, other):
        return Mapping.__eq__(self, other)

    __hash__ = None
    __contains__ = Mapping.__contains__
    keys = Mapping.keys
    items = Mapping.items
    values = Mapping.values
    get = Mapping.get

    def reset(self):
        """Set all to 0."""
        memset(&self.c, 0, sizeof(self.c))

    def __repr__(self):
        counts = ", ".join(f"{name}={self[name]}" for name in self if self[name])
        return f"OffloadCounters({counts})"


Mapping.register(OffloadCounters)
