"""What a function is, the report of a bus, and which driver gets which function."""

import json
import subprocess
import sys

import pytest
from fake_pci import IO, MEMORY, FakeFunction, FakePci, bridge, one

from virtio import GuestMemory
from virtio.driver import Driver
from virtio.driver.registry import (
    BUS_PROBE_DEFAULT,
    BUS_PROBE_LOW_PRIORITY,
    Bid,
    choose_driver,
    register_driver,
    registered_drivers,
)
from virtio.errors import ConfigError
from virtio.memory.dma import DmaPool
from virtio.pci.attach import attach, attach_all, choose_transport
from virtio.pci.probe import pci_report, scan, virtio_functions


@pytest.mark.parametrize(
    ("vendor", "device", "revision", "subsystem", "interface", "device_type"),
    [
        (0x1AF4, 0x1000, 0, 1, "legacy", 1),
        (0x1AF4, 0x1005, 0, 4, "legacy", 4),
        (0x1AF4, 0x103F, 0, 77, "legacy", 77),
        (0x1AF4, 0x1000, 1, 1, "unknown", 1),
        (0x1AF4, 0x1041, 1, 0x1100, "modern", 1),
        (0x1AF4, 0x1041, 0, 0x1100, "modern", 1),
        (0x1AF4, 0x107F, 1, 0, "modern", 63),
        (0x1AF4, 0x0FFF, 0, 1, None, 0),
        (0x1AF4, 0x1080, 0, 1, None, 0),
        (0x1AF5, 0x1000, 0, 1, None, 0),
    ],
)
def test_ids(vendor, device, revision, subsystem, interface, device_type):
    found = one(FakeFunction(vendor, device, revision=revision, subsystem=subsystem))
    assert (found.interface, found.device_type) == (interface, device_type)
    assert virtio_functions([found]) == ([found] if interface else [])


def test_report():
    legacy = FakeFunction(bars={0: (0x40, 1), 1: (0x1000, 0)}, pin=1).msix(3)
    legacy.data[0x41] = 0x60
    legacy.data[0x60] = 0x01
    bad = FakeFunction(device=0x1001, subsystem=2)
    bad.data[6] |= 0x10
    bad.data[0x34] = 0x40
    bad.data[0x41] = 0x40
    pci = FakePci(
        {
            (0, 1, 0): legacy,
            (0, 2, 0): FakeFunction(device=0x1041, revision=1, bars={}, pin=0),
            (0, 3, 0): bad,
            (0, 4, 0): bridge(9),
            (0, 5, 0): FakeFunction(0x8086, 0x100E, pin=9),
        }
    )
    functions = scan(pci, io=IO, memory=MEMORY)
    assert pci_report(functions).splitlines() == [
        "00:01.0 1af4:1000 revision 0: virtio net, legacy",
        "    BAR 0: 0x40 bytes of I/O at 0xc000",
        "    BAR 1: 0x1000 bytes of memory at 0xfeb00000",
        "    MSI-X: 3 vectors, table at 0x0 of BAR 1, pending bits at 0x800 of BAR 1",
        "    capabilities: PM",
        "    INTA, line 0",
        "00:02.0 1af4:1041 revision 1: virtio net, modern",
        "    not driven: nothing here drives the interface modern",
        "00:03.0 1af4:1001 revision 0: virtio block, legacy",
        "    BAR 0: 0x40 bytes of I/O not assigned",
        "    capabilities: 0x00",
        "    INTA, line 0",
        "    not usable: the capabilities of 00:03.0 1af4:1001 come back to 0x40 after 1 (limit 48)",
        "00:04.0 8086:2448 revision 0: class 020000, bridge to bus 9",
        "00:05.0 8086:100e revision 0: class 020000",
        "    BAR 0: 0x40 bytes of I/O at 0xc040",
        "    INT?, line 0",
    ]
    data = json.loads(json.dumps([function.to_dict() for function in functions]))
    assert data[0]["bars"][1] == {"index": 1, "kind": "memory", "bits": 32, "size": 4096, "address": 0xFEB00000}
    assert (data[0]["address"], data[0]["virtio"], data[0]["device_type"]) == ("00:01.0", "legacy", 1)
    assert data[0]["msix_vectors"] == 3 and data[0]["fault"] is None
    assert data[2]["fault"].startswith("the capabilities")


class Named(Driver):
    device_type = 1


class Other(Named):
    pass


def test_the_highest_bid_gets_the_device():
    function = one(FakeFunction())
    low, high = Bid(1, Named, BUS_PROBE_LOW_PRIORITY), Bid(1, Other, BUS_PROBE_DEFAULT)
    assert choose_driver(1, [low, high]) is choose_driver(1, [high, low]) is Other
    assert choose_driver(1, [Bid(1, Named), Bid(1, Other)]) is Named  # the first of equals
    assert choose_driver(1, [Bid(4, Other, 0), Bid(1, Named, -100)]) is Named
    with pytest.raises(ConfigError, match=r"00:03.0 1af4:1000 has no driver: none is registered for net"):
        choose_driver(1, [Bid(4, Other)], str(function))


def test_the_highest_transport_gets_the_function():
    function = one(FakeFunction())
    assert choose_transport(function).__name__ == "LegacyTransport"
    assert choose_transport(function).probe(function) == BUS_PROBE_LOW_PRIORITY

    class Better:
        @staticmethod
        def probe(function):
            return BUS_PROBE_DEFAULT

    assert choose_transport(function, [choose_transport(function), Better]) is Better
    for other, match in (
        (FakeFunction(device=0x1041, revision=1), "revision 1 has the interface modern, and no transport"),
        (FakeFunction(device=0x1000, revision=1), "revision 1 has the interface unknown"),
        (FakeFunction(0x8086, 0x100E), "revision 0 has no virtio interface"),
    ):
        with pytest.raises(ConfigError, match=match):
            choose_transport(one(other))


def test_registration():
    before = registered_drivers()
    register_driver(0x7E57, Named)
    register_driver(0x7E57, Named)
    assert registered_drivers() == (*before, Bid(0x7E57, Named, BUS_PROBE_DEFAULT))
    assert choose_driver(0x7E57) is Named


def test_a_types_own_driver_is_found_without_an_import():
    code = "from virtio.driver.registry import choose_driver; print(choose_driver(1).__name__)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"Vtnet\n"


def test_what_cannot_be_attached_says_why():
    memory = GuestMemory.allocate(1 << 16)
    pool = DmaPool(memory, 0, 1 << 16)
    bad = FakeFunction()
    bad.masks[0] = 0xF0F0
    pci = FakePci(
        {
            (0, 1, 0): bad,
            (0, 2, 0): FakeFunction(0x8086, 0x100E),
            (0, 3, 0): FakeFunction(device=0x1041, revision=1, bars={}),
            (0, 4, 0): FakeFunction(subsystem=9),
        }
    )
    functions = scan(pci, io=IO)
    results = attach_all(pci, functions, memory, pool, None, drivers=[Bid(1, Named)])
    assert [str(result) for result in results] == [
        "00:01.0 1af4:1000: BAR 0 of 00:01.0 1af4:1000 decodes the address bits 0xf0f0, which are no size",
        "00:03.0 1af4:1041: 00:03.0 1af4:1041 revision 1 has the interface modern, and no transport here drives that",
        "00:04.0 1af4:1000: 00:04.0 1af4:1000 has no driver: none is registered for p9",
    ]
    assert all(result.driver is None for result in results) and pool.used == 0
    with pytest.raises(ConfigError, match="which are no size"):
        attach(pci, functions[0], memory, pool, None)
