"""Log lines that another side causes: few are written, and how many were not is said."""

from __future__ import annotations

import gc
import logging
import os
import weakref
from pathlib import Path

import pytest
from vhost_device import Upper, running
from vhost_frontend import Frontend, layout_of
from waiting import wait_for

from virtio.core.logs import BURST, NAMES_MAX, LineLimit
from virtio.vhost_user import Server
from virtio.vhost_user.message import Request

TIMES = 100


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("virtio.core.logs.time", found)
    return found


@pytest.fixture
def said(clock: Clock) -> tuple[logging.Logger, list[str]]:
    """A logger with a limit, and what it has written."""
    lines: list[str] = []
    log = logging.Logger("test")
    log.addFilter(LineLimit())

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    log.addHandler(Keep())
    return log, lines


def test_a_few_then_one_at_times_that_says_how_many_there_were(
    said: tuple[logging.Logger, list[str]], clock: Clock
) -> None:
    log, lines = said
    for turn in range(3):
        for i in range(1000):
            log.error("%s: number %d", "s", i)
        clock.now += 10
        assert len(lines) == BURST + turn
    assert lines[0] == "s: number 0"
    assert lines[BURST] == f"s: number 0 ({1000 - BURST} lines like this one were left out)"
    assert lines[BURST + 1] == "s: number 0 (999 lines like this one were left out)"
    clock.now += 1000
    log.error("%s: number %d", "s", 7)
    assert len(lines) == BURST + 3  # another place: a kind of its own, of which none was left out
    assert lines[-1] == "s: number 7"


def test_each_server_and_each_device_has_its_own(said: tuple[logging.Logger, list[str]]) -> None:
    log, lines = said
    one, two = Upper(), Upper()
    for owner in ("a", "b", one, two):
        for _ in range(TIMES):
            log.error("%s: broken", owner)
    assert len(lines) == 4 * BURST
    gone = weakref.ref(one)
    del one, owner
    gc.collect()
    assert gone() is None


def test_what_a_line_says_makes_no_kind(said: tuple[logging.Logger, list[str]]) -> None:
    """Else the other side would vary it."""
    log, lines = said
    for i in range(TIMES):
        log.error("base %d", i)
        log.error("broken by the device: %s", f"rx{i}")
        log.error("%s", ValueError(i))
        log.error("queues %s", [i])
    assert len(lines) == 4 * BURST


def test_names_are_not_kept_without_end(said: tuple[logging.Logger, list[str]]) -> None:
    log, lines = said
    for i in range(10 * NAMES_MAX):
        log.error("%s: here", f"server {i}")
    assert len(lines) == 10 * NAMES_MAX
    (limit,) = log.filters
    assert isinstance(limit, LineLimit)
    assert len(limit._named) == NAMES_MAX


def test_a_line_below_the_level_counts_for_nothing(said: tuple[logging.Logger, list[str]]) -> None:
    log, lines = said
    log.setLevel(logging.WARNING)

    def say(level: int) -> None:
        log.log(level, "%s: here", "s")

    for _ in range(TIMES):
        say(logging.INFO)
    say(logging.WARNING)
    assert lines == ["s: here"]


class Faulty(Upper):
    """Fails at each chain, by mistake."""

    def notified(self, index: int) -> None:
        raise ZeroDivisionError("by mistake")


def test_a_hostile_frontend_fills_no_log(clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It connects, breaks a ring, is refused, and comes again; another server's lines are written all the while."""
    caplog.set_level(logging.INFO, "virtio")
    with Server(Faulty(), tmp_path / "hostile") as server:
        for i in range(TIMES):
            with Frontend(str(tmp_path / "hostile")) as frontend:
                running(frontend, False)
                frontend.kick(0)
                wait_for(lambda: server.device.queues[0].broken)
                error = os.eventfd(0)
                frontend.memory.write(layout_of(1, False).driver + 2, b"\xff\x7f")
                frontend.start(1, layout_of(1, False))
                os.close(error)
                if i % 2:
                    frontend.say(77)
            wait_for(lambda: not server.connected)
    lines = len(caplog.records)
    assert BURST < lines <= 8 * BURST  # of each kind: it is there, it has gone, it is refused, a queue fails, ...
    with Server(Upper(), tmp_path / "honest") as server:
        for _ in range(2):
            with Frontend(str(tmp_path / "honest")) as frontend:
                frontend.ask_u64(Request.GET_FEATURES)
            wait_for(lambda: not server.connected)
    assert sum("honest: a frontend is there" in line for line in caplog.messages) == 2


@pytest.mark.parametrize(("avail", "used"), [(3, 0xBEEF), (7, 3)], ids=["used.idx cannot be", "base is not used.idx"])
def test_where_a_ring_stands_is_said_of_its_own_server(
    avail: int, used: int, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A guest that writes another used.idx each time silences no other guest."""
    caplog.set_level(logging.INFO, "virtio")

    def start(name: str, times: int) -> None:
        with Server(Upper(), tmp_path / name) as server, Frontend(str(tmp_path / name)) as frontend:
            for _ in range(times):
                running(frontend, False)
                frontend.memory.write_u16(layout_of(1, False).device + 2, used)
                frontend.memory.write_u16(layout_of(1, False).driver + 2, avail)
                frontend.start(1, layout_of(1, False))
                frontend.stop(1)
                frontend.stop(0)
            assert server.connected

    start("hostile", 2 * BURST)
    start("honest", 1)
    lines = [line for line in caplog.messages if "it goes on from" in line]
    assert [f"{tmp_path / 'hostile'}: ring 1 has " in line for line in lines] == [True] * BURST + [False]
    assert lines[-1].startswith(f"{tmp_path / 'honest'}: ring 1 has ")
