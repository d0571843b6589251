"""CRC32c, the checksum of SCTP (RFC 9260 appendix A) and iSCSI."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t

from virtio.core.limits cimport number_within
from virtio.offload.inet_checksum cimport SIMD_SCALAR, simd_level


cdef extern from "virtio/crc32c.h" nogil:
    """
    #ifndef __x86_64__ /* simd_level says so */
    #define virtio_crc32c_sse42 virtio_crc32c_portable
    #endif
    """
    ctypedef struct virtio_crc32c_tables:
        pass
    void virtio_crc32c_fill(virtio_crc32c_tables *t)
    uint32_t virtio_crc32c_portable(const virtio_crc32c_tables *t, uint32_t crc, const uint8_t *p, size_t n)
    uint32_t virtio_crc32c_sse42(const virtio_crc32c_tables *t, uint32_t crc, const uint8_t *p, size_t n)


cdef virtio_crc32c_tables tables
virtio_crc32c_fill(&tables)


cdef uint32_t crc32c_update(uint32_t crc, const uint8_t *p, size_t n) noexcept nogil:
    if simd_level == SIMD_SCALAR:
        return ~virtio_crc32c_portable(&tables, ~crc, p, n)
    return ~virtio_crc32c_sse42(&tables, ~crc, p, n)


def crc32c(data, initial=0):
    """Return the CRC32c of a buffer, 0 to 2**32 - 1; of more than one with ``initial``, the CRC32c of those before.

    Used like zlib.crc32(): ``crc32c(b, crc32c(a)) == crc32c(a + b)``. SCTP stores it little-endian (RFC 9260, appendix
    A). Raises ValueError if ``initial`` is not in 0 to 2**32 - 1.
    """
    cdef Py_buffer view
    cdef uint32_t crc = <uint32_t>number_within(initial, 0, 0xffffffff, "initial CRC")
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    crc = crc32c_update(crc, <const uint8_t *>view.buf, view.len)
    PyBuffer_Release(&view)
    return crc
