"""Snapshots of the network device: it goes on elsewhere, or where it is, and nothing is lost or done twice."""

from __future__ import annotations

import json
from typing import Any

import pytest
from formats import FORMATS
from net_machine import machine
from nic import RawNic
from undone import NONE, payload, undone
from waiting import wait_for

from bench.kernels.devicebench import ScriptPort
from virtio import GuestMemory
from virtio.errors import NegotiationError
from virtio.net.device import NetDevice
from virtio.offload import NetHeader


def moved(device: NetDevice, nic: RawNic, **options: Any) -> tuple[NetDevice, RawNic, ScriptPort]:
    """The device and its guest on another machine."""
    state = json.loads(json.dumps(device.snapshot()))
    region = nic.memory.regions[0]
    memory = GuestMemory([(region.gpa, bytearray(nic.memory.read(region.gpa, region.size)))])
    queues = {index: queue.queue.state() for index, queue in nic.queues.items()}
    cookies = {index: {each[0]: [] for each in state["outstanding"]} for index, state in queues.items()}
    device.reset()
    port = ScriptPort(offloads=0x1FF, queues=device.max_pairs)
    other = NetDevice(port, queue_pairs=device.max_pairs, **options)
    again = RawNic(other, memory=memory)
    again.features = nic.features
    again.pool = nic.pool
    again.pool.memory = memory
    other.restore(state, memory)
    for index, queue in nic.queues.items():
        queue.queue = type(queue.queue).restore(memory, queues[index], cookies[index])
        queue.kick = other.queues[index].kick
        bell = again.transport.interrupt_bells([index])[0]
        queue.interrupt = bell
    again.queues = nic.queues
    return other, again, port


@FORMATS
@pytest.mark.parametrize("pairs", [1, 2])
def test_snapshot_in_mid_stream(packed: bool, pairs: int) -> None:
    """What the driver said stays said; buffers that it had given are filled; what was sent is not sent again."""
    device, nic, port = machine(packed=packed, queue_pairs=pairs, mac="02:00:00:00:00:aa")
    if pairs > 1:
        nic.control(4, 0, b"\2\0")
    assert nic.control(0, 0, b"\0") == 0
    assert nic.control(1, 1, bytes.fromhex("0200000000bb")) == 0
    assert nic.control(2, 0, b"\7\0") == 0
    assert nic.control(5, 0, (2 | 1 << 7).to_bytes(8, "little")) == 0
    nic.post(20, 256)
    port.give([(NONE, bytes.fromhex("0200000000bb") + payload(60))] * 3)
    nic.send([(NONE, payload(60))] * 4)
    device.poll()
    assert len(port.take()) == 4
    nic.reap()
    nic.receive()
    nic.send([(NONE, payload(61))] * 2)
    device, nic, port = moved(device, nic)
    assert device.mac == "02:00:00:00:00:bb"
    assert nic.read_config(0, 6) == bytes.fromhex("0200000000bb")
    assert port.calls[0] == ("receive_offloads", 3, 12)
    assert port.calls[1] == ("set_queues", pairs)
    device.poll()
    assert port.take() == [(NONE, payload(61))] * 2
    to = [bytes.fromhex("0200000000bb"), bytes.fromhex("0200000000aa")]
    port.give([(NONE, to[0] + payload(60)), (NONE, to[1] + payload(60)), undone_to(to[0])])
    device.poll()
    assert [length for _, length in nic.ring(0).dequeue_burst()] == [78, 256, 222]
    assert device.control.pairs == pairs


def undone_to(address: bytes) -> tuple[NetHeader, bytes]:
    header, frame = undone("tcp4", 400, 100)
    return header, address + frame[6:]


@pytest.mark.threads
def test_a_device_takes_a_snapshot_and_goes_on() -> None:
    device, nic, port = machine(worker="own")
    for _ in range(20):
        nic.send([(NONE, payload(60))] * 10)
        state = device.snapshot()
        assert state["queues"][1]["state"]["outstanding"] == []
        wait_for(lambda: nic.ring(1).nused == 10, 20)
        nic.reap()
    assert len(port.take()) == 200
    device.close()


def test_states_that_are_not_this_devices() -> None:
    device, nic, _ = machine()
    state = device.snapshot()
    with pytest.raises(ValueError, match="queues"):
        NetDevice(ScriptPort(queues=2), queue_pairs=2).restore(state, nic.memory)
    with pytest.raises(NegotiationError, match="MRG_RXBUF"):
        NetDevice(withhold="MRG_RXBUF").restore(state, nic.memory)
    other = NetDevice()
    broken = state | {"own": state["own"] | {"pairs": 9}}
    with pytest.raises(ValueError, match=r"own\.pairs is 9"):
        other.restore(broken, nic.memory)
    assert other.status == 0
