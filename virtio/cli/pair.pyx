"""A driver end and a device end that work each other: for `virtio demo`, stress tests and benchmarks.

They are also the example of how an extension uses the C-level verbs: `cimport` them from virtio._ring, hold the queue's
lock for a burst, keep the arrays local.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from virtio._ring cimport (
    device_add_used_burst, device_enable_notification, device_navail, device_needs_notification, device_pop_burst,
    driver_dequeue_burst, driver_enable_intr, driver_enqueue_burst, driver_notify, driver_nused,
)
from virtio.core.atomic cimport virtio_load32, virtio_relax, virtio_store32, virtio_store64
from virtio.core.clock cimport now_ns
from virtio.core.counters cimport counted
from virtio.core.iov cimport iovec
from virtio.core.lock cimport queue_lock, queue_unlock
from virtio.virtqueue.device_queue cimport DeviceQueue
from virtio.virtqueue.driver_queue cimport DriverQueue
from virtio.virtqueue.structs cimport (
    VIRTIO_ENQ_BROKEN, VIRTIO_FAULT_NONE, virtio_chain, virtio_completion, virtio_device_queue, virtio_driver_queue,
    virtio_request, virtio_sg,
)


cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum:
        POLLIN
    int poll(pollfd *fds, unsigned long n, int timeout)


cdef extern from "unistd.h" nogil:
    ssize_t read(int fd, void *buf, size_t n)
    ssize_t write(int fd, const void *buf, size_t n)


cdef enum:
    MAX_BATCH = 256
    # a little more than MAX_BATCH each, so that the arrays of a loop do not all start at the same offset of a page:
    # loads and stores that agree in their low 12 bits wait for each other
    ROOM_REQ = MAX_BATCH + 12
    ROOM_OUT = MAX_BATCH + 20
    ROOM_CHAINS = MAX_BATCH + 28
    ROOM_SEGS = 8 * MAX_BATCH + 36
    SLEEP_MS = 2000  # a sleeper that is not woken within this time, with work waiting, has lost a wake-up

cdef enum:
    FINE = 0
    STOPPED = 1
    LOST_WAKEUP = 2
    WRONG_DATA = 3
    WRONG_ORDER = 4
    REFUSED = 5
    FAULT = 6

_ERRORS = {
    LOST_WAKEUP: "lost wake-up: slept through {0} ms with work waiting, at chain {1}",
    WRONG_DATA: "wrong data in chain {1}",
    WRONG_ORDER: "chain {0} came back in place of chain {1}",
    REFUSED: "enqueue refused with code {0} at chain {1}",
    FAULT: "queue broke at chain {1}",
}


cdef int check_batch(int batch, int pieces) except -1:
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"batch {batch} out of range (1 to {MAX_BATCH})")
    if not 1 <= pieces <= 8:
        raise ValueError(f"pieces {pieces} out of range (1 to 8)")
    return 0


cdef inline uint64_t pattern(uint64_t x) noexcept nogil:
    """The k-th word of the sequence that verification checks: splitmix64, so that no two are alike by chance."""
    x = (x + 1) * <uint64_t>0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    return x ^ (x >> 27)


cdef inline void fill(uint64_t *words, uint32_t n, uint64_t seed) noexcept nogil:
    cdef uint32_t k
    for k in range(n):
        words[k] = pattern(seed + k)


cdef inline bint same(const uint64_t *words, uint32_t n, uint64_t seed) noexcept nogil:
    cdef uint32_t k
    cdef uint64_t differs = 0
    for k in range(n):
        differs |= words[k] ^ pattern(seed + k)
    return differs == 0


cdef class Pair:
    """A driver end and a device end, each on a thread of its own, which calls :meth:`drive` or :meth:`serve`.

    ``count`` chains go from the driver to the device and back, ``batch`` at a time, through buffers from guest address
    ``buffers`` on (2 * ``length`` bytes for each ring entry, ``length`` a multiple of 8). With ``verify`` each chain
    has a readable piece, filled by the driver with a sequence of which the device checks every byte, and a writable
    piece, for which it is the other way round; order is checked too. Without, it has one readable piece that is not
    looked at.

    Without ``kick`` and ``call`` both sides poll; notifications are decided with ``verify``, and off without. With the
    two eventfds they sleep: event suppression is on, each side re-arms, looks again, and blocks in poll(2). A side that
    is not woken although work waits has found a lost wake-up.
    """

    cdef DriverQueue driver
    cdef DeviceQueue device
    cdef readonly long count
    cdef uint64_t done           # chains that came back: progress, for another thread to look at
    cdef int batch
    cdef uint64_t buffers
    cdef uint32_t length
    cdef bint verify
    cdef int kick
    cdef int call
    cdef uint32_t stopping
    cdef uint8_t *base           # of the buffers, where they are looked at: memory that keeps its map
    cdef long detail

    def __init__(self, DriverQueue driver not None, DeviceQueue device not None, *, long count, int batch,
                 uint64_t buffers, uint32_t length=64, bint verify=False, int kick=-1, int call=-1):
        check_batch(batch, 1)
        if length % 8 or length == 0:
            raise ValueError(f"length {length} is not a multiple of 8")
        if (kick < 0) != (call < 0):
            raise ValueError("kick and call go together")
        driver.memory.translate(buffers, 2 * <uint64_t>length * driver.q.size)
        self.driver, self.device = driver, device
        self.count, self.batch, self.buffers, self.length = count, batch, buffers, length
        self.verify, self.kick, self.call = verify, kick, call

    @property
    def returned(self):
        """Chains that came back so far; any thread may ask."""
        return counted(&self.done)

    def stop(self):
        """Make both loops end soon. They then return normally, with ``returned`` below ``count``."""
        virtio_store32(&self.stopping, 1)

    cdef object failed(self, int why, long at):
        self.stop()
        if why == FAULT:
            return self.driver.broken or self.device.broken or RuntimeError(_ERRORS[why].format(self.detail, at))
        return RuntimeError(_ERRORS[why].format(self.detail, at))

    def drive(self):
        """Be the driver, until all chains came back; return nanoseconds (wall clock) from the first to the last.

        Raises RuntimeError for lost wake-ups, wrong data or wrong order, and the queue's error if it breaks.
        """
        cdef int why
        cdef double start = now_ns()
        cdef Py_buffer buffers  # keeps them alive, though the map may be replaced meanwhile
        if self.verify:
            PyObject_GetBuffer(self.driver.memory.view(self.buffers, 2 * <uint64_t>self.length * self.driver.q.size),
                               &buffers, PyBUF_WRITABLE)
            self.base = <uint8_t *>buffers.buf
        try:
            if self.verify:
                self.driver.enable_intr()
            elif self.kick < 0:
                self.driver.disable_intr()
            with nogil:
                why = self.drive_loop()
            start = now_ns() - start
        finally:
            if self.verify:
                PyBuffer_Release(&buffers)
        if why > STOPPED:
            raise self.failed(why, self.returned)
        return start

    def serve(self):
        """Be the device, until all chains went back. Raises as :meth:`drive`."""
        cdef int why
        if self.verify:
            self.device.enable_notification()
        elif self.kick < 0:
            self.device.disable_notification()
        with nogil:
            why = self.serve_loop()
        if why > STOPPED:
            raise self.failed(why, self.returned)

    cdef int drive_loop(self) noexcept nogil:
        cdef virtio_driver_queue *q = self.driver.q
        cdef virtio_sg sg[2 * MAX_BATCH + 4]
        cdef virtio_request req[ROOM_REQ]
        cdef virtio_completion out[ROOM_OUT]
        cdef uint32_t per = 2 if self.verify else 1
        cdef uint32_t words = self.length // 8
        cdef uint32_t size = q.size
        cdef uint32_t room = size if q.max_indirect >= 2 else size // per  # chains the ring takes
        cdef uint32_t batch = <uint32_t>self.batch if <uint32_t>self.batch < room else room
        cdef uint64_t gpa
        cdef uint64_t slot = 0     # of the next buffer
        cdef uint64_t back = 0     # of the next buffer to come back
        cdef long sent = 0
        cdef long got = 0
        cdef uint32_t want, n, i
        cdef int why = 0
        cdef int stop
        cdef bint decide = self.verify or self.kick >= 0
        cdef uint8_t *base = self.base
        for i in range(batch):
            req[i].readable = 1
            req[i].writable = <uint16_t>(per - 1)
        while got < self.count:
            want = batch
            if <long>want > self.count - sent:
                want = <uint32_t>(self.count - sent)
            if want and sent - got + want <= <long>room:
                for i in range(want):
                    gpa = self.buffers + 2 * self.length * slot
                    sg[per * i].gpa = gpa
                    sg[per * i].len = self.length
                    req[i].cookie = <uint64_t>(sent + i)
                    if per == 2:
                        sg[2 * i + 1].gpa = gpa + self.length
                        sg[2 * i + 1].len = self.length
                        fill(<uint64_t *>(base + 2 * self.length * slot), words, <uint64_t>(sent + i) * words)
                    slot = slot + 1 if slot + 1 < size else 0
                queue_lock(&q.lock)
                n = driver_enqueue_burst(q, sg, req, want, &why)
                if decide and driver_notify(q) and self.kick >= 0:
                    stop = signal(self.kick)
                queue_unlock(&q.lock)
                if n != want:
                    self.detail = why
                    return FAULT if why == VIRTIO_ENQ_BROKEN else REFUSED
                sent += n
            queue_lock(&q.lock)
            n = driver_dequeue_burst(q, out, batch)
            queue_unlock(&q.lock)
            for i in range(n):
                if out[i].cookie != <uint64_t>(got + i):
                    self.detail = <long>out[i].cookie
                    return WRONG_ORDER
                if per == 2 and (out[i].len != self.length
                                 or not same(<uint64_t *>(base + 2 * self.length * back + self.length), words,
                                             ~(<uint64_t>(got + i) * words))):
                    return WRONG_DATA
                back = back + 1 if back + 1 < size else 0
            got += n
            virtio_store64(&self.done, <uint64_t>got)
            if n:
                continue
            if virtio_load32(&q.fault.code) != VIRTIO_FAULT_NONE:
                return FAULT
            if virtio_load32(&self.stopping):
                return STOPPED
            if sent < self.count and sent - got + <long>batch <= <long>room:
                continue
            if self.call < 0:
                virtio_relax()
                continue
            queue_lock(&q.lock)
            stop = driver_enable_intr(q)
            queue_unlock(&q.lock)
            if not stop and not wait_for(self.call, &self.stopping):
                if virtio_load32(&self.stopping):
                    return STOPPED
                queue_lock(&q.lock)
                stop = driver_nused(q) != 0
                queue_unlock(&q.lock)
                if stop:
                    self.detail = SLEEP_MS
                    return LOST_WAKEUP
        return FINE

    cdef int serve_loop(self) noexcept nogil:
        cdef virtio_device_queue *q = self.device.q
        cdef virtio_chain chains[ROOM_CHAINS]
        cdef iovec segs[ROOM_SEGS]
        cdef uint32_t n
        cdef long got = 0
        cdef int stop
        cdef bint decide = self.verify or self.call >= 0
        while got < self.count:
            queue_lock(&q.lock)  # until they are given back: what was popped lies in the map of now
            n = device_pop_burst(q, chains, <uint32_t>self.batch, segs, ROOM_SEGS)
            if self.verify and not self.answer(chains, n, segs, got):
                queue_unlock(&q.lock)
                return WRONG_DATA
            if n:
                device_add_used_burst(q, chains, n)
                if decide and device_needs_notification(q) and self.call >= 0:
                    stop = signal(self.call)
            queue_unlock(&q.lock)
            got += n
            if n:
                continue
            if virtio_load32(&q.fault.code) != VIRTIO_FAULT_NONE:
                return FAULT
            if virtio_load32(&self.stopping):
                return STOPPED
            if self.kick < 0:
                virtio_relax()
                continue
            queue_lock(&q.lock)
            stop = device_enable_notification(q)
            queue_unlock(&q.lock)
            if not stop and not wait_for(self.kick, &self.stopping):
                if virtio_load32(&self.stopping):
                    return STOPPED
                queue_lock(&q.lock)
                stop = device_navail(q) != 0
                queue_unlock(&q.lock)
                if stop:
                    self.detail = SLEEP_MS
                    return LOST_WAKEUP
        return FINE

    cdef bint answer(self, virtio_chain *chains, uint32_t n, const iovec *segs, long got) noexcept nogil:
        """Check what the driver wrote into its chains, and write what it checks; False: it is wrong."""
        cdef uint32_t words = self.length // 8
        cdef uint32_t i
        for i in range(n):
            if (chains[i].readable != self.length or chains[i].writable != self.length
                    or not same(<uint64_t *>segs[chains[i].first].iov_base, words, <uint64_t>(got + i) * words)):
                self.detail = got + i
                return False
            fill(<uint64_t *>segs[chains[i].first + 1].iov_base, words, ~(<uint64_t>(got + i) * words))
            chains[i].written = self.length
        return True


cdef int signal(int fd) noexcept nogil:
    cdef uint64_t one = 1
    return write(fd, &one, 8) == 8


cdef bint wait_for(int fd, uint32_t *stopping) noexcept nogil:
    """Sleep until fd is signalled, and take the signal; return whether it was within SLEEP_MS."""
    cdef pollfd entry
    cdef uint64_t value
    cdef int slept = 0
    entry.fd = fd
    entry.events = POLLIN
    while slept < SLEEP_MS and not virtio_load32(stopping):
        entry.revents = 0
        if poll(&entry, 1, 100) == 1:
            return read(fd, &value, 8) == 8
        slept += 100
    return 0
