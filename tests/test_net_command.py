"""The command `virtio net`: endpoints, readiness, supervisors, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from vhost_frontend import Frontend

from virtio.constants import NetFeature
from virtio.errors import ConfigError
from virtio.net.endpoints import Joined, PortEnd, VhostUser, parse
from virtio.vhost_user import PROTOCOL, ProtocolFeature
from virtio.vhost_user.messages import Request

COMMAND = [sys.executable, "-m", "virtio", "net"]


@contextmanager
def started(*words: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,  # type: ignore[call-overload]
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line == "ready\n", line + process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_stop(number: int, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with started(f"vhost-user:{path},queues=2", "loopback", "--json") as process:
        ready(process)
        with Frontend(str(path)) as frontend:
            assert frontend.ask_u64(Request.GET_QUEUE_NUM) == 2
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, "")
        assert list(json.loads(out)) == [f"vhost-user:{path},queues=2"]
        assert not path.exists()


def test_a_supervisor_is_told_and_gives_the_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor, socket.socket(socket.AF_UNIX) as listener:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(20)
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        os.set_inheritable(listener.fileno(), True)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with started(
            f"vhost-user:,fd={listener.fileno()}", "null", env=environment, pass_fds=[listener.fileno()]
        ) as process:
            assert supervisor.recv(100) == b"READY=1"
            with Frontend(str(tmp_path / "s")) as frontend:
                assert frontend.ask_u64(Request.GET_QUEUE_NUM) == 1
            process.terminate()
            assert supervisor.recv(100) == b"STOPPING=1"
            process.communicate(timeout=20)
            assert process.returncode == 0
        assert (tmp_path / "s").exists()  # the supervisor's


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("loopback", "null"), "one of two endpoints is vhost-user:PATH, or both are taps"),
        (("vhost-user:", "null"), "it takes either a path or fd=NUMBER"),
        (("vhost-user:x,fd=3", "null"), "it takes either a path or fd=NUMBER"),
        (("vhost-user:x,queues=0", "null"), "0 queue pairs (1 to 128)"),
        (("vhost-user:x,queues=many", "null"), "queues 'many' is no number"),
        (("vhost-user:x,client=2", "null"), "client '2' is neither 1 nor 0"),
        (("vhost-user:x,colour=red", "null"), "option 'colour' is none of queues, mtu"),
        (("vhost-user:x,withhold=CSUMM", "null"), "feature 'CSUMM' is unknown"),
        (("vhost-user:x,withhold-protocol=NO", "null"), "'NO' is none of MQ"),
        (("vhost-user:x,mtu=3", "null"), "MTU 3"),
        (("vhost-user:/nowhere/at/all", "null"), "No such file or directory"),
        (("vhost-user:x", "nothing"), "'nothing' is none of"),
        (("vhost-user:x", "null", "--workers", "0"), "--workers 0 is not within 1 to 256"),
        (("vhost-user:x", "null", "--cpus", "a"), "--cpus 'a' is no list of numbers"),
        (("vhost-user:x", "null", "--cpus", "9999"), "CPU 9999 is not among those"),
        (("vhost-user:x",), "ENDPOINT"),
    ],
)
def test_bad_arguments_end_it_with_one_line(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, cwd=tmp_path, timeout=30, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_an_endpoint_says() -> None:
    assert parse("loopback,full=drop") == PortEnd("loopback,full=drop")
    text = "vhost-user:/a,queues=3,mtu=9000,client=1,withhold=CSUM+MQ,withhold-protocol=mq+status,mac=02:00:00:00:00:09"
    end = parse(text)
    assert isinstance(end, VhostUser)
    assert (end.text, end.path, end.queues, end.client, end.fd) == (text, "/a", 3, True, None)
    assert dict(end.options) == {"mtu": 9000, "withhold": ["CSUM", "MQ"], "mac": "02:00:00:00:00:09"}
    assert end.protocol == PROTOCOL & ~(ProtocolFeature.MQ | ProtocolFeature.STATUS)
    with pytest.raises(ConfigError, match="endpoint 'vhost-user:'"):
        parse("vhost-user:")


def test_three_endpoints_would_need_a_switch() -> None:
    with pytest.raises(ConfigError, match="3 endpoints"):
        Joined([PortEnd("null")] * 3)


def test_what_is_withheld_is_not_offered(tmp_path: Path) -> None:
    ends = [parse(f"vhost-user:{tmp_path}/{name},withhold=CSUM") for name in "ab"]
    with Joined(ends) as joined, Frontend(f"{tmp_path}/a") as frontend:
        offered = frontend.ask_u64(Request.GET_FEATURES)
        assert not offered & (NetFeature.CSUM | NetFeature.HOST_TSO4)
        assert offered & NetFeature.GUEST_CSUM
        assert len(joined.workers) == 1
        assert list(joined.statistics()) == [end.text for end in ends if isinstance(end, VhostUser)]
    assert not list(tmp_path.iterdir())
