"""Exercisers of the frame parse: loops without the GIL, for benchmarks."""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free

from virtio._batch cimport Batch
from virtio._frame cimport frame_parse_burst, virtio_frame


cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)


cdef extern from "time.h" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    enum:
        CLOCK_THREAD_CPUTIME_ID
    int clock_gettime(int clock, timespec *now)


cdef double cpu_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now)
    return now.tv_sec * 1e9 + now.tv_nsec


def parse_frames(frames, offsets=None, *, uint32_t rounds=1000):
    """Parse a batch `rounds` times as bursts; return nanoseconds a frame (thread CPU time)."""
    cdef Batch batch = Batch()
    cdef uint32_t i
    cdef double start, taken
    batch.load(frames, offsets, False)
    if batch.count == 0 or rounds == 0:
        raise ValueError(f"{batch.count} frames, {rounds} rounds: nothing to measure")
    cdef virtio_frame *results = <virtio_frame *>aligned_alloc(64, batch.count * sizeof(virtio_frame))
    if results is NULL:
        raise MemoryError()
    with nogil:
        start = cpu_ns()
        for i in range(rounds):
            frame_parse_burst(results, <const uint8_t *const *>batch.data, batch.lengths, batch.count)
        taken = cpu_ns() - start
    free(results)
    return taken / (<double>rounds * batch.count)
