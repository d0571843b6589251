"""PCI: configuration space, MSI-X, the legacy interface of a virtio device, and a small bus for them."""

from virtio.pci.bus import Bus
from virtio.pci.config import ConfigSpace
from virtio.pci.legacy_device import LegacyFunction
from virtio.pci.msix import Msix

__all__ = ["Bus", "ConfigSpace", "LegacyFunction", "Msix"]
