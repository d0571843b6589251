"""vtnet: the network driver, FreeBSD's if_vtnet as a library."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import Buffer

from virtio._bell import Bell
from virtio._vtnet_pool import Pool, pool_size
from virtio._vtnet_receive import Received, VtnetReceive
from virtio._vtnet_transmit import VtnetTransmit
from virtio.constants import DeviceType, Feature
from virtio.constants import NetFeature as Net
from virtio.dma import DmaPool
from virtio.driver import AttachedQueue, Driver, QueuePlan, Transport
from virtio.errors import ConfigError
from virtio.features import Features, parse
from virtio.offload import NetHeader
from virtio.pci.attach import register_driver

if TYPE_CHECKING:
    from virtio.net.pump import Pump

FRAME_MAX = 65589  # bytes of the largest frame that a device may merge (VIRTIO 1.4, 5.1.9.3)
ETHERNET = 14
VLAN_TAGS = 8  # two of them
MTU_MIN, MTU_MAX = 68, 65535
MTU_DEFAULT = 1500
PAIRS_MAX = 0x8000

GUEST_SEGMENTATION = Net.GUEST_TSO4 | Net.GUEST_TSO6 | Net.GUEST_ECN | Net.GUEST_UFO | Net.GUEST_USO4 | Net.GUEST_USO6
HOST_SEGMENTATION = Net.HOST_TSO4 | Net.HOST_TSO6 | Net.HOST_ECN | Net.HOST_UFO | Net.HOST_USO

WANTED = int(
    Net.MAC
    | Net.STATUS
    | Net.MTU
    | Net.CSUM
    | Net.GUEST_CSUM
    | HOST_SEGMENTATION
    | GUEST_SEGMENTATION
    | Net.GSO
    | Net.MRG_RXBUF
    | Net.CTRL_VQ
    | Net.CTRL_RX
    | Net.CTRL_RX_EXTRA
    | Net.CTRL_VLAN
    | Net.CTRL_MAC_ADDR
    | Net.CTRL_GUEST_OFFLOADS
    | Net.GUEST_ANNOUNCE
    | Net.MQ
    | Net.SPEED_DUPLEX
) | int(Feature.INDIRECT_DESC | Feature.EVENT_IDX | Feature.ANY_LAYOUT | Feature.VERSION_1 | Feature.RING_RESET)

# the configuration (5.1.4)
MAC_AT, STATUS_AT, PAIRS_AT, MTU_AT, SPEED_AT, DUPLEX_AT = 0, 6, 8, 10, 12, 16
LINK_UP, ANNOUNCE = 1, 2


@dataclass
class QueuePair:
    """The two queues of one pair, and the guest memory of their buffers."""

    receive: VtnetReceive
    transmit: VtnetTransmit
    allocated: list[int]


class Vtnet(Driver):
    """A network interface over a virtio-net device.

    ``transport`` is the way to the device, ``pool`` the guest memory that the driver may use. ``want`` and ``refuse``
    are features, bits or names, to ask for besides the usual ones and not to accept. ``pairs`` is how many queue pairs
    to use, where the device has as many; ``queue_size`` limits descriptors. ``lro`` says who merges received TCP
    segments: "device" (GUEST_TSO), or nobody (None). ``mtu`` is that of the interface, for the size of buffers, unless
    the device says one; ``rx_buffer`` is the size of receive buffers where they are mergeable.

    Control calls (attach, detach, up, down, ...) wait for each other; the queues have locks of their own, one each, and
    transmit and receive of one pair share none. Source: VIRTIO 1.4, 5.1; FreeBSD's if_vtnet(4).
    """

    device_type: ClassVar[int] = DeviceType.NET
    wanted: int = WANTED

    def __init__(
        self,
        transport: Transport,
        pool: DmaPool,
        *,
        want: Features = 0,
        refuse: Features = 0,
        pairs: int = 1,
        queue_size: int = 0,
        mtu: int = MTU_DEFAULT,
        lro: Literal["device"] | None = "device",
        rx_buffer: int | None = None,
        timeout: float = 1.0,
        clamp_used_len: bool = False,
    ) -> None:
        if not 1 <= pairs <= PAIRS_MAX:
            raise ConfigError(f"{pairs} queue pairs (1 to {PAIRS_MAX})")
        if not MTU_MIN <= mtu <= MTU_MAX:
            raise ConfigError(f"MTU {mtu} out of range ({MTU_MIN} to {MTU_MAX})")
        wanted = (WANTED | parse(want, self.device_type)) & ~parse(refuse, self.device_type)
        if lro != "device":
            wanted &= ~int(GUEST_SEGMENTATION)
        super().__init__(transport, pool, wanted=wanted, timeout=timeout, clamp_used_len=clamp_used_len)
        self.pairs_wanted = pairs
        self.queue_size = queue_size
        self.mtu = mtu
        self.rx_buffer = rx_buffer
        self.pairs: list[QueuePair] = []
        self.pumps: list[Pump] = []
        self._lock = threading.RLock()

    # ---- what the device says ----

    @property
    def mac(self) -> bytes:
        """The MAC address: the device's, or zeros if it has none (no MAC feature)."""
        return self.read_config(MAC_AT, 6) if self.features & Net.MAC else bytes(6)

    @property
    def link_up(self) -> bool:
        """Whether the link is up; always, for a device that does not say (no STATUS feature)."""
        return not self.features & Net.STATUS or bool(self.config(STATUS_AT, 2) & LINK_UP)

    @property
    def max_pairs(self) -> int:
        """Queue pairs that the device has."""
        return self.config_within("max_virtqueue_pairs", PAIRS_AT, 2, 1, PAIRS_MAX) if self.features & Net.MQ else 1

    # ---- hooks of Driver ----

    def adjust(self, features: int) -> int:
        """Leave what the device's configuration makes no sense of, as FreeBSD does."""
        if features & Net.MTU and not MTU_MIN <= self.config(MTU_AT, 2) <= MTU_MAX:
            features &= ~int(Net.MTU)
        if features & Net.MQ and not 1 <= self.config(PAIRS_AT, 2) <= PAIRS_MAX:
            features &= ~int(Net.MQ)
        if features & Net.GSO and not features & Net.CSUM:  # it stands for TSO, and there is none without a checksum
            features &= ~int(Net.GSO)
        return features

    def plan_queues(self) -> Sequence[QueuePlan]:
        """One receive and one transmit queue for each pair; the control queue behind all that the device has (5.1.2)."""
        if self.features & Net.MTU:
            self.mtu = self.config(MTU_AT, 2)
        plans = []
        for i in range(min(self.pairs_wanted, self.max_pairs)):
            plans.append(QueuePlan(2 * i, f"receive {i}", self.queue_size, segments=2))
            plans.append(QueuePlan(2 * i + 1, f"transmit {i}", self.queue_size, segments=4))
        return plans

    def ready(self) -> None:
        """Make the queues' buffers, or take them up again after a reset, and fill the receive queues."""
        if not self.pairs:
            for i in range(len(self.queues) // 2):
                self.pairs.append(self._make_pair(self.queues[2 * i], self.queues[2 * i + 1]))
        else:
            for pair in self.pairs:
                pair.receive.forget()
                pair.transmit.forget()
        for pair in self.pairs:
            pair.receive.fill()
        for pump in self.pumps:
            pump.resume()

    def stopping(self) -> None:
        """Nothing works the queues when this returns."""
        for pump in self.pumps:
            pump.pause()

    # ---- buffers ----

    def _pool(self, room: int, count: int, allocated: list[int]) -> Pool:
        gpa = self.pool.allocate(pool_size(room, count))
        allocated.append(gpa)
        return Pool(self.memory, gpa, room, count)

    def _make_pair(self, rx: AttachedQueue, tx: AttachedQueue) -> QueuePair:
        allocated: list[int] = []
        frame = self.mtu + ETHERNET + VLAN_TAGS
        small = max(2048, frame)
        merged = bool(self.features & GUEST_SEGMENTATION)
        frame_max = FRAME_MAX if merged else frame
        mergeable = bool(self.features & Net.MRG_RXBUF)
        room = (self.rx_buffer or (4096 if merged else small)) if mergeable else frame_max
        size = tx.queue.size
        large = None
        if self.features & (HOST_SEGMENTATION | Net.GSO):
            large = self._pool(FRAME_MAX, min(size, 64), allocated)
        transmit = VtnetTransmit(
            tx.queue, tx.kick, tx.interrupt, self._pool(small, size, allocated), large, features=self.features
        )
        receive = VtnetReceive(
            rx.queue,
            rx.kick,
            rx.interrupt,
            self._pool(room, rx.queue.size, allocated),
            features=self.features,
            frame_max=frame_max,
        )
        return QueuePair(receive, transmit, allocated)

    def _free_pairs(self) -> None:
        for pair in self.pairs:
            for gpa in pair.allocated:
                self.pool.free(gpa)
        self.pairs = []

    # ---- control ----

    def attach(self) -> None:
        """Bring the device up; see :meth:`virtio.driver.Driver.attach`."""
        with self._lock:
            super().attach()

    def detach(self, *, force: bool = False) -> None:
        """Stop the device and give everything back; see :meth:`virtio.driver.Driver.detach`."""
        with self._lock:
            super().detach(force=force)
            self._free_pairs()

    def down(self) -> None:
        """Stop: what is in the queues is lost. Queues and features are kept, for :meth:`up`."""
        with self._lock:
            self.stop()

    def up(self) -> None:
        """Start again after :meth:`down`, or from anew if it was not attached."""
        with self._lock:
            if not self.queues:
                super().attach()
            elif not self.attached:
                self.reinit()

    # ---- traffic ----

    def transmit(
        self,
        frames: Sequence[Buffer] | Buffer,
        *,
        queue: int = 0,
        checksum: bool = False,
        mss: int = 0,
        layer: Literal["inner", "outer"] | None = None,
        headers: NetHeader | Iterable[NetHeader | None] | None = None,
        offsets: Sequence[int] | Buffer | None = None,
    ) -> int:
        """Send Ethernet frames; return how many were taken, in order: fewer than given when the queue is full.

        ``frames`` is a sequence of buffers; or, with ``offsets`` (n + 1 rising numbers), one buffer in which frame i is
        ``frames[offsets[i]:offsets[i + 1]]``. They are copied into the queue's buffers; a view that :meth:`buffers` gave
        is sent from where it is.

        With ``checksum`` the transport checksum of each frame is computed, and with ``mss`` (1 to 65535) one of more
        payload is cut into segments of so many bytes: by the device where that was negotiated, otherwise here.
        ``layer`` says whose of a tunnel, as for :func:`virtio.offload.prepare_transmit`. Or ``headers`` say what is to
        be done, one for all or one (or None) for each. A frame that cannot be sent so is dropped and counted; it counts
        as taken.

        Raises ValueError for a queue or arguments out of range, TypeError for what is no frame.
        """
        return self.pairs[queue].transmit.transmit(
            frames, checksum=checksum, mss=mss, layer=layer, headers=headers, offsets=offsets
        )

    def buffers(self, n: int, length: int = 0, *, queue: int = 0) -> list[memoryview]:
        """Return up to ``n`` free transmit buffers of a queue, to be filled, and sent without a copy.

        Each is a writable memoryview of ``length`` bytes (0: as many as it takes); give :meth:`transmit` it, or a slice
        from its first byte on. What was not sent goes back when the view is released or forgotten; what was sent, when
        the device is done with it and the view is gone too. Do not write to it in between.
        """
        return self.pairs[queue].transmit.buffers(n, length)

    def receive(self, limit: int = 64, *, queue: int = 0, complete: bool = True) -> list[bytes]:
        """Take up to ``limit`` frames that wait; return them as a list of bytes.

        Of a frame whose checksum the device left undone (NEEDS_CSUM), it is computed, unless ``complete`` is False.
        """
        return self.pairs[queue].receive.receive(limit, complete=complete)

    def receive_info(
        self, limit: int = 64, *, queue: int = 0, complete: bool = True
    ) -> tuple[list[bytes], Received]:
        """:meth:`receive`; and what the device said of each frame, in the same order.

        That is a :class:`virtio.net.ReceivedFrame`: ``verdict`` (what the checksum is worth, as
        :func:`virtio.offload.classify_receive` says it), ``reason``, ``segments`` (that the device made it of) and
        ``header``. It is also a buffer of records of 32 bytes.
        """
        return self.pairs[queue].receive.receive(limit, info=True, complete=complete)

    def receive_views(
        self, limit: int = 64, *, queue: int = 0, complete: bool = True
    ) -> list[tuple[memoryview, ...]]:
        """Take up to ``limit`` frames that wait, without a copy: each is a tuple of memoryviews, one a buffer.

        A buffer goes back to the queue once its view is released (``view.release()``) or forgotten, at the next call on
        the queue. Who keeps them all receives nothing more.
        """
        return self.pairs[queue].receive.receive_views(limit, complete=complete)

    def interrupt(self, queue: int = 0) -> Bell | None:
        """Return the bell that the device rings for a receive queue, after :meth:`VtnetReceive.arm`."""
        return self.pairs[queue].receive.interrupt


register_driver(DeviceType.NET, Vtnet)
