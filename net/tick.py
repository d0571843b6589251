"""What a network driver does about once a second, on a thread."""

from __future__ import annotations

import select
import threading
from typing import TYPE_CHECKING

from virtio.core.logs import limited
from virtio.errors import VirtioError
from virtio.event.notifier import Bell

if TYPE_CHECKING:
    from virtio.net.vtnet import Vtnet

log = limited("virtio.vtnet")


class Ticker:
    """Calls ``nic.tick()`` each ``interval`` seconds, and at once when the device's configuration changes.

    What it raises, or what it calls, is logged, and the next tick comes all the same.
    """

    def __init__(self, nic: Vtnet, interval: float) -> None:
        self.nic = nic
        self.interval = interval
        self._end = Bell()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="virtio-vtnet", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._end.fileno(), select.POLLIN)
        poll.register(self.nic.transport.config_bell.fileno(), select.POLLIN)
        while True:
            poll.poll(self.interval * 1000)
            if self._ended:
                return
            if not self.nic.attached:  # its bell is answered when it is up again
                if self._wait_a_little():
                    return
                continue
            try:
                self.nic.tick()
            except Exception as error:  # a user's on_link may raise anything; the next tick comes all the same
                if isinstance(error, VirtioError):
                    log.error("%s", error)
                else:
                    log.exception("tick failed")
                if self._wait_a_little():
                    return

    def _wait_a_little(self) -> bool:
        """A bell that nobody answers is not to be looked at without end. True: it is over."""
        poll = select.poll()
        poll.register(self._end.fileno(), select.POLLIN)
        return bool(poll.poll(self.interval * 1000))

    def stop(self) -> None:
        """End the thread, and wait for it."""
        self._ended = True
        self._end.ring()
        self._thread.join()
