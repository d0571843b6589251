"""Devices that lie in their registers and configuration: one clear error each, and nothing is kept."""

import itertools
import random

import pytest
from fake_legacy import NO_VECTOR, FakeLegacy

from virtio import Feature, NetFeature
from virtio.constants import Status
from virtio.driver import RING_FEATURES, Driver, QueuePlan
from virtio.errors import ConfigError, DeviceBroken, NegotiationError, VirtioError
from virtio.net.vtnet import Vtnet
from virtio.pci.legacy_driver import LegacyTransport

FEATURES = NetFeature.MAC | NetFeature.MTU | NetFeature.MQ | NetFeature.CTRL_VQ | Feature.INDIRECT_DESC
# MAC, status, max_virtqueue_pairs, mtu
CONFIG = bytes.fromhex("525400010203") + b"\1\0" + b"\2\0" + b"\xdc\x05"


class Nic(Driver):
    """Believes nothing of its configuration, and says so."""

    device_type = 1
    wanted = RING_FEATURES | FEATURES

    def plan_queues(self):
        self.mac = self.read_config(0, 6)
        pairs = self.config_within("max_virtqueue_pairs", 8, 2, 1, 0x8000)
        self.mtu = self.config_within("mtu", 10, 2, 68, 65535)
        plans = [QueuePlan(i, ("rx", "tx")[i % 2], segments=4) for i in range(2)]
        return [*plans, QueuePlan(2 * pairs, "ctrl", interrupt=False)]


def machine(**options):
    return FakeLegacy(**{"features": FEATURES, "config": CONFIG, "sizes": (64,) * 5, "vectors": 4, **options})


def driver_of(device, cls=Nic, mode="msix", **options):
    transport = LegacyTransport(device, device.find(), device.memory, device.interrupts, mode=mode)
    return cls(transport, device.pool, timeout=0.02, **options)


def nothing_is_kept(device):
    assert device.pool.allocations == {}
    assert device.interrupts.vectors == {} and device.interrupts.lines == {}
    assert not device.msix and not device.function.data[4] & 4  # and it cannot reach memory


def refused(device, error, match, **options):
    driver = driver_of(device, **options)
    with pytest.raises(error, match=match):
        driver.attach()
    assert driver.queues == {} and not driver.attached
    nothing_is_kept(device)


def test_an_honest_one():
    device = machine()
    driver = driver_of(device)
    driver.attach()
    assert (driver.mac, driver.mtu, sorted(driver.queues)) == (CONFIG[:6], 1500, [0, 1, 4])
    assert device.status == 7 and device.writes("guest features") == [FEATURES]
    assert [pfn != 0 for pfn in device.pfns] == [True, True, False, False, True]
    driver.detach()
    nothing_is_kept(device)


# ---- registers ----


def test_registers_that_read_as_ones():
    device = machine()
    for offset in (0x00, 0x04, 0x08, 0x0C, 0x0E, 0x12, 0x13, 0x14, 0x16):
        device.lies[offset] = lambda true: 0xFFFFFFFF  # cut to the width of the access
    device.lies["config"] = lambda at, true: 0xFF
    refused(device, DeviceBroken, r"device status reads 0xff, not 0, 0\.02 s after the reset")


def test_registers_that_read_as_zeros():
    device = machine()
    for offset in (0x00, 0x04, 0x08, 0x0C, 0x0E, 0x12, 0x13, 0x14, 0x16):
        device.lies[offset] = lambda true: 0
    device.lies["config"] = lambda at, true: 0
    refused(device, ConfigError, r"the device's max_virtqueue_pairs is 0, out of range \(1 to 32768\)")
    device.lies["config"] = lambda at, true: 1
    refused(device, ConfigError, r"queue 0 \(rx\) does not exist: its size reads 0")


@pytest.mark.parametrize("stuck", [0x01, 0x07, 0x80])
def test_a_status_that_never_resets(stuck):
    device = machine()
    device.lies[0x12] = lambda true: true | stuck
    refused(device, DeviceBroken, f"device status reads {stuck:#04x}, not 0, 0.02 s")
    assert device.status & Status.FAILED  # it was told


def test_a_slow_reset_is_waited_for():
    device = machine()
    turns = itertools.count()
    device.lies[0x12] = lambda true: true or (0x0F if next(turns) < 5 else 0)
    driver = driver_of(device)
    driver.timeout = 5
    driver.attach()
    assert next(turns) >= 6


def test_features_that_change_between_reads():
    device = machine()
    turns = itertools.count()
    device.lies[0x00] = lambda true: true ^ (next(turns) > 0)
    refused(device, NegotiationError, r"changed while negotiated: CSUM \(0x10420028, then 0x10420029\)")


@pytest.mark.parametrize(
    ("size", "match"),
    [
        (0, r"queue 1 \(tx\) does not exist: its size reads 0"),
        (3, r"queue 1 \(tx\) has size 3, which is not a power of two"),
        (65535, r"queue 1 \(tx\) has size 65535, out of range \(1 to 32768\)"),
        (0xC000, r"has size 49152, out of range"),
    ],
)
def test_queue_sizes(size, match):
    device = machine()
    device.sizes[1] = size
    refused(device, ConfigError, match)


def test_a_queue_larger_than_the_memory():
    device = machine()
    device.sizes[1] = 32768
    refused(device, VirtioError, r"no 802822 bytes aligned to 4096 .* bytes are left|no 2097152 bytes aligned to 64")


def test_a_queue_of_one():
    device = machine(sizes=(1, 1, 1, 1, 1))
    driver = driver_of(device)
    driver.attach()
    assert [attached.queue.size for attached in driver.queues.values()] == [1, 1, 1]
    driver.detach()
    nothing_is_kept(device)


def test_a_queue_that_does_not_take_its_page():
    device = machine()
    device.lies[0x08] = lambda true: true ^ 1
    refused(device, DeviceBroken, r"queue 0 of 00:03.0 1af4:1000 did not take page (0x\w+): it reads 0x")


@pytest.mark.parametrize("got", [NO_VECTOR, 3, 0x1234])
def test_vectors_that_are_refused(got):
    device = machine()
    none = r" \(NO_VECTOR\)" if got == NO_VECTOR else ""
    device.lies[0x16] = lambda true: got if true == 2 else true
    refused(device, DeviceBroken, f"gave queue 1 no MSI-X vector: 2 reads back as {got:#x}{none}$")
    device.lies = {0x14: lambda true: NO_VECTOR}
    refused(device, DeviceBroken, r"gave the configuration no MSI-X vector: 0 reads back as 0xffff \(NO_VECTOR\)")
    device.lies = {0x16: lambda true: NO_VECTOR}
    refused(device, DeviceBroken, "gave queue 0 no MSI-X vector: 1 reads", mode="msix-shared")


def test_a_command_register_that_takes_nothing():
    device = machine()
    device.function.hooks[4] = lambda byte: byte & ~4
    driver = driver_of(device)
    match = r"command register of 00:03\.0 1af4:1000 reads 0x0003 after 0x0007 was written"
    with pytest.raises(DeviceBroken, match=match):
        driver.attach()
    device.function.hooks.clear()
    nothing_is_kept(device)


# ---- the device's configuration ----


@pytest.mark.parametrize(
    ("offset", "value", "match"),
    [
        (8, 0, r"max_virtqueue_pairs is 0, out of range \(1 to 32768\)"),
        (8, 0x8001, r"max_virtqueue_pairs is 32769, out of range \(1 to 32768\)"),
        (8, 0xFFFF, r"max_virtqueue_pairs is 65535, out of range"),
        (8, 0x8000, r"queue 65536 \(ctrl\) does not exist: indices are 0 to 65535"),
        (8, 3, r"queue 6 \(ctrl\) does not exist: its size reads 0"),
        (10, 0, r"the device's mtu is 0, out of range \(68 to 65535\)"),
        (10, 67, r"the device's mtu is 67, out of range \(68 to 65535\)"),
    ],
)
def test_fields_out_of_range(offset, value, match):
    device = machine()
    device.config[offset : offset + 2] = value.to_bytes(2, "little")
    refused(device, ConfigError, match)


def test_a_field_that_never_stands_still():
    device = machine()
    turns = itertools.count()
    device.lies["config"] = lambda at, true: next(turns) & 0xFF
    refused(device, DeviceBroken, "6 bytes of configuration at 0x0 changed during each of 64 reads")
    assert next(turns) < 500


def test_a_bar_too_small_for_the_configuration():
    device = machine(bar=0x20)  # for 12 bytes, or 8 with MSI-X
    driver = driver_of(device)
    driver.attach()
    with pytest.raises(ConfigError, match="2 bytes of configuration at 0xa are outside of the 0x8 bytes"):
        driver.config(10, 2)
    driver.detach()
    nothing_is_kept(device)
    device.config = bytearray(6)
    driver.plan_queues = lambda: driver.config(12, 2)
    refused_again = pytest.raises(ConfigError, match="2 bytes of configuration at 0xc are outside of the 0xc bytes")
    with refused_again:
        driver.attach()
    nothing_is_kept(device)


def test_all_of_it_again_after_a_failure():
    """Whatever went wrong: what an honest device then offers can be had."""
    device = machine()
    device.lies[0x16] = lambda true: NO_VECTOR
    driver = driver_of(device)
    with pytest.raises(DeviceBroken):
        driver.attach()
    device.lies.clear()
    driver.attach()
    assert driver.attached and device.queue_vectors[:2] == [1, 2]


# ---- a running device ----


@pytest.mark.parametrize(
    ("status", "match"),
    [
        (0x47, r"DEVICE_NEEDS_RESET, status 0x47"),
        (0xFF, "the device is gone: its status reads 0xff"),
        (0, "was reset behind the driver's back"),
    ],
)
def test_status_of_a_running_device(status, match):
    device = machine()
    driver = driver_of(device)
    driver.attach()
    device.lies[0x12] = lambda true: status
    with pytest.raises(DeviceBroken, match=match):
        driver.check_status()
    device.lies.clear()
    driver.detach()
    nothing_is_kept(device)


def test_a_device_that_does_not_let_go():
    device = machine()
    driver = driver_of(device)
    driver.attach()
    taken = device.pool.allocations
    device.lies[0x12] = lambda true: 7
    with pytest.raises(DeviceBroken, match="not 0"):
        driver.detach()
    assert device.pool.allocations == taken  # it may still write there
    with pytest.raises(DeviceBroken, match="not 0"):
        driver.reinit()
    assert device.pool.allocations == taken
    driver.detach(force=True)
    nothing_is_kept(device)


def test_a_device_that_changes_between_reinits():
    for what, match in (
        (lambda device: device.sizes.__setitem__(1, 32), r"queue 1 \(tx\) has size 32, and had 64"),
        (lambda device: setattr(device, "features", 0), "required features are missing: MTU"),
        (lambda device: device.lies.__setitem__(0x16, lambda true: NO_VECTOR), "NO_VECTOR"),
    ):
        device = machine()
        driver = driver_of(device)
        driver.attach()
        what(device)
        with pytest.raises(VirtioError, match=match):
            driver.reinit()
        nothing_is_kept(device)


# ---- anything at all ----


REGISTERS = (0x00, 0x04, 0x08, 0x0C, 0x0E, 0x12, 0x13, 0x14, 0x16)


def liar(rng):
    """Return a lie about a register: values that are ones, zeros, off by a bit, anything; always, or now and then."""
    kind, often = rng.choice("10^?"), rng.choice((1, 1, 0.3, 0.05))

    def lie(true):
        if rng.random() > often:
            return true
        return {"1": 0xFFFFFFFF, "0": 0, "^": true ^ 1 << rng.randrange(32), "?": rng.getrandbits(32)}[kind]

    return lie


@pytest.mark.parametrize("cls", [Nic, Vtnet])
@pytest.mark.parametrize("seed", range(60))
def test_random_lies(seed, cls):
    rng = random.Random(seed)
    device = machine(vectors=rng.choice((0, 1, 3, 4)), config=CONFIG + bytes(8))
    driver = driver_of(device, cls)
    for offset in rng.sample(REGISTERS, rng.randint(1, 3)):
        lie = liar(rng)
        size = {0x12: 1, 0x13: 1, 0x00: 4, 0x04: 4, 0x08: 4}.get(offset, 2)
        device.lies[offset] = lambda true, lie=lie, size=size: lie(true) & (1 << 8 * size) - 1
    if rng.random() < 0.5:
        lie = liar(rng)
        device.lies["config"] = lambda at, true: lie(true) & 0xFF
    for step in (driver.attach, driver.check_status, driver.reinit, driver.attach, driver.detach):
        try:
            step()
        except VirtioError as error:
            assert str(error)
    device.lies.clear()
    driver.detach(force=True)
    nothing_is_kept(device)
    driver.attach()  # the driver itself has taken no harm
    driver.detach()
    nothing_is_kept(device)
