"""The device's control queue: commands, their effect on frames, and what is refused."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from formats import FORMATS
from hypothesis import given, settings
from hypothesis import strategies as st
from nic import ALL, PACKED, RawNic, attach
from undone import NONE, payload, undone

from bench.kernels.devicebench import ScriptPort
from virtio.constants import NetFeature
from virtio.net.ctrl_device import Control
from virtio.net.device import NetDevice
from virtio.offload import NetHeader

F = NetFeature
RX, MAC, VLAN, ANNOUNCE, MQ, OFFLOADS = range(6)
OK, ERR = 0, 1
OWN, OTHER = bytes.fromhex("0200000000aa"), bytes.fromhex("0200000000ab")
MULTI, MULTI2 = bytes.fromhex("01005e000001"), bytes.fromhex("333300000001")
BROAD = b"\xff" * 6


def machine(
    *, packed: bool = False, without: int = 0, pairs: int = 1, legacy: bool = False, **options: Any
) -> tuple[NetDevice, RawNic, ScriptPort]:
    port = ScriptPort(offloads=0x1FF, queues=pairs)
    device = NetDevice(port, mac=OWN, queue_pairs=pairs, **options)
    wanted = ALL & ~PACKED & ~int(without) | (PACKED if packed else 0)
    nic = attach(device, wanted, legacy=legacy)
    for pair in range(pairs if nic.features & F.MQ else 1):
        nic.post(100, 256, pair=pair)
    return device, nic, port


def frame(to: bytes, *, vlan: int | None = None, ethertype: int = 0x8100) -> bytes:
    tag = b"" if vlan is None else struct.pack(">HH", ethertype, 0x6000 | vlan)
    return to + OTHER + tag + b"\x88\xb5" + payload(50)


def passes(device: NetDevice, nic: RawNic, port: ScriptPort, data: bytes) -> bool:
    port.give([(NONE, data)])
    device.poll()
    got = nic.receive()
    assert got in ([], [(NetHeader(num_buffers=1), data)])
    return bool(got)


def table(*tables: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(each)) + b"".join(each) for each in tables)


# ---- receive modes, addresses, VLANs ----


def test_promiscuous_until_the_driver_says_otherwise() -> None:
    world = machine()
    assert all(passes(*world, frame(to)) for to in (OWN, OTHER, MULTI, BROAD))
    assert passes(*world, frame(OTHER, vlan=7))
    assert world[1].control(RX, 0, b"\0") == OK
    assert [passes(*world, frame(to)) for to in (OWN, OTHER, MULTI, BROAD)] == [True, False, False, True]
    assert world[1].control(RX, 0, b"\1") == OK
    assert all(passes(*world, frame(to)) for to in (OWN, OTHER, MULTI, BROAD))


@FORMATS
@pytest.mark.parametrize(
    ("mode", "own", "other", "multi", "broad"),
    [
        (1, True, False, True, True),  # ALLMULTI
        (2, True, True, False, True),  # ALLUNI
        (3, True, False, False, True),  # NOMULTI
        (4, False, False, False, True),  # NOUNI
        (5, True, False, False, False),  # NOBCAST
    ],
)
def test_receive_modes(packed: bool, mode: int, own: bool, other: bool, multi: bool, broad: bool) -> None:
    world = machine(packed=packed)
    nic = world[1]
    assert nic.control(RX, 0, b"\0") == OK
    assert nic.control(RX, mode, b"\1") == OK
    assert [passes(*world, frame(to)) for to in (OWN, OTHER, MULTI, BROAD)] == [own, other, multi, broad]
    assert nic.control(RX, mode, b"\0") == OK
    assert [passes(*world, frame(to)) for to in (OWN, OTHER, MULTI, BROAD)] == [True, False, False, True]


def test_modes_that_contradict_the_tables() -> None:
    """NOMULTI and NOUNI win over addresses in the tables, as in QEMU."""
    world = machine()
    nic = world[1]
    nic.control(RX, 0, b"\0")
    nic.control(MAC, 0, table([OTHER], [MULTI]))
    assert passes(*world, frame(OTHER))
    assert passes(*world, frame(MULTI))
    nic.control(RX, 3, b"\1")
    nic.control(RX, 4, b"\1")
    assert not passes(*world, frame(OTHER))
    assert not passes(*world, frame(MULTI))


@pytest.mark.parametrize("splits", [(), (2, 6, 12), (1, 3, 5, 7, 9, 11)])
def test_address_tables(splits: tuple[int, ...]) -> None:
    world = machine()
    nic = world[1]
    nic.control(RX, 0, b"\0")
    assert nic.control(MAC, 0, table([OTHER], [MULTI]), splits=splits) == OK
    assert [passes(*world, frame(to)) for to in (OWN, OTHER, MULTI, MULTI2)] == [True, True, True, False]
    assert nic.control(MAC, 0, table([], [MULTI2]), splits=splits) == OK
    assert [passes(*world, frame(to)) for to in (OWN, OTHER, MULTI, MULTI2)] == [True, False, False, True]
    assert nic.control(MAC, 0, table([], [])) == OK
    assert [passes(*world, frame(to)) for to in (OWN, OTHER, MULTI, MULTI2)] == [True, False, False, False]


def numbered(count: int, first: int) -> list[bytes]:
    return [bytes([first, 0, 0, 0]) + i.to_bytes(2, "big") for i in range(count)]


@pytest.mark.parametrize(
    ("unicast", "multicast", "other", "multi"),
    [(64, 0, False, False), (65, 0, True, False), (0, 64, False, False), (0, 65, False, True), (32, 33, False, True)],
)
def test_tables_that_overflow_pass_everything(unicast: int, multicast: int, other: bool, multi: bool) -> None:
    world = machine()
    nic = world[1]
    nic.control(RX, 0, b"\0")
    assert nic.control(MAC, 0, table(numbered(unicast, 2), numbered(multicast, 1))) == OK
    assert passes(*world, frame(OTHER)) is other
    assert passes(*world, frame(MULTI)) is multi
    for address in numbered(unicast, 2)[:64] + numbered(multicast, 1)[:64]:
        assert passes(*world, frame(address))


def test_the_mac_address() -> None:
    device, nic, port = machine()
    nic.control(RX, 0, b"\0")
    assert nic.control(MAC, 1, OTHER) == OK
    assert device.mac == "02:00:00:00:00:ab"
    assert nic.read_config(0, 6) == OTHER
    assert passes(device, nic, port, frame(OTHER))
    assert not passes(device, nic, port, frame(OWN))
    device.reset()
    assert device.mac == "02:00:00:00:00:aa"
    assert device.read_config(0, 6) == OWN


def test_vlans() -> None:
    world = machine()
    nic = world[1]
    nic.control(RX, 0, b"\0")
    tags = (7, 63, 64, 4095)
    assert not any(passes(*world, frame(OWN, vlan=vid)) for vid in tags)
    assert passes(*world, frame(OWN))
    for vid in tags:
        assert nic.control(VLAN, 0, struct.pack("<H", vid)) == OK
    assert all(passes(*world, frame(OWN, vlan=vid)) for vid in tags)
    assert not passes(*world, frame(OWN, vlan=8))
    assert not passes(*world, frame(OTHER, vlan=7))
    assert passes(*world, frame(OWN, vlan=8, ethertype=0x88A8))
    assert nic.control(VLAN, 1, struct.pack("<H", 64)) == OK
    assert [passes(*world, frame(OWN, vlan=vid)) for vid in tags] == [True, True, False, True]
    # a priority tag names no VLAN (IEEE 802.1Q): Linux adds VLAN 0 to the filter for it, other drivers do not
    assert passes(*world, frame(OWN, vlan=0))
    assert nic.control(VLAN, 1, struct.pack("<H", 0)) == OK
    assert passes(*world, frame(OWN, vlan=0)) and not passes(*world, frame(OTHER, vlan=0))


def test_without_the_vlan_feature_tags_are_not_looked_at() -> None:
    world = machine(without=F.CTRL_VLAN)
    world[1].control(RX, 0, b"\0")
    assert passes(*world, frame(OWN, vlan=7))
    assert world[1].control(VLAN, 0, b"\7\0") == ERR


def test_a_reset_forgets() -> None:
    device, nic, port = machine()
    nic.control(RX, 0, b"\0")
    nic.control(MAC, 0, table([OTHER], []))
    device.reset()
    nic = attach(device)
    nic.post(10)
    assert passes(device, nic, port, frame(MULTI))
    nic.control(RX, 0, b"\0")
    assert not passes(device, nic, port, frame(OTHER))


# ---- guest offloads ----


@FORMATS
def test_guest_offloads(packed: bool) -> None:
    device, nic, port = machine(packed=packed)
    header, data = undone("tcp4", 400, 150)
    nic.post(100)
    port.give([(header, data)])
    device.poll()
    assert len(nic.receive()) == 1
    assert nic.control(OFFLOADS, 0, struct.pack("<Q", 0)) == OK
    assert port.calls[-1] == ("receive_offloads", 0, 12)
    port.give([(header, data)])
    device.poll()
    assert [each.flags for each, _ in nic.receive()] == [0, 0, 0]
    assert nic.control(OFFLOADS, 0, struct.pack("<Q", F.GUEST_CSUM)) == OK
    assert port.calls[-1] == ("receive_offloads", 1, 12)
    port.give([(header, data)])
    device.poll()
    assert [each.flags for each, _ in nic.receive()] == [1, 1, 1]
    every = F.GUEST_CSUM | F.GUEST_TSO4 | F.GUEST_TSO6 | F.GUEST_ECN | F.GUEST_UFO | F.GUEST_USO4 | F.GUEST_USO6
    assert nic.control(OFFLOADS, 0, struct.pack("<Q", every)) == OK
    assert port.calls[-1] == ("receive_offloads", 0x7F, 12)


def test_guest_offloads_of_tunnels_have_other_numbers() -> None:
    offer = F.GUEST_UDP_TUNNEL_GSO | F.GUEST_UDP_TUNNEL_GSO_CSUM
    _, nic, port = machine(offer=int(offer))
    every = F.GUEST_CSUM | F.GUEST_TSO4 | F.GUEST_TSO6 | F.GUEST_USO4 | F.GUEST_USO6
    assert nic.control(OFFLOADS, 0, struct.pack("<Q", every | 3 << 46)) == OK
    assert port.calls[-1] == ("receive_offloads", 1 | 2 | 4 | 0x20 | 0x40 | 0x80 | 0x100, 24)
    assert nic.control(OFFLOADS, 0, struct.pack("<Q", every | 1 << 47)) == ERR


@pytest.mark.parametrize(
    ("without", "word"),
    [
        (0, 1 << 0),
        (0, 1 << 63),
        (0, 1 << 46),
        (0, F.GUEST_TSO4),  # needs GUEST_CSUM
        (0, F.GUEST_CSUM | F.GUEST_ECN),
        (F.GUEST_TSO6, F.GUEST_CSUM | F.GUEST_TSO6),
    ],
)
def test_guest_offloads_refused(without: int, word: int) -> None:
    _, nic, port = machine(without=without)
    before = list(port.calls)
    assert nic.control(OFFLOADS, 0, struct.pack("<Q", word)) == ERR
    assert port.calls == before


# ---- queue pairs, announce ----


@FORMATS
def test_queue_pairs(packed: bool) -> None:
    """One pair until the driver says more; frames for a pair that is not in use are dropped."""
    device, nic, port = machine(packed=packed, pairs=4)
    assert nic.control_index == 8
    assert port.calls[:2] == [("receive_offloads", 0x7F, 12), ("set_queues", 1)]
    data = frame(OWN)
    port.give([(NONE, data)], queue=2)
    device.poll()
    assert nic.receive(pair=2) == []
    assert device.statistics()["rx2"]["dropped"] == {"closed": 1}
    assert nic.control(MQ, 0, struct.pack("<H", 3)) == OK
    assert port.calls[-1] == ("set_queues", 3)
    for pair in range(4):
        port.give([(NONE, data)] * (pair + 1), queue=pair)
        nic.send([(NONE, data)] * (pair + 1), pair=pair)
    device.poll()
    assert [len(nic.receive(pair=pair)) for pair in range(4)] == [1, 2, 3, 0]
    assert [len(port.take(pair)) for pair in range(4)] == [1, 2, 3, 0]
    assert nic.control(MQ, 0, struct.pack("<H", 1)) == OK


@pytest.mark.parametrize("pairs", [0, 5, 0xFFFF])
def test_queue_pairs_that_there_are_not(pairs: int) -> None:
    _, nic, port = machine(pairs=4)
    before = list(port.calls)
    assert nic.control(MQ, 0, struct.pack("<H", pairs)) == ERR
    assert port.calls == before


def test_the_control_queue_of_a_driver_without_multiqueue() -> None:
    """It is behind the first pair then (5.1.2), whatever the device has."""
    device, nic, port = machine(pairs=3, without=F.MQ)
    assert nic.control_index == 2
    assert nic.control(RX, 0, b"\0") == OK
    assert not passes(device, nic, port, frame(OTHER))
    assert nic.control(MQ, 0, b"\1\0") == ERR


def test_receive_queue_1_where_the_control_queue_could_be() -> None:
    """With multiqueue, queue 2 is a receive queue like others: kicks reach its task."""
    device, nic, port = machine(pairs=2)
    assert nic.control(MQ, 0, b"\2\0") == OK
    port.give([(NONE, frame(OWN))] * 150, queue=1)
    device.poll()
    assert port.waiting(1) == 50
    assert len(nic.receive(pair=1)) == 100
    nic.post(60, 256, pair=1)
    assert nic.queues[2].kick.rings
    device.poll()
    assert len(nic.receive(pair=1)) == 50


def test_announce() -> None:
    device, nic, _ = machine()
    assert nic.read_config(6, 2) == b"\1\0"
    assert device.announce()
    assert nic.transport.config_bell.answer()
    assert nic.read_config(6, 2) == b"\3\0"
    assert nic.control(ANNOUNCE, 0) == OK
    assert nic.read_config(6, 2) == b"\1\0"
    assert nic.control(ANNOUNCE, 1) == ERR
    device.reset()
    assert not device.announce()
    nic = attach(device, ALL & ~PACKED & ~F.GUEST_ANNOUNCE)
    assert not device.announce()
    assert nic.control(ANNOUNCE, 0) == ERR


# ---- what is refused ----


@pytest.mark.parametrize(
    ("kind", "number", "data"),
    [
        (RX, 0, b""), (RX, 6, b"\0"), (RX, 255, b"\0"),
        (MAC, 0, b""), (MAC, 0, b"\0\0\0"), (MAC, 0, table([OTHER])),
        (MAC, 0, struct.pack("<I", 2) + OTHER), (MAC, 0, struct.pack("<II", 0, 0xFFFFFFFF)),
        (MAC, 0, struct.pack("<I", 0xFFFFFFFF)), (MAC, 0, table([OTHER], []) [:-1]),
        (MAC, 0, struct.pack("<II", 0, 1) + MULTI[:5]), (MAC, 0, struct.pack("<II", 0, 2) + MULTI),  # one too many
        (MAC, 1, OTHER[:5]), (MAC, 2, b""),
        (VLAN, 0, b"\1"), (VLAN, 0, b"\0\x10"), (VLAN, 2, b"\1\0"),
        (MQ, 0, b"\1"), (MQ, 1, b""), (MQ, 2, b"\1\0"),
        (OFFLOADS, 0, bytes(7)), (OFFLOADS, 1, bytes(8)),
        (6, 0, bytes(8)), (7, 0, b""), (255, 255, b"\xff" * 100),
    ],
)  # fmt: skip
def test_wrong_commands(kind: int, number: int, data: bytes) -> None:
    """They are answered with ERR, counted, and change nothing."""
    device, nic, _ = machine(pairs=2)
    before = device.control.save()
    assert nic.control(kind, number, data) == ERR
    assert device.control.save() == before
    assert device.statistics()["control"] == {"refused": 1}
    assert device.control.last_refused
    assert not device.status & 64
    assert nic.control(RX, 0, b"\1") == OK


@pytest.mark.parametrize("more", [b"\0", bytes(3), b"\xff" * 1500])
@pytest.mark.parametrize(
    ("kind", "number", "data"),
    [
        (RX, 0, b"\0"), (RX, 5, b"\1"), (MAC, 0, table([OTHER], [MULTI])), (MAC, 0, table([], [])), (MAC, 1, OTHER),
        (VLAN, 0, b"\1\0"), (VLAN, 1, b"\1\0"), (ANNOUNCE, 0, b""), (MQ, 0, b"\2\0"), (OFFLOADS, 0, bytes(8)),
    ],
)  # fmt: skip
def test_bytes_behind_the_data_of_a_command(kind: int, number: int, data: bytes, more: bytes) -> None:
    """As in QEMU: Windows' NetKVM sends all of the buffer in which its MAC tables are."""
    ends = []
    for behind in (b"", more):
        device, nic, _ = machine(pairs=2)
        splits = (1, 2, 2 + len(data), 2 + len(data) + 1)
        assert nic.control(kind, number, data + behind, splits=splits) == OK
        ends.append(device.control.save())
    assert ends[0] == ends[1]


def test_a_receive_mode_is_on_by_any_value_but_0() -> None:
    """As in QEMU, which keeps the byte."""
    device, nic, _ = machine()
    assert nic.control(RX, 1, b"\x80") == OK
    assert device.control.modes & 2
    assert nic.control(RX, 1, b"\0") == OK
    assert not device.control.modes & 2


@pytest.mark.parametrize("room", [(1,), (4,), (1, 1), (100, 60)])
def test_the_acknowledgement_is_the_first_byte_that_may_be_written(room: tuple[int, ...]) -> None:
    """As in QEMU, however much room there is and wherever it lies; the used length is 1."""
    _, nic, _ = machine()
    queue = nic.queues[nic.control_index]
    where = [(nic.pool.allocate(size), size) for size in room]
    for gpa, size in where:
        nic.memory.write(gpa, b"\xee" * size)
    for command, answer in ((b"\0\0\0", OK), (b"\x63\0\0", ERR)):
        queue.queue.enqueue([nic.buffer(command)], where)
        queue.notify()
        done = queue.queue.dequeue()
        assert done is not None and done[1] == 1
        wrote = b"".join(nic.memory.read(gpa, size) for gpa, size in where)
        assert wrote == bytes([answer]) + b"\xee" * (sum(room) - 1)


@pytest.mark.parametrize(
    ("bit", "kind", "number", "data"),
    [
        (F.CTRL_RX, RX, 0, b"\0"), (F.CTRL_RX, RX, 1, b"\0"), (F.CTRL_RX_EXTRA, RX, 2, b"\0"),
        (F.CTRL_RX, MAC, 0, bytes(8)), (F.CTRL_MAC_ADDR, MAC, 1, OTHER), (F.CTRL_VLAN, VLAN, 0, b"\1\0"),
        (F.MQ, MQ, 0, b"\1\0"), (F.CTRL_GUEST_OFFLOADS, OFFLOADS, 0, bytes(8)),
    ],
)  # fmt: skip
def test_what_was_not_negotiated(bit: F, kind: int, number: int, data: bytes) -> None:
    device, nic, _ = machine(pairs=2, without=bit)
    assert nic.control(kind, number, data) == ERR
    assert bit.name is not None
    assert bit.name in device.control.last_refused


def test_commands_without_a_command_or_an_answer() -> None:
    device, nic, _ = machine()
    assert nic.control_raw(b"") == ERR
    assert nic.control_raw(b"\0") == ERR
    assert nic.control_raw(b"\0\0\0", room=0) is None
    assert nic.control_raw(b"\0\0\0", room=100) == OK
    assert nic.control_raw(bytes(70000)) == ERR
    assert device.statistics()["control"] == {"refused": 4, "rx": 1}


@settings(max_examples=200, deadline=None)
@given(commands=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 6), st.binary(max_size=40)), max_size=10))
def test_garbage(commands: list[tuple[int, int, bytes]]) -> None:
    """Whatever it is, it is answered, and the state can be saved and restored."""
    device, nic, _ = machine(pairs=2)
    for kind, number, data in commands:
        assert nic.control(kind, number, data) in (OK, ERR)
    saved = device.control.save()
    again = Control(device, OWN)
    again.load(saved)
    assert again.save() == saved
    assert nic.control(RX, 0, b"\1") == OK


@pytest.mark.parametrize(
    "change",
    [
        {"mac": "0011"}, {"unicast": ["02" * 6] * 65}, {"multicast": ["01"]}, {"vlans": "00"}, {"pairs": 0},
        {"pairs": 3}, {"offloads": 1}, {"modes": 256},
    ],
)  # fmt: skip
def test_states_that_cannot_be(change: dict[str, Any]) -> None:
    device, _, _ = machine(pairs=2)
    with pytest.raises(ValueError, match="state: "):
        device.control.load(device.control.save() | change)
