"""A bell whose target may change while others ring it."""

from __future__ import annotations

from typing import Self

from virtio.event.notifier import Bell

class Relay:
    def __new__(cls, bell: Bell) -> Self: ...
