"""The command `virtio net` under a supervisor: sockets that it inherits, what it says, how it ends."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from netcommand import COMMAND, PATIENCE, frames, joined, ready, started, stopped
from vhost_frontend import GPA, Frontend, layout_of
from vhost_guest import Guest
from waiting import wait_for

from virtio import Feature
from virtio.cli.status import Status
from virtio.cli.supervisor import Stop, Stopped
from virtio.vhost_user.message import Request

OPENAT = {"x86_64": 257, "aarch64": 56}


class Given(Frontend):
    """A frontend with a connection that somebody else made."""

    def __init__(self, connection: socket.socket, folder: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:  # what the base class connects to is replaced
            listener.bind(str(folder / "unused"))
            listener.listen(1)
            super().__init__(str(folder / "unused"))
        self.socket.close()
        self.socket = connection
        self.socket.settimeout(PATIENCE)


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(4)
        yield listener


def served(path: Path) -> None:
    with Frontend(str(path)) as frontend:
        assert frontend.ask_u64(Request.GET_QUEUE_NUM) == 1


@pytest.mark.parametrize("way", ["option", "--fd"])
def test_a_supervisor_is_told_and_keeps_the_socket(way: str, tmp_path: Path) -> None:
    """Socket activation: a process may go, and the next one serves at the same socket."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor, listening(path) as listener:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(PATIENCE)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        fd = listener.fileno()
        words = (f"vhost-user:,fd={fd}", "null") if way == "option" else ("vhost-user:", "null", "--fd", str(fd))
        for _ in range(2):
            with started(*words, "--json", env=environment, pass_fds=[fd]) as process:
                assert supervisor.recv(100) == b"READY=1"
                ready(process)
                served(path)
                served(path)
                assert list(stopped(process)) == [f"vhost-user:,fd={fd}"]
                assert supervisor.recv(100) == b"STOPPING=1"
        assert path.exists()


def test_descriptors_go_to_endpoints_in_order(tmp_path: Path) -> None:
    with listening(tmp_path / "a") as a, listening(tmp_path / "b") as b:
        words = ("vhost-user:,queues=2", "vhost-user:", "--fd", str(b.fileno()), "--fd", str(a.fileno()))
        with started(*words, pass_fds=[a.fileno(), b.fileno()]) as process:
            ready(process)
            for name, queues in (("b", 2), ("a", 1)):
                with Frontend(str(tmp_path / name)) as frontend:
                    assert frontend.ask_u64(Request.GET_QUEUE_NUM) == queues


def test_sockets_as_systemd_gives_them(tmp_path: Path) -> None:
    """They are descriptors 3, 4, ... of the process that LISTEN_PID names."""
    program = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = sys.argv[2] or str(os.getpid());"
    )
    program += "os.execv(sys.executable, [sys.executable, '-m', 'virtio', 'net', 'vhost-user:', 'null'])"
    environment = {**os.environ, "LISTEN_FDS": "1"}
    with listening(tmp_path / "s") as listener:
        command = [sys.executable, "-c", program, str(listener.fileno())]
        with subprocess.Popen(
            [*command, ""], stderr=subprocess.PIPE, text=True, env=environment, pass_fds=[listener.fileno(), 3]
        ) as process:
            ready(process)
            served(tmp_path / "s")
            process.terminate()
        assert process.returncode == 0
        done = subprocess.run(  # somebody else's
            [*command, "1"], capture_output=True, text=True, env=environment, pass_fds=[listener.fileno(), 3],
            timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert "has neither a path nor a descriptor" in done.stderr


def test_a_connected_socket_is_served_once(tmp_path: Path) -> None:
    """As libvirt hands one over. When the guest has gone nobody can come: the process ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with started("null", "vhost-user:", "--fd", str(theirs.fileno()), "--json", pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        ready(process)
        with Given(ours, tmp_path) as frontend:
            assert frontend.ask_u64(Request.GET_QUEUE_NUM) == 1
            assert process.poll() is None
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (0, "")
        assert out.startswith('{"vhost-user:,fd=')


def test_of_two_connected_sockets_the_last_ends_it(tmp_path: Path) -> None:
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(2)]
    fds = [theirs.fileno() for _, theirs in pairs]
    words = [word for fd in fds for word in ("--fd", str(fd))]
    with started("vhost-user:", "vhost-user:", *words, pass_fds=fds) as process:
        for _, theirs in pairs:
            theirs.close()
        ready(process)
        pairs[0][0].close()
        (tmp_path / "x").mkdir()
        with Given(pairs[1][0], tmp_path / "x") as frontend:
            assert frontend.ask_u64(Request.GET_QUEUE_NUM) == 1
            assert process.poll() is None
        assert process.wait(PATIENCE) == 0


def test_a_connected_socket_and_sigterm(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, started("null", "vhost-user:", "--fd", str(theirs.fileno()), "--json", pass_fds=[theirs.fileno()]) as it:
        theirs.close()
        ready(it)
        stopped(it)
        assert ours.recv(1) == b""


def test_a_descriptor_that_is_no_such_socket(tmp_path: Path) -> None:
    with (
        open(tmp_path / "file", "w") as file,
        socket.socket(socket.AF_INET) as tcp,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram,
        socket.socket(socket.AF_UNIX) as idle,
    ):
        for given, says in (
            (file, "is no socket"), (tcp, "is no UNIX stream socket"), (datagram, "is no UNIX stream socket"),
            (idle, "neither listens nor is connected"),
        ):  # fmt: skip
            done = subprocess.run(
                [*COMMAND, "vhost-user:", "null", "--fd", str(given.fileno())], capture_output=True, text=True,
                pass_fds=[given.fileno()], timeout=PATIENCE, check=False,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (2, f"virtio net: fd {given.fileno()} {says}\n")


@pytest.mark.parametrize("gone", ["before", "meanwhile"])
def test_a_supervisor_that_has_gone_does_not_matter(gone: str, tmp_path: Path) -> None:
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        if gone == "before":
            supervisor.close()
        with started("gen:count=5", "sink", "--json", env=environment) as process:
            ready(process)
            if gone == "meanwhile":
                supervisor.settimeout(PATIENCE)
                assert supervisor.recv(100) == b"READY=1"
                (tmp_path / "notify").unlink()
            process.terminate()
            out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert out.startswith('{"gen:count=5": ')
    assert "STOPPING=1 is not told" in err
    assert "Traceback" not in err


def test_an_abstract_notify_socket(tmp_path: Path) -> None:
    name = f"virtio-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind("\0" + name)
        supervisor.settimeout(PATIENCE)
        with started("null", "null", "--json", env={**os.environ, "NOTIFY_SOCKET": f"@{name}"}) as process:
            assert supervisor.recv(100) == b"READY=1"
            ready(process)
            stopped(process)


def test_without_a_place_for_the_status_socket_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "virtio").write_text("a file where the folder is to be")
    with started("gen:count=5", "sink", "--json", env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("virtio net: no socket for virtio top: ")
        ready(process)
        process.terminate()
        assert process.wait(PATIENCE) == 0


# ---- the end ----


@pytest.mark.parametrize("more", [(), ("--poll",)], ids=["adaptive", "busy"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_under_traffic(number: int, more: tuple[str, ...], tmp_path: Path) -> None:
    with joined(tmp_path, "gen:kind=tcp,size=9000", "loopback", *more) as (process, status):
        wait_for(lambda: frames(status, "loopback") > 1000, PATIENCE)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (0, "")
        assert '"corrupt": 0' in out
    assert not (tmp_path / "status").exists()


def test_it_ends_with_a_guest_that_sends(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with joined(tmp_path, f"vhost-user:{path}", "loopback") as (process, status), Frontend(path) as frontend:
        use = frontend.negotiate(Feature.VERSION_1)
        frontend.share_memory()
        driver = frontend.driver(1, layout_of(1, False), use)
        frontend.start(1, layout_of(1, False))
        for i in range(60):
            driver.enqueue([(GPA + 0x100000, 12 + 60)], (), cookie=i)
        driver.notify()
        frontend.kick(1)
        wait_for(lambda: frames(status, f"vhost-user:{path}", "tx0") > 0, PATIENCE)
        assert stopped(process)[f"vhost-user:{path}"]["tx0"]["frames"] > 0
        with pytest.raises(EOFError):
            frontend.answer()
    assert sorted(path.name for path in tmp_path.iterdir()) == []


def test_many_signals_are_as_one(tmp_path: Path) -> None:
    with joined(tmp_path, "gen:rate=100", "null") as (process, _):
        for _ in range(20):
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (0, "")
        assert out


def test_it_ends_while_somebody_looks_on(tmp_path: Path) -> None:
    with joined(tmp_path, "gen", "sink") as (process, status), Status(str(tmp_path / "status")) as idle:
        status.read()
        stopped(process)
        with pytest.raises(ConnectionError, match="the process has ended"):
            idle.read()


def test_it_ends_although_a_pipes_reader_reads_nothing(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with started("gen:size=1000", f"pcap:{pipe}", "--json", "--status", str(tmp_path / "status")) as process:
        reader = os.open(pipe, os.O_RDONLY)
        ready(process)
        # the pipe is full: the worker waits in it, within a burst
        wait_for(lambda: int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), "little") > 60000, PATIENCE)
        figures = stopped(process)
        assert figures["gen:size=1000"]["tx0"]["frames"] >= 0
        os.close(reader)


def test_it_ends_with_a_guest_although_a_pipes_reader_reads_nothing(tmp_path: Path) -> None:
    """The guest's server waits for its queue, whose worker waits in the pipe."""
    pipe, path = tmp_path / "pipe", str(tmp_path / "s")
    os.mkfifo(pipe)
    with started(f"vhost-user:{path}", f"pcap:{pipe}", "--json", "--status", str(tmp_path / "status")) as process:
        reader = os.open(pipe, os.O_RDONLY)
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
        ready(process)
        with Guest(path) as guest:
            wait_for(lambda: not guest.send(bytes(1400)), PATIENCE)  # nothing is taken any more
            assert f"vhost-user:{path}" in stopped(process)
        os.close(reader)


def test_it_ends_while_it_waits_for_a_pipes_reader(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with started("gen", f"pcap:{pipe}") as process:
        wait_for(lambda: opens_to_write(process.pid), PATIENCE)
        process.terminate()
        assert process.communicate(timeout=PATIENCE) == ("", "")
        assert process.returncode == 0


def test_a_signal_that_came_early_is_not_missed() -> None:
    before, wakeup = signal.getsignal(signal.SIGUSR1), signal.set_wakeup_fd(-1)
    try:
        stop = Stop(signal.SIGUSR1)
        with stop.breaks():
            pass
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(Stopped), stop.breaks():
            pytest.fail("it goes on")
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGUSR1, before)


def opens_to_write(pid: int) -> bool:
    """Whether the main thread of a process is in openat(2) with the flags of a capture file."""
    fields = Path(f"/proc/{pid}/syscall").read_text().split()
    return fields[0] == str(OPENAT[os.uname().machine]) and int(fields[3], 16) & os.O_TRUNC != 0


def test_a_capture_goes_through_a_pipe_whole(tmp_path: Path) -> None:
    with started("gen:size=1000,count=3000", "pcap:/dev/stdout") as process:
        assert process.stdout is not None
        data = process.stdout.buffer.read(24 + 3000 * 1016)
        assert {data[24 + 1016 * i + 12 : 24 + 1016 * i + 16] for i in range(3000)} == {(1000).to_bytes(4, "little")}
        ready(process)
        process.terminate()
        assert process.wait(PATIENCE) == 0
