"""Kicks and interrupts of a device: on any thread, without a wait, and none is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from virtio_device import (
    MODERN,
    NEEDS_RESET,
    READY,
    RING,
    Echo,
    Guest,
    Silent,
)

from virtio import Feature
from virtio.device.dispatch import Serving
from virtio.device.queue_state import QueueSlot
from virtio.event.notifier import Bell


def test_a_kick_before_driver_ok_is_remembered() -> None:
    guest = Guest(Echo()).negotiate().setup(0, 1)
    guest.send(b"early")
    assert guest.received() == []
    assert guest.calls.rings() == 0
    guest.go()
    assert guest.received() == [b"EARLY"]
    assert guest.calls.rings() == 1


def test_a_kick_from_before_a_reset_is_not() -> None:
    guest = Guest(Echo()).negotiate().setup(0)
    guest.send(b"early")
    guest.device.write_status(0)
    guest.negotiate().setup(0)
    guest.send(b"unkicked", kick=False)
    guest.go()
    assert guest.received() == []


def test_bells_of_a_device_without_a_handler_stay_rung() -> None:
    guest = Guest(Silent()).negotiate().setup(0)
    bell = guest.device.queues[0].kick
    guest.device.kick(0)
    guest.go()
    assert bell.answer()
    assert not bell.answer()
    guest.device.kick(0)
    guest.device.write_status(0)
    assert not bell.answer()
    assert bell is guest.device.queues[0].kick


def test_some_queues_handled_and_some_not() -> None:
    class Half(Echo):
        def handles(self, index: int) -> bool:
            return index == 1

    guest = Guest(Half()).up()
    assert guest.ask(b"a", 1) == b"A"
    assert guest.ask(b"a", 0) is None
    assert guest.device.queues[0].kick.answer()


def test_kicks_of_no_queue() -> None:
    guest = Guest(Echo()).up()
    for index in (2, -1, 1 << 40):
        guest.device.kick(index)
    assert guest.device.counters["queue"] == 3
    assert guest.device.status == READY


@pytest.mark.threads
def test_a_bell_kicks_from_any_thread_and_no_request_is_lost() -> None:
    guest = Guest(Echo()).up(MODERN & ~Feature.EVENT_IDX)
    answers: list[list[bytes]] = [[], []]

    def drive(index: int) -> None:
        for i in range(300):
            guest.send(b"%d" % i, index)
            while not (got := guest.received(index)):
                pass
            answers[index] += got

    threads = [threading.Thread(target=drive, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [[b"%d" % i for i in range(300)]] * 2


def test_driver_and_device_that_kick_each_other_get_no_deeper() -> None:
    guest = Guest(Echo())
    count = 0

    def interrupted() -> None:
        nonlocal count
        count += len(guest.received())
        if count < 5000:
            guest.send(b"again")

    guest.calls.bells[0] = Bell(interrupted)
    guest.device.bind(guest.memory, guest.calls)
    guest.up(Feature.VERSION_1)
    guest.send(b"go")
    assert count == 5000


@pytest.mark.threads
def test_an_interrupt_finds_no_lock_held() -> None:
    """A driver whose lock is held by a thread that resets the device, while another's interrupt waits for that lock."""
    guest = Guest(Echo())
    lock = threading.Lock()
    inside, waiting = threading.Event(), threading.Event()

    def interrupted() -> None:
        waiting.set()
        with lock:
            pass

    def kick() -> None:
        inside.wait(30)
        guest.send(b"a")

    guest.calls.bells[0] = Bell(interrupted)
    guest.device.bind(guest.memory, guest.calls)
    guest.up()
    thread = threading.Thread(target=kick, daemon=True)
    thread.start()
    with lock:
        inside.set()
        assert waiting.wait(30)
        resetter = threading.Thread(target=guest.device.write_status, args=(0,), daemon=True)
        resetter.start()
        resetter.join(30)
        assert not resetter.is_alive()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.threads
def test_a_kick_does_not_wait_for_a_hook_and_is_served_after_it() -> None:
    kicked = threading.Event()
    served = []

    class Waits(Echo):
        def notified(self, index: int) -> None:
            served.append(index)
            if index == 0:
                assert kicked.wait(30)

    guest = Guest(Waits()).up()
    slow = threading.Thread(target=guest.device.kick, args=(0,), daemon=True)
    slow.start()
    while not served:
        pass
    other = threading.Thread(target=guest.device.kick, args=(1,), daemon=True)
    other.start()
    other.join(30)
    assert not other.is_alive()
    assert served == [0]
    kicked.set()
    slow.join(30)
    assert served == [0, 1]


class Held(Echo):
    """Its hook holds the lock until it is told to let go."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.inside, self.leave = threading.Event(), threading.Event()

    def notified(self, index: int) -> None:
        self.inside.set()
        assert self.leave.wait(30)


def test_what_any_thread_may_say_does_not_wait_for_a_hook_and_is_done_after_it() -> None:
    guest = Guest(Held()).up()
    device = guest.device
    done: list[str] = []
    slow = threading.Thread(target=device.kick, args=(0,), daemon=True)
    slow.start()
    assert device.inside.wait(30)

    def say() -> None:
        device.needs_reset("no more")
        device.config_changed()
        device.soon(lambda: done.append("soon"))
        device.interrupt(1)

    other = threading.Thread(target=say, daemon=True)
    other.start()
    other.join(30)
    assert not other.is_alive()
    assert (device.status, device.generation, done, guest.calls.configs) == (READY, 0, [], 0)
    device.leave.set()
    slow.join(30)
    assert (device.status, device.generation, done) == (READY | NEEDS_RESET, 1, ["soon"])
    assert (guest.calls.configs, guest.calls.rings(1)) == (1, 1)


def test_a_need_of_reset_that_a_reset_overtakes_is_none() -> None:
    class Resets(Held):
        def notified(self, index: int) -> None:
            super().notified(index)
            self.reset()

    guest = Guest(Resets()).up()
    slow = threading.Thread(target=guest.device.kick, args=(0,), daemon=True)
    slow.start()
    assert guest.device.inside.wait(30)
    guest.device.needs_reset("of the life before")
    guest.device.leave.set()
    slow.join(30)
    assert (guest.device.status, guest.device.reason) == (0, None)


def test_soon_is_at_once_where_nobody_has_the_lock_or_we_do() -> None:
    device = Guest(Echo()).up().device
    done: list[int] = []
    device.soon(lambda: done.append(1))
    assert done == [1]

    def nested() -> None:
        device.soon(lambda: done.append(2))
        done.append(3)

    device.soon(nested)
    assert done == [1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        device.soon(lambda: done.append(1 // 0))
    device.soon(lambda: done.append(4))
    assert done[-1] == 4


def test_interrupts_of_soon_go_out_without_the_lock() -> None:
    guest = Guest(Echo()).up()
    free = []

    def called() -> None:
        other = threading.Thread(target=guest.device.set_dma, args=(False,), daemon=True)  # waits for the lock
        other.start()
        other.join(30)
        free.append(not other.is_alive())

    guest.device.set_call(0, Bell(called))
    guest.device.soon(lambda: guest.device.interrupt(0))
    assert free == [True]


def test_a_kick_out_of_an_interrupt_is_served() -> None:
    guest = Guest(Echo()).up()
    guest.send(b"a", kick=False)
    guest.device.set_call(0, Bell(lambda: guest.device.kick(0)))
    guest.device.interrupt(0)
    assert guest.received() == [b"A"]


def test_a_change_of_the_configuration_out_of_an_interrupt_is_told() -> None:
    guest = Guest(Echo()).up()
    guest.device.set_call(0, Bell(guest.device.config_changed))
    guest.device.interrupt(0)
    assert guest.calls.configs == 1


def test_interrupts_that_a_hook_raises_go_out_after_it() -> None:
    order = []

    class Noisy(Echo):
        def notified(self, index: int) -> None:
            super().notified(index)
            self.config_changed()
            self.interrupt(1)
            order.append("hook ends")

    guest = Guest(Noisy())
    guest.calls.bells = {0: Bell(lambda: order.append("queue 0")), 1: Bell(lambda: order.append("queue 1"))}
    guest.calls.config = lambda: order.append("config")  # type: ignore[method-assign]
    guest.device.bind(guest.memory, guest.calls)
    guest.up()
    guest.send(b"a")
    assert order == ["hook ends", "queue 0", "queue 1", "config"]


def test_call_bells_can_be_swapped() -> None:
    guest = Guest(Echo()).up(Feature.VERSION_1)
    guest.ask(b"a")
    bell = Bell()
    guest.device.set_call(0, bell)
    assert guest.device.told[-1] == ("call", 0)
    guest.ask(b"b")
    assert (bell.rings, guest.calls.rings()) == (1, 1)


def test_an_unbound_device_interrupts_nobody() -> None:
    Echo().interrupt(0)


def test_dma_off() -> None:
    guest = Guest(Echo()).negotiate().setup(0, 1)
    device = guest.device
    device.set_dma(False)
    guest.go()
    assert device.told == []
    assert guest.ask(b"a") is None
    device.set_dma(True)
    assert device.told == ["activate"]
    assert guest.received() == [b"A"]
    device.set_dma(False)
    device.set_dma(False)
    assert device.told == ["activate", "pause"]
    assert guest.ask(b"b") is None
    device.set_dma(True)
    assert device.told == ["activate", "pause", "resume"]
    assert guest.received() == [b"B"]
    device.set_dma(False)
    device.write_status(0)
    device.set_dma(True)
    assert device.told[3:] == ["pause", "deactivate"]


def test_a_queue_that_is_enabled_while_dma_is_off_is_paused() -> None:
    guest = Guest(Echo()).up()
    guest.device.reset_queue(0)
    guest.device.set_dma(False)
    guest.device.told.clear()
    guest.setup(0)
    assert guest.device.told == [("enable", 0), "pause"]


def test_dma_on_rings_what_tasks_wait_for() -> None:
    class Two(Silent):
        def queue_sizes(self) -> tuple[int, ...]:
            return (8, 8)

    device = Guest(Two()).negotiate().setup(0).go().device
    bells = [slot.kick for slot in device.queues]
    device.kick(0)
    assert bells[0].answer()
    device.set_dma(False)
    assert not bells[0].answer()
    device.set_dma(True)
    assert bells[0].answer() and not bells[1].answer()


@pytest.mark.threads
def test_resets_while_other_threads_kick_interrupt_and_complain() -> None:
    guest = Guest(Echo()).up()
    device = guest.device
    stop = threading.Event()

    def pester(act: Callable[[], object]) -> None:
        while not stop.is_set():
            act()

    acts: list[Callable[[], object]] = [
        device.queues[0].kick.ring,
        lambda: device.kick(1),
        lambda: device.interrupt(0),
        lambda: device.needs_reset("pestered"),
        device.config_changed,
    ]
    threads = [threading.Thread(target=pester, args=(act,), daemon=True) for act in acts]
    for thread in threads:
        thread.start()
    for i in range(40):
        device.write_status(0)
        guest.memory.write(RING, bytes(0x20000))
        guest.up()
        guest.send(b"%d" % i, i & 1)
        device.reset_queue(i & 1)
        device.restore(device.snapshot(), guest.memory)
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert device.counters["fault"] == 0
    device.write_status(0)
    guest.memory.write(RING, bytes(0x20000))
    assert guest.up().ask(b"quiet") == b"QUIET"


class Interrupted:
    """A lock that a Ctrl-C keeps its waiter from."""

    def acquire(self, blocking: bool = True) -> bool:
        if blocking:
            raise KeyboardInterrupt
        return True

    def release(self) -> None:
        pass


def test_a_thread_that_stops_waiting_for_the_lock_keeps_nobody_out() -> None:
    done: list[int] = []
    serving = Serving(lambda slot: False, lambda slot: None, lambda: None)
    serving._lock = Interrupted()  # type: ignore[assignment]
    serving._work.append(lambda: done.append(1))  # left to the one who was to have the lock
    with pytest.raises(KeyboardInterrupt), serving.control():
        pass
    assert done == [1]
    serving.soon(lambda: done.append(2))
    assert done == [1, 2]


@pytest.mark.threads
def test_a_thread_that_others_keep_busy_leaves_them_to_another() -> None:
    calm = threading.Event()
    servants: list[int] = []
    slot = QueueSlot(0, 8, Bell(), lambda: None)

    def serve(slot: QueueSlot) -> None:
        servants.append(threading.get_ident())
        slot.kicked = not calm.is_set()  # as if another thread had kicked meanwhile

    serving = Serving(lambda slot: slot.kicked, serve, lambda: None)
    serving.slots.append(slot)
    serving.kicked(slot)
    assert servants.count(threading.get_ident()) == 65
    while len(servants) < 1000:
        pass
    calm.set()
    for thread in threading.enumerate():
        if thread.name == "virtio-settle":
            thread.join(30)
            assert not thread.is_alive()
    assert not slot.kicked
    assert len(set(servants)) == 2


def test_who_waits_for_the_lock_is_next_but_who_has_it_goes_on() -> None:
    done: list[int] = []
    serving = Serving(lambda slot: False, lambda slot: None, lambda: None)
    with serving.control():
        serving._waiting.append(0)  # another thread
        serving.soon(lambda: done.append(1))
        assert done == [1]
    serving.soon(lambda: done.append(2))
    assert done == [1]
    serving._waiting.remove(0)
    with serving.control():  # that thread
        pass
    assert done == [1, 2]


def test_what_waits_already_is_done_once() -> None:
    done: list[str] = []
    serving = Serving(lambda slot: False, lambda slot: None, lambda: None)

    def twice() -> None:
        done.append("twice")

    def other() -> None:
        done.append("other")

    serving._waiting.append(0)
    for work in (twice, other, twice):
        serving.soon(work)
    serving._waiting.remove(0)
    serving.settle()
    assert done == ["twice", "other"]
