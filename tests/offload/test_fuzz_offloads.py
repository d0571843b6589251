"""A short run of tests/support/fuzz_offloads.py, in a process of its own so that a crash is a failure with its input.

``VIRTIO_SEED=n`` repeats a run whose seed was printed; ``VIRTIO_FUZZ_SECONDS=n`` runs for that long.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_offloads import CORPUS, HEADER, dump, load
from scapy.layers.l2 import Ether

from virtio import offload

SECONDS = float(os.environ.get("VIRTIO_FUZZ_SECONDS", "0"))
SCRIPT = Path(__file__).parents[1] / "support" / "fuzz_offloads.py"
SANITIZED = "address" in os.environ.get("VIRTIO_SANITIZED", "")
SEEDS = sorted(CORPUS.glob("*.hex"))


def run(*arguments: str, seed: str | None = None, last: Path | None = None) -> subprocess.Popen[str]:
    words = [sys.executable, str(SCRIPT), *arguments]
    words += ["--seed", seed] if seed else []
    words += ["--last", str(last)] if last else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def fuzz(*arguments: str, last: Path) -> None:
    process = run(*arguments, seed=os.environ.get("VIRTIO_SEED"), last=last)
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        print(line, end="", file=sys.__stderr__ if line.startswith("fuzz:") and SECONDS else sys.stdout, flush=True)
    errors = process.stderr.read()
    if process.wait() == 0:
        return
    print(errors)
    if process.returncode != 1 or "VIRTIO_SEED" not in errors:  # it could not say what it was about
        written = last.read_bytes()
        print(f"the last input:\n{dump(written[4 : 4 + int.from_bytes(written[:4], 'little')])}")
    pytest.fail(f"exit status {process.returncode}; above: the input, to be saved in tests/corpus, and what it did")


def test_a_short_run(tmp_path: Path) -> None:
    fuzz("--inputs", "4000", last=tmp_path / "last")


def test_a_short_run_comes_everywhere(tmp_path: Path) -> None:
    """Each reason that can occur does, with seeds that stay the same: the mutator cannot rot unseen."""
    process = run("--inputs", "40000", "--cover", seed="2", last=tmp_path / "last")
    output, errors = process.communicate()
    assert process.returncode == 0, f"{errors}\n{output}"


@pytest.mark.skipif(SECONDS <= 0, reason="set VIRTIO_FUZZ_SECONDS to run for that long")
def test_a_long_run(tmp_path: Path) -> None:
    fuzz("--seconds", str(SECONDS), last=tmp_path / "last")


# ---- it can fail ----


def test_a_read_into_the_guard_page_is_seen() -> None:
    process = run("--plant", "guard")
    errors = process.communicate()[1]
    if SANITIZED:
        assert process.returncode == 1 and "AddressSanitizer" in errors
    else:
        assert process.returncode == -signal.SIGSEGV


@pytest.mark.skipif(not SANITIZED, reason="a heap block of exact size is watched by the address sanitizer only")
def test_a_read_past_a_heap_block_is_seen() -> None:
    process = run("--plant", "heap")
    assert "heap-buffer-overflow" in process.communicate()[1] and process.returncode == 1


def test_a_header_that_lies_is_seen() -> None:
    process = run("--plant", "wrong", "--inputs", "2000", seed="1")
    errors = process.communicate()[1]
    assert process.returncode == 1 and "CSUM_START" in errors and "VIRTIO_SEED=1" in errors


# ---- the corpus ----


def test_the_seeds_are_many_kinds() -> None:
    """Sound frames of each L3, transport and tunnel that is parsed, and headers of each sort of verdict."""
    kinds, verdicts = set(), set()
    for path in SEEDS:
        data = load(path)
        parsed = offload.parse(data[HEADER:])
        assert Ether(data[HEADER:]).src == "02:00:00:00:00:01"
        for layer in filter(None, (parsed.outer, parsed.inner)):
            kinds |= {layer.l3_kind.name, layer.stop.name, f"{layer.l3_kind.name} {layer.protocol}"}
        kinds.add(parsed.tunnel.name)
        header = offload.NetHeader.from_bytes(data, HEADER)
        verdicts.add(offload.classify_receive(header, data[HEADER:], (1 << 69) - 1).verdict)
    assert verdicts == set(offload.ReceiveVerdict)
    assert {"VXLAN", "GENEVE", "ARP", "OTHER", "FRAGMENT", "ENCRYPTED", "PROTOCOL", "IP_LENGTH"} <= kinds
    assert {f"{ip} {protocol}" for ip in ("IPV4", "IPV6") for protocol in (6, 17, 132)} <= kinds


@pytest.mark.parametrize("path", SEEDS, ids=[path.stem for path in SEEDS])
def test_a_seed_is_written_as_it_is_read(path: Path) -> None:
    assert dump(load(path)) + "\n" == path.read_text()
