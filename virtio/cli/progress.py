"""One line on a terminal that shows the progress of long work. Without a terminal, nothing is written."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

TICK = 0.5  # seconds between two forms of a line


class Progress:
    """One line of ``stream``, stderr by default: each call rewrites it, and ``""`` removes it.

    If the stream is not a terminal, or ``quiet`` is true, nothing is written.
    """

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.on = not quiet and self.stream.isatty()

    def __call__(self, text: str) -> None:
        if self.on:
            line = f"  {text}"[: self._width()] if text else ""
            print(f"\r\033[K{line}", end="", file=self.stream, flush=True)

    def _width(self) -> int | None:
        """Return the columns of the terminal, less one: a line that wraps cannot be rewritten. None if unknown."""
        try:
            columns = os.get_terminal_size(self.stream.fileno()).columns
        except OSError:
            return None
        return columns - 1 if columns > 1 else None

    @contextmanager
    def during(self, text: str, figure: Callable[[float], str] | None = None) -> Iterator[None]:
        """Show text and the seconds since, each half second while the block runs; then remove the line.

        ``figure`` takes these seconds and gives more to show, or "". A thread of its own calls it.
        """
        if not self.on:
            yield
            return
        began, done = time.monotonic(), threading.Event()

        def rewrite() -> None:
            while not done.wait(TICK):
                seconds = time.monotonic() - began
                more = figure(seconds) if figure else ""
                self(f"{text}, {seconds:.0f} s{', ' if more else ''}{more}")

        self(f"{text}, 0 s")
        thread = threading.Thread(target=rewrite, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self("")
