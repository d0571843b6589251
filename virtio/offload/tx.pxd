# Sending: from what a network stack asks for to a frame and a header that, by what was negotiated, say just that.
#
# A stack asks for the transport checksum, and for segments of at most mss bytes of payload. Either the header describes
# it, or it is done here, or the caller cuts the frame (virtio.offload.segmenter), or the frame is refused: none leaves with a
# checksum that nobody will complete.
#
# - Whose checksum is meant, the stack knows (csum_start in Linux, CSUM_INNER_* in FreeBSD), and no frame tells. Without
#   VIRTIO_TX_WANT_INNER it is the outermost packet's: a tunnel is a UDP datagram as any other, and what is within is
#   payload that the stack forwards: neither looked at nor touched. Cutting a tunnel's UDP datagram is refused.
# - With VIRTIO_TX_WANT_INNER it is the packet's within the tunnel, which is refused for what a packet without a tunnel
#   is refused for. The checksum in the outer UDP header is computed as well, unless it is 0, which stays (RFC 768,
#   RFC 6935). Beside an inner checksum that the device completes it is complete already: what it covers then sums to a
#   known constant. A frame without a tunnel has one packet, which is meant.
# - A tunnel within a tunnel is to the inner packet what a tunnel is to the outermost: payload of a UDP datagram.
# - Only the transport's checksums are touched; the IPv4 header's is the caller's (of segments, who cuts them).
# - SCTP's checksum is a CRC32c and never left to the device, whose sum has 16 bits. Nor is ICMP's.
# - IPv4 options, IPv6 extension headers and any number of VLAN tags are described by csum_start. Segments are left to
#   the device only with extension headers that may be repeated in each; others are refused, for nobody can do it.
# - A fragment's checksum covers what is not there: refused. Unasked, anything is sent as it is.
from libc.stdint cimport uint8_t, uint32_t

from virtio.offload.frame cimport virtio_frame
from virtio.offload.net_hdr cimport virtio_net_hdr
from virtio.offload.counters cimport *


cdef extern from "virtio/offload.h" nogil:
    enum:
        VIRTIO_TX_WANT_CSUM
        VIRTIO_TX_WANT_INNER


# p is the frame, writable, and frame what frame_parse said of it. want: VIRTIO_TX_WANT_*. mss: cut the packet that is
# meant if there is more payload; 0: never. Fills *hdr, all of it (with VIRTIO_OFFLOAD_TO_DRIVER num_buffers is 1), and
# the frame's checksum fields. Returns VIRTIO_TX_*, of which tx_outcome() tells what is to be done.
cdef int offload_transmit(virtio_net_hdr *hdr, uint8_t *p, const virtio_frame *frame, uint32_t want, uint32_t mss,
                          uint32_t offloads) noexcept nogil


cdef inline int tx_outcome(int reason) noexcept nogil:
    return (reason >= VIRTIO_TX_SOFTWARE) + (reason >= VIRTIO_TX_SEGMENT) + (reason >= VIRTIO_TX_REFUSE)
