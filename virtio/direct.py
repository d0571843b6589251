"""A device and its driver in one process: the way from one to the other without registers."""

from __future__ import annotations

from collections.abc import Sequence

from virtio.constants import Status
from virtio.device import Device
from virtio.errors import ConfigError, DeviceBroken, NegotiationError
from virtio.event.notifier import Bell
from virtio.memory.guest_memory import GuestMemory
from virtio.virtqueue.layout import QueueLayout


class DriverBells:
    """What the device has of its driver: the bells alone, so that neither keeps the other alive."""

    def __init__(self) -> None:
        self.changed = Bell()
        self.queues: dict[int, Bell] = {}
        self.silent = Bell()  # for queues without interrupts: no thread sleeps on it, so a ring costs next to nothing

    def queue(self, index: int) -> Bell:
        """Return the bell that the device rings for a queue: that of ``interrupt_bells``, or one without a listener."""
        return self.queues.get(index, self.silent)

    def config(self) -> None:
        """Raise the configuration interrupt."""
        self.changed.ring()


class DirectTransport:
    """The :class:`virtio.driver.Transport` straight onto a :class:`virtio.device.Device`, with all modern features.

    Kicks and interrupts are the device's bells themselves, so no Python runs for them where both ends are compiled.
    ``legacy`` shows the device through the legacy interface instead: 32 feature bits, no FEATURES_OK, queues of the
    device's size.

    A device that refuses something cannot say why through registers; here it can: setting FEATURES_OK raises
    NegotiationError, ``setup_queue`` ConfigError. RuntimeError if the device is live already. Threads: one at a time;
    bells are for any.
    """

    def __init__(self, device: Device, memory: GuestMemory, *, legacy: bool = False) -> None:
        self.device = device
        self.memory = memory
        self.legacy = legacy
        self._bells = DriverBells()
        self.config_bell = self._bells.changed
        device.legacy = legacy
        device.bind(memory, self._bells)

    # ---- what the driver has of it ----

    @property
    def device_type(self) -> int:
        """Type of the device."""
        return self.device.device_type

    @property
    def status(self) -> int:
        """Device status. Setting it adds bits; NegotiationError if the device refuses the features."""
        return self.device.status

    @status.setter
    def status(self, bits: int) -> None:
        self.device.write_status(self.device.status | bits)
        if bits & Status.FEATURES_OK and not self.device.status & Status.FEATURES_OK and self.device.refused:
            error = self.device.refused[-1]
            if isinstance(error, NegotiationError):
                raise error

    @property
    def generation(self) -> int:
        """Number that changes when the configuration does."""
        return 0 if self.legacy else self.device.generation

    def reset(self) -> None:
        """Reset the device."""
        self.device.write_status(0)

    def read_features(self) -> int:
        """Return the bits that the device offers."""
        return self.device.device_features

    def write_features(self, bits: int) -> None:
        """Accept these bits."""
        self.device.driver_features(bits)

    def read_config(self, offset: int, size: int) -> bytes:
        """Read the device's configuration."""
        return self.device.read_config(offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        """Write the device's configuration."""
        self.device.write_config(offset, data)

    def queue_size(self, index: int) -> int:
        """Return the largest size of a queue; 0 if there is no such queue."""
        queues = self.device.queues
        return queues[index].size_max if 0 <= index < len(queues) else 0

    def setup_queue(self, index: int, layout: QueueLayout) -> None:
        """Tell the device where a queue lies, and enable it. ConfigError if the device refuses."""
        if not self.device.setup_queue(index, layout):
            raise ConfigError(str(self.device.refused[-1]))

    def reset_queue(self, index: int) -> None:
        """Make the device let go of one queue. DeviceBroken if it refuses."""
        if not self.device.reset_queue(index):
            raise DeviceBroken(str(self.device.refused[-1]))

    def kick_bell(self, index: int) -> Bell:
        """Return the bell that kicks a queue. ConfigError if there is no such queue."""
        if not self.queue_size(index):
            raise ConfigError(f"queue {index} out of range ({len(self.device.queues)} queues)")
        return self.device.queues[index].kick

    def interrupt_bells(self, queues: Sequence[int]) -> list[Bell]:
        """Route the queues' interrupts; return a bell for each."""
        for index in queues:
            if index not in self._bells.queues:
                self._bells.queues[index] = Bell()
                self.device.set_call(index, self._bells.queues[index])
        return [self._bells.queues[index] for index in queues]

    def release(self) -> None:
        """Let go of the interrupts. May be used anew."""
        for index in self._bells.queues:
            self.device.set_call(index, self._bells.silent)
        self._bells.queues.clear()
