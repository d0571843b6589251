# CRC32c, the checksum of SCTP (RFC 9260 appendix A) and iSCSI.
from libc.stdint cimport uint8_t, uint32_t


# The CRC32c of bytes whose CRC32c is crc (0 for none) and the n bytes at p. In an SCTP packet it is little-endian.
cdef uint32_t crc32c_update(uint32_t crc, const uint8_t *p, size_t n) noexcept nogil
