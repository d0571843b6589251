"""Checks of the plain data that a snapshot consists of: what is wrong is one error, which names the field.

A check takes a value and the field's path. It returns nothing, and raises SnapshotError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from virtio.errors import MemoryFault, SnapshotError, SnapshotFault
from virtio.virtqueue.layout import QUEUE_SIZE_MAX, QueueLayout

Check = Callable[[Any, str], None]

U8, U16, U32, U64 = (1 << 8) - 1, (1 << 16) - 1, (1 << 32) - 1, (1 << 64) - 1
FEATURES_MAX = (1 << 128) - 1


def number(low: int, high: int) -> Check:
    """Take an integer within these limits."""

    def check(value: Any, field: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise SnapshotError(field, f"is {value!r:.80}: no number from {low} to {high}")

    return check


def flag(value: Any, field: str) -> None:
    """Take True or False, also as 1 or 0."""
    if not isinstance(value, int) or value not in (0, 1):
        raise SnapshotError(field, f"is {value!r:.80}: neither true nor false")


def text(value: Any, field: str) -> None:
    """Take a text."""
    if not isinstance(value, str):
        raise SnapshotError(field, f"is {value!r:.80}: no text")


def mapping(value: Any, field: str) -> None:
    """Take a mapping, whatever it holds."""
    if not isinstance(value, Mapping):
        raise SnapshotError(field, f"is {value!r:.80}: no mapping")


def hexadecimal(length: int) -> Check:
    """Take so many bytes, as hexadecimal digits."""

    def check(value: Any, field: str) -> None:
        text(value, field)
        try:
            found = len(bytes.fromhex(value))
        except ValueError:
            raise SnapshotError(field, f"is {value!r:.80}: not hexadecimal") from None
        if found != length:
            raise SnapshotError(field, f"has {found} bytes, not {length}")

    return check


def optional(check: Check) -> Check:
    """Take None, too."""

    def either(value: Any, field: str) -> None:
        if value is not None:
            check(value, field)

    return either


def entries(check: Check, length: int | None = None, most: int | None = None) -> Check:
    """Take a list of such: of this length, or of so many at most."""

    def each(value: Any, field: str) -> None:
        if not isinstance(value, (list, tuple)):
            raise SnapshotError(field, f"is {value!r:.80}: no list")
        if length is not None and len(value) != length:
            raise SnapshotError(field, f"has {len(value)} entries, not {length}")
        if most is not None and len(value) > most:
            raise SnapshotError(field, f"has {len(value)} entries: limit {most}")
        for i, entry in enumerate(value):
            check(entry, f"{field}[{i}]")

    return each


def tuples(*checks: Check) -> Check:
    """Take a list with one entry for each check."""

    def each(value: Any, field: str) -> None:
        entries(lambda *_: None, len(checks))(value, field)
        for i, (check, entry) in enumerate(zip(checks, value, strict=True)):
            check(entry, f"{field}[{i}]")

    return each


def fields(checks: Mapping[str, Check]) -> Callable[..., None]:
    """Take a mapping of just these fields. Its check needs no path for a whole state."""

    def each(value: Any, field: str = "") -> None:
        mapping(value, field)
        for name, check in checks.items():
            if name not in value:
                raise SnapshotError(join(field, name), "is missing")
            check(value[name], join(field, name))
        for name in value:
            if name not in checks:
                raise SnapshotError(join(field, str(name)), "is unknown")

    return each


def join(field: str, name: str) -> str:
    """Return the path of a field within another."""
    return f"{field}{'' if not field or not name or name.startswith('[') else '.'}{name}"


@contextmanager
def within(field: str) -> Iterator[None]:
    """Name the fields of errors raised here as those of a part of the snapshot."""
    try:
        yield
    except SnapshotError as error:
        error.rename(join(field, error.field))
        raise


@contextmanager
def placed(field: str) -> Iterator[None]:
    """Name this field in errors of what lies outside of memory, or cannot lie where it does."""
    try:
        yield
    except SnapshotError:
        raise
    except MemoryFault as error:
        raise SnapshotFault(field, error.gpa, error.length) from None
    except ValueError as error:
        raise SnapshotError(field, f"is not possible: {error}") from None


LAYOUT = fields(
    {
        "size": number(1, QUEUE_SIZE_MAX),
        "desc": number(0, U64),
        "driver": number(0, U64),
        "device": number(0, U64),
        "is_packed": flag,
    }
)


def layout_of(value: Any, field: str) -> QueueLayout:
    """Return the layout of a queue."""
    LAYOUT(value, field)
    try:
        return QueueLayout(**{**value, "is_packed": bool(value["is_packed"])})
    except ValueError as error:
        raise SnapshotError(field, f"is not possible: {error}") from None
