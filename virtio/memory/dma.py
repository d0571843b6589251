"""Guest memory for a driver's rings and buffers."""

from __future__ import annotations

from bisect import bisect_left, insort

from virtio.core.process import ForkAwareLock
from virtio.errors import PoolExhausted
from virtio.memory.guest_memory import GuestMemory

PAGE = 4096
CACHE_LINE = 64


class DmaPool:
    """Hands out ranges of guest memory: what a driver shares with its device.

    ``memory`` is the guest memory, ``gpa`` and ``size`` the range that the driver may use, in bytes; all of it must lie
    in one region. The first range that fits is taken, and what is given back joins its neighbours, so that a pool
    whose users are gone is one range again. What is handed out is not cleared.

    Raises MemoryFault if the range is not guest memory, ValueError for a size below 1. Any thread may call.
    """

    def __init__(self, memory: GuestMemory, gpa: int, size: int) -> None:
        if size < 1:
            raise ValueError(f"pool size {size} is below 1")
        memory.translate(gpa, size)
        self.memory = memory
        self.gpa = gpa
        self.size = size
        self._lock = ForkAwareLock("DMA pool")
        self._free: list[tuple[int, int]] = [(gpa, size)]  # (address, bytes), by address; no two touch
        self._used: dict[int, int] = {}

    def allocate(self, size: int, align: int = CACHE_LINE) -> int:
        """Return the guest address of ``size`` bytes, a multiple of ``align`` (a power of two).

        Raises PoolExhausted if there is no such range, ValueError for numbers that cannot be.
        """
        if size < 1:
            raise ValueError(f"allocation of {size} bytes is below 1")
        if align < 1 or align & (align - 1):
            raise ValueError(f"alignment {align} is not a power of two")
        with self._lock:
            for i, (at, length) in enumerate(self._free):
                start = (at + align - 1) & -align
                before = start - at
                if before + size <= length:
                    after = length - before - size
                    self._free[i : i + 1] = [piece for piece in ((at, before), (start + size, after)) if piece[1]]
                    self._used[start] = size
                    return start
            left = sum(length for _, length in self._free)
            largest = max((length for _, length in self._free), default=0)
        raise PoolExhausted(
            f"no {size} bytes aligned to {align} in the driver's memory: {left} of {self.size} bytes are left, "
            f"{largest} of them in one piece",
            size,
            left,
            largest,
        )

    def free(self, gpa: int) -> None:
        """Give back what :meth:`allocate` returned. Raises ValueError for another address, and at the second time."""
        with self._lock:
            size = self._used.pop(gpa, None)
            if size is None:
                raise ValueError(f"address {gpa:#x} was not allocated from this pool, or is free already")
            i = bisect_left(self._free, (gpa, 0))
            if i < len(self._free) and self._free[i][0] == gpa + size:
                size += self._free.pop(i)[1]
            if i and sum(self._free[i - 1]) == gpa:
                i -= 1
                gpa, before = self._free.pop(i)
                size += before
            insort(self._free, (gpa, size))

    @property
    def used(self) -> int:
        """Bytes that are handed out."""
        with self._lock:
            return sum(self._used.values())

    @property
    def left(self) -> int:
        """Bytes that are free, in however many pieces."""
        with self._lock:
            return sum(length for _, length in self._free)

    @property
    def allocations(self) -> dict[int, int]:
        """What is handed out: guest address to bytes."""
        with self._lock:
            return dict(self._used)

    def __repr__(self) -> str:
        return f"<DmaPool: {self.used} of {self.size} bytes at {self.gpa:#x} in use>"
