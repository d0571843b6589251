"""The four ends under one set of verbs: our driver, the model's driver, our device, the model's device."""

from __future__ import annotations

import contextlib
import json
from typing import Any, Protocol

from models import packed, split
from models.chain import ModelChain

from virtio import (
    Chain,
    DeviceQueue,
    DoesNotFit,
    DriverQueue,
    GuestMemory,
    MemoryFault,
    Postpone,
    QueueFull,
)

from .plan import MODEL_TABLES, OUR_TABLES, TABLE, Job, Plan


class DriverEnd(Protocol):
    ours: bool
    forced: bool  # the next kick decision is yes, whatever the device asked for

    def slots(self, job: Job) -> int: ...
    def add(self, jobs: list[Job], nfree: int) -> int: ...
    def take(self, limit: int) -> list[tuple[Any, int]]: ...
    def kick(self) -> bool: ...
    def arm(self, hint: Postpone | None, distance: int) -> bool: ...
    def disarm(self) -> None: ...
    def figures(self, plan: Plan, jobs: int, slots: int, used: int) -> None: ...


class DeviceEnd(Protocol):
    ours: bool
    forced: bool

    def pop(self, limit: int) -> list[Any]: ...
    def look(self, handle: Any, job: Job) -> None: ...
    def use(self, done: list[tuple[Any, Job]], burst: bool) -> None: ...
    def call(self) -> bool: ...
    def arm(self) -> bool: ...
    def disarm(self) -> None: ...
    def figures(self, plan: Plan, added: int, popped: list[Any]) -> None: ...


def at_start(plan: Plan, state: dict[str, Any]) -> dict[str, Any]:
    """Turn a fresh queue's state into that of an idle queue at plan.start."""
    if plan.packed:
        lap, slot = divmod(plan.start, plan.size)
        return (
            state
            | dict.fromkeys(("next_avail", "next_used"), slot)
            | dict.fromkeys(("avail_wrap", "used_wrap"), 1 - lap % 2)
        )
    indices = {"next_avail", "next_used", "used_event", "avail_event"}  # each end has one of the events
    return state | dict.fromkeys(indices & state.keys(), plan.start)


class OurDriver:
    ours = True

    def __init__(self, plan: Plan, memory: GuestMemory) -> None:
        self.plan, self.memory, self.forced = plan, memory, plan.start != 0
        tables = {"indirect": OUR_TABLES, "max_indirect": plan.max_indirect} if plan.max_indirect else {}
        if plan.start:
            # the ring area belongs to whoever used it before: look elsewhere for what a state looks like
            spare = GuestMemory.allocate(memory.regions[0].size, memory.regions[0].gpa)
            state = DriverQueue(spare, plan.layout, features=plan.features, **tables).state()
            self.queue = DriverQueue.restore(memory, at_start(plan, state))
        else:
            self.queue = DriverQueue(memory, plan.layout, features=plan.features, **tables)

    def slots(self, job: Job) -> int:
        n = len(job.pieces)
        return 1 if 2 <= n <= self.plan.max_indirect else n

    def sides(self, job: Job) -> tuple[list[Any], list[Any], Any]:
        """The chain as enqueue takes it: some pieces as addresses, some as views."""
        out: list[list[Any]] = [[], []]
        for k, piece in enumerate(job.pieces):
            item: Any = (piece.gpa, piece.length)
            if (job.serial + k) % 3 == 0:
                with contextlib.suppress(MemoryFault):  # over a seam
                    item = self.memory.view(piece.gpa, piece.length)
            out[piece.write].append(item)
        return out[0], out[1], job.cookie

    def add(self, jobs: list[Job], nfree: int) -> int:
        if len(jobs) == 1:
            readable, writable, cookie = self.sides(jobs[0])
            try:
                self.queue.enqueue(readable, writable, cookie)
            except QueueFull:
                assert nfree == 0
                return 0
            except DoesNotFit as error:
                assert 0 < nfree < self.slots(jobs[0])
                assert (error.needed, error.available) == (len(jobs[0].pieces), nfree)
                return 0
            return 1
        if 0 < nfree < self.slots(jobs[0]):
            try:
                self.queue.enqueue_burst([self.sides(job) for job in jobs])
            except DoesNotFit:
                return 0
            raise AssertionError("a chain that does not fit was taken")
        return self.queue.enqueue_burst([self.sides(job) for job in jobs])

    def take(self, limit: int) -> list[tuple[Any, int]]:
        if limit == 1:
            got = self.queue.dequeue()
            return [got] if got else []
        return self.queue.dequeue_burst(limit)

    def kick(self) -> bool:
        self.forced = False
        return self.queue.notify()

    def arm(self, hint: Postpone | None, distance: int) -> bool:
        return self.queue.enable_intr() if hint is None else self.queue.postpone_intr(hint)

    def disarm(self) -> None:
        self.queue.disable_intr()

    def figures(self, plan: Plan, jobs: int, slots: int, used: int) -> None:
        queue = self.queue
        assert queue.broken is None
        assert (queue.nfree, queue.outstanding, queue.nused) == (plan.size - slots, jobs, used)
        assert queue.full == (slots == plan.size) and queue.empty == (jobs == 0)

    def snapshot(self) -> None:
        """Go on as a new queue made from a snapshot, as another process would."""
        state = json.loads(json.dumps(self.queue.state()))
        cookies = dict(zip((head for head, _, _ in state["outstanding"]), self.queue.drain(), strict=True))
        self.queue = DriverQueue.restore(self.memory, state, cookies)
        assert self.queue.state() == state
        self.forced = True

    def reset(self, plan: Plan, in_flight: list[Any]) -> None:
        """RING_RESET: the cookies of all that was in flight come back, and the queue is a fresh one."""
        assert sorted(cookie[1] for cookie in self.queue.drain()) == sorted(cookie[1] for cookie in in_flight)
        self.plan, self.forced = plan, False
        self.queue.reset(plan.layout)


class OurDevice:
    ours = True

    def __init__(self, plan: Plan, memory: GuestMemory) -> None:
        self.plan, self.memory, self.forced = plan, memory, plan.start != 0
        self.queue = DeviceQueue(memory, plan.layout, features=plan.features)
        if plan.start:
            self.queue = DeviceQueue.restore(memory, at_start(plan, self.queue.state()))

    def pop(self, limit: int) -> list[Chain]:
        if limit == 1:
            chain = self.queue.pop()
            return [chain] if chain else []
        return self.queue.pop_burst(limit)

    def look(self, handle: Chain, job: Job) -> None:
        """Check that the chain is the job, and write the answer."""
        assert handle.read() == job.question == b"".join(handle.readable)
        assert handle.readable_length == len(job.question)
        assert handle.writable_length == job.writable_length == sum(map(len, handle.writable))
        done = 0
        if job.serial % 2:
            for view in handle.writable:
                part = job.answer[done : min(done + len(view), job.written)]
                view[: len(part)] = part
                done += len(part)
            handle.written = job.written
        else:
            half = job.written // 2
            handle.write(job.answer[:half])
            handle.write(job.answer[half : job.written])
            assert handle.written == job.written

    def use(self, done: list[tuple[Chain, Job]], burst: bool) -> None:
        if burst:
            self.queue.add_used_burst([chain for chain, _ in done])
        else:
            for chain, job in done:
                self.queue.add_used(chain, job.written)

    def call(self) -> bool:
        self.forced = False
        return self.queue.needs_notification()

    def arm(self) -> bool:
        return self.queue.enable_notification()

    def disarm(self) -> None:
        self.queue.disable_notification()

    def figures(self, plan: Plan, added: int, popped: list[Chain]) -> None:
        assert self.queue.broken is None
        assert self.queue.available == (min(added, 1) if plan.packed else added)
        assert self.queue.outstanding == popped

    def snapshot(self) -> list[Chain]:
        """Go on as a new queue made from a snapshot; return the chains that were outstanding."""
        state = json.loads(json.dumps(self.queue.state()))
        self.queue = DeviceQueue.restore(self.memory, state)
        assert self.queue.state() == state
        self.forced = True
        return self.queue.outstanding

    def reset(self, plan: Plan) -> None:
        """RING_RESET: what was popped before can no longer be given back."""
        stale = self.queue.outstanding
        self.plan, self.forced = plan, False
        self.queue.reset(plan.layout)
        for chain in stale:
            try:
                self.queue.add_used(chain)
            except ValueError:
                continue
            raise AssertionError("a chain from before the reset was taken")


class ModelDriver:
    ours = forced = False

    def __init__(self, plan: Plan, memory: GuestMemory) -> None:
        self.plan, self.memory = plan, memory
        self.end: split.SplitDriver | packed.PackedDriver = (packed.PackedDriver if plan.packed else split.SplitDriver)(
            memory, plan.layout, event_idx=plan.event_idx, in_order=plan.in_order, start=plan.start
        )

    def slots(self, job: Job) -> int:
        if job.direct is None or not self.plan.indirect:
            return len(job.pieces)
        return 1 if self.plan.packed else job.direct + 1

    def add(self, jobs: list[Job], nfree: int) -> int:
        done = 0
        for job in jobs:
            if self.slots(job) > self.end.nfree:
                break
            table, direct = None, 0
            if job.direct is not None and self.plan.indirect:
                table = MODEL_TABLES + TABLE * job.block + job.serial % 5 * 4  # a table need not be aligned
                direct = 0 if self.plan.packed else job.direct
            self.end.add(job.pieces, job.cookie, table, direct)
            done += 1
        return done

    def take(self, limit: int) -> list[tuple[Any, int]]:
        return [got for _ in range(limit) if (got := self.end.take())]

    def kick(self) -> bool:
        return self.end.kick()

    def arm(self, hint: Postpone | None, distance: int) -> bool:
        return self.end.arm(distance)

    def disarm(self) -> None:
        self.end.disarm()

    def figures(self, plan: Plan, jobs: int, slots: int, used: int) -> None:
        assert self.end.nfree == plan.size - slots and len(self.end.out) == jobs


class ModelDevice:
    ours = forced = False

    def __init__(self, plan: Plan, memory: GuestMemory) -> None:
        self.plan, self.memory = plan, memory
        features = {"event_idx": plan.event_idx, "in_order": plan.in_order, "start": plan.start}
        self.end: split.SplitDevice | packed.PackedDevice = (
            packed.PackedDevice(memory, plan.layout, **features)
            if plan.packed
            else split.SplitDevice(memory, plan.layout, on_empty=plan.on_empty, **features)
        )

    def pop(self, limit: int) -> list[ModelChain]:
        return [chain for _ in range(limit) if (chain := self.end.pop())]

    def look(self, handle: ModelChain, job: Job) -> None:
        """Check that the chain is the job, and write the answer."""
        assert handle.pieces == job.pieces
        done = 0
        for piece in job.pieces:
            if piece.write:
                part = job.answer[done : min(done + piece.length, job.written)]
                self.memory.write(piece.gpa, part)
                done += len(part)
        question = b"".join(self.memory.read(piece.gpa, piece.length) for piece in job.readable)
        assert question == job.question

    def use(self, done: list[tuple[ModelChain, Job]], burst: bool) -> None:
        batch: list[tuple[ModelChain, int]] = []
        for chain, job in done:
            batch.append((chain, job.written))
            if not burst or job.written != job.writable_length:  # in order, only the last may be short
                self.end.use(*batch)
                batch = []
        if batch:
            self.end.use(*batch)

    def call(self) -> bool:
        return self.end.call()

    def arm(self) -> bool:
        return self.end.arm()

    def disarm(self) -> None:
        self.end.disarm()

    def figures(self, plan: Plan, added: int, popped: list[ModelChain]) -> None:
        assert self.end.waiting() == (min(added, 1) if plan.packed else added)
