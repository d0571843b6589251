"""The driver core: the order of things, queues, configuration, and that nothing is kept when something goes wrong."""

from itertools import pairwise

import pytest
from fake_transport import MEMORY, FakeTransport, Nic, nic
from formats import FORMATS

from virtio import DeviceQueue, Feature, GuestMemory, NetFeature, QueueLayout
from virtio.constants import Status
from virtio.driver import RING_FEATURES, QueuePlan
from virtio.driver.driver import wait_until
from virtio.errors import ConfigError, DeviceBroken, NegotiationError, PoolExhausted, RingError
from virtio.memory.dma import DmaPool

ACK, DRIVER, OK, FEATURES, FAILED = (
    Status.ACKNOWLEDGE,
    Status.DRIVER,
    Status.DRIVER_OK,
    Status.FEATURES_OK,
    Status.FAILED,
)


@pytest.fixture
def memory():
    return GuestMemory.allocate(MEMORY)


@pytest.fixture
def pool(memory):
    return DmaPool(memory, 0x1000, MEMORY - 0x1000)


def test_attach_is_in_the_order_of_the_specification(memory, pool):
    driver = nic(memory, pool)
    driver.attach()
    transport = driver.transport
    features = Feature.VERSION_1 | Feature.INDIRECT_DESC
    assert transport.log == [
        "reset",
        ACK,
        DRIVER,
        ("features", features),
        FEATURES,
        ("queue", 0),
        ("queue", 1),
        ("queue", 2),
        ("interrupts", (0, 1)),
        OK,
    ]
    assert transport.status == ACK | DRIVER | FEATURES | OK
    assert driver.features == features and driver.attached
    assert driver.calls == [("ready", transport.status, [0, 1, 2])]


def test_legacy_attach_has_no_features_ok(memory, pool):
    driver = nic(memory, pool, legacy=True)
    driver.attach()
    assert [item for item in driver.transport.log if isinstance(item, Status)] == [ACK, DRIVER, OK]
    assert driver.features == Feature.INDIRECT_DESC
    for index, attached in driver.queues.items():
        layout = driver.transport.layouts[index]
        assert layout == QueueLayout.legacy(64, layout.desc) == attached.queue.layout
        assert layout.desc % 4096 == 0


@FORMATS
def test_queues_lie_in_the_pool_and_nowhere_twice(memory, pool, packed):
    offered = RING_FEATURES | (Feature.RING_PACKED if packed else 0)
    driver = Nic(FakeTransport(memory, offered=offered, size=100), pool, wanted=RING_FEATURES | Feature.RING_PACKED)
    driver.attach()
    areas = []
    for index, segments in ((0, 4), (1, 8), (2, 0)):
        attached = driver.queues[index]
        queue = attached.queue
        assert queue.packed == packed and queue.size == (100 if packed else 64)
        assert queue.index == index and queue.features == driver.features
        areas += queue.layout.areas
        if segments:
            areas.append((attached.allocated[1], queue.size * segments * 16))
    areas.sort()
    assert all(at + size <= after for (at, size), (after, _) in pairwise(areas))
    assert all(at >= pool.gpa and at + size <= pool.gpa + pool.size for at, size in areas)
    driver.detach()
    assert pool.allocations == {}


def test_plan_limits_the_size(memory, pool):
    class Small(Nic):
        plans = (QueuePlan(0, "rx", size=24),)

    driver = nic(memory, pool, Small)
    driver.attach()
    assert driver.queues[0].queue.size == 16  # a split queue is a power of two
    packed = Small(FakeTransport(memory, offered=Feature.VERSION_1 | Feature.RING_PACKED), pool, wanted="RING_PACKED")
    packed.attach()
    assert packed.queues[0].queue.size == 24


def test_tables_are_for_chains_of_two_and_more(memory, pool):
    driver = nic(memory, pool)
    driver.plans = (QueuePlan(0, "none"), QueuePlan(1, "one", segments=1), QueuePlan(2, "two", segments=2))
    driver.attach()
    assert [len(attached.allocated) for attached in driver.queues.values()] == [1, 1, 2]
    assert pool.allocations[driver.queues[2].allocated[1]] == 64 * 2 * 16


@pytest.mark.parametrize("legacy", [False, True])
def test_the_largest_queue(legacy):
    memory = GuestMemory.allocate(4 << 20)
    driver = nic(memory, DmaPool(memory, 0, 4 << 20), offered=Feature.VERSION_1, size=32768, legacy=legacy)
    driver.plans = (QueuePlan(0, "rx"),)
    driver.attach()
    assert driver.queues[0].queue.size == 32768


def test_no_tables_without_the_feature(memory, pool):
    driver = nic(memory, pool, offered=Feature.VERSION_1)
    driver.attach()
    assert [len(attached.allocated) for attached in driver.queues.values()] == [1, 1, 1]


def test_the_queues_work(memory, pool):
    driver = nic(memory, pool)
    driver.attach()
    transport, attached = driver.transport, driver.queues[1]
    device = DeviceQueue(memory, transport.layouts[1], features=driver.features)
    buffers = [pool.allocate(64) for _ in range(5)]
    attached.queue.enqueue([(gpa, 64) for gpa in buffers], cookie="frame")  # five pieces: by a table
    assert attached.queue.nfree == 63
    assert attached.notify() and attached.kick.rings == 1 and attached.kick is transport.kicks[1]
    chain = device.pop()
    assert chain.readable_length == 5 * 64
    device.add_used(chain, 0)
    assert attached.queue.dequeue() == ("frame", 0)
    assert attached.interrupt is transport.bells[1] and driver.queues[2].interrupt is None
    assert not attached.notify() and attached.kick.rings == 1


# ---- failure ----


def fails_with(driver, error, match):
    """Attach; expect the error, and the device FAILED with nothing taken."""
    transport = driver.transport
    with pytest.raises(error, match=match) as e:
        driver.attach()
    assert driver.pool.allocations == {} and driver.queues == {} and not driver.attached
    assert transport.log[-4:] == [FAILED, "reset", "release", FAILED]
    assert transport.status == FAILED and transport.layouts == {}
    return e.value


@pytest.mark.parametrize(
    ("size", "legacy", "match"),
    [
        (0, False, r"queue 1 \(tx\) does not exist: its size reads 0"),
        (0, True, r"queue 1 \(tx\) does not exist"),
        (65535, False, r"queue 1 \(tx\) has size 65535, out of range \(1 to 32768\)"),
        (65535, True, r"queue 1 \(tx\) has size 65535, out of range \(1 to 32768\)"),
        (3, True, r"queue 1 \(tx\) has size 3, which is not a power of two"),
    ],
)
def test_queue_sizes_that_cannot_be(memory, pool, size, legacy, match):
    driver = nic(memory, pool, legacy=legacy)
    driver.transport.sizes[1] = size
    fails_with(driver, ConfigError, match)


def test_memory_runs_out(memory):
    pool = DmaPool(memory, 0, 0x4000)
    driver = nic(memory, pool, legacy=True, size=256, offered=0)  # 0x2806 bytes a queue, and no tables
    error = fails_with(driver, PoolExhausted, "no 10246 bytes aligned to 4096 in the driver's memory")
    assert error.available < 0x4000


@pytest.mark.parametrize("where", ["adjust", "plan_queues", "ready"])
def test_a_hook_that_raises(memory, pool, where):
    driver = nic(memory, pool)

    def fail(*_):
        raise OSError("no more")

    setattr(driver, where, fail)
    fails_with(driver, OSError, "no more")
    assert [call[0] for call in driver.calls] == (["stopping", "stopped"] if where == "ready" else ["stopped"])
    delattr(driver, where)
    driver.attach()  # and it can be tried again
    assert driver.attached


@pytest.mark.parametrize("where", ["setup_queue", "interrupt_bells", "kick_bell", "write_features"])
def test_a_transport_that_fails(memory, pool, where):
    driver = nic(memory, pool)

    def fail(*_):
        raise DeviceBroken("vector refused")

    setattr(driver.transport, where, fail)
    fails_with(driver, DeviceBroken, "vector refused")


def test_a_queue_that_is_planned_twice(memory, pool):
    driver = nic(memory, pool)
    driver.plans = (QueuePlan(0, "rx"), QueuePlan(0, "tx"))
    fails_with(driver, ConfigError, "queue 0 is planned as rx and tx")


@pytest.mark.parametrize("index", [-1, 65536])
def test_indices_that_no_queue_has(memory, pool, index):
    driver = nic(memory, pool)
    driver.plans = (QueuePlan(index, "ctrl"),)
    fails_with(driver, ConfigError, rf"queue {index} \(ctrl\) does not exist: indices are 0 to 65535")


@pytest.mark.parametrize(
    ("lost", "gained", "match"),
    [
        (OK, 0, "does not start: DRIVER_OK was written, and status reads 0x0b"),
        (0, Status.DEVICE_NEEDS_RESET, r"asks to be reset \(DEVICE_NEEDS_RESET, status 0x4f\)"),
    ],
)
def test_a_device_that_does_not_start(memory, pool, lost, gained, match):
    driver = nic(memory, pool)

    class Lying(FakeTransport):
        @property
        def status(self):
            return int(self.state | gained if self.state & OK else self.state) & ~int(lost)

        @status.setter
        def status(self, bits):
            FakeTransport.status.fset(self, bits)

    driver.transport.__class__ = Lying
    fails_with(driver, DeviceBroken, match)
    assert driver.calls == [("stopped", 0, [0, 1, 2])]  # it was never ready


def test_features_that_change(memory, pool):
    driver = nic(memory, pool)
    seen = iter([Feature.VERSION_1 | NetFeature.MAC, Feature.VERSION_1 | NetFeature.CSUM])
    driver.transport.read_features = lambda: next(seen)
    fails_with(driver, NegotiationError, r"changed .*: CSUM, MAC \(0x100000020, then 0x100000001\)")


def test_a_status_that_never_clears(memory, pool):
    driver = nic(memory, pool)
    driver.transport.resets = False
    with pytest.raises(DeviceBroken, match=r"status reads 0x0f, not 0, 0.05 s after the reset"):
        driver.attach()
    assert pool.allocations == {} and driver.transport.log[-2:] == ["release", FAILED]


def test_memory_of_a_device_that_does_not_let_go_stays_taken(memory, pool):
    driver = nic(memory, pool)
    driver.attach()
    taken = pool.used
    driver.transport.resets = False
    for _ in range(2):
        with pytest.raises(DeviceBroken, match=r"not 0, 0\.05 s"):
            driver.detach()
        assert pool.used == taken and "release" not in driver.transport.log
    assert driver.calls[1:] == [("stopping", ACK | DRIVER | FEATURES | OK)]  # once
    driver.detach(force=True)
    assert pool.allocations == {} and driver.transport.log[-1] == "release"


def test_and_so_it_does_when_attaching_fails(memory, pool):
    driver = nic(memory, pool)

    def ready():
        driver.transport.resets = False
        raise OSError("no more")

    driver.ready = ready
    with pytest.raises(OSError, match="no more") as e:
        driver.attach()
    assert "detach(force=True)" in e.value.__notes__[0]
    assert pool.used and driver.transport.status & FAILED
    with pytest.raises(ConfigError, match="attached already"):
        driver.attach()
    driver.transport.resets = True
    driver.detach()
    assert pool.allocations == {}


# ---- detach, stop, reinit ----


def test_detach(memory, pool):
    driver = nic(memory, pool)
    assert driver.features == 0
    driver.attach()
    queue = driver.queues[0].queue
    queue.enqueue(writable=[(0x80000, 64)])
    driver.detach()
    assert driver.transport.log[-2:] == ["reset", "release"] and driver.transport.status == 0
    assert pool.allocations == {} and driver.queues == {} and not driver.attached
    assert driver.calls[1:] == [("stopping", ACK | DRIVER | FEATURES | OK), ("stopped", 0, [0, 1, 2])]
    with pytest.raises(RingError):  # nobody works a ring whose memory is another's
        queue.enqueue(writable=[(0x80000, 64)])
    before = list(driver.transport.log)
    driver.detach()
    assert driver.transport.log == before
    driver.attach()
    assert driver.attached


def test_attached_twice(memory, pool):
    driver = nic(memory, pool)
    driver.attach()
    with pytest.raises(ConfigError, match="attached already"):
        driver.attach()
    assert driver.attached


def test_stop_and_reinit_keep_the_queues(memory, pool):
    driver = nic(memory, pool)
    driver.attach()
    transport, attached = driver.transport, dict(driver.queues)
    layouts, taken = dict(transport.layouts), pool.allocations
    attached[0].queue.enqueue(writable=[(0x80000, 64)], cookie=7)
    driver.stop()
    assert transport.status == 0 and not driver.attached
    assert [call[0] for call in driver.calls] == ["ready", "stopping", "stopped"]
    assert attached[0].queue.drain() == [7]
    transport.log.clear()
    driver.reinit()
    assert transport.log == [
        *("reset", ACK, DRIVER, ("features", driver.features), FEATURES),
        *(("queue", 0), ("queue", 1), ("queue", 2), ("interrupts", (0, 1)), OK),
    ]
    assert driver.queues == attached and transport.layouts == layouts and pool.allocations == taken
    assert driver.calls[-1][0] == "ready" and driver.attached
    assert attached[0].queue.outstanding == 0 and attached[0].queue.broken is None
    assert attached[0].queue.enqueue(writable=[(0x80000, 64)]) >= 0


def test_reinit_of_a_running_device_stops_it(memory, pool):
    driver = nic(memory, pool)
    driver.attach()
    driver.reinit()
    assert [call[0] for call in driver.calls] == ["ready", "stopping", "stopped", "ready"]


def test_reinit_takes_no_other_features(memory, pool):
    driver = nic(memory, pool, offered=Feature.VERSION_1 | NetFeature.MAC)
    driver.attach()
    driver.transport.offered |= NetFeature.CSUM
    driver.reinit()
    assert driver.features == Feature.VERSION_1 | NetFeature.MAC == driver.transport.accepted
    driver.transport.offered = int(Feature.VERSION_1)
    with pytest.raises(NegotiationError, match="MAC"):
        driver.reinit()
    assert pool.allocations == {} and driver.transport.status == FAILED


def test_reinit_takes_no_other_size(memory, pool):
    driver = nic(memory, pool)
    driver.attach()
    driver.transport.sizes[1] = 32
    with pytest.raises(ConfigError, match=r"queue 1 \(tx\) has size 32, and had 64"):
        driver.reinit()
    assert pool.allocations == {}


def test_reinit_needs_an_attach(memory, pool):
    driver = nic(memory, pool)
    with pytest.raises(ConfigError, match="not attached"):
        driver.reinit()
    driver.attach()
    driver.detach()
    with pytest.raises(ConfigError, match="not attached"):
        driver.reinit()


def test_reset_of_one_queue(memory, pool):
    driver = nic(memory, pool, offered=Feature.VERSION_1 | Feature.RING_RESET)
    driver.attach()
    attached = driver.queues[1]
    attached.queue.enqueue([(0x80000, 64)], cookie="lost")
    driver.reset_queue(1)
    assert driver.transport.log[-1] == ("reset queue", 1) and 1 not in driver.transport.layouts
    assert attached.queue.drain() == ["lost"]
    driver.enable_queue(1)
    assert driver.transport.layouts[1] == attached.layout
    assert attached.queue.nfree == 64 and attached.queue.broken is None
    assert driver.transport.log[-1] == ("interrupts", (0, 1))  # its vector went with it


def test_reset_of_one_queue_needs_the_feature(memory, pool):
    driver = nic(memory, pool)
    driver.attach()
    with pytest.raises(NegotiationError, match="queue 1 cannot be reset: RING_RESET was not negotiated") as e:
        driver.reset_queue(1)
    assert e.value.rejected == ("RING_RESET",)


# ---- configuration and status ----


def test_config(memory, pool):
    driver = nic(memory, pool, config=bytes(range(16)))
    assert driver.read_config(2, 6) == bytes(range(2, 8))
    assert driver.config(4, 2) == 0x0504
    driver.write_config(4, b"\xff\xfe")
    assert driver.config(4, 2) == 0xFEFF
    assert driver.config_within("mtu", 2, 2, 68, 65535) == 0x0302
    with pytest.raises(ConfigError, match=r"the device's mtu is 770, out of range \(1000 to 2000\)"):
        driver.config_within("mtu", 2, 2, 1000, 2000)
    with pytest.raises(ConfigError, match=r"770, out of range \(68 to 769\)"):
        driver.config_within("mtu", 2, 2, 68, 769)
    assert driver.config_within("mtu", 2, 2, 770, 770) == 770


def test_a_field_is_never_of_two_configurations(memory, pool):
    driver = nic(memory, pool, config=b"old" + bytes(5))
    transport = driver.transport
    read = transport.read_config

    def torn(offset, size):
        if transport.generation < 3:
            transport.generation += 1
            transport.config[:3] = b"new"
            return b"ol" + b"w"
        return read(offset, size)

    transport.read_config = torn
    assert driver.read_config(0, 3) == b"new"


def test_legacy_reads_until_two_agree(memory, pool):
    driver = nic(memory, pool, legacy=True)
    reads = iter([b"olw", b"new", b"ned", b"end", b"end"])
    driver.transport.read_config = lambda offset, size: next(reads)
    assert driver.read_config(0, 3) == b"end"


@pytest.mark.parametrize("legacy", [False, True])
def test_a_configuration_that_never_stands_still(memory, pool, legacy):
    driver = nic(memory, pool, legacy=legacy)
    count = 0

    def read(offset, size):
        nonlocal count
        count += 1
        driver.transport.generation = 0 if legacy else count
        return count.to_bytes(size, "little")

    driver.transport.read_config = read
    with pytest.raises(DeviceBroken, match="6 bytes of configuration at 0x0 changed during each of 64 reads"):
        driver.read_config(0, 6)
    assert count <= 70


def test_check_answers_the_configuration_interrupt(memory, pool):
    driver = nic(memory, pool)
    driver.attach()
    assert not driver.check() and "config" not in driver.calls
    driver.transport.config_bell.ring()
    assert driver.check() and driver.calls.count("config") == 1
    assert not driver.check()


@pytest.mark.parametrize(
    ("status", "match"),
    [
        (0x4F, r"asks to be reset \(DEVICE_NEEDS_RESET, status 0x4f\)"),
        (0xFF, "the device is gone: its status reads 0xff"),
        (0x00, r"reset behind the driver's back \(status 0x00\)"),
    ],
)
def test_status_of_a_broken_device(memory, pool, status, match):
    driver = nic(memory, pool)
    driver.attach()
    assert driver.check_status() == 0x0F
    driver.transport.state = status
    driver.transport.config_bell.ring()
    with pytest.raises(DeviceBroken, match=match):
        driver.check()
    assert "config" not in driver.calls
    driver.reinit()  # what heals it
    assert driver.check_status() == 0x0F


def test_wait_until():
    turns = iter([False, False, True])
    wait_until(lambda: next(turns), 0.5, lambda: "never")
    wait_until(lambda: True, 0, lambda: "never")  # looked at once, even without time
    with pytest.raises(DeviceBroken, match="never"):
        wait_until(lambda: False, 0.01, lambda: "never")
