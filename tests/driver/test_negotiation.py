"""Negotiation by a driver: what is accepted, why the rest is not, and the report that says it."""

import json

import pytest
from fake_transport import MEMORY, FakeTransport, Nic, nic

from virtio import Feature, GuestMemory, NetFeature
from virtio.constants import Status
from virtio.driver import RING_FEATURES
from virtio.errors import ConfigError, NegotiationError
from virtio.memory.dma import DmaPool


@pytest.fixture
def memory():
    return GuestMemory.allocate(MEMORY)


@pytest.fixture
def pool(memory):
    return DmaPool(memory, 0x1000, MEMORY - 0x1000)


def test_report(memory, pool):
    offered = NetFeature.MAC | NetFeature.MQ | NetFeature.HOST_TSO4 | NetFeature.HOST_ECN | Feature.VERSION_1
    driver = nic(memory, pool, offered=offered | 1 << 47)
    driver.attach()
    report = driver.negotiation
    assert report.to_dict() == {
        "device_type": 1,
        "legacy": False,
        "offered": ["MAC", "HOST_TSO4", "HOST_ECN", "MQ", "VERSION_1", "bit 47"],
        "wanted": [
            *("CSUM", "MAC", "HOST_TSO4", "HOST_ECN", "ANY_LAYOUT"),
            *("INDIRECT_DESC", "EVENT_IDX", "VERSION_1", "RING_RESET"),
        ],
        "required": ["VERSION_1"],
        "got": ["MAC", "VERSION_1"],
        "refused": {
            "CSUM": "not offered",
            "HOST_TSO4": "needs CSUM",
            "HOST_ECN": "needs HOST_TSO4 or HOST_TSO6",
            "ANY_LAYOUT": "not part of the modern interface",
            "INDIRECT_DESC": "not offered",
            "EVENT_IDX": "not offered",
            "RING_RESET": "not offered",
        },
    }
    json.dumps(report.to_dict())
    lines = str(report).splitlines()
    assert lines[0] == "net device, modern interface: 6 features offered, 9 wanted, 2 negotiated"
    assert lines[1].split() == ["bit", "feature", "offered", "wanted", "got"]
    rows = {line.split()[1]: line.split(maxsplit=5) for line in lines[2:]}
    assert rows["MAC"] == ["5", "MAC", "yes", "yes", "yes"]
    assert rows["HOST_TSO4"] == ["11", "HOST_TSO4", "yes", "yes", "-", "needs CSUM"]
    assert rows["MQ"] == ["22", "MQ", "yes", "-", "-", "not wanted"]
    assert rows["CSUM"] == ["0", "CSUM", "-", "yes", "-", "not offered"]
    assert len(lines) == 2 + 11


def test_bits_above_64_are_negotiated(memory, pool):
    base = "CTRL_VQ, RSS, VERSION_1"
    high = NetFeature.RSS_CONTEXT | NetFeature.CTRL_VQ | NetFeature.RSS | Feature.VERSION_1 | 1 << 100
    driver = Nic(FakeTransport(memory, offered=high), pool, wanted=base + ", RSS_CONTEXT, bit 100")
    driver.attach()
    assert driver.features == driver.transport.accepted == high
    driver.detach()
    driver = Nic(FakeTransport(memory, offered=high), pool, wanted=base + ", RSS_CONTEXT", required="bit 101")
    with pytest.raises(NegotiationError, match=r"missing: bit 101 \(not wanted\)"):
        driver.attach()


def test_legacy_never_accepts_bit_32(memory, pool):
    transport = FakeTransport(memory, legacy=True)
    transport.offered = RING_FEATURES | Feature.NOTIFY_ON_EMPTY  # a device that shows bits that legacy cannot carry
    driver = Nic(transport, pool, wanted=RING_FEATURES | Feature.NOTIFY_ON_EMPTY)
    driver.attach()
    assert driver.negotiation.names(driver.features) == ["NOTIFY_ON_EMPTY", "ANY_LAYOUT", "INDIRECT_DESC", "EVENT_IDX"]
    assert driver.negotiation.refused["RING_RESET"] == "not part of the legacy interface"
    assert str(driver.negotiation).startswith("net device, legacy interface: ")


def test_what_the_rings_do_not_do_is_not_accepted(memory, pool):
    everything = sum(Feature)
    driver = Nic(FakeTransport(memory, offered=everything), pool, wanted=everything)
    driver.attach()
    assert driver.negotiation.names(driver.features) == [
        *("INDIRECT_DESC", "EVENT_IDX", "VERSION_1", "RING_PACKED", "IN_ORDER", "RING_RESET")
    ]
    assert driver.negotiation.refused["NOTIFICATION_DATA"] == "not done by the driver's rings"
    assert driver.negotiation.refused["ACCESS_PLATFORM"] == "not done by the driver's rings"


def test_required_features(memory, pool):
    driver = Nic(FakeTransport(memory), pool, required="MAC, INDIRECT_DESC")
    with pytest.raises(NegotiationError, match=r"required features are missing: MAC \(not offered\)$") as e:
        driver.attach()
    assert e.value.rejected == ("MAC",)
    driver = Nic(FakeTransport(memory, offered=NetFeature.HOST_TSO4 | Feature.VERSION_1), pool, required="HOST_TSO4")
    with pytest.raises(NegotiationError, match=r"HOST_TSO4 \(needs CSUM\)"):
        driver.attach()
    driver = nic(memory, pool, offered=Feature.INDIRECT_DESC)
    with pytest.raises(NegotiationError, match=r"VERSION_1 \(not offered\)") as e:
        driver.attach()
    assert e.value.offered == Feature.INDIRECT_DESC
    with pytest.raises(ValueError, match="unknown"):
        Nic(FakeTransport(memory), pool, required="MAAC")


def test_adjust_drops_and_what_needs_it_goes_too(memory, pool):
    class NoChecksum(Nic):
        def adjust(self, features):
            self.seen = features
            return features & ~NetFeature.CSUM | NetFeature.MQ  # and cannot add

    offered = Nic.wanted | Feature.VERSION_1
    driver = nic(memory, pool, NoChecksum, offered=offered)
    driver.attach()
    assert driver.seen == offered & ~Feature.ANY_LAYOUT
    assert driver.features == driver.seen & ~(NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.HOST_ECN)
    assert driver.negotiation.refused["CSUM"] == "dropped by the driver"
    assert driver.negotiation.refused["HOST_TSO4"] == "needs CSUM"
    assert driver.negotiation.refused["HOST_ECN"] == "needs HOST_TSO4 or HOST_TSO6"


def test_a_device_that_refuses(memory, pool):
    driver = nic(memory, pool)
    driver.transport.accepts_features = False
    with pytest.raises(NegotiationError, match="INDIRECT_DESC, VERSION_1: FEATURES_OK stays clear") as e:
        driver.attach()
    assert e.value.rejected == ("INDIRECT_DESC", "VERSION_1")
    assert driver.transport.status == Status.FAILED and pool.allocations == {}


def test_wrong_type(memory, pool):
    with pytest.raises(ConfigError, match="Nic drives devices of type 1, not 4"):
        nic(memory, pool, device_type=4)
