"""Devices, drivers and ports that go while somebody still has them, or that are asked at the wrong moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from formats import FORMATS
from netdev import attached, frames_of, lie_used
from waiting import wait_for

from virtio import Device, GuestMemory
from virtio.constants import Feature, Status
from virtio.direct import DirectTransport
from virtio.errors import DeviceBroken
from virtio.memory.dma import DmaPool
from virtio.net import CallPort, Loopback, NetDevice, Pump, Sink, Vtnet

FRAMES = frames_of(8)


def came_back(nic: Vtnet, count: int) -> bool:
    got: list[bytes] = []
    wait_for(lambda: got.extend(nic.receive()) or len(got) >= count)
    return got == FRAMES[:count]


def test_a_closed_device_cannot_be_started_again_by_its_guest() -> None:
    """Its port may be another device's by then."""
    port = Loopback()
    first = NetDevice(port, worker="own")
    old = attached(first)
    first.close()
    with NetDevice(port, worker="own") as second:
        new = attached(second)
        with suppress(DeviceBroken):
            old.reset()
        assert not first.live
        assert first.counters["needs_reset"] == 1
        assert new.transmit(FRAMES) == 8
        assert came_back(new, 8)
        new.detach()


def test_a_port_in_python_may_ask_for_statistics_while_the_link_is_switched() -> None:
    asked = []

    def send(frames: list[Any]) -> None:
        time.sleep(0.001)  # so that the other thread waits for this queue, with the device's lock
        asked.append(device.statistics()["tx0"]["frames"])

    device = NetDevice(CallPort(send), worker="own")
    with device:
        nic = attached(device)
        stop = threading.Event()

        def switch() -> None:
            while not stop.is_set():
                device.link = not device.link

        thread = threading.Thread(target=switch)
        thread.start()
        end = time.monotonic() + 20
        while len(asked) < 50:
            assert time.monotonic() < end
            nic.transmit(FRAMES)
        stop.set()
        thread.join(10)
        assert not thread.is_alive()
        nic.detach()


def test_who_still_has_a_queue_whose_buffers_were_replaced_sends_nothing() -> None:
    device = NetDevice(Loopback())
    nic = attached(device)
    old = nic.pairs[0]
    nic.set_mtu(3000)
    new = nic.pairs[0]
    assert new.transmit is not old.transmit
    for _ in range(3):
        assert old.transmit.transmit(FRAMES) == 0
        assert old.transmit.buffers(4) == []
        assert nic.transmit(FRAMES) == 8
        device.poll()
        assert len(old.receive.receive()) == 0
        assert nic.receive() == FRAMES
    old.transmit.reclaim()
    new.transmit.reclaim()
    assert new.transmit.small.nfree == new.transmit.small.count
    old.transmit.small.memory.replace(nic.memory.regions)  # and a new map does not bring them back
    assert old.transmit.transmit(FRAMES) == 0


def test_transmit_while_the_mtu_changes() -> None:
    with NetDevice(Sink(), worker="own") as device:
        nic = attached(device)
        stop = threading.Event()
        wrong: list[BaseException] = []

        def send() -> None:
            while not stop.is_set():
                try:
                    nic.transmit(FRAMES)
                except Exception as error:
                    wrong.append(error)

        thread = threading.Thread(target=send)
        thread.start()
        for mtu in (3000, 4000, 5000, 6000, 7000, 8000):
            nic.set_mtu(mtu)
        stop.set()
        thread.join()
        for pair in nic.pairs:
            wait_for(lambda pair=pair: pair.transmit.reclaim() == 0)
            assert pair.transmit.small.nfree == pair.transmit.small.count
        assert {str(error) for error in wrong} <= {"the nic is not up: attach() or up() comes first"} | {
            str(error) for error in wrong if isinstance(error, DeviceBroken)
        }
        nic.detach()


@FORMATS
def test_one_queue_may_be_reset_under_traffic(packed: bool) -> None:
    want = Feature.RING_RESET | (Feature.RING_PACKED if packed else 0)
    device = NetDevice(Loopback())
    nic = attached(device, want=want)
    for _ in range(5):
        for index in (0, 1):
            nic.transmit(FRAMES * 4)  # some are in the queues
            nic.reset_queue(index)
            nic.enable_queue(index)
        device.poll()
        while nic.receive():
            device.poll()
        assert nic.transmit(FRAMES) == 8
        device.poll()
        assert nic.receive() == FRAMES
    assert nic.pairs[0].receive.posted == nic.queues[0].queue.layout.size


def test_a_queue_that_the_device_broke_is_healed_although_only_a_pump_uses_it() -> None:
    device = NetDevice(Loopback())
    nic = attached(device)
    pump = Pump(nic, Sink(), worker=None)
    nic.transmit(FRAMES)
    lie_used(nic, 1, claim=5000)
    nic.pairs[0].transmit.reclaim()
    assert nic.queues[1].queue.broken is not None
    nic.tick()
    assert nic.counters["resets"] == 1
    assert nic.queues[1].queue.broken is None
    pump.close()
    assert nic.transmit(FRAMES) == 8
    device.poll()
    assert nic.receive() == FRAMES


class Endless(Device):
    """Its driver makes another chain available as soon as one was served, from another CPU."""

    device_type = 42
    again: Any = staticmethod(lambda: None)
    served = 0

    def notified(self, index: int) -> None:
        for _ in self.chains(index):
            self.served += 1
            self.again()


def test_a_driver_without_end_keeps_nobody_out() -> None:
    from virtio import DriverQueue, QueueLayout

    device = Endless()
    memory = GuestMemory.allocate(1 << 20)
    transport = DirectTransport(device, memory)
    transport.status = Status.ACKNOWLEDGE | Status.DRIVER
    transport.write_features(Feature.VERSION_1)
    transport.status = Status.FEATURES_OK
    layout = QueueLayout.split(256, 0x1000)
    transport.setup_queue(0, layout)
    transport.status = Status.DRIVER_OK
    driver = DriverQueue(memory, layout, features=Feature.VERSION_1)

    def again() -> None:
        driver.dequeue_burst()
        driver.enqueue([(0x80000, 8)], (), cookie=None)

    device.again = again
    again()
    thread = threading.Thread(target=device.kick, args=(0,), daemon=True)
    thread.start()
    wait_for(lambda: device.served > 5000)
    done = threading.Thread(target=device.reset)
    done.start()
    done.join(20)
    assert not done.is_alive()


def states() -> Iterator[tuple[str, Any]]:
    yield from (("status", -1), ("status", 1 << 40), ("generation", "a"), ("acked", None), ("negotiated", -1))
    yield from (("legacy", "x"), ("queues", {}), ("config", 5), ("own", None))


@pytest.mark.parametrize(("key", "value"), list(states()))
def test_a_state_with_nonsense_is_refused(key: str, value: Any) -> None:
    device = NetDevice(Loopback())
    memory = GuestMemory.allocate(32 << 20)
    nic = Vtnet(DirectTransport(device, memory), DmaPool(memory, 0x1000, 31 << 20))
    nic.attach()
    state = device.snapshot()
    with pytest.raises(ValueError, match="state"):
        device.restore({**state, key: value}, memory)
    assert not device.live
    device.restore(state, memory)
    assert device.live
