# A port that tests and benchmarks play: what lies behind a network device, frame by frame.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from virtio.core.iov cimport iovec
from virtio.offload.net_hdr cimport virtio_net_hdr
from virtio.ports.link cimport keep
from virtio.ports.port cimport Port, virtio_port


cdef enum:
    SCRIPT_QUEUES = 8
    SCRIPT_PIECES = 64


cdef struct script_frame:
    virtio_net_hdr hdr
    uint8_t *data
    uint32_t len
    uint32_t nsegs
    uint32_t resume           # segments of it that are out
    iovec segs[64]


cdef struct script_queue:
    uint32_t lock             # held for all below, and taken last: a worker's thread and a test's use them
    script_frame **given      # what receive() will give
    uint32_t first, count, size
    script_frame **sent       # what send() took
    uint32_t nsent, sent_size


cdef struct script_state:
    virtio_port *port
    script_queue queues[8]
    uint32_t in_place         # give frames by reserve and commit
    uint32_t keep             # send() keeps what it takes
    uint64_t room             # frames that send() takes until it is full; as an int64_t, -1: any number
    uint64_t refused          # calls of send() that did not take all


cdef class ScriptPort(Port):
    cdef script_state script
    cdef readonly list calls

    cdef script_queue *queue_of(self, int queue) except NULL
