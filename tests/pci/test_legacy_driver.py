"""The legacy PCI transport: registers, configuration and interrupts, on bare registers and on real functions."""

import itertools
import time

import pytest
from fake_legacy import FakeLegacy
from fake_pci import FakeFunction, FakePci

from virtio import GuestMemory, QueueLayout
from virtio.constants import Feature, Status
from virtio.device import Device
from virtio.driver import RING_FEATURES, Driver, QueuePlan
from virtio.driver.registry import Bid
from virtio.errors import ConfigError, DeviceBroken
from virtio.event.notifier import Bell
from virtio.net.device import NetDevice
from virtio.net.machine import InterruptController, Machine
from virtio.net.ports import Loopback
from virtio.net.vtnet import Vtnet
from virtio.pci.attach import attach
from virtio.pci.legacy_driver import LegacyTransport
from virtio.pci.probe import Address, Window, scan

MODES = ("msix", "msix-shared", "intx")
LAYOUT = QueueLayout.legacy(64, 0x4000)


def transport_of(machine, **options):
    return LegacyTransport(machine, machine.find(), machine.memory, machine.interrupts, **options)


# ---- on bare registers: what is written, and where ----


@pytest.mark.parametrize("memory_bar", [False, True])
def test_registers(memory_bar):
    machine = FakeLegacy(memory_bar=memory_bar, features=0x30008021)
    transport = transport_of(machine)
    assert machine.log == []  # nothing before it is asked
    transport.reset()
    assert machine.log == [("write", "status", 1, 0)]
    assert transport.read_features() == 0x30008021
    transport.write_features(0x10000020)
    assert machine.guest_features == 0x10000020
    assert transport.queue_size(1) == 64 and machine.select == 1
    assert transport.queue_size(3) == 0
    machine.log.clear()
    transport.setup_queue(2, LAYOUT)
    assert machine.log == [("write", "select", 2, 2), ("write", "pfn", 4, 4), ("read", "pfn", 4, 4)]
    assert machine.pfns == [0, 0, 4]
    assert (transport.device_type, transport.legacy, transport.generation) == (1, True, 0)
    assert transport.memory is machine.memory


def test_status_bits_are_added():
    machine = FakeLegacy()
    transport = transport_of(machine)
    transport.reset()
    for bits in (Status.ACKNOWLEDGE, Status.DRIVER, Status.DRIVER_OK):
        transport.status = bits
    assert machine.writes("status") == [0, 1, 3, 7] and transport.status == 7
    machine.status |= Status.DEVICE_NEEDS_RESET
    transport.status = Status.FAILED
    assert transport.status == 0xC7


def test_configuration_is_read_byte_by_byte_and_moves():
    machine = FakeLegacy(config=b"\x52\x54\0\1\2\3\1\0")
    transport = transport_of(machine)
    transport.reset()
    assert transport.read_config(0, 6) == b"\x52\x54\0\1\2\3"
    assert [entry[1:3] for entry in machine.log[1:]] == [("config", i) for i in range(6)]
    transport.write_config(4, b"\xaa\xbb")
    assert machine.config == b"\x52\x54\0\1\xaa\xbb\1\0"
    transport.interrupt_bells([0])
    assert machine.msix and transport.mode == "msix"
    assert transport.read_config(6, 2) == b"\1\0"  # 4 bytes further on the wire
    transport.write_config(0, b"\2")
    assert machine.config[0] == 2
    transport.release()
    assert transport.read_config(6, 2) == b"\1\0"  # and back


@pytest.mark.parametrize(("msix", "room"), [(False, 0x40 - 0x14), (True, 0x40 - 0x18)])
def test_configuration_ends_with_the_bar(msix, room):
    machine = FakeLegacy()
    transport = transport_of(machine)
    transport.reset()
    if msix:
        transport.interrupt_bells([])
    assert transport.read_config(room - 2, 2) == b"\xff\xff"
    for offset, size in ((room - 1, 2), (room, 1), (-1, 1), (0, room + 1)):
        with pytest.raises(
            ConfigError, match=f"{size} bytes of configuration at {offset:#x} are outside of the {room:#x}"
        ):
            transport.read_config(offset, size)
        with pytest.raises(ConfigError, match="are outside"):
            transport.write_config(offset, bytes(size))


def test_layouts_that_the_interface_cannot_carry():
    machine = FakeLegacy()
    transport = transport_of(machine)
    transport.reset()
    with pytest.raises(ConfigError, match="queue 0 is not laid out as the legacy interface needs it"):
        transport.setup_queue(0, QueueLayout.split(64, 0x4000))
    with pytest.raises(ConfigError, match=r"queue 0 at 0x100000000000 is above what .* reaches \(0xffffffff pages\)"):
        transport.setup_queue(0, QueueLayout.legacy(64, 1 << 44))
    transport.setup_queue(0, QueueLayout.legacy(64, (1 << 44) - 4096))
    assert machine.pfns[0] == 0xFFFFFFFF
    with pytest.raises(ConfigError, match="no RING_RESET"):
        transport.reset_queue(0)


def test_a_kick_writes_the_queue():
    machine = FakeLegacy()
    transport = transport_of(machine)
    transport.reset()
    kick = transport.kick_bell(2)
    assert transport.kick_bell(2) is kick
    kick.ring()
    assert machine.writes("notify") == [2] and kick.rings == 1


def test_a_doorbell_takes_its_place():
    machine = FakeLegacy()
    asked = []
    bell = object()
    machine.doorbell = lambda address, queue: asked.append((str(address), queue)) or (bell if queue == 1 else None)
    transport = transport_of(machine)
    transport.reset()
    assert transport.kick_bell(1) is bell
    transport.kick_bell(2).ring()
    assert asked == [("00:03.0", 1), ("00:03.0", 2)] and machine.writes("notify") == [2]


def test_command_register():
    machine = FakeLegacy()
    machine.function.set(4, 2, 0x0400)  # INTx off
    transport = transport_of(machine)
    transport.reset()
    assert machine.function.get(4, 2) == 0x0007
    transport.release()
    assert machine.function.get(4, 2) == 0x0003  # no access to memory; the registers answer
    transport.reset()
    assert machine.function.get(4, 2) == 0x0007
    no_memory = FakeLegacy(vectors=0)
    transport_of(no_memory).reset()
    assert no_memory.function.get(4, 2) == 0x0005


def test_msix_table():
    machine = FakeLegacy(vectors=4)
    transport = transport_of(machine)
    transport.reset()
    bells = transport.interrupt_bells([0, 2])
    assert transport.mode == "msix" and len(set(map(id, bells))) == 2
    assert machine.config_vector == 0 and machine.queue_vectors == [1, 0xFFFF, 2]
    entries = [machine.table[16 * n : 16 * n + 16] for n in range(4)]
    assert [entry[:8] for entry in entries] == [b"\0\0\xe0\xfe\0\0\0\0"] * 3 + [bytes(8)]
    assert [entry[8:12] for entry in entries] == [bytes([n, 0, 0, 0]) for n in (0x40, 0x41, 0x42, 0)]
    assert [entry[12] for entry in entries] == [0, 0, 0, 1]  # the one not used stays masked
    assert machine.function.get(0x42, 2) == 0x8003  # enabled, not masked as a whole
    assert set(machine.controls) == {0xC003}  # but masked while there were half-written entries
    assert list(machine.interrupts.vectors.values()) == [transport.config_bell, *bells]
    transport.release()
    assert machine.interrupts.vectors == {} and machine.function.get(0x42, 2) == 3


def test_msix_was_left_on():
    machine = FakeLegacy(config=b"\1\2")
    machine.function.set(0x42, 2, 0x8003)
    transport = transport_of(machine)
    transport.reset()
    assert machine.function.get(0x42, 2) == 3
    assert transport.read_config(0, 2) == b"\1\2"


def test_shared_vector():
    machine = FakeLegacy(vectors=3)
    transport = transport_of(machine)
    transport.reset()
    bells = transport.interrupt_bells([0, 1, 2])
    assert transport.mode == "msix-shared"
    assert machine.config_vector == 0 and machine.queue_vectors == [1, 1, 1]
    config, shared = machine.interrupts.vectors.values()
    assert config is transport.config_bell
    shared.ring()
    assert [bell.answer() for bell in bells] == [True] * 3 and not config.answer()
    transport.release()
    assert machine.interrupts.vectors == {}


@pytest.mark.parametrize(
    ("vectors", "queues", "mode", "result"),
    [
        (4, 3, "msix", "msix"),
        (3, 3, "msix", "msix-shared"),
        (2, 3, "msix", "msix-shared"),
        (2, 1, "msix", "msix"),
        (1, 1, "msix", "intx"),
        (1, 0, "msix", "msix"),
        (0, 3, "msix", "intx"),
        (4, 3, "msix-shared", "msix-shared"),
        (4, 3, "intx", "intx"),
    ],
)
def test_what_there_are_vectors_for(vectors, queues, mode, result):
    machine = FakeLegacy(vectors=vectors)
    transport = transport_of(machine, mode=mode)
    transport.reset()
    assert len(transport.interrupt_bells(range(queues))) == queues
    assert transport.mode == result and result in repr(transport)
    assert machine.msix == (result != "intx")


def test_an_msix_table_without_an_address_is_none():
    machine = FakeLegacy()
    (found,) = scan(machine, io=Window(0xC000, 0x10000))
    transport = LegacyTransport(machine, found, machine.memory, machine.interrupts)
    transport.reset()
    assert machine.function.get(4, 2) == 0x0005  # no decoding of memory at 0
    transport.interrupt_bells([0])
    assert transport.mode == "intx" and not machine.msix
    transport.release()


def test_intx():
    machine = FakeLegacy(vectors=0, pin=3)
    transport = transport_of(machine)
    transport.reset()
    bells = transport.interrupt_bells([0, 1])
    (((address, pin), line),) = machine.interrupts.lines.items()
    assert (str(address), pin) == ("00:03.0", 3)
    for isr, queues, config in ((1, True, False), (2, False, True), (3, True, True), (0, False, False)):
        machine.isr = isr
        line.ring()
        assert machine.isr == 0
        assert [bell.answer() for bell in bells] == [queues, queues] and transport.config_bell.answer() == config
    assert machine.writes("vector") == []
    transport.release()
    assert machine.interrupts.lines == {}


@pytest.mark.parametrize("pin", [0, 5])
def test_no_way_of_interrupts(pin):
    machine = FakeLegacy(vectors=1, pin=pin)
    transport = transport_of(machine)
    transport.reset()
    with pytest.raises(ConfigError, match=f"has interrupt pin {pin}, none of 1 to 4, and 1 MSI-X vectors"):
        transport.interrupt_bells([0])
    transport.release()
    assert machine.interrupts.lines == {}


@pytest.mark.parametrize("vectors", [0, 3, 4])
def test_bells_stay_until_release(vectors):
    machine = FakeLegacy(vectors=vectors)
    transport = transport_of(machine)
    transport.reset()
    before = [*transport.interrupt_bells([0, 1, 2]), transport.config_bell, transport.kick_bell(0)]
    taken = dict(machine.interrupts.vectors)
    transport.reset()
    assert machine.queue_vectors == [0xFFFF] * 3
    after = [*transport.interrupt_bells([0, 1, 2]), transport.config_bell, transport.kick_bell(0)]
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert machine.interrupts.vectors == taken
    assert machine.queue_vectors == {0: [0xFFFF] * 3, 3: [1, 1, 1], 4: [1, 2, 3]}[vectors]
    transport.release()
    transport.reset()
    assert transport.interrupt_bells([0])[0] is not before[0]


def test_functions_that_it_does_not_drive():
    for function, match in (
        (FakeFunction(device=0x1041, revision=1), "00:00.0 1af4:1041 revision 1 has no legacy virtio interface"),
        (FakeFunction(revision=1), "revision 1 has no legacy"),
        (FakeFunction(0x8086, 0x100E), "no legacy virtio interface: that is vendor 0x1af4, device 0x1000 to 0x103f"),
        (FakeFunction(bars={}), "has no BAR 0: the registers need more than 24 bytes"),
        (FakeFunction(bars={0: (0x10, 1)}), "has BAR 0: 0x10 bytes of I/O at 0xc000: the registers need"),
    ):
        (found,) = scan(FakePci({(0, 0, 0): function}), io=Window(0xC000, 0xD000))
        with pytest.raises(ConfigError, match=match):
            LegacyTransport(None, found, None, None)
    (found,) = scan(FakePci({(0, 0, 0): FakeFunction()}))
    with pytest.raises(ConfigError, match="not assigned: the registers need more than 24 bytes, at an address"):
        LegacyTransport(None, found, None, None)
    found = FakeLegacy().find()
    with pytest.raises(ValueError, match="'msi' is none of msix, msix-shared, intx"):
        LegacyTransport(None, found, None, None, mode="msi")


# ---- on real functions ----


class Echo(Device):
    """Three queues: what comes readable goes back into the writable part. Eight bytes of configuration."""

    device_type = 0x1234

    def __init__(self, **options):
        self.config = bytearray(b"\x52\x54\0\1\2\3\x40\x06")
        super().__init__(**options)

    def queue_sizes(self):
        return (self.queue_size,) * 3

    def notified(self, index):
        for chain in self.chains(index):
            chain.write(bytes(chain.read()))

    def config_written(self, offset, data):
        self.config[offset : offset + len(data)] = data
        return True


class EchoDriver(Driver):
    device_type = 0x1234
    wanted = RING_FEATURES | Feature.NOTIFY_ON_EMPTY

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.changes = 0

    def plan_queues(self):
        return [QueuePlan(index, f"echo {index}", segments=4) for index in range(3)]

    def config_changed(self):
        self.changes += 1

    def echo(self, index, text):
        """Send text, and return what came back."""
        attached = self.queues[index]
        gpa = self.pool.allocate(128)
        try:
            self.memory.write(gpa, text)
            attached.queue.enable_intr()
            attached.queue.enqueue([(gpa, len(text))], [(gpa + 64, 32), (gpa + 96, 32)], "cookie")
            attached.notify()
            cookie, used = attached.queue.dequeue()
            assert cookie == "cookie"
            return self.memory.read(gpa + 64, used)
        finally:
            self.pool.free(gpa)


DRIVERS = [Bid(0x1234, EchoDriver)]


def machine_with(*devices, fast=True, **options):
    machine = Machine(16 << 20, fast=fast)
    for device in devices:
        machine.plug(device, **options)
    return machine


def bring_up(machine, mode="msix", index=0):
    function = machine.probe()[index]
    return attach(machine, function, machine.memory, machine.pool, machine.interrupts, drivers=DRIVERS, mode=mode)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_both_ends(mode, fast):
    device = Echo()
    machine = machine_with(device, fast=fast)
    driver = bring_up(machine, mode)
    transport = driver.transport
    assert device.live and transport.mode == mode
    assert driver.negotiation.names(driver.features) == ["NOTIFY_ON_EMPTY", "ANY_LAYOUT", "INDIRECT_DESC", "EVENT_IDX"]
    assert device.negotiated == driver.features
    assert driver.read_config(0, 8) == b"\x52\x54\0\1\2\3\x40\x06"
    bells = [driver.queues[index].interrupt for index in range(3)]
    for index in (1, 0, 2, 1):
        text = b"queue %d" % index
        assert driver.echo(index, text) == text
        rung = [bell.answer() for bell in bells]
        assert rung[index] and (mode != "msix" or sum(rung) == 1)
    assert not driver.check()
    device.config[6:8] = b"\xdc\x05"
    device.config_changed()
    assert driver.check() and driver.changes == 1 and driver.config(6, 2) == 1500
    assert not any(bell.answer() for bell in bells)
    driver.write_config(0, b"\xaa")
    assert device.config[0] == 0xAA
    driver.detach()
    assert machine.pool.used == machine.interrupts.vectors == machine.interrupts.connected == 0
    assert not device.live and device.status == 0


def test_no_python_runs_for_a_kick_or_an_interrupt():
    device = Echo()
    machine = machine_with(device)
    driver = bring_up(machine)
    for index in range(3):
        assert driver.queues[index].kick is device.queues[index].kick
        assert driver.queues[index].interrupt is device.queues[index].call
    slow = machine_with(Echo(), fast=False)
    driver = bring_up(slow)
    assert driver.queues[0].kick is not slow.bus.functions[0].device.queues[0].kick
    assert driver.queues[0].interrupt is not slow.bus.functions[0].device.queues[0].call


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_reinit_and_reattach(mode, fast):
    device = Echo()
    machine = machine_with(device, fast=fast)
    driver = bring_up(machine, mode)
    for _ in range(3):
        before = {index: attached.interrupt for index, attached in driver.queues.items()}
        driver.reinit()
        for index, attached in driver.queues.items():
            assert attached.interrupt is before[index]
            assert driver.echo(index, b"again") == b"again" and attached.interrupt.answer()
        assert driver.read_config(6, 2) == b"\x40\x06"
    for _ in range(3):
        driver.detach()
        driver.attach()
        assert driver.echo(1, b"anew") == b"anew" and driver.queues[1].interrupt.answer()
    driver.detach()
    driver = bring_up(machine, MODES[(MODES.index(mode) + 1) % 3])  # and by another way
    assert driver.echo(2, b"other") == b"other" and driver.queues[2].interrupt.answer()


def test_several_functions():
    machine = machine_with(*(Echo() for _ in range(4)))
    drivers = [bring_up(machine, mode, index) for index, mode in enumerate(("msix", "intx", "intx", "msix-shared"))]
    for driver, index in itertools.product(drivers, range(3)):
        assert driver.echo(index, b"mine") == b"mine"
        rung = [[other.queues[i].interrupt.answer() for i in range(3)] for other in drivers]
        assert [any(bells) for bells in rung] == [other is driver for other in drivers]
        assert rung[drivers.index(driver)][index]
    places = [bar.address for function in machine.probe() for bar in function.bars.values()]
    assert len(set(places)) == 8
    for driver in drivers:
        driver.detach()
    assert machine.pool.used == machine.interrupts.vectors == machine.interrupts.connected == 0


def test_needs_reset_reaches_the_driver():
    device = Echo()
    driver = bring_up(machine_with(device))
    device.needs_reset("the backing store is gone")
    with pytest.raises(DeviceBroken, match=r"asks to be reset \(DEVICE_NEEDS_RESET, status 0x47\)"):
        driver.check()
    driver.reinit()
    assert driver.echo(0, b"healed") == b"healed"


def test_a_driver_that_fails_leaves_the_device_failed():
    class Bad(EchoDriver):
        def ready(self):
            raise ConfigError("no such mode")

    device = Echo()
    machine = machine_with(device)
    (function,) = machine.probe()
    with pytest.raises(ConfigError, match="no such mode"):
        attach(
            machine, function, machine.memory, machine.pool, machine.interrupts, drivers=[Bid(0x1234, Bad)], mode="msix"
        )
    assert device.status == Status.FAILED and not device.live
    assert machine.pool.used == machine.interrupts.vectors == 0
    assert bring_up(machine).echo(0, b"well") == b"well"


def test_options_reach_the_driver():
    machine = machine_with(Echo())
    (function,) = machine.probe()
    driver = attach(
        machine,
        function,
        machine.memory,
        machine.pool,
        machine.interrupts,
        drivers=DRIVERS,
        wanted="INDIRECT_DESC",
        timeout=3,
    )
    assert driver.features == Feature.INDIRECT_DESC and driver.timeout == 3


# ---- the machine ----


def test_interrupts_that_come_early_are_not_lost():
    controller = InterruptController()
    address = Address(0, 3, 0)
    controller.set_line(address, True)
    bell = Bell()
    controller.connect_line(address, 1, bell)
    assert bell.rings == 1
    controller.set_line(address, False)
    controller.set_line(address, True)
    controller.set_line(Address(0, 4, 0), True)
    assert bell.rings == 2
    controller.disconnect_line(address, 1)
    controller.set_line(address, False)
    controller.connect_line(address, 1, bell)  # low again: nothing to tell
    controller.disconnect_line(address, 1)
    controller.set_line(address, True)
    assert bell.rings == 2


def test_messages():
    controller = InterruptController()
    first, second = controller.allocate_vector(), controller.allocate_vector()
    assert first[:2] != second[:2]
    controller.message(*first[:2])
    controller.message(0xFEE00000, 0x1234)  # nobody's
    assert first[2].rings == 1 and second[2].rings == 0
    controller.free_vector(*first[:2])
    controller.message(*first[:2])
    assert first[2].rings == 1 and controller.vectors == 1
    assert controller.allocate_vector()[:2] == first[:2]


def test_vectors_run_out():
    controller = InterruptController()
    bell = Bell()
    messages = {controller.allocate_vector(bell)[:2] for _ in range(0x800)}
    assert len(messages) == controller.vectors == 0x800
    assert all(0 <= data <= 0xFFFF for _, data in messages)


@pytest.mark.parametrize("mode", MODES)
def test_a_device_that_is_unplugged(mode):
    device = Echo()
    machine = machine_with(device, Echo())
    driver = bring_up(machine, mode)
    other = bring_up(machine, mode, 1)
    machine.unplug(0)
    with pytest.raises(DeviceBroken, match="the device is gone: its status reads 0xff"):
        driver.check_status()
    with pytest.raises(DeviceBroken, match="status reads 0xff, not 0"):
        driver.detach()
    driver.detach(force=True)
    assert other.echo(0, b"still here") == b"still here"
    other.detach()
    assert machine.pool.used == machine.interrupts.vectors == machine.interrupts.connected == 0
    assert [function.address.device for function in machine.probe()] == [1]
    machine.plug(Echo())
    assert bring_up(machine, mode).echo(0, b"another") == b"another"


def test_machine_memory():
    machine = Machine(16 << 20)
    assert machine.memory.translate(0, 16 << 20)
    assert machine.pool.gpa == 1 << 20 and machine.pool.size == 15 << 20
    assert Machine(1 << 20).pool.gpa == 0x1000
    memory = GuestMemory.allocate(8 << 20)
    assert Machine(8 << 20, memory=memory).memory is memory


def test_a_network_device_and_its_driver():
    machine = Machine(32 << 20)
    device = NetDevice(Loopback(), mac="52:54:00:01:02:03")
    machine.plug(device)
    machine.plug(Echo())
    attached, other = machine.attach_all()
    assert isinstance(attached.driver, Vtnet) and attached.error is None
    assert str(attached) == ("00:00.0 1af4:1000: Vtnet by <LegacyTransport: 00:00.0 1af4:1000, interrupts by msix>")
    assert other.driver is None and "no driver: none is registered for type 4660" in str(other)
    nic = attached.driver
    frame = bytes.fromhex("525400010203 525400010203 88b5") + b"there and back".ljust(46, b".")
    assert nic.mac == frame[:6] and nic.transmit([frame]) == 1
    deadline = time.monotonic() + 10
    while not (got := nic.receive()):
        device.poll()
        assert time.monotonic() < deadline
    assert got == [frame]
    nic.detach()
    assert machine.pool.used == machine.interrupts.vectors == 0
