"""A virtio device: status, features, configuration, queues, snapshot."""

from virtio.device.device import Device

__all__ = ["Device"]
