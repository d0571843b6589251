"""The command `virtio top`, on a `virtio net` that runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_net_command import ready, started
from vhost_frontend import GPA, Frontend, layout_of

from virtio import Feature
from virtio.net.status import Status
from virtio.net.top_cli import HEAD, rows

TOP = [sys.executable, "-m", "virtio", "top"]


def queue(frames: int, dropped: dict[str, int] | None = None, **more: int) -> dict[str, object]:
    return {"frames": frames, "bytes": 1000 * frames, "kicks": 4, "calls": 2, "dropped": dropped or {}, **more}


def test_rates_are_differences() -> None:
    before = {"uptime": 10.0, "endpoints": {"vhost-user:/a,queues=1": {"tx0": queue(100), "control": {"rx": 1}}}}
    after = {
        "uptime": 12.0,
        "endpoints": {
            "vhost-user:/a,queues=1": {"tx0": queue(2100, {"short": 3, "closed": 5}, kicks=14), "rx0": queue(8)},
        },
    }
    assert rows(before, after) == [
        HEAD,
        ("vhost-user:/a", "rx0", "4", "0.0", "2", "1", "0", ""),
        ("vhost-user:/a", "tx0", "1,000", "8.0", "5", "0", "4", "closed 5, short 3"),
    ]


def test_a_process_is_seen_from_outside(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    path = str(tmp_path / "s")
    with started(f"vhost-user:{path}", "loopback", env=environment) as process:
        ready(process)
        with Frontend(path) as frontend:
            use = frontend.negotiate(Feature.VERSION_1)
            frontend.share_memory()
            driver = frontend.driver(1, layout_of(1, False), use)
            frontend.start(1, layout_of(1, False))
            for i in range(3):
                driver.enqueue([(GPA + 0x100000, 12 + 60)], (), cookie=i)
                driver.notify()
                frontend.kick(1)
            with Status(f"{tmp_path}/virtio/{process.pid}.sock") as status:
                while True:
                    found = status.read()["endpoints"][f"vhost-user:{path}"]
                    # kicks are counted when they are read: at the latest when the device goes to sleep
                    if found.get("tx0", {}).get("frames") == 3 and found["tx0"]["kicks"] > 0:
                        break
                assert found["tx0"]["kicks"] <= 6  # three, and ours at start
            for words in ([], [str(process.pid)], [f"{tmp_path}/virtio/{process.pid}.sock"]):
                done = subprocess.run(
                    [*TOP, *words, "--count", "1", "--seconds", "0.1"],
                    capture_output=True, text=True, env=environment, timeout=30, check=True,
                )  # fmt: skip
                assert done.stdout.splitlines()[1].split() == " ".join(HEAD).split()
                assert f"vhost-user:{path}  tx0" in done.stdout
            done = subprocess.run(
                [*TOP, "--count", "2", "--seconds", "0.1", "--json"],
                capture_output=True, text=True, env=environment, timeout=30, check=True,
            )  # fmt: skip
            assert [json.loads(line)["pid"] for line in done.stdout.splitlines()] == [process.pid] * 2
        process.terminate()
        process.communicate(timeout=20)
        assert list((tmp_path / "virtio").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "which process? there are in"),
        (("1",), "No such file or directory"),
        (("/nowhere/x",), "No such file or directory"),
        (("--seconds", "0"), "--seconds 0.0 is not within 0.05 to 3600"),
    ],
)
def test_what_is_not_there(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run([*TOP, *words], capture_output=True, text=True, env=environment, timeout=30, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
