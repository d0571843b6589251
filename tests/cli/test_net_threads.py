"""The threads of `virtio net`: polling, sleeping, CPUs. What is compared is CPU time used."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from netcommand import PATIENCE, cpu_ticks, frames, joined, tick
from vhost_frontend import GPA, Frontend, layout_of
from waiting import wait_for

from virtio import Feature


def pinned(process: subprocess.Popen[str]) -> list[set[int]]:
    """The CPUs of each thread that may not use all that we may."""
    ours = os.sched_getaffinity(0)
    return sorted(
        cpus for task in Path(f"/proc/{process.pid}/task").iterdir()
        if (cpus := os.sched_getaffinity(int(task.name))) != ours
    )  # fmt: skip


@pytest.fixture
def cpus() -> list[int]:
    found = sorted(os.sched_getaffinity(0))
    if len(found) < 2:
        pytest.skip("one CPU only")
    return found


def test_workers_are_pinned_in_turn(tmp_path: Path, cpus: list[int]) -> None:
    text = f"{cpus[1]},{cpus[0]}"
    with joined(tmp_path, "gen:queues=3,rate=100", "sink", "--cpus", text, "--workers", "3") as (process, _):
        wait_for(lambda: len(pinned(process)) == 3, PATIENCE)
        # dealt out in turn
        assert sorted(cpu for one in pinned(process) for cpu in one) == sorted([cpus[0], cpus[1], cpus[1]])


def test_a_range_of_cpus(tmp_path: Path, cpus: list[int]) -> None:
    if cpus[1] != cpus[0] + 1:
        pytest.skip("the CPUs have gaps")
    with joined(tmp_path, f"vhost-user:{tmp_path}/s,queues=2", "null", "--cpus", f"{cpus[0]}-{cpus[1]}") as (
        process,
        _,
    ):
        wait_for(lambda: sorted(map(tuple, pinned(process))) == [(cpus[0],), (cpus[1],)], PATIENCE)


def test_no_more_workers_than_queue_pairs(tmp_path: Path, cpus: list[int]) -> None:
    with joined(tmp_path, "null", "sink", "--workers", "9", "--cpus", str(cpus[0])) as (process, status):
        wait_for(lambda: len(pinned(process)) == 1, PATIENCE)
        status.read()
        assert len(pinned(process)) == 1


def test_polling_is_busy_and_adaptive_is_not(tmp_path: Path) -> None:
    """Idle, both: a thread that polls uses its CPU, one that is adaptive sleeps."""
    used = {}
    for mode in ("--poll", ""):
        with joined(tmp_path, f"vhost-user:{tmp_path}/s", "loopback", *filter(None, [mode])) as (process, status):
            status.read()
            before = cpu_ticks(process.pid)
            enough = sum(before.values()) + 1 / tick()  # a second's worth
            if mode:
                wait_for(lambda enough=enough: sum(cpu_ticks(process.pid).values()) > enough, PATIENCE)  # type: ignore[misc]
            else:
                time.sleep(2)
            after = cpu_ticks(process.pid)
            used[mode] = max(after[task] - before.get(task, 0) for task in after)
    assert used["--poll"] > 0.8 / tick()  # one thread, nearly alone
    assert used[""] < used["--poll"] / 20


@pytest.mark.parametrize("other", ["loopback", "null", "gen:count=10", "vhost-user"])
def test_an_idle_guest_takes_less_than_a_percent_of_a_cpu(other: str, tmp_path: Path) -> None:
    """With rings that run, and kicks that were answered: what the process uses of 5 seconds."""
    path = str(tmp_path / "s")
    with (
        joined(tmp_path, f"vhost-user:{path}", f"vhost-user:{path}2" if other == "vhost-user" else other) as (
            it,
            status,
        ),
        Frontend(path) as frontend,
    ):
        use = frontend.negotiate(Feature.VERSION_1)
        frontend.share_memory()
        driver = frontend.driver(1, layout_of(1, False), use)
        receiver = frontend.driver(0, layout_of(0, False), use)
        frontend.start(0, layout_of(0, False))
        frontend.start(1, layout_of(1, False))
        for i in range(20):
            receiver.enqueue((), [(GPA + 0x200000 + 0x1000 * i, 0x800)], cookie=i)
        receiver.notify()
        frontend.kick(0)
        driver.enqueue([(GPA + 0x100000, 12 + 60)], (), cookie=0)
        driver.notify()
        frontend.kick(1)
        wait_for(lambda: frames(status, f"vhost-user:{path}", "tx0") == 1, PATIENCE)
        before, since = sum(cpu_ticks(it.pid).values()), time.monotonic()
        time.sleep(5)
        used = (sum(cpu_ticks(it.pid).values()) - before) * tick()
        assert used < 0.01 * (time.monotonic() - since)


def test_an_idle_cable_of_ports_sleeps(tmp_path: Path) -> None:
    with joined(tmp_path, "gen:count=100", "loopback") as (process, status):
        wait_for(lambda: frames(status, "gen:count=100") == 100, PATIENCE)
        before, since = sum(cpu_ticks(process.pid).values()), time.monotonic()
        time.sleep(3)
        assert (sum(cpu_ticks(process.pid).values()) - before) * tick() < 0.01 * (time.monotonic() - since)
