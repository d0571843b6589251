"""Namespaces for tests of ports: skipped, with the reason, where they cannot be made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from netns import refuse

from virtio.net.netns import Namespace, is_root

MACS = ("02:00:00:00:77:01", "02:00:00:00:77:02")


def need_namespaces() -> None:
    """Skip unless this process may make namespaces and TAPs."""
    if not is_root():
        refuse("needs root: network namespaces and TAP interfaces")
    if not os.path.exists("/dev/net/tun"):
        refuse("no /dev/net/tun: load the kernel's tun module")


@contextmanager
def namespaces(count: int, kind: Callable[[], Any] = Namespace) -> Iterator[list[Any]]:
    """Give so many namespaces, closed afterwards: the package's, or those with iproute2 (netns.py)."""
    need_namespaces()
    made: list[Any] = []
    try:
        for _ in range(count):
            made.append(kind())
        yield made
    finally:
        for space in made:
            space.close()


@pytest.fixture
def space() -> Iterator[Namespace]:
    """A namespace for one test."""
    with namespaces(1) as (made,):
        yield made
