"""Guests that share a worker, as loops without the GIL: one that floods, one that measures."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.time cimport nanosleep, timespec

from virtio._ring cimport driver_dequeue_burst, driver_enqueue_burst, driver_notify
from virtio.core.atomic cimport virtio_load32, virtio_relax, virtio_store32
from virtio.core.clock cimport now_ns
from virtio.core.counters cimport add_count, counted
from virtio.core.lock cimport queue_lock, queue_unlock
from virtio.event.notifier cimport Bell, virtio_bell_ring
from virtio.virtqueue.driver_common cimport driver_outstanding
from virtio.virtqueue.driver_queue cimport DriverQueue
from virtio.virtqueue.structs cimport virtio_completion, virtio_driver_queue, virtio_request, virtio_sg


cdef enum:
    BURST = 64
    LOST = 2000000000  # ns after which a frame does not come any more


cdef inline void pause_us(long us) noexcept nogil:
    cdef timespec time
    time.tv_sec = us // 1000000
    time.tv_nsec = us % 1000000 * 1000
    nanosleep(&time, NULL)


cdef class Flood:
    """Keeps a queue full: of ``chains``, each a list of (guest address, bytes), in turn.

    ``writable``: they are to be written, as a receive queue's are. ``pause`` microseconds between two looks at what
    came back. ``storm``: kicks at each look, wanted or not.
    """

    cdef DriverQueue queue
    cdef Bell kick
    cdef virtio_sg *sg
    cdef virtio_request *requests
    cdef uint32_t *first
    cdef uint32_t count
    cdef uint32_t depth
    cdef uint32_t held
    cdef uint32_t at
    cdef bint writable
    cdef bint storm
    cdef long pause
    cdef uint32_t stopped
    cdef uint64_t _done

    def __init__(self, DriverQueue queue not None, Bell kick not None, chains, *, bint writable=False, long pause=20,
                 bint storm=False, uint32_t depth=32768):
        cdef uint32_t at = 0
        self.queue, self.kick, self.writable, self.pause = queue, kick, writable, pause
        self.storm, self.depth = storm, depth
        self.count = len(chains)
        self.sg = <virtio_sg *>calloc(sum(map(len, chains)) + 1, sizeof(virtio_sg))
        self.requests = <virtio_request *>calloc(self.count + 1, sizeof(virtio_request))
        self.first = <uint32_t *>calloc(self.count + 1, sizeof(uint32_t))
        if self.sg is NULL or self.requests is NULL or self.first is NULL:
            raise MemoryError()
        for i, chain in enumerate(chains):
            self.first[<uint32_t>i] = at
            if writable:
                self.requests[<uint32_t>i].writable = len(chain)
            else:
                self.requests[<uint32_t>i].readable = len(chain)
            for gpa, length in chain:
                self.sg[at].gpa, self.sg[at].len = gpa, length
                at += 1

    def __dealloc__(self):
        free(self.sg)
        free(self.requests)
        free(self.first)

    @property
    def done(self):
        """Chains that came back."""
        return counted(&self._done)

    def stop(self):
        """End run(), from another thread."""
        virtio_store32(&self.stopped, 1)

    def run(self):
        """Do it until stop()."""
        cdef virtio_driver_queue *q = self.queue.q
        cdef virtio_completion out[BURST]
        cdef uint32_t n
        cdef int why = 0
        cdef bint rings
        virtio_store32(&self.stopped, 0)
        with nogil:
            while not virtio_load32(&self.stopped):
                queue_lock(&q.lock)
                while True:
                    n = driver_dequeue_burst(q, out, BURST)
                    add_count(&self._done, n)
                    self.held -= n
                    if n < BURST:
                        break
                while self.held < self.depth:
                    if driver_enqueue_burst(q, self.sg + self.first[self.at], &self.requests[self.at], 1, &why) != 1:
                        break
                    self.held += 1
                    self.at = self.at + 1 if self.at + 1 < self.count else 0
                rings = driver_notify(q) or self.storm
                queue_unlock(&q.lock)
                if rings:
                    virtio_bell_ring(&self.kick.c)
                if self.pause:
                    pause_us(self.pause)


cdef class Ping:
    """Sends one frame and waits for it to come back, again and again; a loopback is behind the device.

    ``frame`` is (guest address, bytes), its header included; ``buffers`` are those to receive into.
    """

    cdef DriverQueue transmit
    cdef DriverQueue receive
    cdef Bell kick
    cdef Bell more
    cdef virtio_sg sg
    cdef virtio_sg buffers[BURST]
    cdef uint32_t count

    def __init__(self, DriverQueue transmit not None, DriverQueue receive not None, Bell kick not None,
                 Bell more not None, frame, buffers):
        self.transmit, self.receive, self.kick, self.more = transmit, receive, kick, more
        self.sg.gpa, self.sg.len = frame
        for gpa, length in buffers[:BURST]:
            self.buffers[self.count].gpa, self.buffers[self.count].len = gpa, length
            self.count += 1

    cdef void post(self, uint32_t i) noexcept nogil:
        cdef virtio_request request
        cdef int why = 0
        request.cookie = i
        request.readable, request.writable = 0, 1
        driver_enqueue_burst(self.receive.q, &self.buffers[i], &request, 1, &why)

    def run(self, uint32_t count, long pause):
        """Do it ``count`` times, ``pause`` to twice as many us apart; return the ns of each, a lost one's as LOST."""
        cdef int64_t *spent = <int64_t *>calloc(count, sizeof(int64_t))
        cdef virtio_driver_queue *tx = self.transmit.q
        cdef virtio_driver_queue *rx = self.receive.q
        cdef virtio_completion out[BURST]
        cdef virtio_request request
        cdef uint32_t i, n, k, seed = 1
        cdef int64_t start
        cdef int why = 0
        if spent is NULL:
            raise MemoryError()
        request.cookie = 0
        request.readable, request.writable = 1, 0
        with nogil:
            if driver_outstanding(rx) == 0:
                for i in range(self.count):
                    self.post(i)
                driver_notify(rx)
                virtio_bell_ring(&self.more.c)
            for i in range(count):
                seed = seed * 1664525 + 1013904223
                if pause:
                    pause_us(pause + (seed >> 8) % pause)
                driver_dequeue_burst(tx, out, BURST)
                start = now_ns()
                driver_enqueue_burst(tx, &self.sg, &request, 1, &why)
                if driver_notify(tx):
                    virtio_bell_ring(&self.kick.c)
                n = 0
                while n == 0:
                    n = driver_dequeue_burst(rx, out, BURST)
                    spent[i] = now_ns() - start
                    if n == 0 and spent[i] > LOST:
                        spent[i] = LOST
                        break
                    virtio_relax()
                for k in range(n):
                    self.post(<uint32_t>out[k].cookie)
                if n and driver_notify(rx):
                    virtio_bell_ring(&self.more.c)
        result = [spent[i] for i in range(count)]
        free(spent)
        return result
