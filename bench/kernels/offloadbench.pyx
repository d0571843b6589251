"""Exercisers of the checksum kernels: loops without the GIL for benchmarks, and for tests what has no Python face.

They call the kernels as any other extension does, through virtio.offload.inet_checksum's contract.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from virtio.core.clock cimport thread_ns
from virtio.core.iov cimport iovec
from virtio.offload.batch cimport Batch
from virtio.offload.crc cimport crc32c_update
from virtio.offload.inet_checksum cimport checksum_update, sum_be16, sum_bytes, sum_copy, sum_fold, sum_gather


cdef extern from "arpa/inet.h" nogil:
    uint32_t htonl(uint32_t v)


cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **memory, size_t alignment, size_t size)


cdef enum:
    SUM = 0
    SUM_COPY = 1
    MEMCPY = 2
    CRC32C = 3

_WORK = {"sum": SUM, "sum_copy": SUM_COPY, "memcpy": MEMCPY, "crc32c": CRC32C}


cdef double work_ns(int work, uint8_t *base, uint8_t *to, size_t size, size_t stride, size_t frames, long count,
                    volatile uint64_t *total) noexcept nogil:
    cdef uint64_t sum = 0
    cdef size_t at = 0
    cdef long _
    cdef double start = thread_ns()
    for _ in range(count):
        if work == SUM:
            sum += sum_bytes(base + at, size)
        elif work == SUM_COPY:
            sum += sum_copy(to + at, base + at, size)
        elif work == MEMCPY:
            memcpy(to + at, base + at, size)
        else:
            sum += crc32c_update(0, base + at, size)
        at += stride
        if at == stride * frames:
            at = 0
    total[0] = sum
    return (thread_ns() - start) / count


def kernel_ns(work, size_t size, size_t span, long count, *, size_t offset=14, size_t to_offset=14):
    """Return nanoseconds of thread CPU time for one call of ``"sum"``, ``"sum_copy"``, ``"memcpy"`` or ``"crc32c"``.

    The frames of ``size`` bytes lie ``offset`` bytes (as behind an Ethernet header) into cache lines of their own, as
    many as ``span`` bytes hold; copies go to ``to_offset`` bytes into lines of another ``span``.
    """
    cdef size_t stride = (size + max(offset, to_offset) + 63) // 64 * 64
    cdef size_t frames = max(span // stride, <size_t>1)
    cdef uint8_t *memory
    cdef volatile uint64_t total = 0  # or the compiler leaves out sums that it can inline
    cdef double elapsed
    cdef int code = _WORK[work]
    # the two areas do not agree in their low 12 bits: loads and stores that do wait for each other
    cdef size_t second = (stride * frames + 4095) // 4096 * 4096 + 2048
    if count < 1 or offset > 63 or to_offset > 63:
        raise ValueError(f"count {count} under 1, or offset {offset} or {to_offset} over 63")
    if posix_memalign(<void **>&memory, 4096, second + stride * frames):
        raise MemoryError(f"{second + stride * frames} bytes")
    memset(memory, 0xa5, second + stride * frames)
    with nogil:
        elapsed = work_ns(code, memory + offset, memory + second + to_offset, size, stride, frames, count, &total)
    free(memory)
    return elapsed


def gather_sum(pieces, size_t skip, size_t length):
    """Return sum_gather() of these buffers, folded, as the number that stands in the packet."""
    cdef Batch batch = Batch()
    cdef iovec *gather
    cdef uint64_t total
    cdef uint32_t i
    batch.load(pieces, None, False)
    gather = <iovec *>malloc((batch.count + 1) * sizeof(iovec))
    if gather == NULL:
        raise MemoryError(f"{batch.count} pieces")
    for i in range(batch.count):
        gather[i].iov_base = batch.data[i]
        gather[i].iov_len = batch.lengths[i]
    total = sum_gather(gather, batch.count, skip, length)
    free(gather)
    return sum_be16(sum_fold(total))


def update_field(uint16_t checksum, uint32_t old, uint32_t new, *, int bits):
    """Return checksum_update() of a field of 16 or 32 bits; all numbers as they stand in the packet."""
    checksum = sum_be16(checksum)
    if bits == 16:
        return sum_be16(checksum_update(checksum, sum_be16(<uint16_t>old), sum_be16(<uint16_t>new)))
    return sum_be16(checksum_update(checksum, htonl(old), htonl(new)))
