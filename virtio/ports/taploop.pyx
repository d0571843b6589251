"""Two TAPs joined by a bare read/write loop in C: what no device at all costs."""

import errno
import os
import threading

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from virtio.core.atomic cimport virtio_load32, virtio_load64, virtio_store32_release
from virtio.ports.tap cimport Tap


cdef extern from "virtio/taploop.h" nogil:
    ctypedef struct virtio_taploop:
        int fd[2]
        int stop_fd
        uint32_t stop
        uint32_t burst
        uint64_t packets[2]
        uint64_t bytes[2]
        uint64_t dropped[2]
        uint32_t error[2]
        uint64_t polls
    void virtio_taploop_run(virtio_taploop *loop)


cdef class TapLoop:
    """Joins two TAPs by a thread that reads a frame from one and writes it to the other, and nothing else.

    Headers pass as they are, so both have one header size, and each may leave undone what ``offloads``
    (VIRTIO_OFFLOAD_*) says, as far as the kernel knows it. ``burst`` frames (1 to 1024) are read from one before
    it is the other's turn. ``cpu`` pins the thread.

    Raises ValueError for TAPs of different header sizes, of several queues, or that are closed. The loop ends by itself
    when an interface is deleted. One thread at a time may call.
    """

    cdef virtio_taploop *_loop
    cdef readonly Tap a
    cdef readonly Tap b
    cdef readonly object cpu
    cdef object _thread
    cdef int _header

    def __init__(self, Tap a not None, Tap b not None, *, uint32_t offloads=0, uint32_t burst=64, cpu=None):
        if self._loop is not NULL:
            raise TypeError("loop is made already")
        if a.header_size != b.header_size:
            raise ValueError(f"header sizes {a.header_size} of {a!r} and {b.header_size} of {b!r} differ")
        if a.queues != 1 or b.queues != 1:
            raise ValueError(f"{a!r} and {b!r}: limit one queue each")
        if not 1 <= burst <= 1024:
            raise ValueError(f"burst {burst} is not within 1 to 1024")
        self._loop = <virtio_taploop *>calloc(1, sizeof(virtio_taploop))
        if self._loop is NULL:
            raise MemoryError()
        self._loop.fd[0] = self._loop.fd[1] = self._loop.stop_fd = -1
        for tap in (a, b):
            tap.fileno()  # it is open
        self._loop.stop_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._loop.burst = burst
        self._header = a.header_size
        self.a, self.b, self.cpu = a, b, cpu
        offloads &= a.known_offloads & b.known_offloads
        for tap in (a, b):
            tap.receive_offloads(offloads, a.header_size)

    def __dealloc__(self):
        if self._loop is not NULL:
            self._close()
            if self._loop.stop_fd >= 0:
                os.close(self._loop.stop_fd)
            free(self._loop)

    cdef int _close(self) except -1:
        cdef int i
        for i in range(2):
            if self._loop.fd[i] >= 0:
                os.close(self._loop.fd[i])
                self._loop.fd[i] = -1
        return 0

    def start(self):
        """Start the thread; RuntimeError if it runs."""
        if self.running:
            raise RuntimeError("loop runs already")
        self.stop()
        self._loop.stop = 0
        # of our own: whoever closes a TAP meanwhile does not hand the loop another file
        try:
            self._loop.fd[0] = os.dup(self.a.fileno())
            self._loop.fd[1] = os.dup(self.b.fileno())
        except BaseException:
            self._close()
            raise
        self._thread = threading.Thread(target=self._run, name="virtio-taploop", daemon=True)
        self._thread.start()

    def _run(self):
        if self.cpu is not None:
            os.sched_setaffinity(threading.get_native_id(), {self.cpu})
        with nogil:
            virtio_taploop_run(self._loop)

    def stop(self):
        """End the thread, and wait for it."""
        if self._thread is None:
            return
        virtio_store32_release(&self._loop.stop, 1)
        os.eventfd_write(self._loop.stop_fd, 1)
        self._thread.join()
        self._thread = None
        os.eventfd_read(self._loop.stop_fd)
        self._close()

    @property
    def running(self):
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def statistics(self):
        """Return a_to_b_packets, a_to_b_bytes (of frames, without headers), a_to_b_dropped, b_to_a_..., polls.

        And a_to_b_error, the name of the last errno for which a frame was dropped, if one was.
        """
        cdef uint32_t error
        counts = {}
        for i, way in ((0, "a_to_b"), (1, "b_to_a")):
            packets = virtio_load64(&self._loop.packets[<int>i])
            counts[f"{way}_packets"] = packets
            counts[f"{way}_bytes"] = virtio_load64(&self._loop.bytes[<int>i]) - packets * self._header
            counts[f"{way}_dropped"] = virtio_load64(&self._loop.dropped[<int>i])
            error = virtio_load32(&self._loop.error[<int>i])
            if error:
                counts[f"{way}_error"] = errno.errorcode[error]
        counts["polls"] = virtio_load64(&self._loop.polls)
        return counts

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def __repr__(self):
        return f"<TapLoop {self.a.name} - {self.b.name}: {'running' if self.running else 'stopped'}>"
