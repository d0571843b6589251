"""A guest that is a process of ours, with children: it ends with its test, and they with it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self


class GuestProcess:
    """A program that runs a guest, and is killed after ``seconds``; it leads a process group. A context manager."""

    def __init__(self, words: Sequence[str], seconds: int, **options: Any) -> None:
        self.text: list[str] = []
        self.process: subprocess.Popen[str] = subprocess.Popen(
            ["timeout", "-k", "3", str(seconds), *words], process_group=0,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            **options,
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.text.append(line.replace("\r", ""))

    def said(self) -> str:
        return "".join(self.text)

    def wait_for(self, what: str, seconds: float = 60, times: int = 1) -> None:
        """Wait until the guest has said something, so many times."""
        end = time.monotonic() + seconds
        while self.said().count(what) < times:
            if self.process.poll() is not None:
                self.reader.join(10)
                assert self.said().count(what) >= times, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.02)

    def finish(self, seconds: float = 120) -> str:
        """Wait for its end; return what it said. AssertionError unless it came to the job's end."""
        self.wait_for("GUEST-DONE", seconds)
        self.process.wait(30)
        self.reader.join(10)
        return self.said()

    def close(self) -> None:
        if self.process.poll() is None:
            pid = self.process.pid
            # `timeout` would leave its child; and user-mode Linux leads a group of its own
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for group in (*map(int, children), pid):
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
        self.process.wait()
        self.reader.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
