"""A virtqueue as a frontend describes it: the messages about it, their checks, and where its queue then stands.

Size, addresses and base of a ring come by messages of their own. What reads guest memory is checked at SET_VRING_KICK,
which starts the ring (vring_start.py): :meth:`Ring.layout` checks the addresses.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from virtio.core.logs import limited
from virtio.errors import MemoryFault, RingError, VhostUserError
from virtio.event.notifier import Bell
from virtio.memory.guest_memory import GuestMemory
from virtio.vhost_user.descriptors import make_write_only
from virtio.vhost_user.inflight import InflightFile
from virtio.vhost_user.message import ADDRESS, INDEX_MASK, NO_FD, STATE, Message
from virtio.virtqueue.device_queue import DeviceQueue
from virtio.virtqueue.layout import QUEUE_SIZE_MAX, QueueLayout

if TYPE_CHECKING:
    from virtio.vhost_user.backend import Backend

log = limited("virtio.vhost_user")

WRAP = 0x8000
DESC_SIZE = 16
AVAIL_BYTE = USED_BYTE = 0x80  # in the last two bytes of a packed descriptor
EVENTFD = "anon_inode:[eventfd]"
SOCKETS = ("socket:", "pipe:")  # that may stand for an eventfd: user-mode Linux is called by a socket


@dataclass
class Ring:
    """One virtqueue of a connection to the server ``name``. Addresses are the frontend's. The bells own its eventfds.

    ``stood``: of a split ring that was stopped, the ``base`` that the frontend was told, and used.idx. ``waiting``: it
    was started, and stands still until its memory is there. ``stalled``: so is a chain's, and the log says it.
    ``watched``: the bell whose rings the connection reads.
    """

    index: int
    name: str
    size: int = 0
    desc: int = 0
    used: int = 0
    avail: int = 0
    placed: bool = False
    base: int = 0
    stood: tuple[int, int] | None = None
    kick: Bell | None = None
    call: Bell | None = None
    error: Bell | None = None
    polled: bool = False  # no kicks come
    enabled: bool = False
    running: bool = False
    waiting: bool = False
    stalled: bool = False
    watched: Bell | None = None

    @property
    def complete(self) -> bool:
        """Whether size and addresses are set."""
        return self.size > 0 and self.placed

    def is_away(self, memory: GuestMemory) -> bool:
        """Say whether a part of it begins in no region. One that begins in a region and ends outside cannot be."""
        try:
            for address in (self.desc, self.avail, self.used):
                memory.uaddr_to_gpa(address)
        except MemoryFault:
            return True
        return False

    def layout(self, memory: GuestMemory, packed: bool) -> QueueLayout:
        """Return where it lies in guest memory. Raises VhostUserError for addresses that are nowhere, or cannot be."""
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
            region = inflight and inflight.queue(self.index, self.size, packed)
            # event_word and used_flags as they lie there, of another device or in memory that was not cleared: the
            # queue then stores its own, where they differ
            if packed:
                state |= packed_position(self.base, memory, layout, both=not region)
                state["event_word"] = memory.read_u32(layout.device)
            else:
                stood = None if region else self.stood
                state |= split_position(self.base, memory, layout, stood, self.name, self.index)
                state["used_flags"] = memory.read_u16(layout.device)
                memory.write_u16(layout.device + 2, state["next_used"])
            queue = DeviceQueue.restore(memory, state)
            queue.far = True
            if region:
                queue.track(region)
                if region.waiting:
                    log.info(
                        "%s: ring %d: %d chains that were in flight are done again",
                        self.name, self.index, region.waiting,
                    )  # fmt: skip
            return queue
        except (MemoryFault, RingError, ValueError) as error:
            raise VhostUserError(f"ring {self.index}: {error}") from None

    def stopped_at(self, state: Mapping[str, Any], packed: bool) -> None:
        """Take note of where its queue stood when it was stopped."""
        self.base = base_of(state, packed)
        self.stood = None if packed else (self.base, state["next_used"])


def split_position(
    base: int, memory: GuestMemory, layout: QueueLayout, stood: tuple[int, int] | None, name: str, index: int
) -> dict[str, int]:
    """Return where a split ring stands: at used.idx, which the driver has seen, whatever ``base`` says.

    The log says it, as of ring ``index`` of the server ``name``, if that is not where ``base`` is.

    A backend that stops in order leaves nothing between the two. Base may be ahead of used.idx by chains that one took
    and never gave back, since it was killed: they are still in the available ring, and are done again. DPDK's driver
    says 0 to whoever connects anew, and goes on. Only what this connection was told itself (``stood``) counts before
    used.idx: what lies between, the device has kept, and what is in the available ring there may be done already.

    If more chains than the ring holds would wait behind used.idx, but not behind ``base``, base counts: a guest was
    booted again, and used.idx lies in memory that it did not clear.
    """
    if base > 0xFFFF:
        raise ValueError(f"base {base} (limit 65535)")
    used, avail = memory.read_u16(layout.device + 2), memory.read_u16(layout.driver + 2)
    if avail - used & 0xFFFF > layout.size >= avail - base & 0xFFFF:
        log.info(
            "%s: ring %d has used.idx %d and avail.idx %d: it goes on from base %d", name, index, used, avail, base
        )
        used = base
    if (base, used) == stood:
        return {"next_avail": base, "next_used": used, "lost": base - used & 0xFFFF}
    if base != used:
        log.info("%s: ring %d has base %d and used.idx %d: it goes on from there", name, index, base, used)
    return {"next_avail": used, "next_used": used}


def packed_position(base: int, memory: GuestMemory, layout: QueueLayout, *, both: bool = True) -> dict[str, int]:
    """Return where a packed ring stands: bits 0-14 are the next slot to pop, bit 15 its wrap counter.

    Bits 16-31 (if ``both`` are asked for) are the same for the next one to use. What lies between the two, somebody
    popped who worked the ring before; it does not come back. A frontend may leave them 0, which may also be slot 0 of a
    lap, whose descriptor was then made available on that lap and is not used yet. User-mode Linux says 0 for a fresh
    ring, whose wrap counter is 1: that shows in the ring. After a lap there are descriptors with USED set, of that lap
    or of those that are available on the next.
    """
    slot, wrap = base & ~WRAP & 0xFFFF, bool(base & WRAP)
    used, used_wrap = base >> 16 & ~WRAP, bool(base >> 16 & WRAP)
    for what in (slot, used):
        if what >= layout.size:
            raise ValueError(f"base {base:#x}: slot {what} (queue size {layout.size})")
    ring = memory.read(layout.desc, layout.size * DESC_SIZE)
    if base == 0:
        wrap = not any(byte & USED_BYTE for byte in ring[DESC_SIZE - 1 :: DESC_SIZE])
    lost = slot - used + layout.size * (wrap != used_wrap)
    given = base >> 16 or (ring[DESC_SIZE - 1] & USED_BYTE and not ring[DESC_SIZE - 2] & AVAIL_BYTE)
    if not both or not base or not given or not 0 <= lost < layout.size:  # if it were all, the ring could not move
        used, used_wrap, lost = slot, wrap, 0
    return {"next_avail": slot, "next_used": used, "avail_wrap": wrap, "used_wrap": used_wrap, "lost": lost}


def base_of(state: Mapping[str, Any], packed: bool) -> int:
    """Return what SET_VRING_BASE takes to go on where a queue stands."""
    if not packed:
        return int(state["next_avail"])
    avail = state["next_avail"] | WRAP * bool(state["avail_wrap"])
    used = state["next_used"] | WRAP * bool(state["used_wrap"])
    return int(avail | used << 16)


# ---- the ring of a message, and what rows of the table in dispatch.py check of it ----


def ring_at(backend: Backend, index: int) -> Ring:
    """Return the ring of an index. Raises VhostUserError if there is none."""
    rings = backend.rings.rings
    if index >= len(rings):
        raise VhostUserError(f"ring {index} out of range ({len(rings)} rings)")
    return rings[index]


def ring_of(backend: Backend, message: Message) -> Ring:
    """Return the ring of SET_VRING_KICK, _CALL or _ERR, whose payload is index and NO_FD."""
    return ring_at(backend, message.number() & INDEX_MASK)


def sized_and_placed(backend: Backend, message: Message) -> None:
    """Raise VhostUserError unless the ring of SET_VRING_KICK has size and addresses."""
    ring = ring_of(backend, message)
    if not ring.complete:
        raise VhostUserError(f"ring {ring.index} is kicked before its size and addresses are set")


def eventfd(backend: Backend, message: Message) -> None:
    """Raise VhostUserError unless one eventfd came, or NO_FD."""
    _one_bell(ring_of(backend, message), message, ())


def eventfd_or_socket(backend: Backend, message: Message) -> None:
    """Raise VhostUserError unless one eventfd, socket or pipe came, or NO_FD."""
    _one_bell(ring_of(backend, message), message, SOCKETS)


def _one_bell(ring: Ring, message: Message, others: tuple[str, ...]) -> None:
    if message.number() & NO_FD:
        return
    if len(message.fds) != 1:
        raise VhostUserError(f"{message.name} of ring {ring.index} has {len(message.fds)} file descriptors (1)")
    what = kind_of(message.fds[0])
    if what != EVENTFD and not what.startswith(others):
        raise VhostUserError(f"{message.name} of ring {ring.index} has {what}, which is no eventfd")


def kind_of(fd: int) -> str:
    """Return what a file descriptor is of, as the kernel shows it."""
    return os.readlink(f"/proc/self/fd/{fd}")


# ---- handlers ----

# User-mode Linux says the next three of rings that run, when its driver is bound again: it never stops any. QEMU says
# the same addresses again, and nothing else, to have a ring logged.


def set_vring_num(backend: Backend, message: Message) -> None:
    """SET_VRING_NUM: the ring's size. The device's queue_size is not its limit: the frontend is not told that."""
    index, size = message.unpack(STATE)
    ring = ring_at(backend, index)
    if not 1 <= size <= QUEUE_SIZE_MAX:
        raise VhostUserError(f"{message.name}: size {size} of ring {index} out of range (1 to {QUEUE_SIZE_MAX})")
    backend.rings.halt(ring)
    ring.size = size


def set_vring_addr(backend: Backend, message: Message) -> None:
    """SET_VRING_ADDR: the frontend's addresses of the ring. :meth:`Ring.layout` checks them when it starts."""
    index, _, desc, used, avail, _ = message.unpack(ADDRESS)
    ring = ring_at(backend, index)
    if ring.placed and (ring.desc, ring.used, ring.avail) == (desc, used, avail):
        return
    backend.rings.halt(ring)
    ring.desc, ring.used, ring.avail, ring.placed, ring.stood = desc, used, avail, True, None


def set_vring_base(backend: Backend, message: Message) -> None:
    """SET_VRING_BASE: where the ring stands. Checked when it starts."""
    index, base = message.unpack(STATE)
    ring = ring_at(backend, index)
    backend.rings.halt(ring)
    ring.base = base


def get_vring_base(backend: Backend, message: Message) -> bytes:
    """GET_VRING_BASE: stops the ring, drained; returns where it stands."""
    index, _ = message.unpack(STATE)
    ring = ring_at(backend, index)
    backend.rings.end(ring)
    ring.kick, ring.polled = None, False
    return STATE.pack(index, ring.base)


def set_vring_kick(backend: Backend, message: Message) -> None:
    """SET_VRING_KICK: starts the ring; without an eventfd it is polled."""
    ring = ring_of(backend, message)
    bell = _bell(ring, message)
    backend.rings.end(ring)
    ring.kick, ring.polled = bell, bell is None
    backend.rings.start(ring)


def set_vring_call(backend: Backend, message: Message) -> None:
    """SET_VRING_CALL: what interrupts the driver."""
    ring = ring_of(backend, message)
    ring.call = _bell(ring, message)
    backend.device.set_call(ring.index, ring.call or backend.rings.silent)
    if ring.running:  # whoever has the new one may have missed what the last one was rung for
        backend.device.interrupt(ring.index)


def set_vring_err(backend: Backend, message: Message) -> None:
    """SET_VRING_ERR: what is rung when the ring breaks."""
    ring = ring_of(backend, message)
    ring.error = _bell(ring, message)
    if ring.error is not None and backend.device.queues[ring.index].broken is not None:
        ring.error.ring()


def set_vring_enable(backend: Backend, message: Message) -> None:
    """SET_VRING_ENABLE: 0 mutes the ring, 1 does not."""
    index, enabled = message.unpack(STATE)
    if enabled > 1:
        raise VhostUserError(f"{message.name}: {enabled} is neither 0 nor 1")
    backend.rings.enable(ring_at(backend, index), bool(enabled))


def _bell(ring: Ring, message: Message) -> Bell | None:
    """Return a bell over the descriptor that came; None: NO_FD."""
    if message.number() & NO_FD:
        return None
    if kind_of(message.fds[0]).startswith("socket:"):
        make_write_only(message.fds[0], f"{message.name} of ring {ring.index}")
    os.set_blocking(message.fds[0], False)  # neither side may keep the other waiting
    return Bell(message.take(), own=True)
