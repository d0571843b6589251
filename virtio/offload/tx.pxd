# Sending: from what a network stack asks for to a frame and a header that, by what was negotiated, say just that.
#
# A stack asks for the transport checksum, and for segments of at most mss bytes of payload. Either the header describes
# it, or it is done here, or the caller cuts the frame (virtio.offload.segmenter), or the frame is refused: none leaves
# with a checksum that nobody will complete.
#
from libc.stdint cimport uint8_t, uint32_t

from virtio.offload.counters cimport VIRTIO_TX_REFUSE, VIRTIO_TX_SEGMENT, VIRTIO_TX_SOFTWARE
from virtio.offload.frame cimport virtio_frame
from virtio.offload.net_hdr cimport virtio_net_hdr


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
