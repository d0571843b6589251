"""When a device's hooks run, and when its interrupts go out: one lock, and nothing that waits for another."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from virtio.slot import QueueSlot


class Serving:
    """The lock of a device, the kicks that wait to be served under it, and the interrupts that wait for its end.

    ``servable(slot)`` says whether a kick of the slot can be served now, ``serve(slot)`` does it, ``config()`` raises
    the configuration interrupt.

    A kick never waits, nor does :meth:`soon`: whoever has the lock does it before he is done. An interrupt goes out
    without the lock, because it may end in a driver that kicks, or that waits for a lock which another thread, about to
    kick, holds. A thread that is at it already does not begin anew further down its stack: driver and device may kick
    each other for ever without a call getting deeper.
    """

    def __init__(
        self,
        servable: Callable[[QueueSlot], bool],
        serve: Callable[[QueueSlot], None],
        config: Callable[[], None],
    ) -> None:
        self.slots: list[QueueSlot] = []
        self.config_owed = False
        self._servable = servable
        self._serve = serve
        self._config = config
        self._work: deque[Callable[[], object]] = deque()
        self._lock = threading.RLock()
        self._depth = 0  # above 0: somebody has the lock, and settles after it
        self._settling: set[int] = set()  # threads

    @contextmanager
    def control(self) -> Iterator[None]:
        """Hold the lock; then send the interrupts that are owed, and serve the kicks that came meanwhile."""
        try:
            with self._lock:
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
        finally:
            self.settle()

    def soon(self, work: Callable[[], object]) -> None:
        """Do something under the lock: at once if it is free or ours, else whoever has it does. Never waits."""
        if not self._try(work):
            self._work.append(work)
        self.settle()

    def kicked(self, slot: QueueSlot) -> None:
        """Have a kick served: now, or as soon as it can be."""
        slot.kicked = True
        self.settle()

    def interrupt(self, slot: QueueSlot) -> None:
        """Have the driver interrupted for a queue: now, or when the lock is free."""
        slot.owed = True
        self.settle()

    def settle(self) -> None:
        """Send what is owed and serve what was kicked, unless somebody is at it who will look again."""
        thread = threading.get_ident()
        if thread in self._settling:
            return
        self._settling.add(thread)
        try:
            while not self._depth:
                served = bool(self._work) or any(map(self._servable, self.slots))
                # who has the lock settles after it, and sees what we saw
                if served and not self._try(self._serve_all):
                    break
                if not self._send() and not served:
                    break
        finally:
            self._settling.discard(thread)

    def _try(self, work: Callable[[], object]) -> bool:
        """Do something under the lock; False if somebody else has it."""
        if not self._lock.acquire(blocking=False):
            return False
        self._depth += 1
        try:
            work()
        finally:
            self._depth -= 1
            self._lock.release()
        return True

    def _serve_all(self) -> None:
        while self._work:
            self._work.popleft()()
        for slot in self.slots:
            if self._servable(slot):
                slot.kicked = False
                self._serve(slot)

    def _send(self) -> bool:
        """Send the interrupts that are owed; say whether there was one."""
        owed = [slot for slot in self.slots if slot.owed]
        for slot in owed:
            slot.owed = False
            slot.call.ring()
        config, self.config_owed = self.config_owed, False
        if config:
            self._config()
        return config or bool(owed)
