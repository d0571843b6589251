"""Files that somebody else cuts shorter while they are mapped: zeroes and a bell in place of SIGBUS."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from virtio import GuestMemory, Region
from virtio.event.notifier import Bell

PAGE = mmap.PAGESIZE
HUGE = 2 << 20


@contextmanager
def file(kind: str, size: int, folder: Path) -> Iterator[int]:
    """A file of ours; its size is set."""
    if kind == "file":
        fd = os.open(folder / "f", os.O_RDWR | os.O_CREAT)
    else:
        fd = os.memfd_create("cut", os.MFD_HUGETLB if kind == "huge" else 0)
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


def guarded(fd: int, size: int, bell: Bell, offset: int = 0) -> Region:
    try:
        return Region.from_fd(0, fd, size, offset, bell=bell)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            pytest.skip("no huge pages are reserved (vm.nr_hugepages)")
        raise


@pytest.mark.parametrize("kind", ["memfd", "file", "huge"])
@pytest.mark.parametrize("left", ["nothing", "a part"])
def test_zeroes_and_a_bell(kind: str, left: str, tmp_path: Path) -> None:
    unit = HUGE if kind == "huge" else PAGE
    bell = Bell()
    with file(kind, 4 * unit, tmp_path) as fd:
        region = guarded(fd, 4 * unit, bell)
        memory = GuestMemory([region])
        memory.write(unit, b"there")
        assert not region.lost and not bell.answer()
        os.ftruncate(fd, unit * 2 if left == "a part" else 0)
        if left == "a part":
            assert memory.read(unit, 5) == b"there"
        assert memory.read(3 * unit + 7, 9) == bytes(9)
        assert select.select([bell], [], [], 0)[0]
        assert bell.answer() and region.lost
        assert memory.read(unit, 5) == bytes(5)  # all of it is lost at once
        memory.write(unit, b"mine")
        os.ftruncate(fd, 4 * unit)
        assert os.pread(fd, 4, unit) == (b"ther" if left == "a part" else bytes(4))
        assert memory.read(unit, 4) == b"mine"
        assert not bell.answer()  # it is rung once


def test_whoever_asks_finds_out(tmp_path: Path) -> None:
    """A region that nobody uses; one whose file ends amid a page; one without a bell."""
    bell = Bell()
    with file("file", 3 * PAGE - 100, tmp_path) as fd:
        region = Region.from_fd(0, fd, 3 * PAGE - 200, 50, bell=bell)
        plain = Region.from_fd(0, fd, 100)
        assert not region.lost
        os.ftruncate(fd, PAGE)
        assert region.lost and bell.answer()
        assert not plain.lost


def test_a_bell_needs_an_eventfd() -> None:
    with file("memfd", PAGE, Path()) as fd, pytest.raises(ValueError, match="no file descriptor"):
        Region.from_fd(0, fd, PAGE, bell=Bell(print))


def test_the_kernel_says_efault_until_somebody_looks() -> None:
    bell = Bell()
    with file("memfd", PAGE, Path()) as fd:
        region = Region.from_fd(0, fd, PAGE, bell=bell)
        os.ftruncate(fd, 0)
        reader, writer = os.pipe()
        with pytest.raises(OSError, match="Bad address"):
            os.writev(writer, [memoryview(region)])
        os.close(reader)
        os.close(writer)
        assert not bell.answer()
        assert region.lost and bell.answer()


@pytest.mark.threads
def test_regions_that_come_and_go_while_others_are_lost() -> None:
    """More than a chunk of them at a time; each thread finds its own."""
    wrong = []

    def rounds(number: int) -> None:
        bell = Bell()
        for i in range(60):
            with file("memfd", 2 * PAGE, Path()) as fd:
                regions = [Region.from_fd(0, fd, PAGE, PAGE, bell=bell) for _ in range(40)]
                os.pwrite(fd, b"x" * 2 * PAGE, 0)
                whole = Region.from_fd(0, fd, PAGE, bell=bell)
                os.ftruncate(fd, PAGE)
                for region in regions[i % 7 :: 2]:
                    if memoryview(region)[number] != 0 or not bell.answer() or memoryview(whole)[number] != ord("x"):
                        wrong.append((number, i))

    threads = [threading.Thread(target=rounds, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_region_that_was_let_go_leaves_nothing() -> None:
    def once() -> None:
        with file("memfd", PAGE, Path()) as fd:
            region = Region.from_fd(0, fd, PAGE, bell=Bell())
            os.ftruncate(fd, 0)
            assert region.lost

    once()
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("memfd:cut")
    for _ in range(200):
        once()
    gc.collect()
    assert (len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("memfd:cut")) <= before


# ---- in a process of its own ----

BEGIN = """
import ctypes, faulthandler, mmap, os, resource, signal, sys
from virtio import Region
from virtio.event.notifier import Bell

def cut(size=4096, **options):
    fd = os.memfd_create("cut")
    os.ftruncate(fd, size)
    region = Region.from_fd(0, fd, size, **options)
    os.ftruncate(fd, 0)
    return region

"""


def run(*lines: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", BEGIN + "\n".join(lines)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


SANITIZED = "address" in os.environ.get("VIRTIO_SANITIZED", "")
OURS = "bell = Bell(); region = cut(bell=bell); assert memoryview(region)[5] == 0 and region.lost and bell.answer()"


@pytest.mark.parametrize("how", ["another mapping", "sent", "both"])
@pytest.mark.parametrize("first", ["", "faulthandler.enable()"])
def test_a_sigbus_that_is_not_ours_goes_on(how: str, first: str) -> None:
    last = "os.kill(os.getpid(), signal.SIGBUS)" if how == "sent" else "memoryview(cut())[5]"
    ended = run(first, OURS, "os.kill(os.getpid(), signal.SIGWINCH)" if how == "both" else "", last, "print('alive')")
    assert "alive" not in ended.stdout
    if not SANITIZED:  # which has the signal before us, and reports
        assert ended.returncode == -signal.SIGBUS, ended.stderr
    assert ("Bus error" in ended.stderr) == bool(first) or SANITIZED


def test_who_had_the_signal_before_is_asked() -> None:
    ended = run(
        "handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: os._exit(42))",
        "ctypes.CDLL(None).signal(signal.SIGBUS, handler)",
        OURS,
        "memoryview(cut())[5]",
    )
    assert ended.returncode == 42, ended.stderr


def test_the_signal_is_taken_only_for_who_asks() -> None:
    """Not at import; and again, when somebody has put back what was before him."""
    caught = "int([line for line in open('/proc/self/status') if line.startswith('SigCgt')][0].split()[1], 16) >> 6 & 1"
    put_back = "ctypes.CDLL(None).signal(signal.SIGBUS, None)"
    ended = run(
        "import virtio.vhost_user, virtio.net", f"before = {caught}", "plain = cut()", f"assert {caught} == before",
        "faulthandler.enable()", OURS, f"assert {caught}", "faulthandler.disable()", put_back, f"assert not {caught}",
        OURS, OURS, f"assert {caught}",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr


def test_a_child_finds_zeroes_too() -> None:
    ended = run(
        "bell = Bell(); region = cut(bell=bell); child = os.fork()",
        "if not child: os._exit(memoryview(region)[5])",
        "assert os.waitpid(child, 0)[1] == 0",
        "assert region.lost",
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.skipif(SANITIZED, reason="a sanitizer has no limits of memory")
def test_where_there_is_no_room_for_zeroes_there_is_for_a_page() -> None:
    ended = run(
        "bell = Bell(); region = cut(1 << 30, bell=bell); now = int(open('/proc/self/statm').read().split()[5]) * 4096",
        "resource.setrlimit(resource.RLIMIT_DATA, (now + (64 << 20), resource.RLIM_INFINITY))",
        "assert memoryview(region)[5] == memoryview(region)[123456789] == 0 and region.lost and bell.answer()",
    )
    assert ended.returncode == 0, ended.stderr
