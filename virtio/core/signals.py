"""Signals that threads of this package must take, or must not: each floor says its own, threads ask when they begin."""

from __future__ import annotations

import signal

_taken: set[int] = set()
_blocked: set[int] = set()


def take(signum: int) -> None:
    """Have threads that begin from now on take a signal: an access to memory, or a system call, depends on it."""
    _taken.add(signum)


def block(signum: int) -> None:
    """Have threads that begin from now on block a signal."""
    _blocked.add(signum)


def begin_thread() -> None:
    """Set the mask of the calling thread, which has just begun. A thread that others made keeps theirs."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _taken)
    signal.pthread_sigmask(signal.SIG_BLOCK, _blocked)
