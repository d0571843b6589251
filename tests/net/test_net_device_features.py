"""The network device's features: what is offered, and that each works on and off."""

from __future__ import annotations

import pytest
from net_machine import both_ways
from nic import ALL, attach
from undone import ufo, undone

from bench.kernels.devicebench import ScriptPort
from virtio.constants import Feature
from virtio.constants import NetFeature as F
from virtio.errors import NegotiationError
from virtio.features import LEGACY_BITS, closed
from virtio.net.device import NetDevice

NET_BITS = [
    F.CSUM, F.GUEST_CSUM, F.CTRL_GUEST_OFFLOADS, F.MTU, F.MAC, F.GSO, F.GUEST_TSO4, F.GUEST_TSO6, F.GUEST_ECN,
    F.GUEST_UFO, F.HOST_TSO4, F.HOST_TSO6, F.HOST_ECN, F.HOST_UFO, F.MRG_RXBUF, F.STATUS, F.CTRL_VQ, F.CTRL_RX,
    F.CTRL_VLAN, F.CTRL_RX_EXTRA, F.GUEST_ANNOUNCE, F.MQ, F.CTRL_MAC_ADDR, F.GUEST_USO4, F.GUEST_USO6, F.HOST_USO,
    F.SPEED_DUPLEX,
]  # fmt: skip
RING_BITS = [
    Feature.NOTIFY_ON_EMPTY, Feature.ANY_LAYOUT, Feature.INDIRECT_DESC, Feature.EVENT_IDX, Feature.VERSION_1,
    Feature.RING_PACKED, Feature.IN_ORDER, Feature.RING_RESET,
]  # fmt: skip
LEGACY_ONLY = (F.GSO, Feature.NOTIFY_ON_EMPTY, Feature.ANY_LAYOUT)


def test_what_is_offered() -> None:
    device = NetDevice(ScriptPort(queues=2), mtu=1500, queue_pairs=2)
    assert device.offered == sum({*NET_BITS, *RING_BITS})
    device.legacy = True
    assert device.device_features == sum({*NET_BITS, *RING_BITS}) & LEGACY_BITS
    assert not NetDevice().offered & (F.MQ | F.MTU)


@pytest.mark.parametrize("bit", [*NET_BITS, *RING_BITS], ids=lambda bit: bit.name)
@pytest.mark.parametrize("legacy", [False, True], ids=["modern", "legacy"])
def test_each_bit_on_and_off(bit: F, legacy: bool) -> None:
    """The device works with the bit negotiated, declined and withheld, and then what needs it is not there either."""
    for on in (True, False):
        for withhold in (0, bit) if not on else (0,):
            port = ScriptPort(queues=2, offloads=0x1FF)
            device = NetDevice(port, mtu=1500, queue_pairs=2, withhold=withhold)
            assert not device.offered & withhold
            offered = device.offered
            if bit == Feature.VERSION_1 and not legacy and not on:
                continue  # not a modern device without it: see test_direct
            nic = attach(device, ALL if on else closed(ALL & ~bit, 1), legacy=legacy)
            device_has = offered & (LEGACY_BITS if legacy else ~0)
            assert bool(nic.features & bit) == (on and bool(device_has & bit) and (legacy or bit not in LEGACY_ONLY))
            assert both_ways(nic, port)
            if nic.features & F.CTRL_RX:
                assert nic.control(0, 0, b"\1") == 0


def test_a_bit_that_was_not_offered_is_refused_by_name() -> None:
    device = NetDevice(withhold="GUEST_TSO4")
    transport_features = device.device_features | F.GUEST_TSO4
    with pytest.raises(NegotiationError, match=r"GUEST_TSO4 \(not offered\)"):
        device.check_features(transport_features)
    with pytest.raises(NegotiationError, match=r"GUEST_TSO6 \(needs GUEST_CSUM\)"):
        device.check_features(device.device_features & ~F.GUEST_CSUM)


@pytest.mark.parametrize("bit", ["CSUM", "HOST_TSO4", "HOST_TSO6", "HOST_ECN", "HOST_UFO"])
def test_the_legacy_offload_bit_is_offered_with_all_that_it_stands_for(bit: str) -> None:
    """A legacy driver takes it for all kinds of GSO: Linux before 2.6.25 knows no other bit, FreeBSD asks for both."""
    assert NetDevice().offered & F.GSO
    assert not NetDevice(withhold=bit).offered & F.GSO
    assert NetDevice(withhold="HOST_USO").offered & F.GSO  # younger than it
    if bit != "CSUM":
        assert NetDevice(withhold=bit, offer="GSO").offered & F.GSO


@pytest.mark.parametrize("kind", ["tcp4", "tcp6", "tcp4-ecn", "ufo"])
def test_the_legacy_offload_bit_stands_for_all_kinds(kind: str) -> None:
    """A legacy guest that accepts CSUM and GSO may ask for TSO of IPv4 and IPv6, with ECN, and for UFO."""
    port = ScriptPort(offloads=0x1FF)
    nic = attach(NetDevice(port), int(F.CSUM | F.GSO), legacy=True)
    header, frame = ufo(4000, 1480) if kind == "ufo" else undone(kind, 4000, 1000)
    nic.send([(header, frame)])
    nic.device.poll()
    assert [found for _, found in port.take()] == [frame]
    assert nic.device.statistics()["tx0"]["dropped"] == {}
    modern = attach(NetDevice(ScriptPort(offloads=0x1FF), offer=int(F.GSO)), int(F.CSUM | Feature.VERSION_1))
    modern.send([(header, frame)])
    modern.device.poll()
    assert modern.device.statistics()["tx0"]["dropped"] == {"gso_feature": 1}
