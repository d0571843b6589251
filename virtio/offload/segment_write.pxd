# Writing the segments of a plan: header blocks beside views of the payload, or whole segments into given buffers.
from libc.stdint cimport uint8_t, uint32_t

from virtio.core.iov cimport iovec
from virtio.offload.segmenter cimport virtio_segmenter


# Write the headers of segments [first, first + n), stride bytes apart from `to` on, with full or partial transport
# checksums as planned; full ones read the payload. Returns how many were written: fewer than n where the segments end,
# and none if stride is under the largest block, s.header + s.extra. Nothing beyond a header's end is touched.
cdef uint32_t segment_headers(virtio_segmenter *s, uint32_t first, uint32_t n, uint8_t *to,
                              uint32_t stride) noexcept nogil

# Payload of segments [first, first + n) as views of the frame: nviews[k] of each, one after the other from `views` on.
# A segment without payload (of fragments the first may be) has none. Returns for how many segments there was room.
cdef uint32_t segment_views(virtio_segmenter *s, uint32_t first, uint32_t n, iovec *views, uint32_t room,
                            uint32_t *nviews) noexcept nogil

# Write segment i, headers and payload, to the pieces `to`, skip bytes into them: a copy that sums as it goes. Returns
# the segment's bytes; or 0, and writes nothing, if there is no such segment or the pieces hold fewer. The pieces must
# not overlap the frame.
cdef uint32_t segment_copy(virtio_segmenter *s, uint32_t i, const iovec *to, uint32_t npieces,
                           uint32_t skip) noexcept nogil
