"""Interrupt lines: levels are told in order, without a lock held, whoever changes them."""

from __future__ import annotations

import threading

import pytest

from virtio.pci.intx import Line


class Source:
    """A level that anybody may change."""

    def __init__(self) -> None:
        self.high = False
        self.told: list[bool] = []
        self.line = Line(lambda: self.high, self.told.append)

    def set(self, high: bool) -> None:
        self.high = high
        self.line.update()


def test_only_changes_are_told():
    source = Source()
    for high in (False, True, True, False, False, True):
        source.set(high)
    assert source.told == [True, False, True]


def test_a_listener_may_change_the_level():
    source = Source()

    def listener(level: bool) -> None:
        source.told.append(level)
        if level:
            source.set(False)  # what an interrupt handler does that reads the ISR

    source.line.listener = listener
    source.set(True)
    assert source.told == [True, False]


def test_a_new_listener_hears_of_a_line_that_is_high():
    source = Source()
    source.line.listener = None
    source.set(True)
    told: list[bool] = []
    source.line.listener = told.append
    assert told == [True]
    source.set(False)
    assert told == [True, False] and source.told == []


def test_what_a_listener_raises_comes_out_and_the_line_goes_on():
    source = Source()

    def broken(level: bool) -> None:
        raise RuntimeError("no")

    source.line.listener = broken
    with pytest.raises(RuntimeError, match="no"):
        source.set(True)
    source.line.listener = source.told.append
    assert source.told == [True]
    source.set(False)
    assert source.told == [True, False]


def test_the_last_level_told_is_the_level():
    """Four threads, no order between them: levels alternate, and the last one is right."""
    source = Source()
    lock = threading.Lock()
    raised = set()
    source.line = Line(lambda: bool(raised), source.told.append)

    def worker(me: int) -> None:
        for _ in range(300):
            with lock:
                raised.add(me)
            source.line.update()
            with lock:
                raised.discard(me)
            source.line.update()

    threads = [threading.Thread(target=worker, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert source.told[-1:] in ([], [False])
    assert all(a != b for a, b in zip(source.told, source.told[1:], strict=False))
    raised.add(9)
    source.line.update()
    assert source.told[-1]
