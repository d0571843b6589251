"""A guest that is a process of ours, with children: it ends with its test, and they with it."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Self


class GuestProcess:
    """A context manager around ``process``, which leads a process group of its own."""

    process: subprocess.Popen[str]

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # `timeout` would leave its child
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
