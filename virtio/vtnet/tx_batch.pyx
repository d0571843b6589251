"""The frames of one call of transmit."""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free

from virtio.offload.batch cimport Batch
from virtio.offload.net_hdr cimport NetHeader, virtio_net_hdr
from virtio.offload.tx cimport VIRTIO_TX_WANT_CSUM, VIRTIO_TX_WANT_INNER


cdef class TxBatch:
    """The frames of one call of transmit, and what the call says of them."""

    def __dealloc__(self):
        free(self.headers)

    cdef int load(self, object frames, bint checksum, uint32_t mss, object layer, object headers,
                  object offsets) except -1:
        if mss or checksum:
            if headers is not None:
                raise ValueError("either headers are given, or what they are to say")
            self.want = VIRTIO_TX_WANT_CSUM
            if layer is None:
                self.want |= VIRTIO_TX_WANT_INNER if mss else 0
            elif layer == "inner":
                self.want |= VIRTIO_TX_WANT_INNER
            elif layer != "outer":
                raise ValueError(f"layer {layer!r} is neither 'inner' nor 'outer'")
        self.mss = mss
        self.frames = Batch()
        self.frames.load(frames, offsets, False)
        if headers is not None:
            self.load_headers(headers)
        return 0

    cdef int load_headers(self, object headers) except -1:
        """Store one header for all frames, or one or None for each."""
        cdef uint32_t count = self.frames.count
        cdef uint32_t i
        if isinstance(headers, NetHeader):
            headers = (headers,) * count
        headers = tuple(headers)
        if len(headers) != count:
            raise ValueError(f"{len(headers)} headers for {count} frames")
        self.headers = <virtio_net_hdr *>calloc(count + 1, sizeof(virtio_net_hdr) + 1)
        if self.headers is NULL:
            raise MemoryError()
        self.given = <uint8_t *>(self.headers + count + 1)
        for i in range(count):
            header = (<tuple>headers)[i]
            if header is None:
                continue
            if not isinstance(header, NetHeader):
                raise TypeError(f"header {i} is a {type(header).__name__}, not a NetHeader")
            (<NetHeader>header).store(&self.headers[i])
            self.given[i] = 1
        return 0
