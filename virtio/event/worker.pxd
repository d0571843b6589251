# Tasks and the workers that run them, at C level. What each function does stands in include/virtio/task.h.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from virtio.event.notifier cimport virtio_bell


cdef extern from "virtio/task.h" nogil:
    enum:
        VIRTIO_WAIT_MAX

    struct pollfd:
        int fd
        short events
        short revents

    ctypedef struct virtio_wait:
        uint32_t nfds
        uint32_t nbells
        int64_t timeout_us
        uint32_t full
        pollfd fds[256]
        virtio_bell *bells[256]
        uint32_t bell_fd[256]

    enum:
        VIRTIO_WORK_TURN
        VIRTIO_WORK_CHAIN
        VIRTIO_WORK_PIECE
        VIRTIO_WORK_SYSCALL
        VIRTIO_WORK_BYTES

    int64_t virtio_work_bytes(uint64_t bytes)

    ctypedef struct virtio_turn:
        int64_t left
        uint32_t resume
        uint32_t empty

    ctypedef struct virtio_task:
        uint32_t (*poll)(virtio_task *task, virtio_turn *turn) noexcept nogil
        bint (*arm)(virtio_task *task, virtio_wait *wait) noexcept nogil
        void (*disarm)(virtio_task *task) noexcept nogil
        uint32_t active

    void virtio_wait_fd(virtio_wait *wait, int fd, short events)
    bint virtio_wait_bell(virtio_wait *wait, virtio_bell *bell)
    void virtio_wait_us(virtio_wait *wait, int64_t us)


# Base of what a worker can run. A subclass owns the struct, sets `task`, and keeps both alive.
cdef class Task:
    cdef virtio_task *task
    cdef virtio_turn turn         # what its worker left it of the last one
    cdef uint32_t *lock           # of the queue that it works
    cdef object worker            # the Worker that runs it, or None
    cdef object guest             # number of the guest that it works for
