# The frames of one call of transmit, and what the call says of them, as C arrays.
cimport cython
from libc.stdint cimport uint8_t, uint32_t

from virtio.offload.batch cimport Batch
from virtio.offload.net_hdr cimport virtio_net_hdr


@cython.final  # load is known when it is compiled
cdef class TxBatch:
    cdef Batch frames
    cdef uint32_t want            # VIRTIO_TX_WANT_*; 0: the headers say what is wanted
    cdef uint32_t mss             # bytes of payload of a segment; 0: no segments
    cdef virtio_net_hdr *headers  # [frames.count], or NULL: no frame has one
    cdef uint8_t *given           # [frames.count] whether a frame has a header

    # Take the arguments of VtnetTransmit.transmit in, once; ValueError or TypeError for those that cannot be.
    cdef int load(self, object frames, bint checksum, uint32_t mss, object layer, object headers,
                  object offsets) except -1
    cdef int load_headers(self, object headers) except -1
