"""The entropy device (VIRTIO 1.4, 5.4): a whole device type, in Python.

Show it to a driver by any transport, for example ``virtio.direct.DirectTransport(Entropy(), memory)``.
"""

from __future__ import annotations

import os

from virtio.constants import DeviceType
from virtio.device import Device


class Entropy(Device):
    """Fills each buffer that the driver gives it with random bytes. One queue, no config space."""

    device_type = DeviceType.ENTROPY

    def notified(self, index: int) -> None:
        for chain in self.chains(index):
            chain.write(os.urandom(chain.writable_length))
