# Executing offloads: frames that leave something undone become frames of which no more is undone than their taker
# allows. For a port that cannot, and a device that does not offer.
#
# It streams: packets in, batches of packets out, as many as it takes, through scratch memory of its own. What is not
# changed is a view of the input: frames pass as they are; of a frame whose checksum is completed only the bytes up to
# the checksum are copied, of segments only the headers. The input is never written to. It may be a guest's memory, and
# change at any moment: then the frames are garbage, but none is read or written out of bounds.
#
# Where less was taken than was made, or the turn is over, the input packet in the middle of which it stopped is not
# done: it is given again as the first of the next burst, and continued behind the segments that are out (its `done`).
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from virtio.core.iov cimport iovec
from virtio.event.worker cimport virtio_turn
from virtio.offload.frame cimport get_be16, get_be32
from virtio.offload.net_hdr cimport (
    NET_HDR_GSO_MASK, NET_HDR_TUNNEL, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_F_RSC_INFO,
    VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP, VIRTIO_OFFLOAD_CSUM, VIRTIO_OFFLOAD_CUT, VIRTIO_OFFLOAD_ECN,
    VIRTIO_OFFLOAD_TSO4, VIRTIO_OFFLOAD_TSO6, VIRTIO_OFFLOAD_TUNNEL, VIRTIO_OFFLOAD_TUNNEL_CSUM, VIRTIO_OFFLOAD_UFO,
    VIRTIO_OFFLOAD_USO4, VIRTIO_OFFLOAD_USO6, virtio_net_hdr,
)
from virtio.offload.segmenter cimport SEGMENT_NO_CHECKSUM, SEGMENT_OUTER_CHECKSUM, SEGMENT_PARTIAL, virtio_segmenter
from virtio.ports.port cimport virtio_packet, virtio_port


cdef enum:
    EXECUTE_BATCH = 64            # packets of a batch, VIRTIO_BURST
    EXECUTE_PIECES = 4096         # pieces of a batch: more than any one packet has
    EXECUTE_SCRATCH = 0x20000     # bytes: more than any one packet needs
    EXECUTE_SEGMENTS_MAX = 2048   # segments of a frame; a guest that asks for more has its frame dropped

    # why a frame was dropped: a virtio_segment_code, or
    EXECUTE_BAD_CHECKSUM = 16     # there is no checksum field where the header says
    EXECUTE_BAD_PIECES = 17       # more pieces than VIRTIO_PACKET_PIECES
    EXECUTE_CODES = 18


cdef struct net_executor:
    # the batch made last
    virtio_packet packets[64]
    iovec segs[4096]
    uint32_t count
    uint32_t npieces
    uint32_t limit            # packets that it may have
    uint64_t bytes            # of its packets
    uint32_t input_of[64]     # the input packet that each is of, by its index,
    uint32_t segment_of[64]   # and its number among that one's segments
    # the input
    const virtio_packet *input
    const iovec *input_segs
    uint32_t ninput
    uint32_t offloads         # VIRTIO_OFFLOAD_* that may be left undone
    uint32_t at               # input packet to go on with,
    uint32_t segment          # behind so many of its segments
    bint planned              # plan is that of input[at]
    virtio_segmenter plan
    # figures since it was made
    uint64_t checksums        # completed
    uint64_t frames           # cut
    uint64_t segments         # made of them
    uint64_t dropped[18]      # EXECUTE_CODES
    uint32_t scratch_used
    uint8_t scratch[0x20000]


# A new executor (300 KB; it has one owner), NULL without memory; and its end.
cdef net_executor *executor_new() noexcept nogil
cdef void executor_free(net_executor *x) noexcept nogil

# Begin with these packets, which stay until the last batch is made. offloads: what may be left undone. A packet's
# header is one that net_hdr_check passes; bytes that it cannot be true of are dropped and counted.
cdef void execute_start(net_executor *x, const virtio_packet *packets, uint32_t n, const iovec *segs,
                        uint32_t offloads) noexcept nogil
# Make the next batch, of x.limit packets at most: x.packets[0 .. count), whose pieces are in x.segs. Returns count; 0:
# nothing is left.
cdef uint32_t execute_next(net_executor *x) noexcept nogil
# Of this batch only the first `taken` packets were, fewer than all: end, and return how many input packets are done;
# *resume: segments of the next one that are out.
cdef uint32_t execute_stop(net_executor *x, uint32_t taken, uint32_t *resume) noexcept nogil

# port.send for packets that may need more than port.offloads; the same answer. Unless all are taken, give the first
# that was not again as the first of the next call.
cdef uint32_t execute_send(net_executor *x, virtio_port *port, uint32_t queue, const virtio_packet *packets, uint32_t n,
                           const iovec *segs, virtio_turn *turn) noexcept nogil


cdef inline uint32_t net_hdr_needs(const virtio_net_hdr *hdr) noexcept nogil:
    """Return what a frame with this header leaves undone, as VIRTIO_OFFLOAD_*."""
    cdef uint32_t needs = VIRTIO_OFFLOAD_CSUM if hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM else 0
    cdef uint32_t kind
    if hdr.gso_type == VIRTIO_NET_HDR_GSO_NONE:
        return needs
    kind = hdr.gso_type & NET_HDR_GSO_MASK
    if kind == VIRTIO_NET_HDR_GSO_TCPV4:
        needs |= VIRTIO_OFFLOAD_TSO4
    elif kind == VIRTIO_NET_HDR_GSO_TCPV6:
        needs |= VIRTIO_OFFLOAD_TSO6
    elif kind == VIRTIO_NET_HDR_GSO_UDP:
        needs |= VIRTIO_OFFLOAD_UFO
    else:  # the header does not say which IP version it is
        needs |= VIRTIO_OFFLOAD_USO4 | VIRTIO_OFFLOAD_USO6
    if hdr.gso_type & VIRTIO_NET_HDR_GSO_ECN:
        needs |= VIRTIO_OFFLOAD_ECN
    if hdr.gso_type & NET_HDR_TUNNEL:
        needs |= VIRTIO_OFFLOAD_TUNNEL
        if hdr.flags & VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM:
            needs |= VIRTIO_OFFLOAD_TUNNEL_CSUM
    if not hdr.flags & (VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_RSC_INFO):
        needs |= VIRTIO_OFFLOAD_CUT  # merged by a NIC: the checksum is nothing that a taker could complete
    return needs


# Whether the lengths in the headers of a packet with a type are those of the frame, for any packet that is parsed; that
# of others is the taker's matter.
cdef bint is_exact(const virtio_packet *packet, const iovec *segs) noexcept nogil


cdef inline bint is_exact_plain(const virtio_packet *packet, const iovec *seg) noexcept nogil:
    """is_exact() for TCP and UDP behind IP alone, which has a payload; False may be wrong."""
    cdef const uint8_t *p = <const uint8_t *>seg.iov_base
    cdef uint32_t head, end, l4, protocol
    if seg.iov_len < 68 or packet.hdr.gso_type & NET_HDR_TUNNEL:
        return False
    head = get_be32(p + 12)  # EtherType, version, header length or traffic class
    if head >> 8 == 0x080045:
        end = 14 + get_be16(p + 16)
        protocol = p[23]
        l4 = 34
    elif head >> 12 == 0x86dd6:
        end = 54 + get_be16(p + 18)
        protocol = p[20]
        l4 = 54
    else:
        return False
    if end != packet.len:
        return False
    if protocol == 6:
        return end > l4 + (p[l4 + 12] >> 4) * 4
    return protocol == 17 and end > l4 + 8 and get_be16(p + l4 + 4) == end - l4


cdef inline uint32_t packet_needs(const virtio_packet *packet, const iovec *pieces) noexcept nogil:
    """net_hdr_needs() of a packet of these pieces. It is to be cut, too, if its lengths are not the frame's or it has
    no payload.

    VIRTIO 1.4, 5.1.9.2 has the device compute what each segment needs, so Windows writes 0, or a segment's lengths.
    A taker of the whole frame would believe them.
    """
    cdef uint32_t needs = net_hdr_needs(&packet.hdr)
    if packet.hdr.gso_type == VIRTIO_NET_HDR_GSO_NONE:
        return needs
    if not is_exact_plain(packet, pieces) and not is_exact(packet, pieces):
        needs |= VIRTIO_OFFLOAD_CUT
    return needs


cdef inline uint32_t segment_options(const virtio_net_hdr *hdr, uint32_t offloads) noexcept nogil:
    """The options of a plan by a frame's header, for a taker of these offloads."""
    cdef uint32_t options = SEGMENT_PARTIAL if offloads & VIRTIO_OFFLOAD_CSUM else 0
    if not hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        options |= SEGMENT_NO_CHECKSUM
    if hdr.flags & VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM:
        options |= SEGMENT_OUTER_CHECKSUM
    return options


cdef class Executor:
    cdef net_executor *x

    cdef tuple packet(self, const virtio_packet *packet)


# What an executor counted, for people.
cdef dict executor_figures(const net_executor *x)
