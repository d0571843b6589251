"""Messages on the control queues of a console (VIRTIO 1.4, 5.3.6.2): which are due, and which a driver may send."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any

from virtio.console.ports import ConsolePort
from virtio.errors import VirtioError

HEADER = struct.Struct("<IHH")  # id, event, value
RESIZE = struct.Struct("<HH")  # cols, rows


class Event(IntEnum):
    """``event`` of struct virtio_console_control."""

    DEVICE_READY = 0
    DEVICE_ADD = 1
    DEVICE_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


OURS = (Event.DEVICE_ADD, Event.DEVICE_REMOVE, Event.CONSOLE_PORT, Event.RESIZE, Event.PORT_OPEN, Event.PORT_NAME)


class ConsoleError(VirtioError):
    """The driver broke a rule of the console device. It is counted; the device goes on."""


class Control:
    """The control messages of a device: those that were sent, and those that are due.

    A due message is kept as (port, event), each once. It is built when there is a buffer for it. So their number is
    bounded whatever a driver does, and a message has the port's state of the moment at which it is sent.
    ``rows_first``: struct virtio_console_resize has rows before cols. Threads: under the device's lock.
    """

    def __init__(self, ports: Mapping[int, ConsolePort], *, rows_first: bool = False) -> None:
        self.ports = ports
        self.rows_first = rows_first
        self.ready = False  # DEVICE_READY came
        self.announced: set[int] = set()  # ports of which the driver was told, or is about to be
        self.answered: set[int] = set()  # of these, those of which PORT_READY came
        self._pending: dict[tuple[int, Event], None] = {}

    def clear(self) -> None:
        """Begin anew."""
        self.ready = False
        self.announced.clear()
        self.answered.clear()
        self._pending.clear()

    # ---- what the device says ----

    def add(self, number: int) -> None:
        """Tell of a port, if the driver is ready to hear; else DEVICE_READY has it told."""
        if self.ready:
            self.announced.add(number)
            self._pending[number, Event.DEVICE_ADD] = None

    def remove(self, number: int) -> None:
        """Tell that a port is gone, if the driver was told that it is there."""
        if number not in self.announced:
            return
        self.announced.discard(number)
        self.answered.discard(number)
        told = (number, Event.DEVICE_ADD) not in self._pending
        for event in OURS:
            if event != Event.DEVICE_REMOVE:
                self._pending.pop((number, event), None)
        if told:
            self._pending[number, Event.DEVICE_REMOVE] = None

    def changed(self, number: int, event: Event) -> None:
        """Tell of a change of a port, if the driver has it; else PORT_READY has all of it told."""
        if number in self.answered:
            self._pending[number, event] = None

    @property
    def waits(self) -> bool:
        """Whether there is something to tell."""
        return bool(self._pending)

    def message(self) -> bytes:
        """Return what is to be told first."""
        number, event = next(iter(self._pending))
        if event == Event.DEVICE_REMOVE:
            return HEADER.pack(number, event, 1)
        port = self.ports[number]
        more = b""
        if event == Event.PORT_NAME:
            more = port.name.encode()
        elif event == Event.RESIZE:
            more = RESIZE.pack(*(port.rows, port.cols) if self.rows_first else (port.cols, port.rows))
        return HEADER.pack(number, event, int(port.open) if event == Event.PORT_OPEN else 1) + more

    def told(self) -> None:
        """Take note that the first message went out."""
        del self._pending[next(iter(self._pending))]

    # ---- what the driver says ----

    def obey(self, message: bytes) -> None:
        """Take a message of the driver, of which 8 bytes count. Raises ConsoleError for one that cannot be."""
        if len(message) < HEADER.size:
            raise ConsoleError(f"control message of {len(message)} bytes (at least {HEADER.size})")
        number, event, value = HEADER.unpack_from(message)
        if event == Event.DEVICE_READY:
            self._device_ready(value)
        elif event in (Event.PORT_READY, Event.PORT_OPEN):
            what = f"{Event(event).name} {value} of port {number}"
            if number not in self.announced or (number, Event.DEVICE_ADD) in self._pending:
                raise ConsoleError(f"{what}: the driver was told of no such port")
            if value > 1:
                raise ConsoleError(f"{what}: neither 0 nor 1")
            if event == Event.PORT_OPEN:
                self.ports[number].set_guest_open(bool(value))
            elif value:
                self._port_ready(number)
            else:
                raise ConsoleError(f"{what}: the driver cannot use it")
        else:
            raise ConsoleError(f"control message with event {event}, which is none of a driver's")

    def _device_ready(self, value: int) -> None:
        """Tell of all ports. A driver that says it again began anew: vhost-user may hide the reset between."""
        self.clear()
        for port in self.ports.values():
            port.set_guest_open(False)
        if value != 1:
            raise ConsoleError(f"DEVICE_READY {value}: the driver cannot use the device")
        self.ready = True
        for number in self.ports:
            self.add(number)

    def _port_ready(self, number: int) -> None:
        """Tell all of a port, once."""
        if number in self.answered:
            return
        self.answered.add(number)
        port = self.ports[number]
        if port.console:
            self.changed(number, Event.CONSOLE_PORT)
            if port.rows or port.cols:
                self.changed(number, Event.RESIZE)
        if port.name:
            self.changed(number, Event.PORT_NAME)
        if port.open:
            self.changed(number, Event.PORT_OPEN)

    # ---- snapshot ----

    def save(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return {
            "ready": self.ready,
            "announced": sorted(self.announced),
            "answered": sorted(self.answered),
            "pending": [[number, int(event)] for number, event in self._pending],
        }

    def load(
        self, ready: bool, announced: Iterable[int], answered: Iterable[int], pending: Iterable[list[int]]
    ) -> None:
        """Take back what :meth:`save` gave. Raises ValueError for what cannot be."""
        told, known = set(announced), set(answered)
        waiting = {(number, Event(event)): None for number, event in pending}
        if not (told <= set(self.ports) and known <= told and (ready or not told)):
            raise ValueError(f"ports {sorted(told)} announced and {sorted(known)} answered cannot be")
        for number, event in waiting:
            if event not in OURS or (number not in told and event != Event.DEVICE_REMOVE):
                raise ValueError(f"{event.name} of port {number} cannot be pending")
        self.ready, self.announced, self.answered, self._pending = ready, told, known, waiting
