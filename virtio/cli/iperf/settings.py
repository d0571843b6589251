"""What ``virtio iperf`` measures: what can be chosen, and what is chosen by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from virtio.constants import NetFeature

Direction = Literal["guest-to-host", "host-to-guest"]
DIRECTIONS: tuple[Direction, ...] = ("guest-to-host", "host-to-guest")
ROWS = ("vtnet", "vtnet-off", "tap-loop")
SPIN_US = 0  # sender, receiver and data path share few CPUs: who waits had better sleep

N = NetFeature
# by the names of the command's options: what the row without offloads withholds
OFFLOADS: dict[str, int] = {
    "csum": N.CSUM | N.GUEST_CSUM,
    # GSO is the legacy interface's word for all that the device can cut
    "tso4": N.HOST_TSO4 | N.GUEST_TSO4 | N.GSO,
    "tso6": N.HOST_TSO6 | N.GUEST_TSO6 | N.GSO,
    "ecn": N.HOST_ECN | N.GUEST_ECN | N.GSO,
    "ufo": N.HOST_UFO | N.GUEST_UFO | N.GSO,
    "uso": N.HOST_USO | N.GUEST_USO4 | N.GUEST_USO6,
}


@dataclass(frozen=True)
class Settings:
    """What is measured. ``withheld``: feature bits that the device does not offer, in any row."""

    runs: int = 10
    seconds: float = 0.5
    directions: Sequence[Direction] = DIRECTIONS
    rows: Sequence[str] = ROWS
    mtu: int = 1500
    ipv6: bool = False
    queues: int = 1
    streams: int = 1
    withheld: int = 0
    packed: bool = False
    queue_size: int = 256
    workers: int = 1
    mode: Literal["adaptive", "busy"] = "adaptive"
    spin_us: int = SPIN_US
    iperf3: bool = False
    generator: bool = False
    verbose: bool = False
