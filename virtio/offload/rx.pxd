# Receiving: what a frame's header says about its checksum, held against the frame.
#
# The peer vouches for a checksum with DATA_VALID, and for the data with NEEDS_CSUM, where the field has the pseudo
# header's sum only: a frame that goes on without a header must be completed first, or it leaves with a bad checksum.
# What is said must be possible: csum_start and csum_offset name the checksum field of a TCP or UDP header that the
# parse found, or a field behind all headers that it knows (GRE, IP in IP, MPLS, PPPoE, UDP-Lite, ICMPv6, VXLAN at
# another port: 5.1.9.4 has the sum from csum_start to the end, whatever is there); a type is the frame's, a tunnel is
# where it is said to be. SCTP, whose checksum is no 16-bit sum, is neither completed nor believed to be verified. A
# type without NEEDS_CSUM (a NIC's LRO behind vhost) is repaired: the pseudo header's sum is put into the field first.
# Lengths of 0 or of a segment in a frame with a type are understood as by the device's end
# (virtio.offload.segment_lengths), and become the frame's, with what covers them. An IP length of 0 without a type
# stays: the frame is taken to its end.
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from virtio.offload.counters cimport virtio_rx_offload
from virtio.offload.frame cimport virtio_frame
from virtio.offload.net_hdr cimport virtio_net_hdr


cdef inline void rx_offload_clear(virtio_rx_offload *info) noexcept nogil:
    """All 0, but for mends that do not count."""
    memset(info, 0, <const char *>&info.mends[0] - <const char *>info)


# p is the frame and frame what frame_parse said of it. Fills *info, all of it; returns info.verdict, VIRTIO_RX_UNKNOWN
# to VIRTIO_RX_BAD. From the driver (no VIRTIO_OFFLOAD_TO_DRIVER in offloads) and to it alike. What is in *info is
# within the frame whatever the header says, and stays so whatever becomes of the frame's bytes.
cdef int offload_receive(virtio_rx_offload *info, const virtio_net_hdr *given, const uint8_t *p,
                         const virtio_frame *frame, uint32_t offloads) noexcept nogil
# Complete the checksum of a frame that NEEDS_CHECKSUM, and one in a tunnel's outer UDP header that is as partial (only
# with a type). It ends where the datagram ends, not the frame: padding is not summed. Mends are stored first, whatever
# the verdict. Others are not touched.
cdef void offload_complete(uint8_t *p, const virtio_rx_offload *info) noexcept nogil
