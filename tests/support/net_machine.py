"""A network device behind a port that the test plays, and a raw driver at it."""

from __future__ import annotations

from typing import Any

import pytest
from nic import ALL, PACKED, RawNic, attach
from undone import EVERY, NONE, payload

from bench.kernels.devicebench import ScriptPort
from virtio.constants import Feature
from virtio.constants import NetFeature as F
from virtio.net.device import NetDevice
from virtio.offload import NetHeader

IN_PLACE = pytest.mark.parametrize("in_place", [False, True], ids=["deliver", "reserve"])
GUEST = F.GUEST_CSUM | F.GUEST_TSO4 | F.GUEST_TSO6 | F.GUEST_ECN | F.GUEST_UFO | F.GUEST_USO4 | F.GUEST_USO6
IN_ORDER = int(Feature.IN_ORDER)


def machine(
    *,
    packed: bool = False,
    without: int = 0,
    legacy: bool = False,
    segments: int = 0,
    in_place: bool = False,
    offloads: int = EVERY,
    **options: Any,
) -> tuple[NetDevice, RawNic, ScriptPort]:
    """The driver takes all features but some, ``segments`` is its own; ``options`` are the device's."""
    port = ScriptPort(in_place=in_place, offloads=offloads, queues=options.get("queue_pairs", 1))
    device = NetDevice(port, **options)
    wanted = ALL & ~PACKED & ~int(without) | (PACKED if packed else 0)
    return device, attach(device, wanted, legacy=legacy, segments=segments), port


def both_ways(nic: RawNic, port: ScriptPort, pair: int = 0, size: int = 60) -> bool:
    """Whether a frame passes in each direction."""
    data = payload(size)
    nic.post(1, pair=pair)
    nic.send([(NONE, data)], pair=pair)
    port.give([(NONE, data)], queue=pair)
    nic.device.poll()
    sent = port.take(pair)
    received = nic.receive(pair=pair)
    nic.reap(pair=pair)
    return sent == [(NONE, data)] and [frame for _, frame in received] == [data]


def got(nic: RawNic) -> list[tuple[NetHeader, bytes]]:
    """The frames received; num_buffers, which post() decides, is left out."""
    frames = nic.receive()
    for header, _ in frames:
        header.num_buffers = 0
    return frames
