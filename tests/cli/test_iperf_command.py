"""`virtio iperf` as a user runs it: over the kernel's TCP, with and without root, and without namespaces at all."""

from __future__ import annotations

import gc
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import netns
import pytest
from netns import refuse
from waiting import wait_for

from virtio.cli.iperf import run as iperf
from virtio.cli.iperf.paths import Ends, VtnetPath
from virtio.cli.iperf.report import Row
from virtio.cli.iperf.settings import DIRECTIONS, OFFLOADS, Settings
from virtio.cli.main import main
from virtio.cli.progress import Progress
from virtio.net.netns import Namespace
from virtio.net.vtnet import FRAME_MAX
from virtio.vtnet.pool import pool_size

COMMAND = [sys.executable, "-m", "virtio", "iperf"]
# root's own user, without any right: with SETFCAP it may still become root of a user namespace, without it may not
WITHOUT_ROOT = ["--inh-caps=-all", "--bounding-set=-all,+setfcap"]
WITHOUT_NAMESPACES = ["--inh-caps=-all", "--bounding-set=-all"]


@pytest.fixture
def kernel() -> None:
    """Skip where there is no TCP of the kernel to be had."""
    if os.geteuid() != 0:
        refuse("needs root: network namespaces and TAP interfaces")
    if not os.path.exists("/dev/net/tun"):
        refuse("no /dev/net/tun: load the kernel's tun module")


def virtio(*arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*before, *COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def with_rights(*words: str) -> tuple[str, ...]:
    program = shutil.which("setpriv")
    if program is None or os.geteuid() != 0:
        refuse("needs root and setpriv, to give up root's rights")
    return (str(program), *words)


def rows_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == ["rows"]
    rows: list[dict[str, object]] = found["rows"]
    for row in rows:
        assert list(row) == [
            "nic", "direction", "offloads", "mbit_s", "median", "verified", "packets", "kicks", "interrupts",
            "receive_interrupts", "transmit_interrupts",
        ]  # fmt: skip
        assert row["verified"] is True
        assert isinstance(row["packets"], int)
        assert row["packets"] > 0
    return rows


ALL_ROWS = [
    (nic, direction, offloads, 2)
    for direction in DIRECTIONS
    for nic, offloads in (("vtnet", True), ("vtnet", False), ("tap-loop", True))
]


def kinds(rows: list[dict[str, object]]) -> list[tuple[object, object, object, int]]:
    return [(row["nic"], row["direction"], row["offloads"], len(row["mbit_s"])) for row in rows]  # type: ignore[arg-type]


@pytest.mark.usefixtures("kernel")
def test_three_rows_a_direction() -> None:
    done = virtio("--json", "--runs", "2", "--seconds", "0.1")
    assert kinds(rows_of(done)) == ALL_ROWS
    assert done.stderr == ""


@pytest.mark.root
def test_without_root_in_a_user_namespace() -> None:
    before = with_rights(*WITHOUT_ROOT)
    tried = subprocess.run([*before, "unshare", "-U", "-r", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        refuse(f"no user namespaces here: {tried.stderr.strip()}")
    done = virtio("--json", "--runs", "2", "--seconds", "0.1", before=before)
    assert kinds(rows_of(done)) == ALL_ROWS
    assert done.stderr == ""


@pytest.mark.root
def test_without_namespaces_by_the_generator_and_it_says_so() -> None:
    done = virtio("--json", "--runs", "2", "--seconds", "0.1", before=with_rights(*WITHOUT_NAMESPACES))
    assert kinds(rows_of(done)) == [row for row in ALL_ROWS if row[0] == "vtnet"]
    first, second = done.stderr.splitlines()
    assert first.startswith("virtio iperf: no TCP of the kernel can be had here: ")
    assert first.endswith("; the packet generator takes its place")
    assert second == "virtio iperf: there is no tap-loop without network namespaces"
    done = virtio("--iperf3", before=with_rights(*WITHOUT_NAMESPACES))
    assert (done.returncode, done.stdout) == (1, "")
    assert "iperf3 takes network namespaces" in done.stderr


@pytest.mark.usefixtures("kernel")
def test_what_it_says(tmp_path: Path) -> None:
    plot = ["--plot", str(tmp_path / "runs.png")] if has_matplotlib() else []
    done = virtio("-v", "--runs", "2", "--seconds", "0.05", "--no-tso6", *plot)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    text = done.stdout
    assert text.startswith("vtnet: virtio-net at 00:00.0 1af4:1000 by legacy PCI, interrupts by msix, split rings; ")
    assert "HOST_TSO4            yes      yes     yes" in text
    assert "HOST_TSO6            -        yes     -    not offered" in text
    for direction in DIRECTIONS:
        part = text[text.index(f"{direction}, Mbit/s") :]
        lines = [line.split() for line in part.splitlines()]
        assert [line[1] for line in lines[2:5]] == ["vtnet", "vtnet,", "tap-loop"]
        assert [line[-1] for line in lines[2:5]] == ["yes"] * 3
        assert "confidence; median" in part
        assert " x vtnet, offloads off" in part
        assert "bytes/packet" in part
    if plot:
        assert Path(plot[1]).read_bytes().startswith(b"\x89PNG")


def on_a_terminal(*arguments: str) -> tuple[str, str]:
    """Run the command with a terminal for stderr; return what it wrote to stdout and to the terminal."""
    ours, terminal = pty.openpty()
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=terminal, text=True) as process:
        os.close(terminal)
        assert process.stdout is not None
        out = process.stdout.read()
    said = ""
    with suppress(OSError):  # EIO: no terminal is left
        while data := os.read(ours, 1 << 16):
            said += data.decode()
    os.close(ours)
    assert process.returncode == 0
    return out, said


@pytest.mark.usefixtures("kernel")
def test_progress_on_a_terminal() -> None:
    out, said = on_a_terminal("--runs", "1", "--seconds", "1.2", "--rows", "tap-loop")
    assert "\r\x1b[K  row 1 of 2, warm-up: guest-to-host, tap-loop, 0 s" in said
    run = re.findall(r"\r\x1b\[K  row 2 of 2, run 1 of 1: host-to-guest, tap-loop, \d+ s([^\r]*)", said)
    assert run[0] == ""
    assert re.fullmatch(r", [\d,]+ Mbit/s", run[1])  # frames since the run began
    assert said.endswith("\r\x1b[K")  # and the line is clean in the end
    assert "row " not in out


def test_no_progress_beside_json() -> None:
    options = ("--json", "--generator", "--runs", "1", "--seconds", "0.05", "--rows", "vtnet")
    out, said = on_a_terminal(*options)
    assert len(json.loads(out)["rows"]) == 2
    assert said == ""


def has_matplotlib() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


N_TSO = OFFLOADS["tso4"] | OFFLOADS["tso6"]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    "changes",
    [
        {"ipv6": True},
        {"mtu": 9000},
        {"mtu": 576},
        {"mtu": 65521},
        {"packed": True},
        {"packed": True, "queue_size": 100, "workers": 2},
        {"queues": 2, "streams": 3},
        {"queues": 2, "streams": 2, "workers": 2},
        {"workers": 2, "mode": "busy"},
        {"spin_us": 0},
        {"queue_size": 4},
        {"queue_size": 32768},
        {"withheld": 1 << 15},  # MRG_RXBUF
        {"withheld": 1 << 27},  # ANY_LAYOUT
        {"withheld": 1 << 28 | 1 << 29},  # INDIRECT_DESC, EVENT_IDX
        {"withheld": 1 << 17 | 1 << 5 | 1 << 3},  # CTRL_VQ, MAC, MTU
        {"withheld": N_TSO},
    ],
    ids=str,
)
def test_every_way_of_it_is_verified(changes: dict[str, object]) -> None:
    settings = Settings(runs=1, seconds=0.05, rows=("vtnet", "vtnet-off"), **changes)  # type: ignore[arg-type]
    found = iperf.run(settings, say=ignore, progress=Progress(quiet=True), note=pytest.fail)
    assert found.faults == []
    assert len(found.rows) == 4
    for row in found.rows:
        assert row.verified
        assert row.packets > 0
        assert row.copied == 0  # frames go from TAP to guest memory to TAP
        mean = row.frame_bytes / row.packets
        if not row.offloads or settings.withheld & N_TSO:
            assert mean <= settings.mtu + 14
        elif settings.mtu < 65000:
            assert mean > 2 * settings.mtu


def ignore(_: str) -> None: ...


@pytest.mark.usefixtures("kernel")
def test_iperf3_over_the_same_paths() -> None:
    from peers import need_peer

    need_peer("iperf3", "iperf3")
    settings = Settings(runs=1, seconds=1, rows=("vtnet",), directions=DIRECTIONS[1:], streams=2, iperf3=True)
    found = iperf.run(settings, say=ignore, progress=Progress(quiet=True), note=pytest.fail)
    assert found.faults == []
    assert found.rows[0].verified
    assert found.rows[0].mbit_s[0] > 0


@pytest.mark.parametrize("changes", [{}, {"packed": True, "queues": 2, "workers": 2}, {"mtu": 9000}], ids=str)
def test_the_generator_is_verified(changes: dict[str, object]) -> None:
    settings = Settings(runs=1, seconds=0.05, generator=True, **changes)  # type: ignore[arg-type]
    notes: list[str] = []
    found = iperf.run(settings, say=ignore, progress=Progress(quiet=True), note=notes.append)
    assert notes == ["there is no tap-loop without network namespaces"]
    assert found.faults == []
    assert [(row.nic, row.offloads, row.verified, len(row.mbit_s)) for row in found.rows] == [
        ("vtnet", offloads, True, 1) for _ in DIRECTIONS for offloads in (True, False)
    ]
    for row in found.rows:
        mean = row.frame_bytes / row.packets
        assert mean > 5 * settings.mtu if row.offloads else mean == settings.mtu + 14


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("ipv6", [False, True])
def test_the_kernels_find_nothing_wrong(ipv6: bool) -> None:
    with ExitStack() as stack:
        for path in iperf.make_paths(Settings(seconds=0.1, ipv6=ipv6), stack):
            assert isinstance(path, Ends)
            for direction in DIRECTIONS:
                assert path.run(direction).wrong == ""
                for space in path.spaces[direction]:
                    assert isinstance(space, Namespace)
                    counts = space.counters()
                    assert counts["Tcp.InSegs"] > 10
                    # what a busy machine acknowledges late may be sent again
                    names = set(netns.ERRORS) - {"Tcp.RetransSegs"}
                    assert {name: counts[name] for name in names if counts.get(name)} == {}


@pytest.mark.usefixtures("kernel")
def test_a_byte_that_changes_on_its_way_is_found() -> None:
    settings = Settings(seconds=0.3, rows=("vtnet",))
    with ExitStack() as stack:
        (path,) = iperf.make_paths(settings, stack)
        assert isinstance(path, VtnetPath)
        assert path.run("guest-to-host").wrong == ""
        driver = path.machine.driver
        large = driver.pairs[0].allocated[0]  # the buffers of frames that are beyond the MTU
        stop = threading.Event()

        def meddle() -> None:
            while not stop.is_set():
                for at in range(large, large + pool_size(FRAME_MAX, 64), 50_000):
                    driver.memory.write(at, b"\x55")

        meddler = threading.Thread(target=meddle)
        meddler.start()
        try:
            # now and then no byte is hit while it matters
            assert any(" is 0x55, not " in path.run("guest-to-host").wrong for _ in range(10))
            assert any(path.warm_up("guest-to-host").wrong.startswith("SHA-256 ") for _ in range(50))
        finally:
            stop.set()
            meddler.join()
        assert path.run("guest-to-host").wrong == ""


# ---- how it ends ----


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--runs", "0"), "'0'"),
        (("--seconds", "never"), "'never'"),
        (("--rows", "vtnet,e1000"), "'e1000'"),
        (("--withhold", "CSUM,HOST_TSO5"), "HOST_TSO5"),
        (("--plot", "runs.jpeg"), "runs.jpeg"),
        (("--packed", "--split"), "--split"),
        (("--ipv6", "--mtu", "600"), "1280"),
        (("--queue-size", "300"), "300"),
        (("--generator", "--iperf3"), "exclude"),
        (("--generator", "--ipv6"), "IPv4"),
    ],
)
def test_bad_arguments_are_one_line_and_code_2(arguments: tuple[str, ...], words: str) -> None:
    done = virtio(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("virtio iperf: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


@pytest.mark.usefixtures("kernel")
def test_what_cannot_be_negotiated_is_one_line_and_code_1() -> None:
    done = virtio("--packed", "--withhold", "RING_PACKED")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "virtio iperf: packed rings were not negotiated: RING_PACKED is withheld\n"


def test_a_fault_is_said_and_ends_in_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    row = Row("vtnet", "guest-to-host", True, "vtnet", [1.0], verified=False)
    monkeypatch.setattr(iperf, "run", lambda *_, **__: iperf.Found([row], ["vtnet: byte 3 is 0x00, not 0x01"]))
    assert main(["iperf", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["rows"][0]["verified"] is False
    assert err == "virtio iperf: vtnet: byte 3 is 0x00, not 0x01\n"


def children(pid: int) -> set[int]:
    """Processes that a process started: the ends of streams have its number among their words."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.endswith(b"/stream.py") for word in words) and str(pid).encode() in words:
            found.add(int(path.parent.name))
    return found


def namespaces() -> set[str]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/task/*/ns/net"):
        try:
            found.add(os.readlink(path))
        except OSError:
            continue
    return found


@pytest.fixture
def running() -> Iterator[subprocess.Popen[str]]:
    """The command, in the middle of a run."""
    command = [sys.executable, "-u", *COMMAND[1:], "--rows", "vtnet,tap-loop", "--seconds", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("tap-loop: "):
                break
        time.sleep(1)
        yield process
        process.kill()


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_ends_it_and_nothing_is_left(running: subprocess.Popen[str], number: signal.Signals) -> None:
    assert len(children(running.pid)) == 2
    assert running.poll() is None
    running.send_signal(number)
    running.wait(timeout=30)
    assert running.returncode == (130 if number == signal.SIGINT else -number)
    assert running.stderr is not None
    assert running.stderr.read() == ""
    wait_for(lambda: not children(running.pid))  # of a process that was killed, they take a moment


@pytest.mark.usefixtures("kernel")
def test_no_namespace_tap_thread_or_descriptor_is_left() -> None:
    def state() -> tuple[set[str], int, int]:
        gc.collect()  # bells and their eventfds hang in cycles
        return namespaces(), threading.active_count(), len(os.listdir("/proc/self/fd"))

    settings = Settings(runs=1, seconds=0.02)
    iperf.run(settings, say=ignore, progress=Progress(quiet=True), note=pytest.fail)
    before = state()
    iperf.run(settings, say=ignore, progress=Progress(quiet=True), note=pytest.fail)
    assert state() == before
