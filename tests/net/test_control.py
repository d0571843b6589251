"""The control queue's driver side: every wait ends, every answer is checked, and late ones do no harm."""

import threading
import time

import pytest

from virtio import DeviceQueue, DoesNotFit, DriverQueue, GuestMemory, QueueLayout, RingError
from virtio.errors import DeviceBroken, PoolExhausted
from virtio.event.notifier import Bell
from virtio.memory.dma import DmaPool
from virtio.net.ctrl_driver import Ack, ControlQueue

MEMORY = 1 << 16
POOL = 0x4000


class Machine:
    """A control queue and the device behind it: ``answers`` maps (class, command) to what is written, and how much."""

    def __init__(self, size=8, pool=MEMORY - POOL, **options):
        self.memory = GuestMemory.allocate(MEMORY)
        layout = QueueLayout.split(size, 0)
        self.queue = DriverQueue(self.memory, layout)
        self.device = DeviceQueue(self.memory, layout)
        self.pool = DmaPool(self.memory, POOL, pool)
        self.bell = Bell(self.work)
        self.control = ControlQueue(self.queue, self.pool, self.bell, **{"timeout": 0.02, **options})
        self.seen = []
        self.answer = (b"\0", 1)
        self.popped = []

    def work(self):
        """Answer everything that waits."""
        while chain := self.device.pop():
            self.popped.append(chain)
            self.seen.append(bytes(chain.read()))
            if self.answer is None:
                continue
            self.give(chain, *self.answer)

    def give(self, chain, data, used):
        if data:
            chain.write(data)
        self.device.add_used(chain, used)


def test_a_command_and_its_answer():
    machine = Machine()
    assert machine.control.send(1, 1, b"\x52\x54\0\1\2\3") is Ack.OK
    assert machine.seen == [b"\1\1\x52\x54\0\1\2\3"]
    machine.answer = (b"\1", 1)
    assert machine.control.send(0, 0, b"\1") is Ack.ERR
    assert machine.seen[1] == b"\0\0\1"
    assert machine.pool.used == 0 and machine.bell.rings == 2
    assert (machine.control.commands, machine.control.refused, machine.control.late) == (2, 1, 0)


def test_descriptors():
    machine = Machine()
    machine.control.send(1, 0, [b"\2\0\0\0" + bytes(12), b"\0\0\0\0"])
    machine.control.send(3, 0)
    machine.control.send(3, 0, b"")
    tables, none, empty = machine.popped
    assert [len(piece) for piece in tables.readable] == [2, 16, 4]  # each part its own
    assert [len(piece) for piece in tables.writable] == [1]
    assert [len(piece) for piece in none.readable] == [len(piece) for piece in empty.readable] == [2]


@pytest.mark.parametrize(("size", "at"), [(0, 64), (61, 64), (62, 64), (63, 128), (200, 256)])
def test_the_acknowledgement_has_a_cache_line_of_its_own(size, at):
    machine = Machine()
    machine.answer = None
    with pytest.raises(DeviceBroken):
        machine.control.send(1, 0, bytes(size))
    ((base, taken),) = machine.pool.allocations.items()
    assert taken == at + 1 and base % 64 == 0  # two bytes and the data, up to the next line, and the byte
    assert machine.memory.read_u8(base + at) == 0xFF


def test_no_kick_where_none_is_wanted():
    machine = Machine(idle=lambda: machine.work())
    machine.device.disable_notification()
    assert machine.control.send(3, 0) is Ack.OK
    assert machine.bell.rings == 0


def test_a_device_that_never_answers():
    machine = Machine()
    machine.answer = None
    start = time.monotonic()
    with pytest.raises(DeviceBroken, match=r"did not answer control command 1/0 within 0\.02 s"):
        machine.control.send(1, 0, b"table")
    assert time.monotonic() - start >= 0.02
    assert machine.control.late == machine.control.outstanding == 1
    (base,) = machine.pool.allocations  # the device may still write there
    assert machine.pool.allocate(64) != base
    machine.control.timeout = 1000
    with pytest.raises(DeviceBroken, match="has not yet answered control command 1/0"):  # at once
        machine.control.send(0, 0, b"\1")
    assert machine.bell.rings == 1 and machine.control.late == 1


def test_a_late_answer_goes_where_it_belongs():
    machine = Machine()
    machine.answer = None
    with pytest.raises(DeviceBroken):
        machine.control.send(1, 0, b"table")
    other = machine.pool.allocate(64)
    machine.memory.write(other, b"\xaa" * 64)
    machine.give(machine.popped[0], b"\1", 1)
    assert machine.memory.read(other, 64) == b"\xaa" * 64
    machine.answer = (b"\0", 1)
    assert machine.control.send(0, 0, b"\1") is Ack.OK  # not the ERR of the first
    assert machine.pool.allocations == {other: 64} and machine.control.outstanding == 0
    assert (machine.control.commands, machine.control.refused) == (1, 0)


def test_reset_gives_the_memory_back():
    machine = Machine()
    machine.answer = None
    with pytest.raises(DeviceBroken):
        machine.control.send(1, 0, b"table", timeout=0)
    assert machine.pool.used
    machine.queue.reset()
    machine.device.reset()
    machine.control.reset()
    assert machine.pool.used == 0 and machine.control.outstanding == 0
    machine.answer = (b"\0", 1)
    assert machine.control.send(1, 0) is Ack.OK
    machine.control.reset()


@pytest.mark.threads
def test_answers_of_another_thread():
    machine = Machine(timeout=5)
    machine.bell = Bell()
    machine.control = ControlQueue(machine.queue, machine.pool, machine.bell, timeout=5)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            machine.work()
            time.sleep(0.0005)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for i in range(20):
            assert machine.control.send(2, 0, i.to_bytes(2, "little")) is Ack.OK
    finally:
        stop.set()
        thread.join()
    assert [int.from_bytes(seen[2:], "little") for seen in machine.seen] == list(range(20))


@pytest.mark.threads
def test_threads_take_turns():
    machine = Machine()

    def send(n):
        for i in range(50):
            assert machine.control.send(n, i) is Ack.OK

    threads = [threading.Thread(target=send, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(machine.seen) == sorted(bytes([n, i]) for n in range(4) for i in range(50))
    assert machine.control.commands == 200 and machine.pool.used == 0


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ((b"\2", 1), "answered control command 1/0 with 2, which is neither 0"),
        ((b"\xfe", 1), "with 254"),
        ((b"", 1), "with 255"),  # the length says that it was written, but it was not
        ((b"", 0), r"wrote 0 bytes as the answer to control command 1/0 \(1 is"),
    ],
)
def test_answers_that_are_none(answer, match):
    machine = Machine()
    machine.answer = answer
    with pytest.raises(DeviceBroken, match=match):
        machine.control.send(1, 0, b"table")
    assert machine.pool.used == 0  # it gave the command back
    machine.answer = (b"\0", 1)
    assert machine.control.send(1, 0) is Ack.OK


def test_a_device_that_breaks_the_ring():
    machine = Machine()
    machine.answer = None
    used = machine.queue.layout.device

    def lie():
        machine.memory.write_u32(used + 4, 5)  # an id that is not outstanding
        machine.memory.write_u32(used + 8, 1)
        machine.memory.write_u16(used + 2, 1)

    machine.control = ControlQueue(machine.queue, machine.pool, Bell(lie), timeout=0.02)
    with pytest.raises(RingError):
        machine.control.send(1, 0)
    assert machine.pool.used  # it may write there until it is reset
    with pytest.raises(RingError):
        machine.control.send(1, 0)
    machine.control.reset()
    assert machine.pool.used == 0


def test_used_length_beyond_the_buffer():
    machine = Machine()
    machine.answer = None
    used = machine.queue.layout.device

    def lie():
        machine.memory.write_u32(used + 4, 0)
        machine.memory.write_u32(used + 8, 2)
        machine.memory.write_u16(used + 2, 1)

    machine.control = ControlQueue(machine.queue, machine.pool, Bell(lie), timeout=0.02)
    with pytest.raises(RingError, match="2"):
        machine.control.send(1, 0)


def test_what_does_not_fit():
    machine = Machine(size=2)
    with pytest.raises(DoesNotFit):
        machine.control.send(1, 0, [b"uni", b"multi"])
    assert machine.pool.used == 0
    assert machine.control.send(3, 0) is Ack.OK
    machine = Machine(pool=0x1000)
    with pytest.raises(PoolExhausted):
        machine.control.send(1, 0, bytes(0x1000))
    with pytest.raises(ValueError, match="256"):
        machine.control.send(256, 0)
    assert machine.pool.used == 0 and machine.control.outstanding == 0
    assert machine.control.send(3, 0) is Ack.OK


def test_no_interrupts_are_asked_for():
    machine = Machine()
    machine.control.send(3, 0)
    assert not machine.device.needs_notification()
