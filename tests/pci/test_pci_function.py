"""The function as a whole: its interrupt line, kicks, bus mastering, threads, snapshot and restore."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
import weakref

import pytest
from legacy_model import OWN, SIZES, Recorder

from virtio import DriverQueue, GuestMemory, QueueLayout
from virtio.constants import DeviceType
from virtio.device import Device
from virtio.errors import ConfigError, NegotiationError
from virtio.event.notifier import Bell
from virtio.net.device import NetDevice
from virtio.net.machine import Machine
from virtio.pci import LegacyFunction
from virtio.ports.loopback import Loopback

SIZE = 1 << 20
COMMAND, CONTROL, ENABLE = 4, 0x42, 0x8000
FEATURES, PFN, SELECT, NOTIFY, STATUS, ISR = 0x04, 0x08, 0x0E, 0x10, 0x12, 0x13
RING, BUFFER = 0x10000, 0x40000


class Counter(Device):
    """Writes 1, 2, 3, ... into the buffers that it is given: entropy with a memory."""

    device_type = DeviceType.ENTROPY

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def notified(self, index: int) -> None:
        for chain in self.chains(index):
            self.count += 1
            chain.write(bytes([self.count]))

    def save(self) -> dict[str, int]:
        return {"count": self.count}

    def load(self, state) -> None:
        self.count = state["count"]


class Guest:
    """A driver of one queue, by registers alone."""

    def __init__(self, memory: GuestMemory, function: LegacyFunction, *, master: bool = True) -> None:
        self.memory, self.function = memory, function
        function.write(STATUS, 1, 0)
        function.write(STATUS, 1, 1)
        function.write(STATUS, 1, 2)
        function.config_write(COMMAND, 2, 3 | 4 * master)
        size = function.read(0x0C, 2)
        function.write(SELECT, 2, 0)
        function.write(PFN, 4, RING >> 12)
        self.queue = DriverQueue(memory, QueueLayout.legacy(size, RING))
        function.write(STATUS, 1, 7)

    def ask(self) -> None:
        self.queue.enqueue([], [(BUFFER, 1)])
        self.function.write(NOTIFY, 2, 0)

    def answer(self) -> int | None:
        if self.queue.dequeue() is None:
            return None
        return self.memory.read(BUFFER, 1)[0]


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory.allocate(SIZE)


def recorder(**options) -> LegacyFunction:
    function = LegacyFunction(Recorder(), GuestMemory.allocate(1 << 12), **options)
    function.write(STATUS, 1, 7)
    return function


# ---- the interrupt line ----


def test_the_line_is_high_until_the_isr_is_read():
    levels: list[bool] = []
    function = recorder(intx=levels.append)
    function.device.interrupt(0)
    function.device.interrupt(1)
    assert levels == [True]
    assert function.read(ISR, 1) == 1
    assert levels == [True, False]
    function.device.config_changed()
    assert function.read(ISR, 1) == 2
    function.device.config_changed()
    function.device.interrupt(0)
    assert function.read(ISR, 1) == 3
    assert levels == [True, False] * 3


def test_intx_disable_and_msix_keep_the_line_low():
    levels: list[bool] = []
    function = recorder(intx=levels.append)
    function.config_write(COMMAND, 2, 0x400)
    function.device.interrupt(0)
    assert levels == []
    function.config_write(COMMAND, 2, 0)
    assert levels == [True]
    function.config_write(COMMAND + 1, 1, 4)
    assert levels == [True, False]
    function.config_write(COMMAND + 1, 1, 0)
    function.config_write(CONTROL, 2, ENABLE)
    function.config_write(CONTROL, 2, 0)
    assert levels == [True, False, True, False, True]
    function.write(STATUS, 1, 0)
    assert levels[-1] is False and function.read(ISR, 1) == 0


def test_an_interrupt_after_the_reset_is_none():
    """A task may ring the bell that it holds after the reset that stopped it."""
    levels: list[bool] = []
    function = recorder(intx=levels.append)
    call = function.device.queues[0].call
    function.write(STATUS, 1, 0)
    call.ring()
    assert levels == [] and function.read(ISR, 1) == 0


def test_an_eventfd_or_a_bell_hears_of_the_line_rising():
    bell = Bell()
    function = recorder(intx=bell)
    for n in range(1, 4):
        function.device.interrupt(0)
        function.device.interrupt(0)
        assert bell.rings == n
        function.read(ISR, 1)
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        function = recorder(intx=fd)  # a device does not keep it
        function.device.interrupt(0)
        assert os.eventfd_read(fd) == 1
    finally:
        os.close(fd)


def test_without_a_listener_the_isr_may_be_polled():
    function = recorder()
    assert function.intx is None
    function.device.interrupt(0)
    assert function.read(ISR, 1) == 1 and function.read(ISR, 1) == 0


def test_the_handler_may_run_within_the_interrupt():
    """An emulator that calls its guest's handler from the callable: it reads the ISR, and kicks."""
    seen: list[int] = []
    function = recorder(intx=lambda level: handler() if level else None)

    def handler() -> None:
        seen.append(function.read(ISR, 1))
        function.write(NOTIFY, 2, 1)

    function.device.interrupt(0)
    function.device.interrupt(2)
    assert seen == [1, 1] and function.device.queues[1].kick.rings == 2


def test_what_a_listener_raises_comes_out_of_the_access():
    def listener(*what: object) -> None:
        if what != (False,):
            raise RuntimeError("listener")

    function = recorder(intx=listener, message=listener)
    function.config_write(COMMAND, 2, 0x404)
    function.device.interrupt(0)
    with pytest.raises(RuntimeError, match="listener"):
        function.config_write(COMMAND, 2, 0)
    assert function.read(ISR, 1) == 1 and not function.device.dma
    with pytest.raises(RuntimeError, match="listener"):
        function.write(PFN, 4, 0xFFFFFFFF)  # no memory: the device wants a reset, and says so
    assert function.read(ISR, 1) == 2
    function.config_write(CONTROL, 2, ENABLE)
    for queue in range(len(SIZES)):
        function.write(SELECT, 2, queue)
        function.write(0x16, 2, queue)
        function.device.interrupt(queue)
    for vector in range(3):
        function.memory_write(16 * vector + 12, 4, 0)
    for pending in (0b110, 0b100, 0):
        with pytest.raises(RuntimeError, match="listener"):
            function.config_write(COMMAND, 2, 4)
        assert function.memory_read(2048, 1) == pending
    function.config_write(COMMAND, 2, 4)


# ---- kicks ----


def test_a_doorbell_is_the_kick_of_its_queue():
    function = recorder()
    for queue in range(len(SIZES)):
        assert function.doorbell(queue) is function.device.queues[queue].kick
    with pytest.raises(IndexError):
        function.doorbell(len(SIZES))


def test_register_and_doorbell_reach_the_device(memory):
    device = Counter()
    guest = Guest(memory, LegacyFunction(device, memory))
    guest.ask()
    assert guest.answer() == 1
    guest.queue.enqueue([], [(BUFFER, 1)])
    guest.function.doorbell(0).ring()
    assert guest.answer() == 2
    assert guest.function.read(ISR, 1) == 1


@pytest.mark.parametrize("by", ["register", "doorbell"])
def test_kicks_before_driver_ok_are_served(memory, by):
    """Legacy drivers use their queues before they say DRIVER_OK (VIRTIO 1.4, 3.1.2)."""
    function = LegacyFunction(Counter(), memory)
    function.write(STATUS, 1, 3)
    function.write(PFN, 4, RING >> 12)
    queue = DriverQueue(memory, QueueLayout.legacy(256, RING))
    for status in (3, 7):
        queue.enqueue([], [(BUFFER, 1)])
        if by == "register":
            function.write(NOTIFY, 2, 0)
        else:
            function.doorbell(0).ring()
        assert queue.dequeue() is not None
        assert function.read(ISR, 1) == 1
        function.write(STATUS, 1, status)


# ---- bus mastering ----


def test_without_bus_mastering_memory_is_left_alone_and_nothing_is_lost(memory):
    function = LegacyFunction(Counter(), memory)
    guest = Guest(memory, function)
    function.config_write(COMMAND, 2, 3)
    before = memory.read(0, SIZE)
    for _ in range(3):
        function.write(NOTIFY, 2, 0)
        function.doorbell(0).ring()
    assert memory.read(0, SIZE) == before
    guest.ask()
    assert guest.answer() is None and memory.read_u16(function.device.queues[0].layout.device + 2) == 0
    function.config_write(COMMAND, 1, 7)
    assert guest.answer() == 1


def test_a_device_that_is_started_without_bus_mastering_starts_with_it(memory):
    function = LegacyFunction(Counter(), memory)
    guest = Guest(memory, function, master=False)
    guest.ask()
    assert not function.device.live and guest.answer() is None
    function.config_write(COMMAND, 2, 7)
    assert function.device.live and guest.answer() == 1
    function.config_write(COMMAND, 2, 0)
    function.write(STATUS, 1, 0)
    function.config_write(COMMAND, 2, 7)
    assert not function.device.live


@pytest.mark.parametrize("statuses", [[3], [1, 3]])
def test_a_driver_that_forgets_bus_mastering_gets_it(statuses):
    """As in QEMU: Linux before 2.6.34 does not enable it."""
    function = LegacyFunction(Recorder(), GuestMemory.allocate(1 << 12))
    for status in statuses:
        assert function.config_read(COMMAND, 2) == 0
        function.write(STATUS, 1, status)
    assert function.config_read(COMMAND, 2) == 4
    function.config_write(COMMAND, 2, 0)
    function.write(STATUS, 1, 7)
    assert function.config_read(COMMAND, 2) == 0


def test_a_device_that_leaves_the_bus_is_free_of_it(memory):
    """What was kept from memory by one function is not by what it is bound to next."""
    device = Counter()
    LegacyFunction(device, memory)
    guest = Guest(memory, LegacyFunction(device, memory))
    guest.ask()
    assert guest.answer() == 1


def test_tasks_are_paused_while_memory_is_out_of_bounds():
    calls: list[str] = []

    class Tasks(Recorder):
        def activate(self, memory, interrupt) -> None:
            calls.append("activate")

        def deactivate(self) -> None:
            calls.append("deactivate")

        def pause(self) -> None:
            calls.append("pause")

        def resume(self) -> None:
            calls.append("resume")

        def queue_enable(self, index: int) -> None:
            calls.append(f"enable {index}")

    function = LegacyFunction(Tasks(), GuestMemory.allocate(1 << 20))
    function.write(STATUS, 1, 3)
    function.write(STATUS, 1, 7)
    function.config_write(COMMAND, 2, 0)
    function.write(PFN, 4, 16)
    function.snapshot()
    function.config_write(COMMAND, 2, 4)
    function.config_write(COMMAND, 2, 4)
    function.snapshot()
    function.write(STATUS, 1, 0)
    assert calls == [
        *("activate", "pause", "enable 0", "pause", "resume"),  # a snapshot in between has nothing to pause
        *("pause", "resume", "deactivate"),
    ]
    assert function.device.queues[0].kick.rings == 1


# ---- threads ----


@pytest.mark.threads
def test_registers_from_several_threads():
    """Writes wait for each other, reads and kicks do not, and interrupts come in between: nothing raises."""
    function = recorder(intx=lambda level: function.read(ISR, 1) if level else None, message=lambda *_: None)
    errors: list[BaseException] = []

    def run(work) -> threading.Thread:
        def target() -> None:
            try:
                for n in range(400):
                    work(n)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=target)
        thread.start()
        return thread

    threads = [
        run(lambda n: function.write(n % 0x14, 4, n)),
        run(lambda n: function.config_write(CONTROL, 2, ENABLE * (n & 1))),
        run(lambda n: function.write(NOTIFY, 2, n % 3)),
        run(lambda n: function.device.interrupt(n % 3)),
        run(lambda n: function.read(n % 0x30, 4)),
        run(lambda n: function.snapshot() if n % 20 == 0 else function.device.config_changed()),
    ]
    for thread in threads:
        thread.join(60)
    assert not errors and not any(thread.is_alive() for thread in threads)


def test_a_function_goes_when_nobody_holds_it(memory):
    function = LegacyFunction(Counter(), memory, intx=lambda level: None)
    Guest(memory, function).ask()
    gone = weakref.ref(function)
    del function
    gc.collect()
    assert gone() is None


@pytest.mark.threads
@pytest.mark.parametrize("fast", [False, True], ids=["registers", "bells"])
@pytest.mark.parametrize("mode", ["intx", "msix"])
def test_frames_pass_while_masks_and_bus_mastering_come_and_go(mode, fast):
    """A network device on a thread of its own gives back all that its driver sends."""
    machine = Machine(32 << 20, fast=fast)
    device = NetDevice(Loopback(), worker="own")
    function = machine.plug(device)
    (found,) = machine.probe()
    nic = machine.attach(found, mode=mode)
    frames = [bytes([2, 0, 0, 0, 0, n % 256]) * 2 + b"\x08\0" + n.to_bytes(4, "big") * 16 for n in range(6000)]
    sent, got, deadline = 0, [], time.monotonic() + 60
    try:
        while len(got) < len(frames) and time.monotonic() < deadline:
            sent += nic.transmit(frames[sent : sent + 32])
            got += nic.receive(64)
            function.config_write(COMMAND, 2, 3)
            function.config_write(COMMAND, 2, 7)
            if mode == "msix":
                function.config_write(CONTROL, 2, ENABLE | 0x4000)
                function.config_write(CONTROL, 2, ENABLE)
                for masked in (1, 0):
                    function.memory_write(16 + 12, 4, masked)
        assert got == frames
    finally:
        nic.detach()


# ---- snapshot ----


def test_a_snapshot_goes_on_elsewhere(memory):
    levels: list[bool] = []
    function = LegacyFunction(Counter(), memory)
    guest = Guest(memory, function)
    function.config_write(0x10, 4, 0xC000)
    guest.ask()
    guest.answer()
    guest.queue.enqueue([], [(BUFFER, 1)])  # not kicked yet
    function.write(SELECT, 2, 5)
    state = json.loads(json.dumps(function.snapshot()))
    function.write(STATUS, 1, 0)

    other = LegacyFunction(Counter(), memory, intx=levels.append)
    other.restore(state)
    assert other.config_read(0x10, 4) == 0xC001 and other.config_read(COMMAND, 2) == 7
    assert levels == [True] and other.read(SELECT, 2) == 5 and other.read(STATUS, 1) == 7
    other.write(SELECT, 2, 0)
    assert other.read(PFN, 4) == RING >> 12
    guest.function = other
    assert guest.answer() == 2  # restored devices look for what they were not told of
    guest.ask()
    assert guest.answer() == 3
    assert other.read(ISR, 1) == 1 and levels == [True, False]


def test_a_snapshot_keeps_vectors_masks_and_pending_messages(memory):
    sent: list[int] = []
    function = LegacyFunction(Recorder(), memory, vectors=4)
    function.config_write(COMMAND, 2, 7)
    function.config_write(CONTROL, 2, ENABLE)
    function.write(STATUS, 1, 7)
    function.write(FEATURES, 4, OWN)
    for queue, vector in enumerate((2, 9, 1)):
        function.write(SELECT, 2, queue)
        function.write(0x16, 2, vector)
    function.write(0x14, 2, 3)
    for vector in (1, 2):
        function.memory_write(16 * vector + 8, 4, vector)
    function.memory_write(2 * 16 + 12, 4, 0)
    function.device.interrupt(0)
    function.device.interrupt(2)
    assert function.memory_read(2048, 1) == 0b110  # nobody takes messages, so vector 2 waits, too
    bell = Bell()
    other = LegacyFunction(Recorder(), memory, vectors=4, message=lambda address, data: sent.append(data))
    other.route(1, bell)
    other.restore(json.loads(json.dumps(function.snapshot())))
    assert sent == [2] and bell.rings == 0 and other.memory_read(2048, 1) == 0b010
    other.memory_write(1 * 16 + 12, 4, 0)
    assert bell.rings == 1 and other.device.queues[2].call is bell
    for queue, vector in enumerate((2, 0xFFFF, 1)):
        other.write(SELECT, 2, queue)
        assert other.read(0x16, 2) == vector
    assert other.read(0x14, 2) == 3


def test_a_snapshot_without_bus_mastering(memory):
    function = LegacyFunction(Counter(), memory)
    guest = Guest(memory, function)
    function.config_write(COMMAND, 2, 3)
    guest.ask()
    other = LegacyFunction(Counter(), memory)
    other.restore(function.snapshot())
    assert guest.answer() is None
    other.config_write(COMMAND, 2, 7)
    assert guest.answer() == 1


def test_restoring_ends_what_the_function_was_at(memory):
    """A live device with a kick that waits for bus mastering, which the snapshot has: the old queue is not served."""
    function = LegacyFunction(Counter(), memory)
    guest = Guest(memory, function)
    function.config_write(COMMAND, 2, 3)
    guest.ask()
    fresh = LegacyFunction(Counter(), memory)
    fresh.config_write(COMMAND, 2, 7)
    function.restore(fresh.snapshot())
    assert guest.answer() is None and function.device.count == 0
    assert function.snapshot() == fresh.snapshot()


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda memory: LegacyFunction(Recorder(), memory, vectors=0), ConfigError),
        (lambda memory: LegacyFunction(Recorder(), memory, vectors=5), ConfigError),
        (lambda memory: LegacyFunction(Counter(), memory, vectors=4), ConfigError),
        (
            lambda memory: LegacyFunction(
                type("Two", (Recorder,), {"queue_sizes": lambda self: (8, 8)})(), memory, vectors=4
            ),
            ConfigError,
        ),
        (
            lambda memory: LegacyFunction(type("Few", (Recorder,), {"features": 0})(), memory, vectors=4),
            NegotiationError,
        ),
    ],
    ids=["no MSI-X", "vectors", "type", "queues", "features"],
)
def test_a_snapshot_of_another_function_is_refused(memory, make, error):
    function = LegacyFunction(Recorder(), memory, vectors=4)
    function.write(STATUS, 1, 3)
    function.write(FEATURES, 4, OWN)
    other = make(memory)
    before = other.snapshot()
    with pytest.raises(error):
        other.restore(function.snapshot())
    assert other.snapshot() == before


def test_a_snapshot_of_a_modern_device_is_refused(memory):
    function = LegacyFunction(Recorder(), memory)
    state = function.snapshot()
    state["device"]["legacy"] = False
    with pytest.raises(ConfigError, match=r"device\.legacy is of the modern interface"):
        function.restore(state)


def test_a_live_device_is_not_taken_from_its_driver(memory):
    device = Counter()
    Guest(memory, LegacyFunction(device, memory))
    with pytest.raises(RuntimeError, match="live"):
        LegacyFunction(device, memory)
    assert device.live
