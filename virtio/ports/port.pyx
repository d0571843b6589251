"""Ports: what lies behind the queues of a network device, or beside those of a driver."""

from virtio.core.process import watch


from libc.stdint cimport uint32_t

cdef uint32_t send_nothing(virtio_port *port, uint32_t queue, const virtio_packet *packets, uint32_t n,
                           const iovec *segs, virtio_turn *turn) noexcept nogil:
    return n


cdef uint32_t receive_nothing(virtio_port *port, uint32_t queue, virtio_sink *sink, uint32_t limit,
                              virtio_turn *turn) noexcept nogil:
    return 0


cdef bint never_ready(virtio_port *port, uint32_t queue, virtio_wait *wait) noexcept nogil:
    return False


cdef class Port:
    """What lies behind a network device. This one drops what it is sent, and has nothing to give.

    A port belongs to one device, or one pump, at a time. Methods are called by its owner; threads: one at a time.
    """

    def __cinit__(self):
        self.c.send = send_nothing
        self.c.receive = receive_nothing
        self.c.arm_send = never_ready
        self.c.arm_receive = never_ready
        self.c.queues = 1
        watch(self)

    cdef void free_locks(self) noexcept:
        pass

    def _forked(self, int parent):
        """Go on in a child of fork(): what a thread of the parent was sending or reading is the parent's."""
        self.free_locks()

    cdef int connect(self, uint32_t queue, virtio_sink *sink, object owner) except -1:
        return 0

    def attach(self, user):
        """Become the port of user; RuntimeError if it has one already."""
        if self.user is not None:
            raise RuntimeError(f"{self!r} is attached to {self.user!r} already")
        self.user = user

    def detach(self):
        """Become free again."""
        self.user = None

    @property
    def offloads(self):
        """VIRTIO_OFFLOAD_* bits: what a frame that is sent here may leave undone."""
        return self.c.offloads

    @property
    def queues(self):
        """Queue pairs that it has."""
        return self.c.queues

    def receive_offloads(self, uint32_t offloads, int header_size):
        """Be told what frames that it gives may leave undone, and how large a virtio_net_hdr its user has.

        Called before the first frame, and whenever it changes. A port may leave less undone.
        """

    def set_queues(self, int pairs):
        """Be told how many queue pairs are in use, 1 to ``queues``."""

    def statistics(self):
        """Return what was counted, by name."""
        return {}

    def close(self):
        """Let go of what it holds. It sends and receives nothing from then on."""
