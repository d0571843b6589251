"""The control queue as the driver of a network device works it (VIRTIO 1.4, 5.1.9.5).

Commands are polled for, as in FreeBSD's vtnet_exec_ctrl_cmd, but not for ever: a device that does not answer in time
costs its driver that time, once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import IntEnum

from virtio.core.process import ForkAwareLock
from virtio.errors import DeviceBroken
from virtio.event.notifier import Bell
from virtio.memory.dma import CACHE_LINE, DmaPool
from virtio.virtqueue.driver_queue import DriverQueue

UNANSWERED = 0xFF  # what the acknowledgement is before the device writes it: no value that it may write
PAUSE_MAX = 0.001


class Ack(IntEnum):
    """What a device says of a command."""

    OK = 0
    ERR = 1


class ControlQueue:
    """Sends commands to a network device, one at a time, and waits for each answer.

    ``queue`` is the control queue of an attached driver, ``kick`` its bell, ``pool`` the guest memory for commands.
    ``timeout`` is how long a device may take, in seconds. ``idle`` is called between looks at the ring: for a device
    that is polled on this very thread.

    Any thread may call :meth:`send`; they take turns. Source: VIRTIO 1.4, 5.1.9.5.
    """

    def __init__(
        self,
        queue: DriverQueue,
        pool: DmaPool,
        kick: Bell,
        *,
        timeout: float = 1.0,
        idle: Callable[[], object] | None = None,
    ) -> None:
        self.timeout = timeout
        self.commands = 0  # answered
        self.refused = 0  # of these, with ERR
        self.late = 0  # not answered in time
        self._queue = queue
        self._pool = pool
        self._kick = kick
        self._idle = idle
        self._lock = ForkAwareLock("control queue")
        self._held: dict[int, str] = {}  # buffers that the device may write to, and what was asked by them
        queue.disable_intr()

    def send(
        self, class_: int, command: int, data: bytes | Sequence[bytes] = b"", *, timeout: float | None = None
    ) -> Ack:
        """Send a command with its data, and return the device's acknowledgement.

        Several pieces of data become descriptors of their own, which legacy devices without ANY_LAYOUT need for what
        has several parts (the MAC tables). Raises DeviceBroken if the device does not answer within ``timeout``
        seconds (default: the queue's), if it has not yet answered an earlier command, or if its answer is none;
        RingError if it broke the ring; QueueFull or DoesNotFit for a queue that is too small.

        The memory of a command stays taken until the device gives it back, or :meth:`reset`.
        """
        pieces = [data] if isinstance(data, bytes) else list(data)
        with self._lock:
            self._reap()
            for what in self._held.values():
                raise DeviceBroken(f"the device has not yet answered {what}")
            return self._send(class_, command, pieces, self.timeout if timeout is None else timeout)

    def _send(self, class_: int, command: int, pieces: Sequence[bytes], timeout: float) -> Ack:
        head = bytes([class_, command])
        what = f"control command {class_}/{command}"
        memory = self._queue.memory
        size = len(head) + sum(map(len, pieces))
        ack_offset = (size + CACHE_LINE - 1) & -CACHE_LINE  # the device's byte shares no cache line with ours
        base = self._pool.allocate(ack_offset + 1)
        ack = base + ack_offset
        readable = []
        at = base
        try:
            for piece in (head, *filter(None, pieces)):
                memory.write(at, piece)
                readable.append((at, len(piece)))
                at += len(piece)
            memory.write_u8(ack, UNANSWERED)
            self._queue.enqueue(readable, [(ack, 1)], base)
        except BaseException:
            self._pool.free(base)
            raise
        self._held[base] = what
        if self._queue.notify():
            self._kick.ring()
        used = self._wait(base, what, timeout)
        answer = memory.read_u8(ack)
        self._give_back(base)
        self.commands += 1
        if used != 1:
            raise DeviceBroken(f"the device wrote {used} bytes as the answer to {what} (1 is the acknowledgement)")
        if answer not in (Ack.OK, Ack.ERR):
            raise DeviceBroken(f"the device answered {what} with {answer}, which is neither 0 (OK) nor 1 (ERR)")
        self.refused += answer == Ack.ERR
        return Ack(answer)

    def _wait(self, base: int, what: str, timeout: float) -> int:
        """Return the used length of the command; raise DeviceBroken when the time is over."""
        deadline = time.monotonic() + timeout
        pause = 10e-6
        while True:
            done = self._queue.dequeue()
            if done is not None:  # only one is outstanding, and the ring has checked that it is this one
                return done[1]
            left = deadline - time.monotonic()
            if left <= 0:
                self.late += 1
                raise DeviceBroken(f"the device did not answer {what} within {timeout:g} s")
            if self._idle is not None:
                self._idle()
            else:
                time.sleep(min(pause, left))
                pause = min(2 * pause, PAUSE_MAX)

    def _reap(self) -> None:
        """Take late answers back: their memory is free now, and what they say is of no use any more."""
        while self._held and (done := self._queue.dequeue()) is not None:
            self._give_back(done[0])

    def _give_back(self, base: int) -> None:
        del self._held[base]
        self._pool.free(base)

    def reset(self) -> None:
        """Give all memory back. Only when the device was reset: until then it may write there."""
        with self._lock:
            for base in list(self._held):
                self._give_back(base)

    @property
    def outstanding(self) -> int:
        """Commands that the device has not answered yet."""
        return len(self._held)
