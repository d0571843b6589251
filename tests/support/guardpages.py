"""Memory between pages that cannot be touched, and child processes in which touching them is one failed test.

A case is a function of a test module. `Children.run` runs it in a fork of a process that has imported the module: a
SIGSEGV there fails the test with the case's name, its last `at(...)` and the Python stack, and pytest goes on.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from virtio import GuestMemory, QueueLayout, Region
from virtio.offload import inet_checksum as _checksum

PAGE = mmap.PAGESIZE
SECONDS = 60  # a case that takes longer hangs
SKIPPED = 77
PROGRESS = mmap.mmap(-1, PAGE)  # shared with forks: what the case is at
SIMD = ("scalar", "avx2", "avx512")


class Guarded:
    """Pages between two that cannot be touched: an access past an end of `view` is a SIGSEGV."""

    def __init__(self, pages: int = 1) -> None:
        self._map = mmap.mmap(-1, (pages + 2) * PAGE)
        anchor = ctypes.c_char.from_buffer(self._map)
        start = ctypes.addressof(anchor)
        del anchor
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (start, start + (pages + 1) * PAGE):
            if libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(PAGE), 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.address = start + PAGE  # of the view
        self.view = memoryview(self._map)[PAGE : (pages + 1) * PAGE]

    def last(self, data: bytes) -> memoryview:
        """Return a view of these bytes, the last of which is the last before the guard."""
        view = self.view[len(self.view) - len(data) :]
        view[:] = data
        return view

    def first(self, data: bytes) -> memoryview:
        """Return a view of these bytes, the first of which is the first behind the guard."""
        view = self.view[: len(data)]
        view[:] = data
        return view

    def both(self, data: bytes) -> Iterator[memoryview]:
        """Give the bytes at either guard in turn."""
        yield self.last(data)
        yield self.first(data)


class GuestAreas:
    """Guest memory of areas, each a region of its own that ends at, or begins on, a guard page."""

    def __init__(self) -> None:
        self.memory = GuestMemory()
        self._guards: list[Guarded] = []

    def area(self, size: int, last: bool, align: int = 1) -> int:
        """Return the guest address of `size` bytes that end at a guard page (``last``) or begin on one.

        Those that end there end as many bytes before it as their alignment takes.
        """
        pages = -(-size // PAGE)
        guard = Guarded(pages)
        self._guards.append(guard)
        at = (pages * PAGE - size) // align * align if last else 0
        gpa = (len(self._guards) << 24) + at
        self.memory.add(Region.from_address(gpa, guard.address + at, size))
        return gpa

    def ring(self, packed: bool, size: int, last: bool) -> QueueLayout:
        """Return a ring whose three areas are apart."""
        desc = self.area(16 * size, last, 16)
        driver = self.area(4 if packed else 6 + 2 * size, last, 4 if packed else 2)
        device = self.area(4 if packed else 6 + 8 * size, last, 4)
        return QueueLayout(size, desc, driver, device, packed)


def at(*what: object) -> None:
    """Say what the case is at: it is named if the process dies."""
    text = repr(what).encode()[: PAGE - 1]
    PROGRESS[: len(text) + 1] = text + b"\0"


def progress() -> str:
    return PROGRESS[: PROGRESS.find(b"\0")].decode(errors="replace")


# ---- children ----


def _environment(simd: str) -> dict[str, str]:
    """That of the children: they find the test's module; a sanitizer leaves SIGSEGV alone, so that all die alike."""
    found = os.environ | {"VIRTIO_SIMD": simd, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name in ("ASAN_OPTIONS", "TSAN_OPTIONS", "UBSAN_OPTIONS"):
        found[name] = ":".join(filter(None, [found.get(name), "handle_segv=0"]))
    return found


class Children:
    """A process that has imported a test module, with a SIMD path of its own, and forks for each case."""

    def __init__(self, module: str, simd: str = "scalar") -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment(simd),
        )  # fmt: skip

    def run(self, case: str, *args: Any) -> None:
        """Run a case, which is a function of the module; fail if it does, or if it kills its process."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([case, args]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"{case}: the process that forks is gone"
        code, reached, output = json.loads(answer)
        if code == SKIPPED:
            pytest.skip(output.strip())
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        assert code == 0, f"{case}{tuple(args)}: {how} at {reached}\n{output}"

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="module")
def children(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Children]]:
    """Give a function: the Children of this test's module, on the SIMD path that it names."""
    made: dict[str, Children] = {}

    def of(simd: str = "scalar") -> Children:
        if simd not in _checksum.simd_available():
            pytest.skip(f"this CPU has no {simd}")
        if simd not in made:
            made[simd] = Children(request.module.__name__, simd)
        return made[simd]

    yield of
    for each in made.values():
        each.close()


def _child(case: Callable[..., None], args: Sequence[Any], output: int) -> None:
    """In the fork: run the case, and never return."""
    code = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        faulthandler.enable()
        signal.alarm(SECONDS)
        random.seed(1)
        case(*args)
        code = 0
    except pytest.skip.Exception as why:
        print(why, file=sys.stderr)
        code = SKIPPED
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve(module: Any) -> None:
    """Fork for each case that stdin names; write (exit status or signal, progress, output) to stdout."""
    for line in sys.stdin:
        case, args = json.loads(line)
        output = os.memfd_create("output")
        at()
        pid = os.fork()
        if pid == 0:
            _child(getattr(module, case), args, output)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        text = os.pread(output, 1 << 16, 0).decode(errors="replace")
        os.close(output)
        print(json.dumps([code, progress(), text]), flush=True)


if __name__ == "__main__":
    # this file is the main program's module as well as the one that the test module imports: serve from the latter
    served = importlib.import_module(sys.argv[1])
    importlib.import_module("guardpages")._serve(served)
