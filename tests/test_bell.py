"""Bells: no ring is lost, and a ring costs a system call only where somebody sleeps."""

from __future__ import annotations

import os
import select
import sys
import threading
from typing import Any

import pytest

from virtio._bell import Bell


def test_a_ring_is_answered_once() -> None:
    bell = Bell()
    assert not bell.answer()
    bell.ring()
    bell.ring()
    assert bell.answer()
    assert not bell.answer()
    assert (bell.rings, bell.writes) == (2, 0)  # nobody sleeps: no system call


def test_whoever_polls_the_file_descriptor_sees_each_ring() -> None:
    bell = Bell()
    fd = bell.fileno()
    for rings in (1, 2):
        bell.ring()
        assert select.select([fd], [], [], 0)[0] == [fd]
        assert os.eventfd_read(fd) == 1
        assert bell.writes == rings
    assert select.select([fd], [], [], 0)[0] == []


def test_a_given_eventfd_is_written_and_left_open() -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        bell = Bell(fd)
        bell.ring()
        bell.ring()
        assert os.eventfd_read(fd) == 2
        del bell
        os.eventfd_write(fd, 1)
    finally:
        os.close(fd)


def test_a_file_object_is_an_eventfd_too() -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    with os.fdopen(fd, "r+b", buffering=0) as file:
        Bell(file).ring()
        assert os.eventfd_read(fd) == 1


def test_a_full_eventfd_does_not_stop_the_ringer() -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        os.eventfd_write(fd, (1 << 64) - 2)
        bell = Bell(fd)
        bell.ring()
        assert os.eventfd_read(fd) == (1 << 64) - 2
    finally:
        os.close(fd)


def test_a_function_is_called_by_the_ringer() -> None:
    calls: list[int] = []
    bell = Bell(lambda: calls.append(threading.get_ident()))
    bell.ring()
    bell.ring()
    assert calls == [threading.get_ident()] * 2
    with pytest.raises(ValueError, match="no file descriptor"):
        bell.fileno()
    assert not bell.answer()


def test_what_a_function_raises_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "excepthook", lambda *what: seen.append(what[1]))
    error = KeyError("handler")
    Bell(lambda: (_ for _ in ()).throw(error)).ring()
    assert seen == [error]


@pytest.mark.parametrize("target", ["text", 1.5, object()])
def test_anything_else_is_refused(target: Any) -> None:
    with pytest.raises(TypeError, match=type(target).__name__):
        Bell(target)


def test_a_bell_is_made_once() -> None:
    bell = Bell()
    with pytest.raises(TypeError, match="already"):
        bell.__init__()  # type: ignore[misc]


def test_an_eventfd_of_others_that_blocks_holds_nobody() -> None:
    """Whoever shares it may set it so at any time, and fill it."""
    fd = os.eventfd(0)
    bell = Bell(os.dup(fd), own=True)
    assert not bell.answer()
    os.eventfd_write(fd, 2**64 - 2)
    bell.ring()
    assert os.eventfd_read(fd) == 2**64 - 2
    bell.ring()
    assert bell.answer()
    os.close(fd)
