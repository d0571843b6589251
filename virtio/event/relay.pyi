"""A bell whose target may change while others ring it."""

from __future__ import annotations

from virtio.event.notifier import Bell

class Relay:
    def __init__(self, bell: Bell) -> None: ...
