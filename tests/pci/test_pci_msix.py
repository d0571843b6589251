"""MSI-X: the table and its masks, pending bits, and who is rung for a vector: message, route, resolved bell, nobody."""

from __future__ import annotations

import os
import sys
import threading
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from legacy_model import SIZES, Recorder

from virtio import GuestMemory
from virtio.errors import ConfigError
from virtio.event.notifier import Bell
from virtio.pci import LegacyFunction

MEMORY = GuestMemory.allocate(1 << 16)
COMMAND, MASTER = 4, 4
CONTROL, ENABLE, MASK_ALL = 0x42, 0x8000, 0x4000
PENDING = 2048
VECTORS = 4
SELECT, STATUS, CONFIG_VECTOR, QUEUE_VECTOR = 0x0E, 0x12, 0x14, 0x16
NO_VECTOR = 0xFFFF


class Rig:
    """A live function: queue i on vector i, the configuration on 3; vector v's message is (address(v), 0x40 + v)."""

    def __init__(self, *, message: bool = True, resolve=None, on: bool = True) -> None:
        self.sent: list[tuple[int, int]] = []
        self.levels: list[bool] = []
        self.device = Recorder()
        self.function = LegacyFunction(
            self.device,
            MEMORY,
            intx=self.levels.append,
            message=(lambda address, data: self.sent.append((address, data))) if message else None,
            resolve=resolve,
            vectors=VECTORS,
        )
        self.function.config_write(COMMAND, 2, 7)
        self.function.config_write(CONTROL, 2, ENABLE)
        for queue in range(len(SIZES)):
            self.function.write(SELECT, 2, queue)
            self.function.write(QUEUE_VECTOR, 2, queue)
        self.function.write(CONFIG_VECTOR, 2, 3)
        self.function.write(STATUS, 1, 7)
        for vector in range(VECTORS):
            self.program(vector)
            if on:
                self.mask(vector, False)

    @staticmethod
    def address(vector: int) -> int:
        return 0x1_FEE0_0000 + 0x1000 * vector

    def program(self, vector: int, data: int | None = None) -> None:
        self.function.memory_write(16 * vector, 8, self.address(vector))
        self.function.memory_write(16 * vector + 8, 4, 0x40 + vector if data is None else data)

    def mask(self, vector: int, masked: bool) -> None:
        self.function.memory_write(16 * vector + 12, 4, masked)

    def vectors(self) -> list[int]:
        """Vectors of the messages that were sent since the last call."""
        sent, self.sent[:] = list(self.sent), []
        assert all(address == self.address(data - 0x40) for address, data in sent)
        return [data - 0x40 for _, data in sent]

    def pending(self) -> int:
        return self.function.memory_read(PENDING, 8)

    def call(self, queue: int) -> Bell:
        return self.device.queues[queue].call


# ---- the BAR ----


def image(function: LegacyFunction, size: int = 4096) -> bytes:
    return b"".join(function.memory_read(i, 8).to_bytes(8, "little") for i in range(0, size, 8))


def test_after_reset_all_is_masked_and_nothing_pending():
    function = LegacyFunction(Recorder(), MEMORY, vectors=VECTORS)
    assert image(function) == (bytes(12) + b"\1\0\0\0") * VECTORS + bytes(4096 - 16 * VECTORS)


@pytest.mark.parametrize("pattern", [0, 0xFFFFFFFFFFFFFFFF, 0x5A5A5A5A5A5A5A5A, 0x0102030405060708], ids=hex)
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_write_everywhere(width, pattern):
    """Addresses (but the lowest two bits), data and mask bits can be written; nothing else, wherever an access lies."""
    function = LegacyFunction(Recorder(), MEMORY, vectors=VECTORS)
    expected = bytearray(image(function))
    writable = (b"\xfc" + b"\xff" * 11 + b"\1\0\0\0") * VECTORS + bytes(4096 - 16 * VECTORS)
    value = pattern & (1 << 8 * width) - 1
    for offset in (*range(16 * VECTORS + 2), *range(PENDING - 9, PENDING + 9), *range(4096 - width, 4097)):
        function.memory_write(offset, width, value)
        for i, byte in enumerate(value.to_bytes(width, "little"), offset):
            if i < 4096:
                expected[i] = expected[i] & ~writable[i] | byte & writable[i]
        assert image(function) == bytes(expected), f"{offset:#x}"
    for offset in range(16 * VECTORS + 8):
        assert function.memory_read(offset, width) == int.from_bytes(expected[offset : offset + width], "little")


def test_pending_bits_are_read_at_any_width_and_only_read():
    rig = Rig(on=False)
    for queue in range(len(SIZES)):
        rig.device.interrupt(queue)
    rig.device.config_changed()
    assert rig.pending() == 0b1111
    assert rig.function.memory_read(PENDING, 1) == 0b1111
    assert rig.function.memory_read(PENDING - 1, 2) == 0b1111 << 8
    assert rig.function.memory_read(PENDING - 4, 8) == 0b1111 << 32
    assert rig.function.memory_read(PENDING + 1, 4) == 0
    rig.function.memory_write(PENDING, 8, 0)
    assert rig.pending() == 0b1111


def test_many_vectors():
    function = LegacyFunction(Recorder(), MEMORY, vectors=200)
    function.config_write(COMMAND, 2, 7)
    function.config_write(CONTROL, 2, ENABLE)
    function.write(STATUS, 1, 7)
    function.write(QUEUE_VECTOR, 2, 199)
    function.device.interrupt(0)
    assert function.memory_read(3200 + 24, 1) == 0x80  # bit 199
    assert function.memory_read(199 * 16 + 12, 4) == 1
    assert function.memory_read(200 * 16 - 4, 8) == 1  # the last mask, and the first pending bits


def test_a_table_of_another_size_is_not_restored():
    msix = Rig().function.msix
    state = msix.snapshot()
    for wrong in ({"table": state["table"][:-32]}, {"pending": "10"}):
        with pytest.raises(ConfigError, match=r"not 64|no mask of 4 vectors"):
            msix.restore(state | wrong)
    assert msix.snapshot() == state
    msix.restore(state | {"pending": "8"})
    assert msix.pending == 8


# ---- messages ----


def test_each_source_has_its_message():
    rig = Rig()
    for queue in range(len(SIZES)):
        rig.device.interrupt(queue)
    rig.device.config_changed()
    assert rig.vectors() == [0, 1, 2, 3]
    assert rig.pending() == 0 and rig.levels == [] and rig.function.read(0x13, 1) == 3


def test_the_message_is_what_the_table_holds_when_it_is_sent():
    rig = Rig()
    rig.mask(0, True)
    rig.device.interrupt(0)
    rig.program(0, data=0x42)
    rig.function.memory_write(0, 8, 0xFFFF_FFFF_FFFF_FFFF)
    rig.mask(0, False)
    assert rig.sent == [(0xFFFF_FFFF_FFFF_FFFC, 0x42)]


BLOCKS = {
    "vector mask": (lambda rig: rig.mask(1, True), lambda rig: rig.mask(1, False)),
    "vector mask, one byte": (
        lambda rig: rig.function.memory_write(28, 1, 1),
        lambda rig: rig.function.memory_write(28, 1, 0),
    ),
    "function mask": (
        lambda rig: rig.function.config_write(CONTROL, 2, ENABLE | MASK_ALL),
        lambda rig: rig.function.config_write(CONTROL + 1, 1, ENABLE >> 8),
    ),
    "bus master": (
        lambda rig: rig.function.config_write(COMMAND, 2, 3),
        lambda rig: rig.function.config_write(COMMAND, 1, 7),
    ),
}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("routed", [False, True])
def test_what_keeps_a_message_back_makes_it_pending_and_it_is_sent_once(block, routed):
    rig = Rig()
    stop, go = BLOCKS[block]
    bell = Bell()
    if routed:
        rig.function.route(1, bell)
    stop(rig)
    for _ in range(3):
        rig.device.interrupt(1)
    assert rig.vectors() == [] and bell.rings == 0 and rig.pending() == 0b10
    go(rig)
    assert (rig.vectors(), bell.rings) == (([], 1) if routed else ([1], 0))
    assert rig.pending() == 0
    stop(rig)
    go(rig)
    assert rig.vectors() == [] and bell.rings == routed


def test_one_masked_vector_does_not_keep_others_back():
    rig = Rig()
    rig.mask(1, True)
    for queue in range(len(SIZES)):
        rig.device.interrupt(queue)
    assert rig.vectors() == [0, 2]


def test_a_vector_that_is_still_masked_stays_pending_when_the_function_is_unmasked():
    rig = Rig()
    rig.function.config_write(CONTROL, 2, ENABLE | MASK_ALL)
    rig.mask(1, True)
    for queue in range(len(SIZES)):
        rig.device.interrupt(queue)
    rig.function.config_write(CONTROL, 2, ENABLE)
    assert rig.vectors() == [0, 2] and rig.pending() == 0b10


def test_sharing_a_vector():
    rig = Rig()
    for queue in range(len(SIZES)):
        rig.function.write(SELECT, 2, queue)
        rig.function.write(QUEUE_VECTOR, 2, 1)
    rig.function.write(CONFIG_VECTOR, 2, 1)
    bell = Bell()
    rig.function.route(1, bell)
    assert all(rig.call(queue) is bell for queue in range(len(SIZES)))
    rig.device.interrupt(2)
    rig.device.config_changed()
    assert bell.rings == 2


def test_no_vector_is_no_interrupt():
    rig = Rig()
    for queue in range(len(SIZES)):
        rig.function.write(SELECT, 2, queue)
        rig.function.write(QUEUE_VECTOR, 2, NO_VECTOR)
        rig.device.interrupt(queue)
    rig.function.write(CONFIG_VECTOR, 2, NO_VECTOR)
    rig.device.config_changed()
    assert rig.vectors() == [] and rig.pending() == 0 and rig.levels == []
    rig.function.config_write(CONTROL, 2, 0)
    assert rig.levels == [] and rig.function.read(0x13, 1) == 2  # a driver may poll it


def test_pending_goes_with_the_last_use_of_a_vector():
    rig = Rig(on=False)
    rig.function.write(SELECT, 2, 1)
    rig.function.write(QUEUE_VECTOR, 2, 0)  # queues 0 and 1 share it
    rig.device.interrupt(1)
    assert rig.pending() == 1
    rig.function.write(QUEUE_VECTOR, 2, 2)
    assert rig.pending() == 1
    rig.function.write(SELECT, 2, 0)
    rig.function.write(QUEUE_VECTOR, 2, NO_VECTOR)
    assert rig.pending() == 0


def test_reset_of_the_device_forgets_what_is_pending_but_not_the_table():
    rig = Rig(on=False)
    rig.device.interrupt(0)
    rig.function.write(STATUS, 1, 0)
    assert rig.pending() == 0
    assert rig.function.msix_enabled and rig.function.memory_read(8, 4) == 0x40
    rig.mask(0, False)
    assert rig.vectors() == []


def test_reset_of_the_function_masks_all():
    rig = Rig()
    rig.function.reset()
    assert not rig.function.msix_enabled
    assert image(rig.function) == (bytes(12) + b"\1\0\0\0") * VECTORS + bytes(4096 - 16 * VECTORS)


def test_without_anybody_to_take_messages_they_wait():
    rig = Rig(message=False)
    rig.device.interrupt(1)
    assert rig.pending() == 0b10
    bell = Bell()
    rig.function.route(1, bell)
    assert bell.rings == 1 and rig.pending() == 0


# ---- bells ----


def test_a_route_is_rung_by_the_queue_itself():
    """The queue holds the bell: an interrupt is one ring, through no function of ours."""
    rig = Rig()
    slow = rig.call(0)
    bell = Bell()
    rig.function.route(0, bell)
    assert rig.call(0) is bell and rig.call(1) is not bell
    rig.device.interrupt(0)
    assert bell.rings == 1 and rig.vectors() == []
    for stop, _ in BLOCKS.values():
        stop(rig)
        stop(rig)
    rig.mask(0, True)
    assert rig.call(0) is slow
    for _, go in BLOCKS.values():
        go(rig)
    assert rig.call(0) is slow
    rig.mask(0, False)
    assert rig.call(0) is bell
    rig.function.config_write(CONTROL, 2, 0)
    assert rig.call(0) is slow
    rig.device.interrupt(0)
    assert rig.levels == [True] and bell.rings == 1
    rig.function.config_write(CONTROL, 2, ENABLE)
    assert rig.call(0) is bell and rig.levels == [True, False]
    rig.function.route(0, None)
    assert rig.call(0) is slow
    rig.device.interrupt(0)
    assert rig.vectors() == [0]


def test_a_queue_that_changes_its_vector_changes_its_bell():
    rig = Rig()
    bells = [Bell() for _ in range(VECTORS)]
    for vector, bell in enumerate(bells):
        rig.function.route(vector, bell)
    rig.function.write(SELECT, 2, 0)
    for vector in (3, 1, 0, 2):
        rig.function.write(QUEUE_VECTOR, 2, vector)
        assert rig.call(0) is bells[vector]
    rig.function.write(QUEUE_VECTOR, 2, VECTORS)
    rig.device.interrupt(0)
    assert [bell.rings for bell in bells] == [0] * VECTORS
    rig.function.write(STATUS, 1, 0)
    assert not any(slot.call in bells for slot in rig.device.queues)


def test_the_configuration_interrupt_takes_the_route():
    rig = Rig()
    bell = Bell()
    rig.function.route(3, bell)
    rig.device.config_changed()
    assert bell.rings == 1 and rig.vectors() == []


def test_an_eventfd_may_be_a_route():
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        rig = Rig()
        rig.function.route(0, fd)
        rig.device.interrupt(0)
        rig.device.interrupt(0)
        assert os.eventfd_read(fd) == 2
    finally:
        os.close(fd)


def test_routes_are_of_vectors_that_exist():
    rig = Rig()
    for vector in (-1, VECTORS):
        with pytest.raises(ConfigError, match=f"vector {vector} out of range"):
            rig.function.route(vector, Bell())


def test_a_message_that_has_a_bell_rings_it():
    bells: dict[tuple[int, int], Bell] = {}
    asked: list[tuple[int, int]] = []

    def resolve(address: int, data: int) -> Bell | None:
        asked.append((address, data))
        return bells.get((address, data))

    bell, other = Bell(), Bell()
    bells[Rig.address(0), 0x40] = bell
    rig = Rig(resolve=resolve)
    assert rig.call(0) is bell and rig.call(1) is not bell
    assert asked == [(Rig.address(vector), 0x40 + vector) for vector in range(VECTORS)]
    rig.device.interrupt(0)
    rig.device.interrupt(1)
    assert bell.rings == 1 and rig.vectors() == [1]
    # the message is given away while the vector is masked, and means another bell then
    rig.mask(0, True)
    assert rig.call(0) is not bell
    bells[Rig.address(0), 0x40] = other
    rig.device.interrupt(0)
    rig.mask(0, False)
    assert rig.call(0) is other and other.rings == 1
    # another message, without masking: as soon as it is written
    bells[Rig.address(0), 0x99] = bell
    rig.program(0, data=0x99)
    assert rig.call(0) is bell
    rig.program(0, data=0x98)
    rig.device.interrupt(0)
    assert rig.sent == [(Rig.address(0), 0x98)]
    # of a vector that nobody uses, or that there is not, nobody asks
    asked.clear()
    rig.function.write(SELECT, 2, 0)
    rig.function.write(QUEUE_VECTOR, 2, VECTORS)
    rig.program(0)
    assert asked == []
    rig.function.write(QUEUE_VECTOR, 2, 0)
    assert asked == [(Rig.address(0), 0x40)] and rig.call(0) is other


def test_a_route_goes_before_a_resolved_bell():
    bell, other = Bell(), Bell()
    rig = Rig(resolve=lambda address, data: other)
    rig.function.route(0, bell)
    assert rig.call(0) is bell
    rig.function.route(0, None)
    assert rig.call(0) is other


def test_a_listener_may_mask_its_vector_and_look_around():
    """As a handler of level-triggered kind does; it runs with no lock of ours held."""
    rig = Rig()

    def message(address: int, data: int) -> None:
        thread = threading.Thread(target=rig.mask, args=(0, True))
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
        rig.sent.append((address, data))

    rig.function.msix._message = message
    rig.device.interrupt(0)
    rig.device.interrupt(0)
    assert rig.vectors() == [0] and rig.pending() == 1


@pytest.mark.parametrize("routed", [False, True])
def test_no_interrupt_is_lost_between_masks(routed, request):
    """One thread interrupts and waits for it, another masks and unmasks meanwhile, by all ways."""
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-5)
    heard = threading.Event()
    rig = Rig()
    rig.function.msix._message = lambda address, data: heard.set()
    if routed:
        rig.function.route(0, Bell(heard.set))
    lost: list[int] = []

    def interrupt() -> None:
        for number in range(500):
            heard.clear()
            rig.device.interrupt(0)
            if not heard.wait(10):
                lost.append(number)
                return

    thread = threading.Thread(target=interrupt)
    thread.start()
    blocks = [*BLOCKS.values(), (lambda rig: rig.mask(0, True), lambda rig: rig.mask(0, False))]
    while thread.is_alive():
        for stop, go in blocks:
            stop(rig)
            go(rig)
    thread.join()
    assert not lost and rig.pending() == 0


class Masks(RuleBasedStateMachine):
    """Any order of masks, enables, vectors, routes and interrupts, against a model of one bit per vector."""

    @initialize(routed=st.booleans())
    def begin(self, routed: bool) -> None:
        self.rig = Rig(on=False)
        self.bells = [Bell() for _ in range(VECTORS)]
        self.routed = [False] * VECTORS
        self.masked = [True] * VECTORS
        self.enabled, self.mask_all, self.master = True, False, True
        self.of = [0, 1, 2]
        self.waits = [False] * VECTORS
        self.rings = [0] * VECTORS
        self.sends: list[int] = []
        if routed:
            self.route(0, True)

    def ready(self, vector: int) -> bool:
        return self.enabled and not self.mask_all and self.master and not self.masked[vector]

    def deliver(self) -> None:
        for vector in range(VECTORS):
            if vector not in (*self.of, 3):
                self.waits[vector] = False
            if self.waits[vector] and self.ready(vector):
                self.waits[vector] = False
                if self.routed[vector]:
                    self.rings[vector] += 1
                else:
                    self.sends.append(vector)

    @rule(vector=st.integers(0, VECTORS - 1), masked=st.booleans())
    def mask(self, vector: int, masked: bool) -> None:
        self.masked[vector] = masked
        self.deliver()
        self.rig.mask(vector, masked)

    @rule(enabled=st.booleans(), mask_all=st.booleans())
    def control(self, enabled: bool, mask_all: bool) -> None:
        self.enabled, self.mask_all = enabled, mask_all
        self.deliver()
        self.rig.function.config_write(CONTROL, 2, ENABLE * enabled | MASK_ALL * mask_all)

    @rule(master=st.booleans())
    def command(self, master: bool) -> None:
        self.master = master
        self.deliver()
        self.rig.function.config_write(COMMAND, 2, 3 | MASTER * master)

    @rule(vector=st.integers(0, VECTORS - 1), routed=st.booleans())
    def route(self, vector: int, routed: bool) -> None:
        self.routed[vector] = routed
        self.rig.function.route(vector, self.bells[vector] if routed else None)

    @rule(queue=st.integers(0, 2), vector=st.integers(0, VECTORS))
    def choose(self, queue: int, vector: int) -> None:
        if self.enabled:
            self.of[queue] = vector
            self.deliver()
            self.rig.function.write(SELECT, 2, queue)
            self.rig.function.write(QUEUE_VECTOR, 2, vector)

    @rule(source=st.integers(0, 3))
    def interrupt(self, source: int) -> None:
        vector = 3 if source == 3 else self.of[source]
        if self.enabled and vector < VECTORS:
            self.waits[vector] = True
            self.deliver()
        if source == 3:
            self.rig.device.config_changed()
        else:
            self.rig.device.interrupt(source)

    @invariant()
    def same(self) -> None:
        if hasattr(self, "rig"):
            assert [bell.rings for bell in self.bells] == self.rings
            assert sorted(self.rig.vectors()) == sorted(self.sends)
            self.sends.clear()
            assert self.rig.pending() == sum(1 << vector for vector in range(VECTORS) if self.waits[vector])


TestMasks = Masks.TestCase
TestMasks.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
