"""Exerciser of coalescing: a loop without the GIL, for benchmarks."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t, UINT64_MAX
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from virtio.core.clock cimport thread_ns
from virtio.offload.batch cimport Batch
from virtio.offload.coalesce cimport (
    coalesce_burst, coalesce_flush, coalescer_close, coalescer_limits, coalescer_open, virtio_coalescer, virtio_merged,
)


def coalesce(frames not None, *, uint32_t flows, uint32_t segments=64, uint32_t burst=128, uint32_t rounds,
             bint verify=False, bint hold=False):
    """Coalesce ``frames`` ``rounds`` times; return nanoseconds of this thread's CPU time a frame, and results a round.

    They are taken in ``burst`` at a time. Without ``hold`` everything is flushed after each burst, with it after the
    last one of a round. Raises MemoryError.
    """
    cdef Batch batch = Batch.__new__(Batch)
    cdef virtio_coalescer c
    cdef coalescer_limits limits
    cdef virtio_merged *out
    cdef uint64_t *cookies
    cdef uint32_t room, at, taken, want, nout
    cdef uint32_t i
    cdef uint64_t results = 0
    cdef double start = 0
    batch.load(frames, None, False)
    memset(&limits, 0, sizeof(limits))
    memset(&c, 0, sizeof(c))
    limits.flows, limits.segments, limits.max_bytes, limits.max_age = flows, segments, 65535, UINT64_MAX
    limits.verify = verify
    limits.secret[:] = [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93]
    room = segments + 1 + burst
    out = <virtio_merged *>malloc(room * sizeof(virtio_merged))
    cookies = <uint64_t *>malloc((batch.count + 1) * sizeof(uint64_t))
    try:
        if out is NULL or cookies is NULL or coalescer_open(&c, &limits) < 0:
            raise MemoryError()
        for i in range(batch.count):
            cookies[i] = i
        with nogil:
            for i in range(rounds + 1):
                if i == 1:  # the first round warms up
                    start = thread_ns()
                    results = 0
                at = 0
                while at < batch.count:
                    want = burst if batch.count - at > burst else batch.count - at
                    taken = coalesce_burst(&c, <const uint8_t *const *>batch.data + at, batch.lengths + at,
                                           cookies + at, NULL, want, 0, out, room, &nout)
                    at += taken
                    results += nout
                    while c.held_flows and (at == batch.count or not hold and taken == want):
                        results += coalesce_flush(&c, out, room)
            start = thread_ns() - start
    finally:
        coalescer_close(&c)
        free(out)
        free(cookies)
    return start / (<double>rounds * batch.count), results / <double>rounds
