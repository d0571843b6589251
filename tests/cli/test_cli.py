"""The command, as a user runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest


def virtio(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "virtio", *arguments], capture_output=True, text=True, check=False)


def test_demo_says_what_it_does() -> None:
    done = virtio("demo", "--chains", "5000")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress line where there is no terminal
    for name in ("split", "packed"):
        assert f"{name} ring, by hand" in done.stdout
        assert [line.split()[1:3] for line in done.stdout.splitlines() if line.split()[:1] == [name]][-1] == [
            "5,000",
            "True",
        ]
    assert "came back as b'THREE'" in done.stdout
    assert "VQ: driver 0" in done.stdout


def test_demo_as_json() -> None:
    done = virtio("demo", "--json", "--chains", "3000")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [(row["format"], row["chains"], row["verified"]) for row in rows] == [
        ("split", 3000, True),
        ("packed", 3000, True),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "command"),
        (("nonsense",), "nonsense"),
        (("demo", "--chains", "0"), "'0'"),
        (("demo", "--chains", "many"), "'many'"),
        (("demo", "--fast"), "--fast"),
    ],
)
def test_bad_input_is_one_line_and_a_code(arguments: tuple[str, ...], words: str) -> None:
    done = virtio(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("virtio")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_long_demo_stops_when_asked(number: signal.Signals) -> None:
    command = [sys.executable, "-u", "-m", "virtio", "demo", "--chains", str(10**10)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("driver and device on a thread each"):
                break
        process.send_signal(number)
        process.wait(timeout=60)
        assert process.stderr.read() == ""
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGTERM)
