"""What a frontend says of a virtqueue, and where the queue then stands."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from virtio._bell import Bell
from virtio._device_queue import DeviceQueue
from virtio._memory import GuestMemory
from virtio.errors import MemoryFault, RingError, VhostUserError
from virtio.layout import QueueLayout
from virtio.vhost_user.inflight import InflightFile

log = logging.getLogger("virtio.vhost_user")

WRAP = 0x8000
DESC_SIZE = 16
USED_BYTE = 0x80  # in the last byte of a packed descriptor


@dataclass
class Ring:
    """One virtqueue of a connection. Addresses are the frontend's. The bells own its eventfds."""

    index: int
    size: int = 0
    desc: int = 0
    used: int = 0
    avail: int = 0
    placed: bool = False
    base: int = 0
    kick: Bell | None = None
    call: Bell | None = None
    error: Bell | None = None
    polled: bool = False  # no kicks come
    enabled: bool = False
    running: bool = False

    @property
    def complete(self) -> bool:
        """Whether all was said that it takes to run it."""
        return self.size > 0 and self.placed and (self.kick is not None or self.polled)

    def layout(self, memory: GuestMemory, packed: bool) -> QueueLayout:
        """Return where it lies in guest memory. Raises VhostUserError if that is nowhere, or cannot be."""
        sizes = (16, 4, 4) if packed else (16, 6, 6)
        try:
            desc, driver, device = (
                memory.uaddr_to_gpa(address, length)
                for address, length in zip((self.desc, self.avail, self.used), sizes, strict=True)
            )
            return QueueLayout(self.size, desc, driver, device, packed)
        except (MemoryFault, ValueError) as error:
            raise VhostUserError(f"ring {self.index} (size {self.size}): {error}") from None

    def queue(self, memory: GuestMemory, features: int, packed: bool, inflight: InflightFile | None) -> DeviceQueue:
        """Return the device end, standing where ``base`` says, or its region in ``inflight``. Raises VhostUserError."""
        layout = self.layout(memory, packed)
        try:
            state = DeviceQueue(memory, layout, features=features, index=self.index).state()
            state |= packed_position(self.base, memory, layout) if packed else split_position(self.base, memory, layout)
            queue = DeviceQueue.restore(memory, state)
            queue.far = True
            region = inflight and inflight.queue(self.index, packed)
            if region:
                queue.track(region)
                if region.waiting:
                    log.info("ring %d: %d chains that were in flight are done again", self.index, region.waiting)
            return queue
        except (MemoryFault, RingError, ValueError) as error:
            raise VhostUserError(f"ring {self.index}: {error}") from None


def split_position(base: int, memory: GuestMemory, layout: QueueLayout) -> dict[str, int]:
    """Return where a split ring stands: at used.idx, which the driver has seen, whatever ``base`` says.

    Base may be ahead of it by chains that a backend took and never gave back, since it was killed: they are still in
    the available ring, and are done again. DPDK's driver says 0 to whoever connects anew, and goes on.
    """
    if base > 0xFFFF:
        raise ValueError(f"base {base} (limit 65535)")
    used = memory.read_u16(layout.device + 2)
    if base != used:
        log.info("base %d of a ring whose used.idx is %d: it goes on from there", base, used)
    return {"next_avail": used, "next_used": used}


def packed_position(base: int, memory: GuestMemory, layout: QueueLayout) -> dict[str, int]:
    """Return where a packed ring stands of which everything before ``base`` is used.

    Bits 0-14 are the slot, bit 15 is the wrap counter; bits 16-31 would be the same for the used side, and many
    frontends leave them 0. User-mode Linux says 0 for a fresh ring, whose wrap counter is 1: that shows in the ring.
    After a lap there are descriptors with USED set, of that lap or of those that are available on the next.
    """
    slot, wrap = base & ~WRAP & 0xFFFF, bool(base & WRAP)
    if slot >= layout.size:
        raise ValueError(f"base {base:#x}: slot {slot} (queue size {layout.size})")
    if base == 0:
        flags = memory.read(layout.desc, layout.size * DESC_SIZE)[DESC_SIZE - 1 :: DESC_SIZE]
        wrap = not any(byte & USED_BYTE for byte in flags)
    return {"next_avail": slot, "next_used": slot, "avail_wrap": wrap, "used_wrap": wrap}


def base_of(queue: DeviceQueue) -> int:
    """Return what SET_VRING_BASE takes to go on where a queue stands."""
    state = queue.state()
    if not queue.layout.is_packed:
        return int(state["next_avail"])
    avail = state["next_avail"] | WRAP * bool(state["avail_wrap"])
    used = state["next_used"] | WRAP * bool(state["used_wrap"])
    return int(avail | used << 16)
