"""Exercisers of the frame parse and of the hash: loops without the GIL, for benchmarks."""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free

from virtio.core.clock cimport thread_ns
from virtio.offload.batch cimport Batch
from virtio.offload.frame cimport frame_parse_burst, virtio_frame
from virtio.offload.toeplitz cimport frame_hash, Toeplitz, virtio_hash


cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)


cdef double exercise(Toeplitz toeplitz, object frames, object offsets, uint32_t rounds) except -1:
    """Parse, or with toeplitz hash what was parsed once."""
    cdef Batch batch = Batch()
    cdef virtio_frame *parsed
    cdef const uint32_t *table = NULL if toeplitz is None else toeplitz.table
    cdef virtio_hash out
    cdef uint32_t _i, j
    cdef double start, taken
    batch.load(frames, offsets, False)
    if batch.count == 0 or rounds == 0:
        raise ValueError(f"{batch.count} frames, {rounds} rounds: nothing to measure")
    parsed = <virtio_frame *>aligned_alloc(64, batch.count * sizeof(virtio_frame))
    if parsed is NULL:
        raise MemoryError()
    with nogil:
        frame_parse_burst(parsed, <const uint8_t *const *>batch.data, batch.lengths, batch.count)
        start = thread_ns()
        for _i in range(rounds):
            if table is NULL:
                frame_parse_burst(parsed, <const uint8_t *const *>batch.data, batch.lengths, batch.count)
            else:
                for j in range(batch.count):
                    frame_hash(&out, table, 0x1ff, 0, &parsed[j], batch.data[j])
        taken = thread_ns() - start
    free(parsed)
    return taken / (<double>rounds * batch.count)


def parse_frames(frames, offsets=None, *, uint32_t rounds=1000):
    """Parse a batch `rounds` times as bursts; return nanoseconds a frame (thread CPU time)."""
    return exercise(None, frames, offsets, rounds)


def hash_frames(Toeplitz toeplitz not None, frames, offsets=None, *, uint32_t rounds=1000):
    """Hash a parsed batch `rounds` times, all hash types on; return nanoseconds a frame (thread CPU time)."""
    return exercise(toeplitz, frames, offsets, rounds)
