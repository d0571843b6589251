"""Workers: they run tasks, sleep when there is nothing to do, and stop when asked."""

from __future__ import annotations

import os
import threading
import time

import pytest
from waiting import wait_for

from virtio.event.worker import Task, Worker

pytestmark = pytest.mark.threads


def test_an_idle_worker_sleeps() -> None:
    with Worker(spin_us=0) as worker:
        wait_for(lambda: worker.sleeps == 1)
        rounds = worker.rounds
        time.sleep(0.05)
        assert worker.rounds == rounds
        assert worker.sleeps == 1
    assert not worker.running


def test_a_busy_worker_does_not_sleep() -> None:
    with Worker(mode="busy") as worker:
        wait_for(lambda: worker.rounds > 100_000)
        assert worker.sleeps == 0


def test_tasks_come_and_go_while_it_runs() -> None:
    tasks = [Task() for _ in range(3)]
    with Worker(tasks[:1]) as worker:
        worker.add(tasks[1])
        assert worker.tasks == tuple(tasks[:2])
        worker.remove(tasks[0])
        assert worker.tasks == (tasks[1],)
    other = Worker([tasks[0]])
    with pytest.raises(RuntimeError, match="already"):
        worker.add(tasks[0])
    with pytest.raises(RuntimeError, match="not run by"):
        worker.remove(tasks[0])
    other.remove(tasks[0])
    worker.add(tasks[0])


def test_it_can_be_started_again() -> None:
    worker = Worker()
    for _ in range(3):
        worker.start()
        assert worker.running
        with pytest.raises(RuntimeError, match="runs already"):
            worker.start()
        worker.stop()
        worker.stop()
        assert not worker.running


def test_stopping_a_sleeper_takes_no_time_out() -> None:
    worker = Worker(spin_us=0)
    for _ in range(200):  # between arming and sleeping, too
        worker.start()
        worker.stop()


def test_it_runs_where_it_is_told() -> None:
    cpu = max(os.sched_getaffinity(0))
    before = set(os.listdir("/proc/self/task"))
    with Worker(cpu=cpu) as worker:
        wait_for(lambda: worker.sleeps > 0)
        (thread,) = set(os.listdir("/proc/self/task")) - before
        assert os.sched_getaffinity(int(thread)) == {cpu}


def test_by_hand() -> None:
    worker = Worker([Task(), Task()])
    assert worker.poll() == 0
    assert not worker.tasks[0].active


def test_remove_waits_for_the_thread() -> None:
    task = Task()
    with Worker([task], mode="busy") as worker:
        done = threading.Event()

        def change() -> None:
            for _ in range(200):
                worker.remove(task)
                worker.add(task)
            done.set()

        thread = threading.Thread(target=change)
        thread.start()
        assert done.wait(30)
        thread.join()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"mode": "lazy"}, ValueError, "'lazy'"),
        ({"spin_us": -1}, ValueError, "-1"),
        ({"cpu": 4096}, OSError, "4096"),
    ],
)
def test_bad_options(options: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Worker(**options)  # type: ignore[arg-type]
