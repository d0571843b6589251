"""When a device's hooks run, and when its interrupts go out: one lock, and nothing that waits for another."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import ref

from virtio.core.process import Origin
from virtio.core.weak import bound
from virtio.device.queue_state import QueueSlot

ROUNDS = 64  # that a thread works for other threads before it hands that over


class Serving:
    """The lock of a device, the kicks that wait to be served under it, and the interrupts that wait for its end.

    ``servable(slot)`` says whether a kick of the slot can be served now, ``serve(slot)`` does it, ``config()`` raises
    the configuration interrupt. Their object, if they are methods, is not kept alive by this one.

    A kick never waits, nor does :meth:`soon`: whoever has the lock does it before he is done. So that a storm of kicks
    neither keeps a thread out nor in, whoever waits for the lock is next, and a thread that has worked for others long
    enough leaves the rest to a new thread. An interrupt goes out without the lock, because it may end in a driver that
    kicks, or that waits for a lock which another thread, about to kick, holds. A thread that is at it already does not
    begin anew further down its stack: driver and device may kick each other for ever without a call getting deeper.
    """

    def __init__(
        self,
        servable: Callable[[QueueSlot], bool],
        serve: Callable[[QueueSlot], None],
        config: Callable[[], None],
    ) -> None:
        self.slots: list[QueueSlot] = []
        self.config_owed = False
        self._servable, self._serve, self._config = bound(servable), bound(serve), bound(config)
        self._work: deque[Callable[[], object]] = deque()
        self._lock = threading.RLock()
        self._waiting: deque[int] = deque()  # threads that wait for it
        self._depth = 0  # above 0: somebody has the lock, and settles after it
        self.origin = Origin("device")
        self.threaded = False  # workers run its queues
        self._settling: dict[int, int] = {}  # threads that do, and the rounds that each did for others

    @contextmanager
    def control(self) -> Iterator[None]:
        """Hold the lock; then send the interrupts that are owed, and serve the kicks that came meanwhile."""
        if not self.origin.here:
            self._adopt()
        thread = threading.get_ident()
        self._waiting.append(thread)
        try:
            self._lock.acquire()
            self._depth += 1
        except BaseException:
            self._waiting.remove(thread)
            self.settle()  # others left to us what they had
            raise
        self._waiting.remove(thread)
        try:
            yield
        finally:
            self._depth -= 1
            self._lock.release()
            self.settle()

    def _adopt(self) -> None:
        """Take the lock over in a child of fork(). RuntimeError if a thread of the parent has it, or works a queue."""
        if self.threaded or not self._lock.acquire(blocking=False):
            self.origin.check()
        self._lock.release()
        self._waiting.clear()
        self._settling.clear()
        self.origin = Origin(self.origin.name)

    def check(self) -> None:
        """Raise RuntimeError in a child of fork(), if threads of the parent work the queues."""
        if self.threaded:
            self.origin.check()

    def soon(self, work: Callable[[], object]) -> None:
        """Do something under the lock: at once if it is free or ours, else whoever has it does. Never waits.

        What waits already (the same method of the same object) is done once.
        """
        if not self._try(work) and work not in self._work:
            self._work.append(work)
        self.settle()

    def kicked(self, slot: QueueSlot) -> None:
        """Have a kick served: now, or as soon as it can be."""
        slot.kicked = True
        self.settle()

    def kick_function(self, index: int) -> Callable[[], None]:
        """Return what a queue's kick bell calls. It keeps neither this object nor the queue alive."""
        owner = ref(self)

        def kick() -> None:
            serving = owner()
            if serving is not None:
                serving.kicked(serving.slots[index])

        return kick

    def interrupt(self, slot: QueueSlot) -> None:
        """Have the driver interrupted for a queue: now, or when the lock is free."""
        slot.owed = True
        self.settle()

    def settle(self, rounds: int | None = ROUNDS) -> None:
        """Send what is owed and serve what was kicked, unless somebody is at it who will look again."""
        thread = threading.get_ident()
        if thread in self._settling:
            self._settling[thread] = 0  # this round was not for others
            return
        servable = self._servable()
        if servable is None:
            return
        self._settling[thread] = 0
        try:
            while not self._depth:
                served = bool(self._work) or any(map(servable, self.slots))
                # who has the lock settles after it, and sees what we saw
                if served and not self._try(self._serve_all):
                    break
                if not self._send() and not served:
                    break
                self._settling[thread] += 1
                if rounds is not None and self._settling[thread] > rounds:
                    threading.Thread(target=self.settle, args=(None,), name="virtio-settle", daemon=True).start()
                    break
        finally:
            del self._settling[thread]

    def _try(self, work: Callable[[], object]) -> bool:
        """Do something under the lock; False if somebody else has it, or is to have it."""
        if not self._lock.acquire(blocking=False):
            return False
        if self._waiting and not self._depth:
            self._lock.release()
            return False
        self._depth += 1
        try:
            work()
        finally:
            self._depth -= 1
            self._lock.release()
        return True

    def _serve_all(self) -> None:
        for _ in range(len(self._work)):
            self._work.popleft()()
        servable, serve = self._servable(), self._serve()
        for slot in self.slots:
            if servable is not None and serve is not None and servable(slot):
                slot.kicked = False
                serve(slot)

    def _send(self) -> bool:
        """Send the interrupts that are owed; say whether there was one."""
        owed = [slot for slot in self.slots if slot.owed]
        for slot in owed:
            slot.owed = False
            slot.call.ring()
        config, self.config_owed = self.config_owed, False
        if config and (tell := self._config()) is not None:
            tell()
        return config or bool(owed)
