"""Checks of a console's part of a snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from virtio.console.control import Event
from virtio.console.ports import SIZE_MAX, ConsolePort
from virtio.errors import SnapshotError
from virtio.virtqueue import saved


def check(state: Mapping[str, Any], ports: Sequence[ConsolePort], max_ports: int, chain_max: int) -> None:
    """Raise SnapshotError unless this is what a console with such ports saves, but for what Control.load checks."""
    number, size = saved.number(0, max_ports - 1), saved.number(0, SIZE_MAX)
    numbers = saved.entries(number, most=max_ports)
    message = saved.tuples(number, saved.number(0, len(Event) - 1))
    control = {
        **{"ready": saved.flag, "announced": numbers, "answered": numbers},
        "pending": saved.entries(message, most=max_ports * len(Event)),
    }
    port = {
        **{"id": number, "name": saved.text, "open": saved.flag, "guest_open": saved.flag},
        **{"rows": size, "cols": size, "input": digits, "output": digits},
    }
    saved.fields({"control": saved.fields(control), "ports": saved.entries(saved.fields(port), len(ports))})(state)
    for i, (ours, theirs) in enumerate(zip(ports, state["ports"], strict=True)):
        for field in ("id", "name"):
            if theirs[field] != getattr(ours, field):
                text = f"is {theirs[field]!r:.80}: this device has {getattr(ours, field)!r}"
                raise SnapshotError(f"ports[{i}].{field}", text)
        for field, most in (("input", ours.limit), ("output", ours.limit + chain_max)):
            if (found := len(theirs[field]) // 2) > most:
                raise SnapshotError(f"ports[{i}].{field}", f"has {found} bytes: limit {most}")


def digits(value: Any, field: str) -> None:
    """Take any number of bytes, as hexadecimal digits."""
    saved.text(value, field)
    saved.hexadecimal(len(value) // 2)(value, field)
