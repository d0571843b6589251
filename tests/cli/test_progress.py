"""The line that says how far long work is: on a terminal, and nowhere else."""

from __future__ import annotations

import io
import os
import pty
import termios
from collections.abc import Iterator
from contextlib import suppress

import pytest
from waiting import wait_for

from virtio.cli.progress import Progress


class Terminal:
    """A pseudo-terminal: a stream to write to, and what was written."""

    def __init__(self) -> None:
        self.ours, theirs = pty.openpty()
        os.set_blocking(self.ours, False)
        self.stream = os.fdopen(theirs, "w")
        self.text = ""

    def lines(self) -> list[str]:
        """Return each form that the line has had until now."""
        with suppress(BlockingIOError):
            self.text += os.read(self.ours, 1 << 16).decode()
        return self.text.split("\r\x1b[K")[1:]

    def end(self) -> list[str]:
        """Return each form that the line has had. Nothing is written afterwards."""
        self.stream.close()
        os.set_blocking(self.ours, True)  # a terminal passes on what is written some time later
        with suppress(OSError):  # EIO: no terminal is left
            while True:
                self.text += os.read(self.ours, 1 << 16).decode()
        return self.text.split("\r\x1b[K")[1:]


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.stream.close()
    os.close(terminal.ours)


def test_each_call_rewrites_the_line(terminal: Terminal) -> None:
    progress = Progress(terminal.stream)
    for text in ("one", "two", ""):
        progress(text)
    assert terminal.end() == ["  one", "  two", ""]


def test_seconds_and_a_figure_while_work_runs(terminal: Terminal) -> None:
    figures = iter(["", "5 Mbit/s"])
    with Progress(terminal.stream).during("row 1 of 6", lambda seconds: next(figures, "none")):
        wait_for(lambda: len(terminal.lines()) >= 3, 60, "the line was not rewritten")
    first, second, third, *_, last = terminal.end()
    assert first == "  row 1 of 6, 0 s"
    assert second.startswith("  row 1 of 6, ") and second.endswith(" s")
    assert third.endswith(" s, 5 Mbit/s")
    assert last == ""


def test_the_line_goes_when_work_fails(terminal: Terminal) -> None:
    with pytest.raises(KeyboardInterrupt), Progress(terminal.stream).during("row"):
        raise KeyboardInterrupt
    assert terminal.end()[-1] == ""


def test_a_line_fits_the_terminal(terminal: Terminal) -> None:
    termios.tcsetwinsize(terminal.stream.fileno(), (24, 20))
    Progress(terminal.stream)("a" * 100)
    assert terminal.end() == ["  " + "a" * 17]


def test_nothing_without_a_terminal_or_if_quiet(terminal: Terminal) -> None:
    text = io.StringIO()
    for progress in (Progress(text), Progress(terminal.stream, quiet=True)):
        progress("one")
        with progress.during("two", lambda seconds: pytest.fail("asked for a figure")):
            pass
    assert text.getvalue() == ""
    assert terminal.end() == []
