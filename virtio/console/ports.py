"""What is behind a console device: ports, each a byte stream to the guest and one from it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from typing_extensions import Buffer

from virtio.core.logs import limited
from virtio.core.weak import weakly
from virtio.errors import in_full

log = limited("virtio.console")

LIMIT = 1 << 16  # bytes that wait in a port, each way
NAME_MAX = 120  # bytes: FreeBSD gives control messages buffers of 128 bytes
SIZE_MAX = 0xFFFF  # rows, columns


class Link:
    """The way from a port to its device. That of a port without a device does nothing."""

    def input(self) -> None:
        """Move bytes from the port to the guest's buffers."""

    def output(self) -> None:
        """Move bytes from the guest's buffers to the port, which has room again."""

    def opened(self) -> None:
        """Send PORT_OPEN: the port was opened or closed."""

    def resized(self) -> None:
        """Send RESIZE, or change the configuration: the console has another size."""

    def deliver(self, work: Callable[[], object]) -> None:
        """Do something under the device's lock, so that no bytes come from the guest meanwhile."""
        work()


class ConsolePort:
    """One port of a :class:`~virtio.console.ConsoleDevice` (VIRTIO 1.4, 5.3).

    ``name`` is shown to a driver with MULTIPORT: at most 120 bytes of UTF-8, no NUL. ``console``: such a driver makes a
    terminal of the port (Linux: /dev/hvc0), else a byte stream (Linux: /dev/vport0p1, with its name in
    /sys/class/virtio-ports). ``limit`` is the number of bytes that wait in the port at most, for each direction; one
    chain of the guest may exceed it. ValueError is raised for a name or a limit that cannot be.

    Bytes from the guest go to ``on_data(data)``; while that is None they wait for :meth:`read`. Once ``limit`` bytes
    wait, further chains stay in the guest's queue, and a Linux guest that writes to a terminal spins. With ``lossy``
    the oldest bytes are dropped instead, and counted. ``on_open(opened)`` is called when the guest opens or closes the
    port; without MULTIPORT, when its driver comes or goes. ``on_ready()`` is called when :meth:`read` has something to
    return, and when :meth:`write` has room again after a time without.

    Callbacks run under the device's lock, on the thread that kicked the device or used the port. They may call any
    method but :meth:`wait`, and must not wait for another thread that uses the device. An exception of theirs is
    logged, and counted as ``callback_errors``.

    ``counters`` has ``in_bytes`` (given to the guest), ``out_bytes`` (taken from it), ``dropped_bytes`` (taken, and
    dropped because the port was closed or lossy) and ``callback_errors``. Threads: any.
    """

    def __init__(
        self,
        name: str = "",
        *,
        console: bool = False,
        limit: int = LIMIT,
        lossy: bool = False,
        on_data: Callable[[bytes], object] | None = None,
        on_open: Callable[[bool], object] | None = None,
        on_ready: Callable[[], object] | None = None,
    ) -> None:
        if len(name.encode()) > NAME_MAX or "\0" in name:
            raise ValueError(f"port name {name!r:.200}: at most {NAME_MAX} bytes of UTF-8, without NUL")
        if limit < 1:
            raise ValueError(f"limit of {limit} bytes: at least 1")
        self.name = name
        self.console = console
        self.limit = limit
        self.lossy = lossy
        self.on_open = on_open
        self.on_ready = on_ready
        self.id: int | None = None  # number in its device
        self.guest_open = False  # the guest has it open; without MULTIPORT: the driver is there
        self.rows = self.cols = 0  # of a console; 0: unknown
        self.counters: Counter[str] = Counter()
        self._on_data = on_data
        self._open = True
        self._link = Link()
        self._input, self._output = bytearray(), bytearray()
        self._changed = threading.Condition()  # its lock is for the buffers
        self._full = False  # the guest's buffers wait for room
        self._short = False  # write() found no room, or left none
        self._deliver = weakly(self.deliver)

    def __repr__(self) -> str:
        state = "open" if self._open else "closed"
        return f"<ConsolePort {self.id}: {self.name!r}, {state}, guest {'open' if self.guest_open else 'closed'}>"

    # ---- for its user ----

    def write(self, data: Buffer) -> int:
        """Send bytes to the guest; return how many were taken: fewer than given once ``limit`` bytes wait.

        They wait until the guest has a buffer for them and, with MULTIPORT, has the port open. 0 if the port is closed.
        """
        view = memoryview(data).cast("B")
        with self._changed:
            taken = min(len(view), self.limit - len(self._input)) if self._open else 0
            self._input += view[:taken]
            self._short = self._open and len(self._input) >= self.limit
        if taken:
            self._link.input()
        return taken

    def read(self, size: int = -1) -> bytes:
        """Return what the guest sent: at most ``size`` bytes, or all of it; b"" if there is nothing. Never waits."""
        with self._changed:
            data = bytes(self._output if size < 0 else self._output[:size])
            del self._output[: len(data)]
            full, self._full = self._full, self._full and not data
        if full and data:
            self._link.output()
        return data

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until there is something to :meth:`read`, or for so many seconds; return whether there is."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._output), seconds)

    @property
    def in_waiting(self) -> int:
        """Bytes that :meth:`read` would return."""
        return len(self._output)

    @property
    def out_waiting(self) -> int:
        """Bytes that wait for the guest's buffers."""
        return len(self._input)

    @property
    def on_data(self) -> Callable[[bytes], object] | None:
        """Function that gets the bytes from the guest. A new one gets first what waited for :meth:`read`."""
        return self._on_data

    @on_data.setter
    def on_data(self, target: Callable[[bytes], object] | None) -> None:
        self._on_data = target
        self._link.deliver(self._deliver)

    @property
    def open(self) -> bool:
        """Whether the port is open on this side: True at first. A driver with MULTIPORT gets PORT_OPEN (5.3.6.2).

        While it is False, bytes from the guest are dropped and counted, and none are sent to it.
        """
        return self._open

    @open.setter
    def open(self, value: bool) -> None:
        if value != self._open:
            self._open = value
            self._link.opened()
            self._link.input()
            self._link.output()
            self._call(self.on_ready)

    def resize(self, rows: int, cols: int) -> None:
        """Change the size of the console, in characters. ValueError unless both are 0 to 65535.

        Without MULTIPORT only port 0 has a size, in the configuration (5.3.4).
        """
        if not (0 <= rows <= SIZE_MAX and 0 <= cols <= SIZE_MAX):
            raise ValueError(f"{rows} rows, {cols} columns: 0 to {SIZE_MAX} each")
        self.rows, self.cols = rows, cols
        self._link.resized()

    # ---- for its device, which calls under its lock ----

    def attach(self, number: int, link: Link) -> None:
        """Belong to a device. ValueError if it belongs to one already."""
        if self.id is not None:
            raise ValueError(f"{self!r} belongs to a device already")
        self.id, self._link = number, link

    def detach(self) -> None:
        """Belong to no device."""
        self.id, self._link = None, Link()
        self.set_guest_open(False)

    def take(self, data: bytes) -> None:
        """Take what the guest sent: all of it, up to the size of one chain more than ``limit``."""
        self.counters["out_bytes"] += len(data)
        if not self._open:
            self.counters["dropped_bytes"] += len(data)
            return
        with self._changed:
            self._output += data
            if self.lossy and self._on_data is None and (beyond := len(self._output) - self.limit) > 0:
                del self._output[:beyond]
                self.counters["dropped_bytes"] += beyond
            self._changed.notify_all()
        self.deliver()

    def has_room(self) -> bool:
        """Say whether the port takes what the guest sends; if not, Link.output is called when it does again."""
        with self._changed:
            room = not self._open or self.lossy or len(self._output) < self.limit
            self._full = not room
            return room

    def deliver(self) -> None:
        """Call ``on_data`` with what waits, or say that something does."""
        if self._on_data is None:
            self._call(self.on_ready)
        elif data := self.read():
            self._call(self._on_data, data)

    def peek(self, size: int) -> bytes:
        """Return the first bytes that wait for the guest."""
        return bytes(self._input[:size])

    def given(self, size: int) -> None:
        """Forget bytes that the guest has."""
        self.counters["in_bytes"] += size
        with self._changed:
            del self._input[:size]
            short, self._short = self._short, self._short and not size
        if short and size:
            self._call(self.on_ready)

    def set_guest_open(self, opened: bool) -> None:
        """Take note of whether the guest has the port open."""
        if opened != self.guest_open:
            self.guest_open = opened
            self._call(self.on_open, opened)

    def _call(self, function: Callable[..., object] | None, *arguments: Any) -> None:
        if function is None:
            return
        try:
            function(*arguments)
        except Exception as error:
            self.counters["callback_errors"] += 1
            log.error("%r: callback\n%s", self, in_full(error))

    def save(self) -> dict[str, Any]:
        """Return what a snapshot needs, JSON-able; what waits in the port is in it."""
        with self._changed:
            return {
                "name": self.name,
                "open": self._open,
                "guest_open": self.guest_open,
                "rows": self.rows,
                "cols": self.cols,
                "input": self._input.hex(),
                "output": self._output.hex(),
            }

    def load(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`save` gave; what waited here is dropped. ``open`` stays this port's own."""
        with self._changed:
            self.rows, self.cols = state["rows"], state["cols"]
            self._input[:] = bytes.fromhex(state["input"])
            self._output[:] = bytes.fromhex(state["output"])
            self._changed.notify_all()
        self.set_guest_open(bool(state["guest_open"]))
        self.deliver()
