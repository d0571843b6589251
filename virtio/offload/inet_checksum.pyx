"""Sums of bytes: the internet checksum (RFC 1071) in all its uses."""

import os

from cpython.array cimport array, clone
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.pyport cimport PY_SSIZE_T_MAX
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t

from virtio.core.limits cimport number_within
from virtio.offload.batch cimport Batch


cdef extern from "virtio/simd.h" nogil:
    int simd_best "virtio_simd_best"()


cdef extern from "virtio/checksum_portable.h" nogil:
    uint64_t sum_portable "virtio_sum_portable"(const uint8_t *p, size_t n)
    uint64_t sum_copy_portable "virtio_sum_copy_portable"(uint8_t *to, const uint8_t *p, size_t n)


cdef extern from "virtio/checksum_x86.h" nogil:
    """
    #ifndef __x86_64__ /* simd_best() says so */
    #define virtio_sum_avx2 virtio_sum_portable
    #define virtio_sum_avx512 virtio_sum_portable
    #define virtio_sum_copy_avx2 virtio_sum_copy_portable
    #define virtio_sum_copy_avx512 virtio_sum_copy_portable
    #endif
    """
    uint64_t sum_avx2 "virtio_sum_avx2"(const uint8_t *p, size_t n)
    uint64_t sum_avx512 "virtio_sum_avx512"(const uint8_t *p, size_t n)
    uint64_t sum_copy_avx2 "virtio_sum_copy_avx2"(uint8_t *to, const uint8_t *p, size_t n)
    uint64_t sum_copy_avx512 "virtio_sum_copy_avx512"(uint8_t *to, const uint8_t *p, size_t n)


SIMD = ("scalar", "avx2", "avx512")  # by SIMD_*


def simd_available():
    """Return the names of the paths that this CPU has, slowest first."""
    return SIMD[:simd_best() + 1]


def simd():
    """Return the name of the path in use: ``"scalar"``, ``"avx2"`` or ``"avx512"``."""
    return SIMD[simd_level]


def use(name):
    """Use this path from now on; for tests, with no other thread at work.

    The import chooses the best that the CPU has, or the environment variable VIRTIO_SIMD. Raises ValueError for a name
    that is unknown or that the CPU has not.
    """
    global simd_level
    if name not in simd_available():
        known = "is not supported by this CPU" if name in SIMD else "is unknown"
        raise ValueError(f"SIMD path {name!r} {known} (there is: {', '.join(simd_available())})")
    simd_level = SIMD.index(name)
    if simd_level == SIMD_AVX512:
        kernels.sum, kernels.copy = sum_avx512, sum_copy_avx512
    elif simd_level == SIMD_AVX2:
        kernels.sum, kernels.copy = sum_avx2, sum_copy_avx2
    else:
        kernels.sum, kernels.copy = sum_portable, sum_copy_portable


try:
    use(os.environ.get("VIRTIO_SIMD") or SIMD[simd_best()])
except ValueError as error:
    raise ImportError(f"environment variable VIRTIO_SIMD: {error}") from None

cdef enum:
    PIECE = 1 << 30  # bytes in one call of a kernel: even, and within what its counters hold


cdef uint64_t sum_gather(const iovec *pieces, size_t count, size_t skip, size_t length) noexcept nogil:
    cdef uint64_t total = 0
    cdef size_t done = 0, i, left, n
    cdef const uint8_t *p
    for i in range(count):
        if done == length:
            break
        if skip >= pieces[i].iov_len:
            skip -= pieces[i].iov_len
            continue
        p = <const uint8_t *>pieces[i].iov_base + skip
        left = min(pieces[i].iov_len - skip, length - done)
        skip = 0
        while left:
            n = min(left, <size_t>PIECE)
            total += sum_at(done, p, n)
            p += n
            done += n
            left -= n
    return total


cdef int checksum_complete(uint8_t *frame, size_t length, size_t csum_start, size_t csum_offset) noexcept nogil:
    if csum_start > length:
        return COMPLETE_START
    if length - csum_start < 2 or csum_offset > length - csum_start - 2:
        return COMPLETE_FIELD
    store_sum16(frame + csum_start + csum_offset, sum_finish(sum_bytes(frame + csum_start, length - csum_start)))
    return COMPLETE_OK


# ---- the Python face: checksums and folded sums are numbers as they stand in the packet, big-endian ----

cdef array NUMBERS = array("H")


cdef uint64_t sum_of(object data, object initial) except? 0:
    """The partial sum of a buffer, or of a list or tuple of them as one after the other."""
    cdef Py_buffer view
    cdef iovec piece
    cdef Batch batch
    cdef uint64_t total
    cdef size_t done = 0
    cdef uint32_t i
    total = sum_be16(<uint16_t>number_within(initial, 0, 0xffff, "initial sum"))
    if PyBytes_CheckExact(data):
        piece.iov_base = PyBytes_AS_STRING(data)
        piece.iov_len = PyBytes_GET_SIZE(data)
        return total + sum_gather(&piece, 1, 0, piece.iov_len)
    if isinstance(data, (list, tuple)):
        batch = Batch()
        batch.load(data, None, False)
        for i in range(batch.count):
            total += sum_at(done, batch.data[i], batch.lengths[i])
            done += batch.lengths[i]
        return total
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    piece.iov_base = view.buf
    piece.iov_len = view.len
    total += sum_gather(&piece, 1, 0, piece.iov_len)
    PyBuffer_Release(&view)
    return total


def checksum(data, initial=0):
    """Return the internet checksum (RFC 1071) of a buffer, or of a list or tuple of buffers taken as one.

    The buffers may be split anywhere, at odd offsets too. ``initial`` is a sum to begin with: of a pseudo header
    (:func:`pseudo_header_sum`), or of other bytes (:func:`partial_sum`). The result is the number that stands in the
    packet, ``data[i] << 8 | data[i + 1]``; a UDP checksum that comes out as 0 must be sent as 0xffff. Over data that
    hold their own checksum it is 0 if that is right. Raises ValueError if ``initial`` is not in 0 to 65535.
    """
    return sum_be16(<uint16_t>~sum_fold(sum_of(data, initial)))


def partial_sum(data, initial=0):
    """Return the sum that :func:`checksum` is the complement of, 0 to 65535: to go on with as ``initial``.

    An odd last byte counts as if a 0 followed, so only the last part of what is summed may have an odd length.
    """
    return sum_be16(sum_fold(sum_of(data, initial)))


def checksum_burst(frames, offsets=None):
    """Return the checksum of each of many buffers, as an ``array.array("H")`` of numbers.

    ``frames`` is a sequence of buffers; or, with ``offsets`` (n + 1 rising numbers), one buffer in which frame i is
    ``frames[offsets[i]:offsets[i + 1]]``. Raises TypeError for what is no buffer, ValueError for a frame of 4 GiB and
    more, or offsets out of order or outside the buffer. Any thread may call; works without the GIL.
    """
    cdef Batch batch = Batch()
    cdef array result
    cdef uint16_t *numbers
    cdef uint32_t i
    batch.load(frames, offsets, False)
    result = clone(NUMBERS, batch.count, False)
    numbers = result.data.as_ushorts
    with nogil:
        for i in range(batch.count):
            numbers[i] = sum_be16(<uint16_t>~sum_fold(sum_bytes(batch.data[i], batch.lengths[i])))
    return result


def copy_checksum(destination, source):
    """Copy ``source`` to the start of ``destination`` and return the checksum of what was copied, in one pass.

    Raises ValueError if the destination is shorter or the two overlap, TypeError or BufferError if it is read-only.
    """
    cdef Py_buffer to
    cdef Py_buffer of
    cdef uint64_t total = 0
    cdef size_t done = 0, n
    PyObject_GetBuffer(destination, &to, PyBUF_WRITABLE)
    try:
        PyObject_GetBuffer(source, &of, PyBUF_SIMPLE)
        try:
            if to.len < of.len:
                raise ValueError(f"destination has {to.len} bytes, source {of.len}")
            if <uintptr_t>to.buf < <uintptr_t>of.buf + of.len and <uintptr_t>of.buf < <uintptr_t>to.buf + of.len:
                apart = <Py_ssize_t>to.buf - <Py_ssize_t>of.buf
                raise ValueError(f"source and destination overlap: {of.len} bytes, {apart} apart")
            while done < <size_t>of.len:
                n = min(<size_t>of.len - done, <size_t>PIECE)
                total += sum_copy(<uint8_t *>to.buf + done, <const uint8_t *>of.buf + done, n)
                done += n
        finally:
            PyBuffer_Release(&of)
    finally:
        PyBuffer_Release(&to)
    return sum_be16(<uint16_t>~sum_fold(total))


def update_checksum(checksum, old, new):
    """Return the checksum after the bytes ``old`` of what it covers became ``new`` (RFC 1624, equation 3).

    The bytes start at an even offset of what is summed; what follows them keeps its place, or moves by an even number.
    That fits pseudo headers, too. The result is what summing anew gives, except for data that are all zero (0 instead
    of 0xffff). A UDP checksum of 0 stands for none and must not be updated; a result of 0 must be sent as 0xffff there.
    Raises ValueError if ``checksum`` is not in 0 to 65535.
    """
    cdef uint16_t number = <uint16_t>number_within(checksum, 0, 0xffff, "checksum")
    return sum_be16(checksum_update(sum_be16(number), sum_of(old, 0), sum_of(new, 0)))


def pseudo_header_sum(src, dst, protocol, length):
    """Return the sum of a pseudo header, to begin a checksum with: of IPv4 or IPv6 by the addresses' 4 or 16 bytes.

    ``length`` is that of the transport header and what follows it. The destination is the final one, where a routing
    header names it (RFC 8200, section 8.1). Raises ValueError for addresses of another or not the same size, a protocol
    beyond 255, or a length beyond 65535 (IPv4) or 2**32 - 1 (IPv6).
    """
    cdef Batch batch = Batch()
    cdef uint8_t number
    cdef uint32_t size
    batch.load((src, dst), None, False)
    size = batch.lengths[0]
    if size != batch.lengths[1] or size not in (4, 16):
        raise ValueError(f"addresses of {size} and {batch.lengths[1]} bytes (both 4, or both 16)")
    number = <uint8_t>number_within(protocol, 0, 0xff, "protocol")
    if size == 4:
        return sum_be16(sum_fold(sum_pseudo4(batch.data[0], batch.data[1], number,
                                             <uint32_t>number_within(length, 0, 0xffff, "length"))))
    return sum_be16(sum_fold(sum_pseudo6(batch.data[0], batch.data[1], number,
                                         <uint32_t>number_within(length, 0, 0xffffffff, "length"))))


def complete_checksum(frame, start, offset):
    """Complete a partial checksum in place, as VIRTIO_NET_HDR_F_NEEDS_CSUM asks for; return it.

    ``frame`` is writable; the 2 bytes at ``start + offset`` (the header's csum_start and csum_offset) hold the sum of
    the pseudo header, and then the checksum of everything from ``start`` to the end. A result of 0 is stored as 0xffff,
    as Linux does. Raises ValueError if the field is not within the frame, which then is as it was.
    """
    cdef Py_buffer view
    cdef size_t at = number_within(start, 0, PY_SSIZE_T_MAX, "csum_start")
    cdef size_t field = number_within(offset, 0, PY_SSIZE_T_MAX, "csum_offset")
    cdef int code
    PyObject_GetBuffer(frame, &view, PyBUF_WRITABLE)
    try:
        code = checksum_complete(<uint8_t *>view.buf, view.len, at, field)
        if code == COMPLETE_START:
            raise ValueError(f"csum_start {start} is beyond the frame ({view.len} bytes)")
        if code == COMPLETE_FIELD:
            raise ValueError(f"csum_start {start} + csum_offset {offset} + 2 is beyond the frame ({view.len} bytes)")
        return sum_be16(load_sum16(<uint8_t *>view.buf + at + field))
    finally:
        PyBuffer_Release(&view)
