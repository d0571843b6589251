"""Exercisers of segmentation: loops without the GIL, for benchmarks, and the views that have no Python face."""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from virtio.core.clock cimport thread_ns
from virtio.core.iov cimport iovec
from virtio.offload.batch cimport Batch
from virtio.offload.segment_write cimport segment_copy, segment_headers, segment_views
from virtio.offload.segmenter cimport (
    SEGMENT_PARTIAL, VIRTIO_SEGMENT_OK, segment_payload_at, segment_payload_size, segment_plan, segment_plan_pieces,
    virtio_segmenter,
)


cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **memory, size_t alignment, size_t size)


cdef enum:
    MOST = 0xffff  # segments of a frame
    HEADERS = 0
    COPY = 1
    MEMCPY = 2

_WORK = {"headers": HEADERS, "copy": COPY, "memcpy": MEMCPY}


def segment_ns(work, frame, uint32_t gso_size, long count, *, uint32_t gso_type=0x100, bint partial=False):
    """Return nanoseconds of thread CPU time a segment for cutting the same frame ``count`` times, the plan included.

    ``"headers"`` writes header blocks, and gather lists of the payload; ``"copy"`` writes whole segments into buffers;
    ``"memcpy"`` is the limit of that, a plain copy of as many bytes of payload. Raises ValueError if the frame cannot
    be cut.
    """
    cdef Batch batch = Batch()
    cdef virtio_segmenter s
    cdef uint32_t options = SEGMENT_PARTIAL if partial else 0, i, done = 0, stride
    cdef iovec *views = <iovec *>malloc(MOST * sizeof(iovec))
    cdef uint32_t *nviews = <uint32_t *>malloc(MOST * sizeof(uint32_t))
    cdef uint8_t *memory = NULL
    cdef iovec target
    cdef size_t size
    cdef double start = 0
    cdef long _round
    cdef int what = _WORK[work], code
    batch.load((frame,), None, False)
    code = segment_plan(&s, batch.data[0], batch.lengths[0], gso_type, gso_size, options, MOST)
    stride = ((s.header + s.extra + (s.unit if what else 0)) + 63) // 64 * 64
    size = <size_t>s.count * stride + 64
    if code or views is NULL or nviews is NULL or posix_memalign(<void **>&memory, 4096, size):
        free(views)
        free(nviews)
        raise ValueError(f"the frame cannot be cut (code {code}), or there is no memory")
    memset(memory, 0, size)
    with nogil:
        start = thread_ns()
        for _round in range(count):
            segment_plan(&s, batch.data[0], batch.lengths[0], gso_type, gso_size, options, MOST)
            if what == HEADERS:
                done += segment_headers(&s, 0, s.count, memory, stride)
                segment_views(&s, 0, s.count, views, MOST, nviews)
            elif what == COPY:
                for i in range(s.count):
                    target.iov_base = memory + i * stride
                    target.iov_len = stride
                    segment_copy(&s, i, &target, 1, 0)
                done += s.count
            else:
                for i in range(s.count):
                    memcpy(memory + i * stride + s.header, s.frame + s.payload_at + segment_payload_at(&s, i),
                           segment_payload_size(&s, i))
                done += s.count
        start = thread_ns() - start
    free(memory)
    free(views)
    free(nviews)
    return start / (<double>s.count * count)


def segment_gather_lists(frame, uint32_t gso_size, uint32_t gso_type, uint32_t first, uint32_t n, uint32_t room):
    """Return what segment_views() gives for segments [first, first + n): of each the bytes of its pieces."""
    cdef Batch batch = Batch()
    cdef virtio_segmenter s
    cdef iovec *pieces = NULL
    cdef iovec *views = <iovec *>malloc((room + 1) * sizeof(iovec))
    cdef uint32_t *nviews = <uint32_t *>malloc((n + 1) * sizeof(uint32_t))
    cdef uint32_t i, k, got, used = 0
    cdef list result = []
    batch.load(frame, None, False)
    pieces = <iovec *>malloc((batch.count + 1) * sizeof(iovec))
    for i in range(batch.count):
        pieces[i].iov_base = batch.data[i]
        pieces[i].iov_len = batch.lengths[i]
    if segment_plan_pieces(&s, pieces, batch.count, gso_type, gso_size, 0, MOST) == VIRTIO_SEGMENT_OK:
        got = segment_views(&s, first, n, views, room, nviews)
        for i in range(got):
            result.append([(<uint8_t *>views[k].iov_base)[:views[k].iov_len] for k in range(used, used + nviews[i])])
            used += nviews[i]
    free(pieces)
    free(views)
    free(nviews)
    return result
