"""Errors. Each carries the offending value and the limit it broke, as text and as attributes."""

from __future__ import annotations

import traceback
from typing import TypeVar

E = TypeVar("E", bound=Exception)


class VirtioError(Exception):
    """Base of every error that virtio raises on its own account."""


class RingError(VirtioError):
    """The peer broke a rule of the ring; the queue is broken until it is reset.

    ``value`` is what was found, ``limit`` what bounds it (None where nothing does) and ``head`` the chain it was
    found in (None when it belongs to none).
    """

    def __init__(
        self, message: str, value: int | None = None, limit: int | None = None, head: int | None = None
    ) -> None:
        super().__init__(message)
        self.value = value
        self.limit = limit
        self.head = head


class BadDescriptor(RingError):
    """A descriptor that VIRTIO 1.4, 2.7.5 or 2.8 forbids."""


class ChainLoop(RingError):
    """A chain that comes back to itself."""


class ChainTooLong(RingError):
    """A chain of more descriptors, or more bytes, than are allowed."""


class BadIndex(RingError):
    """An available or used index, or an id, that cannot be."""


class QueueFull(VirtioError):
    """No descriptor is free now (FreeBSD's ENOSPC): dequeue, then try again."""


class DoesNotFit(VirtioError):
    """The chain needs more descriptors than are free or than an indirect table has (FreeBSD's EMSGSIZE)."""

    def __init__(self, message: str, needed: int | None = None, available: int | None = None) -> None:
        super().__init__(message)
        self.needed = needed
        self.available = available


class PoolExhausted(VirtioError):
    """No range of the driver's memory fits: ``needed`` bytes, ``available`` in all, ``largest`` in one piece."""

    def __init__(self, message: str, needed: int, available: int, largest: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.available = available
        self.largest = largest


class MemoryFault(VirtioError):
    """[gpa, gpa + length) is not guest memory, or not all of it is where one piece is needed."""

    def __init__(self, gpa: int, length: int, what: str = "guest memory") -> None:
        super().__init__(f"{length} bytes at {gpa:#x} are outside of {what}")
        self.gpa = gpa
        self.length = length


class SegmentError(VirtioError):
    """A frame that cannot be cut into segments, or buffers that the segments do not fit into.

    ``reason`` is a short name for why (``"size"``, ``"protocol"``, ``"room"``, ...), ``value`` what was found and
    ``limit`` what bounds it, where there is such a number.
    """

    def __init__(self, message: str, reason: str, value: int | None = None, limit: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.value = value
        self.limit = limit


class NegotiationError(VirtioError):
    """The two ends did not agree on features.

    ``offered`` and ``wanted`` are sets of bits (ints of any width), ``rejected`` the names of those that failed.
    """

    def __init__(self, message: str, offered: int = 0, wanted: int = 0, rejected: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.offered = offered
        self.wanted = wanted
        self.rejected = rejected


class ConfigError(VirtioError):
    """A configuration that a device shows, or that a driver or program asks for, and that cannot be."""


class SnapshotError(ConfigError, ValueError):
    """A snapshot that is malformed, or of another object. ``field`` is a path in it, ``problem`` the reason."""

    def __init__(self, field: str, problem: str) -> None:
        Exception.__init__(self)  # of two bases the second wants other arguments
        self.problem = problem
        self.rename(field)

    def rename(self, field: str) -> None:
        """Give the field another path: that in the whole of which its snapshot is a part."""
        self.field = field
        self.args = (f"{f'state: {field}' if field else 'state'} {self.problem}",)


class SnapshotFault(SnapshotError, MemoryFault):
    """A snapshot whose ``field`` lies outside of memory."""

    def __init__(self, field: str, gpa: int, length: int, what: str = "guest memory") -> None:
        super().__init__(field, f"is outside of {what}: {length} bytes at {gpa:#x}")
        self.gpa, self.length = gpa, length


class SnapshotFeatures(SnapshotError, NegotiationError):
    """A snapshot with features that this device does not offer."""

    def __init__(self, field: str, offered: int, wanted: int, rejected: tuple[str, ...]) -> None:
        super().__init__(field, f"has what this device does not offer: {', '.join(rejected)}")
        self.offered, self.wanted, self.rejected = offered, wanted, rejected


class DeviceBroken(VirtioError):
    """The device did what no device may, or does not answer; it is unusable until it is reset. ``reason`` says what."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class VhostUserError(VirtioError):
    """A message of vhost-user that cannot be, or cannot be now. The connection it came on is closed."""


class Disconnected(VirtioError):
    """The other side of a vhost-user connection is gone."""


def bare(error: E) -> E:
    """Return an error without its traceback and causes, whose frames hold all that a connection or a device had."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def in_full(error: Exception) -> str:
    """Return an error with its traceback as text: a log record that is kept then holds no frame."""
    return "".join(traceback.format_exception(error)).rstrip()
