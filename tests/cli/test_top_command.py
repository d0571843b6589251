"""The command `virtio top`, on a `virtio net` that runs."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from netcommand import ready, started
from vhost_frontend import GPA, Frontend, layout_of
from vhost_guest import Guest

from virtio import Feature
from virtio.cli import status as status_module
from virtio.cli.status import CLIENTS, PATIENCE, Status, StatusSocket
from virtio.cli.top import HEAD, label, rows
from virtio.vhost_user.listener import somebody_listens

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


def test_what_a_port_dropped_has_a_line_of_its_own() -> None:
    port = {"send_packets": 9, "send_dropped": 7, "send_EIO": 4, "receive_dropped": 2, "receive_EPROTO": 2}
    before = {"uptime": 1.0, "endpoints": {"tap:a": {"rx0": queue(0), "port": {**port, "send_dropped": 4}}}}
    after = {"uptime": 2.0, "endpoints": {"tap:a": {"rx0": queue(0), "port": port}, "null": {"port": {}}}}
    assert rows(before, after)[2:] == [
        ("tap:a", "port", "", "", "", "", "3", "receive EPROTO 2, send EIO 4, send no taker 3"),
    ]


def test_nobody_counts_kicks_of_rings_that_are_polled(tmp_path: Path) -> None:
    path = str(tmp_path / "status")
    with started(f"vhost-user:{tmp_path}/s", "loopback", "--poll", "--status", path) as process:
        ready(process)
        with Guest(f"{tmp_path}/s"), Status(path) as status:
            found = status.read()
            while not any(row[1] == "tx0" for row in rows(found, found)):
                found = status.read()
    assert [row[4] for row in rows(found, found)[1:]] == ["-", "-"]


def test_endpoints_are_told_apart() -> None:
    texts = ("vhost-user:/a,queues=2", "vhost-user:,fd=3,queues=2", "gen:size=64,rate=5", "loopback")
    assert [label(text) for text in texts] == ["vhost-user:/a", "vhost-user:,fd=3", "gen:size=64", "loopback"]


def test_queues_are_in_order() -> None:
    figures = {f"rx{i}": queue(0) for i in (10, 9, 0)}
    answer = {"uptime": 1.0, "endpoints": {"sink": figures}}
    assert [row[1] for row in rows(answer, answer)[1:]] == ["rx0", "rx9", "rx10"]


def test_several_may_look_and_take_their_time(tmp_path: Path) -> None:
    path = str(tmp_path / "status")
    with StatusSocket(lambda: {}, path), ExitStack() as stack:
        clients = [stack.enter_context(Status(path)) for _ in range(CLIENTS)]
        for _ in range(2):
            assert [client.read()["pid"] for client in clients] == [os.getpid()] * CLIENTS
        with Status(path) as further, pytest.raises(ConnectionError):
            further.read()
        clients[0].__exit__()
        while True:  # the place is free again, when that is noticed
            with suppress(ConnectionError), Status(path) as further:
                further.read()
                break
        # a client that is slower than the server's patience with answers: that is no time that counts
        clients[1]._socket.settimeout(60)
        time.sleep(PATIENCE + 1)
        assert clients[1].read()["pid"] == os.getpid()
    assert not Path(path).exists()


def test_two_at_once_and_the_process_ends_meanwhile(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    with started("gen:rate=1000", "sink", env=environment) as process:
        ready(process)
        tops = [
            subprocess.Popen([*TOP, "--seconds", "0.1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             env=environment)
            for _ in range(2)
        ]  # fmt: skip
        for top in tops:
            assert top.stdout is not None
            while not re.search(r"^sink +rx0 +[1-9]", line := top.stdout.readline()):
                assert line, "virtio top ended"
        process.terminate()
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0
        for top in tops:
            _, err = top.communicate(timeout=60)
            assert (top.returncode, err) == (1, "virtio top: the process has ended\n")


def test_one_who_takes_no_connections_holds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither who looks at it, nor who would listen at its socket."""
    monkeypatch.setattr(status_module, "PATIENCE", 1)
    path = str(tmp_path / "s")
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        with suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(path)
        with pytest.raises(ConnectionError, match="nobody takes connections"):
            Status(path)
        assert somebody_listens(path)


def test_a_killed_process_is_not_in_the_way(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    with started("null", "sink", env=environment) as process:
        ready(process)
    stale = tmp_path / "virtio" / f"{process.pid}.sock"
    assert stale.exists()
    done = subprocess.run(
        [*TOP, str(process.pid)], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert done.returncode != 0
    assert done.stderr == f"virtio top: nobody is at {stale}: the process was killed\n"
    with started("null", "sink", env=environment) as process:
        ready(process)
        subprocess.run([*TOP, "--count", "1", "--seconds", "0.1"], env=environment, timeout=60, check=True)
        assert not stale.exists()


def test_whoever_reads_may_go(tmp_path: Path) -> None:
    path = str(tmp_path / "status")
    with started("null", "sink", "--status", path) as process:
        ready(process)
        top = subprocess.Popen(
            [*TOP, path, "--seconds", "0.05"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert top.stdout is not None
        assert top.stderr is not None
        top.stdout.readline()
        top.stdout.close()
        assert top.wait(60) == 0
        assert top.stderr.read() == ""
        top.stderr.close()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "which process? there are in"),
        (("1",), "no process has "),
        (("/nowhere/x",), "no process has /nowhere/x"),
        (("--count", "-1"), "--count -1 is negative"),
        (("--seconds", "soon"), "invalid float value: 'soon'"),
        (("--seconds", "0"), "--seconds 0.0 is not within 0.05 to 3600"),
    ],
)
def test_what_is_not_there(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run([*TOP, *words], capture_output=True, text=True, env=environment, timeout=30, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
