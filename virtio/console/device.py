"""The virtio console device (VIRTIO 1.4, 5.3), in Python."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar
from weakref import ref

from virtio.console.control import ConsoleError, Control, Event
from virtio.console.features import ConsoleFeature
from virtio.console.ports import SIZE_MAX, ConsolePort, Link
from virtio.console.snapshot import check
from virtio.constants import DeviceType
from virtio.device import Device
from virtio.device.queue_state import Interrupt
from virtio.errors import ConfigError, SnapshotError
from virtio.features import Features, parse
from virtio.memory.guest_memory import GuestMemory
from virtio.virtqueue.chain import Chain

CONFIG = struct.Struct("<HHII")  # cols, rows, max_nr_ports, emerg_wr
EMERG_WR = 8  # offset in it
PORTS_MAX = 511  # as in QEMU
CONTROL_IN, CONTROL_OUT = 2, 3  # queues
CHAIN_MAX = 1 << 20  # bytes of a chain that are taken of the guest
TURN = 4096  # chains, or pages of chains, that one call serves
PAGE_SHIFT = 12


def queues_of(number: int) -> tuple[int, int]:
    """Return the receive and the transmit queue of a port (5.3.2)."""
    receive = 2 * number + 2 if number else 0
    return receive, receive + 1


class ConsoleDevice(Device):
    """A console device (VIRTIO 1.4, 5.3): a byte stream each way for each of its ports.

    ``port`` is port 0; by default a :class:`ConsolePort` with ``console``. ``ports`` are further ones, from number 1
    on; a text stands for ``ConsolePort(text)``. ``max_ports`` (1 to 511; by default as many as are given) leaves room
    for :meth:`add_port`. MULTIPORT is offered if it is above 1. A driver without MULTIPORT works port 0 alone.

    ``rows`` and ``cols`` are the size of port 0's console in characters. ``rows_first`` puts rows before columns in
    RESIZE, against the specification: Linux without commit 5326ab737a47 reads it so (releases of 2025 and older).
    ``offer``, ``withhold`` and ``queue_size`` (descriptors, of each queue) are those of
    :class:`~virtio.device.Device`. ConfigError is raised for what cannot be.

    A reset keeps the bytes that wait in ports, so input may be written before a guest boots. A snapshot has these
    bytes, too; it can be restored to a device whose ports have the same numbers and names.

    ``counters`` has a number for each fault of a driver, and ``refused`` the last ones (ConsoleError):

    - ``control``: a control message that cannot be;
    - ``direction``: a readable buffer in a receive queue, or a writable one in a transmit queue;
    - ``too_long``: a transmitted chain of more than 1 MiB, of which the rest is dropped;
    - ``short``: a control buffer that the next message does not fit into. It is used with length 0;
    - ``portless`` (in ``counters`` alone): a chain in the transmit queue of a port that does not exist.

    ``counters["emergency_dropped"]`` are bytes of emerg_wr that found port 0 full. Configuration and control messages
    are little-endian, for legacy drivers too. Threads: any.
    """

    device_type: ClassVar[int] = DeviceType.CONSOLE
    features: ClassVar[int] = (
        Device.features | ConsoleFeature.SIZE | ConsoleFeature.MULTIPORT | ConsoleFeature.EMERG_WRITE
    )

    def __init__(
        self,
        port: ConsolePort | None = None,
        ports: Iterable[ConsolePort | str] = (),
        *,
        max_ports: int | None = None,
        rows: int = 24,
        cols: int = 80,
        rows_first: bool = False,
        offer: Features = 0,
        withhold: Features = 0,
        queue_size: int = 128,
    ) -> None:
        first = ConsolePort(console=True) if port is None else port
        made = [first, *(ConsolePort(each) if isinstance(each, str) else each for each in ports)]
        self.max_ports = max(len(made), 1) if max_ports is None else max_ports
        if not len(made) <= self.max_ports <= PORTS_MAX:
            raise ConfigError(f"{len(made)} ports, max_ports {self.max_ports}: 1 to {PORTS_MAX}")
        if not (0 <= rows <= SIZE_MAX and 0 <= cols <= SIZE_MAX):
            raise ConfigError(f"{rows} rows, {cols} columns: 0 to {SIZE_MAX} each")
        self.config = bytearray(CONFIG.size)
        if self.max_ports == 1:
            withhold = parse(withhold, self.device_type) | ConsoleFeature.MULTIPORT
        super().__init__(offer=offer, withhold=withhold, queue_size=queue_size)
        if self.max_ports > 1 and not self.offered & ConsoleFeature.MULTIPORT:
            raise ConfigError(f"max_ports {self.max_ports} without MULTIPORT")
        self._ports: dict[int, ConsolePort] = {}
        self.control = Control(self._ports, rows_first=rows_first)
        self._size_told = False  # to this driver
        first.rows, first.cols = rows, cols
        for each in made:
            self.add_port(each)

    # ---- ports ----

    @property
    def port(self) -> ConsolePort:
        """Port 0. KeyError if it was removed."""
        return self._ports[0]

    @property
    def ports(self) -> tuple[ConsolePort, ...]:
        """The ports, in the order of their numbers."""
        return tuple(port for _, port in sorted(self._ports.items()))

    def __getitem__(self, name: str) -> ConsolePort:
        """Return the port with this name; KeyError if there is none."""
        for port in self.ports:
            if port.name == name:
                return port
        raise KeyError(name)

    def add_port(self, port: ConsolePort | str, number: int | None = None) -> ConsolePort:
        """Plug in a port, or a new one with this name; return it. ``number``: by default the lowest that is free.

        Raises ConfigError if there is no room, or a port with this number or name already; ValueError if the port
        belongs to a device.
        """
        with self._control():
            made = ConsolePort(port) if isinstance(port, str) else port
            free = (each for each in range(self.max_ports) if each not in self._ports)
            chosen = next(free, self.max_ports) if number is None else number
            if not 0 <= chosen < self.max_ports or chosen in self._ports:
                raise ConfigError(f"port {chosen} is taken or out of range ({self.max_ports} ports)")
            if made.name and any(each.name == made.name for each in self.ports):
                raise ConfigError(f"a port is named {made.name!r} already")
            made.attach(chosen, _Link(self, chosen))
            self._ports[chosen] = made
            if chosen == 0:
                self._write_config()
                made.set_guest_open(self.live and not self._multiport)
            self.control.add(chosen)
            self.serve(CONTROL_IN)
            return made

    def remove_port(self, port: ConsolePort) -> None:
        """Unplug a port; bytes that wait stay in it. ConfigError if it is not this device's."""
        with self._control():
            if port.id is None or self._ports.get(port.id) is not port:
                raise ConfigError(f"{port!r} is not of this device")
            number = port.id
            del self._ports[number]
            self.control.remove(number)
            port.detach()
            self.serve(CONTROL_IN)
            self.serve(queues_of(number)[1])

    def resize(self, rows: int, cols: int) -> None:
        """Change the size of port 0's console, in characters. ValueError unless both are 0 to 65535."""
        self.port.resize(rows, cols)

    def told(self, number: int, event: Event) -> None:
        """Have the driver told of a change of a port."""
        if event == Event.RESIZE and number == 0:
            before = bytes(self.config)
            self._write_config()
            if self.config != before:
                self.config_changed()
        self.control.changed(number, event)
        self.serve(CONTROL_IN)

    def serve(self, index: int) -> None:
        """Work a queue soon, as if the driver had kicked it. Any thread; never waits."""
        if index < len(self.queues):
            self.queues[index].kicked = True
            self.soon(_nothing)

    def statistics(self) -> dict[str, dict[str, int]]:
        """Return what was counted: "port0", "port1", ... since each was made, and "device" since the device was."""
        figures = {f"port{port.id}": dict(port.counters) for port in self.ports}
        return figures | {"device": dict(self.counters)}

    # ---- hooks ----

    def queue_sizes(self) -> tuple[int, ...]:
        """Two queues for each port, and two for control, if there may be more than one port."""
        many = self.offered & ConsoleFeature.MULTIPORT
        return (self.queue_size,) * (2 * self.max_ports + 2 if many else 2)

    def _write_config(self) -> None:
        first = self._ports.get(0)
        rows, cols = (first.rows, first.cols) if first and self.offered & ConsoleFeature.SIZE else (0, 0)
        self.config[:] = CONFIG.pack(cols, rows, self.max_ports, 0)

    def config_written(self, offset: int, data: bytes) -> bool:
        """Take a byte written to emerg_wr, as output of port 0: at any time (5.3.5)."""
        if not self.offered & ConsoleFeature.EMERG_WRITE or offset < EMERG_WR:
            return False
        if offset == EMERG_WR and data:
            port = self._ports.get(0)
            if port is None or not port.has_room():
                self.counters["emergency_dropped"] += 1
            else:
                port.take(data[:1])
        return True

    @property
    def _multiport(self) -> bool:
        return bool(self.negotiated & ConsoleFeature.MULTIPORT)

    def activate(self, memory: GuestMemory, interrupt: Interrupt) -> None:
        """Begin: a driver without MULTIPORT has port 0 open from now on."""
        if not self._multiport and 0 in self._ports:
            self.port.set_guest_open(True)
        for slot in self.queues:
            slot.kicked = slot.kicked or slot.enabled

    def deactivate(self) -> None:
        """End."""
        self._size_told = False
        if not self._multiport and 0 in self._ports:
            self.port.set_guest_open(False)

    def queue_enable(self, index: int) -> None:
        """Begin with a queue: something may wait for it."""
        self.queues[index].kicked = True

    def reset(self) -> None:
        """Go back to where the device was before a driver came; what waits in ports stays."""
        with self._control():
            super().reset()
            self.control.clear()
            for port in self.ports:
                port.set_guest_open(False)

    def notified(self, index: int) -> None:
        """Work a queue."""
        if index == CONTROL_IN:
            self._tell(index)
        elif index == CONTROL_OUT:
            self._obey(index)
        elif index < CONTROL_IN or self._multiport:
            number = index // 2 - 1 if index > CONTROL_OUT else 0
            port = self._ports.get(number)
            if index % 2:
                self._take(index, port)
            elif port is not None:
                self._give(index, port)

    # ---- the queues ----

    def _each(self, index: int, wanted: Callable[[], bool]) -> Iterator[Chain]:
        """Yield chains, as :meth:`chains` does, while ``wanted()``; others stay in the queue, with kicks off."""
        left = TURN
        slot, queue = self.queues[index], self.device_queue(index)
        try:
            queue.disable_notification()
            while wanted():
                chain = queue.pop()
                if chain is None:
                    if not queue.enable_notification():
                        return
                    queue.disable_notification()
                    continue
                left -= 1 + (chain.readable_length + chain.writable_length >> PAGE_SHIFT)
                yield chain
                if slot.queue is not queue:  # reset meanwhile: the chain is void
                    return
                queue.add_used(chain)
                if left <= 0:
                    slot.kicked = True
                    return
        finally:
            if slot.queue is queue and queue.needs_notification():
                self.interrupt(index)

    def _give(self, index: int, port: ConsolePort) -> None:
        """Give the guest what waits in a port."""
        for chain in self._each(index, lambda: port.guest_open and port.open and port.out_waiting > 0):
            if chain.readable_length:
                self._refuse("direction", ConsoleError(f"queue {index}: a receive buffer is readable"))
            port.given(chain.write(port.peek(chain.writable_length)))

    def _take(self, index: int, port: ConsolePort | None) -> None:
        """Take what the guest sends."""
        for chain in self._each(index, _always if port is None else port.has_room):
            if chain.writable_length:
                self._refuse("direction", ConsoleError(f"queue {index}: a transmit buffer is writable"))
            if index == 1 and not self._size_told:
                self._tell_size()
            length = chain.readable_length
            if length > CHAIN_MAX:
                self._refuse("too_long", ConsoleError(f"queue {index}: {length} bytes in a chain (limit {CHAIN_MAX})"))
            if port is None:
                self.counters["portless"] += 1
            elif length:
                port.take(chain.read(0, min(length, CHAIN_MAX)))

    def _tell_size(self) -> None:
        """Have the driver look at the size: Linux does so only when told, and has a terminal by the time it writes."""
        self._size_told = True
        if self.negotiated & ConsoleFeature.SIZE and not self._multiport:
            self.config_changed()

    def _tell(self, index: int) -> None:
        """Send the control messages that wait."""
        if not self._multiport:
            return
        for chain in self._each(index, lambda: self.control.waits):
            message = self.control.message()
            if chain.writable_length < len(message):
                what = f"queue {index}: {chain.writable_length} bytes for a control message of {len(message)}"
                self._refuse("short", ConsoleError(what))
                continue
            chain.write(message)
            self.control.told()

    def _obey(self, index: int) -> None:
        """Take control messages."""
        if not self._multiport:
            return
        for chain in self._each(index, _always):
            if chain.writable_length:
                self._refuse("direction", ConsoleError(f"queue {index}: a control message is writable"))
            try:
                self.control.obey(chain.read(0, min(chain.readable_length, 8)))
            except ConsoleError as error:
                self._refuse("control", error)
        self.serve(CONTROL_IN)
        for port in self.ports:
            if port.guest_open and port.out_waiting and port.id is not None:
                self.serve(queues_of(port.id)[0])

    # ---- snapshot ----

    def save(self) -> dict[str, Any]:
        """Return what the driver was told and said of ports, and what waits in them."""
        return {"control": self.control.save(), "ports": [{"id": port.id, **port.save()} for port in self.ports]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what save() gave; tell the driver where a port is open here and was not there, or the reverse."""
        check(state, self.ports, self.max_ports, CHAIN_MAX)
        try:
            self.control.load(**state["control"])
        except ValueError as error:
            raise SnapshotError("control", f"is not possible: {error}") from None
        for port, each in zip(self.ports, state["ports"], strict=True):
            port.load(each)
            if port.id is not None and port.open != bool(each["open"]):
                self.control.changed(port.id, Event.PORT_OPEN)
        self._write_config()


class _Link(Link):
    """What a port has of its device: nothing that keeps it alive."""

    def __init__(self, device: ConsoleDevice, number: int) -> None:
        self._device = ref(device)
        self._number = number
        self._queues = queues_of(number)

    def input(self) -> None:
        if device := self._device():
            device.serve(self._queues[0])

    def output(self) -> None:
        if device := self._device():
            device.serve(self._queues[1])

    def opened(self) -> None:
        if device := self._device():
            device.soon(self._opened)

    def resized(self) -> None:
        if device := self._device():
            device.soon(self._resized)

    def deliver(self, work: Callable[[], object]) -> None:
        if device := self._device():
            device.soon(work)

    def _opened(self) -> None:
        if device := self._device():
            device.told(self._number, Event.PORT_OPEN)

    def _resized(self) -> None:
        if device := self._device():
            device.told(self._number, Event.RESIZE)


def _nothing() -> None:
    """Have kicks served."""


def _always() -> bool:
    return True
