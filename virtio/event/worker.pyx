"""Workers: threads that run the data path, without the GIL."""

import os
import threading
import time
import weakref

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.time cimport timespec

from virtio.core.atomic cimport virtio_load32, virtio_relax, virtio_store32
from virtio.core.clock cimport now_ns
from virtio.core.counters cimport add_count, counted
from virtio.core.lock cimport queue_lock, queue_unlock, virtio_trylock
from virtio.event.notifier cimport Bell, virtio_bell_answer, virtio_bell_drain

from virtio.core import signals
from virtio.core.process import Origin


cdef extern from "poll.h" nogil:
    int ppoll(pollfd *fds, unsigned long n, const timespec *timeout, const void *mask)


cdef extern from "sched.h" nogil:
    int sched_yield()


cdef enum:
    # Units of work. A round is short, however many guests there are: each has its share of it, and of that each of its
    # tasks, but no more than a turn
    ROUND = 8 * VIRTIO_WORK_TURN
    SHARE_MIN = 2000
    POLL = 100           # of a poll that did something, beside what that says
    TRUST = 32           # so many times what it counted a poll may have taken: beyond, the thread had no CPU


LOOK = 100e-6  # seconds between two tries to stop a task amid a burst


cdef struct worker_guest:
    uint32_t tasks
    uint32_t busy   # of its tasks, those that had something to do
    int64_t share   # of each task


cdef struct worker_task:
    virtio_task *task
    virtio_turn *turn
    worker_guest *guest


cdef bint share_out(worker_guest *guests, uint32_t n) noexcept nogil:
    """Say what each task may do in the next round, of those that had something to do in the last.

    Guests have equal shares, however many queues each has. One that is alone, or has few tasks, has no more than turns.
    Return whether a guest is alone. A guest that had nothing to do may have something for all its tasks next.
    """
    cdef uint32_t i, found = 0, least = 0
    cdef int64_t share
    for i in range(n):
        if guests[i].busy:
            least = min(least, guests[i].busy) if found else guests[i].busy
            found += 1
    share = max(<int64_t>ROUND // max(found, <uint32_t>1), SHARE_MIN)
    if found > 1:
        share = min(share, <int64_t>least * VIRTIO_WORK_TURN)
    for i in range(n):
        guests[i].share = min(<int64_t>VIRTIO_WORK_TURN,
                              share // (guests[i].busy if guests[i].busy else guests[i].tasks) + 1)
        guests[i].busy = 0
    return n <= 1 or found == 1


cdef inline uint64_t run_turn(virtio_task *task, virtio_turn *turn, int64_t *clock) noexcept nogil:
    """Run a task until its turn is over; return how much was done, 0 if it has nothing to do.

    Deficit round robin (Shreedhar and Varghese, 1995): a task that went beyond its turn pays with the next ones, and
    one that has nothing to do keeps nothing. It pays for the time since *clock, which is brought forward; clock is
    NULL or *clock is 0: for the units that it counts. Those bound each poll, but a unit may take ten times as long
    where caches miss.

    Small bursts move the ring's cache lines for little: a poll follows only if the last one left something, and as much
    as it took is left of the turn.
    """
    cdef uint64_t total = 0
    cdef uint32_t done
    cdef int64_t before, now
    while turn.left > 0:
        before = turn.left
        turn.empty = 0
        done = task.poll(task, turn)
        if done == 0:  # it may have looked at much, for nothing
            turn.left = min(turn.left - before, <int64_t>0)
            break
        turn.left -= POLL
        if clock is not NULL:
            now = now_ns()
            if clock[0]:
                turn.left = before - min(now - clock[0], TRUST * (before - turn.left))
            clock[0] = now
        total += done
        if turn.empty or turn.left < before - turn.left:
            break
    return total


cdef void forgive(worker_task *tasks, uint32_t n) noexcept nogil:
    """Pass over the rounds in which all tasks that have something to do would only pay."""
    cdef uint32_t i
    cdef int64_t rounds = -1, owed
    for i in range(n):
        if tasks[i].turn.left < 0:
            owed = -tasks[i].turn.left // tasks[i].guest.share
            rounds = owed if rounds < 0 else min(rounds, owed)
    for i in range(n):
        if tasks[i].turn.left < 0:
            tasks[i].turn.left += rounds * tasks[i].guest.share


cdef inline uint64_t run_round(worker_task *tasks, uint32_t n, bint alone, int64_t *clock,
                               uint32_t *paid) noexcept nogil:
    """Give each task its turn; return how much was done. See run_turn.

    ``alone``: one guest has all there is to do, and owes it to none. *paid: tasks that only paid.
    """
    cdef uint32_t i
    cdef uint64_t done, total = 0
    cdef virtio_turn *turn
    paid[0] = 0
    for i in range(n):
        turn = tasks[i].turn
        turn.left = min(turn.left, tasks[i].guest.share) + tasks[i].guest.share
        if turn.left <= 0 and alone:
            turn.left = tasks[i].guest.share
        elif turn.left <= 0:
            paid[0] += 1
            tasks[i].guest.busy += 1
            continue
        done = run_turn(tasks[i].task, turn, clock)
        tasks[i].guest.busy += done != 0
        total += done
    if total == 0 and paid[0]:
        forgive(tasks, n)
    return total


cdef class Task:
    """One direction of one queue, which a Worker runs, or :meth:`poll` by hand."""

    def poll(self, int64_t work=VIRTIO_WORK_TURN):
        """Do one burst on this thread, of about so many units of work at most.

        Return how much was done: chains, or 1 for a part of one; 0 for nothing. A unit is about a nanosecond.
        Raises ValueError unless ``work`` is above 0.
        """
        cdef uint32_t done = 0
        cdef virtio_turn turn
        if work <= 0:
            raise ValueError(f"work {work}: limit 1 at least")
        turn.left, turn.resume, turn.empty = work, 0, 0
        if self.task is not NULL:
            with nogil:
                done = self.task.poll(self.task, &turn)
        return done

    def resume(self):
        """Let it run."""
        cdef object worker
        if self.task is not NULL:
            with nogil:
                queue_lock(self.lock)
                virtio_store32(&self.task.active, 1)
                queue_unlock(self.lock)
            worker = self.worker
            if worker is not None:
                worker.wake()  # it may sleep, and wait for nothing of a task that was paused

    def pause(self, seconds=None):
        """Stop it: when this returns True no burst is under way, and none begins.

        ``seconds`` is how long a burst that is under way is waited for (None: until it ends); False: it goes on.
        """
        if self.task is NULL:
            return True
        if seconds is None:
            with nogil:
                queue_lock(self.lock)
        else:
            end = time.monotonic() + seconds
            while not virtio_trylock(self.lock):
                if time.monotonic() >= end:
                    return False
                time.sleep(LOOK)
        virtio_store32(&self.task.active, 0)
        queue_unlock(self.lock)
        return True

    @property
    def active(self):
        """Whether it runs when a worker or :meth:`poll` gets to it."""
        return self.task is not NULL and virtio_load32(&self.task.active) != 0


cdef class Worker:
    """A thread that runs tasks.

    ``mode`` is "busy" (poll without end: one whole CPU) or "adaptive" (poll for ``spin_us`` microseconds after the
    last work, then sleep until something is to be done). ``cpu`` pins the thread. Tasks may be added and removed while
    it runs.

    Raises ValueError for another mode, OSError for a CPU that is not there. Any thread may call; ``stop`` waits for the
    thread, and must not be called by what a task calls. In a child of fork() all methods that concern the thread raise
    RuntimeError, and leaving the context does nothing: the thread is the parent's.
    """

    cdef object __weakref__
    cdef readonly str mode
    cdef readonly object cpu
    cdef readonly int spin_us
    cdef list _tasks              # of Task: keeps them alive
    cdef object _origin           # the process that has the thread
    cdef list _leaving            # of Task: removed by the thread itself, amid a round that may still run them
    cdef worker_task *_running    # [_count]; replaced by the thread itself only, as
    cdef worker_guest *_guests    # [_nguests] is
    cdef uint32_t _count
    cdef uint32_t _nguests
    cdef object _thread
    cdef Bell _bell               # wakes the thread for stop and for a change of tasks
    cdef bint _busy
    cdef object _changed          # threading.Condition: guards _tasks and _wanted
    cdef uint64_t _wanted         # number of the last change,
    cdef uint64_t _seen           # and of that which the thread works by
    cdef uint32_t _stop
    cdef uint32_t _attention      # the thread is to look at _wanted and _stop
    cdef uint64_t _sleeps
    cdef uint64_t _rounds

    def __init__(self, tasks=(), *, mode="adaptive", cpu=None, int spin_us=50):
        if mode not in ("adaptive", "busy"):
            raise ValueError(f"mode {mode!r} is neither 'adaptive' nor 'busy'")
        if spin_us < 0:
            raise ValueError(f"spin_us {spin_us} is negative")
        if cpu is not None and cpu not in os.sched_getaffinity(0):
            raise OSError(f"CPU {cpu} is not among those of this process: {sorted(os.sched_getaffinity(0))}")
        self.mode, self.cpu, self.spin_us = mode, cpu, spin_us
        self._busy = mode == "busy"
        self._origin = Origin("worker")
        self._tasks, self._leaving = [], []
        self._bell = Bell()
        self._changed = threading.Condition()
        for task in tasks:
            self.add(task)

    def __del__(self):
        for task in self._tasks or ():
            (<Task>task).worker = None

    def __dealloc__(self):
        free(self._running)
        free(self._guests)

    @property
    def tasks(self):
        """The tasks, in the order in which they run."""
        return tuple(self._tasks)

    @property
    def running(self):
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def rounds(self):
        """How often it polled all tasks."""
        return counted(&self._rounds)

    @property
    def sleeps(self):
        """How often it went to sleep."""
        return counted(&self._sleeps)

    def add(self, Task task not None, *, guest=None):
        """Run this task too; RuntimeError if another worker does.

        ``guest`` is any object: tasks with the same one share what a guest may do. None: the task keeps the guest that
        it was added with before; a new task is a guest of its own.
        """
        self._origin.check()
        with self._changed:
            if task.worker is not None:
                raise RuntimeError(f"{task!r} is run by {task.worker!r} already")
            task.worker = weakref.proxy(self)  # which has the task
            if guest is not None or task.guest is None:
                task.guest = id(task if guest is None else guest)
            self._tasks.append(task)
            self._announce()

    def remove(self, Task task not None):
        """Run this task no more; when this returns, the thread has let go of it."""
        self._origin.check()
        with self._changed:
            if task not in self._tasks:
                raise RuntimeError(f"{task!r} is not run by {self!r}")
            self._tasks.remove(task)
            task.worker = None
            self._announce()
            if threading.current_thread() is self._thread:
                self._leaving.append(task)
            else:
                self._changed.wait_for(lambda: self._seen == self._wanted or not self.running)

    cdef int _announce(self) except -1:
        self._wanted += 1
        virtio_store32(&self._attention, 1)
        self._bell.ring()
        return 0

    def start(self):
        """Start the thread; RuntimeError if it runs."""
        self._origin.check()
        if self.running:
            raise RuntimeError("worker runs already")
        self._stop = 0
        virtio_store32(&self._attention, 1)
        self._thread = threading.Thread(target=self._run, name="virtio-worker", daemon=True)
        self._thread.start()

    def wake(self):
        """Make it look at its tasks, if it sleeps."""
        self._origin.check()
        self._bell.ring()

    def stop(self):
        """End the thread, and wait for it. Tasks stay, and may be polled by hand or run again."""
        self._origin.check()
        if self._thread is None:
            return
        self._stop = 1
        virtio_store32(&self._attention, 1)
        self._bell.ring()
        self._thread.join()
        self._thread = None

    def poll(self):
        """Give each task a turn, on this thread; return how much was done, or 1 if tasks with work only paid.

        For a worker that is not started.

        Turns are of work that is counted; of a worker that is started they are of time.
        """
        cdef uint64_t done
        cdef uint32_t paid
        cdef bint alone
        if self._seen != self._wanted or self._count == 0:
            self._renew()
        with nogil:
            alone = share_out(self._guests, self._nguests)
            done = run_round(self._running, self._count, alone, NULL, &paid)
        return done if done or not paid else 1

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        if self._origin.here:
            self.stop()

    def _run(self):
        if self.cpu is not None:
            os.sched_setaffinity(threading.get_native_id(), {self.cpu})
        signals.begin_thread()
        try:
            while True:
                virtio_store32(&self._attention, 0)
                if self._stop:
                    return
                self._renew()
                with nogil:
                    self._loop()
        finally:
            with self._changed:
                self._count = 0
                self._seen = self._wanted
                self._changed.notify_all()

    cdef int _renew(self) except -1:
        """Work by the list of tasks as it is now."""
        cdef worker_task *running
        cdef worker_guest *guests
        cdef uint32_t n = 0
        cdef Task task
        with self._changed:
            running = <worker_task *>calloc(len(self._tasks) + 1, sizeof(worker_task))
            guests = <worker_guest *>calloc(len(self._tasks) + 1, sizeof(worker_guest))
            if running is NULL or guests is NULL:
                free(running)
                free(guests)
                raise MemoryError()
            numbers = {}
            for task in self._tasks:
                if task.task is not NULL:
                    running[n].task, running[n].turn = task.task, &task.turn
                    running[n].guest = guests + <uint32_t>numbers.setdefault(task.guest, len(numbers))
                    running[n].guest.tasks += 1
                    running[n].guest.busy += 1  # as long as nothing else is known
                    n += 1
            free(self._running)
            free(self._guests)
            self._running, self._guests = running, guests
            self._count, self._nguests = n, len(numbers)
            self._seen = self._wanted
            self._leaving.clear()
            self._changed.notify_all()
        return 0

    cdef void _loop(self) noexcept nogil:
        """Run tasks until Python wants something."""
        cdef virtio_wait wait
        cdef worker_task *tasks = self._running
        cdef uint32_t n = self._count
        cdef uint32_t idle = 0
        cdef uint64_t done
        cdef uint32_t paid
        cdef int64_t clock = 0  # when the last poll ended that did something; 0: rounds without work followed
        cdef int64_t since = 0  # when the last work was done, 0: just now
        cdef bint alone = share_out(self._guests, self._nguests)
        while not virtio_load32(&self._attention):
            add_count(&self._rounds, 1)
            if clock:
                clock = now_ns()  # what others looked at for nothing is not the next one's
            done = run_round(tasks, n, alone, NULL if alone else &clock, &paid)
            if done or paid:
                alone = share_out(self._guests, self._nguests)
            if done:
                if alone:
                    clock = 0
                idle = 0
                since = 0
                continue
            clock = 0  # and shares stay: a round without work costs the polls alone
            idle += 1
            virtio_relax()
            if self._busy:
                if idle % 1024 == 0:
                    sched_yield()
                continue
            if self.spin_us:
                if since == 0:
                    since = now_ns()
                    continue
                if idle % 16 or now_ns() - since < <int64_t>self.spin_us * 1000:
                    continue
            self._sleep(&wait, tasks, n)
            since = 0

    cdef void _sleep(self, virtio_wait *wait, worker_task *tasks, uint32_t n) noexcept nogil:
        """Sleep until a task has work, or Python wants something."""
        cdef bint work
        cdef uint32_t i
        cdef int64_t us
        cdef timespec timeout
        wait.nfds = wait.nbells = wait.full = 0
        wait.timeout_us = -1
        work = virtio_wait_bell(wait, &self._bell.c)
        for i in range(n):
            work |= tasks[i].task.arm(tasks[i].task, wait)
        if not work:
            us = wait.timeout_us
            if wait.full and (us < 0 or us > 1000):
                us = 1000
            timeout.tv_sec = us // 1000000
            timeout.tv_nsec = us % 1000000 * 1000
            add_count(&self._sleeps, 1)
            ppoll(wait.fds, wait.nfds, &timeout if us >= 0 else NULL, NULL)
        for i in range(wait.nbells):
            virtio_store32(&wait.bells[i].asleep, 0)
            # answered before the tasks look at their queues: what is rung from here on counts anew
            virtio_bell_answer(wait.bells[i])
            if wait.fds[wait.bell_fd[i]].revents:  # read it empty, or the next sleep ends at once
                virtio_bell_drain(wait.bells[i])
        for i in range(n):
            tasks[i].task.disarm(tasks[i].task)
