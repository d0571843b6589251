"""What a device offers, and what it negotiates with a driver."""

from __future__ import annotations

from typing import Any

import pytest
from virtio_device import (
    ACK,
    DRIVER,
    DRIVER_OK,
    FEATURES_OK,
    Echo,
    Guest,
)

from virtio import Feature, NetFeature
from virtio.constants import DeviceType
from virtio.device import Device
from virtio.errors import ConfigError, NegotiationError
from virtio.features import closed, names_of

NET_BITS = sum(NetFeature)


class Net(Device):
    device_type = DeviceType.NET
    features = Device.features | NET_BITS


# ---- what is offered ----


def test_offered_by_default() -> None:
    assert Device.features & Echo().offered == Device.features == Echo().offered
    assert Net().offered == Device.features | NET_BITS
    assert type(Net().offered) is int


@pytest.mark.parametrize("bit", [*Feature, *NetFeature, 1 << 47, 1 << 200], ids=lambda bit: names_of(bit, 1)[0])
def test_every_bit_can_be_offered_or_withheld(bit: int) -> None:
    without = Net(withhold=bit)
    assert not without.offered & bit
    assert without.offered == closed(Net().offered & ~int(bit), DeviceType.NET, offer=True)
    assert Net(offer=bit).offered == Net().offered | bit


def test_what_is_useless_is_offered_if_it_is_asked_for() -> None:
    assert not Net(withhold="CTRL_VQ").offered & NetFeature.CTRL_RX_EXTRA
    assert Net(withhold="CTRL_VQ", offer="CTRL_RX_EXTRA").offered & NetFeature.CTRL_RX_EXTRA


def test_by_name() -> None:
    device = Net(offer="bit 47", withhold=["VIRTIO_NET_F_MQ", "ring_packed"])
    assert device.offered == (Net().offered | 1 << 47) & ~NetFeature.MQ & ~Feature.RING_PACKED


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"offer": "MAC", "withhold": "MAC, MQ"}, "both offered and withheld: MAC$"),
        ({"offer": "HOST_ECN", "withhold": "CSUM"}, r"cannot be offered: HOST_ECN \(needs HOST_TSO4 or HOST_TSO6\)"),
        ({"offer": "NOPE"}, "feature 'NOPE' is unknown"),
        ({"withhold": -1}, "feature set -1 is negative"),
        ({"queue_size": 0}, r"size 0 of queue 0 out of range \(1 to 32768\)"),
        ({"queue_size": 32769}, r"size 32769 of queue 0 out of range \(1 to 32768\)"),
    ],
)
def test_what_cannot_be_made(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Net(**options)


def test_more_queues_than_an_index_can_name() -> None:
    with pytest.raises(ConfigError, match=r"65537 queues \(at most 65536\)"):
        Echo(queues=65537)


def test_the_legacy_interface_has_32_bits_and_the_modern_one_none_of_its_own() -> None:
    device = Net()
    assert device.device_features == device.offered & ~(1 << 24 | 1 << 27 | 1 << 6)
    device.legacy = True
    assert device.device_features == device.offered & 0xFFFFFFFF
    assert device.device_features & (1 << 24) and device.device_features & (1 << 6)


# ---- negotiation ----


def test_what_is_negotiated_is_what_the_driver_accepted() -> None:
    wanted = Feature.VERSION_1 | NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.IPSEC
    device = Guest(Net()).negotiate(wanted).device
    assert device.negotiated == wanted
    assert not device.refused


@pytest.mark.parametrize(
    ("wanted", "rejected", "text"),
    [
        (NetFeature.HOST_TSO4, ("HOST_TSO4",), r"HOST_TSO4 \(needs CSUM\)"),
        (NetFeature.CTRL_VQ | NetFeature.HASH_TUNNEL, ("HASH_TUNNEL",), r"HASH_TUNNEL \(needs HASH_REPORT or RSS\)"),
        (NetFeature.MQ | 1 << 90, ("bit 90", "MQ"), r"bit 90 \(not offered\), MQ \(needs CTRL_VQ\)"),
        (Feature.NOTIFY_ON_EMPTY, ("NOTIFY_ON_EMPTY",), r"NOTIFY_ON_EMPTY \(not offered\)"),
        (NetFeature.MTU, ("MTU",), r"MTU \(not offered\)"),
        # a bit that is not offered is no help to one that needs it
        (NetFeature.RSS_CONTEXT | NetFeature.RSS | NetFeature.CTRL_VQ, ("RSS", "RSS_CONTEXT"), "RSS_CONTEXT"),
    ],
)
def test_a_refused_bit_is_named_and_features_ok_stays_clear(wanted: int, rejected: tuple[str, ...], text: str) -> None:
    device = Guest(Net(withhold="MTU")).device
    device.offered &= ~NetFeature.RSS  # a device that offers what cannot be used, as only a broken one does
    device.write_status(ACK | DRIVER)
    device.driver_features(wanted | Feature.VERSION_1)
    device.write_status(ACK | DRIVER | FEATURES_OK)
    assert device.status == ACK | DRIVER
    assert device.negotiated == 0
    (error,) = device.refused
    assert isinstance(error, NegotiationError)
    assert error.rejected == rejected
    assert (error.offered, error.wanted) == (device.device_features, wanted | Feature.VERSION_1)
    with pytest.raises(NegotiationError, match=text):
        device.check_features(wanted | Feature.VERSION_1)
    # a driver may try again with less
    device.driver_features(Feature.VERSION_1)
    device.write_status(ACK | DRIVER | FEATURES_OK)
    assert device.status == ACK | DRIVER | FEATURES_OK
    assert device.negotiated == Feature.VERSION_1


def test_version_1_must_be_accepted_where_it_is_offered() -> None:
    device = Guest(Net()).device
    device.driver_features(NetFeature.CSUM)
    device.write_status(ACK | DRIVER | FEATURES_OK)
    assert device.status == ACK | DRIVER
    assert "VERSION_1 (must be accepted)" in str(device.refused[0])
    without = Guest(Net(withhold="VERSION_1")).device
    without.driver_features(NetFeature.CSUM)
    without.write_status(ACK | DRIVER | FEATURES_OK)
    assert without.negotiated == NetFeature.CSUM


def test_a_driver_that_accepts_nothing() -> None:
    device = Guest(Net(withhold="VERSION_1")).device
    device.write_status(ACK | DRIVER | FEATURES_OK)
    assert (device.status, device.negotiated) == (ACK | DRIVER | FEATURES_OK, 0)


def test_features_are_fixed_once_they_are_ok() -> None:
    device = Guest(Net()).negotiate(Feature.VERSION_1).device
    device.driver_features(Feature.VERSION_1 | NetFeature.CSUM)
    assert device.negotiated == Feature.VERSION_1
    device.write_status(device.status)
    assert device.negotiated == Feature.VERSION_1
    assert "negotiated already" in str(device.refused[0])


def test_a_legacy_driver_gets_what_it_may_have() -> None:
    device = Guest(Net(withhold="MTU"), legacy=True).device
    device.write_status(ACK | DRIVER)
    # MTU is not offered; MQ lacks CTRL_VQ; HOST_ECN lacks what HOST_TSO4 would give it, if that had CSUM
    device.driver_features(NetFeature.MTU | NetFeature.MQ | NetFeature.HOST_TSO4 | NetFeature.HOST_ECN | NetFeature.MAC)
    assert device.negotiated == NetFeature.MAC
    (error,) = device.refused
    assert isinstance(error, NegotiationError)
    assert set(error.rejected) == {"MTU", "MQ", "HOST_TSO4"}
    device.driver_features(NetFeature.CSUM | Feature.NOTIFY_ON_EMPTY)
    assert device.negotiated == NetFeature.CSUM | Feature.NOTIFY_ON_EMPTY
    device.write_status(ACK | DRIVER | DRIVER_OK)
    device.driver_features(NetFeature.MAC)  # as in QEMU: Linux before 2.6.30 comes with them as late as this
    assert device.negotiated == NetFeature.MAC
