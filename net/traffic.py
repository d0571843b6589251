"""Frames in and out of a network driver: the part of vtnet that programs call for each burst."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

from virtio.errors import ConfigError, DeviceBroken
from virtio.offload import NetHeader, Toeplitz
from virtio.vtnet.received import Received
from virtio.vtnet.rxq import VtnetReceive
from virtio.vtnet.txq import VtnetTransmit, transmit_by_flow

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

# Microsoft's key of RSS: any will do for choosing a queue
_TOEPLITZ = Toeplitz(bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"))


@dataclass
class QueuePair:
    """The two queues of one pair, and the guest memory of their buffers."""

    receive: VtnetReceive
    transmit: VtnetTransmit
    allocated: list[int] = field(default_factory=list)
    completions: int = 0  # of the transmit queue, when it was last seen to move,
    moved: float = 0.0  # and when that was


class Traffic:
    """What :class:`virtio.net.Vtnet` does with frames, once it is attached. Any thread may call."""

    pairs: list[QueuePair]
    active_pairs: int

    def pair(self, queue: int) -> QueuePair:
        """Return a queue pair that is in use; IndexError if there is none, ConfigError if the nic is not up."""
        pairs = self.pairs[: self.active_pairs]
        if 0 <= queue < len(pairs):
            return pairs[queue]
        if not pairs:
            raise ConfigError("the nic is not up: attach() or up() comes first")
        raise IndexError(f"queue pair {queue} out of range (0 to {len(pairs) - 1})")

    def transmit(
        self,
        frames: Sequence[Buffer] | Buffer,
        *,
        queue: int | None = None,
        checksum: bool = False,
        mss: int = 0,
        layer: Literal["inner", "outer"] | None = None,
        headers: NetHeader | Iterable[NetHeader | None] | None = None,
        offsets: Sequence[int] | Buffer | None = None,
    ) -> int:
        """Send Ethernet frames; return how many were taken, in order: fewer than given when the queue is full.

        ``frames`` is a sequence of buffers; or, with ``offsets`` (n + 1 rising numbers), one buffer in which frame i is
        ``frames[offsets[i]:offsets[i + 1]]``. They are copied into the queue's buffers; a view that :meth:`buffers`
        gave is sent from where it is.

        With ``checksum`` the transport checksum of each frame is computed, and with ``mss`` (1 to 65535) one of more
        payload is cut into segments of so many bytes: by the device where that was negotiated, otherwise here.
        ``layer`` says whose of a tunnel, as for :func:`virtio.offload.prepare_transmit`. Or ``headers`` say what is to
        be done, one for all or one (or None) for each. A frame that cannot be sent so is dropped and counted; it counts
        as taken.

        ``queue`` is the pair to use; None: each frame goes by the one that its flow belongs to (a hash of addresses and
        ports), so that flows stay in order.

        Raises DeviceBroken if the device broke the queue, ValueError for arguments out of range, TypeError for what is
        no frame, IndexError for a pair that is not in use, ConfigError if the nic is not up.
        """
        if queue is None and self.active_pairs > 1:
            return transmit_by_flow(
                [pair.transmit for pair in self.pairs[: self.active_pairs]],
                _TOEPLITZ,
                frames,
                checksum=checksum,
                mss=mss,
                layer=layer,
                headers=headers,
                offsets=offsets,
            )
        return self.pair(queue or 0).transmit.transmit(
            frames, checksum=checksum, mss=mss, layer=layer, headers=headers, offsets=offsets
        )

    def buffers(self, n: int, length: int = 0, *, queue: int = 0) -> list[memoryview]:
        """Return up to ``n`` free transmit buffers of a queue, to be filled, and sent without a copy.

        Each is a writable memoryview of ``length`` bytes (0: as many as it takes); give :meth:`transmit` it, or a slice
        from its first byte on, with the same ``queue``. What was not sent goes back when the view is released or
        forgotten; what was sent, when the device is done with it and the view is gone too. Do not write to it in
        between.
        """
        return self.pair(queue).transmit.buffers(n, length)

    def receive(self, limit: int = 64, *, queue: int | None = None, complete: bool = True) -> list[bytes]:
        """Take up to ``limit`` frames that wait; return them as a list of bytes.

        Of a frame whose checksum the device left undone (NEEDS_CSUM), it is computed, unless ``complete`` is False.
        Lengths of 0 or of one segment in a frame with a gso_type become the frame's, on the same condition.
        ``queue`` is the pair to look at; None: all, in turn. Raises DeviceBroken if the device broke the queue.
        """
        if queue is not None or len(self.pairs) == 1:
            return self.pair(queue or 0).receive.receive(limit, complete=complete)
        return self._of_all(limit, lambda queue, left: queue.receive(left, complete=complete))

    def receive_info(self, limit: int = 64, *, queue: int = 0, complete: bool = True) -> tuple[list[bytes], Received]:
        """:meth:`receive` from one pair; and what the device said of each frame, in the same order.

        That is a :class:`virtio.net.ReceivedFrame`: ``verdict`` (what the checksum is worth, as
        :func:`virtio.offload.classify_receive` says it), ``reason``, ``segments`` (that the device made it of) and
        ``header``. It is also a buffer of records of 32 bytes.
        """
        return self.pair(queue).receive.receive(limit, info=True, complete=complete)

    def receive_views(
        self, limit: int = 64, *, queue: int | None = None, complete: bool = True
    ) -> list[tuple[memoryview, ...]]:
        """Take up to ``limit`` frames that wait, without a copy: each is a tuple of memoryviews, one a buffer.

        A buffer goes back to the queue once its view is released (``view.release()``) or forgotten, at the next call on
        the queue. Who keeps them all receives nothing more.
        """
        if queue is not None or len(self.pairs) == 1:
            return self.pair(queue or 0).receive.receive_views(limit, complete=complete)
        return self._of_all(limit, lambda queue, left: queue.receive_views(left, complete=complete))

    def _of_all(self, limit: int, take: Callable[[VtnetReceive, int], list[T]]) -> list[T]:
        """Take from every pair; a broken one is told of only if the others have nothing."""
        frames: list[T] = []
        trouble: DeviceBroken | None = None
        for pair in self.pairs:
            if len(frames) < limit:
                try:
                    frames += take(pair.receive, limit - len(frames))
                except DeviceBroken as error:
                    trouble = trouble or error
        if trouble is not None and not frames:
            raise trouble
        return frames

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until a frame waits to be received; False if none came within ``timeout`` seconds.

        For a nic that no pump works. Raises DeviceBroken if there is no interrupt to wait for.
        """
        bells = [pair.receive.interrupt for pair in self.pairs]
        poll = select.poll()
        for bell in bells:
            if bell is None:
                raise DeviceBroken("the device has no interrupt for a receive queue")
            poll.register(bell.fileno(), select.POLLIN)
            bell.answer()
        try:
            waiting = [pair.receive.arm() for pair in self.pairs]
            if any(waiting):
                return True
            return bool(poll.poll(None if timeout is None else timeout * 1000))
        finally:
            for pair in self.pairs:
                pair.receive.disarm()
