# Coalescing of TCP segments (LRO, GRO) at C level.
#
# Segments of a flow are held, in sequence order, until the flow is flushed. Then each longest run that one header can
# stand for comes out as one frame: a header of its own and, not copied, the payloads of the input frames. What comes
# out, segmented again, is the very input:
# - all segments of a run are alike in every header byte but the IP length, id and checksum, and TCP's sequence number,
#   checksum, FIN, PSH and CWR: acknowledgement, window, options (timestamps too), TOS, TTL, flow label are the same;
# - they follow each other without a gap; all have as much payload as the first, the last at most that;
# - FIN and PSH are in the last only, CWR in the first only; URG, SYN and RST in none;
# - IPv4 ids grow by one; with allow_fixed_id and DF they may instead all be the same: then virtio_merged.fixed_id is 1;
# - checksums are right, and have the form that senders compute, if verify is set. The caller may trust frames (of which
#   VIRTIO_NET_HDR_F_DATA_VALID speaks): then TCP's is not computed. Without verify, what had a wrong one comes out with
#   a right one.
# Any other frame passes as it came, untouched, and so does a segment that nothing came to merge with.
#
# Order: frames of one flow leave in the order of arrival, except that what is held at the same time leaves in sequence
# order. Different flows do not wait for each other; of flows that are flushed together the one whose first segment
# arrived first leaves first. Fragments but the first are of no flow, as they have no ports.
#
# A merged frame's header has the IP length and IPv4 checksum of the whole, the first segment's id and sequence number,
# and in TCP's checksum field the folded sum of the pseudo header of the whole, as VIRTIO_NET_HDR_F_NEEDS_CSUM wants it
# (VIRTIO 1.4, 5.1.9.2). Its virtio_net_hdr has NEEDS_CSUM, csum_start and csum_offset; with rsc_info
# (VIRTIO_NET_F_RSC_EXT, 5.1.9.4) also RSC_INFO, and in place of those two the number of segments and of duplicate ACKs,
# which is 0: those pass. GSO_ECN is set if the first segment has CWR.
#
# Input frames must stay as they are until their cookie came out. Memory is allocated by coalescer_open, none later.
# One owner at a time.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from virtio.offload.net_hdr cimport virtio_net_hdr


cdef extern from "virtio/coalesce.h" nogil:
    enum:
        VIRTIO_COALESCE_HEADER_MAX
        VIRTIO_COALESCE_VLANS_MAX
        VIRTIO_COALESCE_FLOWS_MAX
        VIRTIO_COALESCE_SEGMENTS_MAX
        VIRTIO_PASS_NONE
        VIRTIO_PASS_ALONE
        VIRTIO_PASS_NOT_TCP
        VIRTIO_PASS_MALFORMED
        VIRTIO_PASS_FRAGMENT
        VIRTIO_PASS_IP_OPTIONS
        VIRTIO_PASS_EXTENSIONS
        VIRTIO_PASS_VLANS
        VIRTIO_PASS_PADDED
        VIRTIO_PASS_TCP_FLAGS
        VIRTIO_PASS_NO_PAYLOAD
        VIRTIO_PASS_CHECKSUM
        VIRTIO_PASS_CHECKSUM_FORM
        VIRTIO_PASS_PUSHED
        VIRTIO_PASS_TOO_LARGE
        VIRTIO_PASS_OVERLAP
        VIRTIO_PASSES
        VIRTIO_FLUSH_SEGMENTS
        VIRTIO_FLUSH_BYTES
        VIRTIO_FLUSH_AGE
        VIRTIO_FLUSH_ASKED
        VIRTIO_FLUSH_TABLE
        VIRTIO_FLUSH_ENDED
        VIRTIO_FLUSH_HEADER
        VIRTIO_FLUSH_ID
        VIRTIO_FLUSH_SIZE
        VIRTIO_FLUSH_CWR
        VIRTIO_FLUSH_OVERLAP
        VIRTIO_FLUSH_FAR
        VIRTIO_FLUSH_PASSED
        VIRTIO_FLUSHES

    ctypedef struct virtio_piece:
        const uint8_t *base
        uint64_t cookie
        uint32_t length
        uint32_t seq
        uint16_t id
        uint8_t flags
        uint8_t valid

    ctypedef struct virtio_merged:
        virtio_net_hdr net
        const virtio_piece *pieces
        uint32_t length
        uint16_t segments
        uint8_t header_length
        uint8_t fixed_id
        uint8_t passed
        virtio_piece whole
        uint8_t *header

    ctypedef struct virtio_flow:
        uint32_t next_seq
        uint32_t size
        uint16_t next_id
        uint16_t id_step
        uint16_t count
        uint8_t ordered
        uint8_t header_length
        uint32_t bytes
        uint32_t ports
        uint8_t l3
        uint8_t l4
        uint8_t ipv6
        uint32_t pseudo
        const uint8_t *mask
        uint32_t first_seq
        uint32_t hash
        uint32_t newer
        uint32_t older
        uint8_t *header
        uint64_t arrived
        virtio_piece *pieces

    ctypedef struct virtio_coalesce_counters:
        uint64_t frames
        uint64_t merged
        uint64_t segments
        uint64_t *passed
        uint64_t *flushed

    ctypedef struct virtio_coalescer:
        virtio_merged *out
        virtio_merged *limit
        virtio_flow *last
        uint8_t *records
        uint32_t *table
        uint32_t slots
        uint32_t stride
        uint32_t nrecords
        uint32_t flows
        uint32_t segments
        uint32_t max_bytes
        uint64_t max_age
        uint8_t verify
        uint8_t allow_fixed_id
        uint8_t rsc_info
        uint8_t behind
        uint32_t oldest
        uint32_t newest
        uint32_t free
        uint32_t parked
        uint32_t held_flows
        uint32_t held_segments
        uint64_t *secret
        virtio_coalesce_counters counters
        uint8_t masks[2][3][128]


# What a coalescer is to be; the fields have the names of virtio_coalescer's.
ctypedef struct coalescer_limits:
    uint32_t flows        # 1 to VIRTIO_COALESCE_FLOWS_MAX
    uint32_t segments     # of one flow, 2 to VIRTIO_COALESCE_SEGMENTS_MAX
    uint32_t max_bytes    # of a merged IP packet with its headers, at most 65535
    uint64_t max_age      # nanoseconds from a flow's first segment to its flush; UINT64_MAX: any
    bint verify
    bint allow_fixed_id
    bint rsc_info
    uint64_t secret[4]    # random


# Allocate; -1 if there is no memory. *c is all 0, or closed.
cdef int coalescer_open(virtio_coalescer *c, const coalescer_limits *limits) noexcept nogil
# Free all; what is held is forgotten.
cdef void coalescer_close(virtio_coalescer *c) noexcept nogil

# Results that a call needs room for, at least.
cdef inline uint32_t coalesce_room(const virtio_coalescer *c) noexcept nogil:
    return c.segments + 1

# Take in up to n frames that arrive at `now`; return how many were taken. trusted: one byte a frame, not 0 if its TCP
# checksum is known to be right; NULL: none is. out[:*nout] are results, room (at least coalesce_room) bounds them.
# If fewer than n were taken, or c.behind is set, results must be fetched by another call, for the rest of the frames.
# At the end flows are flushed whose first segment arrived max_age or more ago.
# Results are good until the next call.
cdef uint32_t coalesce_burst(virtio_coalescer *c, const uint8_t *const *frames, const uint32_t *lengths,
                             const uint64_t *cookies, const uint8_t *trusted, uint32_t n, uint64_t now,
                             virtio_merged *out, uint32_t room, uint32_t *nout) noexcept nogil
# Flush flows, oldest first, until none is held or room is short; return the number of results. Again, until
# c.held_flows is 0.
cdef uint32_t coalesce_flush(virtio_coalescer *c, virtio_merged *out, uint32_t room) noexcept nogil
# Flush the flow that the n bytes at p would be of, if it is held; return the number of results.
cdef uint32_t coalesce_flush_flow(virtio_coalescer *c, const uint8_t *p, uint32_t n, virtio_merged *out,
                                  uint32_t room) noexcept nogil
