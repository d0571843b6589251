"""The direct transport under the driver core: all modern features, no registers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from virtio_device import Echo

from virtio import Feature, GuestMemory
from virtio.constants import DeviceType, NetFeature, Status
from virtio.device import Device
from virtio.direct import DirectTransport
from virtio.driver import Driver, QueuePlan
from virtio.errors import ConfigError, DeviceBroken, NegotiationError
from virtio.memory.dma import DmaPool

RINGS = Feature.VERSION_1 | Feature.EVENT_IDX | Feature.INDIRECT_DESC | Feature.RING_RESET


class Asker(Driver):
    device_type = DeviceType.CONSOLE

    def plan_queues(self) -> Sequence[QueuePlan]:
        return [QueuePlan(0, "one", size=16, segments=4), QueuePlan(1, "two", size=16)]

    def ask(self, text: bytes, index: int = 0) -> bytes | None:
        attached = self.queues[index]
        at = self.pool.allocate(2 * len(text))
        try:
            self.memory.write(at, text)
            attached.queue.enqueue([(at, len(text))], [(at + len(text), len(text))])
            attached.notify()
            got = attached.queue.dequeue()
            attached.queue.enable_intr()
            return None if got is None else self.memory.read(at + len(text), got[1])
        finally:
            self.pool.free(at)


class Net(Device):
    device_type = DeviceType.NET
    features = Device.features | sum(NetFeature)


def asker(device: Device, *, legacy: bool = False, wanted: int = RINGS) -> Asker:
    memory = GuestMemory.allocate(1 << 20)
    return Asker(DirectTransport(device, memory, legacy=legacy), DmaPool(memory, 0x1000, 0x80000), wanted=wanted)


@pytest.mark.parametrize("extra", [0, Feature.RING_PACKED, Feature.IN_ORDER, Feature.RING_PACKED | Feature.IN_ORDER])
def test_attach_work_detach(extra: int) -> None:
    driver = asker(Echo(), wanted=RINGS | extra)
    driver.attach()
    assert driver.features == RINGS | extra
    for i in range(40):
        assert driver.ask(b"text %d" % i, i & 1) == b"TEXT %d" % i
        assert driver.queues[i & 1].interrupt.answer()
    driver.detach()
    assert driver.transport.status == 0
    driver.attach()
    assert driver.ask(b"again") == b"AGAIN"


def test_legacy() -> None:
    device = Echo(queue_size=32)
    driver = asker(device, legacy=True, wanted=Feature.NOTIFY_ON_EMPTY | Feature.RING_PACKED)
    driver.attach()
    assert driver.features == Feature.NOTIFY_ON_EMPTY
    assert driver.queues[0].layout.device % 4096 == 0
    assert driver.ask(b"a") == b"A"
    device.config_changed()
    assert driver.transport.generation == 0


def test_features_beyond_64_bits() -> None:
    memory = GuestMemory.allocate(1 << 20)
    transport = DirectTransport(Net(), memory)
    assert transport.device_type == DeviceType.NET
    transport.status = Status.ACKNOWLEDGE | Status.DRIVER
    bits = transport.read_features()
    assert bits & NetFeature.IPSEC and bits & NetFeature.OUT_NET_HEADER
    transport.write_features(bits)
    transport.status = Status.FEATURES_OK
    assert transport.device.negotiated == bits


def test_a_refusal_says_which_bit() -> None:
    transport = DirectTransport(Net(), GuestMemory.allocate(1 << 20))
    transport.status = Status.ACKNOWLEDGE | Status.DRIVER
    transport.write_features(Feature.VERSION_1 | NetFeature.MQ | 1 << 80)
    with pytest.raises(NegotiationError, match="MQ") as caught:
        transport.status = Status.FEATURES_OK
    assert caught.value.rejected == ("bit 80", "MQ")
    assert transport.status == Status.ACKNOWLEDGE | Status.DRIVER


def test_features_ok_before_its_time_is_no_negotiation() -> None:
    transport = DirectTransport(Net(), GuestMemory.allocate(1 << 20))
    transport.status = Status.FEATURES_OK
    assert transport.status == 0


def test_a_refused_feature_fails_the_driver() -> None:
    device = Echo()
    driver = asker(device)
    device.check_features = lambda bits: refuse(bits)  # type: ignore[method-assign]
    with pytest.raises(NegotiationError, match="not today"):
        driver.attach()
    assert device.status == Status.FAILED
    assert not any(slot.enabled for slot in device.queues)


def refuse(bits: int) -> None:
    raise NegotiationError("not today", bits, bits)


def test_status_adds_bits() -> None:
    transport = DirectTransport(Echo(), GuestMemory.allocate(1 << 20))
    transport.status = Status.ACKNOWLEDGE
    transport.status = Status.DRIVER
    assert transport.status == 3
    assert not transport.device.refused
    transport.reset()
    assert transport.status == 0


def test_queues() -> None:
    driver = asker(Echo(queue_size=64))
    transport = driver.transport
    assert [transport.queue_size(i) for i in (-1, 0, 1, 2)] == [0, 64, 64, 0]
    driver.attach()
    assert driver.queues[0].layout.size == 16
    with pytest.raises(ConfigError, match="queue 0 cannot be set up: it is enabled"):
        transport.setup_queue(0, driver.queues[0].layout)
    with pytest.raises(ConfigError, match=r"queue 5 out of range \(2 queues\)"):
        transport.setup_queue(5, driver.queues[0].layout)
    with pytest.raises(ConfigError, match=r"queue 2 out of range \(2 queues\)"):
        transport.kick_bell(2)
    with pytest.raises(ConfigError, match=r"queue -1 out of range \(2 queues\)"):
        transport.kick_bell(-1)


def test_reset_of_one_queue() -> None:
    driver = asker(Echo())
    driver.attach()
    assert driver.ask(b"a") == b"A"
    driver.reset_queue(0)
    assert driver.ask(b"other", 1) == b"OTHER"
    driver.enable_queue(0)
    assert driver.ask(b"b") == b"B"


def test_reset_of_one_queue_that_the_device_refuses() -> None:
    driver = asker(Echo(withhold="RING_RESET"))
    driver.attach()
    with pytest.raises(DeviceBroken, match="RING_RESET is not negotiated"):
        driver.transport.reset_queue(0)


def test_bells_stay_the_same_until_release() -> None:
    driver = asker(Echo())
    driver.attach()
    transport = driver.transport
    kicks = [transport.kick_bell(i) for i in (0, 1)]
    calls = transport.interrupt_bells([0, 1])
    assert calls == [driver.queues[0].interrupt, driver.queues[1].interrupt]
    assert calls[0] is not calls[1]
    driver.stop()
    driver.reinit()
    assert transport.interrupt_bells([1, 0]) == calls[::-1]
    assert [transport.kick_bell(i) for i in (0, 1)] == kicks
    assert driver.ask(b"a", 1) == b"A"
    assert calls[1].answer() and not calls[0].answer()
    driver.detach()
    rings = calls[1].rings
    transport.device.interrupt(1)
    assert calls[1].rings == rings
    driver.attach()
    assert transport.interrupt_bells([0]) != calls[:1]
    assert driver.ask(b"b", 1) == b"B"
    assert driver.queues[1].interrupt.answer()


def test_interrupts_before_they_are_routed_are_heard_by_nobody() -> None:
    device = Echo()
    transport = DirectTransport(device, GuestMemory.allocate(1 << 20))
    device.interrupt(0)
    (bell,) = transport.interrupt_bells([0])
    assert not bell.answer()
    device.interrupt(0)
    assert bell.answer()


def test_configuration() -> None:
    device = Echo(config=b"\1\2\3\4")
    changes = []

    class Watching(Asker):
        def config_changed(self) -> None:
            changes.append(self.config(0, 4))

    memory = GuestMemory.allocate(1 << 20)
    driver = Watching(DirectTransport(device, memory), DmaPool(memory, 0x1000, 0x80000), wanted=RINGS)
    driver.attach()
    assert driver.config(0, 4) == 0x04030201
    assert not driver.check()
    device.config[0] = 9
    device.config_changed()
    assert driver.check()
    assert changes == [0x04030209]
    driver.write_config(0, b"\0")
    assert str(device.refused[-1]) == "config write of 1 bytes at 0: read-only"
    device.needs_reset("for a test")
    with pytest.raises(DeviceBroken, match="DEVICE_NEEDS_RESET"):
        driver.check()


def test_a_device_has_one_transport_at_a_time() -> None:
    driver = asker(Echo())
    driver.attach()
    with pytest.raises(RuntimeError, match="live: reset it first"):
        DirectTransport(driver.transport.device, driver.memory)
    driver.detach()
    DirectTransport(driver.transport.device, driver.memory)
