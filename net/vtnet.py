"""vtnet: the network driver, FreeBSD's if_vtnet as a library."""

from __future__ import annotations

import secrets
import struct
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from virtio.constants import DeviceType, Feature
from virtio.constants import NetFeature as Net
from virtio.core.logs import limited
from virtio.core.process import ForkAwareLock, Origin
from virtio.core.weak import weakly
from virtio.driver import AttachedQueue, Driver, QueuePlan, Transport
from virtio.driver.registry import register_driver
from virtio.errors import ConfigError, DeviceBroken
from virtio.features import Features, parse
from virtio.memory.dma import DmaPool
from virtio.net.ctrl_driver import Ack, ControlQueue
from virtio.net.filter import ADDR_SET, MAC, ReceiveFilter, check_mac
from virtio.net.rarp import reverse_arp
from virtio.net.traffic import QueuePair, Traffic
from virtio.virtqueue.layout import QUEUE_SIZE_MAX
from virtio.vtnet.pool import Pool, pool_size
from virtio.vtnet.rxq import VtnetReceive
from virtio.vtnet.txq import VtnetTransmit

if TYPE_CHECKING:
    from virtio.net.pump import Pump

log = limited("virtio.vtnet")
FRAME_MAX = 65589  # bytes of the largest frame that a device may merge (VIRTIO 1.4, 5.1.9.3)
ETHERNET = 14
VLAN_TAGS = 8  # two of them
MTU_MIN, MTU_MAX = 68, 65535
MTU_DEFAULT = 1500
PAIRS_MAX = 0x8000
RX_BUFFER_MIN = 64

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

# classes of control commands besides those of the filter (5.1.9.5)
CTRL_ANNOUNCE, CTRL_MQ, CTRL_OFFLOADS = 3, 4, 5

WATCHDOG = 5.0  # seconds without a completion until a transmit queue is taken for stuck: FreeBSD's VTNET_TX_TIMEOUT


class Vtnet(Traffic, Driver):
    """A network interface over a virtio-net device.

    ``transport`` is the way to the device, ``pool`` the guest memory that the driver may use. ``want`` and ``refuse``
    are features, bits or names, to ask for besides the usual ones and not to accept. ``pairs`` is how many queue pairs
    to use, where the device has as many; ``queue_size`` limits descriptors (1 to 32768; 0: as many as the device has,
    as always over legacy PCI, which cannot say). ``lro`` says who merges received TCP
    segments: "device" (GUEST_TSO), this driver ("software"), or nobody (None). ``mtu`` is that of the interface, for
    the size of buffers, unless the device says one; ``rx_buffer`` is the size of receive buffers where they are
    mergeable. ``watchdog`` is how long, in seconds, a transmit queue may stand still with frames in it until
    :meth:`tick` resets the device. ``idle`` is called while the device is waited for, if it is polled on this very
    thread.

    ``on_link``, unless None, is called with a bool by :meth:`tick` when the link went up or down.

    What the device has sent is taken back at the next burst that needs room; by :meth:`tick`; and with a pump within
    64 ms. No interrupt tells of it, with or without EVENT_IDX; NOTIFY_ON_EMPTY, which is not asked for unless in
    ``want``, makes the device send one each time that it has emptied the ring. Control calls (attach, detach, up,
    down, tick, ...) wait for each other; the queues have locks of their own, one each, and transmit and receive of one
    pair share none. A queue that the device has broken raises :class:`virtio.errors.DeviceBroken` where it is used,
    the others go on; :meth:`reset` heals it.

    Source: VIRTIO 1.4, 5.1; FreeBSD's if_vtnet(4).
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
        lro: Literal["device", "software"] | None = "device",
        rx_buffer: int | None = None,
        watchdog: float = WATCHDOG,
        timeout: float = 1.0,
        clamp_used_len: bool = False,
        idle: Callable[[], object] | None = None,
    ) -> None:
        if not 1 <= pairs <= PAIRS_MAX:
            raise ConfigError(f"{pairs} queue pairs (1 to {PAIRS_MAX})")
        if not MTU_MIN <= mtu <= MTU_MAX:
            raise ConfigError(f"MTU {mtu} out of range ({MTU_MIN} to {MTU_MAX})")
        if not 0 <= queue_size <= QUEUE_SIZE_MAX:
            raise ConfigError(f"queue size {queue_size} out of range (1 to {QUEUE_SIZE_MAX}; 0: the device's)")
        if rx_buffer is not None and not RX_BUFFER_MIN <= rx_buffer <= FRAME_MAX:
            raise ConfigError(f"receive buffers of {rx_buffer} bytes: out of range ({RX_BUFFER_MIN} to {FRAME_MAX})")
        wanted = (WANTED | parse(want, self.device_type)) & ~parse(refuse, self.device_type)
        if lro != "device":
            wanted &= ~int(GUEST_SEGMENTATION)
        super().__init__(transport, pool, wanted=wanted, timeout=timeout, clamp_used_len=clamp_used_len)
        self.pairs_wanted = pairs
        self.queue_size = queue_size
        self.mtu = mtu
        self._mtu: int | None = None  # that was set
        self.rx_buffer = rx_buffer
        self.watchdog = watchdog
        self.on_link: Callable[[bool], object] | None = None
        self.pairs = []
        self.active_pairs = 0
        self._pairs_used = 0  # what set_pairs() was told last; 0: nothing
        self.pumps: list[Pump] = []
        self.control: ControlQueue | None = None
        self.filter = ReceiveFilter(weakly(self.command), 0)
        self.counters = {"watchdog_timeouts": 0, "resets": 0, "link_changes": 0, "announcements": 0}
        self._mac: bytes | None = None  # that is not the device's own
        self._link = True
        self._lro = lro == "device"
        self._software_lro = lro == "software"
        self._idle = idle
        self._lent: list[tuple[Pool, int]] = []  # pools that went while Python had buffers of them
        self._lock = ForkAwareLock("driver")
        self._origin = Origin("driver")

    def __enter__(self) -> Self:
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        if self._origin.here:  # in a child of fork() the device is the parent's, which goes on
            self.detach(force=True)

    # ---- what the device says ----

    @property
    def mac(self) -> bytes:
        """The MAC address: the device's, or a random one if it has none."""
        if self._mac is None:
            if self.features & Net.MAC:
                return self.read_config(MAC_AT, 6)
            self._mac = b"\xb2" + secrets.token_bytes(5)
        return self._mac

    def set_mac(self, mac: bytes) -> None:
        """Give the device another address. ConfigError if it cannot be, or the device refuses."""
        address = check_mac(mac)
        if address[0] & 1:
            raise ConfigError(f"address {address.hex(':')} is a multicast address")
        with self._lock:
            self._tell_mac(address)
            self._mac = address

    def _tell_mac(self, address: bytes) -> None:
        if self.features & Net.CTRL_MAC_ADDR:
            if self.command(MAC, ADDR_SET, address) != Ack.OK:
                raise ConfigError(f"the device refused the address {address.hex(':')}")
        elif self.transport.legacy and self.features & Net.MAC:
            self.write_config(MAC_AT, address)
        elif self.features & Net.MAC:
            raise ConfigError("the device's address cannot be changed: CTRL_MAC_ADDR was not negotiated")

    @property
    def link_up(self) -> bool:
        """Whether the link is up; always, for a device that does not say (no STATUS feature)."""
        return not self.features & Net.STATUS or bool(self.config(STATUS_AT, 2) & LINK_UP)

    @property
    def speed(self) -> int | None:
        """Mbit/s, or None if the device does not say (SPEED_DUPLEX)."""
        value = self.config(SPEED_AT, 4) if self.features & Net.SPEED_DUPLEX else 0xFFFFFFFF
        return value if value < 1 << 31 else None

    @property
    def duplex(self) -> Literal["half", "full"] | None:
        """None if the device does not say (SPEED_DUPLEX)."""
        value = self.config(DUPLEX_AT, 1) if self.features & Net.SPEED_DUPLEX else 0xFF
        return "full" if value == 1 else "half" if value == 0 else None

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
        """A receive and a transmit queue for each pair; the control queue behind all that the device has (5.1.2)."""
        if self.features & Net.MTU:
            self.mtu = self.config_within("mtu", MTU_AT, 2, MTU_MIN, MTU_MAX)
        if self._mtu is not None:
            self.mtu = min(self._mtu, self.mtu) if self.features & Net.MTU else self._mtu
        plans = []
        max_pairs = self.max_pairs  # once: a hostile device says another number each time
        for i in range(min(self.pairs_wanted, max_pairs)):
            plans.append(QueuePlan(2 * i, f"receive {i}", self.queue_size, segments=2))
            plans.append(QueuePlan(2 * i + 1, f"transmit {i}", self.queue_size, segments=4))
        if self.features & Net.CTRL_VQ:
            plans.append(QueuePlan(2 * max_pairs, "control", 64, segments=8, interrupt=False))
        return plans

    def ready(self) -> None:
        """Make the queues' buffers, or take them up again after a reset; tell the device what it is to know."""
        if self.pairs:
            for pair in self.pairs:
                pair.receive.forget()
                pair.transmit.forget()
        else:
            count = sum(index % 2 for index in self.queues if self.queues[index].plan.name != "control")
            self.pairs = [self._make_pair(self.queues[2 * i], self.queues[2 * i + 1]) for i in range(count)]
        if self.features & Net.CTRL_VQ:
            queue = self.queues[max(self.queues)]  # the last of them
            if self.control is None:
                self.control = ControlQueue(queue.queue, self.pool, queue.kick, timeout=self.timeout, idle=self._idle)
        now = time.monotonic()
        for pair in self.pairs:
            pair.completions, pair.moved = 0, now
            pair.receive.fill()
        self._limit()
        self._restore()
        for pump in self.pumps:
            pump.resume()

    def _restore(self) -> None:
        """Tell a device that was just reset what its driver wants of it."""
        self.filter.features = self.features
        self.active_pairs = 1
        if len(self.pairs) > 1:
            self.set_pairs(min(self._pairs_used or len(self.pairs), len(self.pairs)))
        if not self._lro and self.features & Net.CTRL_GUEST_OFFLOADS and self.features & GUEST_SEGMENTATION:
            self.set_lro(False)
        if self._mac is not None:
            self._tell_mac(self._mac)
        self.filter.restore()
        if self.link_up != self._link:  # it changed, or was down before we came: the next tick tells
            self.transport.config_bell.ring()
        self._answer_announce()

    def stopping(self) -> None:
        """Nothing works the queues when this returns."""
        for pump in self.pumps:
            pump.pause()

    def stopped(self) -> None:
        """The device has let go of all memory."""
        if self.control is not None:
            self.control.reset()

    def config_changed(self) -> None:
        """The link went up or down, or the device wants us to announce ourselves."""
        up = self.link_up
        if up != self._link:
            self._link = up
            self.counters["link_changes"] += 1
            if self.on_link is not None:
                self.on_link(up)
        self._answer_announce()

    def _answer_announce(self) -> None:
        """Announce the interface if the device wants it: its interrupt may have come before there was a driver."""
        if self.features & Net.GUEST_ANNOUNCE and self.config(STATUS_AT, 2) & ANNOUNCE:
            self.announce()
            self.command(CTRL_ANNOUNCE, 0)

    # ---- buffers ----

    def _pool(self, room: int, count: int, allocated: list[int]) -> Pool:
        gpa = self.pool.allocate(pool_size(room, count))
        allocated.append(gpa)
        return Pool(self.memory, gpa, room, count)

    def _make_pair(self, rx: AttachedQueue, tx: AttachedQueue) -> QueuePair:
        allocated: list[int] = []
        try:
            return self._buffers_of(rx, tx, allocated)
        except BaseException:
            for gpa in allocated:
                self.pool.free(gpa)
            raise

    def _buffers_of(self, rx: AttachedQueue, tx: AttachedQueue, allocated: list[int]) -> QueuePair:
        frame = self.mtu + ETHERNET + VLAN_TAGS
        small = max(2048, frame)
        merged = bool(self.features & GUEST_SEGMENTATION)
        frame_max = FRAME_MAX if merged else frame
        mergeable = bool(self.features & Net.MRG_RXBUF)
        room = frame_max
        if mergeable:
            # a small ring is to take a few of the largest frames too
            room = self.rx_buffer or max(4096 if merged else small, -(-4 * frame_max // rx.queue.size))
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
        if self._software_lro:
            receive.set_lro(True)
        return QueuePair(receive, transmit, allocated)

    def _free_pairs(self) -> None:
        """Give the queues' buffers back; what Python still has of them stays taken until it is released."""
        for pair in self.pairs:
            pair.transmit.retire()  # a thread may be about to use what it found here before
            pair.receive.retire()
            pools = [pair.transmit.large, pair.transmit.small, pair.receive.pool]
            held = [pool for pool in pools if pool is not None]
            self._lent += zip(held, pair.allocated, strict=True)
        self.pairs = []
        lent, self._lent = self._lent, []
        for pool, gpa in lent:
            if pool.lent:
                self._lent.append((pool, gpa))
            else:
                self.pool.free(gpa)

    def _limit(self) -> None:
        """Send nothing beyond an MTU that was negotiated (VIRTIO 1.4, 5.1.4.2) or set."""
        kept = self.features & Net.MTU or self._mtu is not None
        for pair in self.pairs:
            pair.transmit.limit(self.mtu if kept else None)

    # ---- control ----

    def attach(self) -> None:
        """Bring the device up; see :meth:`virtio.driver.Driver.attach`."""
        with self._lock:
            try:
                super().attach()
            except BaseException:
                self._forget()
                raise

    def detach(self, *, force: bool = False) -> None:
        """Stop the device and give everything back; see :meth:`virtio.driver.Driver.detach`.

        Buffers that Python has stay taken until they are released.
        """
        with self._lock:
            super().detach(force=force)
            self._forget()

    def _forget(self) -> None:
        if not self.queues:
            self._free_pairs()
            self.control = None
            self.active_pairs = 0

    def reset_queue(self, index: int) -> None:
        """Stop one queue (VIRTIO 1.4, 2.6.1), for :meth:`enable_queue`; what is in it is lost.

        Raises NegotiationError without RING_RESET, DeviceBroken if the device does not.
        """
        with self._lock:
            self.stopping()
            try:
                super().reset_queue(index)
            except BaseException:
                for pump in self.pumps:
                    pump.resume()
                raise
            self.queues[index].queue.drain()

    def enable_queue(self, index: int) -> None:
        """Set a queue up again after :meth:`reset_queue`, with all its buffers. Raises ConfigError if it cannot be."""
        with self._lock:
            super().enable_queue(index)
            if index // 2 < len(self.pairs):
                pair = self.pairs[index // 2]
                if index % 2:
                    pair.transmit.forget()
                else:
                    pair.receive.forget()
                    pair.receive.fill()
            for pump in self.pumps:
                pump.resume()

    def down(self) -> None:
        """Stop the device: what is in the queues is lost. Queues and features are kept, for :meth:`up`."""
        with self._lock:
            self.stop()

    def up(self) -> None:
        """Start again after :meth:`down`, or from anew if it was not attached."""
        with self._lock:
            if not self.queues:
                self.attach()
            elif not self.attached:
                self._reinit()

    suspend, resume = down, up

    def _reinit(self) -> None:
        try:
            self.reinit()
        except BaseException:
            self._forget()
            raise

    def reset(self) -> None:
        """Reset the device and start it again, with the same features: what FreeBSD's watchdog does.

        Broken queues are whole again; what was in queues is lost; filters, address and pairs are as they were. Raises
        DeviceBroken if the device does not reset, NegotiationError if it is another one by now.
        """
        with self._lock:
            self.counters["resets"] += 1
            self._reinit()

    def tick(self) -> None:
        """Do what is to be done about once a second: FreeBSD's vtnet_tick.

        Takes back what the device has sent; answers its configuration interrupt (link, announcement); and resets it if
        a transmit queue stands still, if it broke a queue, or if it asks for it (DEVICE_NEEDS_RESET). Raises as
        :meth:`reset`.
        """
        with self._lock:
            if not self.attached:
                return
            broken = [queue.plan.name for queue in self.queues.values() if queue.queue.broken is not None]
            if broken:
                log.warning("broken by the device: %s; reset", ", ".join(broken))
                self.reset()
                return
            stuck = [i for i, pair in enumerate(self.pairs) if self._is_stuck(pair)]
            if stuck:
                self.counters["watchdog_timeouts"] += len(stuck)
                log.warning("transmit queue %s: nothing came back for %g s; reset", stuck, self.watchdog)
                self.reset()
                return
            try:
                self.check()
            except DeviceBroken as error:
                log.warning("%s; reset", error)
                self.reset()

    def _is_stuck(self, pair: QueuePair) -> bool:
        out = pair.transmit.reclaim()
        done = pair.transmit.queue.counters()["completions"]
        now = time.monotonic()
        if not out or done != pair.completions:
            pair.completions, pair.moved = done, now
            return False
        return bool(now - pair.moved >= self.watchdog)

    def command(self, kind: int, command: int, data: bytes | list[bytes] = b"") -> Ack:
        """Give the device a control command; return its answer. ConfigError if there is no control queue."""
        if self.control is None:
            raise ConfigError("the device has no control queue: CTRL_VQ was not negotiated")
        return self.control.send(kind, command, data)

    def set_pairs(self, pairs: int) -> None:
        """Use the first ``pairs`` queue pairs, over resets too. ConfigError if there are fewer, or it is refused."""
        if not 1 <= pairs <= len(self.pairs):
            raise ConfigError(f"{pairs} queue pairs out of range (1 to {len(self.pairs)})")
        with self._lock:
            if self.command(CTRL_MQ, 0, struct.pack("<H", pairs)) != Ack.OK:
                raise ConfigError(f"the device refused {pairs} queue pairs")
            self.active_pairs = self._pairs_used = pairs

    def set_lro(self, on: bool) -> None:
        """Let the device merge segments, or not (CTRL_GUEST_OFFLOADS). ConfigError if it refuses."""
        if not self.features & Net.CTRL_GUEST_OFFLOADS:
            raise ConfigError("offloads cannot be changed: CTRL_GUEST_OFFLOADS was not negotiated")
        with self._lock:
            offloads = self.features & (Net.GUEST_CSUM | (GUEST_SEGMENTATION if on else 0))
            if self.command(CTRL_OFFLOADS, 0, struct.pack("<Q", offloads)) != Ack.OK:
                raise ConfigError(f"the device refused to turn LRO {'on' if on else 'off'}")
            self._lro = on

    def set_mtu(self, mtu: int) -> None:
        """Take frames of another MTU: with larger buffers if need be, for which the device is reset.

        Longer frames are not sent from now on, as with an MTU that the device says: they are dropped (``too_large``).
        ConfigError for one out of range (68 to 65535) or beyond what the device says.
        """
        with self._lock:
            limit = self.config_within("mtu", MTU_AT, 2, MTU_MIN, MTU_MAX) if self.features & Net.MTU else MTU_MAX
            if not MTU_MIN <= mtu <= limit:
                raise ConfigError(f"MTU {mtu} out of range ({MTU_MIN} to {limit})")
            self.mtu = self._mtu = mtu
            self._limit()
            frame = mtu + ETHERNET + VLAN_TAGS
            if self.attached and any(
                pair.transmit.small.room < frame or pair.receive.frame_max < frame for pair in self.pairs
            ):
                self.stop()
                self._free_pairs()
                self._reinit()

    def announce(self) -> None:
        """Make switches learn where we are: a reverse ARP request of our own address, as QEMU sends it."""
        self.counters["announcements"] += self.transmit([reverse_arp(self.mac)])

    def statistics(self) -> dict[str, int]:
        """Return all counters, under the names of FreeBSD's ``sysctl dev.vtnet.N`` where it has them.

        ``rxqN.*`` and ``txqN.*`` are one queue's, the others sums. They count from the attach on.
        """
        counts: dict[str, int] = {
            "max_vq_pairs": self.max_pairs if self.queues else 0,
            "req_vq_pairs": self.pairs_wanted,
            "act_vq_pairs": self.active_pairs,
            **self.counters,
        }
        sums: dict[str, int] = {}

        def add(name: str, value: int) -> None:
            sums[name] = sums.get(name, 0) + value

        for i, pair in enumerate(self.pairs):
            for side, figures in (("rx", pair.receive.statistics()), ("tx", pair.transmit.statistics())):
                for name, value in figures.items():
                    counts[f"{side}q{i}.{name}"] = value
                    if name not in ("csum", "tso", "rescheduled", "csum_failed"):
                        add(f"{side}_{name}", value)
                add(f"{side}_csum_offloaded", figures["csum"])
                add(f"{side}_task_rescheduled", figures["rescheduled"])
            add("rx_csum_failed", counts[f"rxq{i}.csum_failed"])
            add("tx_tso_offloaded", counts[f"txq{i}.tso"])
            reasons = [(reason.counter, value) for reason, value in pair.receive.reasons().items()]
            reasons += [(reason.counter, value) for reason, value in pair.transmit.reasons().items()]
            for name, value in reasons:
                if name not in ("rx_csum_offloaded", "tx_csum_offloaded", "tx_tso_offloaded"):
                    add(name, value)
            for name, index in (("rx", 2 * i), ("tx", 2 * i + 1)):
                attached = self.queues.get(index)
                if attached is not None:
                    add(f"{name}_kicks", attached.queue.counters()["kicks"])
                    add(f"{name}_interrupts", attached.interrupt.rings if attached.interrupt else 0)
        return {**counts, **sums}

    def report(self) -> str:
        """Return the negotiation as text, and what the interface is: for a person."""
        speed = "unknown" if self.speed is None else f"{self.speed} Mbit/s"
        return (
            f"{self.negotiation}\n  MAC {self.mac.hex(':')}, MTU {self.mtu}, link {'up' if self.link_up else 'down'}, "
            f"speed {speed}, {self.active_pairs} of {self.max_pairs} queue pairs"
        )


register_driver(DeviceType.NET, Vtnet)
