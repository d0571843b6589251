"""The entropy device (VIRTIO 1.4, 5.4): a whole device type, in Python.

Show it to a driver by any transport, for example ``virtio.direct.DirectTransport(Entropy(), memory)``.
"""

from __future__ import annotations

import os

from virtio.constants import DeviceType
from virtio.device import Device

LIMIT = 1 << 16  # bytes for a request: a device may give fewer than were asked for (5.4.6.2)


class Entropy(Device):
    """Fills the buffers of its driver with random bytes. One queue, no configuration."""

    device_type = DeviceType.ENTROPY

    def notified(self, index: int) -> None:
        for chain in self.chains(index):
            chain.write(os.urandom(min(chain.writable_length, LIMIT)))
