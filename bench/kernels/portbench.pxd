# A sink in plain memory, and calls of a port: what tests and benchmarks need of ports, without a device.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from virtio.event.notifier cimport Bell, virtio_bell
from virtio.offload.net_hdr cimport virtio_net_hdr
from virtio.ports.link cimport keep
from virtio.ports.port cimport virtio_sink


cdef struct bench_frame:
    virtio_net_hdr hdr
    uint32_t len
    uint8_t *data


cdef struct bench_sink:
    virtio_sink sink              # first: the port knows this only
    uint32_t lock
    uint32_t size                 # frames that it holds
    uint32_t first                # the oldest,
    uint32_t count                # and how many there are
    uint32_t piece                # bytes of each piece of a room
    uint32_t keep                 # 0: frames are counted and forgotten
    uint32_t fresh                # frames that no flush has shown yet
    uint32_t armed
    uint64_t flushes
    uint64_t busy                 # calls with the lock not held: a mistake of the port's
    uint64_t packets
    bench_frame *frames
    virtio_bell *bell             # rung for what was delivered
    virtio_bell *freed            # rung when there is room again
    uint8_t *room                 # reserved


cdef class MemorySink:
    cdef bench_sink c
    cdef readonly Bell bell
    cdef readonly Bell freed
