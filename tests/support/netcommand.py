"""`virtio net` as a process, for tests: started, ready, looked at from outside, stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from virtio.cli.status import Status

COMMAND = [sys.executable, "-m", "virtio", "net"]
PATIENCE = 60  # seconds: nothing is said about time, but a test is to end


@contextmanager
def started(*words: str, before: Sequence[str] = (), **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run it with these words; ``before`` is what stands before the command (ip netns exec ...)."""
    process = subprocess.Popen(
        [*before, *COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line == "ready\n", line + process.stderr.read()


def stopped(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Stop it by SIGTERM; return what --json says."""
    process.terminate()
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


@contextmanager
def joined(folder: Path, *words: str, **options: Any) -> Iterator[tuple[subprocess.Popen[str], Status]]:
    """Run it, ready, with its counters at hand."""
    path = str(folder / "status")
    with started(*words, "--json", "--status", path, **options) as process:
        ready(process)
        with Status(path) as status:
            yield process, status


def count(status: Status, endpoint: str, queue: str, name: str) -> int:
    return int(status.read()["endpoints"][endpoint].get(queue, {}).get(name, 0))


def frames(status: Status, endpoint: str, queue: str = "rx0") -> int:
    """How many frames went to an endpoint (or came from it: "tx0")."""
    return count(status, endpoint, queue, "frames")


def cpu_ticks(pid: int) -> dict[int, int]:
    """CPU time that each thread of a process has used so far, in ticks of the clock."""
    ticks = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        ticks[int(task.name)] = int(fields[11]) + int(fields[12])
    return ticks


def tick() -> float:
    """Seconds."""
    return 1 / os.sysconf("SC_CLK_TCK")
