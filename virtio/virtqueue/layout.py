"""Where the three areas of a virtqueue lie in guest memory."""

from __future__ import annotations

from dataclasses import dataclass

QUEUE_SIZE_MAX = 32768
LEGACY_ALIGN = 4096


def _up(value: int, align: int) -> int:
    return (value + align - 1) & -align


@dataclass(frozen=True)
class QueueLayout:
    """Addresses of one virtqueue: guest-physical, in bytes.

    ``desc`` is the descriptor table (split) or ring (packed), ``driver`` the area that the driver writes (available
    ring; driver event suppression), ``device`` the one that the device writes (used ring; device event suppression).
    Source: VIRTIO 1.4, 2.7 and 2.8.

    Raises ValueError for a size outside 1..32768, a split size that is no power of two, or a misaligned area.
    """

    size: int
    desc: int
    driver: int
    device: int
    is_packed: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.size <= QUEUE_SIZE_MAX:
            raise ValueError(f"queue size {self.size} out of range (1 to {QUEUE_SIZE_MAX})")
        if not self.is_packed and self.size & (self.size - 1):
            raise ValueError(f"split queue size {self.size} is not a power of two")
        aligns = (16, 4, 4) if self.is_packed else (16, 2, 4)
        for name, align in zip(("desc", "driver", "device"), aligns, strict=True):
            address = getattr(self, name)
            if address < 0 or address >= 1 << 64:
                raise ValueError(f"{name} address {address:#x} is no 64-bit address")
            if address % align:
                raise ValueError(f"{name} address {address:#x} is not aligned to {align} bytes")

    @classmethod
    def split(cls, size: int, base: int) -> QueueLayout:
        """Lay out a split queue compactly from ``base`` (VIRTIO 1.4, 2.7): each area at its own minimum alignment."""
        driver = base + 16 * size
        return cls(size, base, driver, _up(driver + 6 + 2 * size, 4))

    @classmethod
    def legacy(cls, size: int, base: int, align: int = LEGACY_ALIGN) -> QueueLayout:
        """Lay out a split queue as legacy devices expect it (2.7.2): one block, the used ring at the next ``align``.

        ``align`` is 4096 on PCI and a power of two given by the driver on MMIO; ``base`` must be a multiple of it.
        """
        if align < 4 or align & (align - 1):
            raise ValueError(f"queue alignment {align} is not a power of two of at least 4")
        if base % align:
            raise ValueError(f"base address {base:#x} is not aligned to {align} bytes")
        driver = base + 16 * size
        return cls(size, base, driver, _up(driver + 6 + 2 * size, align))

    @classmethod
    def packed(cls, size: int, base: int) -> QueueLayout:
        """Lay out a packed queue from ``base`` (2.8): the ring, then the two event suppression words."""
        driver = base + 16 * size
        return cls(size, base, driver, driver + 4, True)

    @property
    def areas(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """(address, bytes) of descriptor, driver and device area, event indices included."""
        if self.is_packed:
            return (self.desc, 16 * self.size), (self.driver, 4), (self.device, 4)
        return (self.desc, 16 * self.size), (self.driver, 6 + 2 * self.size), (self.device, 6 + 8 * self.size)

    @property
    def end(self) -> int:
        """First address after the last area."""
        return max(address + length for address, length in self.areas)
