"""How many log lines another side can cause."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from virtio.core.process import watch

BURST = 5  # lines of a kind that are written one after the other,
SECONDS = 10.0  # and from then on the time between two
NAMES_MAX = 256  # servers whose lines are told from one another


@dataclass
class Kind:
    """What was written of one kind of line."""

    last: float  # when it was looked at
    left: float = BURST
    dropped: int = 0


class LineLimit(logging.Filter):
    """Lets BURST lines of a kind pass, then one each SECONDS. That one says how many were left out before it.

    A kind is a place in the code. A line that begins with the name of a server ("%s: ...") or with a device ("%r: ...")
    counts for that one alone, so that no guest can silence another's lines. For loggers; any thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        watch(self)
        self._named: dict[str, dict[tuple[str, int], Kind]] = {}
        self._owned: MutableMapping[Any, dict[tuple[str, int], Kind]] = weakref.WeakKeyDictionary()

    def _forked(self, parent: int) -> None:
        """Go on in a child of fork(), where a thread that counts is not there."""
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a line is written; add to it how many were not."""
        with self._lock:
            now = time.monotonic()
            kind = self._kinds(record).setdefault((record.pathname, record.lineno), Kind(now))
            kind.left = min(BURST, kind.left + (now - kind.last) / SECONDS)
            kind.last = now
            if kind.left < 1:
                kind.dropped += 1
                return False
            kind.left -= 1
            dropped, kind.dropped = kind.dropped, 0
        if dropped:
            record.msg, record.args = f"{record.getMessage()} ({dropped} lines like this one were left out)", ()
        return True

    def _kinds(self, record: logging.LogRecord) -> dict[tuple[str, int], Kind]:
        owner: Any = ""
        if isinstance(record.args, tuple) and str(record.msg).startswith(("%s: ", "%r: ")):
            owner = record.args[0]
        if not isinstance(owner, str):
            return self._owned.setdefault(owner, {})
        while owner not in self._named and len(self._named) >= NAMES_MAX:
            del self._named[next(iter(self._named))]
        return self._named.setdefault(owner, {})


def limited(name: str) -> logging.Logger:
    """Return a logger whose lines another side can cause."""
    log = logging.getLogger(name)
    if not any(isinstance(each, LineLimit) for each in log.filters):
        log.addFilter(LineLimit())
    return log
