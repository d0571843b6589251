# Software LRO of a receive queue: TCP segments of one burst that follow each other become one packet, with a header
# that says how to cut it again (virtio.offload.coalesce). Nothing is held from one burst to the next, so no frame
# waits.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from virtio.core.iov cimport iovec
from virtio.offload.coalesce cimport virtio_coalescer, virtio_merged
from virtio.ports.port cimport virtio_packet


cdef enum:
    LRO_FLOWS = 64     # as many as a burst has packets
    LRO_SEGMENTS = 64
    LRO_RESULTS = 64 + LRO_SEGMENTS + 1
    LRO_SEGS = 2048    # pieces of what comes out


cdef struct vtnet_lro:
    virtio_coalescer c
    virtio_merged results[129]
    # what came out: packets[first .. n)
    uint32_t first
    uint32_t n
    uint32_t nsegs
    virtio_packet packets[64]
    iovec segs[2048]
    uint8_t headers[8192]     # 128 bytes for each packet
    const uint8_t *frames[64]
    uint32_t lengths[64]
    uint64_t cookies[64]
    uint8_t trusted[64]
    # figures
    uint64_t queued           # segments that were merged,
    uint64_t flushed          # and packets that they became


# NULL without memory; secret: random.
cdef vtnet_lro *lro_new(const uint64_t *secret) noexcept nogil
cdef void lro_free(vtnet_lro *lro) noexcept nogil
# Merge n packets, up to 64, whose pieces stay until the results are done with. What is no TCP segment in one piece, or
# was merged before, passes.
cdef void lro_merge(vtnet_lro *lro, const virtio_packet *packets, uint32_t n, const iovec *segs) noexcept nogil
