"""A short run of tests/support/fuzz_vhost.py, in a process of its own so that a crash is a failure with its sequence.

``VIRTIO_SEED=n`` repeats a run whose seed was printed; ``VIRTIO_FUZZ_SECONDS=n`` runs for that long.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from vhost_device import Upper

from virtio.vhost_user import Server

SECONDS = float(os.environ.get("VIRTIO_FUZZ_SECONDS", "0"))
SCRIPT = Path(__file__).parents[1] / "support" / "fuzz_vhost.py"


def fuzz(*arguments: str, seed: str | None = None) -> tuple[int, str]:
    """Return the exit status and the last lines of what was said."""
    words = [sys.executable, str(SCRIPT), *arguments, *(["--seed", seed] if seed else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        if SECONDS and line.startswith("fuzz:"):
            print(line, end="", file=sys.__stderr__, flush=True)
        said.append(line)
    status = process.wait()
    return status, "".join(said[:1] + said[-300:])


def test_a_short_run() -> None:
    """Its sequences start rings, move frames, cut files: it says so, or fails."""
    status, said = fuzz("--sequences", "100", seed=os.environ.get("VIRTIO_SEED"))
    assert status == 0, said


@pytest.mark.skipif(SECONDS <= 0, reason="set VIRTIO_FUZZ_SECONDS to run for that long")
def test_a_long_run() -> None:
    status, said = fuzz("--seconds", str(SECONDS), seed=os.environ.get("VIRTIO_SEED"))
    assert status == 0, said


@pytest.mark.parametrize("what", ["leak", "hang", "death"])
def test_what_goes_wrong_is_seen(what: str) -> None:
    """And the sequence is named."""
    status, said = fuzz("--sequences", "20", "--plant", what, seed="3")
    assert status not in (0, -15), said
    assert "VIRTIO_SEED=3" in said and "sequence 5" in said and "sequence 6" not in said
    assert what == "death" or "--seed 3 --only 5" in said


def test_the_path_is_free_again(tmp_path: Path) -> None:
    with Server(Upper(), tmp_path / "s"):
        pass
    assert not list(tmp_path.iterdir())
