# cython: language_level=3, boundscheck=False, wraparound=False
"""A client of the offload kernels' Cython interface: sends one frame through all of them, without the GIL."""

from libc.stdint cimport UINT64_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from virtio.offload.inet_checksum cimport sum_be16, sum_bytes, sum_fold
from virtio.offload.coalesce cimport (
    coalesce_burst, coalesce_flush, coalescer_close, coalescer_limits, coalescer_open, virtio_coalescer, virtio_merged,
)
from virtio.offload.frame cimport VIRTIO_STOP_OK, frame_parse, virtio_frame
from virtio.offload.frame_checksum cimport frame_checks, frame_verify
from virtio.memory.guest_memory cimport iovec
from virtio.offload.net_hdr cimport (
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_OFFLOAD_CSUM, VIRTIO_OFFLOAD_TSO4, net_hdr_check,
    virtio_net_hdr,
)
from virtio.offload.segmenter cimport segment_plan, virtio_segmenter
from virtio.offload.segment_write cimport segment_copy
from virtio.offload.toeplitz cimport frame_hash, toeplitz_table, virtio_hash

cdef enum:
    INPUTS = 36
    SEGMENTS = 8
    ROOM = 2048
    RESULTS = 16

cdef uint32_t table[256 * INPUTS]
cdef uint8_t memory[SEGMENTS][ROOM]


def through(bytes data, bytes key, uint16_t mss):
    """Return what each kernel says of a TCPv4 frame that is cut into segments, and then merged again."""
    cdef const uint8_t *p = data
    cdef const uint8_t *secret = key
    cdef uint32_t length = <uint32_t>len(data), n = 0, count, i
    cdef uint16_t checksum
    cdef int fault
    cdef virtio_frame frame
    cdef frame_checks checks
    cdef virtio_net_hdr hdr
    cdef virtio_hash hashed
    cdef virtio_segmenter plan
    cdef iovec to
    cdef const uint8_t *packets[SEGMENTS]
    cdef uint32_t lengths[SEGMENTS]
    cdef uint64_t cookies[SEGMENTS]
    cdef virtio_coalescer coalescer
    cdef coalescer_limits limits
    cdef virtio_merged out[RESULTS]
    memset(&hdr, 0, sizeof(hdr))
    memset(&coalescer, 0, sizeof(coalescer))
    memset(&limits, 0, sizeof(limits))
    limits.flows = 4
    limits.segments = SEGMENTS
    limits.max_bytes = 0xffff
    limits.max_age = UINT64_MAX
    limits.verify = True
    if coalescer_open(&coalescer, &limits):
        raise MemoryError()
    with nogil:
        checksum = sum_be16(<uint16_t>~sum_fold(sum_bytes(p, length)))
        if frame_parse(&frame, p, length) != VIRTIO_STOP_OK:
            length = 0
        frame_verify(&checks, p, &frame)
        hdr.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
        hdr.gso_type = VIRTIO_NET_HDR_GSO_TCPV4
        hdr.gso_size = mss
        hdr.csum_start = frame.outer.l4
        hdr.csum_offset = 16
        fault = net_hdr_check(&hdr, length, VIRTIO_OFFLOAD_CSUM | VIRTIO_OFFLOAD_TSO4)
        toeplitz_table(table, secret, INPUTS)
        frame_hash(&hashed, table, 0x1ff, 0, &frame, p)
        if segment_plan(&plan, p, length, VIRTIO_NET_HDR_GSO_TCPV4, mss, 0, SEGMENTS) == 0:
            for i in range(plan.count):
                to.iov_base = memory[i]
                to.iov_len = ROOM
                packets[i] = memory[i]
                lengths[i] = segment_copy(&plan, i, &to, 1, 0)
                cookies[i] = i
                n += 1
        coalesce_burst(&coalescer, packets, lengths, cookies, NULL, n, 0, out, RESULTS, &count)
        count += coalesce_flush(&coalescer, out + count, RESULTS - count)
    merged = out[0].segments if count == 1 else 0, out[0].length
    coalescer_close(&coalescer)
    return {
        "checksum": checksum, "verdicts": (checks.l3, checks.l4), "fault": fault, "hash": hashed.value,
        "segments": [memory[i][:lengths[i]] for i in range(n)], "merged": merged,
    }
