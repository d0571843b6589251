"""The command `virtio net`: endpoints, readiness, supervisors, and how it ends."""

from __future__ import annotations

import json
import resource
import signal
import socket
import struct
import subprocess
from functools import partial
from pathlib import Path

import pytest
from netcommand import COMMAND, PATIENCE, ready, started
from vhost_frontend import PROTOCOL_FEATURES, Frontend

from virtio.cli.endpoints import Joined, PortEnd, VhostUser, give_descriptors, parse
from virtio.constants import NetFeature
from virtio.errors import ConfigError
from virtio.vhost_user import PROTOCOL, ProtocolFeature
from virtio.vhost_user.message import CONFIG, HEADER, Request


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


def test_it_takes_as_many_descriptors_as_it_may(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    few = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (256, hard))
    with started(f"vhost-user:{tmp_path / 's'}", "null", preexec_fn=few) as process:
        ready(process)
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (hard, hard)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("vhost-user:", "null"), "endpoint 'vhost-user:' has neither a path nor a descriptor (fd=NUMBER, --fd)"),
        (("vhost-user:", "vhost-user", "--fd", "5"), "endpoint 'vhost-user' has neither a path nor"),
        (("vhost-user:,fd=many", "null"), "fd 'many' is no number"),
        (("vhost-user:,client=1", "null"), "client=1 needs a path"),
        (("vhost-user:,client=1,fd=5", "null"), "fd=NUMBER is in place of a path"),
        (("vhost-user:x,fd=3", "null"), "fd=NUMBER is in place of a path"),
        (("vhost-user:x", "null", "--fd", "5"), "fd 5: no endpoint is for it"),
        (("vhost-user:", "null", "--fd", "many"), "invalid int value: 'many'"),
        (("vhost-user:", "null", "--fd", "77"), "fd 77 is not open"),
        (("vhost-user:", "null", "--fd", "-1"), "fd -1 is not open"),
        (("vhost-user:", "null", "--fd", "99999999999"), "fd 99999999999 is not open"),
        (("vhost-user:", "vhost-user:,fd=5", "--fd", "5"), "fd 5 for two endpoints"),
        (("vhost-user:x,queues=129", "null"), "129 queue pairs (1 to 128)"),
        (("vhost-user:x,mtu=99999", "null"), "99999"),
        (("vhost-user:x,queues=big", "null"), "queues 'big' is no number"),
        (("vhost-user:x,speed=fast", "null"), "speed 'fast' is no number"),
        (("vhost-user:x,mac=1:2", "null"), "1:2"),
        (("vhost-user:x,offer=NOTHING", "null"), "feature 'NOTHING' is unknown"),
        (("vhost-user:x,mtu", "null"), "'mtu' is not OPTION=VALUE"),
        (("gen:size=5", "null"), "size 5 of a raw frame"),
        (("gen:colour=1", "null"), "colour"),
        (("gen:size=1e9", "null"), "port 'gen:size=1e9': "),
        (("gen:source=5", "null"), "port 'gen:source=5': "),
        (("gen:count=99999999999999999999", "null"), "too large"),
        (("gen:queues=0", "sink"), "queues 0 is not within 1 to 256"),
        (("sink:queues=99999999999", "gen"), "sink:queues=99999999999"),
        (("sink,queues=two", "gen:queues=2"), "sink,queues=two"),
        (("gen:rate=-1", "null"), "rate -1"),
        (("gen:fast", "null"), "gen has no name; options are gen:OPTION=VALUE"),
        (("loopback:full=maybe", "null"), "full 'maybe'"),
        (("replay:missing", "null"), "No such file or directory"),
        (("pcap:/nowhere/x", "gen"), "No such file or directory"),
        (("tap:a-name-that-is-too-long", "null"), "limit 15"),
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
        (("vhost-user:x", "null", "--cpus", "-1"), "--cpus '-1' is no list of numbers"),
        (("vhost-user:x", "null", "--cpus", "3-1"), "--cpus '3-1': 3-1 is no range"),
        (("vhost-user:x", "null", "--cpus", "0-99999999999"), "is no range"),
        (("vhost-user:x", "null", "--workers", "two"), "invalid int value: 'two'"),
        (("null", "null", "--workers", "257"), "--workers 257 is not within 1 to 256"),
        (("null", "null", "--status", "/nowhere/at/all"), "No such file or directory"),
        (("vhost-user:x",), "ENDPOINT"),
    ],
)
def test_bad_arguments_end_it_with_one_line(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, cwd=tmp_path, timeout=30, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_an_endpoint_says() -> None:
    assert parse("loopback,full=drop") == PortEnd("loopback,full=drop")
    text = "vhost-user:/a,queues=3,mtu=9000,client=1,withhold=CSUM+MQ,withhold-protocol=mq+status,mac=02:00:00:00:00:09"
    end = parse(text)
    assert isinstance(end, VhostUser)
    assert (end.text, end.path, end.queues, end.client, end.fd) == (text, "/a", 3, True, None)
    assert dict(end.options) == {"mtu": 9000, "withhold": ["CSUM", "MQ"], "mac": "02:00:00:00:00:09"}
    assert end.protocol == PROTOCOL & ~(ProtocolFeature.MQ | ProtocolFeature.STATUS)
    assert [
        given.fd for given in give_descriptors([parse("vhost-user:"), end], [7]) if isinstance(given, VhostUser)
    ] == [
        7,
        None,
    ]
    assert give_descriptors([parse("vhost-user:,queues=2")], [7]) == [parse("vhost-user:,fd=7,queues=2")]


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


def test_what_an_endpoint_asks_for_a_guest_sees(tmp_path: Path) -> None:
    path = f"{tmp_path}/s"
    options = "mac=02:00:00:00:00:42,mtu=4000,speed=2500,withhold=MRG_RXBUF+GUEST_TSO4,withhold-protocol=mq+log_shmfd"
    with started("loopback", f"vhost-user:{path},{options}") as process:
        ready(process)
        with Frontend(path) as frontend:
            offered = frontend.ask_u64(Request.GET_FEATURES)
            assert offered & (NetFeature.MAC | NetFeature.MTU | NetFeature.SPEED_DUPLEX | NetFeature.GUEST_TSO6)
            assert not offered & (NetFeature.MRG_RXBUF | NetFeature.GUEST_TSO4)
            frontend.order(Request.SET_OWNER)
            protocol = frontend.ask_u64(Request.GET_PROTOCOL_FEATURES)
            assert not protocol & (ProtocolFeature.MQ | ProtocolFeature.LOG_SHMFD)
            assert protocol & ProtocolFeature.CONFIG
            frontend.negotiate(offered & ~PROTOCOL_FEATURES, ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG)
            head = CONFIG.pack(0, 17, 0)
            config = frontend.ask(Request.GET_CONFIG, head + bytes(17))[len(head) :]
            mac, _, _, mtu, speed, _ = struct.unpack("<6sHHHIB", config)
            assert (mac.hex(":"), mtu, speed) == ("02:00:00:00:00:42", 4000, 2500)
        stop(process)


def test_a_socket_at_which_the_guest_listens(tmp_path: Path) -> None:
    """client=1: it connects, and again when the guest has gone."""
    with started(f"vhost-user:{tmp_path}/s,client=1", "null") as process, socket.socket(socket.AF_UNIX) as guest:
        ready(process)
        guest.settimeout(PATIENCE)
        guest.bind(f"{tmp_path}/s")
        guest.listen(1)
        for _ in range(2):
            connection, _ = guest.accept()
            with connection:
                connection.settimeout(PATIENCE)
                connection.sendall(HEADER.pack(Request.GET_FEATURES, 1, 0))
                assert HEADER.unpack(connection.recv(HEADER.size))[0] == Request.GET_FEATURES
        stop(process)


def test_help_names_every_option() -> None:
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, timeout=PATIENCE, check=True)
    words = "--poll --workers --cpus --fd --status --json LISTEN_FDS NOTIFY_SOCKET SIGTERM vhost-user:PATH tap:NAME"
    words += " gen sink pcap:FILE replay:FILE loopback null"
    assert [word for word in words.split() if word not in done.stdout] == []


def stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    assert process.wait(PATIENCE) == 0
