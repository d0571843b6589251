"""The virtio network device (VIRTIO 1.4, 5.1)."""

from __future__ import annotations

import struct
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, Literal, Self

from virtio.constants import DeviceType, Feature, NetFeature
from virtio.core.weak import weakly
from virtio.device import Device
from virtio.device.operations import DRAIN
from virtio.device.queue_state import Interrupt
from virtio.errors import ConfigError
from virtio.event.notifier import Bell
from virtio.event.worker import Task, Worker
from virtio.features import Features, parse
from virtio.memory.guest_memory import GuestMemory
from virtio.net.ctrl_device import COMMAND_MAX, GUEST_OFFLOAD_FEATURES, Control
from virtio.net.figures import Figures
from virtio.net.rarp import reverse_arp
from virtio.netdev.rxq import NetReceive, guest_offloads
from virtio.netdev.txq import NetTransmit
from virtio.offload import net_header_size
from virtio.offload.mac import interface_mac
from virtio.ports.port import Port
from virtio.virtqueue import saved

LINK_UP, ANNOUNCE = 1, 2  # bits of the config space's status
CONFIG = struct.Struct("<6sHHHIB")  # mac, status, max_virtqueue_pairs, mtu, speed, duplex
MTU_MIN, MTU_MAX = 68, 65535
PAIRS_MAX = 0x8000
SPEED_UNKNOWN, DUPLEX_UNKNOWN = 0xFFFFFFFF, 0xFF
GUEST_GSO = GUEST_OFFLOAD_FEATURES & ~NetFeature.GUEST_CSUM & ~NetFeature.GUEST_ECN
FRAME_MAX = 65589
ETHERNET, VLAN_TAGS = 14, 8  # bytes of a header, and of two tags
LOOK = 0.001  # seconds
ROUNDS = 256  # bursts of each queue that a poll by hand does at most: a port may have frames for ever
BURST_WORK = 1 << 20  # units of work of each: about a millisecond, since no neighbour waits

Workers = Worker | Sequence[Worker] | Literal["own", "busy"] | None


def is_worker(worker: object) -> bool:
    """Say whether this is what NetDevice takes for a worker."""
    if worker is None or isinstance(worker, Worker) or worker in ("own", "busy"):
        return True
    return isinstance(worker, Sequence) and bool(worker) and all(isinstance(each, Worker) for each in worker)


class NetDevice(Device):
    """A network device, between a driver and a ``port`` (default: one that drops everything).

    ``mac`` is a text or 6 bytes (default: random), ``mtu`` what the driver is advised of (68 to 65535; None: not
    offered), ``speed`` in Mbit/s and ``duplex`` ("full", "half") what SPEED_DUPLEX says (None: unknown),
    ``queue_pairs`` the receive and transmit queues, of ``queue_size``. ``offer`` and ``withhold``: features, as in
    :class:`Device`. MTU is offered only with an ``mtu``, MQ only with more than one pair.

    ``worker`` runs the data path: None: :meth:`poll` does, by hand; "own": a thread for each queue pair, while a driver
    is there, that sleeps when there is nothing to do ("busy": that never sleeps); a Worker, or several, among which the
    pairs are dealt out: the caller starts and stops them.

    Offloads that the guest leaves undone and the port does not take are executed here, and those that the port leaves
    undone and the guest does not accept. Raises ConfigError for what cannot be.

    Threads: as Device; the data path runs on the workers. Close it when it is done with (or use it as a context): its
    own threads run on otherwise.
    """

    device_type: ClassVar[int] = DeviceType.NET
    frontend_features = int(NetFeature.CTRL_VQ)  # of vhost-user: a frontend may serve the control queue itself
    features: ClassVar[int] = (
        Device.features
        | NetFeature.CSUM
        | NetFeature.GUEST_CSUM
        | NetFeature.CTRL_GUEST_OFFLOADS
        | NetFeature.MTU
        | NetFeature.MAC
        | NetFeature.GSO
        | NetFeature.GUEST_TSO4
        | NetFeature.GUEST_TSO6
        | NetFeature.GUEST_ECN
        | NetFeature.GUEST_UFO
        | NetFeature.HOST_TSO4
        | NetFeature.HOST_TSO6
        | NetFeature.HOST_ECN
        | NetFeature.HOST_UFO
        | NetFeature.MRG_RXBUF
        | NetFeature.STATUS
        | NetFeature.CTRL_VQ
        | NetFeature.CTRL_RX
        | NetFeature.CTRL_VLAN
        | NetFeature.CTRL_RX_EXTRA
        | NetFeature.GUEST_ANNOUNCE
        | NetFeature.MQ
        | NetFeature.CTRL_MAC_ADDR
        | NetFeature.GUEST_USO4
        | NetFeature.GUEST_USO6
        | NetFeature.HOST_USO
        | NetFeature.SPEED_DUPLEX
    )

    def __init__(
        self,
        port: Port | None = None,
        *,
        mac: str | bytes | None = None,
        mtu: int | None = None,
        queue_pairs: int = 1,
        queue_size: int = 256,
        speed: int | None = None,
        duplex: Literal["full", "half"] | None = None,
        link: bool = True,
        worker: Workers = None,
        offer: Features = 0,
        withhold: Features = 0,
    ) -> None:
        if not 1 <= queue_pairs <= PAIRS_MAX:
            raise ConfigError(f"{queue_pairs} queue pairs out of range (1 to {PAIRS_MAX})")
        if mtu is not None and not MTU_MIN <= mtu <= MTU_MAX:
            raise ConfigError(f"MTU {mtu} out of range ({MTU_MIN} to {MTU_MAX})")
        if speed is not None and not 0 <= speed < 1 << 31:
            raise ConfigError(f"speed {speed} Mbit/s out of range (0 to {(1 << 31) - 1})")
        if not is_worker(worker):
            raise ConfigError(f"worker {worker!r} is none of None, 'own', 'busy', a Worker, a sequence of Workers")
        self.port = Port() if port is None else port
        if port is not None and queue_pairs > self.port.queues:
            raise ConfigError(f"{queue_pairs} queue pairs, but {self.port!r} has {self.port.queues}")
        self.max_pairs = queue_pairs
        self.queue_size = queue_size
        self.mtu = mtu
        self.workers = worker
        self._link = link
        self._announce = False
        self._draining = False
        self._copied = False  # a snapshot was taken: rings may be another device's by now
        self._frontend_mtu: int | None = None
        self._speed = SPEED_UNKNOWN if speed is None else speed
        self._duplex = {None: DUPLEX_UNKNOWN, "half": 0, "full": 1}[duplex]
        self._tasks: dict[int, NetReceive | NetTransmit] = {}
        self._threads: list[Worker] = []
        self._trouble = Bell(weakly(self._rang))
        self._restored = False  # the control state is a snapshot's
        self._ended = False  # by close()
        self._second = Bell()  # kicks of receive queue 1, where that may also be the control queue
        self.control = Control(weakref.proxy(self), interface_mac(mac))
        super().__init__(offer=offer, withhold=self._withhold(offer, withhold), queue_size=queue_size)
        self._figures = Figures(self._tasks, self.queues)
        self._serving.threaded = worker is not None
        self.config = bytearray(CONFIG.size)
        self._write_config()
        self.port.attach(self)

    def _withhold(self, offer: Features, withhold: Features) -> int:
        try:
            more, less = parse(offer, self.device_type), parse(withhold, self.device_type)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if self.mtu is None:
            less |= NetFeature.MTU & ~more
        if self.max_pairs == 1:
            less |= NetFeature.MQ & ~more
        try:
            net_header_size(more & ~less)
        except ValueError as error:
            raise ConfigError(f"cannot be offered: {error}") from None
        return less

    def queue_sizes(self) -> tuple[int, ...]:
        """Receive and transmit queues in turn, then the control queue."""
        return (self.queue_size,) * (2 * self.max_pairs + 1)

    def queue_count(self) -> int:
        """Return how many queue pairs it has."""
        return self.max_pairs

    def frontend_mtu(self, mtu: int) -> bool:
        """Take the MTU that a frontend tells its driver of."""
        if not MTU_MIN <= mtu <= (self.mtu or MTU_MAX):
            return False
        self._frontend_mtu = mtu
        for task in self._receivers():
            task.limit(self._limit())
        return True

    def frontend_rarp(self, mac: bytes) -> bool:
        """Send the RARP of a guest that moved here."""
        self._serving.check()
        task = next((task for task in self._tasks.values() if isinstance(task, NetTransmit)), None)
        return task is not None and task.inject(reverse_arp(mac))

    @property
    def control_index(self) -> int:
        """Which queue is the control queue: behind the pairs that a driver with, or without, MQ knows (5.1.2)."""
        return 2 * (self.max_pairs if self.negotiated & NetFeature.MQ else 1)

    def handles(self, index: int) -> bool:
        """Say whether kicks of a queue go to notified(): those of what may be the control queue."""
        return index in (2, 2 * self.max_pairs)

    # ---- configuration ----

    def _write_config(self) -> None:
        status = LINK_UP * self._link | ANNOUNCE * self._announce
        self.config[:] = CONFIG.pack(
            self.control.mac, status, self.max_pairs, self.mtu or 0, self._speed, self._duplex
        )  # fmt: skip

    @property
    def mac(self) -> str:
        """MAC address in use: the driver may have set another one."""
        return self.control.mac.hex(":")

    @property
    def link(self) -> bool:
        """Whether the link is up. Set it, and the driver is told; while it is down frames are dropped."""
        return self._link

    @link.setter
    def link(self, up: bool) -> None:
        with self._control():
            if up == self._link:
                return
            self._link = up
            self._write_config()
            self._open_or_close()
            if self.negotiated & NetFeature.STATUS:
                self.config_changed()

    def announce(self) -> bool:
        """Ask the driver to announce its addresses on the link; return whether it can be asked (GUEST_ANNOUNCE)."""
        with self._control():
            if not (self.live and self.negotiated & NetFeature.GUEST_ANNOUNCE and self.negotiated & NetFeature.STATUS):
                return False
            self._announce = True
            self._write_config()
            self.config_changed()
            return True

    def config_written(self, offset: int, data: bytes) -> bool:
        """Take a MAC address from a legacy driver, which has no other way to set it (5.1.4.3)."""
        if self.negotiated & (Feature.VERSION_1 | NetFeature.CTRL_MAC_ADDR) or offset + len(data) > 6:
            return False
        mac = self.control.mac
        self.control.mac = mac[:offset] + data + mac[offset + len(data) :]
        self._write_config()
        self.filter_changed()
        return True

    # ---- life ----

    def bind(self, memory: GuestMemory, interrupt: Interrupt) -> None:
        """Forget what another transport's frontend has said, too."""
        super().bind(memory, interrupt)
        self._frontend_mtu = None

    def activate(self, memory: GuestMemory, interrupt: Interrupt) -> None:
        """Begin to work the queues that the driver set up. Raises ConfigError once it was closed."""
        if self._ended:  # its port may be another device's by now
            raise ConfigError("the device was closed")
        if not self._restored:
            self.control.reset(self.negotiated)
        self._restored = False
        self._write_config()
        self.port.receive_offloads(self._guest_offloads(), net_header_size(self.negotiated))
        self.port.set_queues(self.control.pairs)
        for slot in self.queues[: self.control_index]:
            if slot.enabled:
                self.queue_enable(slot.index)

    def queue_enable(self, index: int) -> None:
        """Work a queue."""
        if index >= self.control_index:
            return
        slot, pair = self.queues[index], index // 2
        by_hand = self.workers is None
        task: NetReceive | NetTransmit
        if index % 2:
            task = NetTransmit(
                self.device_queue(index), self.port, pair, self.negotiated,
                kick=slot.kick, call=slot.call, trouble=self._trouble, by_hand=by_hand,
            )  # fmt: skip
        else:
            task = NetReceive(
                self.device_queue(index), self.port, pair, self.negotiated,
                kick=self._second if self.handles(index) else slot.kick, call=slot.call, trouble=self._trouble,
                frame_max=self._frame_max(), by_hand=by_hand,
            )  # fmt: skip
            task.accept(self._accepted())
            task.limit(self._limit())
            task.filter(**self.control.filter())
        self._figures.begin(index)
        self._tasks[index] = task
        self._close(index, task)
        if self.dma:
            self._resume(task)
        if isinstance(task, NetReceive):
            task.connect()
        if worker := self._worker_of(pair):
            worker.add(task, guest=self)

    def queue_reset(self, index: int) -> None:
        """Let go of a queue."""
        task = self._tasks.get(index)
        if task is not None:
            self._end(index, task)

    def _end(self, index: int, task: NetReceive | NetTransmit) -> None:
        if isinstance(task, NetReceive):
            task.disconnect()
        task.pause()
        if isinstance(task, NetReceive):
            task.abandon()
        worker = self._worker_of(index // 2)
        if worker is not None and task in worker.tasks:
            worker.remove(task)
        self._figures.end(index)

    def deactivate(self) -> None:
        """Let go of all queues: of those that send first, as what they send may come back to the others."""
        for index in sorted(self._tasks, key=lambda index: index % 2 == 0):
            self._end(index, self._tasks[index])
        for thread in self._threads:
            with suppress(RuntimeError):  # it is this very thread: it ends when it is back in its loop
                thread.stop()
        self._threads.clear()

    def reset(self) -> None:
        """Go back to where the device was before a driver came: its own MAC address, promiscuous."""
        with self._control():
            super().reset()
            self._announce = self._restored = self._draining = self._copied = False
            self.control.reset(0)
            self.control.mac = self.control.own_mac
            self._write_config()

    def close(self) -> None:
        """Drain, reset, and give the port back. A driver that starts it again is told that it needs a reset.

        Rings of which a snapshot was taken stay as they are: a frame that waits for buffers is dropped, not delivered.
        """
        if not self._copied:
            self.drain()
        self._ended = True
        self.reset()
        self.port.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._serving.origin.here:
            self.close()

    def _worker_of(self, pair: int) -> Worker | None:
        workers = self.workers
        if workers is None:
            return None
        if isinstance(workers, Worker):
            return workers
        if isinstance(workers, str):
            while len(self._threads) <= pair:
                self._threads.append(Worker(mode="busy" if workers == "busy" else "adaptive"))
                self._threads[-1].start()
            return self._threads[pair]
        return workers[pair % len(workers)]

    def call_changed(self, index: int) -> None:
        """Interrupt the driver by another bell."""
        if task := self._tasks.get(index):
            task.set_call(self.queues[index].call)

    def queue_muted(self, index: int) -> None:
        """Use the pairs whose receive queues are not muted: that is how vhost-user says how many."""
        receive = self.queues[: self.control_index : 2]
        pairs = next((i for i, slot in enumerate(receive) if slot.muted or not slot.enabled), len(receive))
        if pairs and pairs != self.control.pairs:
            self.control.pairs = pairs
            self.port.set_queues(pairs)
        self._open_or_close()

    def pause(self) -> None:
        """Let no task touch a queue."""
        for task in self._tasks.values():
            task.pause()

    def resume(self) -> None:
        """Undo pause()."""
        for task in self._tasks.values():
            self._resume(task)

    def _resume(self, task: NetReceive | NetTransmit) -> None:
        if not self._draining:
            task.resume()
        elif isinstance(task, NetReceive):
            task.drain()
            task.resume()

    def drain(self, seconds: float = DRAIN) -> bool:
        """Take no more frames, of the guest or of the port, until a reset; return whether those taken are delivered.

        A frame of the port for which the guest has no buffers waits for them, ``seconds`` at most.
        """
        with self._control():
            if self._draining:
                return True
            self._draining = True
            tasks = self.tasks
        end = time.monotonic() + seconds
        stopped = [task.pause(end - time.monotonic()) for task in tasks if isinstance(task, NetTransmit)]
        left = [task for task in tasks if isinstance(task, NetReceive)]
        while left := [task for task in left if task.drain()]:
            if time.monotonic() >= end:
                return False
            if not sum(task.poll() for task in left):
                time.sleep(LOOK)
        return all(stopped)

    # ---- what the driver says ----

    def notified(self, index: int) -> None:
        """Execute the commands that wait in the control queue."""
        if index != self.control_index:  # receive queue 1, of a driver with MQ
            self._second.ring()
            return
        for chain in self.chains(index):
            if not chain.writable_length:
                self.control.refuse("command without room for an answer")
                continue
            if chain.readable_length > COMMAND_MAX:
                self.control.refuse(f"command of {chain.readable_length} bytes (limit {COMMAND_MAX})")
                chain.write(b"\1")
                continue
            chain.write(bytes([self.control.execute(chain.read())]))

    def _receivers(self) -> list[NetReceive]:
        return [task for task in self._tasks.values() if isinstance(task, NetReceive)]

    def filter_changed(self) -> None:
        """Filter received frames as the driver says now."""
        for task in self._receivers():
            task.filter(**self.control.filter())

    def mac_changed(self) -> None:
        """Show the address that the driver set."""
        self._write_config()

    def offloads_changed(self) -> None:
        """Leave undone in received frames only what the driver says now."""
        for task in self._receivers():
            task.accept(self._accepted())
        self.port.receive_offloads(self._guest_offloads(), net_header_size(self.negotiated))

    def pairs_changed(self) -> None:
        """Use as many queue pairs as the driver says now."""
        self.port.set_queues(self.control.pairs)
        self._open_or_close()

    def announced(self) -> None:
        """Take note that the driver announced itself."""
        self._announce = False
        self._write_config()

    def _accepted(self) -> int:
        """Features as negotiated, less the guest offloads that the driver has switched off."""
        return self.negotiated & ~GUEST_OFFLOAD_FEATURES | self.control.offloads

    def _guest_offloads(self) -> int:
        return guest_offloads(self._accepted())

    def _limit(self) -> int | None:
        """Return the MTU that the driver has negotiated, beyond which it is to get no frames (5.1.4.1)."""
        return self._frontend_mtu or self.mtu if self.negotiated & NetFeature.MTU else None

    def _frame_max(self) -> int:
        """Return how large a frame the port is asked for: one byte more than may be, so that what is longer shows."""
        if self.negotiated & GUEST_GSO or self.mtu is None:
            return FRAME_MAX
        return min(self.mtu + ETHERNET + VLAN_TAGS + 1, FRAME_MAX)

    def _closed(self, index: int) -> bool:
        return not self._link or index // 2 >= self.control.pairs or self.queues[index].muted

    def _open_or_close(self) -> None:
        for index, task in self._tasks.items():
            self._close(index, task)

    def _close(self, index: int, task: NetReceive | NetTransmit) -> None:
        if isinstance(task, NetReceive):  # a queue that is not to be there yet leaves the port's frames where they are
            task.close(self._closed(index), idle=self.queues[index].muted)
        else:
            task.close(self._closed(index))

    # ---- running ----

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of the data path, while a driver is there."""
        return tuple(self._tasks.values())

    def poll(self) -> int:
        """Work all queues until nothing is left to do, or 256 bursts each, on this thread; return how much was done.

        For a device without workers. Whoever emulates calls it when a queue was kicked or the port has something.
        """
        self._serving.check()
        total = 0
        for _ in range(ROUNDS):
            done = sum(task.poll(BURST_WORK) for task in tuple(self._tasks.values()))
            if not done:
                break
            total += done
        return total

    def _rang(self) -> None:
        """Take note that a task found its queue broken; on any thread."""
        self.soon(partial(self._broken, self._epoch))

    def _broken(self, epoch: int) -> None:
        if epoch != self._epoch or not self.live:
            return
        for slot in self.queues:
            fault = None if slot.queue is None else slot.queue.broken
            if fault is not None and slot.broken is None and not slot.stands_still():
                reason = f"queue {slot.index}: {fault}"
                slot.fail(reason)
                self._refuse("fault", fault)
                self.needs_reset(reason)

    def statistics(self) -> dict[str, Any]:
        """Return what was counted since the device was made, also before resets.

        For each queue, "rx0", "tx0", ..., frames, bytes, what was done to them, why some were dropped, and the ring's
        chains and interrupts; "control": commands; "port": the port's own.
        """
        return self._figures.report() | {"control": dict(self.control.counters), "port": self.port.statistics()}

    # ---- snapshot ----

    def save(self) -> dict[str, Any]:
        """Return what the driver said on the control queue, and what it was told of the link."""
        self._copied = True
        return {**self.control.save(), "link": self._link, "announce": self._announce}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what save() gave."""
        told = {name: state[name] for name in ("link", "announce") if name in state}
        saved.fields({"link": saved.flag, "announce": saved.flag})(told)
        self.control.load({name: value for name, value in state.items() if name not in told})
        self._link, self._announce = bool(told["link"]), bool(told["announce"])
        self._restored = True
