"""Socket files: whose they are, when one is replaced, and that none of another process is removed."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from vhost_device import Upper
from vhost_frontend import Frontend
from waiting import wait_for

from virtio.cli.status import Status, StatusSocket, running
from virtio.vhost_user import Server
from virtio.vhost_user.listener import device_at, is_stale
from virtio.vhost_user.message import Request


@contextmanager
def server(path: str) -> Iterator[Any]:
    with Server(Upper(), path) as found:
        yield found


@contextmanager
def status(path: str) -> Iterator[Any]:
    with StatusSocket(dict, path) as found:
        yield found


KINDS = pytest.mark.parametrize("made", [server, status])
Made = Callable[[str], Any]


def stale(path: Path) -> None:
    """Leave a socket file as a process does that is killed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as killed:
        killed.bind(str(path))


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


@KINDS
def test_a_socket_that_another_process_put_there_stays(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with made(str(path)):
        path.unlink()
        other = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        other.bind(str(path))
        other.listen()
    assert answers(path)
    other.close()


@KINDS
def test_what_else_lies_there_in_the_end_stays(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with made(str(path)):
        path.unlink()
        path.write_text("a letter")
    assert path.read_text() == "a letter"


@KINDS
def test_its_own_file_goes(made: Made, tmp_path: Path) -> None:
    with made(str(tmp_path / "s")):
        assert answers(tmp_path / "s")
    assert not list(tmp_path.iterdir())


@KINDS
def test_a_socket_file_that_nobody_has_is_replaced(made: Made, tmp_path: Path) -> None:
    stale(tmp_path / "s")
    with made(str(tmp_path / "s")):
        assert answers(tmp_path / "s")


@KINDS
@pytest.mark.parametrize("name", ["s", "./s", "folder/../s"])
def test_a_socket_that_is_bound_and_does_not_listen_yet_stays(
    made: Made, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that binds, and listens when it is ready. It may say the path in another way than we."""
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as early:
        early.bind(name)
        with pytest.raises(OSError, match="Address already in use"), made(str(tmp_path / "s")):
            pass
        early.listen()
        assert answers(tmp_path / "s")


@KINDS
@pytest.mark.parametrize("move", [os.rename, os.link])
def test_a_socket_that_was_bound_at_another_path_stays(
    made: Made, move: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    """A program that lets its socket be seen when it is ready: the kernel has the old name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as early:
        early.bind(str(tmp_path / "hidden"))
        move(tmp_path / "hidden", tmp_path / "s")
        with pytest.raises(OSError, match="Address already in use"), made(str(tmp_path / "s")):
            pass
        early.listen()
        assert answers(tmp_path / "s")
    with made(str(tmp_path / "s")):
        assert answers(tmp_path / "s")


def test_a_socket_of_another_file_system_keeps_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have the same inode number there."""
    path = tmp_path / "s"
    stale(path)
    found = path.stat()
    for device, is_ours in ((found.st_dev, True), (found.st_dev + 1, False)):
        bound = [(found.st_ino & 0xFFFFFFFF, device, "hidden")]
        monkeypatch.setattr("virtio.vhost_user.listener.bound_files", lambda bound=bound: bound)
        monkeypatch.setattr("virtio.vhost_user.listener.device_at", lambda path, told: told)
        assert is_stale(str(path)) != is_ours


def test_the_device_of_a_file_is_the_kernels(tmp_path: Path) -> None:
    """As far as can be seen on file systems of which stat() tells the same."""
    stale(tmp_path / "s")
    assert device_at(str(tmp_path / "s"), 0) == device_at("/nowhere", tmp_path.stat().st_dev)


@KINDS
def test_a_connection_that_outlives_its_server_keeps_no_path(made: Made, tmp_path: Path) -> None:
    """What a child of a killed server still has bears the server's name."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(path))
        listener.listen()
        client.connect(str(path))
        accepted, _ = listener.accept()
    with accepted, made(str(path)):
        assert answers(path)


def test_a_socket_of_another_type_stays(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "s"))
        with pytest.raises(OSError, match="Address already in use"):
            Server(Upper(), tmp_path / "s")


def test_a_link_to_a_socket_is_not_replaced(tmp_path: Path) -> None:
    stale(tmp_path / "there")
    (tmp_path / "s").symlink_to(tmp_path / "there")
    with pytest.raises(OSError, match="Address already in use"):
        Server(Upper(), tmp_path / "s")
    assert (tmp_path / "s").is_symlink()


def test_of_many_that_find_a_stale_file_one_gets_the_path(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for _ in range(20):
        stale(path)
        start = threading.Barrier(8)
        made: list[StatusSocket] = []

        def begin(start: threading.Barrier = start, made: list[StatusSocket] = made) -> None:
            start.wait()
            with suppress(OSError):
                made.append(StatusSocket(dict, str(path)))

        threads = [threading.Thread(target=begin) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 1
        assert answers(path)
        with made[0]:
            pass
        assert not path.exists()


def test_a_folder_that_somebody_holds_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtio.vhost_user.listener.PATIENCE", 0.05)
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with status(str(tmp_path / "s")), Status(str(tmp_path / "s")) as there:
        there.read()
    os.close(folder)


def test_a_server_whose_folder_is_gone_ends(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with Server(Upper(), tmp_path / "folder" / "s"):
        (tmp_path / "folder" / "s").unlink()
        (tmp_path / "folder").rmdir()


def test_virtio_top_leaves_a_process_that_is_about_to_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process id may mean nothing here: it may be one of another namespace."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "virtio").mkdir()
    early, killed = (tmp_path / "virtio" / f"{1 << 30}{i}.sock" for i in range(2))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(early))
        stale(killed)
        assert running() == []
        assert early.exists()
        assert not killed.exists()


def test_the_socket_of_a_killed_server_is_served_again(tmp_path: Path) -> None:
    script = "import sys, socket; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); input()"
    path = tmp_path / "s"
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE)
    wait_for(lambda: path.exists() and answers(path))
    with pytest.raises(OSError, match="Address already in use"):
        Server(Upper(), path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Server(Upper(), path), Frontend(str(path)) as frontend:
        frontend.ask_u64(Request.GET_FEATURES)
