# The private state of a driver queue as plain data: what a snapshot keeps of it, and how a queue takes it over.
#
# The ring itself is in guest memory. What DriverQueue alone knows (layout, features, cookies) it saves itself.
from virtio.virtqueue.structs cimport virtio_driver_queue


cdef enum:
    MAX_INDIRECT = 32768  # pieces of a chain that an indirect table takes, at most


# Return the private state.
cdef dict driver_state(virtio_driver_queue *q)
# Raise SnapshotError unless state has all fields of a driver queue's, and no others, each of its kind.
cdef int check_state(object state) except -1
# Take over indices, links and outstanding chains of state; SnapshotError when they contradict each other.
cdef int driver_resume(virtio_driver_queue *q, object state) except -1
