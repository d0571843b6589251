"""Device types, a line each: the folder in which everything about one is. A new type is a folder and a line here.

In the folder, ``features`` has the type's feature bits (TABLE). The module ``driver`` registers the driver by
:func:`virtio.driver.registry.register_driver`, if there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

from virtio.constants import DeviceType


@dataclass(frozen=True)
class Home:
    """Where a device type is: its ``folder`` (a package), and in it the module of its ``driver``, if it has one."""

    folder: str
    driver: str | None = None


TYPES: dict[int, Home] = {
    DeviceType.NET: Home("virtio.net", driver="vtnet"),
    DeviceType.CONSOLE: Home("virtio.console"),
}
