"""Bells: no ring is lost, and a ring costs a system call only where somebody sleeps."""

from __future__ import annotations

import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from virtio.event.notifier import Bell


def test_a_ring_is_answered_once() -> None:
    bell = Bell()
    assert not bell.answer()
    bell.ring()
    bell.ring()
    assert bell.answer()
    assert not bell.answer()
    assert (bell.rings, bell.writes) == (2, 0)  # nobody sleeps: no system call


def test_a_ring_before_the_file_descriptor_is_asked_for() -> None:
    """It is written then, once, unless it was answered."""
    bell = Bell()
    bell.ring()
    fd = bell.fileno()
    assert select.select([fd], [], [], 0)[0] == [fd]
    assert bell.fileno() == fd
    assert os.eventfd_read(fd) == 1
    other = Bell()
    other.ring()
    other.answer()
    assert not select.select([other.fileno()], [], [], 0)[0]


@pytest.mark.threads
def test_a_ring_while_the_file_descriptor_is_asked_for() -> None:
    for _ in range(2000):
        bell = Bell()
        ringer = threading.Thread(target=bell.ring)
        ringer.start()
        assert select.select([bell.fileno()], [], [], 20)[0]
        ringer.join()


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


# Fills an eventfd, and sets it blocking, at times between our look at it and our write.
RACER = """
import os, sys
fd = int(sys.argv[1])
while True:
    os.set_blocking(fd, True)
    os.set_blocking(fd, False)
    try:
        os.eventfd_write(fd, 2**64 - 2)
    except BlockingIOError:
        os.eventfd_read(fd)
"""


def test_who_wins_the_race_holds_nobody_for_long() -> None:
    """Whether or not it does within these attempts."""
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    with subprocess.Popen([sys.executable, "-c", RACER, str(fd)], pass_fds=[fd]) as racer:
        bells = [Bell(os.dup(fd), own=True) for _ in range(20)]
        for i in range(20_000):
            bells[i % 20].ring()
        racer.kill()
    os.close(fd)


# As if the race was lost each time: poll says that there is room.
LIAR = (
    "#include <poll.h>\nint poll(struct pollfd *fds, nfds_t n, int ms) { fds->revents = POLLOUT; return n + 0 * ms; }\n"
)
HELD = """
import os, signal, threading
from virtio.event.notifier import Bell
fd = os.eventfd(0)
os.eventfd_write(fd, 2**64 - 2)
for _ in range(3):
    bell = Bell(os.dup(fd), own=True)
    thread = threading.Thread(target=bell.ring)
    thread.start()
    bell.ring()  # two threads are held
    thread.join()
    assert bell.dead and bell.writes == 2, bell.writes
    bell.ring()
    assert bell.writes == 2
    assert os.eventfd_read(fd) == 2**64 - 2
    Bell(os.dup(fd), own=True).ring()
    assert os.eventfd_read(fd) == 1
    os.eventfd_write(fd, 2**64 - 2)
    del bell
    if not os.fork():  # a child has a watchdog of its own
        bell = Bell(os.dup(fd), own=True)
        bell.ring()
        os._exit(bell.dead)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 1
"""
# a program that handles the signal itself, and would have the write begin again
HANDLED = "import signal; signal.signal(signal.SIGURG, print); signal.siginterrupt(signal.SIGURG, False)\n"
UNHANDLED = "\nassert signal.getsignal(signal.SIGURG) is signal.SIG_DFL  # what Python knows of"


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.skipif("VIRTIO_SANITIZED" in os.environ, reason="a sanitizer has poll already")
@pytest.mark.parametrize("program", [HELD + UNHANDLED, HANDLED + HELD], ids=["alone", "beside a handler"])
def test_a_write_that_holds_its_thread_is_ended(tmp_path: Path, program: str) -> None:
    (tmp_path / "liar.c").write_text(LIAR)
    liar = str(tmp_path / "liar.so")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", liar, tmp_path / "liar.c"], check=True)
    environment = os.environ | {"LD_PRELOAD": liar, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)


def test_a_bell_whose_descriptor_is_long_in_closing_holds_no_other_thread() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as ours:
        ours.connect(listener.getsockname())
        theirs = listener.accept()[0]
        ours.setblocking(False)
        with suppress(BlockingIOError):
            while ours.send(bytes(4096)):
                pass
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 2))
        bells = [Bell(ours.detach(), own=True)]
        closer = threading.Thread(target=bells.clear)
        start = time.monotonic()
        closer.start()
        time.sleep(0.05)
        assert time.monotonic() - start < 1
        assert closer.is_alive()
        theirs.close()
        closer.join()


def test_a_watcher_hears_of_each_ring_and_the_bell_stays_what_it_is() -> None:
    heard: list[int] = []
    bell = Bell()
    bell.watch(lambda: heard.append(bell.rings))
    bell.ring()
    bell.ring()
    assert heard == [1, 2] and bell.answer() and not bell.answer()
    bell.watch(None)
    bell.ring()
    assert heard == [1, 2] and bell.answer() and bell.rings == 3


def test_a_bell_of_another_kind_has_no_watcher() -> None:
    rung: list[str] = []
    bell = Bell(lambda: rung.append("function"))
    bell.watch(lambda: rung.append("watcher"))
    bell.ring()
    assert rung == ["function"]
