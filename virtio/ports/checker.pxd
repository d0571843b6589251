# The verifying sink at C level.
from libc.stdint cimport uint32_t, uint64_t

from virtio.ports.counts cimport port_counts
from virtio.ports.port cimport Port


cdef enum:
    HOLES = 64                    # gaps of a flow that are remembered


cdef struct sink_hole:            # units [start, end) that did not come
    uint64_t start
    uint64_t end


cdef struct sink_flow:
    uint64_t next                 # the unit behind all that came
    uint32_t nholes
    sink_hole holes[64]


cdef struct sink_queue:
    sink_flow *flows[256]         # NULL: nothing came of it
    port_counts counts
    uint64_t missing              # units
    uint64_t late                 # units
    uint64_t repeated             # units
    uint64_t corrupt              # frames, as below
    uint64_t bad_checksum
    uint64_t foreign


cdef struct sink_state:
    sink_queue *queues            # [queues]
    void *generator               # a subclass's


cdef class Sink(Port):
    cdef sink_state _state
    cdef readonly bint verify
