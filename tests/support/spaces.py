"""Namespaces for tests of ports: skipped, with the reason, where they cannot be made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

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
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """Give so many namespaces, closed afterwards."""
    need_namespaces()
    made: list[Namespace] = []
    try:
        for _ in range(count):
            made.append(Namespace())
        yield made
    finally:
        for space in made:
            space.close()


@pytest.fixture
def space() -> Iterator[Namespace]:
    """A namespace for one test."""
    with namespaces(1) as (made,):
        yield made
