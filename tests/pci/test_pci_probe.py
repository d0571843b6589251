"""The probe of PCI buses: what it finds, that it leaves no trace, and that no function can lead it astray."""

import itertools
import json
import random

import pytest
from fake_pci import IO, MEMORY, FakeFunction, FakePci, bridge, one

from virtio.errors import ConfigError
from virtio.pci.probe import (
    Address,
    Window,
    pci_report,
    scan,
)


def found_at(pci):
    return [str(function.address) for function in scan(pci)]


# ---- the walk ----


def test_header():
    function = FakeFunction(subsystem=1, pin=2)
    function.set(0x3C, 1, 11)
    found = one(function)
    assert (found.vendor, found.device, found.revision, found.class_code) == (0x1AF4, 0x1000, 0, 0x020000)
    assert (found.subsystem_vendor, found.subsystem) == (0x1AF4, 1)
    assert (found.interrupt_pin, found.interrupt_line) == (2, 11)
    assert str(found) == "00:03.0 1af4:1000" and found.fault is None


def test_every_device_of_a_bus():
    places = [(0, device, 0) for device in (0, 1, 17, 31)]
    assert found_at(FakePci({place: FakeFunction() for place in places})) == [
        "00:00.0",
        "00:01.0",
        "00:11.0",
        "00:1f.0",
    ]
    assert scan(FakePci()) == []


def test_functions_beyond_the_first_only_where_there_are_several():
    pci = FakePci({(0, 2, 0): FakeFunction(header=0x80), (0, 2, 5): FakeFunction(), (0, 2, 7): FakeFunction()})
    assert found_at(pci) == ["00:02.0", "00:02.5", "00:02.7"]
    pci.functions[0, 2, 0].data[0x0E] = 0
    assert found_at(pci) == ["00:02.0"]
    del pci.functions[0, 2, 0]
    assert found_at(pci) == []


def test_behind_bridges():
    pci = FakePci(
        {
            (0, 1, 0): bridge(1),
            (0, 2, 0): FakeFunction(),
            (1, 0, 0): bridge(2),
            (1, 4, 0): FakeFunction(),
            (2, 31, 0): FakeFunction(),
            (3, 0, 0): FakeFunction(),  # no bridge leads there
        }
    )
    assert found_at(pci) == ["00:01.0", "01:00.0", "02:1f.0", "01:04.0", "00:02.0"]
    assert [str(f.address) for f in scan(pci, bus=1)] == ["01:00.0", "02:1f.0", "01:04.0"]


def test_bridges_in_a_circle():
    pci = FakePci({(0, 1, 0): bridge(1), (1, 0, 0): bridge(0), (1, 1, 0): bridge(1), (1, 2, 0): bridge(2)})
    assert found_at(pci) == ["00:01.0", "01:00.0", "01:01.0", "01:02.0"]


def test_a_bridge_that_was_not_numbered():
    assert found_at(FakePci({(0, 1, 0): bridge(0), (0, 2, 0): FakeFunction()})) == ["00:01.0", "00:02.0"]


def test_the_worst_topology_ends():
    class Bridges:
        """Buses 0 to 5, each of eight bridges that lead anywhere."""

        def config_read(self, bus, device, function, offset, size):
            if device or bus > 5:
                return (1 << 8 * size) - 1
            found = bridge(1 + (bus * 7 + function) % 255)
            found.data[0x0E] |= 0x80
            return found.read(offset, size)

        def config_write(self, *args):
            pass

    functions = scan(Bridges())
    assert len(functions) == len({str(function) for function in functions}) == 6 * 8


@pytest.mark.parametrize("vendor", [0, 0xFFFF])
def test_vendors_that_are_none(vendor):
    assert scan(FakePci({(0, 0, 0): FakeFunction(vendor)})) == []


def test_header_types_that_are_none():
    found = one(FakeFunction(header=2))
    assert str(found.fault) == "00:03.0 1af4:1000 has header type 2, which is neither 0 nor 1"
    assert found.interface is None


def test_all_ones_but_the_vendor():
    function = FakeFunction()
    function.data[2:] = b"\xff" * 254
    found = one(function)
    assert "header type 127" in str(found.fault)


# ---- BARs ----


def test_sizes():
    bars = {
        0: (0x40, 1),
        1: (0x1000, 0),
        2: (0x4000, 0x8),
        3: (1 << 33, 0xC),
        5: (0x10, 0),
    }
    function = FakeFunction(bars=bars)
    function.set(0x10, 4, 0xC041)
    function.set(0x14, 4, 0xFEB01000)
    function.set(0x1C, 4, 0x0000000C)
    function.set(0x20, 4, 0x00000006)
    function.set(4, 2, 0x0407)
    before = bytes(function.data)
    found = one(function)
    assert found.fault is None
    assert [(b.index, b.io, b.size, b.address, b.is_64, b.prefetchable) for b in found.bars.values()] == [
        (0, True, 0x40, 0xC040, False, False),
        (1, False, 0x1000, 0xFEB01000, False, False),
        (2, False, 0x4000, 0, False, True),
        (3, False, 1 << 33, 6 << 32, True, True),
        (5, False, 0x10, 0, False, False),
    ]
    assert bytes(function.data) == before  # command register and addresses are as they were
    assert function.decoding_writes == []
    assert str(found.bars[0]) == "BAR 0: 0x40 bytes of I/O at 0xc040"
    assert str(found.bars[3]) == "BAR 3: 0x200000000 bytes of memory, 64 bits at 0x600000000"


def test_an_io_bar_of_16_bits():
    function = FakeFunction()
    function.masks[0] = 0xFFC0
    assert one(function).bars[0].size == 0x40


def test_a_function_without_bars():
    found = one(FakeFunction(bars={}))
    assert found.bars == {} and found.fault is None


@pytest.mark.parametrize(
    ("mask", "flags", "match"),
    [
        (0, 1, "BAR 0 of 00:03.0 1af4:1000 decodes the address bits 0x0, which are no size"),
        (0xFFFFFF00 ^ 0x1000, 1, "bits 0xffffef00"),  # a hole
        (0x7FFFFFC0, 1, "bits 0x7fffffc0"),  # the top bit is missing
        (0xFFFF0040, 0, "bits 0xffff0040"),
    ],
)
def test_masks_that_are_no_size(mask, flags, match):
    function = FakeFunction(bars={0: (0x40, flags)})
    function.masks[0] = mask
    found = one(function)
    assert match in str(found.fault)
    assert function.get(0x10, 4) == flags


def test_a_64_bit_bar_that_has_no_second_half():
    found = one(FakeFunction(bars={5: (0x1000, 4)}))
    assert "BAR 5 of 00:03.0 1af4:1000 has 64 bits, but is the last of 6" in str(found.fault)


def test_bars_of_bridges_are_two():
    function = bridge(0)
    function.data[0x18:0x1C] = b"\0\x01\x02\0"  # bus numbers, where a device has its BAR 2
    function.set(0x10, 4, 0)
    function.masks[0] = 0xFFFFF000
    found = one(function)
    assert found.fault is None and list(found.bars) == [0]


def test_decoding_is_restored_when_sizing_fails():
    function = FakeFunction(bars={0: (0x40, 1)})
    function.masks[0] = 0xF0F0
    function.set(4, 2, 0x0007)
    assert one(function).fault is not None
    assert function.get(4, 2) == 0x0007


# ---- capabilities ----


def test_capabilities():
    function = FakeFunction().capabilities((0x40, b"\x01"), (0x80, b"\x05"), (0x44, b"\x09"))
    assert one(function).capabilities == [(1, 0x40), (5, 0x80), (9, 0x44)]
    function.data[0x34] |= 3  # the low bits are reserved
    function.data[0x41] |= 1
    assert one(function).capabilities == [(1, 0x40), (5, 0x80), (9, 0x44)]
    function.data[6] = 0  # there is no list
    assert one(function).capabilities == []


@pytest.mark.parametrize(
    ("links", "match"),
    [
        ({0x34: 0x40, 0x41: 0x40}, r"come back to 0x40 after 1 \(limit 48\)"),
        ({0x34: 0x40, 0x41: 0x50, 0x51: 0x60, 0x61: 0x50}, "come back to 0x50 after 3"),
        ({0x34: 0x10}, "a capability of 00:03.0 1af4:1000 lies at 0x10, below 0x40"),
        ({0x34: 0x40, 0x41: 0x3C}, "lies at 0x3c"),
    ],
)
def test_lists_that_do_not_end(links, match):
    function = FakeFunction()
    function.data[6] |= 0x10
    for offset, target in links.items():
        function.data[offset] = target
    found = one(function)
    with pytest.raises(ConfigError, match=match):
        raise found.fault


def test_the_longest_list():
    function = FakeFunction()
    function.capabilities(*((offset, b"\x09") for offset in range(0x40, 0x100, 4)))
    found = one(function)
    assert found.fault is None and len(found.capabilities) == 48


def test_a_link_that_changes_at_every_read():
    function = FakeFunction().capabilities((0x40, b"\x09"))
    count = 0

    def other(_):
        nonlocal count
        count += 1
        return 0x40 + 4 * (count % 48)

    function.hooks = dict.fromkeys(range(0x41, 0x100, 4), other)
    assert one(function).fault is not None
    assert count < 100


def test_msix():
    bars = {0: (0x40, 1), 1: (0x1000, 0), 2: (0x1000, 4)}
    msix = one(FakeFunction(bars=bars).msix(5, (1, 0x100), (2, 0x800))).msix
    assert (msix.offset, msix.vectors) == (0x40, 5)
    assert (msix.table_bar, msix.table_offset, msix.pba_bar, msix.pba_offset) == (1, 0x100, 2, 0x800)
    full = one(FakeFunction(bars={1: (0x10000, 0)}).msix(2048, (1, 0), (1, 0x8000)))
    assert full.fault is None and full.msix.vectors == 2048
    assert one(FakeFunction(bars={1: (64, 0)}).msix(3, (1, 0), (1, 56))).fault is None  # to the last byte
    assert one(FakeFunction(bars={1: (0x1000, 0)}).msix(64, (1, 0), (1, 0xFF8))).fault is None
    assert one(FakeFunction(bars={1: (0x1000, 0)}).msix(65, (1, 0), (1, 0xFF8))).fault is not None


@pytest.mark.parametrize(
    ("vectors", "table", "pba", "match"),
    [
        (3, (0, 0), (1, 0x800), "table of 00:03.0 1af4:1000 is in BAR 0, which is no memory"),
        (3, (4, 0), (1, 0x800), "table of 00:03.0 1af4:1000 is in BAR 4, which is no memory"),
        (3, (7, 0), (1, 0x800), "is in BAR 7"),
        (3, (1, 0), (2, 0), "pending bits of 00:03.0 1af4:1000 is in BAR 2, which is no memory"),
        (3, (1, 0xFD8), (1, 0), "table of 00:03.0 1af4:1000 ends at 0x1008 of BAR 1, whose size is 0x1000"),
        (2048, (1, 0), (1, 0), "ends at 0x8000 of BAR 1"),
        (3, (1, 0), (1, 0x1000), "pending bits of 00:03.0 1af4:1000 ends at 0x1008"),
        (3, (1, 0), (1, 0xFFFFFFF8), "ends at 0x100000000"),
        (3, (1, 0), (1, 0x28), r"table .* \(0x0 to 0x30 of BAR 1\) and its pending bits \(0x28 to 0x30\) overlap"),
        (65, (1, 0x8), (1, 0x0), r"\(0x8 to 0x418 of BAR 1\) and its pending bits \(0x0 to 0x10\) overlap"),
    ],
)
def test_msix_tables_that_cannot_be(vectors, table, pba, match):
    found = one(FakeFunction(bars={0: (0x40, 1), 1: (0x1000, 0)}).msix(vectors, table, pba))
    assert found.msix is None
    with pytest.raises(ConfigError, match=match):
        raise found.fault


def test_an_msix_capability_at_the_end():
    bars = {1: (0x1000, 0)}
    assert one(FakeFunction(bars=bars).msix(3, offset=0xF4)).msix.offset == 0xF4
    found = one(FakeFunction().capabilities((0xF8, b"\x11")))
    assert "at 0xf8 does not fit into 256 bytes" in str(found.fault)


def test_the_second_msix_capability_is_ignored():
    function = FakeFunction(bars={1: (0x1000, 0)}).msix(3)
    function.data[0x41] = 0x60
    function.data[0x60] = 0x11
    found = one(function)
    assert found.msix.offset == 0x40 and found.fault is None


def test_an_access_that_gives_too_many_bits():
    class Wide(FakePci):
        def config_read(self, *args):
            return super().config_read(*args) | -1 << 8 * args[-1]

    bars = {0: (0x40, 1), 1: (0x1000, 0)}
    (plain,) = scan(FakePci({(0, 3, 0): FakeFunction(bars=bars).msix(3)}))
    (wide,) = scan(Wide({(0, 3, 0): FakeFunction(bars=bars).msix(3)}))
    assert wide.to_dict() == plain.to_dict() and wide.fault is None


# ---- places ----


def test_places_for_what_has_none():
    first = FakeFunction(bars={0: (0x40, 1), 1: (0x1000, 0), 2: (0x4000, 0xC)})
    second = FakeFunction(bars={0: (0x100, 1), 1: (0x1000, 0)})
    second.set(0x14, 4, 0xFEB04000)  # the firmware's choice stays
    pci = FakePci({(0, 1, 0): first, (0, 2, 0): second})
    a, b = scan(pci, io=IO, memory=MEMORY)
    assert (b.bars[0].address, a.bars[0].address) == (0xC000, 0xC100)  # the largest first
    assert (a.bars[2].address, b.bars[1].address, a.bars[1].address) == (0xFEB00000, 0xFEB04000, 0xFEB05000)
    assert first.get(0x10, 4) == 0xC101 and first.get(0x18, 4) == 0xFEB0000C and first.get(0x1C, 4) == 0
    assert second.get(0x14, 4) == 0xFEB04000
    assert first.decoding_writes == second.decoding_writes == []
    again = scan(pci, io=IO, memory=MEMORY)
    assert [f.to_dict() for f in again] == [a.to_dict(), b.to_dict()]


def test_without_windows_nothing_is_placed():
    function = FakeFunction(bars={0: (0x40, 1), 1: (0x1000, 0)})
    assert [bar.address for bar in one(function).bars.values()] == [0, 0]
    assert str(one(function).bars[1]) == "BAR 1: 0x1000 bytes of memory not assigned"
    assert [bar.address for bar in one(function, io=IO).bars.values()] == [0xC000, 0]


def test_behind_bridges_nothing_is_placed():
    pci = FakePci({(0, 1, 0): bridge(1), (0, 2, 0): FakeFunction(), (1, 0, 0): FakeFunction()})
    _, behind, there = scan(pci, io=IO)
    assert (behind.bars[0].address, there.bars[0].address) == (0, 0xC000)
    (behind,) = scan(pci, io=IO, bus=1)
    assert behind.bars[0].address == 0xC000


def test_a_window_from_0_never_gives_address_0():
    assert one(FakeFunction(), io=Window(0, 0x100)).bars[0].address == 0x40


def test_a_window_above_4_gib():
    function = FakeFunction(bars={2: (1 << 32, 4), 4: (0x1000, 4)})
    found = one(function, memory=Window(5 << 32, 7 << 32))
    assert [bar.address for bar in found.bars.values()] == [5 << 32, 6 << 32]
    assert [function.get(offset, 4) for offset in (0x18, 0x1C, 0x20, 0x24)] == [4, 5, 4, 6]
    function = FakeFunction(bars={2: (1 << 32, 4)})
    function.hooks[0x1C] = lambda byte: byte & 0xFC if byte != 0xFF else 0xFF
    assert "reads 0x400000000 after 0x500000000 was written" in str(
        one(function, memory=Window(5 << 32, 7 << 32)).fault
    )


@pytest.mark.parametrize(("pin", "name"), [(1, "INTA"), (2, "INTB"), (3, "INTC"), (4, "INTD"), (5, "INT?")])
def test_names_of_pins(pin, name):
    assert f"    {name}, line 0" in pci_report([one(FakeFunction(pin=pin))])


def test_a_window_that_is_full():
    pci = FakePci({(0, n, 0): FakeFunction(bars={0: (0x1000, 1)}) for n in range(5)})
    functions = scan(pci, io=Window(0xC000, 0x10000))
    assert [function.bars[0].address for function in functions] == [0xC000, 0xD000, 0xE000, 0xF000, 0]
    assert str(functions[4].fault) == (
        "BAR 0: 0x1000 bytes of I/O not assigned of 00:04.0 1af4:1000 "
        "does not fit into what is left of 0xc000 to 0x10000"
    )


def test_a_bar_that_does_not_take_its_address():
    function = FakeFunction()
    function.hooks[0x11] = lambda byte: byte & 0x7F  # but it had all bits when it was sized
    sized = iter([0, 0xFF])
    function.hooks[0x11] = lambda byte: next(sized, byte & 0x7F)
    found = one(function, io=IO)
    assert "BAR 0 of 00:03.0 1af4:1000 reads 0x4000 after 0xc000 was written" in str(found.fault)
    assert found.bars[0].address == 0


def test_overlaps():
    first, second, third = (FakeFunction(bars={0: (0x100, 1), 1: (0x1000, 0)}) for _ in range(3))
    first.set(0x10, 4, 0xC001)
    second.set(0x10, 4, 0xC001)
    third.set(0x10, 4, 0xC101)
    third.set(0x14, 4, 0xC000)  # memory and I/O are different places
    a, b, c = scan(FakePci({(0, n, 0): f for n, f in enumerate((first, second, third))}))
    assert a.fault is None and c.fault is None
    assert str(b.fault) == (
        "BAR 0: 0x100 bytes of I/O at 0xc000 of 00:01.0 1af4:1000 overlaps "
        "BAR 0: 0x100 bytes of I/O at 0xc000 of 00:00.0 1af4:1000"
    )


def test_overlap_within_a_function():
    function = FakeFunction(bars={1: (0x1000, 0), 2: (0x4000, 0)})
    function.set(0x14, 4, 0xFEB03000)
    function.set(0x18, 4, 0xFEB00000)
    assert "overlaps" in str(one(function).fault)


def test_one_bad_function_does_not_hide_others():
    bad = FakeFunction()
    bad.masks[0] = 0xF0F0
    pci = FakePci({(0, 0, 0): bad, (0, 1, 0): FakeFunction(), (0, 2, 0): FakeFunction(header=5)})
    a, b, c = scan(pci, io=IO)
    assert a.fault and c.fault and b.fault is None and b.bars[0].address == 0xC000


@pytest.mark.parametrize("seed", range(40))
def test_random_functions(seed):
    """Whatever functions show: the scan ends, raises nothing, and leaves decoding as it was."""
    rng = random.Random(seed)
    functions = {}
    for n in range(8):
        function = FakeFunction(bars={})
        function.data[6:] = rng.randbytes(250)
        function.data[0x0E] = rng.choice((0, 0, 0x80, 1, rng.getrandbits(8)))
        function.set(4, 2, rng.choice((0, 3, 0x407)))
        if rng.random() < 0.7:  # otherwise the list of capabilities is as wild as the rest
            function.data[6] &= ~0x10
        size = 1 << rng.randint(4, 12)
        function.masks = {i: rng.choice((0, (1 << 32) - size, rng.getrandbits(32))) for i in range(6)}
        for offset in rng.sample(range(0x34, 0x100), 3):  # and some bytes change
            function.hooks[offset] = lambda byte: rng.choice((byte, 0, 0xFF, rng.getrandbits(8)))
        functions[0, n, 0] = function
    commands = {place: function.get(4, 2) for place, function in functions.items()}
    pci = FakePci(functions)
    found = scan(pci, io=IO, memory=MEMORY)
    assert {place: function.get(4, 2) for place, function in functions.items()} == commands
    assert [function.address.device for function in found] == list(range(8))
    assert pci.reads < 20000
    json.dumps([function.to_dict() for function in found])
    assert pci_report(found).count("revision") == 8
    placed = [(bar, f) for f in found for bar in f.bars.values() if bar.address and f.fault is None]
    for (a, f), (b, g) in itertools.combinations(placed, 2):
        assert a.io != b.io or a.end <= b.address or b.end <= a.address, (a, f, b, g)


def test_address():
    assert str(Address(255, 31, 7)) == "ff:1f.7" and Address(0, 2, 0) < Address(0, 10, 0)
